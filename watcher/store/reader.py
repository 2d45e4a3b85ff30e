"""All reading of Redis for people and metrics: states, schedules, backlogs, dead letters, attempts.

Refuses to write, to claim, and to judge what it reads.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from watcher.journal.account import AccountState
from watcher.journal.events import Delivery
from watcher.store.errors import DamagedKey
from watcher.store.history import START, place
from watcher.store.keys import DEAD_OF, SHARDS, Keys, read_count, read_score, shard_of
from watcher.store.members import provider_names
from watcher.store.pipe import Pipe, in_parts, load_script
from watcher.store.polls import Failing, read_failing, read_watch
from watcher.store.queues import read_deliveries, read_tries
from watcher.store.state import BadState, Names

_READ_STATES = load_script("read_states")
_COUNT_QUEUES = load_script("count_queues")
_LIST_ENDS = load_script("list_ends")
_MEASURE_QUEUES = load_script("measure_queues")
_READ_QUEUE = load_script("read_queue")
_READ_RECORDS = load_script("read_records")

_AT_ONCE = 200
"""Keys of one script call: a millisecond of the server's time."""

_SHARDS_AT_ONCE = 4
"""Of which thousands of names or states may be read: what comes of it takes a few milliseconds."""

_SHARDS_MEASURED = 256
"""Shards read, over all subscriptions with a backlog; each of them gets at least one."""

_QUEUES_MEASURED = 5_000

_DELIVERIES_PAGE = 50
"""Deliveries of one answer, each with a whole body."""

_DEAD_LETTERS_PAGE = 200
"""Dead letters of one answer, each with a whole body."""

_Fields = dict[bytes, bytes]


class Seen(NamedTuple):
    """An account's state, None before it is first written; `damage` says why it cannot be read. `log_end` is
    the last record of its shard's log when this was its state."""

    account: str
    state: AccountState | None
    damage: str | None = None
    log_end: str = START


class Overdue(NamedTuple):
    """How many polls of a provider are scheduled, and when the first of them is or was due (Unix ms)."""

    accounts: int
    first_due_ms: int | None


@dataclass(slots=True)
class Backlog:
    """What waits for one subscription. `oldest_sequence` is about the Unix ms of its oldest delivery."""

    queues: int = 0
    deliveries: int = 0
    retrying: int = 0
    dead: int = 0
    oldest_sequence: int | None = None


class Queue(NamedTuple):
    """One queue: when it is due, or when its lease ends; `tries` and `tried`: how often which head failed."""

    account: str
    due_ms: int
    tries: int
    tried: bytes


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery that was given up. `delivery` is None if it cannot be read, or if its body is gone as well:
    then `event_id` and `sequence` are what is left of it, or None."""

    id: str
    subscription: str
    account: str
    reason: str
    delivery: Delivery | None
    event_id: str | None
    sequence: int | None

    @property
    def at_ms(self) -> int:
        """When it was given up (server ms)."""
        return place(self.id)[0]


class Tried(NamedTuple):
    """An attempt as it was recorded; `said` is {} if it cannot be read."""

    id: str
    account: str
    said: dict[str, Any]


T = TypeVar("T", DeadLetter, Tried)


class Reader:
    """Reads one namespace. Methods raise StoreError when Redis cannot be used now."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys
        self._names = Names(pipe, keys)

    async def now_ms(self) -> int:
        """Ask the server for its time."""
        return int(await self._pipe.ask_clock())

    async def read_states(self, provider_by_account: Mapping[str, str]) -> AsyncIterator[Seen]:
        """Read the states of accounts, in the order given."""
        for part in in_parts([*provider_by_account], _AT_ONCE * SHARDS):
            names_by_shard: dict[int, list[str]] = {}
            for name in part:
                names_by_shard.setdefault(shard_of(name), []).append(name)
            seen_by_account: dict[str, Seen] = {}
            for some in in_parts([*names_by_shard.items()], _SHARDS_AT_ONCE):
                asked = (self._states(*of_shard, provider_by_account) for of_shard in some)
                for states in await asyncio.gather(*asked):
                    seen_by_account.update({seen.account: seen for seen in states})
            for name in part:
                yield seen_by_account[name]

    async def scheduled(self) -> dict[str, str]:
        """Return the accounts that are polled, each with its provider, whether or not configured in this
        process."""
        (said,) = await self._pipe.command("HMGET", self._keys.meta(), "providers")
        found: dict[str, str] = {}
        for provider in provider_names(said):
            for shard in range(SHARDS):
                for name in await self._pipe.command("ZRANGE", self._keys.polls(shard, provider), 0, -1):
                    found[name.decode("utf-8", "replace")] = provider
        return found

    async def watched_since_ms(self) -> int:
        """Read since when workers check without a break which accounts are stale; 0 if none ever did."""
        try:
            return read_watch(await self._pipe.command("GET", self._keys.watch()))
        except DamagedKey:
            return 0

    async def failing(self, provider: str) -> dict[str, Failing]:
        """Read which accounts of a provider fail."""
        found: dict[str, Failing] = {}
        shards = range(SHARDS)
        asked = (self._pipe.command("HGETALL", self._keys.failing(shard, provider)) for shard in shards)
        for pairs in await asyncio.gather(*asked):
            for name, said in zip(pairs[::2], pairs[1::2], strict=True):
                found[name.decode("utf-8", "replace")] = read_failing(said)
            await asyncio.sleep(0)  # there may be thousands
        return found

    async def failure(self, provider: str, account: str) -> Failing | None:
        """Read whether an account fails, and how; None if its last poll succeeded."""
        said = await self._pipe.command("HGET", self._keys.failing(shard_of(account), provider), account)
        return None if said is None else read_failing(said)

    async def count_failing(self, provider: str) -> int:
        """Count the accounts of a provider that fail."""
        asked = (self._pipe.command("HLEN", self._keys.failing(shard, provider)) for shard in range(SHARDS))
        return sum(await asyncio.gather(*asked))

    async def overdue(self, provider: str) -> Overdue:
        """Read the schedule of a provider. A first poll that is long overdue means that no worker polls."""
        keys = [self._keys.polls(shard, provider) for shard in range(SHARDS)]
        counts, firsts = await asyncio.gather(
            asyncio.gather(*(self._pipe.command("ZCARD", key) for key in keys)),
            asyncio.gather(*(self._pipe.command("ZRANGE", key, 0, 0, "WITHSCORES") for key in keys)),
        )
        return Overdue(
            sum(counts), min((read_score(score) for _, score in filter(None, firsts)), default=None)
        )

    async def backlogs(self, configured: Collection[str]) -> dict[str, Backlog]:
        """Count what waits for each subscription, configured or not."""
        return await self.waiting(dict.fromkeys([*configured, *await self.owed_subscriptions()]))

    async def waiting(self, subscriptions: Collection[str]) -> dict[str, Backlog]:
        """Count what waits for each subscription, cheaply enough for every worker every few seconds. Of a
        long backlog, only those queues are measured that may hold the oldest delivery."""
        waiting = {name: Backlog() for name in subscriptions}
        queues_by_shard: dict[str, dict[int, int]] = {}
        async for shard, name, queues, retrying, dead, deliveries in self._counts([*waiting]):
            waiting[name].queues += queues
            waiting[name].retrying += retrying
            waiting[name].dead += dead
            waiting[name].deliveries += deliveries
            if queues:
                queues_by_shard.setdefault(name, {})[shard] = queues
        shards = max(1, _SHARDS_MEASURED // max(1, len(queues_by_shard)))
        names_by_shard: dict[int, list[str]] = {}
        for name, queues_of in queues_by_shard.items():
            for shard in sorted(queues_of, key=queues_of.__getitem__, reverse=True)[:shards]:
                names_by_shard.setdefault(shard, []).append(name)
        async for name, sequence in self._oldest(names_by_shard):
            waiting[name].oldest_sequence = min(waiting[name].oldest_sequence or sequence, sequence)
        return waiting

    async def count_due(self, providers: Iterable[str], *, now_ms: int) -> int:
        """Count the accounts and queues that are due and that no worker has claimed yet."""
        names_by_shard = await asyncio.gather(
            *(
                self._pipe.command("ZRANGEBYSCORE", self._keys.due_subscriptions(shard), "-inf", now_ms)
                for shard in range(SHARDS)
            )
        )
        schedules = [self._keys.polls(shard, name) for name in providers for shard in range(SHARDS)]
        for shard, names in enumerate(names_by_shard):
            schedules += [self._keys.queues(shard, name.decode("utf-8", "replace")) for name in names]
        counts = await asyncio.gather(
            *(self._pipe.command("ZCOUNT", key, "-inf", now_ms) for key in schedules)
        )
        return sum(counts)

    async def queues(self, subscription: str) -> list[Queue]:
        """List the queues of a subscription where something waits, by when they are due."""
        parts = await asyncio.gather(*(self.queues_of_shard(subscription, each) for each in range(SHARDS)))
        found = (queue for part in parts for queue in part)
        return sorted(found, key=lambda queue: (queue.due_ms, queue.account))

    async def queues_of_shard(self, subscription: str, shard: int) -> list[Queue]:
        """List those of one shard, in any order."""
        pairs, tries = await asyncio.gather(
            self._pipe.command("ZRANGE", self._keys.queues(shard, subscription), 0, -1, "WITHSCORES"),
            self._pipe.command("HGETALL", self._keys.tries(shard, subscription)),
        )
        tried_by_account = dict(zip(tries[::2], tries[1::2], strict=True))
        return [
            Queue(
                account.decode("utf-8", "replace"),
                read_score(score),
                *read_tries(tried_by_account.get(account, b"")),
            )
            for account, score in zip(pairs[::2], pairs[1::2], strict=True)
        ]

    async def place_behind(self, subscription: str, account: str, event_id: str, place: int) -> int:
        """Find where a queue goes on behind a delivery that was the `place`-th in it, counted from 1. What
        was in front of it may be gone, or it itself, and then everything in front of it is gone as well.
        Without an id, it is that place."""
        keys = [self._keys.queue(subscription, account)]
        length, _ = await self._pipe.script(_MEASURE_QUEUES, keys)
        end: int = min(place, length)
        if not event_id:
            return end
        keys.append(self._keys.bodies(shard_of(account)))
        while end > 0:
            start = max(0, end - _DELIVERIES_PAGE)
            found = await self._pipe.script(_READ_QUEUE, keys, start, end - 1)
            ids = [entry.partition(b" ")[0].decode("utf-8", "replace") for entry in found[::2]]
            if event_id in ids:
                return end - ids[::-1].index(event_id)
            end = start
        return 0

    async def deliveries(
        self, subscription: str, account: str, start: int = 0
    ) -> AsyncIterator[Delivery | None]:
        """Read a queue, oldest first, from a place on (counted from 0); None for what cannot be read. Workers
        may go on delivering from it."""
        keys = [self._keys.queue(subscription, account), self._keys.bodies(shard_of(account))]
        while True:
            found = await self._pipe.script(_READ_QUEUE, keys, start, start + _DELIVERIES_PAGE - 1)
            page = read_deliveries(found[::2], found[1::2], subscription)
            for _, delivery in page:
                yield delivery
            if len(page) < _DELIVERIES_PAGE:
                return
            start += _DELIVERIES_PAGE

    async def owed_subscriptions(self) -> list[str]:
        """Return the subscriptions with a backlog, configured or not."""
        found: set[bytes] = set()
        keys = map(self._keys.due_subscriptions, range(SHARDS))
        for names in await asyncio.gather(*(self._pipe.command("ZRANGE", key, 0, -1) for key in keys)):
            found.update(names)
        return sorted(name.decode("utf-8", "replace") for name in found)

    async def dead_letters_of_shard(
        self, subscription: str, shard: int, *, since_ms: int, until_ms: int
    ) -> AsyncIterator[list[DeadLetter]]:
        """Read one shard's dead letters of a time, oldest first, page by page; some may be removed
        meanwhile."""
        start = f"{since_ms}-0"
        while True:
            page = await self._dead_letters(subscription, shard, "XRANGE", start, until_ms)
            yield page
            if len(page) < _DEAD_LETTERS_PAGE:
                return
            start = f"({page[-1].id}"

    async def dead_letters_behind(self, subscription: str, shard: int, letter_id: str) -> list[DeadLetter]:
        """Read a page of one shard's dead letters, oldest first, behind one of them ("": from the first).
        Those whose bodies were removed are left out."""
        start = f"({letter_id}" if letter_id else "-"
        return await self._dead_letters(subscription, shard, "XRANGE", start, "+")

    async def dead_letters(
        self, subscription: str, limit: int, takes: Callable[[DeadLetter], bool]
    ) -> list[DeadLetter]:
        """Read the latest dead letters that are wanted, oldest first, including those whose bodies were
        removed."""
        letters = [partial(self._dead_letters, subscription, shard, "XREVRANGE") for shard in range(SHARDS)]
        given_up = [partial(self._given_up, shard) for shard in range(SHARDS)]
        reading = (
            self._back(read, lambda letter: letter.subscription == subscription and takes(letter), limit)
            for read in (*letters, *given_up)
        )
        return _merged(await asyncio.gather(*reading), limit)

    async def attempts(self, subscription: str, limit: int, takes: Callable[[Tried], bool]) -> list[Tried]:
        """Read the latest attempts that are wanted, oldest first."""
        reading = (
            self._back(partial(self._attempts, subscription, shard), takes, limit) for shard in range(SHARDS)
        )
        return _merged(await asyncio.gather(*reading), limit)

    async def last_failure(self, subscription: str) -> str | None:
        """Read how the latest attempt failed: `status 422`, or an error. None if no failure is known."""
        reading = (self.attempts_since(subscription, shard, 0, at_most=5) for shard in range(SHARDS))
        failed = [
            [one for one in part if one.said.get("outcome") != "delivered"]
            for part in await asyncio.gather(*reading)
        ]
        for one in _merged(failed, 1):
            return str(one.said.get("error") or f"status {one.said.get('status')}")
        return None

    async def attempts_since(
        self, subscription: str, shard: int, since_ms: int, *, at_most: int
    ) -> list[Tried]:
        """Read the latest attempts of one shard, oldest first."""
        key = self._keys.attempts(shard, subscription)
        page = await self._pipe.command("XREVRANGE", key, "+", f"{since_ms}-0", "COUNT", at_most)
        return [_tried(entry_id.decode(), _by_name(fields)) for entry_id, fields in reversed(page)]

    async def _states(
        self, shard: int, names: list[str], provider_by_account: Mapping[str, str]
    ) -> list[Seen]:
        found: list[Seen] = []
        for part in in_parts(names, _AT_ONCE):
            keys = [self._keys.log(shard), *map(self._keys.state, part)]
            end, *values = await self._pipe.script(_READ_STATES, keys)
            for name, text in zip(part, values, strict=True):
                state, damage = None, None
                try:
                    state = await self._names.load(provider_by_account[name], text) if text else None
                except BadState as error:
                    damage = str(error)
                found.append(Seen(name, state, damage, end.decode()))
        return found

    async def _counts(self, names: Sequence[str]) -> AsyncIterator[tuple[int, str, int, int, int, int]]:
        """Count what waits in each shard: shard, subscription, queues, queues that retry, dead letters,
        deliveries."""
        kinds = (self._keys.queues, self._keys.tries, self._keys.dead)
        shards = range(SHARDS)
        names_by_shard = dict.fromkeys(shards, names)
        if len(names) > _AT_ONCE:
            wanted = {*names}
            for some in in_parts(shards, _SHARDS_AT_ONCE):
                for shard, noted in zip(some, await asyncio.gather(*map(self._noted, some)), strict=True):
                    names_by_shard[shard] = sorted(wanted & noted)
        all_parts = [(shard, part) for shard in shards for part in in_parts(names_by_shard[shard], _AT_ONCE)]
        for parts in in_parts(all_parts, SHARDS):  # not all of 10,000 names at once: that takes half a second
            asked = (
                self._pipe.script(
                    _COUNT_QUEUES,
                    [self._keys.backlogs(shard), *(kind(shard, name) for name in part for kind in kinds)],
                    *part,
                )
                for shard, part in parts
            )
            for (shard, part), counts in zip(parts, await asyncio.gather(*asked), strict=True):
                for i, name in enumerate(part):
                    queues, retrying, dead, deliveries = counts[4 * i : 4 * i + 4]
                    yield shard, name, queues, retrying, dead, deliveries

    async def _noted(self, shard: int) -> set[str]:
        """Return the subscriptions with a backlog or dead letters in a shard; perhaps some more."""
        queued, waiting, sizes = await asyncio.gather(
            self._pipe.command("ZRANGE", self._keys.due_subscriptions(shard), 0, -1),
            self._pipe.command("HGETALL", self._keys.backlogs(shard)),
            self._pipe.command("HGETALL", self._keys.sizes(shard)),
        )
        dead_of = DEAD_OF.encode()
        dead = (part.removeprefix(dead_of) for part in sizes[::2] if part.startswith(dead_of))
        return {name.decode("utf-8", "replace") for name in (*queued, *waiting[::2], *dead)}

    async def _oldest(self, names_by_shard: Mapping[int, Sequence[str]]) -> AsyncIterator[tuple[str, int]]:
        """Find sequences of subscriptions in these shards, their oldest among them. Looks at both ends of
        each schedule: full queues were due first, failing ones are due last."""
        places = sum(map(len, names_by_shard.values()))
        half = -(-_QUEUES_MEASURED // max(1, places) // 2) or 1
        of_part = max(1, _AT_ONCE // (2 * half))
        all_parts = [
            (shard, part) for shard, names in names_by_shard.items() for part in in_parts(names, of_part)
        ]
        for parts in in_parts(all_parts, SHARDS):  # as in `_counts`
            ends = await asyncio.gather(
                *(
                    self._pipe.script(_LIST_ENDS, [self._keys.queues(shard, name) for name in part], half)
                    for shard, part in parts
                )
            )
            queues = [
                [
                    (name, account.decode("utf-8", "replace"))
                    for name, accounts in zip(part, found, strict=True)
                    for account in dict.fromkeys(accounts)
                ]
                for (_, part), found in zip(parts, ends, strict=True)
                if any(found)  # else all of it was delivered meanwhile
            ]
            measured = await asyncio.gather(
                *(
                    self._pipe.script(_MEASURE_QUEUES, [self._keys.queue(*one) for one in some])
                    for some in queues
                )
            )
            for some, found in zip(queues, measured, strict=True):
                for (name, _), head in zip(some, found[1::2], strict=True):
                    if sequence := sequence_in(head):
                        yield name, sequence

    async def _dead_letters(
        self, subscription: str, shard: int, command: str, start: object, end: object = "-"
    ) -> list[DeadLetter]:
        """Read a page of dead letters, `_DEAD_LETTERS_PAGE` of them unless there are fewer."""
        keys = [self._keys.dead(shard, subscription), self._keys.bodies(shard)]
        flat = await self._pipe.script(_READ_RECORDS, keys, command, start, end, _DEAD_LETTERS_PAGE)
        return [
            _dead_letter(shard, subscription, entry_id.decode(), _by_name(fields), stored)
            for entry_id, fields, stored in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        ]

    async def _given_up(self, shard: int, start: str) -> list[DeadLetter]:
        key = self._keys.given_up(shard)
        page = await self._pipe.command("XREVRANGE", key, start, "-", "COUNT", _DEAD_LETTERS_PAGE)
        return [
            _dead_letter(shard, "", entry_id.decode(), _by_name(fields), b"") for entry_id, fields in page
        ]

    async def _attempts(self, subscription: str, shard: int, start: str) -> list[Tried]:
        key = self._keys.attempts(shard, subscription)
        page = await self._pipe.command("XREVRANGE", key, start, "-", "COUNT", _DEAD_LETTERS_PAGE)
        return [_tried(entry_id.decode(), _by_name(fields)) for entry_id, fields in page]

    async def _back(
        self, read: Callable[[str], Awaitable[list[T]]], takes: Callable[[T], bool], limit: int
    ) -> list[T]:
        """Read a stream backwards from its end, until enough of what is wanted is found."""
        found: list[T] = []
        start = "+"
        while True:
            page = await read(start)
            found.extend(entry for entry in page if takes(entry))
            if len(page) < _DEAD_LETTERS_PAGE or len(found) >= limit:
                return found
            start = f"({page[-1].id}"


def sequence_in(entry: bytes) -> int | None:
    """Read the sequence of what waits, `id sequence previous`; None for anything else."""
    try:
        _, sequence, _ = entry.split(b" ")
        return read_count(sequence)
    except ValueError:
        return None


def _merged(parts: Sequence[list[T]], limit: int) -> list[T]:
    """Put what the shards hold in the order of time, and keep the latest of it."""
    return sorted((entry for part in parts for entry in part), key=lambda entry: place(entry.id))[-limit:]


def _by_name(fields: list[bytes]) -> _Fields:
    return dict(zip(fields[::2], fields[1::2], strict=True))


def _dead_letter(shard: int, subscription: str, entry_id: str, fields: _Fields, stored: bytes) -> DeadLetter:
    names = (b"account", b"reason", b"subscription")
    account, reason, given_up = (fields.get(name, b"").decode("utf-8", "replace") for name in names)
    entry = fields.get(b"delivery", b"")
    ((_, delivery),) = read_deliveries([entry], [stored], subscription)
    event_id, sequence = entry.partition(b" ")[0].decode("ascii", "replace"), sequence_in(entry)
    is_at_home = shard_of(account) == shard  # otherwise it could not go back to its queue in one step
    return DeadLetter(
        entry_id,
        subscription or given_up,
        account,
        reason if subscription else f"{reason}; its body is gone, for want of memory",
        delivery if is_at_home else None,
        event_id if sequence is not None else None,
        sequence,
    )


def _tried(entry_id: str, fields: _Fields) -> Tried:
    try:
        said = dict(json.loads(fields.get(b"attempt", b"")))
    except (ValueError, TypeError, RecursionError):
        said = {}
    return Tried(entry_id, str(said.get("account", "")), said)
