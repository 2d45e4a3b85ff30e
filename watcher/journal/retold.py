"""Reads a record of the event log back into what was told, and checks it by itself.

Pure. Refuses to take a record on trust: an event is told again from its own account of itself, and must
come out with the same id and the same amounts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from watcher.journal.events import Origin, drafts_of, tell
from watcher.journal.explain import Change, in_atoms, in_text
from watcher.journal.ledger import Moved
from watcher.journal.record import Record
from watcher.settings import SERVICE_EVENTS
from watcher.snapshot import Asset, Balance

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


class Damaged(Exception):
    """A record that does not say what this program writes. The message never holds what it says instead."""


@dataclass(frozen=True, slots=True)
class Started:
    """Balances that start anew. `whole`: and with them the account, whatever was before."""

    sequence: int
    at_ms: int
    balance_by_asset: Mapping[str, Balance]
    whole: bool


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Assets that are no longer watched."""

    sequence: int
    at_ms: int
    assets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """An event. What moved nothing has no asset here, whatever it is about."""

    sequence: int
    at_ms: int
    id: str
    type: str
    asset: str | None = None
    before: Balance | None = None
    after: Balance | None = None


def read_back(record: Record) -> Started | Forgotten | Told:
    """Read a record. Raises Damaged."""
    content = record.content
    if not content:
        raise Damaged("it is not JSON as watcher writes it")
    try:
        at_ms = _ms(content["timestamp"])
        if content["type"] == "baseline":
            balances = {_text(asset): _started(row) for asset, row in content["assets"].items()}
            return Started(_whole(content["sequence"]), at_ms, balances, content["whole"] is True)
        if content["type"] == "forgotten":
            return Forgotten(_whole(content["sequence"]), at_ms, tuple(map(_text, content["assets"])))
        return _told(record, content["data"], at_ms)
    except _MALFORMED as error:
        raise Damaged("a part of it is missing or is no longer what it was") from error


def _told(record: Record, data: Mapping[str, Any], at_ms: int) -> Told:
    content = record.content
    sequence, event_id, type_ = _whole(data["sequence"]), _text(content["id"]), _text(content["type"])
    if type_ in SERVICE_EVENTS:
        if any(part not in ("0", None) for part in data.get("effect", {}).values()):
            raise Damaged(f"it moves something, which no {type_} does")
        return Told(sequence, at_ms, event_id, type_)
    asset = Asset(**{name: data["asset"][name] for name in Asset._fields})
    before, after, effect = (_balance_of(data[part]) for part in ("before", "after", "effect"))
    vectors = in_atoms(before), in_atoms(effect)
    change = Change(type_, max(map(abs, vectors[1])), vectors[1], vectors[0], vectors[0] + vectors[1])
    if change.after != in_atoms(after):
        raise Damaged("its before and its effect do not make its after")
    origin = Origin(record.account, _text(data["account"]["provider"]), record.follows, at_ms, at_ms)
    _compare(Moved(asset, after, change), origin, content)
    return Told(sequence, at_ms, event_id, type_, _text(asset.id), before, after)


def _compare(moved: Moved, origin: Origin, content: Mapping[str, Any]) -> None:
    """Tell a change again: the id is a digest of what it says, so that any edit of it shows."""
    (draft,) = drafts_of([moved])
    (again,) = tell([draft], origin, first_sequence=0, now_ms=0)
    if again.id != content["id"] or origin.account != content["data"]["account"]["name"]:
        raise Damaged("its id does not belong to what it says")
    said = [(part, field, text) for part in draft.says for field, text in content["data"][part].items()]
    # Only what both know: an older or newer version may have said more.
    if any(text != draft.says[part].get(field, text) for part, field, text in said):
        raise Damaged("its amounts do not belong together")
    if content["data"]["amount"] != draft.amount:
        raise Damaged("its amount is not what it moves")


def _started(row: list[Any]) -> Balance:
    balance = _balance(row)
    if in_text(in_atoms(balance), balance) != balance:
        raise ValueError("not as amounts are written")
    return balance


def _balance_of(said: Mapping[str, Any]) -> Balance:
    return _balance([said[field] for field in Balance._fields])


def _balance(row: list[Any]) -> Balance:
    total, locked, pending_deposit, pending_withdrawal = row
    pendings = (None if text is None else _text(text) for text in (pending_deposit, pending_withdrawal))
    return Balance(_text(total), _text(locked), *pendings)


def _ms(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(milliseconds=1)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError("not a whole number")
    return value
