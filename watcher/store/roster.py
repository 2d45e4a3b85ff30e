"""Which accounts are polled at which provider: brings the schedules in line with a configuration.

All workers of a namespace share one configuration: an account that is not in it is forgotten, with its
state, so that adding it again later is a new baseline. What waits in its lanes stays deliverable.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from watcher.store.connect import ConfigurationRefused
from watcher.store.keys import SHARDS, Keys, shard_of
from watcher.store.pipe import Pipe

SCHEMA = "1"
_AT_ONCE = 500


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

    async def is_lost(self) -> bool:
        """Say whether the state is gone that was laid out, as after a restart without persistence.

        So it is where an enrolment was cut off: whoever began it may have died.
        """
        return None in await self._pipe.command("HMGET", self._keys.meta(), "shards", "enrolled")

    async def note_enrolled(self) -> bool:
        """Note that an enrolment was brought to its end; says whether it is the first one in this state."""
        return bool(await self._pipe.command("HSET", self._keys.meta(), "enrolled", 1))

    async def enroll(self, accounts_by_provider: Mapping[str, Collection[str]], *, now_ms: int) -> Enrolled:
        """Make new accounts due now and forget the ones that are gone."""
        providers = await self._providers(accounts_by_provider)
        everyone = {name for names in accounts_by_provider.values() for name in names}
        added = removed = 0
        for provider in providers:
            wanted = set(accounts_by_provider.get(provider, ()))
            known = await self._scheduled(provider)
            added += await self._add(provider, sorted(wanted - known), now_ms)
            await self._remove(provider, sorted(known - wanted), everyone)
            removed += len(known - wanted)
        return Enrolled(added, removed)

    async def _providers(self, configured: Collection[str]) -> list[str]:
        """Check that the state is laid out as this program expects; returns all providers ever used."""
        key = self._keys.meta()
        shards, schema, providers = await self._pipe.command("HMGET", key, "shards", "schema", "providers")
        if (shards, schema) not in ((None, None), (b"%d" % SHARDS, SCHEMA.encode())):
            raise ConfigurationRefused(
                f"the state under {key} was laid out by another version of watcher "
                f"(schema {_number(schema)}, {_number(shards)} shards; this one has {SCHEMA}, {SHARDS}): "
                "run that version, or set redis.namespace to start anew"
            )
        known = sorted({*json.loads(providers or "[]"), *configured})
        fields = ("shards", SHARDS, "schema", SCHEMA, "providers", json.dumps(known))
        await self._pipe.command("HSET", key, *fields)
        return known

    async def _scheduled(self, provider: str) -> set[str]:
        scheduled: set[str] = set()
        for shard in range(SHARDS):
            members = await self._pipe.command("ZRANGE", self._keys.polls(shard, provider), 0, -1)
            scheduled.update(member.decode() for member in members)
        return scheduled

    async def make_due(self, provider: str, names: Collection[str], *, now_ms: int) -> None:
        """Let accounts be polled now, whenever they were due."""
        for shard, group in _by_shard(sorted(names)):
            pairs = [part for name in group for part in (now_ms, name)]
            await self._pipe.command("ZADD", self._keys.polls(shard, provider), "XX", *pairs)

    async def _add(self, provider: str, names: list[str], now_ms: int) -> int:
        """Returns how many there were to add: another worker may do the same at this moment."""
        added = 0
        for shard, group in _by_shard(names):
            pairs = [part for name in group for part in (now_ms, name)]
            added += await self._pipe.command("ZADD", self._keys.polls(shard, provider), "NX", *pairs)
        return added

    async def _remove(self, provider: str, names: list[str], everyone: Collection[str]) -> None:
        for shard, group in _by_shard(names):
            # The schedule first: a poll in flight loses its lease, and cannot bring the state back.
            await self._pipe.command("ZREM", self._keys.polls(shard, provider), *group)
            await self._pipe.command("HDEL", self._keys.failing(shard, provider), *group)
            gone = [self._keys.state(name) for name in group if name not in everyone]
            if gone:
                await self._pipe.command("UNLINK", *gone)


def _number(text: bytes | None) -> str:
    return text.decode() if text and text.isdigit() else "unknown"


def _by_shard(names: list[str]) -> list[tuple[int, list[str]]]:
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(shard_of(name), []).append(name)
    return [
        (shard, group[i : i + _AT_ONCE])
        for shard, group in groups.items()
        for i in range(0, len(group), _AT_ONCE)
    ]
