"""What is remembered of deliveries that did not go well: dead letters, and the attempts that failed.

Refuses to send anything again: `Queues.enqueue` does, and takes the letter away in the same step.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from watcher.journal.delivery import Delivery, load_delivery
from watcher.store.history import place
from watcher.store.keys import SHARDS, Keys, shard_of
from watcher.store.pipe import Pipe

_PAGE = 200
"""DeadLetters of one answer, each with a whole body."""

_Fields = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery that was given up. `delivery` is None where it cannot be read."""

    id: str
    account: str
    reason: str
    delivery: Delivery | None

    @property
    def at_ms(self) -> int:
        """When it was given up (server ms)."""
        return place(self.id)[0]


class Tried(NamedTuple):
    """An attempt as `delivery.queue` wrote it down; `said` is {} where it cannot be read."""

    id: str
    account: str
    said: dict[str, Any]


T = TypeVar("T", DeadLetter, Tried)


class DeadLetters:
    """What one namespace remembers. Methods raise StoreError when the server does not do its part."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def subscriptions(self) -> list[str]:
        """Name the subscriptions that something waits for, whoever is configured."""
        found: set[str] = set()
        for shard in range(SHARDS):
            names = await self._pipe.command("ZRANGE", self._keys.due_subscriptions(shard), 0, -1)
            found.update(name.decode("utf-8", "replace") for name in names)
        return sorted(found)

    async def of_shard(
        self, subscription: str, shard: int, *, since_ms: int, until_ms: int
    ) -> AsyncIterator[list[DeadLetter]]:
        """Read one shard's dead letters of a time, oldest first, page by page; they may go meanwhile."""
        start = f"{since_ms}-0"
        while True:
            key = self._keys.dead(shard, subscription)
            page = await self._pipe.command("XRANGE", key, start, until_ms, "COUNT", _PAGE)
            yield [_letter(shard, entry_id.decode(), _by_name(fields)) for entry_id, fields in page]
            if len(page) < _PAGE:
                return
            start = f"({page[-1][0].decode()}"

    async def latest(
        self, subscription: str, limit: int, takes: Callable[[DeadLetter], bool]
    ) -> list[DeadLetter]:
        """Read the latest dead letters that are wanted, oldest first."""
        reading = (
            self._back(self._keys.dead(shard, subscription), partial(_letter, shard), takes, limit)
            for shard in range(SHARDS)
        )
        return _merged(await asyncio.gather(*reading), limit)

    async def attempts(self, subscription: str, limit: int, takes: Callable[[Tried], bool]) -> list[Tried]:
        """Read the latest attempts that are wanted, oldest first."""
        reading = (
            self._back(self._keys.attempts(shard, subscription), _tried, takes, limit)
            for shard in range(SHARDS)
        )
        return _merged(await asyncio.gather(*reading), limit)

    async def attempts_since(
        self, subscription: str, shard: int, since_ms: int, *, at_most: int
    ) -> list[Tried]:
        """Read the latest attempts of one shard, oldest first."""
        key = self._keys.attempts(shard, subscription)
        page = await self._pipe.command("XREVRANGE", key, "+", f"{since_ms}-0", "COUNT", at_most)
        return [_tried(entry_id.decode(), _by_name(fields)) for entry_id, fields in reversed(page)]

    async def _back(
        self, key: str, read: Callable[[str, _Fields], T], takes: Callable[[T], bool], limit: int
    ) -> list[T]:
        """Read a stream back from its end, until enough of what is wanted is found."""
        found: list[T] = []
        end = "+"
        while True:
            page = await self._pipe.command("XREVRANGE", key, end, "-", "COUNT", _PAGE)
            entries = (read(entry_id.decode(), _by_name(fields)) for entry_id, fields in page)
            found.extend(entry for entry in entries if takes(entry))
            if len(page) < _PAGE or len(found) >= limit:
                return found
            end = f"({page[-1][0].decode()}"


def _merged(parts: Sequence[list[T]], limit: int) -> list[T]:
    """Put what the shards hold in the order of time, and keep the latest of it."""
    return sorted((entry for part in parts for entry in part), key=lambda entry: place(entry.id))[-limit:]


def _by_name(fields: list[bytes]) -> _Fields:
    return dict(zip(fields[::2], fields[1::2], strict=True))


def _letter(shard: int, entry_id: str, fields: _Fields) -> DeadLetter:
    account, reason = (fields.get(name, b"").decode("utf-8", "replace") for name in (b"account", b"reason"))
    try:
        delivery = load_delivery(fields.get(b"delivery", b""))
    except ValueError:
        delivery = None
    is_at_home = shard_of(account) == shard  # else it could not go back to its queue in one step
    return DeadLetter(entry_id, account, reason, delivery if is_at_home else None)


def _tried(entry_id: str, fields: _Fields) -> Tried:
    try:
        said = dict(json.loads(fields.get(b"attempt", b"")))
    except (ValueError, TypeError, RecursionError):
        said = {}
    return Tried(entry_id, str(said.get("account", "")), said)
