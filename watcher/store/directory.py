"""The directory: accounts and subscriptions that programs add while workers run, as records in the store.

A record has a plain part, which any worker can read, and an encrypted one, for which it needs a key
(`encryption`). Each shard has a stream of changes, and the last entry says the version of the shard. Refuses
to know what records mean, and to decrypt them.
"""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from watcher.store.keys import SHARDS, Keys, shard_of
from watcher.store.layout import read_meta
from watcher.store.members import FORGET_ACCOUNT_AFTER, provider_names
from watcher.store.pipe import Pipe, Script, in_parts, load_script

Kind = Literal["account", "subscription"]

Outcome = Literal["done", "conflict", "full", "missing"]

KINDS: tuple[Kind, Kind] = ("account", "subscription")

MOST: Mapping[Kind, int] = {"account": 1_000_000, "subscription": 100_000}
"""Records of a kind. A shard holds a sixteenth of them and a tenth of that more, as names spread unevenly."""

KEPT_CHANGES = 10_000
"""Changes in the stream of a shard, and up to a hundred more. A worker that missed more reads the whole
shard."""

_AT_ONCE = 500
"""Records in one call, if all are of one shard: they hold the server up for a few milliseconds."""

_RECORD = re.compile(rb"([0-9]{1,16}) ([0-9]{1,16}) (?:([0-9]{1,16}) )?(\{[^\n]*\})\n(.+)", re.DOTALL)

_PUT_RECORDS = load_script("put_records")
_DELETE_RECORDS = load_script("delete_records")
_READ_CHANGES = load_script("read_changes")
_READ_DIRECTORY = load_script("read_directory")


class Record(NamedTuple):
    """An account or a subscription as it is stored.

    `version` rises in its shard with every write of any record: the server's time in microseconds. `edited`
    is that of a client's last write; `written` that of the last write, even if it was repeated since because
    Redis had lost it. `plain` is JSON: the `provider` of an account, the filters of a subscription.
    """

    kind: Kind
    name: str
    version: int
    edited: int
    plain: Mapping[str, Any]
    encrypted: bytes
    written: int


class BadRecord(Exception):
    """A record that cannot be read: it is skipped until it is written again."""


class Write(NamedTuple):
    """A record to write. With `expected`, only if the stored version is that one (0: there is none). A write
    that is no client's edit keeps the record's `edited`. `is_shadowed`: the file has an account of this name,
    so its place on the schedule stays as it is."""

    kind: Kind
    name: str
    plain: Mapping[str, Any]
    encrypted: bytes
    expected: int | None = None
    edited: int | None = None
    is_shadowed: bool = False


class Written(NamedTuple):
    """The result of a write or a deletion, and the version that is stored now; of a deletion its own version,
    0 if there was nothing. `conflict`: the version was not the expected one. `full`: there are too many
    records."""

    outcome: Outcome
    version: int


class Change(NamedTuple):
    """A record that changed, as it is now; None: it was deleted. `written` is the version of the write or
    deletion, even if it was repeated since."""

    kind: Kind
    name: str
    version: int
    record: Record | None
    written: int


class Changes(NamedTuple):
    """What changed in a shard since a reader's last look. Pass `head` the next time; there may be `more` now.

    `is_behind`: the changes are no longer stored, or the reader begins: it must read the whole shard.
    `lost_after` is a version: Redis went back, and has lost what was written after it, unless it is among
    `changed`. A reader that holds it writes it again, and removes nothing because of its absence.
    """

    head: str
    changed: Sequence[Change]
    damaged: Sequence[tuple[Kind, str]] = ()
    is_behind: bool = False
    lost_after: int | None = None
    more: bool = False


class Held(NamedTuple):
    """All readable records of a shard, as of `head`: what changed since then has to be followed."""

    head: str
    records: Sequence[Record]
    damaged: Sequence[tuple[Kind, str]]


class Directory:
    """The directory of one namespace. Methods raise StoreError."""

    def __init__(
        self,
        pipe: Pipe,
        keys: Keys,
        *,
        most: Mapping[Kind, int] = MOST,
        kept_changes: int = KEPT_CHANGES,
    ) -> None:
        self._pipe = pipe
        self._keys = keys
        self._most = [-(-most[kind] * 11 // (SHARDS * 10)) for kind in KINDS]
        self._kept_changes = kept_changes

    async def put(self, write: Write) -> Written:
        """Write a record; a new account is due at once. Safe to repeat with the same encrypted bytes."""
        (written,) = await self.put_all([write])
        return written

    async def put_all(self, writes: Sequence[Write]) -> list[Written]:
        """Write records, each by itself: one that is refused stops no other."""
        return await self._put(
            (one, "" if one.expected is None else one.expected, one.edited, one.is_shadowed) for one in writes
        )

    async def delete(
        self, kind: Kind, name: str, *, expected: int | None = None, is_shadowed: bool = False
    ) -> Written:
        """Delete a record. An account leaves the schedules, unless the file has it (`is_shadowed`), and is
        forgotten ten minutes later."""
        rule = "" if expected is None else expected
        (written,) = await self._delete([(kind, name, rule, is_shadowed, "")])
        return written

    async def get(self, kind: Kind, name: str) -> Record | None:
        """Read a record. Raises BadRecord."""
        key = self._records(kind, shard_of(name))
        text = await self._pipe.command("HGET", key, name)
        return None if text is None else read_record(kind, name, text)

    async def counts(self) -> dict[Kind, int]:
        """Count the records of each kind."""
        keys = [(kind, self._records(kind, shard)) for kind in KINDS for shard in range(SHARDS)]
        found = await asyncio.gather(*(self._pipe.command("HLEN", key) for _, key in keys))
        counts = dict.fromkeys(KINDS, 0)
        for (kind, _), count in zip(keys, found, strict=True):
            counts[kind] += count
        return counts

    async def read(self, shard: int) -> Held:
        """Read all records of a shard."""
        head: str | None = None
        found: dict[tuple[Kind, str], Record] = {}
        damaged: dict[tuple[Kind, str], None] = {}
        for kind in KINDS:
            keys = [self._records(kind, shard), self._keys.changes(shard)]
            cursor = b"0"
            while True:
                last, cursor, *pairs = await self._pipe.script(_READ_DIRECTORY, keys, cursor, _AT_ONCE)
                head = last.decode() if head is None else head
                for name, text in zip(pairs[::2], pairs[1::2], strict=True):
                    place = kind, name.decode("utf-8", "replace")
                    try:
                        found[place] = read_record(*place, text)
                    except BadRecord:
                        damaged[place] = None
                if cursor == b"0":
                    break
        assert head is not None
        return Held(head, [*found.values()], [*damaged])

    async def read_all(self) -> AsyncIterator[Held]:
        """Read all records, shard by shard."""
        for shard in range(SHARDS):
            yield await self.read(shard)

    async def heads(self) -> list[str]:
        """Read the last change of each shard ('': none), in one round trip."""
        commands = [("XREVRANGE", self._keys.changes(shard), "+", "-", "COUNT", 1) for shard in range(SHARDS)]
        found = await asyncio.gather(*(self._pipe.command(*command) for command in commands))
        return [last[0][0].decode() if last else "" for last in found]

    async def changes(self, shard: int, head: str) -> Changes:
        """Read what changed in a shard since `head`, the last change that the reader knows ('': none)."""
        keys = [*(self._records(kind, shard) for kind in KINDS), self._keys.changes(shard)]
        answer = await self._pipe.script(_READ_CHANGES, keys, head, _AT_ONCE)
        stands, common, last = (part.decode() for part in answer[:3])
        has_more, *rest = answer[3:]
        changed: list[Change] = []
        damaged: list[tuple[Kind, str]] = []
        for number, name, version, deleted, text in zip(*(rest[i::5] for i in range(5)), strict=True):
            kind, named = KINDS[int(number) - 1], name.decode("utf-8", "replace")
            try:
                record = read_record(kind, named, text) if text else None
            except BadRecord:
                damaged.append((kind, named))
            else:
                written = record.written if record else int(deleted or version)
                changed.append(Change(kind, named, int(version), record, written))
        return Changes(
            last,
            tuple(changed),
            tuple(damaged),
            is_behind=stands in ("behind", "lost"),
            lost_after=version_of(common) if stands in ("back", "lost") else None,
            more=bool(has_more),
        )

    async def write_again(
        self,
        lost_after: int,
        records: Collection[Record],
        deleted: Collection[Change] = (),
        *,
        shadowed: Collection[str] = (),
    ) -> int:
        """Write records again that Redis has lost, and repeat deletions: those later than `lost_after`,
        unless what is stored was written after them. Returns how many these were.

        Each gets a new version, and keeps its `edited` and `written`: of two workers, the one that holds the
        later write wins. `shadowed` names accounts that the file has as well.
        """
        written = await self._put(
            (one, f"<{one.written}", f"{one.edited} {one.written}", one.name in shadowed)
            for one in records
            if one.version > lost_after
        )
        written += await self._delete(
            (one.kind, one.name, f"<{one.written}", one.name in shadowed, one.written) for one in deleted
        )
        return sum(one.outcome == "done" for one in written)

    async def _put(self, steps: Iterable[tuple[Write | Record, object, object, bool]]) -> list[Written]:
        """Write records, each with a rule and the version of its last edit (see the script for both), and
        whether the file has its account."""
        (text,) = await read_meta(self._pipe, self._keys, "providers")
        of_steps: list[tuple[str, tuple[Any, ...]]] = []
        steps = [*steps]
        ours = {one.plain.get("provider", "") for one, *_ in steps} - {""}
        providers = sorted(provider_names(text) | ours)
        places = {"": 0, **{name: place for place, name in enumerate(providers, 1)}}
        for one, rule, edited, is_shadowed in steps:
            place = 0 if is_shadowed else places[one.plain.get("provider", "")]
            plain = json.dumps(one.plain, separators=(",", ":"))
            rules = rule, "" if edited is None else edited
            of_steps.append(
                (one.name, (KINDS.index(one.kind) + 1, one.name, *rules, place, plain, one.encrypted))
            )

        def keys_of(shard: int) -> list[str]:
            return [self._keys.due_polls(shard), *self._schedules(shard, providers)]

        head = *self._most, self._kept_changes, len(providers), *providers
        return await self._write(_PUT_RECORDS, keys_of, head, of_steps, ("conflict", "done", "full"))

    async def _delete(self, steps: Iterable[tuple[Kind, str, object, bool, object]]) -> list[Written]:
        (text,) = await read_meta(self._pipe, self._keys, "providers")
        providers = sorted(provider_names(text))
        of_steps = [
            (name, (KINDS.index(kind) + 1, name, rule, int(kind == "account" and not is_shadowed), written))
            for kind, name, rule, is_shadowed, written in steps
        ]

        def keys_of(shard: int) -> list[str]:
            return [self._keys.nothing(shard), *self._schedules(shard, providers)]

        head = int(1000 * FORGET_ACCOUNT_AFTER.total_seconds()), self._kept_changes
        return await self._write(_DELETE_RECORDS, keys_of, head, of_steps, ("conflict", "done", "missing"))

    async def _write(
        self,
        script: Script,
        keys_of: Callable[[int], list[str]],
        head: Sequence[object],
        steps: Sequence[tuple[str, Sequence[object]]],
        outcomes: Sequence[Outcome],
    ) -> list[Written]:
        """Let a script take steps, each a name and its arguments; those of a shard in one call."""
        found: dict[int, Written] = {}

        async def take(shard: int, places: Sequence[int]) -> None:
            keys = [self._records(kind, shard) for kind in KINDS]
            keys += [self._keys.changes(shard), self._keys.removed(shard), *keys_of(shard)]
            arguments = [argument for place in places for argument in steps[place][1]]
            answer = await self._pipe.script(script, keys, *head, *arguments)
            for place, outcome, version in zip(places, answer[::2], answer[1::2], strict=True):
                found[place] = Written(outcomes[outcome], version)

        for some in in_parts(range(len(steps)), _AT_ONCE):
            places_by_shard: defaultdict[int, list[int]] = defaultdict(list)
            for place in some:
                places_by_shard[shard_of(steps[place][0])].append(place)
            await asyncio.gather(*(take(*each) for each in places_by_shard.items()))
        return [found[place] for place in range(len(steps))]

    def _records(self, kind: Kind, shard: int) -> str:
        keys = self._keys
        return keys.account_records(shard) if kind == "account" else keys.subscription_records(shard)

    def _schedules(self, shard: int, providers: Sequence[str]) -> list[str]:
        keys = self._keys
        return [key for name in providers for key in (keys.polls(shard, name), keys.failing(shard, name))]


def read_record(kind: Kind, name: str, text: bytes) -> Record:
    """Read a stored record. Raises BadRecord."""
    with suppress(ValueError, RecursionError):
        if match := _RECORD.fullmatch(text):
            version, edited, written = int(match[1]), int(match[2]), int(match[3] or match[1])
            return Record(kind, name, version, edited, json.loads(match[4]), match[5], written)
    raise BadRecord(f"the record of {kind} {name} in the directory cannot be read")


def version_of(head: str) -> int:
    """Read the version of a shard from its last change; 0 if there is none."""
    return int(head.partition("-")[0] or 0)
