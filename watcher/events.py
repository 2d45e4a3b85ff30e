"""Changes made tellable: an event has an id, a sequence and exact bytes, and is never edited again.

Pure: time comes in. Refuses to know who hears it (`interest` does) and how it gets there.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from watcher.journal import Change, Vector, in_text
from watcher.ledger import Moved
from watcher.snapshot import Balance


class Origin(NamedTuple):
    """Whose events these are, and the two readings that they lie between (Unix ms)."""

    account: str
    provider: str
    sequence: int
    observed_from_ms: int
    observed_to_ms: int


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one asset, ready to be sent. `json` is its body but for the subscription's part."""

    id: str
    type: str
    account: str
    asset_id: str
    symbol: str | None
    amount: str
    sequence: int
    json: bytes

    def body(self, subscription: str, previous_sequence: int | None) -> bytes:
        """Say the exact bytes for one subscription: what is signed is what is sent, on every attempt."""
        tail = {"subscription": {"name": subscription, "previous_sequence": previous_sequence}}
        return self.json[:-1] + b"," + orjson.dumps(tail)[1:]


def tell(moved: Iterable[Moved], origin: Origin, *, first_sequence: int, now_ms: int) -> tuple[Event, ...]:
    """Make events of changes, in their order. `origin.sequence` is that of the state they start from.

    The id is derived from the content and from that state: whoever computes the same event again, after
    a crash or a rollback, computes the same id.
    """
    return tuple(_event(one, origin, first_sequence + i, now_ms) for i, one in enumerate(moved))


def iso(unix_ms: int) -> str:
    """Write a time as ISO 8601 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{unix_ms % 1000:03d}Z"


def _event(moved: Moved, origin: Origin, sequence: int, now_ms: int) -> Event:
    asset, like, change = moved
    event_id = _event_id(moved, origin)
    amount = in_text(Vector(total=change.amount), Balance("", "", "", "")).total
    data: dict[str, Any] = {
        "account": {"name": origin.account, "provider": origin.provider},
        "asset": {"id": asset.id, "symbol": asset.symbol, "name": asset.name, "decimals": asset.decimals},
        "sequence": sequence,
        "amount": amount,
        "effect": in_text(change.effect, like)._asdict(),
        "before": _told(change.before, like),
        "after": _told(change.after, like),
        "observed": {"from": iso(origin.observed_from_ms), "to": iso(origin.observed_to_ms)},
    }
    whole = {"id": event_id, "type": change.type, "timestamp": iso(now_ms), "data": data}
    return Event(
        event_id, change.type, origin.account, asset.id, asset.symbol, amount, sequence, orjson.dumps(whole)
    )


def _event_id(moved: Moved, origin: Origin) -> str:
    change: Change = moved.change
    content = (
        origin.provider,
        origin.account,
        origin.sequence,
        change.type,
        moved.asset.id,
        *in_text(change.before, moved.like),
        *in_text(change.after, moved.like),
    )
    digest = sha256(orjson.dumps(content)).digest()
    return "evt_" + base64.b32encode(digest[:15]).decode().lower()


def _told(vector: Vector, like: Balance) -> dict[str, str | None]:
    balance = in_text(vector, like)
    available = in_text(Vector(total=vector.total - vector.locked), like).total
    return {
        "total": balance.total,
        "locked": balance.locked,
        "available": available,
        "pending_deposit": balance.pending_deposit,
        "pending_withdrawal": balance.pending_withdrawal,
    }
