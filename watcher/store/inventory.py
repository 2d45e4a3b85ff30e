"""Reads everything in Redis, shard by shard and part by part, and returns what `consistency` finds that
lasts.

Refuses to write, and to trust one look: workers go on meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from redis.exceptions import NoPermissionError

from watcher.store.consistency import Flaw, Inventory, keys_of_accounts, lasting, strange
from watcher.store.directory import Directory, version_of
from watcher.store.errors import DamagedKey
from watcher.store.exceptions import StoreError
from watcher.store.history import START
from watcher.store.keeper import count_backlog
from watcher.store.keys import Keys, shard_of
from watcher.store.members import provider_names
from watcher.store.pipe import Pipe, in_parts, load_script
from watcher.store.reader import Reader

_READ_BODIES = load_script("read_bodies")
_READ_STREAM = load_script("read_stream")
_READ_DUE = load_script("read_due")
_READ_QUEUES = load_script("read_queues")

WAITS_S = (0.0, 0.3, 1.5)
"""Before each look. The second and third are made only if the one before found something."""

LONGEST_HOLD_MS = 120_000
"""A subscription without capacity is out of the index for a minute at most; and no two clocks agree."""

_PAGE = 500
_AT_ONCE = 50
_DELIVERIES_PAGE = 1000

T = TypeVar("T")


@dataclass(slots=True)
class Audited:
    """What was found in a shard, or (`shard` is None) in the names of all keys. `moving` counts what no two
    looks found in the same words: it is not judged."""

    shard: int | None
    flaws: list[Flaw] = field(default_factory=list)
    moving: int = 0
    bodies: int = 0
    references: int = 0
    queues: int = 0
    states: int = 0
    records: int = 0


class StoreAudit:
    """Audits one namespace; `subscriptions` are those that are known already. Methods raise StoreError."""

    def __init__(self, pipe: Pipe, keys: Keys, subscriptions: Collection[str] = ()) -> None:
        self._pipe = pipe
        self._keys = keys
        self._configured = frozenset(subscriptions)
        self._named: dict[int, set[tuple[str, str]]] | None = None

    async def names(self) -> Audited | None:
        """Check the names of all keys. Returns None without the right to list them: then a key that nothing
        else names is not found."""
        looks: list[list[Flaw]] = []
        keys = set[str]()
        for wait_s in WAITS_S:
            await asyncio.sleep(wait_s)
            try:
                keys = {key async for key in self._pipe.names(f"{self._keys.namespace}:*")}
            except StoreError as error:
                if isinstance(error.__cause__, NoPermissionError):
                    return None
                raise
            looks.append([*strange(self._keys.namespace, keys)])
            if not looks[-1]:
                break
        self._named = {}
        for shard, subscription, account in keys_of_accounts(self._keys.namespace, keys):
            self._named.setdefault(shard, set()).add((subscription, account))
        return Audited(None, *lasting(looks))

    async def of_shard(self, shard: int) -> Audited:
        """Check a shard, and again if something disagrees."""
        looks: list[list[Flaw]] = []
        found = Inventory(self._keys, shard)
        for wait_s in WAITS_S:
            await asyncio.sleep(wait_s)
            found = await _Look(self._pipe, self._keys, shard).take(self._configured, self._named)
            looks.append(found.finish())
            if not looks[-1]:
                break
        counts = len(found.bodies), found.references, found.queues, found.states, found.records
        return Audited(shard, *lasting(looks), *counts)


class _Look:
    """One look at one shard."""

    def __init__(self, pipe: Pipe, keys: Keys, shard: int) -> None:
        self._pipe = pipe
        self._keys = keys
        self._shard = shard
        self._found = Inventory(keys, shard)

    async def take(
        self, configured: Iterable[str], named: dict[int, set[tuple[str, str]]] | None
    ) -> Inventory:
        """Read everything of the shard; `named` are the subscriptions and accounts in names of keys."""
        keys, shard, found = self._keys, self._shard, self._found
        if end := await self._stream("log", keys.log(shard), found.record):
            found.end_of_log(*end)
        await self._bodies()
        said = (await self._hash(keys.meta())).get("providers", b"")
        providers = sorted(provider_names(said) | await self._members(keys.due_polls(shard)))
        known = (named or {}).get(shard, set[tuple[str, str]]())
        accounts = dict.fromkeys([*found.accounts, *(account for _, account in known)], "")
        polled = set[str]()
        for name in providers:
            members = await self._members(keys.polls(shard, name))
            polled |= members
            accounts |= dict.fromkeys(members, name)
        await self._directory(polled)
        accounts = {**dict.fromkeys(found.accounts, ""), **accounts}
        accounts = {account: name for account, name in accounts.items() if shard_of(account) == shard}
        queues = {(name, account) for name, account in known if name}
        if named is None:
            queues |= {
                (name, account) for account in accounts for name in await self._hash(keys.queued(account))
            }
        subscriptions = {*configured, *found.subscriptions, *(name for name, _ in queues)}
        subscriptions |= await self._members(keys.due_subscriptions(shard))
        subscriptions.update(await self._hash(keys.marks()), await self._hash(keys.breakers()))
        for name in subscriptions:
            accounts_there = await self._members(keys.queues(shard, name))
            accounts_there.update(await self._hash(keys.tries(shard, name)))
            queues |= {(name, account) for account in accounts_there}
        await self._queues(queues)
        noted = await self._hash(keys.backlogs(shard))
        for name in sorted({*subscriptions, *noted}):
            if count := await self._ask(count_backlog(self._pipe, keys, shard, name), ()):
                found.backlog(name, *count)
        for name in sorted(subscriptions):
            await self._dead_letters(name)
        found.sizes(await self._hash(keys.sizes(shard)))
        await self._due("polls", keys.due_polls(shard), keys.polls, providers)
        await self._due("queues", keys.due_subscriptions(shard), keys.queues, sorted(subscriptions))
        async for seen in Reader(self._pipe, keys).read_states(accounts):
            if seen.state or seen.damage:
                found.state(seen.account, seen.damage)
        return found

    async def _queues(self, queues: Iterable[tuple[str, str]]) -> None:
        """Read queues, each with its place in the schedule at the same moment; the rest of a long one after
        that."""
        accounts_by_name: dict[str, list[str]] = {}
        for name, account in sorted(queues):
            accounts_by_name.setdefault(name, []).append(account)
        for name, accounts in accounts_by_name.items():
            for some in in_parts(accounts, _AT_ONCE):
                if not await self._read_queues(name, some) and len(some) > 1:
                    for account in some:
                        await self._read_queues(name, [account])

    async def _read_queues(self, subscription: str, accounts: Sequence[str]) -> bool:
        """Read some queues. Returns whether they could be read; of a single one, the reason is noted."""
        keys, shard = self._keys, self._shard
        names = [keys.queues(shard, subscription), keys.tries(shard, subscription)]
        names += [
            key for account in accounts for key in (keys.queue(subscription, account), keys.queued(account))
        ]
        answer = await self._ask(
            self._pipe.script(_READ_QUEUES, names, subscription, _AT_ONCE, *accounts),
            names if len(accounts) == 1 else (),
        )
        if answer is None:
            return False
        for i, account in enumerate(accounts):
            due, tried, queued, length, entries = answer[5 * i : 5 * i + 5]
            while len(entries) < length:
                start, end = len(entries), len(entries) + _DELIVERIES_PAGE - 1
                key = keys.queue(subscription, account)
                page = await self._ask(self._pipe.command("LRANGE", key, start, end), ())
                if not page:
                    break
                entries += page
            self._found.queue(subscription, account, entries, due=due, tried=tried, queued=queued)
        return True

    async def _dead_letters(self, subscription: str) -> None:
        """Read the dead letters and the attempts of a subscription."""
        keys, shard, found = self._keys, self._shard, self._found

        def letter(entry_id: bytes, fields: list[bytes], body_bytes: int) -> None:
            found.letter(subscription, entry_id, fields, body_bytes)

        for part, key, take in (
            ("dead", keys.dead(shard, subscription), letter),
            ("attempts", keys.attempts(shard, subscription), found.attempt),
        ):
            await self._stream(part, key, take)

    async def _stream(
        self, part: str, key: str, take: Callable[[bytes, list[bytes], int], object]
    ) -> tuple[bytes, bytes] | None:
        """Read a stream. Returns which record was its first at the end, and the size that was noted then."""
        keys, shard, after = self._keys, self._shard, START
        while True:
            names = [key, keys.bodies(shard), keys.sizes(shard)]
            answer = await self._ask(self._pipe.script(_READ_STREAM, names, after, _PAGE, part), names)
            if answer is None:
                return None
            noted, first, *records = answer
            for entry_id, fields, body_bytes in zip(records[::3], records[1::3], records[2::3], strict=True):
                take(entry_id, fields, body_bytes)
                after = entry_id.decode()
            if len(records) < 3 * _PAGE:
                return first, noted

    async def _directory(self, polled: Collection[str]) -> None:
        """Read the records of the directory, after the accounts that are polled."""
        keys, shard = self._keys, self._shard
        by_kind = {"account": keys.account_records(shard), "subscription": keys.subscription_records(shard)}
        asking = Directory(self._pipe, keys).read(shard)
        held = await self._ask(asking, [*by_kind.values(), keys.changes(shard)])
        if held is None:
            return
        removed = await self._members(keys.removed(shard))
        versions = {(one.kind, one.name): one.version for one in held.records}
        for kind, name in (*versions, *held.damaged):
            self._found.of_directory(
                kind,
                name,
                by_kind[kind],
                version=versions.get((kind, name)),
                last=version_of(held.head),
                is_polled=name in polled,
                is_removed=name in removed,
            )

    async def _bodies(self) -> None:
        key, cursor = self._keys.bodies(self._shard), b"0"
        while answer := await self._ask(self._pipe.script(_READ_BODIES, [key], cursor, _PAGE), [key]):
            cursor, *heads = answer
            for reference, head in zip(heads[::2], heads[1::2], strict=True):
                self._found.body(reference, head)
            if cursor == b"0":
                break

    async def _due(
        self, kind: str, index: str, schedule: Callable[[int, str], str], names: Sequence[str]
    ) -> None:
        """Compare what an index says with when the first of each schedule is due."""
        for some in in_parts(names, _AT_ONCE):
            keys = [index, *(schedule(self._shard, name) for name in some)]
            answer = await self._ask(self._pipe.script(_READ_DUE, keys, *some), keys)
            if answer is None:
                continue
            late_ms = self._pipe.now_ms() + LONGEST_HOLD_MS if kind == "queues" else 0
            for name, first, indexed in zip(some, answer[::2], answer[1::2], strict=True):
                self._found.due(kind, name, first, indexed, not_after_ms=late_ms)

    async def _members(self, schedule: str) -> set[str]:
        found = await self._ask(self._pipe.command("ZRANGE", schedule, 0, -1), [schedule])
        return {name.decode("utf-8", "replace") for name in found or ()}

    async def _hash(self, key: str) -> dict[str, bytes]:
        pairs = await self._ask(self._pipe.command("HGETALL", key), [key]) or []
        return {
            name.decode("utf-8", "replace"): value
            for name, value in zip(pairs[::2], pairs[1::2], strict=True)
        }

    async def _ask(self, asking: Awaitable[T], keys: Sequence[str]) -> T | None:
        """Ask Redis; None if one of `keys` has another type, which is then noted."""
        try:
            return await asking
        except DamagedKey:
            if keys:
                self._found.damaged(keys)
            return None
