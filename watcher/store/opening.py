"""Opens the store that a configuration names: for a worker, or for a command that only looks.

Either finds a running embedded server or starts one, and the last to leave stops it. Refuses to create an
embedded store just to look at it.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from watcher.settings import RedisSettings
from watcher.store.address import ConfigurationRefused, StoreUnreachable, check_address, several
from watcher.store.cluster import ClusterPipe
from watcher.store.connect import connect
from watcher.store.contact import make_contact
from watcher.store.embedded import Embedded, is_made
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import Pipe
from watcher.store.roster import SCHEMA


@dataclass(frozen=True, slots=True)
class OpenStore:
    """A store as long as it is open. `mend` starts an embedded server again that is gone."""

    pipe: Pipe
    keys: Keys
    mend: Callable[[], Awaitable[object]] | None = None


@asynccontextmanager
async def open_store(settings: RedisSettings) -> AsyncIterator[OpenStore]:
    """Open a store, once it answers. Raises StoreError."""
    async with AsyncExitStack() as stack:
        url, mend = settings.url.get_secret_value(), None
        if url == "embedded":
            server = await stack.enter_async_context(Embedded(settings.data_dir))
            url, mend = server.url, server.ensure
        pipe = _pipe(url)
        stack.push_async_callback(pipe.aclose)
        await make_contact(pipe, url)
        yield OpenStore(pipe, Keys(settings.namespace), mend)


def _pipe(url: str) -> Pipe:
    check_address(url)
    found = several(url)
    return ClusterPipe(found) if found and found.kind == "cluster" else Pipe(connect(url))


@asynccontextmanager
async def open_to_look(settings: RedisSettings) -> AsyncIterator[OpenStore]:
    """Open a store that a worker has used. Raises StoreError, also where none has or another version did."""
    if settings.url.get_secret_value() == "embedded":
        _refuse_unused(settings.data_dir)
    async with open_store(settings) as store:
        await _check_layout(store)
        yield store


def _refuse_unused(data_dir: Path) -> None:
    if not is_made(data_dir):
        raise StoreUnreachable(
            f"there is no embedded store in {os.path.abspath(data_dir)} yet (redis.data_dir): `watcher run` "
            "makes one; if it has run, then from another directory"
        )


async def _check_layout(store: OpenStore) -> None:
    key = store.keys.meta()
    shards, schema = await store.pipe.command("HMGET", key, "shards", "schema")
    if shards is not None and (shards, schema) != (b"%d" % SHARDS, SCHEMA.encode()):
        raise ConfigurationRefused(
            f"the state under {key} was laid out by another version of watcher: look at it with that version"
        )
