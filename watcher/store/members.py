"""Which workers there are, and what each of them runs: noted every few seconds, while they live."""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

from watcher.pause import compute
from watcher.store.batch import load_script
from watcher.store.exceptions import StoreRefuses
from watcher.store.keys import Keys, check_count, read_count
from watcher.store.pipe import Pipe
from watcher.store.polls import damage_named
from watcher.store.state import BadState

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
        found = (_parse_presence(name.decode("utf-8", "replace"), text) for name, text in noted)
        return sorted((one for one in found if one), key=lambda one: (-one.seen_ms, one.worker))


_KEPT_APART = ("worker", "seen_ms")


def _parse_presence(worker: str, text: bytes) -> Presence | None:
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


KEEP_S = 3600
"""So long a configuration can be looked up after a worker that runs it wrote it down last."""

_MARK = load_script("mark")
_AT_ONCE = 500
_LARGEST = 64 * 1024 * 1024


class _Fields(NamedTuple):
    providers: Mapping[str, str]
    subscriptions: Mapping[str, str]
    accounts: Mapping[str, str]


_DUMPED_AT_ONCE = 1000


class Fingerprint(_Fields):
    """A configuration as digests by name: of each provider its kind and base_url, of each subscription its
    URL, of each account whom it is about, and where."""

    @cached_property
    def digest(self) -> str:
        """Name the configuration, the same in all workers that run it."""
        return blake2b(self.dump(), digest_size=8).hexdigest()

    def dump(self) -> bytes:
        """Write it down as JSON, keys in order. In parts: 100,000 accounts at once hold up all threads."""
        fields = []
        for field, text_by_name in sorted(self._asdict().items()):
            names = sorted(text_by_name)
            parts = []
            for start in range(0, len(names), _DUMPED_AT_ONCE):
                part = {name: text_by_name[name] for name in names[start : start + _DUMPED_AT_ONCE]}
                parts.append(json.dumps(part, separators=(",", ":"))[1:-1])
            fields.append(f'"{field}":{{{",".join(parts)}}}')
        return f"{{{','.join(fields)}}}".encode()

    def differing(self, other: "Fingerprint") -> list[str]:
        """Say what another configuration gives the same name and leads elsewhere: `provider loopring`."""
        return [
            f"{kind} {name}"
            for kind, ours, theirs in zip(_KINDS, self, other, strict=True)
            for name in sorted(ours.keys() & theirs.keys())
            if ours[name] != theirs[name]
        ]

    def is_same_place(self, other: "Fingerprint") -> bool:
        """Say whether another configuration polls the same accounts at the same providers, as one of the same
        deployment does; URLs of subscriptions aside."""
        if any(not line.startswith("subscription ") for line in self.differing(other)):
            return False
        return bool(self.accounts.keys() & other.accounts.keys()) or not (self.accounts or other.accounts)


_KINDS = ("provider", "subscription", "account")


class Mark(NamedTuple):
    """For which URL (its digest) a subscription's queues are filled, and which configuration says so."""

    url: str
    configuration: str


class Configurations:
    """The configurations and marks of one namespace. Methods raise StoreError."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def write(self, fingerprint: Fingerprint) -> None:
        """Let others look up what a configuration leads to."""
        key = self._keys.configuration(fingerprint.digest)
        packed = await compute(lambda: zlib.compress(fingerprint.dump(), 1))
        try:
            await self._pipe.command("SET", key, packed, "EX", KEEP_S)
        except StoreRefuses:  # a full server takes no write, and must be drained: it stands there for a while
            if await self._pipe.command("GET", key) != packed:
                raise
        await self._pipe.command("DEL", self._keys.waiting(fingerprint.digest))

    async def waited_for_since(self, digest: str, now_ms: int) -> int:
        """Note since when (Unix ms) a configuration that is gone is waited for; returns the first note since
        somebody ran it. Workers that end soon, as `run --once` does, would each begin to wait anew."""
        key, noted = self._keys.waiting(digest), None
        with suppress(StoreRefuses, BadState), damage_named():
            await self._pipe.command("SET", key, now_ms, "NX", "EX", KEEP_S)
            noted = await self._pipe.command("GET", key)
        return int(noted) if noted and noted.isdigit() else now_ms

    async def read(self, digest: str) -> Fingerprint | None:
        """Read a configuration; None where it was not written down, or cannot be read."""
        packed = None
        with suppress(BadState), damage_named():
            packed = await self._pipe.command("GET", self._keys.configuration(digest))
        return None if packed is None else await compute(_parse, packed)

    async def marks(self, subscriptions: Sequence[str]) -> dict[str, Mark]:
        """Read for which URL the queues of subscriptions are filled; of one that nobody noted, nothing."""
        found: dict[str, Mark] = {}
        with suppress(BadState), damage_named():  # whoever marks next makes them anew
            for part in _in_parts(subscriptions):
                texts = await self._pipe.command("HMGET", self._keys.marks(), *part)
                found |= {name: _mark(text) for name, text in zip(part, texts, strict=True) if text}
        return found

    async def mark(self, moves: Mapping[str, tuple[Mark | None, Mark]]) -> dict[str, Mark]:
        """Note another mark for each subscription, in the place of the one that is expected; returns what
        stands there now."""
        found: dict[str, Mark] = {}
        for part in _in_parts([*moves]):
            arguments = [
                text for name in part for text in (name, *(" ".join(one or ()) for one in moves[name]))
            ]
            texts = await self._pipe.script(_MARK, [self._keys.marks()], *arguments)
            found |= {name: _mark(text) for name, text in zip(part, texts, strict=True)}
        return found


def _in_parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE))


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
