"""Makes events of what happened: each has an id, a sequence and exact bytes, and is never edited again.

Pure: time comes in. Refuses to know which subscriptions want it (`interest` does) and how it reaches them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from itertools import product
from typing import Any, NamedTuple

import orjson

from watcher.amounts import to_atoms, to_text
from watcher.journal.account import Moved
from watcher.snapshot import LOST, Asset, Balance

_ENTRY = re.compile(rb"([!-~]+) (0|[1-9][0-9]{0,13}) (-|0|[1-9][0-9]{0,13})")
"""A delivery in its queue. More digits than a time in ms has until the year 5138 could not be sent."""

_PAIRS = ["".join(pair) for pair in product("abcdefghijklmnopqrstuvwxyz234567", repeat=2)]
"""What ten bits are in base 32, in small letters."""

_MILLISECONDS = [f".{ms:03d}Z" for ms in range(1000)]
"""How a time ends, by its milliseconds."""


class Origin(NamedTuple):
    """Whose events these are, and the two readings that they lie between (Unix ms)."""

    account: str | None
    provider: str | None
    sequence: int
    observed_from_ms: int
    observed_to_ms: int


class Draft(NamedTuple):
    """What an event is to say. `identity` distinguishes it from all others of the same type and commit.
    `asset` is None for what concerns a whole account; `only_for` is the one subscription that it is for."""

    type: str
    asset: Asset | None
    amount: str
    says: Mapping[str, Any]
    identity: tuple[str | None, ...]
    only_for: str | None = None


class Event(NamedTuple):
    """Something that happened, ready to be sent. `json` is its body but for the subscription's part."""

    id: str
    type: str
    account: str | None
    asset: Asset | None
    amount: str
    sequence: int
    json: bytes
    only_for: str | None = None

    @property
    def reference(self) -> str:
        """Its name in Redis. An id alone may occur twice with other bytes: a baseline whose state was
        deleted, and that is the same again."""
        return f"{self.id} {self.sequence}"

    @property
    def stored(self) -> bytes:
        """What Redis holds of it, once for all subscriptions: its type, and its JSON up to `subscription`."""
        return b"%b\n%b" % (self.type.encode(), self.json[:-1])

    @property
    def is_logged(self) -> bool:
        """Whether the log has a record of it even if no subscription gets it: the record of a start says what
        `account.baseline` does."""
        return self.type != "account.baseline"

    def to(self, subscription: str, previous: int | None = None) -> "Delivery":
        """Make the delivery of it to a subscription that got the sequence `previous` before, if any."""
        return Delivery(self.id, self.type, self.sequence, self.json[:-1], subscription, previous)


def drafts_of(moved: Iterable[Moved]) -> Iterator[Draft]:
    """Draft the event of each change."""
    for asset, type_, amount, effect, before, after in moved:
        says = {"effect": effect._asdict(), "before": amounts_of(before), "after": amounts_of(after)}
        yield Draft(type_, asset, amount, says, (*before, *after))


def events_of(
    drafts: Iterable[Draft], origin: Origin, *, first_sequence: int, now_ms: int
) -> tuple[Event, ...]:
    """Make events of drafts, in their order. `origin.sequence` is that of the state they start from.

    The id is a digest of the content and of that state: a worker that computes the same event again, after
    a crash or a rollback, computes the same id.
    """
    account = origin.account and {"name": origin.account, "provider": origin.provider}
    observed = {"from": iso(origin.observed_from_ms), "to": iso(origin.observed_to_ms)}
    timestamp = iso(now_ms)
    events = []
    for sequence, (type_, asset, amount, says, identity, only_for) in enumerate(drafts, first_sequence):
        asset_id = asset.id if asset else None
        content = (origin.provider, origin.account, origin.sequence, type_, asset_id, *identity)
        number = int.from_bytes(sha256(orjson.dumps(content)).digest()[:15], "big")
        event_id = "evt_" + "".join([_PAIRS[number >> bits & 1023] for bits in range(110, -1, -10)])
        data = {
            "account": account,
            "asset": asset and shown(asset),
            "sequence": sequence,
            "amount": amount,
            **says,
            "observed": observed,
        }
        body = orjson.dumps({"id": event_id, "type": type_, "timestamp": timestamp, "data": data})
        events.append(Event(event_id, type_, origin.account, asset, amount, sequence, body, only_for))
    return tuple(events)


def shown(asset: Asset) -> dict[str, Any]:
    """Give an asset as events do: decimals that are lost are not known."""
    asset_id, symbol, name, decimals = asset
    return {
        "id": asset_id,
        "symbol": symbol,
        "name": name,
        "decimals": None if decimals == LOST else decimals,
    }


def iso(unix_ms: int) -> str:
    """Write a time as ISO 8601 in UTC with milliseconds."""
    return _iso(unix_ms // 1000) + _MILLISECONDS[unix_ms % 1000]


@lru_cache
def _iso(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


def amounts_of(balance: Balance) -> dict[str, str | None]:
    """Write a balance as events do, with what is available of it."""
    total, locked, deposit, withdrawal = balance
    return {
        "total": total,
        "locked": locked,
        "available": total if locked == "0" else to_text(to_atoms(total) - to_atoms(locked)),
        "pending_deposit": deposit,
        "pending_withdrawal": withdrawal,
    }


class Delivery(NamedTuple):
    """The duty to get one event to one subscription. `content` is its JSON up to `subscription`; `previous`
    is the sequence of the delivery before it in its queue, None for the first one ever.
    """

    event_id: str
    type: str
    sequence: int
    content: bytes
    subscription: str
    previous: int | None = None

    @property
    def reference(self) -> str:
        """As `Event.reference`."""
        return f"{self.event_id} {self.sequence}"

    @property
    def entry(self) -> bytes:
        """As it waits in its queue: `id sequence previous`, where `-` is none."""
        previous = "-" if self.previous is None else self.previous
        return f"{self.reference} {previous}".encode()

    @property
    def stored(self) -> bytes:
        """As `Event.stored`."""
        return b"%b\n%b" % (self.type.encode(), self.content)

    @property
    def body(self) -> bytes:
        """The exact bytes that are signed and sent: the same on every attempt."""
        tail = {"subscription": {"name": self.subscription, "previous_sequence": self.previous}}
        return self.content + b"," + orjson.dumps(tail)[1:]


def load_delivery(entry: bytes, stored: bytes, subscription: str) -> Delivery:
    """Read a queue's entry, and what Redis holds of its event: count and type, a newline, and the JSON.

    Raises ValueError on anything that watcher did not write.
    """
    named = _ENTRY.fullmatch(entry)
    if not named:
        raise ValueError("not the name of a delivery")
    head, _, content = stored.partition(b"\n")
    type_ = head.partition(b" ")[2].decode("ascii")
    if not type_ or not content:
        raise ValueError("a delivery without a body")
    event_id, sequence, previous = named.groups()
    before = None if previous == b"-" else int(previous)
    return Delivery(event_id.decode("ascii"), type_, int(sequence), content, subscription, before)
