"""The event log: what every commit recorded, in order, for people, replays, audits and receivers that pull.
Never for delivery.

Refuses to judge a record: it says what cannot be read, and goes on.
"""

import asyncio
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Literal, NamedTuple
from zlib import crc32

from watcher.journal.events import Delivery
from watcher.journal.log import Damaged, Record, follows_all, oldest_after
from watcher.store.keys import MOST, SHARDS, Keys, read_count, shard_of
from watcher.store.pipe import Pipe, load_script

START = "0-0"
"""The place before the first record of a shard's log."""

_READ_EVENTS = load_script("read_events")
_READ_RECORDS = load_script("read_records")

_PAGE = 200
"""Records of one answer, each with a whole body."""

_LOOKS, _LOOKED_AT = 500, 16_000
"""Records that one call looks at, in a millisecond or two of the server's time; and that one page does."""

PAGE_BYTES = 4_000_000
"""Of the events of one page, wanted or not: with the subscription's part, it stays below 4 MiB."""

_SLACK_MS = 300_000
"""A sequence is the time of its commit or more, by the workers' clocks: so much earlier, the search for its
record begins."""


def place(record_id: str) -> tuple[int, int]:
    """Turn a record's id into a value that sorts as the log does: Unix ms of the server, and a count within
    it."""
    ms, _, count = record_id.partition("-")
    return int(ms), int(count or 0)


class Place(NamedTuple):
    """How far a reader of one shard's log has come: the id of a record, and a check of its content ("":
    none).

    The id "" is before the oldest record that is stored, whichever that is. The check "~" stands for the last
    record that is no later than the id, which may never have existed.
    """

    id: str = ""
    check: str = ""


class Gone(Exception):
    """What followed a cursor is no longer in the log; or Redis was set back, and the log says something else
    there. `oldest`, of one account: the sequence after which everything is stored; None: that is unknown."""

    def __init__(self, oldest: int | None = None) -> None:
        super().__init__("the log no longer holds what followed")
        self.oldest = oldest


Search = Literal["near", "all", "found"]


def cursor_text(said: bytes) -> str:
    """Write what a caller brings back unread: only letters, digits, `-` and `_`."""
    return urlsafe_b64encode(said).rstrip(b"=").decode()


def read_cursor(text: str) -> bytes:
    """Read what `cursor_text` wrote, and more that means the same: the caller compares. Raises ValueError."""
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader of the log has come: a place by shard. A shard that is not named is read from its
    oldest record on.

    `after`: of one account, only events beyond this sequence are wanted. `search`: how far the search for it
    has come: through the records near that time, through all, or it found that nothing before is missing.
    """

    places: Mapping[int, Place] = field(default_factory=dict)
    after: int | None = None
    search: Search = "near"

    @property
    def text(self) -> str:
        """Write it for a caller: only letters, digits, `-` and `_`; a cursor of all shards has some 200 of
        them."""
        numbers = [sum(1 << shard for shard in self.places)]
        for _, (record_id, check) in sorted(self.places.items()):
            numbers += [*place(record_id), 1 + int(check, 16) if check else 0]
        if self.after is not None:
            numbers += [self.after, _SEARCHES.index(self.search)]
        said = bytes([_CURSOR_VERSION]) + b"".join(map(_varint, numbers))
        return cursor_text(said + crc32(said).to_bytes(4))

    @classmethod
    def read(cls, text: str) -> "Cursor":
        """Read what `text` wrote. Raises ValueError."""
        try:
            cursor = cls._read(text[:_CURSOR_LENGTH])
        except (ValueError, IndexError):
            raise ValueError("it is no cursor, or was changed") from None
        if cursor.text != text:
            raise ValueError("it is no cursor, or was changed")
        return cursor

    @classmethod
    def _read(cls, text: str) -> "Cursor":
        said = read_cursor(text)
        if said[0] != _CURSOR_VERSION or crc32(said[:-4]).to_bytes(4) != said[-4:]:
            raise ValueError
        numbers = _read_varints(said[1:-4])
        shards = numbers.popleft()
        places = {}
        for shard in (shard for shard in range(SHARDS) if shards >> shard & 1):
            ms, count, check = (numbers.popleft() for _ in range(3))
            if max(ms, count) >= MOST:
                raise ValueError
            places[shard] = Place(f"{ms}-{count}", f"{check - 1:04x}" if check else "")
        return cls(places, numbers.popleft(), _SEARCHES[numbers.popleft()]) if numbers else cls(places)


_CURSOR_VERSION, _CURSOR_LENGTH = 1, 400
_SEARCHES: Sequence[Search] = ("near", "all", "found")


def _varint(number: int) -> bytes:
    """Write a number in groups of seven bits, the lowest first; all but the last have the highest bit set."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def _read_varints(said: bytes) -> deque[int]:
    numbers, number, shift = deque[int](), 0, 0
    for byte in said:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(number)
            number, shift = 0, 0
    return numbers


class Logged(NamedTuple):
    """An event as the log has it, not parsed: `content` is all but the subscription's part, and `queued` has
    a line `subscription previous` for each subscription that it was queued for."""

    account: str
    event_id: str
    type: str
    sequence: int
    content: bytes
    queued: bytes

    def to(self, subscription: str) -> Delivery:
        """Make the delivery to a subscription that it was queued for, as it was then."""
        line = re.search(rb"^%b (\S+)$" % re.escape(subscription.encode()), self.queued, re.MULTILINE)
        previous = None if line is None or line[1] == b"-" else int(line[1])
        return Delivery(self.event_id, self.type, self.sequence, self.content, subscription, previous)


class Page(NamedTuple):
    """Some of what a reader wanted, in the order of each shard, and where to go on.

    `is_end`: there was no more. Otherwise there may be more, even after an empty page: the number of records
    looked at is bounded, too. `unreadable` counts events that are damaged, or have lost their body. `in_vain`
    counts looks, of a millisecond or two of the server's time each, that went through many records and found
    next to nothing.
    """

    events: Sequence[Logged]
    cursor: Cursor
    is_end: bool
    unreadable: int = 0
    in_vain: int = 0


class _Part(NamedTuple):
    """What one look at a shard found, from where to where."""

    start: Place
    reached: Place
    is_end: bool
    found: deque[tuple[Place, list[bytes], bytes]]
    """Records, each with its place, its fields and the stored part of its event."""


class History:
    """The event log of one namespace. A record that cannot be read comes with the content {}."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def records(self, account: str | None = None) -> AsyncIterator[Record]:
        """Read the log, oldest first within each shard; of one account, or of all."""
        shards = range(SHARDS) if account is None else (shard_of(account),)
        for shard in shards:
            async for record in self.of_shard(shard):
                if account in (None, record.account):
                    yield record

    async def of_shard(
        self, shard: int, *, since_ms: int = 0, end: str = "+", newest_first: bool = False
    ) -> AsyncIterator[Record]:
        """Read one shard's log from a time on up to an end (the id of a record), or backwards from there."""
        command, start = "XRANGE", f"{since_ms}-0"
        if newest_first:
            command, start, end = "XREVRANGE", end, start
        while True:
            page = await self._page(shard, command, start, end)
            for record in page:
                yield record
            if len(page) < _PAGE:
                return
            start = f"({page[-1].id}"

    async def in_order(
        self, ends: Sequence[str], *, since_ms: int = 0, newest_first: bool = False
    ) -> AsyncIterator[Record]:
        """Read the logs of all shards up to their `ends` as one, in the order of the server's times."""
        sign = -1 if newest_first else 1
        shards = [
            self.of_shard(shard, since_ms=since_ms, end=end, newest_first=newest_first)
            for shard, end in enumerate(ends)
        ]
        heads = [_head(await anext(records, None), sign, shard) for shard, records in enumerate(shards)]
        heap = [head for head in heads if head]
        heapify(heap)
        while heap:
            _, shard, record = heap[0]
            yield record
            if head := _head(await anext(shards[shard], None), sign, shard):
                heapreplace(heap, head)
            else:
                heappop(heap)

    async def ends(self) -> list[str]:
        """Return where each shard's log ends now."""
        logs = map(self._keys.log, range(SHARDS))
        asked = (self._pipe.command("XREVRANGE", log, "+", "-", "COUNT", 1) for log in logs)
        return [last[0][0].decode() if last else START for last in await asyncio.gather(*asked)]

    async def after(self, ends: Sequence[str]) -> tuple[list[Record], list[str]]:
        """Read what came after `ends`, in order, at most a page of each shard. Returns the new ends."""
        found: list[Record] = []
        new_ends = []
        for shard, end in enumerate(ends):
            page = await self._page(shard, "XRANGE", f"({end}", "+")
            found.extend(page)
            new_ends.append(page[-1].id if page else end)
        return sorted(found, key=lambda record: place(record.id)), new_ends

    async def end(self) -> Cursor:
        """Return where the log ends now."""
        parts = await asyncio.gather(
            *(self._look(shard, Place("+", "~"), looks=0) for shard in range(SHARDS))
        )
        return Cursor({shard: part.reached for shard, part in enumerate(parts)})

    async def since(self, account: str, after: int, *, sequence: int, log_end: str) -> Cursor:
        """Return where a reader goes on that has everything of an account up to `after`. `sequence` and
        `log_end` are those of its state (`Reader.read_states`)."""
        if after < sequence:
            return Cursor({}, after)
        shard = shard_of(account)
        return Cursor({shard: (await self._look(shard, Place(log_end, "~"), looks=0)).reached})

    async def page(
        self,
        cursor: Cursor,
        *,
        account: str | None = None,
        subscription: str | None = None,
        limit: int,
        takes: Callable[[Logged], bool] = lambda _event: True,
    ) -> Page:
        """Read events from a cursor on: of one account, or of all; those that were queued for a subscription,
        or all.

        Within an account they come in order, across shards roughly by time. What one page looks at is
        bounded. Raises Gone, and ValueError for a cursor of one account if none is named.
        """
        shards = range(SHARDS) if account is None else (shard_of(account),)
        if cursor.after is not None:
            if account is None:
                raise ValueError("a cursor of one account")
            cursor = await self._search(cursor, account)
            if cursor.search != "found":
                return Page((), cursor, is_end=False, in_vain=_LOOKED_AT // _LOOKS)
        left, most, in_vain = _LOOKED_AT, max(16, 2 * limit // len(shards)), 0

        async def look(shard: int, start: Place) -> _Part:
            nonlocal left, in_vain
            left -= _LOOKS
            part = await self._look(
                *(shard, start, account or "", subscription or ""),
                looks=_LOOKS,
                most=most,
                most_bytes=PAGE_BYTES // len(shards),
            )
            in_vain += not part.is_end and 10 * len(part.found) < most
            return part

        starts = (cursor.places.get(shard, Place()) for shard in shards)
        parts = dict(zip(shards, await asyncio.gather(*map(look, shards, starts)), strict=True))
        places = {**cursor.places, **{shard: part.start for shard, part in parts.items()}}
        heap: list[tuple[tuple[int, int], int]] = []

        async def line_up(shard: int) -> None:
            """Let the next record of a shard wait for its turn."""
            part = parts[shard]
            while not (part.found or part.is_end) and left > 0:
                part = parts[shard] = await look(shard, part.reached)
            if part.found:
                heappush(heap, (place(part.found[0][0].id), shard))
            else:
                places[shard] = part.reached

        for shard in shards:
            await line_up(shard)
        events: list[Logged] = []
        after, size, unreadable = cursor.after, 0, 0
        while heap and len(events) < limit and size < PAGE_BYTES:
            _, shard = heappop(heap)
            places[shard], fields, stored = parts[shard].found.popleft()
            size += len(stored)
            event = _logged(fields, stored)
            if event is None:
                unreadable += 1
            elif after is None or event.sequence > after:
                after = None
                if takes(event):
                    events.append(event)
            await line_up(shard)
        is_end = not heap and all(part.is_end for part in parts.values())
        search: Search = "near" if after is None else "found"
        return Page(events, Cursor(places, after, search), is_end, unreadable, in_vain)

    async def _search(self, cursor: Cursor, account: str) -> Cursor:
        """Go a bounded part of the way to the place after which everything is that an account emitted after a
        sequence. Raises Gone.

        The first record of the account that is found decides: it names the sequence before its commit. The
        search begins near the time that the sequence is, and then goes through all of the log, in case a
        clock was wrong.
        """
        shard, after, search = shard_of(account), cursor.after or 0, cursor.search
        start = cursor.places.get(shard)
        if cursor.search == "found":
            return cursor
        for _ in range(_LOOKED_AT // _LOOKS):
            if start is None:
                is_near = search == "near" and after > _SLACK_MS
                search = "near" if is_near else "all"
                start = Place(f"{after - _SLACK_MS}-0", "~") if is_near else Place()
            part = await self._look(shard, start, account, "*", looks=_LOOKS)
            oldest = None
            for its, fields, stored in part.found:
                record = _record(its.id, fields, stored)
                with suppress(Damaged):  # of which the next one is asked
                    if follows_all(record, after):
                        return Cursor({shard: part.start}, after, "found")
                    oldest = oldest_after(record)
            if oldest is None and not part.is_end:
                start = part.reached
            elif search == "all":
                raise Gone(oldest)
            else:
                start, search = None, "all"
        return Cursor({shard: start} if start else {}, after, search)

    async def _look(
        self,
        shard: int,
        start: Place,
        account: str = "",
        subscription: str = "",
        *,
        looks: int,
        most: int = 1,
        most_bytes: int = PAGE_BYTES,
    ) -> _Part:
        """Look at a part of a shard's log. Raises Gone."""
        keys = [self._keys.log(shard), self._keys.bodies(shard), self._keys.sizes(shard)]
        mode = start.check if start.check == "~" else ""
        answer = await self._pipe.script(
            *(_READ_EVENTS, keys, start.id, mode, account, subscription, looks, most, most_bytes)
        )
        if not answer[0]:
            raise Gone
        _, start_id, start_says, reached, reached_says, is_end, *flat = answer
        found_at = Place(start_id.decode(), _check(start_says))
        if start.check not in ("", "~", found_at.check) and found_at.check:
            raise Gone  # another record has this id now
        found = deque(
            (Place(entry_id.decode(), _check(b" ".join(fields[1:4:2]))), fields, stored)
            for entry_id, fields, stored in zip(*(flat[i::3] for i in range(3)), strict=True)
        )
        return _Part(found_at, Place(reached.decode(), _check(reached_says)), bool(is_end), found)

    async def _page(self, shard: int, command: str, start: str, end: str) -> list[Record]:
        keys = [self._keys.log(shard), self._keys.bodies(shard)]
        flat = await self._pipe.script(_READ_RECORDS, keys, command, start, end, _PAGE)
        return [
            _record(entry_id.decode(), fields, stored)
            for entry_id, fields, stored in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        ]


def _head(record: Record | None, sign: int, shard: int) -> tuple[tuple[int, int, int], int, Record] | None:
    """Return what sorts the next record of a shard among those of the others; no two compare equal."""
    if record is None:
        return None
    ms, count = place(record.id)
    return (sign * ms, sign * count, sign * shard), shard, record


def _check(said: bytes) -> str:
    """Return the check of a record with this content, `account entry`; "" of none."""
    return f"{crc32(said) & 0xFFFF:04x}" if said else ""


def _logged(fields: list[bytes], stored: bytes) -> Logged | None:
    """Read a record of an event, with its stored body; None if it is damaged."""
    said = dict(zip(fields[::2], fields[1::2], strict=True))
    named, head = _OF_EVENT.fullmatch(said.get(b"entry", b"")), _STORED.match(stored)
    if not (named and head):
        return None
    account, queued = said.get(b"account", b"").decode("utf-8", "replace"), said.get(b"queued", b"")
    event_id, sequence, type_ = named[1].decode(), int(named[2]), head[1].decode()
    return Logged(account, event_id, type_, sequence, stored[head.end() :], queued)


_OF_EVENT = re.compile(rb"[0-9]{1,14} ([!-~]+) ([0-9]{1,14})")
_STORED = re.compile(rb"[0-9]+ ([!-~]+)\n(?=.)")


def _record(entry_id: str, fields: list[bytes], stored: bytes) -> Record:
    by_name = dict(zip(fields[::2], fields[1::2], strict=True))
    account = by_name.get(b"account", b"").decode("utf-8", "replace")
    follows, _, entry = by_name.get(b"entry", b"").partition(b" ")
    raw = stored.partition(b"\n")[2]
    try:
        content = dict(json.loads(raw + b"}" if raw else entry))
        queued = [line.rpartition(b" ") for line in by_name.get(b"queued", b"").splitlines()]
        previous = {name.decode(): None if last == b"-" else read_count(last) for name, _, last in queued}
        return Record(account, int(follows), content, entry_id, raw, previous)
    except (ValueError, TypeError, RecursionError):
        return Record(account, 0, {}, entry_id)
