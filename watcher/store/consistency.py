"""Finds contradictions in Redis: bodies and references, queues and schedules, sizes, indices.

An `Inventory` takes what was read of one shard, and returns what disagrees. Workers go on meanwhile, so one
inventory proves nothing: `lasting` compares several. Refuses to talk to Redis, and to repair.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile
from typing import NamedTuple

from watcher.printable import many
from watcher.store.keys import DEAD_OF, Keys, shard_of

RECORD_BYTES, DEAD_LETTER_BYTES = 80, 150
"""What a record of the log or an attempt, and a dead letter, take in addition to their content: see the
scripts."""

_REFERENCE = rb"(\S+ ([0-9]{1,14}))"
_ENTRY = re.compile(_REFERENCE + rb" (?:-|[0-9]{1,14})\Z")
_OF_EVENT = re.compile(rb"[0-9]{1,14} " + _REFERENCE + rb"\Z")
_INLINE = re.compile(rb"[0-9]{1,14} \{")
_BODY = re.compile(rb"([0-9]{1,9}) (\S+)\n")

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_SHARD = r"\{(?P<shard>[0-9]|1[0-5])\}"
_OURS = re.compile(
    rf"""(meta|breakers|workers|watch|marks|mover|keeper|verifier)
    |rate:ping:\S{{1,300}}
    |(configuration|waiting|probes|rate|rate:subscription|names):{_NAME}
    |{_SHARD}:(
        due:(polls|queues)|directory:(accounts|subscriptions|changes)|removed
        |events|bodies|sizes|backlogs|given_up|layout|nothing|trial:{_NAME}
        |(schedule:polls|schedule:queues|failing|retries|results|row|dead_letters|attempts):{_NAME}
        |(account|queued|queue:(?P<subscription>{_NAME})):(?P<account>{_NAME})
    )""",
    re.VERBOSE,
)
_LEFT = re.compile(
    rf"standings|{_SHARD}:(due|log|(moving:)?(polls|lanes|state|tries|dead|lane)(:.+)|moving:.+)", re.VERBOSE
)


class Flaw(NamedTuple):
    """A disagreement: its kind, the shard (None: no particular one), the subject, what is wrong, and how to
    fix it."""

    kind: str
    shard: int | None
    about: str
    text: str
    advice: str


class Body(NamedTuple):
    """The head of a body: how many references it counts (-1: that cannot be read), and its event's type."""

    holders: int
    type: str


class Inventory:
    """Everything that was read of one shard."""

    def __init__(self, keys: Keys, shard: int) -> None:
        self.bodies: dict[str, Body] = {}
        self.queues = 0
        self.states = 0
        self.records = 0
        self.accounts: set[str] = set()
        self.subscriptions: set[str] = set()
        """The subscriptions that the log and the directory name."""
        self._keys = keys
        self._shard = shard
        self._by_holder: Mapping[str, Counter[str]] = {
            "log": Counter(),
            "queues": Counter(),
            "dead letters": Counter(),
        }
        self._account_by_reference: dict[str, str] = {}
        self._records: dict[str, tuple[str, int]] = {}
        self._there = Counter[str]()
        self._dead_letters = Counter[str]()
        self._flaws: list[Flaw] = []
        self._is_whole = True

    @property
    def references(self) -> int:
        return sum(counter.total() for counter in self._by_holder.values())

    def body(self, reference: bytes, head: bytes) -> None:
        """Take a body: `count type` and a newline are its head."""
        match = _BODY.fullmatch(head)
        self.bodies[_text(reference)] = Body(int(match[1]), _text(match[2])) if match else Body(-1, "")

    def record(self, record_id: bytes, fields: Sequence[bytes], body_bytes: int) -> None:
        """Take a record of the log, in their order."""
        said = dict(zip(fields[::2], fields[1::2], strict=False))
        account, entry, queued = (said.get(name, b"") for name in (b"account", b"entry", b"queued"))
        match = _OF_EVENT.fullmatch(entry)
        if not match and not _INLINE.match(entry):
            self._unreadable(f"{self._keys.log(self._shard)} {_text(record_id)}")
        self.accounts.add(_text(account))
        self.subscriptions.update(line.rpartition(" ")[0] for line in _text(queued).splitlines())
        reference = self._refers("log", match[1], account) if match else ""
        size = sum(map(len, (account, entry, queued))) + body_bytes + RECORD_BYTES
        self._records[_text(record_id)] = reference, size

    def end_of_log(self, first: bytes, noted: bytes) -> None:
        """Take what was true when the last record was read: the `first` record that was left, and the noted
        size."""
        kept = dict(dropwhile(lambda item: item[0] != _text(first), self._records.items()))
        for record_id, (reference, _) in self._records.items():
            if reference and record_id not in kept:
                self._by_holder["log"][reference] -= 1
        self._size("log", sum(size for _, size in kept.values()), noted)

    def letter(self, subscription: str, letter_id: bytes, fields: Sequence[bytes], body_bytes: int) -> None:
        """Take a dead letter."""
        said = dict(zip(fields[::2], fields[1::2], strict=False))
        account, reason, entry = (said.get(name, b"") for name in (b"account", b"reason", b"delivery"))
        match = _ENTRY.fullmatch(entry)
        if match:
            self._refers("dead letters", match[1], account)
        else:
            self._unreadable(f"{self._keys.dead(self._shard, subscription)} {_text(letter_id)}")
        self._dead_letters[subscription] += 1
        self._there["dead"] += sum(map(len, (account, reason, entry))) + body_bytes + DEAD_LETTER_BYTES

    def attempt(self, _: bytes, fields: Sequence[bytes], body_bytes: int) -> None:
        """Take an attempt."""
        self._there["attempts"] += sum(map(len, fields[1::2])) + body_bytes + RECORD_BYTES

    def sizes(self, noted: Mapping[str, bytes]) -> None:
        """Take the noted sizes of all dead letters and attempts, and the noted numbers of dead letters, after
        these were taken."""
        for part in ("dead", "attempts"):
            self._size(part, self._there[part], noted.get(part, b""))
        parts = {part for part in noted if part.startswith(DEAD_OF)}
        for part in sorted(parts | {f"{DEAD_OF}{name}" for name in self._dead_letters}):
            count = self._dead_letters[part.removeprefix(DEAD_OF)]
            if self._is_whole and noted.get(part, b"0") != b"%d" % count:
                key, text = self._keys.sizes(self._shard), f"it says {_text(noted.get(part, b'0'))}"
                advice = f"`status` may count others; to correct it: HSET {key} '{part}' {count}"
                self._find("size", f"{key} {part}", f"{text}; there: {many(count, 'dead letter')}", advice)

    def queue(
        self,
        subscription: str,
        account: str,
        entries: Sequence[bytes],
        *,
        due: bytes,
        tried: bytes,
        queued: bytes,
    ) -> None:
        """Take a queue, after the bodies: what waits in it, when it is due, the failed attempts of its head,
        and the last sequence that was queued."""
        keys, shard = self._keys, self._shard
        key, schedule = keys.queue(subscription, account), keys.queues(shard, subscription)
        self.queues += bool(entries)
        if entries and not due:
            text = "what waits in it is in no schedule"
            advice = (
                "nothing is sent before the account's next event; to send it now: "
                f"ZADD {schedule} 0 {account}, then ZADD {keys.due_subscriptions(shard)} 0 {subscription}"
            )
            self._find("unscheduled", key, text, advice)
        if due and not entries:
            text = "it is scheduled, but nothing waits in it"
            self._find("empty", key, text, f"it does no harm; to end it: ZREM {schedule} {account}")
        if tried and not entries:
            tries = keys.tries(shard, subscription)
            text = "failed attempts of it are noted, but nothing waits in it"
            self._find("retry", key, text, f"it only shows in status; to end it: HDEL {tries} {account}")
        newest = 0
        for place, entry in enumerate(entries, 1):
            match = _ENTRY.fullmatch(entry)
            if match is None:
                self._unreadable(f"{key} {place}")
                continue
            body = self.bodies.get(self._refers("queues", match[1], account.encode()))
            # An event about a subscription is queued by no commit, under the name of that subscription.
            if not (body and body.type.startswith("subscription.")):
                newest = max(newest, int(match[2]))
        if queued.isdigit() and int(queued) < newest:
            key = keys.queued(account)
            text = f"{newest} waits for {subscription}, and {int(queued)} is noted as the last"
            advice = f"to correct what the next event names: HSET {key} {subscription} {newest}"
            self._find("sequence", f"{key} {subscription}", text, advice)

    def backlog(self, subscription: str, noted: bytes, count: int) -> None:
        """Take how many deliveries wait for a subscription, and how many are noted."""
        if (noted or b"0") == b"%d" % count:
            return
        key, text = self._keys.backlogs(self._shard), "the note is not a number"
        if not noted or noted.isdigit():
            more = int(noted or 0) - count  # the difference stays the same while workers go on
            text = f"it says {abs(more):,} too {'many' if more > 0 else 'few'}"
        advice = f"a running worker corrects it; otherwise: HSET {key} {subscription} {count}"
        self._find("backlog", f"{key} {subscription}", text, advice)

    def due(self, kind: str, name: str, first: bytes, indexed: bytes, *, not_after_ms: float = 0) -> None:
        """Take when the first of a schedule (of polls or queues, the `kind`) is due, and when the index says
        it is, which may be as late as `not_after_ms`."""
        if not first or (indexed and float(indexed) <= max(float(first), not_after_ms)):
            return
        keys, shard = self._keys, self._shard
        is_polls = kind == "polls"
        index = keys.due_polls(shard) if is_polls else keys.due_subscriptions(shard)
        says = f"later ({_text(indexed)})" if indexed else "nothing"
        text = f"its first is due at {_text(first)}, the index says {says}"
        advice = f"no worker looks at it; to make them look: ZADD {index} 0 {name}"
        if is_polls:
            advice = f"a running worker corrects it within seconds; otherwise: ZADD {index} 0 {name}"
        self._find("index", f"{kind} of {name}", text, advice)

    def of_directory(
        self,
        kind: str,
        name: str,
        key: str,
        *,
        version: int | None,
        last: int,
        is_polled: bool,
        is_removed: bool,
    ) -> None:
        """Take a record of the directory: its version (None: it cannot be read), that of the shard's last
        change, and of an account whether it is on a schedule or to be forgotten."""
        self.records += 1
        (self.accounts if kind == "account" else self.subscriptions).add(name)
        about, removed = f"{key} {name}", self._keys.removed(self._shard)
        if version is None:
            advice = f"workers skip it: put the {kind} again, or HDEL {key} {name}"
            self._find("record", about, "it cannot be read", advice)
        elif shard_of(name) != self._shard:
            text = f"it belongs to shard {shard_of(name)}"
            self._find("record", about, text, f"no program looks for it here: HDEL {key} {name}")
        elif version > last:
            text = f"its version, {version}, is not among the changes: the last one is {last}"
            self._find(
                "record", about, text, f"no worker follows it before its restart: put the {kind} again"
            )
        elif kind == "account" and is_removed:
            text = "it is marked to be forgotten, as if it had left the configuration"
            self._find("record", about, text, f"its state will be lost; to keep it: ZREM {removed} {name}")
        elif kind == "account" and not is_polled:
            text = "it is on no schedule of polls"
            self._find("unpolled", about, text, "a worker with its provider puts it there within seconds")

    def state(self, account: str, damage: str | None) -> None:
        """Take a state, or why it cannot be read."""
        self.states += 1
        if damage:
            key = self._keys.state(account)
            advice = f"the account is not polled; restore the key, or UNLINK {key} for a new baseline"
            self._find("state", key, f"the state is {damage}", advice)

    def damaged(self, keys: Collection[str]) -> None:
        """Take keys one of which has a type that watcher did not write."""
        names = ", ".join(keys)
        self._is_whole = False
        text = "it is of another type" if len(keys) == 1 else "one of them is of another type"
        self._find("type", names, text, "another program wrote it: UNLINK it, and name that program")

    def finish(self) -> list[Flaw]:
        """Return what disagrees, once everything is taken."""
        if not self._is_whole:  # what was not read is not missing
            return self._flaws
        key, found = self._keys.bodies(self._shard), Counter[str]()
        for counter in self._by_holder.values():
            found.update(counter)
        for reference, body in self.bodies.items():
            count, what, where = found[reference], self._named(reference), self._where(reference)
            if body.holders < 0:
                self._find("unreadable", what, f"its body cannot be read ({where})", _LOST)
            elif not count:
                text = f"nothing refers to its body, which counts {body.holders}"
                advice = f"it only takes memory; to remove it: HDEL {key} '{reference}'"
                self._find("unreferenced", what, text, advice)
            elif count != body.holders:
                text = f"its body counts {body.holders}, and {count} refer to it ({where})"
                advice = f"it may go too early: {_LOST}" if body.holders < count else _STAYS
                self._find("count", what, text, advice)
        for reference, count in found.items():
            if count > 0 and reference not in self.bodies:
                text = f"it has no body ({self._where(reference)})"
                self._find("bodiless", self._named(reference), text, _LOST)
        return self._flaws

    def _refers(self, holder: str, reference: bytes, account: bytes) -> str:
        text = _text(reference)
        self._by_holder[holder][text] += 1
        self._account_by_reference.setdefault(text, _text(account))
        return text

    def _named(self, reference: str) -> str:
        account = self._account_by_reference.get(reference)
        return f"{reference} of {account}" if account else reference

    def _where(self, reference: str) -> str:
        """Return what refers to a body: `log 1, queues 2`."""
        counts = {holder: counter[reference] for holder, counter in self._by_holder.items()}
        return ", ".join(f"{holder} {count}" for holder, count in counts.items() if count > 0)

    def _unreadable(self, what: str) -> None:
        self._find("unreadable", what, "it cannot be read", "workers skip it; please report it")

    def _size(self, part: str, there: int, noted: bytes) -> None:
        if (noted or b"0") == b"%d" % there or not self._is_whole:
            return
        key, more = self._keys.sizes(self._shard), 0
        text, advice = "the note is not a size", f"HSET {key} {part} {there}"
        if not noted or noted.isdigit():
            more = int(noted or 0) - there
            # The difference, which stays the same while workers go on.
            text = f"{abs(more):,} bytes too {'many' if more > 0 else 'few'} are noted"
            advice = f"HINCRBY {key} {part} {-more}"
        advice = f"it is trimmed too {'early' if more > 0 else 'late'}; to correct it: {advice}"
        self._find("size", f"{key} {part}", text, advice)

    def _find(self, kind: str, about: str, text: str, advice: str) -> None:
        self._flaws.append(Flaw(kind, self._shard, about, text, advice))


_STAYS = "it stays in memory for good: please report it"
_LOST = (
    "its deliveries that wait become dead letters without a body; the subscriber should compare its balances"
)


class Named(NamedTuple):
    """What the name of a key says; '' for what it does not say."""

    shard: int
    subscription: str
    account: str


def keys_of_accounts(namespace: str, keys: Iterable[str]) -> Iterator[Named]:
    """Yield the keys that belong to an account."""
    for key in keys:
        match = _OURS.fullmatch(key.removeprefix(f"{namespace}:"))
        if match and match["account"]:
            yield Named(int(match["shard"]), match["subscription"] or "", match["account"])


def strange(namespace: str, keys: Collection[str]) -> Iterator[Flaw]:
    """Return the keys of a namespace that this version does not write."""
    for key in sorted(keys):
        rest = key.removeprefix(f"{namespace}:")
        match = _OURS.fullmatch(rest)
        if _LEFT.fullmatch(rest):
            text = "layout 1, or a move from it, left it behind"
            advice = f"`watcher store layout` says whether a move is under way; if not: UNLINK {key}"
            yield Flaw("leftover", None, key, text, advice)
        elif match and match["account"] and shard_of(match["account"]) != int(match["shard"]):
            text = f"its account belongs to shard {shard_of(match['account'])}"
            yield Flaw(
                "unknown", None, key, text, f"no worker looks there; if it is not needed: UNLINK {key}"
            )
        elif not match:
            text = "watcher writes no key of this name"
            advice = f"if no other program needs it: UNLINK {key}; else give watcher a namespace of its own"
            yield Flaw("unknown", None, key, text, advice)


class Lasting(NamedTuple):
    """What all of several looks found, and how much they found in different words: that was work in
    progress."""

    flaws: list[Flaw]
    moving: int


def lasting(looks: Sequence[Sequence[Flaw]]) -> Lasting:
    """Keep of several looks what all of them found in the same words: the rest was work in progress."""
    first, *others = looks
    flaws = [flaw for flaw in dict.fromkeys(first) if all(flaw in other for other in map(set, others))]
    disputed = set.intersection(*({(flaw.kind, flaw.about) for flaw in look} for look in looks))
    return Lasting(flaws, len(disputed - {(flaw.kind, flaw.about) for flaw in flaws}))


def _text(said: bytes) -> str:
    return said.decode("utf-8", "replace")
