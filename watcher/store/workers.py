"""Which workers there are: each notes every few seconds that it lives, and by which list of accounts.

Refuses to share work: leases alone do. A worker that is not seen polls and delivers like any other.
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from watcher.store.counts import check_count, read_count
from watcher.store.keys import Keys
from watcher.store.pipe import Pipe
from watcher.store.scripting import load_script

GONE_AFTER = timedelta(seconds=45)
"""A worker notes every ten seconds that it lives: one that missed it so often is gone, or cannot."""

FORGET_AFTER = timedelta(hours=1)
"""So long it can be seen that a worker ended without a word."""

_NOTE_WORKER = load_script("note_worker")


class Presence(NamedTuple):
    """A worker as it says of itself, and when it last did (Unix ms of the server).

    `requests_per_second` by provider is what it really sent, on the average of its last minute. `roster`
    names its list of accounts, `configuration` what it leads to: those of another worker differ where these
    do. An older worker does not say the latter.
    """

    worker: str
    host: str
    pid: int
    version: str
    since_ms: int
    requests_per_second: Mapping[str, float]
    roster: str = ""
    seen_ms: int = 0
    configuration: str = ""

    def is_there(self, now_ms: int) -> bool:
        return now_ms - self.seen_ms < 1000 * GONE_AFTER.total_seconds()


class Workers:
    """The workers of one namespace. Methods raise StoreError."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._key = keys.workers()

    async def note(self, presence: Presence) -> None:
        """Note that a worker lives; the server adds the time."""
        said = {name: value for name, value in presence._asdict().items() if name not in _KEPT_APART}
        text = json.dumps(said, separators=(",", ":"))
        forget_ms = int(1000 * FORGET_AFTER.total_seconds())
        await self._pipe.script(_NOTE_WORKER, [self._key], presence.worker, text, forget_ms)

    async def leave(self, worker: str) -> None:
        """Forget a worker that ends in order."""
        await self._pipe.command("HDEL", self._key, worker)

    async def read(self) -> list[Presence]:
        """Read who was seen in the last hour, the latest first. What cannot be read is left out."""
        pairs = await self._pipe.command("HGETALL", self._key)
        noted = zip(pairs[::2], pairs[1::2], strict=True)
        found = (_parse(name.decode("utf-8", "replace"), text) for name, text in noted)
        return sorted((one for one in found if one), key=lambda one: (-one.seen_ms, one.worker))


_KEPT_APART = ("worker", "seen_ms")


def _parse(worker: str, text: bytes) -> Presence | None:
    seen_ms, _, said = text.partition(b" ")
    try:
        told: Any = json.loads(said)
        return Presence(
            worker,
            str(told["host"]),
            check_count(told["pid"]),
            str(told["version"]),
            check_count(told["since_ms"]),
            {str(name): float(rate) for name, rate in dict(told["requests_per_second"]).items()},
            str(told["roster"]),
            read_count(seen_ms),
            str(told.get("configuration", "")),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
