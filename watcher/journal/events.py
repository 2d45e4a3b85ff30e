"""Makes events of what happened: each has an id, a sequence and exact bytes, and is never edited again.

Pure: time comes in. Refuses to know which subscriptions want it (`interest` does) and how it gets there.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from watcher.amounts import Conversions
from watcher.journal.account import Moved
from watcher.journal.explain import in_text
from watcher.snapshot import Asset, Balance


class Origin(NamedTuple):
    """Whose events these are, and the two readings that they lie between (Unix ms)."""

    account: str | None
    provider: str | None
    sequence: int
    observed_from_ms: int
    observed_to_ms: int


class Draft(NamedTuple):
    """What an event is to say. `identity` sets it apart from all others of the same type and commit.

    `asset` is None for what concerns a whole account; `only_for` names the one subscription it is for.
    """

    type: str
    asset: Asset | None
    amount: str
    says: Mapping[str, Any]
    identity: tuple[str | None, ...]
    only_for: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, ready to be sent. `json` is its body but for the subscription's part."""

    id: str
    type: str
    account: str | None
    asset: Asset | None
    amount: str
    sequence: int
    json: bytes
    only_for: str | None = None

    def body(self, subscription: str, previous_sequence: int | None) -> bytes:
        """Say the exact bytes for one subscription: what is signed is what is sent, on every attempt."""
        tail = {"subscription": {"name": subscription, "previous_sequence": previous_sequence}}
        return self.json[:-1] + b"," + orjson.dumps(tail)[1:]


def drafts_of(moved: Iterable[Moved], conversions: Conversions) -> Iterator[Draft]:
    """Draft the event of each change."""
    for asset, like, change in moved:
        before, effect, after = (
            in_text(vector, like, conversions.text) for vector in (change.before, change.effect, change.after)
        )
        says = {
            "effect": effect._asdict(),
            "before": amounts_of(before, conversions),
            "after": amounts_of(after, conversions),
        }
        yield Draft(change.type, asset, conversions.text(change.amount), says, (*before, *after))


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
        digest = sha256(orjson.dumps(content)).digest()
        event_id = "evt_" + base64.b32encode(digest[:15]).decode().lower()
        data = {
            "account": account,
            "asset": asset and asset._asdict(),
            "sequence": sequence,
            "amount": amount,
            **says,
            "observed": observed,
        }
        body = orjson.dumps({"id": event_id, "type": type_, "timestamp": timestamp, "data": data})
        events.append(Event(event_id, type_, origin.account, asset, amount, sequence, body, only_for))
    return tuple(events)


def iso(unix_ms: int) -> str:
    """Write a time as ISO 8601 in UTC with milliseconds."""
    second, ms = divmod(unix_ms, 1000)
    return f"{datetime.fromtimestamp(second, UTC).isoformat()[:19]}.{ms:03d}Z"


def amounts_of(balance: Balance, conversions: Conversions) -> dict[str, str | None]:
    """Write a balance as events do, with what is available of it."""
    available = conversions.atoms(balance.total) - conversions.atoms(balance.locked)
    return {
        "total": balance.total,
        "locked": balance.locked,
        "available": conversions.text(available),
        "pending_deposit": balance.pending_deposit,
        "pending_withdrawal": balance.pending_withdrawal,
    }


@dataclass(frozen=True, slots=True)
class Delivery:
    """The duty to get one event to one subscription. `head` names it inside its queue."""

    event_id: str
    type: str
    sequence: int
    body: bytes

    @property
    def head(self) -> bytes:
        return f"{self.event_id} {self.sequence} {self.type}\n".encode()

    def dump(self) -> bytes:
        return self.head + self.body


def load_delivery(entry: bytes) -> Delivery:
    """Read a queue's entry. Raises ValueError on anything that `Delivery.dump` did not write."""
    head, newline, body = entry.partition(b"\n")
    event_id, sequence, event_type = head.decode("ascii").split(" ")
    if not newline or not body:
        raise ValueError("a delivery without a body")
    delivery = Delivery(event_id, event_type, int(sequence), body)
    if delivery.head != head + newline:  # int() reads `1_0` too, and no settling would ever find it
        raise ValueError("a delivery under another name")
    return delivery
