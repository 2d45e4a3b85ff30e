"""Which accounts are polled at which provider: brings the schedules in line with a configuration.

An account that is not in it any more is forgotten, with its state, so that adding it again later is a new
baseline. What waits in its queues stays deliverable. Refuses to know of other workers, which may have another
configuration: `run.members` does.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from watcher.store.batch import load_script
from watcher.store.exceptions import ConfigurationRefused
from watcher.store.keys import SHARDS, Keys, shard_of
from watcher.store.pipe import Pipe
from watcher.store.polls import damage_named
from watcher.store.state import BadState

SCHEMA = "1"
_AT_ONCE = 500

_MAKE_DUE = load_script("make_due")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Enrolled:
    """How many accounts an enrolment added to the schedules, and took off them."""

    added: int
    removed: int


class Roster:
    """The accounts of one namespace."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def check_layout(self) -> None:
        """Raises ConfigurationRefused where another version of watcher laid out the state."""
        await self._providers(())

    async def enrolled(self) -> str | None:
        """Say which list was enrolled last; None where the state is gone that was laid out, as after a
        restart without persistence.

        So it is where an enrolment was cut off: whoever began it may have died.
        """
        shards, enrolled = await self._read_meta("shards", "enrolled")
        return None if shards is None or enrolled is None else enrolled.decode("utf-8", "replace")

    async def note_enrolled(self, roster: str) -> bool:
        """Note that the enrolment of a list was brought to its end; says whether it is the first one in this
        state.

        Nothing is written where it is noted already: a full server takes no write, and must be drained.
        """
        if await self.enrolled() == roster:
            return False
        return bool(await self._pipe.command("HSET", self._keys.meta(), "enrolled", roster))

    async def enroll(
        self, accounts_by_provider: Mapping[str, Collection[str]], *, now_ms: int, forget: bool = True
    ) -> Enrolled:
        """Make new accounts due now, and `forget` the ones that are gone."""
        providers = await self._providers(accounts_by_provider)
        everyone = {name for names in accounts_by_provider.values() for name in names}
        added = removed = 0
        for provider in providers:
            wanted_by_shard = _by_shard(accounts_by_provider.get(provider, ()))
            for shard in range(SHARDS):
                wanted = {name.encode() for name in wanted_by_shard.get(shard, ())}
                with suppress(BadState), damage_named():  # whoever polls there says so
                    known = await self._scheduled(shard, provider)
                    added += await self._add(shard, provider, sorted(wanted - known), now_ms)
                    if forget:
                        await self._remove(shard, provider, sorted(known - wanted), everyone)
                        removed += len(known - wanted)
        return Enrolled(added, removed)

    async def _providers(self, configured: Collection[str]) -> list[str]:
        """Check that the state is laid out as this program expects; returns all providers ever used."""
        key = self._keys.meta()
        shards, schema, providers = await self._read_meta("shards", "schema", "providers")
        if (shards, schema) not in ((None, None), (b"%d" % SHARDS, SCHEMA.encode())):
            raise ConfigurationRefused(
                f"the state under {key} was laid out by another version of watcher "
                f"(schema {_number(schema)}, {_number(shards)} shards; this one has {SCHEMA}, {SHARDS}): "
                "run that version, or set redis.namespace to start anew"
            )
        known = sorted({*provider_names(providers), *configured})
        fields = ("shards", SHARDS, "schema", SCHEMA, "providers", json.dumps(known))
        if shards is None or providers is None or providers.decode("utf-8", "replace") != fields[-1]:
            await self._pipe.command("HSET", key, *fields)  # only then, as in note_enrolled
        return known

    async def _read_meta(self, *names: str) -> list[bytes | None]:
        key = self._keys.meta()
        try:
            with damage_named():
                found: list[bytes | None] = await self._pipe.command("HMGET", key, *names)
        except BadState:
            raise ConfigurationRefused(
                f"what lies under {key} is none of watcher's: delete it, and all accounts are enrolled anew"
            ) from None
        return found

    async def _scheduled(self, shard: int, provider: str) -> set[bytes]:
        return {*await self._pipe.command("ZRANGE", self._keys.polls(shard, provider), 0, -1)}

    async def make_due(self, provider: str, names: Collection[str], *, now_ms: float) -> set[str]:
        """Let accounts be polled now, whenever they were due; returns those that a worker has in hand, which
        are left to it."""
        in_hand: set[str] = set()
        for shard, members in _by_shard(names).items():
            keys = [self._keys.polls(shard, provider), self._keys.due_polls(shard)]
            for group in _in_parts(members):
                found = await self._pipe.script(_MAKE_DUE, keys, now_ms, provider, *group)
                in_hand.update(name.decode("utf-8", "replace") for name in found)
        return in_hand

    async def _add(self, shard: int, provider: str, names: list[bytes], now_ms: int) -> int:
        """Returns how many there were to add: another worker may do the same at this moment."""
        added = 0
        for group in _in_parts(names):
            pairs = [part for name in group for part in (now_ms, name)]
            added += await self._pipe.command("ZADD", self._keys.polls(shard, provider), "NX", *pairs)
        if names:
            await self._index(shard, provider, now_ms)
        return added

    async def _index(self, shard: int, provider: str, due_ms: int) -> None:
        await self._pipe.command("ZADD", self._keys.due_polls(shard), "LT", due_ms, provider)

    async def _remove(self, shard: int, provider: str, names: list[bytes], everyone: Collection[str]) -> None:
        for group in _in_parts(names):
            # The schedule first: a poll in flight loses its lease, and cannot bring the state back.
            await self._pipe.command("ZREM", self._keys.polls(shard, provider), *group)
            await self._pipe.command("HDEL", self._keys.failing(shard, provider), *group)
            gone = {name.decode("utf-8", "replace") for name in group}.difference(everyone)
            if gone:
                await self._pipe.command("UNLINK", *map(self._keys.state, sorted(gone)))


def _number(text: bytes | None) -> str:
    return text.decode() if text and text.isdigit() else "unknown"


def provider_names(text: bytes | None) -> set[str]:
    """Read which providers were ever used; where that is damaged, what they have left stays behind."""
    try:
        found = json.loads(text or b"[]")
    except (ValueError, RecursionError):
        return set()
    names = found if isinstance(found, list) else []
    return {name for name in names if isinstance(name, str) and name.isascii()}


def _by_shard(names: Iterable[str]) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(shard_of(name), []).append(name)
    return groups


def _in_parts(names: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]
