"""The store's own audit at the end of a test: whatever was done to workers, servers or network,
all that lies in Redis must agree.
"""

from collections.abc import Collection

from watcher.store.inventory import StoreAudit
from watcher.store.keys import SHARDS, Keys, shard_of
from watcher.store.pipe import Pipe

_MOST = 5


async def flaws(pipe: Pipe, keys: Keys, *, spared: Collection[str] = ()) -> list[str]:
    """What disagrees, in words, once no worker runs. The shards of `spared` accounts were damaged on purpose,
    and are not looked at."""
    audit = StoreAudit(pipe, keys)
    names = await audit.names()
    shards = sorted({*range(SHARDS)}.difference(map(shard_of, spared)))
    parts = [*([names] if names else []), *[await audit.of_shard(shard) for shard in shards]]
    found = [f"shard {flaw.shard}: {flaw.about}: {flaw.text}" for part in parts for flaw in part.flaws]
    if moving := sum(part.moving for part in parts):
        found.append(f"{moving} parts of the store are in motion, and no worker is")
    return [*found[:_MOST], *([f"{len(found)} flaws of the store in all"] if len(found) > _MOST else [])]
