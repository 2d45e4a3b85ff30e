"""What `watcher listen` says of each attempt that it takes, and in the end of all.

Refuses to show text from outside as it came: control characters are escaped.
"""

import json
from collections import Counter
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from watcher.plurals import many
from watcher.printable import printable

if TYPE_CHECKING:
    from watcher.receiver import Receipt

_ORDER = {
    "gap": "gap: #{previous} was queued before it and is not here",
    "late": "out of order: a later one is here already",
    "restart": "the sender starts anew: nothing was queued before it",
    "rewound": "the sender went back to #{previous}: it has lost what it queued since",
}


def as_text(receipt: "Receipt", now: float) -> str:
    at = f"{datetime.fromtimestamp(now).astimezone():%H:%M:%S}"
    if receipt.event is None:
        return f"{at}  refused: {receipt.problem}{_saved(receipt)}"
    event = receipt.event
    data, asset = _part(event, "data"), _part(event, "data", "asset")
    columns = [
        f"{_text(event.get('type')):<21}",
        f"{_text(_part(event, 'data', 'account').get('name')):<16}",
        f"{_text(asset.get('symbol') or asset.get('id')):<6}",
        f"{_text(data.get('amount')):>14}",
        f"{_effect(_part(event, 'data', 'effect')):<32}",
        f"#{_text(data.get('sequence'))}",
        "; ".join(_notes(receipt)) + _saved(receipt),
    ]
    return "  ".join([at, *columns])


def _saved(receipt: "Receipt") -> str:
    return f"; saved as {receipt.captured}" if receipt.captured else ""


def _notes(receipt: "Receipt") -> list[str]:
    notes = ["verified" if receipt.is_verified else "not verified: no secret was given"]
    if receipt.attempt > 1:
        notes.append(f"attempt {receipt.attempt} here")
    if receipt.is_repeat:
        notes.append("a repeat")
    if not receipt.is_taken:
        notes.append(f"answered {receipt.status}")
    if receipt.forwarded and not receipt.is_taken:
        notes.append(receipt.forwarded)
    if receipt.order:
        previous = _part(receipt.event, "subscription").get("previous_sequence")
        notes.append(_ORDER[receipt.order].format(previous=_text(previous)))
    return notes


def _effect(effect: dict[str, Any]) -> str:
    moved = {field: amount for field, amount in effect.items() if amount not in ("0", None)}
    return (
        ", ".join(f"{_text(field)} {_signed(_text(amount))}" for field, amount in moved.items())
        or "no effect"
    )


def _signed(amount: str) -> str:
    return amount if amount.startswith("-") else f"+{amount}"


def as_json(receipt: "Receipt") -> str:
    problem = receipt.problem
    told = {
        "verified": receipt.is_verified,
        "status": receipt.status,
        "attempt": receipt.attempt,
        "repeat": receipt.is_repeat,
        "order": receipt.order,
        "forwarded": receipt.forwarded,
        "saved": receipt.captured,
        "problem": {"step": problem.step, "detail": problem.detail} if problem else None,
        "event": receipt.event,
    }
    return json.dumps(told, default=str)  # ASCII alone, every control character escaped


def facts(receipt: "Receipt") -> list[str]:
    if receipt.event is None:
        return ["refused"]
    if not receipt.is_taken:
        return ["failed"]
    return ["repeats" if receipt.is_repeat else "events", *([receipt.order] if receipt.order else [])]


def summary(told: Counter[str]) -> str:
    restarts = many(told["restart"] + told["rewound"], "restart")
    return (
        f"took {many(told['events'], 'event')}; {many(told['repeats'], 'repeat')}, "
        f"{many(told['gap'], 'gap')}, {told['late']} out of order, {restarts}, "
        f"{told['failed']} not answered with 2xx, {told['refused']} refused"
    )


def _text(value: object) -> str:
    """Show text and numbers; what is neither has no place in a line, and its repr may be of any size."""
    return printable(str(value)) if isinstance(value, str | int | Decimal) else "-"


def _part(event: object, *path: str) -> dict[str, Any]:
    for key in path:
        event = event.get(key) if isinstance(event, dict) else None
    return event if isinstance(event, dict) else {}
