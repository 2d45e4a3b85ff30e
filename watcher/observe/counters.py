"""What one worker did: plain counts that its loops raise, for its heartbeat line and its metrics.

Not the types of prometheus_client: only a worker with `--http` imports that, names that are no longer
configured must not show, and a count costs a seventh.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

POLL_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From a provider next door to the longest timeout in use."""

LAG_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0, 21_600.0, 86_400.0)
"""From a delivery at once to one of the last retries."""


class Spread:
    """How values are spread: how many fell below each bound and above the one before it, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, int]]:
        """How many values do not exceed each bound, as Prometheus writes it."""
        return [*zip([*map(str, self.bounds), "+Inf"], accumulate(self.counts), strict=True)]


@dataclass(slots=True)
class Counters:
    """Counts since the worker started: those of the heartbeat line, then the same by name.

    Names are those of the configuration; texts from outside are never counted by.
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
    poll_s: defaultdict[str, Spread] = field(
        default_factory=partial(defaultdict, partial(Spread, POLL_BOUNDS_S))
    )
    lag_s: Spread = field(default_factory=lambda: Spread(LAG_BOUNDS_S))

    def polled(self, provider: str, outcome: str, seconds: float) -> None:
        """Note how a poll ended: committed, unchanged, rejected, discarded or quarantined."""
        self.by_poll[provider, outcome] += 1
        self.poll_s[provider].add(seconds)

    def since(self, before: "Counters") -> dict[str, int]:
        """Return what was added since an earlier copy, as the heartbeat line reports it."""
        return {name: getattr(self, name) - getattr(before, name) for name in _REPORTED}


_REPORTED = ("polls", "rejected", "changes", "deliveries", "retried")
