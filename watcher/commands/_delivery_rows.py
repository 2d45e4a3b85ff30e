"""One delivery, dead letter or attempt as `watcher deliveries` prints it: an object, or the cells of a row.

Refuses to show text from outside as it came: control characters are escaped.
"""

from typing import Any

from watcher.commands._table import age_text
from watcher.journal.events import Delivery, iso
from watcher.printable import printable
from watcher.store.queues import Breaker
from watcher.store.reader import DeadLetter, Queue

COLUMNS_BY_KIND = {
    "waiting": ("subscription", "account", "place", "event", "type", "sequence", "age", "failed", "due"),
    "dead": ("subscription", "account", "event", "type", "sequence", "given up", "reason"),
    "attempts": ("subscription", "account", "event", "attempt", "when", "took", "outcome", "answer"),
}
NUMBERS_BY_KIND = {"waiting": (2, 5, 7), "dead": (4,), "attempts": (3, 5)}

Row = dict[str, Any]


def waiting_row(
    name: str,
    queue: Queue,
    position: int,
    delivery: Delivery | None,
    *,
    breaker: Breaker | None,
    now_ms: int,
) -> Row:
    """Say what waits at one position of a queue, counted from 1; the first is what its queue waits for."""
    is_paused = bool(breaker and breaker.paused_at_ms)
    due_ms = max(queue.due_ms, breaker.open_until_ms if breaker else 0)
    is_foreseen = position == 1 and not is_paused
    return {
        "kind": "waiting",
        "subscription": name,
        "account": queue.account,
        "position": position,
        **_event(delivery),
        "age_s": max(0, now_ms - delivery.sequence) // 1000 if delivery else None,
        "failed_attempts": queue.tries if delivery and delivery.head == queue.tried else 0,
        "due_at": iso(due_ms) if is_foreseen else None,
        "due_in_s": max(0, due_ms - now_ms) // 1000 if is_foreseen else None,
        "paused": is_paused,
    }


def letter_row(name: str, letter: DeadLetter, now_ms: int) -> Row:
    return {
        "kind": "dead",
        "subscription": name,
        "account": letter.account,
        **_event(letter.delivery),
        "given_up_at": iso(letter.at_ms),
        "age_s": max(0, now_ms - letter.at_ms) // 1000,
        "reason": letter.reason,
    }


def cells(row: Row) -> list[str]:
    owner = [printable(row["subscription"]), printable(row["account"])]
    if row["kind"] == "attempt":
        return [*owner, *_attempt_cells(row)]
    event = [_text(row[key]) for key in ("event_id", "event_type", "sequence")]
    if row["kind"] == "dead":
        return [*owner, *event, f"{age_text(1000 * row['age_s'])} ago", printable(row["reason"])]
    age = "-" if row["age_s"] is None else age_text(1000 * row["age_s"])
    return [*owner, str(row["position"]), *event, age, str(row["failed_attempts"] or ""), _due(row)]


def _due(row: Row) -> str:
    if row["position"] > 1:
        return ""
    if row["paused"]:
        return "paused"
    return f"in {age_text(1000 * row['due_in_s'])}" if row["due_in_s"] else "now"


def _attempt_cells(row: Row) -> list[str]:
    answer = _text(row["status"] if row["error"] is None else row["error"])
    says = f": {_text(row['answer'])}" if row["answer"] else ""
    return [
        _text(row["event_id"]),
        _text(row["attempt"]),
        f"{age_text(1000 * row['age_s'])} ago",
        f"{_text(row['duration_ms'])} ms",
        _text(row["outcome"]),
        f"{answer}{says}",
    ]


def _text(value: object) -> str:
    return printable(str(value)) if isinstance(value, str | int) else "-"


def _event(delivery: Delivery | None) -> Row:
    if delivery is None:
        return {"event_id": None, "event_type": None, "sequence": None}
    return {"event_id": delivery.event_id, "event_type": delivery.type, "sequence": delivery.sequence}
