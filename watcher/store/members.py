"""Which workers there are, what each of them runs, and which accounts are polled at which provider.

Workers note every few seconds that they live. An enrolment brings the schedules in line with a configuration,
and refuses to know of other workers, which may have another one: `run.members` does.
"""

import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from hashlib import blake2b
from itertools import islice
from typing import Any, Literal, NamedTuple

from watcher.pause import compute, in_order, slowly
from watcher.store.exceptions import StoreRefuses
from watcher.store.keys import SHARDS, Keys, check_count, read_count, shard_of
from watcher.store.layout import Layout, check_numbers, read_meta
from watcher.store.pipe import Pipe, in_parts, load_script
from watcher.store.polls import Failing, damage_named, read_failing
from watcher.store.state import BadState

GONE_AFTER = timedelta(seconds=45)
"""A worker notes every ten seconds that it lives. After so long without a note, it is gone or cut off."""

FORGET_AFTER = timedelta(hours=1)
"""How long a worker that was killed stays visible."""

KEEP_S = 3600
"""How long a configuration can be read after a worker last wrote it."""

FORGET_ACCOUNT_AFTER = timedelta(minutes=10)
"""How long the state of a removed account is kept: the file may have been half written."""

_AT_ONCE = 500
"""Names in one command."""

_DUMPED_AT_ONCE = 1000
_LARGEST = 64 * 1024 * 1024
_KEPT_APART = ("worker", "seen_ms")
_KINDS = ("provider", "subscription", "account")

_NOTE_WORKER = load_script("note_worker")
_MARK = load_script("mark")
_MAKE_DUE = load_script("make_due")
_WAKE = load_script("wake")
_TAKE_OFF = load_script("take_off")
_FORGET = load_script("forget")


class Presence(NamedTuple):
    """What a worker notes of itself, and when it last did (Unix ms of the server).

    `requests_per_second`, by provider, is what it sent, averaged over its last minute. `roster` is a digest
    of its list of accounts, `configuration` one of its providers, accounts and URLs; older workers do not
    note the latter. `layouts` are those that it works in; for an older worker the first one. One that
    `stands_by` waits until the data in Redis are in one of them, and claims nothing meanwhile.
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
    layouts: Sequence[int] = (1,)
    stands_by: bool = False

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
        """Read the workers of the last hour, the latest first. What cannot be read is left out."""
        pairs = await self._pipe.command("HGETALL", self._key)
        found = []
        for name, text in zip(pairs[::2], pairs[1::2], strict=True):
            seen_ms, _, said = text.partition(b" ")
            with suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
                noted: Any = json.loads(said)
                presence = Presence(
                    name.decode("utf-8", "replace"),
                    str(noted["host"]),
                    check_count(noted["pid"]),
                    str(noted["version"]),
                    check_count(noted["since_ms"]),
                    {str(name): float(rate) for name, rate in dict(noted["requests_per_second"]).items()},
                    str(noted["roster"]),
                    read_count(seen_ms),
                    str(noted.get("configuration", "")),
                    tuple(check_count(number) for number in noted.get("layouts", (1,))),
                    noted.get("stands_by") is True,
                )
                found.append(presence)
        return sorted(found, key=lambda one: (-one.seen_ms, one.worker))


class _Fields(NamedTuple):
    providers: Mapping[str, str]
    subscriptions: Mapping[str, str]
    accounts: Mapping[str, str]


class Fingerprint(_Fields):
    """A configuration as digests by name: of the kind and base_url of each provider, the URL of each
    subscription, and the source and provider of each account."""

    @cached_property
    def digest(self) -> str:
        """Make a digest of the configuration: the same in all workers that run it."""
        return blake2b(self.dump(), digest_size=8).hexdigest()

    def dump(self) -> bytes:
        """Write it as JSON, keys in order. In parts: 100,000 accounts at once would hold up all threads."""
        fields = []
        for field, text_by_name in sorted(self._asdict().items()):
            names, parts = in_order(text_by_name), []
            while some := [*islice(names, _DUMPED_AT_ONCE)]:
                part = {name: text_by_name[name] for name in some}
                parts.append(json.dumps(part, separators=(",", ":"))[1:-1])
            fields.append(f'"{field}":{{{",".join(parts)}}}')
        return f"{{{','.join(fields)}}}".encode()

    def differing(self, other: "Fingerprint") -> list[str]:
        """Return the names that mean something else in another configuration: `provider loopring`. In steps:
        to compare or sort 100,000 accounts at once would hold up all threads."""
        return [
            f"{kind} {name}"
            for kind, ours, theirs in zip(_KINDS, self, other, strict=True)
            for name, place in ours.items()
            if theirs.get(name, place) != place
        ]

    def is_same_place(self, other: "Fingerprint") -> bool:
        """Say whether another configuration polls the same accounts at the same providers, whatever its URLs
        are: then it belongs to the same deployment."""
        if any(not line.startswith("subscription ") for line in self.differing(other)):
            return False
        shares = any(name in other.accounts for name in self.accounts)
        return shares or not (self.accounts or other.accounts)


class Mark(NamedTuple):
    """The URL (its digest) for which a subscription's queues are filled, and the configuration that says
    so."""

    url: str
    configuration: str


class Configurations:
    """The configurations and marks of one namespace. Methods raise StoreError."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def write(self, fingerprint: Fingerprint) -> None:
        """Write a configuration for other workers to read."""
        key = self._keys.configuration(fingerprint.digest)
        packed = await compute(lambda: zlib.compress(fingerprint.dump(), 1))
        try:
            await self._pipe.command("SET", key, packed, "EX", KEEP_S)
        except StoreRefuses:  # a full server takes no write, and must be drained: it stands there for a while
            if await self._pipe.command("GET", key) != packed:
                raise
        await self._pipe.command("DEL", self._keys.waiting(fingerprint.digest))

    async def waited_for_since(self, digest: str, now_ms: int) -> int:
        """Note since when (Unix ms) workers wait for a configuration that is gone. Returns the first note
        since a worker ran it: workers that end soon, as `run --once` does, would each start waiting again."""
        key, noted = self._keys.waiting(digest), None
        with suppress(StoreRefuses, BadState), damage_named():
            await self._pipe.command("SET", key, now_ms, "NX", "EX", KEEP_S)
            noted = await self._pipe.command("GET", key)
        return int(noted) if noted and noted.isdigit() else now_ms

    async def read(self, digest: str) -> Fingerprint | None:
        """Read a configuration; None if it was not written, or cannot be read."""
        packed = None
        with suppress(BadState), damage_named():
            packed = await self._pipe.command("GET", self._keys.configuration(digest))
        return None if packed is None else await compute(_parse, packed)

    async def marks(self, subscriptions: Sequence[str]) -> dict[str, Mark]:
        """Read the URLs for which the queues of subscriptions are filled, where they are noted."""
        found: dict[str, Mark] = {}
        with suppress(BadState), damage_named():  # the next worker writes new marks
            for part in in_parts(subscriptions, _AT_ONCE):
                texts = await self._pipe.command("HMGET", self._keys.marks(), *part)
                found |= {name: _mark(text) for name, text in zip(part, texts, strict=True) if text}
        return found

    async def mark(self, moves: Mapping[str, tuple[Mark | None, Mark]]) -> dict[str, Mark]:
        """Replace each subscription's mark if it is the expected one. Returns the marks that are stored
        now."""
        found: dict[str, Mark] = {}
        for part in in_parts([*moves], _AT_ONCE):
            arguments = [
                text for name in part for text in (name, *(" ".join(one or ()) for one in moves[name]))
            ]
            texts = await self._pipe.script(_MARK, [self._keys.marks()], *arguments)
            found |= {name: _mark(text) for name, text in zip(part, texts, strict=True)}
        return found


def _mark(text: bytes) -> Mark:
    url, _, configuration = text.decode("utf-8", "replace").partition(" ")
    return Mark(url, configuration)


def _parse(packed: bytes) -> Fingerprint | None:
    try:
        said = json.loads(zlib.decompressobj().decompress(packed, _LARGEST))
        parts = [
            {str(name): str(text) for name, text in dict(said[part]).items()} for part in _Fields._fields
        ]
    except (zlib.error, ValueError, TypeError, KeyError, RecursionError):
        return None
    return Fingerprint(*parts)


@dataclass(frozen=True, slots=True)
class Enrolled:
    """How many accounts an enrolment added to the schedules and took off them, and the names of those that no
    provider has any more."""

    added: int
    removed: int
    gone: tuple[str, ...] = ()


class Woken(NamedTuple):
    """An account that was woken, at one provider: it is due `in_ms` from now, normally within a second. It
    may wait for a poll that a worker has in hand, and is polled once more after it (`in_ms` says when that
    worker counts as lost); or for a retry, if it is `failing`."""

    account: str
    provider: str
    in_ms: int
    waits_for: Literal["turn", "poll", "retry"]
    failing: Failing | None


WOKEN = ("account", "provider", "state", "due_in_ms", "rejections", "error_class", "reason")
"""The fields of a woken account as plain data."""


def woken_line(one: Woken) -> dict[str, Any]:
    """Write a woken account as plain data, for --json and the API."""
    failing = one.failing
    state = {"turn": "due", "poll": "in_hand", "retry": "backing_off"}[one.waits_for]
    due_in_ms = None if one.waits_for == "poll" else one.in_ms
    why = (failing.rejections, failing.error_class, failing.reason) if failing else (None, None, None)
    return dict(zip(WOKEN, (one.account, one.provider, state, due_in_ms, *why), strict=True))


class Roster:
    """The accounts of one namespace, by provider.

    An account that is no longer configured is taken off its schedule at once, and forgotten ten minutes
    later, with its state: if it comes back after that, it gets a new baseline. What waits in its queues is
    still delivered.
    """

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def check_layout(self) -> None:
        """Raise ConfigurationRefused if the data in Redis are not in this version's layout, or are to leave
        it."""
        await self._providers(())

    async def enrolled(self) -> str | None:
        """Return the list that was enrolled last; None if that is lost, as after a restart without
        persistence. None as well if an enrolment was cut off: the worker that began it may have died."""
        shards, enrolled = await self._read_meta("shards", "enrolled")
        return None if shards is None or enrolled is None else enrolled.decode("utf-8", "replace")

    async def note_enrolled(self, roster: str) -> bool:
        """Note that the enrolment of a list is complete. Returns whether it is the first one in this state.

        Nothing is written if that is noted already: a full server takes no write, and must still be drained.
        """
        if await self.enrolled() == roster:
            return False
        return bool(await self._pipe.command("HSET", self._keys.meta(), "enrolled", roster))

    async def enroll(
        self,
        accounts_by_provider: Mapping[str, Collection[str]],
        *,
        now_ms: int,
        remove: bool = True,
        done: Callable[[int, int], object] = lambda part, parts: None,
    ) -> Enrolled:
        """Make new accounts due now, and `remove` those that are gone. `done` is called after each part, with
        its number and how many there are."""
        providers = await self._providers(accounts_by_provider)
        configured = {name: await _by_shard(accounts_by_provider.get(name, ())) for name in providers}

        def is_configured(account: str) -> bool:
            shard = shard_of(account)
            return any(account in by_shard[shard] for by_shard in configured.values())

        for shard in range(SHARDS):
            key = self._keys.removed(shard)
            with suppress(BadState), damage_named():  # what is configured again is not to be forgotten
                leaving = _texts(await self._pipe.command("ZRANGE", key, 0, -1))
                for group in in_parts([*filter(is_configured, leaving)], _AT_ONCE):
                    await self._pipe.command("ZREM", key, *group)
        added = removed = 0
        gone: list[str] = []
        for place, (provider, by_shard) in enumerate(configured.items()):
            for shard in range(SHARDS):
                wanted = {name.encode() async for name in slowly(by_shard[shard])}
                with suppress(BadState), damage_named():  # its poll reports the damage
                    known = {*await self._pipe.command("ZRANGE", self._keys.polls(shard, provider), 0, -1)}
                    added += await self._add(shard, provider, [*wanted - known], now_ms)
                    if remove:
                        left = sorted(known - wanted)
                        count, names = await self._remove(shard, provider, left, is_configured, now_ms)
                        removed, gone = removed + count, gone + names
                done(place * SHARDS + shard + 1, SHARDS * len(configured))
        return Enrolled(added, removed, tuple(gone))

    async def forget(self, now_ms: int) -> int:
        """Forget the accounts that were removed ten minutes ago. Returns how many."""
        forgotten = 0
        for shard in range(SHARDS):
            key = self._keys.removed(shard)
            with suppress(BadState), damage_named():
                found = await self._pipe.command("ZRANGEBYSCORE", key, "-inf", now_ms)
                names = [name for name in _texts(found) if shard_of(name) == shard]
                for group in in_parts(names, _AT_ONCE):
                    keys = [each(name) for name in group for each in (self._keys.state, self._keys.queued)]
                    forgotten += await self._pipe.script(_FORGET, [key, *keys], now_ms, *group)
        return forgotten

    async def _providers(self, configured: Collection[str]) -> list[str]:
        """Check that the data are laid out as this program expects. Returns all providers that were ever
        used."""
        layout = Layout(self._pipe, self._keys)
        numbers = await layout.read()
        check_numbers(numbers)
        await layout.lay_out(numbers)
        (providers,) = await self._read_meta("providers")
        known = sorted({*provider_names(providers), *configured})
        text = json.dumps(known)
        if providers is None or providers.decode("utf-8", "replace") != text:
            await self._pipe.command("HSET", self._keys.meta(), "providers", text)  # as in note_enrolled
        return known

    async def _read_meta(self, *names: str) -> list[bytes | None]:
        return await read_meta(self._pipe, self._keys, *names)

    async def make_due(self, provider: str, names: Collection[str], *, now_ms: float) -> set[str]:
        """Make accounts due now. Returns those that a worker has in hand, which stay with it."""
        in_hand: set[str] = set()
        for shard, members in (await _by_shard(names)).items():
            keys = [self._keys.polls(shard, provider), self._keys.due_polls(shard)]
            for group in in_parts([*members], _AT_ONCE):
                found = await self._pipe.script(_MAKE_DUE, keys, now_ms, provider, *group)
                in_hand.update(name.decode("utf-8", "replace") for name in found)
        return in_hand

    async def wake(self, accounts: Iterable[str]) -> list[Woken]:
        """Make accounts due now, so that a poll of each begins after this; at most once a second, however
        often they are woken. One that is on no schedule is missing from the answer.

        What waits for a retry goes on waiting, and the rate limit of the provider holds. Raises StoreError.
        """
        (text,) = await self._read_meta("providers")
        providers, woken = sorted(provider_names(text)), list[Woken]()
        for shard, names in (await _by_shard(accounts)).items():
            of_polls = [
                key(shard, name) for name in providers for key in (self._keys.polls, self._keys.failing)
            ]
            for part in in_parts(sorted(names), _AT_ONCE):
                keys = [self._keys.due_polls(shard), *map(self._keys.state, part), *of_polls]
                found = await self._pipe.script(_WAKE, keys, len(part), *part, *providers)
                woken += (
                    Woken(
                        part[name - 1],
                        providers[provider - 1],
                        in_ms,
                        ("turn", "poll", "retry")[waits_for],
                        read_failing(rejected) if rejected else None,
                    )
                    for name, provider, in_ms, waits_for, rejected in found
                )
        return woken

    async def _add(self, shard: int, provider: str, names: list[bytes], now_ms: int) -> int:
        """Add accounts. Returns how many were missing: another worker may add the same ones at this
        moment."""
        added = 0
        for group in in_parts(names, _AT_ONCE):
            pairs = [part for name in group for part in (now_ms, name)]
            added += await self._pipe.command("ZADD", self._keys.polls(shard, provider), "NX", *pairs)
        if names:
            await self._pipe.command("ZADD", self._keys.due_polls(shard), "LT", now_ms, provider)
        return added

    async def _remove(
        self,
        shard: int,
        provider: str,
        names: list[bytes],
        is_configured: Callable[[str], bool],
        now_ms: int,
    ) -> tuple[int, list[str]]:
        """Take accounts off a schedule, except those of the directory. Returns how many, and which of them no
        provider has any more."""
        forget_ms = now_ms + int(1000 * FORGET_ACCOUNT_AFTER.total_seconds())
        keys = [
            self._keys.polls(shard, provider),
            self._keys.failing(shard, provider),
            self._keys.removed(shard),
            self._keys.nothing(shard),
            self._keys.account_records(shard),
        ]
        count, found = 0, list[str]()
        for group in in_parts(names, _AT_ONCE):
            gone = [name for name in _texts(group) if shard_of(name) == shard and not is_configured(name)]
            others = {*group}.difference(name.encode() for name in gone)
            arguments = forget_ms, len(gone), provider, *gone, *sorted(others)
            stay = {*_texts(await self._pipe.script(_TAKE_OFF, keys, *arguments))}
            found += (name for name in gone if name not in stay)
            count += len(group) - len(stay)
        return count, found


def _texts(names: Iterable[bytes]) -> list[str]:
    return [name.decode("utf-8", "replace") for name in names]


def provider_names(text: bytes | None) -> set[str]:
    """Read which providers were ever used; if that is damaged, the keys of removed ones stay behind."""
    try:
        found = json.loads(text or b"[]")
    except (ValueError, RecursionError):
        return set()
    names = found if isinstance(found, list) else []
    return {name for name in names if isinstance(name, str) and name.isascii()}


async def _by_shard(names: Iterable[str]) -> defaultdict[int, set[str]]:
    groups = defaultdict[int, set[str]](set)
    async for name in slowly(names):
        groups[shard_of(name)].add(name)
    return groups
