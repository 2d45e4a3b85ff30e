"""Moves the data in Redis from layout 1 to layout 2 and back, in place and in small steps, while no worker
works.

Each shard is moved by itself. First its schedules are set aside, so that a worker of the old layout loses the
leases that it still has. Then states, log, dead letters and queues are read, converted here and written back.
Each step is one script: it writes what is new, removes what was old, and names itself as the step that the
next one follows. So a mover may end anywhere and another one goes on, a repeated step is taken once, and a
mover that was held up for an hour changes nothing. What cannot be read is carried over as it is.
"""

import asyncio
import re
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from watcher.journal.account import AccountState
from watcher.journal.events import Delivery, load_delivery
from watcher.store.consistency import DEAD_LETTER_BYTES, RECORD_BYTES
from watcher.store.errors import DamagedKey
from watcher.store.exceptions import StoreRefuses
from watcher.store.guarantee import check_rights
from watcher.store.history import START, place
from watcher.store.keys import DEAD_OF, SHARDS, Keys, OldKeys, read_count, shard_of
from watcher.store.layout import LAYOUT, LEASE_MS, Layout, Numbers, in_the_way, read_meta
from watcher.store.members import Workers, provider_names
from watcher.store.pipe import Pipe, in_parts, load_script
from watcher.store.queues import Breaker, dump_breaker, load_breaker
from watcher.store.state import BadState, Names, dump_body, dump_state, load_hash

_OLD_BREAKER = re.compile(
    rb"([0-9]{1,14}) ([0-9]{1,14}) ([0-9]{1,14}) ([0-9]{1,14})(?:!([0-9]{1,14}))? (.*)", re.DOTALL
)
_OLD_HALF_OPEN_FROM = 3
"""From so many failures in a row on, version 0.1 sends to a subscription one at a time."""

_TAKE_SHARD = load_script("take_shard")
_MOVE = load_script("move")

ENTRIES = 100
"""Entries that one step moves at most: one to two milliseconds of the server's time."""

BYTES = 256 * 1024
"""Bytes that one step moves at most."""

_STATES = 20
"""States in one step: to read and write one with ten assets takes a seventh of a millisecond."""

_QUEUES = 20
"""Queues read at the same time, each with so many of its oldest deliveries."""

_QUEUE_PAGE = 50

_AT_ONCE = 1000
"""Names in one turn of the event loop."""

_MOST_PARTS = 4000
"""Arguments of one command: Lua passes on no more than 8,000."""

SETTLE_S = 2.0
"""After a move up was announced: by then, a worker of 0.1 that had just started has noted that it runs."""

_UNREADABLE = b"?"
"""In front of what layout 2 carries unread, so that it is never taken for a reference."""

_REFERENCE = re.compile(rb"(?:[0-9]+ )?(evt_\S+ [0-9]+)(?: |\Z)")
"""In a record of layout 2, or in what waits or is dead there."""

_EVENT_ID = re.compile(r"evt_[!-~]+")
_TYPE = re.compile(r"[!-~]+")

_FOUND = "name "
"""In front of a field of `Keys.layout` that notes a subscription."""

_STATE = ("version", "sequence", "polled_at", "body")


class Overtaken(Exception):
    """Another mover goes on, or the data are to go elsewhere now. This mover has changed nothing since."""


class Counts(NamedTuple):
    """What was moved: states, records of the log, dead letters, deliveries in queues."""

    accounts: int = 0
    records: int = 0
    dead_letters: int = 0
    deliveries: int = 0


class Progress(NamedTuple):
    """How far a shard's last move came."""

    shard: int
    turn: int
    is_done: bool
    counts: Counts


async def read_progress(pipe: Pipe, keys: Keys) -> list[Progress]:
    """Read how far each shard's last move came. Raises StoreError."""
    found = []
    for shard in range(SHARDS):
        turn, done, *counts = await pipe.command("HMGET", keys.layout(shard), "turn", "done", *Counts._fields)
        read = Counts(*(int(count or 0) for count in counts))
        found.append(Progress(shard, int(turn or 0), turn is not None and turn == done, read))
    return found


# What one entry becomes. Plain functions: bytes in, bytes out; None for what cannot be read.


def read_old(entry: bytes, subscription: str) -> Delivery | None:
    """Read a queue's entry of layout 1, `id sequence type` and, on the next line, the body."""
    head, newline, body = entry.partition(b"\n")
    content, mark, tail = body.rpartition(b',"subscription":')
    try:
        event_id, sequence, type_ = head.decode("ascii").split(" ")
        previous = orjson.loads(tail[:-1])["previous_sequence"] if newline and mark else None
        delivery = Delivery(event_id, type_, int(sequence), content, subscription, previous)
        is_whole = type(previous) in (int, type(None)) and dump_old(delivery) == entry
    except (ValueError, TypeError, KeyError):
        return None
    is_ours = is_whole and content and type_ and delivery.sequence >= 0 and event_id.startswith("evt_")
    return delivery if is_ours and f"{event_id}{type_}".isprintable() else None


def dump_old(delivery: Delivery) -> bytes:
    return _head(delivery) + delivery.body


def _head(delivery: Delivery) -> bytes:
    """The first line of an entry in layout 1, which identifies it there."""
    return f"{delivery.reference} {delivery.type}\n".encode()


def event_of(content: bytes) -> tuple[bytes, bytes] | None:
    """Read the JSON of an event in a record of layout 1. Returns its reference and its stored body; None for
    what is no event, such as a baseline."""
    try:
        said = orjson.loads(content)
        event_id, type_, sequence = said["id"], said["type"], said["data"]["sequence"]
        is_ours = type(sequence) is int and sequence >= 0 and content.endswith(b"}")
        if not is_ours or not _EVENT_ID.fullmatch(event_id) or not _TYPE.fullmatch(type_):
            return None
    except (ValueError, TypeError, KeyError):
        return None
    return f"{event_id} {sequence}".encode(), b"%b\n%b" % (type_.encode(), content[:-1])


def breaker_up(text: bytes) -> bytes:
    """Convert a breaker of layout 1; b"" for one that cannot be read."""
    if not (found := _OLD_BREAKER.fullmatch(text)):
        return b""
    failures, since_ms, open_until_ms, paused_at_ms, report_from_ms = (
        int(digits or 0) for digits in found.groups()[:5]
    )
    breaker = Breaker(paused_at_ms, report_from_ms, found[6].decode("utf-8", "replace"))
    if failures >= _OLD_HALF_OPEN_FROM or open_until_ms or paused_at_ms:
        breaker = breaker._replace(since_ms=since_ms, open_until_ms=open_until_ms, rests=1)
    return dump_breaker(breaker)


def breaker_down(text: bytes) -> bytes:
    """Convert a breaker of layout 2; b"" for one that is closed, or cannot be read."""
    breaker = load_breaker(text)
    if breaker is None or not (breaker.since_ms or breaker.paused_at_ms):
        return b""
    report = f"!{breaker.report_from_ms}" if breaker.report_from_ms else ""
    times = f"{breaker.since_ms} {breaker.open_until_ms} {breaker.paused_at_ms}{report}"
    return f"{_OLD_HALF_OPEN_FROM} {times} {breaker.reason}".encode()


class Mover:
    """One process that moves the data. `who` names it, differently from all others; `accounts` are the
    configured ones by provider: their states are moved even if their schedule was lost. Methods raise
    StoreError."""

    def __init__(
        self,
        pipe: Pipe,
        keys: Keys,
        who: str,
        *,
        accounts: Mapping[str, Sequence[str]] = MappingProxyType({}),
        subscriptions: Collection[str] = (),
    ) -> None:
        self._pipe = pipe
        self._keys = keys
        self._user_and_host = who
        self._accounts = accounts
        self._layout = Layout(pipe, keys)
        self._subscriptions = {*subscriptions}
        self._keep_at = 0.0

    async def advance(self) -> Counts | None:
        """Move the data to the wanted layout, if they are not there, no worker is in the way, and no other
        process does so. Returns what was moved in all, by this mover and those before it; None: not done."""
        if not await self._layout.take_lease(self._user_and_host):
            return None
        try:
            numbers = await self._begun()
            if numbers is None:
                return None
            await self._move(numbers)
            shards = await read_progress(self._pipe, self._keys)
            # A node of a Cluster may have been set back meanwhile.
            is_whole = all(one.is_done and one.turn == numbers.turn for one in shards)
            if not is_whole or not await self._layout.end(numbers):
                return None
            return Counts(*map(sum, zip(*(one.counts for one in shards), strict=True)))
        except Overtaken:
            return None
        except DamagedKey as error:
            raise StoreRefuses(f"Redis cannot be moved: {error}") from error
        finally:
            await self._layout.leave_lease(self._user_and_host)

    async def _begun(self) -> Numbers | None:
        """Begin what is to be done, or go on with it; None if there is nothing to do, or not yet."""
        numbers = await self._layout.read()
        if numbers.rests:
            if numbers.at == numbers.wanted or await self._is_blocked(numbers.wanted):
                return None
            await check_rights(self._pipe, self._keys)
            await self._layout.begin(numbers, int(await self._pipe.ask_clock()))
            numbers = await self._layout.read()
        if numbers.is_announced:
            await asyncio.sleep(SETTLE_S)
            if await self._is_blocked(numbers.to):
                await self._layout.take_back(numbers)
                return None
            await self._layout.begin_now(numbers)
            numbers = await self._layout.read()
        return None if numbers.rests or numbers.is_announced else numbers

    async def _is_blocked(self, to: int) -> bool:
        workers = await Workers(self._pipe, self._keys).read()
        return bool(in_the_way(workers, to, int(await self._pipe.ask_clock())))

    async def _move(self, numbers: Numbers) -> None:
        old, is_up = OldKeys(self._keys.namespace), numbers.to == LAYOUT
        source, target = (old, self._keys) if is_up else (self._keys, old)
        names = Names(self._pipe, self._keys)
        (said,) = await read_meta(self._pipe, self._keys, "providers")
        providers = sorted({*self._accounts, *provider_names(said)})
        configured: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
        for provider, accounts in self._accounts.items():
            for part in in_parts(accounts, _AT_ONCE):
                for account in part:
                    configured[shard_of(account), provider].append(account)
                await asyncio.sleep(0)  # there may be 100,000
        breakers = await self._pipe.command("HGETALL", source.breakers())
        marks: list[bytes] = []
        with suppress(DamagedKey):  # they are written again
            marks = await self._pipe.command("HGETALL", self._keys.marks())
        subscriptions = {*map(_text, chain(breakers[::2], marks[::2])), *self._subscriptions}
        # On a Cluster they lie apart from all other keys: they are copied, and no step can fence that.
        await self._keep_lease(at_once=True)
        convert = breaker_up if is_up else breaker_down
        converted = zip(breakers[::2], map(convert, breakers[1::2]), strict=True)
        kept = [part for name, text in converted if text for part in (name, text)]
        for some in in_parts(kept, 2 * ENTRIES):
            await self._pipe.command("HSET", target.breakers(), *some)
        ways = []
        for shard in range(SHARDS):
            name, key = f"{numbers.turn} {self._user_and_host} ", self._keys.layout(shard)
            taken = await self._pipe.script(_TAKE_SHARD, [key], numbers.turn, f"{name}0")
            if taken < 0:
                raise Overtaken
            if taken:
                fence = _Fence(self._pipe, self._keys, shard, name, self._keep_lease)
                way = (_Up if is_up else _Down)(self._pipe, fence, names, source, target)
                await way.set_aside(providers, subscriptions)
                ways.append(way)
        for way in ways:
            subscriptions |= await way.move(providers, subscriptions, configured, turn=numbers.turn)
        await self._keep_lease(at_once=True)
        await self._pipe.command("UNLINK", source.breakers())

    async def _keep_lease(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now >= self._keep_at:
            if not await self._layout.take_lease(self._user_and_host):
                raise Overtaken
            self._keep_at = now + LEASE_MS / 4000


class _Step:
    """What one script call writes, and about how much that is: entries and bytes."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = {key: number for number, key in enumerate(keys, 1)}
        self.arguments: list[Any] = []
        self.entries = 0
        self.grown: Counter[tuple[str, str]] = Counter()
        self._size = 0

    @property
    def is_full(self) -> bool:
        return self.entries >= ENTRIES or self._size >= BYTES

    def write(self, key: str, command: str, *arguments: Any) -> None:
        self.arguments += (self._number(key), command, len(arguments), *arguments)
        self._size += sum(len(part) if isinstance(part, bytes | str) else 8 for part in arguments)

    def rename(self, key: str, new: str) -> None:
        self.write(key, "RENAME", self._number(new))

    def _number(self, key: str) -> int:
        return self.keys.setdefault(key, len(self.keys) + 1)


class _Fence:
    """A shard in the hand of one mover: each step names itself, and the one before it."""

    def __init__(
        self, pipe: Pipe, keys: Keys, shard: int, name: str, stepped: Callable[[], Awaitable[None]]
    ) -> None:
        self.shard = shard
        self._pipe = pipe
        self._name = name
        self._stepped = stepped
        self._taken = 0
        self._keys = (keys.layout(shard), keys.nothing(shard), keys.bodies(shard))

    def step(self) -> _Step:
        return _Step(self._keys)

    async def take(self, step: _Step) -> None:
        """Take a step, if it writes anything. Raises Overtaken, and StoreRefuses for a damaged key."""
        for (key, name), by in step.grown.items():
            step.write(key, "GROW", name, by)
        if not step.arguments:
            return
        names = (f"{self._name}{self._taken}", f"{self._name}{self._taken + 1}")
        reply = await self._pipe.script(_MOVE, [*step.keys], *names, *step.arguments)
        if reply == -1:
            raise Overtaken
        if reply < 0:
            key = [*step.keys][-2 - reply]
            raise StoreRefuses(f"{key} is not of watcher's type: delete it, and the move goes on")
        self._taken += 1
        await self._stepped()

    async def take_one(self, key: str, command: str, *arguments: Any) -> None:
        """Take a step that writes one thing."""
        step = self.step()
        step.write(key, command, *arguments)
        await self.take(step)

    async def rename(self, key: str, new: str) -> None:
        """Take a step that renames a key."""
        step = self.step()
        step.rename(key, new)
        await self.take(step)


_Fields = Mapping[bytes, bytes]


class _Way:
    """The move of one shard from one layout to the other: `_Up` and `_Down` say what each thing becomes."""

    def __init__(self, pipe: Pipe, fence: _Fence, names: Names, source: Keys, target: Keys) -> None:
        self._pipe = pipe
        self._fence = fence
        self._names = names
        self._source = source
        self._target = target
        self._shard = fence.shard
        self._keys = Keys(source.namespace)
        self._old = OldKeys(source.namespace)
        self._found: set[str] = set()
        self._due: set[str] = set()
        self._stored: dict[bytes, bytes] = {}

    async def set_aside(self, providers: Iterable[str], subscriptions: Collection[str]) -> None:
        """Take the schedules from all workers that have leases in them. Raises Overtaken."""
        for name in providers:
            await self._set_aside(*self._of_polls(name))
        for name in await self._with_something(await self._known(subscriptions)):
            await self._set_aside(*self._of_queues(name))

    async def move(
        self,
        providers: Iterable[str],
        subscriptions: Collection[str],
        configured: Mapping[tuple[int, str], Sequence[str]],
        *,
        turn: int,
    ) -> set[str]:
        """Move the shard; returns the subscriptions that its states know. Raises Overtaken."""
        shard, source, target = self._shard, self._source, self._target
        accounts: dict[str, None] = {}
        for name in providers:
            scheduled = await self._members(self._of_polls(name)[1])
            members = [*dict.fromkeys((*scheduled, *configured.get((shard, name), ())))]
            accounts.update(dict.fromkeys(members))
            for some in in_parts(members, _STATES):
                await self._states(name, some)
        known = await self._known(subscriptions)
        names = await self._with_something(known)
        await self._stream(source.log(shard), target.log(shard), "records", self._record)
        for name in names:
            schedule = self._of_queues(name)
            is_damaged = await self._set_aside(*schedule)
            letters = source.dead(shard, name), target.dead(shard, name)
            await self._stream(*letters, "dead_letters", partial(self._letter, name))
            for some in in_parts([*accounts] if is_damaged else await self._members(schedule[1]), _QUEUES):
                await self._queues(name, some)
        for name in providers:
            await self._put_back(*self._of_polls(name)[1:], target.due_polls(shard), name)
        for name in names:
            await self._put_back(*self._of_queues(name)[1:], target.due_subscriptions(shard), name)
        await self._finish(names, known, turn)
        return self._found

    def _of_polls(self, provider: str) -> tuple[str, str, str]:
        """The names of the schedule before, while and after it is moved."""
        aside = self._old.moving_polls(self._shard, provider)
        return self._source.polls(self._shard, provider), aside, self._target.polls(self._shard, provider)

    def _of_queues(self, name: str) -> tuple[str, str, str]:
        aside = self._old.moving_queues(self._shard, name)
        return self._source.queues(self._shard, name), aside, self._target.queues(self._shard, name)

    async def _with_something(self, names: Collection[str]) -> list[str]:
        """Keep the subscriptions that have anything here: most of thousands have nothing."""
        found = []
        for part in in_parts(sorted(names), ENTRIES):
            asked: list[tuple[Any, ...]] = []
            for name in part:
                asked += (("ZCARD", key) for key in self._of_queues(name))
                asked += (("XLEN", keys.dead(self._shard, name)) for keys in (self._source, self._target))
                asked.append(("XLEN", self._keys.attempts(self._shard, name)))
            answers = await self._ask(*asked)
            each = len(asked) // len(part)
            found += [name for i, name in enumerate(part) if any(answers[each * i : each * (i + 1)])]
        return found

    async def _finish(self, names: Iterable[str], known: Iterable[str], turn: int) -> None:
        """Remove what is left under old names, and note that the shard is moved."""
        shard, source = self._shard, self._source
        step = self._fence.step()
        for name in known:
            step.write(source.tries(shard, name), "UNLINK")
            step.write(source.dead(shard, name), "UNLINK")  # emptied, it would accept no older id
            step.entries += 1
            step = await self._flushed(step)
        step.write(source.log(shard), "UNLINK")
        step.write(source.due_subscriptions(shard), "UNLINK")
        await self._measure(step, names)
        step.write(self._keys.layout(shard), "HSET", "done", turn)
        for part in in_parts([f"{_FOUND}{name}" for name in self._found], _MOST_PARTS):
            step.write(self._keys.layout(shard), "HDEL", *part)
        await self._fence.take(step)

    async def _known(self, subscriptions: Collection[str]) -> set[str]:
        """Return the subscriptions that may have something here. One that was taken out of the configuration
        is known from the states of the accounts that it got events of."""
        fields = await self._pipe.command("HGETALL", self._keys.layout(self._shard))
        noted = (_text(field) for field in fields[::2])
        self._found |= {name.removeprefix(_FOUND) for name in noted if name.startswith(_FOUND)}
        with suppress(DamagedKey):  # an index, which is written again
            due = await self._pipe.command("ZRANGE", self._source.due_subscriptions(self._shard), 0, -1)
            self._due |= {*map(_text, due)}  # a worker that was held up takes them off
        return {*subscriptions, *self._found, *self._due}

    def _carry(self, step: _Step, account: str) -> None:
        """Carry over a state that cannot be read."""
        step.rename(self._source.state(account), self._target.state(account))
        self._count(step, "accounts")

    def _count(self, step: _Step, what: str) -> None:
        step.grown[self._keys.layout(self._shard), what] += 1
        step.entries += 1

    async def _flushed(self, step: _Step) -> _Step:
        """Take a step if it is full. Returns the one to go on with."""
        if not step.is_full:
            return step
        await self._fence.take(step)
        return self._fence.step()

    def _note_found(self, step: _Step, names: Iterable[str]) -> None:
        new = {*names} - self._found
        self._found |= new
        for name in new:
            step.write(self._keys.layout(self._shard), "HSET", f"{_FOUND}{name}", 1)

    async def _set_aside(self, source: str, aside: str, target: str) -> bool:
        """Take a schedule from the workers that have leases in it. Returns whether it is damaged. What a
        worker that was held up writes there later is added to the rest."""
        try:
            is_there = await self._pipe.command("ZCARD", source)
        except DamagedKey:
            await self._fence.rename(source, target)
            return True
        if not is_there:
            try:
                await self._pipe.command("ZCARD", target)
            except DamagedKey:  # renamed by the mover before
                return True
        if is_there and not await self._pipe.command("ZCARD", aside):
            await self._fence.rename(source, aside)
        while pairs := await self._pipe.command("ZRANGE", source, 0, ENTRIES - 1, "WITHSCORES"):
            step = self._fence.step()
            step.write(aside, "ZADD", "NX", *chain.from_iterable(zip(pairs[1::2], pairs[::2], strict=True)))
            step.write(source, "ZREM", *pairs[::2])
            await self._fence.take(step)
        return False

    async def _put_back(self, aside: str, target: str, index: str, name: str) -> None:
        """Let work be claimed again, and note when the first of it is due."""
        if await self._pipe.command("ZCARD", aside):
            await self._fence.rename(aside, target)
        with suppress(DamagedKey):
            await self._pipe.command("ZCARD", index)
            if first := await self._pipe.command("ZRANGE", target, 0, 0, "WITHSCORES"):
                await self._fence.take_one(index, "ZADD", "LT", first[1], name)

    async def _members(self, schedule: str) -> list[str]:
        """Read the accounts of a schedule. One that a person put into another shard has nothing here."""
        names = map(_text, await self._pipe.command("ZRANGE", schedule, 0, -1))
        return [name for name in names if shard_of(name) == self._shard]

    async def _ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Ask several things at the same time; DamagedKey is an answer."""
        asked = (self._pipe.command(*command) for command in commands)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, DamagedKey):
                raise answer
        return answers

    async def _stream(
        self, source: str, target: str, counted: str, convert: Callable[[_Step, _Fields], Sequence[bytes]]
    ) -> None:
        """Move a stream, oldest first, with its ids."""
        try:
            page = await self._pipe.command("XRANGE", source, "-", "+", "COUNT", ENTRIES)
        except DamagedKey:
            await self._fence.rename(source, target)
            return
        if not page:
            return
        latest = await self._pipe.command("XREVRANGE", target, "+", "-", "COUNT", 1)
        last = place(latest[0][0].decode() if latest else START)
        while page:
            step = self._fence.step()
            entries = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in page]
            await self._read_bodies(*chain.from_iterable(entry.values() for entry in entries))
            ids = []
            for (entry_id, _), entry in zip(page, entries, strict=True):
                if step.is_full:
                    break
                last = max(place(entry_id.decode()), (last[0], last[1] + 1))
                step.write(target, "XADD", f"{last[0]}-{last[1]}", *convert(step, entry))
                self._count(step, counted)
                ids.append(entry_id)
            step.write(source, "XDEL", *ids)
            await self._fence.take(step)
            page = await self._pipe.command("XRANGE", source, "-", "+", "COUNT", ENTRIES)

    async def _queues(self, subscription: str, accounts: Sequence[str]) -> None:
        """Move some queues of a subscription, each from its head on."""
        step = self._fence.step()
        lists = [self._source.queue(subscription, account) for account in accounts]
        notes, *pages = await self._ask(
            ("HMGET", self._source.tries(self._shard, subscription), *accounts),
            *(("LRANGE", queue, 0, _QUEUE_PAGE - 1) for queue in lists),
        )
        notes = [None] * len(accounts) if isinstance(notes, DamagedKey) else notes
        emptied = []
        for account, queue, note, page in zip(accounts, lists, notes, pages, strict=True):
            target = self._target.queue(subscription, account)
            if isinstance(page, DamagedKey):
                step.rename(queue, target)
                continue
            while page:
                await self._read_bodies(*page)
                new, taken = [], 0
                for entry in page:
                    if step.is_full:
                        break
                    made = self._entry(step, subscription, account, entry)
                    new += [] if made is None else [made]
                    emptied += [account] if made is None else []
                    taken += 1
                    self._count(step, "deliveries")
                if note and taken and (tried := self._tried(subscription, note, page[0])):
                    step.write(self._target.tries(self._shard, subscription), "HSET", account, tried)
                note = None
                if new:
                    step.write(target, "RPUSH", *new)
                self._note_waiting(step, subscription, taken)
                if taken:
                    step.write(queue, "LTRIM", taken, -1)
                if taken == len(page) < _QUEUE_PAGE:
                    break
                await self._fence.take(step)
                step = self._fence.step()
                page = await self._pipe.command("LRANGE", queue, 0, _QUEUE_PAGE - 1)
        await self._fence.take(step)
        for account in dict.fromkeys(emptied):
            if not await self._pipe.command("LLEN", self._target.queue(subscription, account)):
                aside = self._old.moving_queues(self._shard, subscription)
                await self._fence.take_one(aside, "ZREM", account)

    async def _states(self, provider: str, accounts: Sequence[str]) -> None:
        raise NotImplementedError

    async def _read_bodies(self, *entries: bytes) -> None:
        """Read the stored bodies of the events that these refer to."""

    def _record(self, step: _Step, entry: _Fields) -> list[bytes]:
        raise NotImplementedError

    def _letter(self, subscription: str, step: _Step, entry: _Fields) -> list[bytes]:
        raise NotImplementedError

    def _entry(self, step: _Step, subscription: str, account: str, entry: bytes) -> bytes | None:
        """Convert a delivery that waits; None if it had to become a dead letter."""
        raise NotImplementedError

    def _tried(self, subscription: str, note: bytes, head: bytes) -> bytes | None:
        """Return how often a head has failed; None if the note is about another one."""
        raise NotImplementedError

    def _note_waiting(self, step: _Step, subscription: str, moved: int) -> None:
        """Note how many deliveries wait in layout 2 now, which counts them."""
        raise NotImplementedError

    async def _measure(self, step: _Step, subscriptions: Iterable[str]) -> None:
        """Write how many bytes the parts of the shard take, if the layout notes that."""
        raise NotImplementedError


class _Up(_Way):
    """From layout 1 to layout 2."""

    async def _states(self, provider: str, accounts: Sequence[str]) -> None:
        answers = await self._ask(*(("HMGET", self._source.state(one), *_STATE) for one in accounts))
        step = self._fence.step()
        states: dict[str, tuple[AccountState, Mapping[str, int]]] = {}
        for account, values in zip(accounts, answers, strict=True):
            try:
                if isinstance(values, DamagedKey):
                    raise BadState from values  # noqa: TRY301 -- as one that cannot be read
                pairs = zip(_STATE, values, strict=True)
                if fields := {name: value for name, value in pairs if value is not None}:
                    states[account] = load_hash(fields)
            except BadState:
                self._carry(step, account)
        assets = (one.asset for state, _ in states.values() for one in state.entry_by_asset.values())
        called = await self._names.note(provider, assets)
        for account, (state, previous) in states.items():
            try:
                text = dump_state(state, called)
            except ValueError:  # a version of another kind, say
                self._carry(step, account)
                continue
            step.write(self._target.state(account), "SET", text)
            for part in in_parts([*chain.from_iterable(previous.items())], _MOST_PARTS):
                step.write(self._keys.queued(account), "HSET", *part)
            self._note_found(step, previous)
            step.write(self._source.state(account), "UNLINK")
            self._count(step, "accounts")
            step = await self._flushed(step)
        await self._fence.take(step)

    def _record(self, step: _Step, entry: _Fields) -> list[bytes]:
        account, said = entry.get(b"account", b""), entry.get(b"entry", b"")
        follows, _, content = said.partition(b" ")
        size = RECORD_BYTES + len(account)
        if event := event_of(content):
            said = b"%b %b" % (follows, event[0])
            step.write(self._keys.bodies(self._shard), "HOLD", *event)
            size += len(event[1]) + 1
        elif said.startswith(_UNREADABLE) or _REFERENCE.fullmatch(content):
            said = _UNREADABLE + said
        step.grown[self._keys.sizes(self._shard), "log"] += size + len(said)
        return [b"account", account, b"entry", said]

    def _letter(self, subscription: str, step: _Step, entry: _Fields) -> list[bytes]:
        account, reason = entry.get(b"account", b""), entry.get(b"reason", b"")
        delivery, stored = self._referring(step, subscription, entry.get(b"delivery", b""))
        size = DEAD_LETTER_BYTES + len(account) + len(reason) + len(delivery) + stored
        step.grown[self._keys.sizes(self._shard), "dead"] += size
        step.grown[self._keys.sizes(self._shard), f"{DEAD_OF}{subscription}"] += 1
        return [b"account", account, b"reason", reason, b"delivery", delivery]

    def _entry(self, step: _Step, subscription: str, account: str, entry: bytes) -> bytes | None:
        return self._referring(step, subscription, entry)[0]

    def _referring(self, step: _Step, subscription: str, entry: bytes) -> tuple[bytes, int]:
        """Turn an entry into one that refers to its body. Returns it, and the length of the body."""
        delivery = read_old(entry, subscription)
        if delivery is None:
            return _UNREADABLE + entry, 0
        step.write(self._keys.bodies(self._shard), "HOLD", delivery.reference, delivery.stored)
        return delivery.entry, len(delivery.stored) + 1

    def _tried(self, subscription: str, note: bytes, head: bytes) -> bytes | None:
        delivery, (count, _, tried) = read_old(head, subscription), note.partition(b" ")
        return b"%b %b" % (count, delivery.entry) if delivery and tried == _head(delivery) else None

    def _note_waiting(self, step: _Step, subscription: str, moved: int) -> None:
        step.grown[self._keys.backlogs(self._shard), subscription] += moved

    async def _measure(self, step: _Step, subscriptions: Iterable[str]) -> None:
        attempts = 0
        for name in subscriptions:
            with suppress(DamagedKey):
                for _, fields in await self._pipe.command(
                    "XRANGE", self._keys.attempts(self._shard, name), "-", "+"
                ):
                    attempts += RECORD_BYTES + len(fields[1])
        noted: list[object] = ["attempts", attempts]
        with suppress(DamagedKey):
            log = self._target.log(self._shard)
            if last := await self._pipe.command("XREVRANGE", log, "+", "-", "COUNT", 1):
                noted += ["trimmed", last[0][0]]  # none of them says which subscriptions it was queued for
        step.write(self._keys.sizes(self._shard), "HSET", *noted)


class _Down(_Way):
    """From layout 2 to layout 1."""

    async def _states(self, provider: str, accounts: Sequence[str]) -> None:
        asked = chain.from_iterable(
            (("GET", self._source.state(one)), ("HGETALL", self._keys.queued(one))) for one in accounts
        )
        answers = await self._ask(*asked)
        step = self._fence.step()
        for account, text, queued in zip(accounts, answers[::2], answers[1::2], strict=True):
            if text is None:
                continue
            try:
                if isinstance(text, DamagedKey):
                    raise BadState from text  # noqa: TRY301 -- as one that cannot be read
                state = await self._names.load(provider, text)
            except BadState:
                self._carry(step, account)
                continue
            previous = {} if isinstance(queued, DamagedKey) else _sequences(queued)
            new = self._target.state(account)
            body = dump_body(state, previous)
            step.write(new, "HSET", "version", state.version, "sequence", state.sequence, "body", body)
            if state.polled_at_ms:
                step.write(new, "HSET", "polled_at", state.polled_at_ms)
            self._note_found(step, previous)
            step.write(self._source.state(account), "UNLINK")
            step.write(self._keys.queued(account), "UNLINK")
            self._count(step, "accounts")
            step = await self._flushed(step)
        await self._fence.take(step)

    async def _read_bodies(self, *entries: bytes) -> None:
        found = map(_REFERENCE.match, entries)
        references = [*{match[1] for match in found if match}]
        self._stored = {}
        if references:
            texts = await self._pipe.command("HMGET", self._keys.bodies(self._shard), *references)
            self._stored = {one: text for one, text in zip(references, texts, strict=True) if text}

    def _record(self, step: _Step, entry: _Fields) -> list[bytes]:
        said = entry.get(b"entry", b"")
        follows, _, reference = said.partition(b" ")
        if _REFERENCE.fullmatch(reference) and (stored := self._stored.get(reference)):
            said = b"%b %b}" % (follows, stored.partition(b"\n")[2])
            step.write(self._keys.bodies(self._shard), "DROP", reference)
        return [b"account", entry.get(b"account", b""), b"entry", said.removeprefix(_UNREADABLE)]

    def _letter(self, subscription: str, step: _Step, entry: _Fields) -> list[bytes]:
        said = entry.get(b"delivery", b"")
        account, reason = entry.get(b"account", b""), entry.get(b"reason", b"")
        return [b"account", account, b"reason", reason, b"delivery", self._whole(step, subscription, said)]

    async def _queues(self, subscription: str, accounts: Sequence[str]) -> None:
        step = self._fence.step()
        for account in accounts:
            step.write(self._source.queue(subscription, account), "LIST")
        await self._fence.take(step)
        await super()._queues(subscription, accounts)

    def _entry(self, step: _Step, subscription: str, account: str, entry: bytes) -> bytes | None:
        match = _REFERENCE.match(entry)
        if match is None or match[1] in self._stored:
            return self._whole(step, subscription, entry)
        fields = ("account", account, "reason", "its body is gone", "delivery", entry)
        step.write(self._target.dead(self._shard, subscription), "XADD", "*", *fields)
        return None

    def _whole(self, step: _Step, subscription: str, entry: bytes) -> bytes:
        """Turn an entry that refers to its body into one that contains it."""
        delivery = self._read(subscription, entry)
        if delivery is None:
            return entry.removeprefix(_UNREADABLE)
        step.write(self._keys.bodies(self._shard), "DROP", delivery.reference)
        return dump_old(delivery)

    def _read(self, subscription: str, entry: bytes) -> Delivery | None:
        match = _REFERENCE.match(entry)
        try:
            return load_delivery(entry, self._stored.get(match[1], b"") if match else b"", subscription)
        except ValueError:
            return None

    def _tried(self, subscription: str, note: bytes, head: bytes) -> bytes | None:
        delivery, (count, _, tried) = self._read(subscription, head), note.partition(b" ")
        return b"%b %b" % (count, _head(delivery)) if delivery and tried == head else None

    def _note_waiting(self, step: _Step, subscription: str, moved: int) -> None:
        step.grown[self._keys.backlogs(self._shard), subscription] -= moved

    async def _measure(self, step: _Step, subscriptions: Iterable[str]) -> None:
        step.write(self._keys.sizes(self._shard), "UNLINK")
        step.write(self._keys.backlogs(self._shard), "UNLINK")


def _sequences(pairs: Sequence[bytes]) -> dict[str, int]:
    """Read `queued`; what is damaged in it is left out."""
    found = {}
    for name, digits in zip(pairs[::2], pairs[1::2], strict=True):
        with suppress(ValueError):
            found[_text(name)] = read_count(digits)
    return found


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
