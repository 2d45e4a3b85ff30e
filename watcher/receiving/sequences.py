"""What a receiver can tell from sequence numbers: whether events are missing, late, or counted anew.

Refuses to know how events arrive: it is shown those that were taken, each once.
"""

from typing import Literal

from watcher.receive import Event

Order = Literal["gap", "late", "restart", "rewound"]
"""What is odd about a sequence, within one subscription and account:
gap: events queued before this one did not arrive here (yet); late: a later one arrived before;
restart: the sender says that nothing was queued before this one; rewound: the sender has forgotten
what it queued last, as after a loss of its state."""

_KEEP = 100_000  # queues remembered: the names come from outside


class Sequences:
    """Remembers the last sequence of each (subscription, account), and says what is odd about the next."""

    def __init__(self) -> None:
        self._last_by_queue: dict[tuple[str, str], int] = {}

    def note(self, event: Event) -> Order | None:
        """Say what is odd about `event`, or None. One that is about no account, such as a ping, never is."""
        sequence = _number(event, "data", "sequence")
        previous = _number(event, "subscription", "previous_sequence")
        queue = _name(event, "subscription", "name"), _name(event, "data", "account", "name")
        if sequence is None or not queue[1]:
            return None
        last = self._last_by_queue.pop(queue, None)  # put back at the end: the front is forgotten first
        self._last_by_queue[queue] = max(sequence, last or 0)
        if len(self._last_by_queue) > _KEEP:
            del self._last_by_queue[next(iter(self._last_by_queue))]
        return None if last is None else _order(last, previous, sequence)


def _order(last: int, previous: int | None, sequence: int) -> Order | None:
    if sequence <= last:
        return "late"
    if previous is None:
        return "restart"
    if previous == last:
        return None
    return "gap" if previous > last else "rewound"


def _number(event: Event, *path: str) -> int | None:
    value = _at(event, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _name(event: Event, *path: str) -> str:
    value = _at(event, *path)
    return value if isinstance(value, str) else ""


def _at(value: object, *path: str) -> object:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
