"""What one worker did: plain counts that its loops raise, for its heartbeat line and its metrics.

They are not the types of prometheus_client: only a worker with `--http` imports that, names that are no
longer configured must not show, and a count costs a seventh.
"""

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

POLL_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From the answer of a near provider to the longest timeout in use."""

LAG_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0, 21_600.0, 86_400.0)
"""From an immediate delivery to one of the last retries."""


MOST_DELIVERED = 2_000
"""Deliveries that a worker remembers in order to show them: Redis records nothing of one that succeeds at
once."""


class Attempted(NamedTuple):
    """One attempt: when its result was known (Unix ms), its number, and its result."""

    at_ms: int
    attempt: int
    outcome: str
    status: int | None
    duration_ms: int


@dataclass(slots=True)
class Counters:
    """Counts since the worker started: those of the heartbeat line, then the same by name.

    Names are those of the configuration; texts from outside are never counted by. A duration is counted at
    the first bound that it does not exceed: `bisect_left(BOUNDS, seconds)`.
    """

    polls: int = 0
    rejected: int = 0
    changes: int = 0
    deliveries: int = 0
    retried: int = 0
    by_request: Counter[str] = field(default_factory=Counter)  # provider
    by_poll: Counter[tuple[str, str]] = field(default_factory=Counter)  # provider, outcome
    by_error_class: Counter[tuple[str, str]] = field(default_factory=Counter)  # provider, error_class
    by_change: Counter[tuple[str, str]] = field(default_factory=Counter)  # provider, type
    by_attempt: Counter[tuple[str, str]] = field(default_factory=Counter)  # subscription, outcome
    pushed_out: Counter[str] = field(default_factory=Counter)  # by subscription
    openings: Counter[str] = field(default_factory=Counter)  # of breakers, by subscription
    by_duration: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """By provider, then by the index of POLL_BOUNDS_S."""
    polling_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # provider
    by_api_request: Counter[str] = field(default_factory=Counter)  # outcome
    by_lag: Counter[int] = field(default_factory=Counter)  # index of LAG_BOUNDS_S
    lagging_s: float = 0.0
    delivered: deque[tuple[tuple[str, str], Attempted]] = field(
        default_factory=lambda: deque(maxlen=MOST_DELIVERED)
    )
    """Subscription and event, and how it was delivered: the latest, in their order."""
    attempted: dict[str, Attempted] = field(default_factory=dict)
    """By subscription, the latest."""

    def deliver(self, subscription: str, event_id: str, attempted: Attempted, lag_s: float) -> None:
        """Count an event that was delivered so long after its commit, and remember how; the one that was
        remembered longest is dropped."""
        self.deliveries += 1
        self.by_lag[bisect_left(LAG_BOUNDS_S, lag_s)] += 1
        self.lagging_s += lag_s
        self.delivered.append(((subscription, event_id), attempted))

    def since(self, before: "Counters") -> dict[str, int]:
        """Return what was added since an earlier copy, as the heartbeat line reports it."""
        return {name: getattr(self, name) - getattr(before, name) for name in _REPORTED}


def buckets(count: Callable[[int], int], bounds: Sequence[float]) -> list[tuple[str, int]]:
    """Return how many values do not exceed each bound, as Prometheus writes it; `count(i)` are those at bound
    number i."""
    names = [*map(str, bounds), "+Inf"]
    return [*zip(names, accumulate(map(count, range(len(names)))), strict=True)]


_REPORTED = ("polls", "rejected", "changes", "deliveries", "retried")
