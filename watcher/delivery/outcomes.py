"""What becomes of a delivery, and of its subscription, after an attempt: a table, with its reasons.

Pure: chance comes in. Refuses to send, to wait and to count: it is told how often the delivery failed before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

LONGEST_RETRY_AFTER_S = 86_400
"""A subscriber may ask for a day of silence; more would outlast the patience of whoever waits."""

GONE = 410
"""The receiver says that this URL is not coming back: whoever owns it has to act, so nothing more is sent."""

_SLOW_DOWN = frozenset({429, 502, 503, 504})
"""Statuses that speak for the whole receiver, not for the one event: all of its queues wait."""

_RESTS_S = (1, 2, 5, 10, 30, 60, 120, 300)
"""How long a receiver that slows us down is left alone, after each such attempt in a row; then level."""

_REFUSED_BY_US_S = 900
"""Our own policy or its DNS must change first; looking every quarter of an hour finds that early enough."""

_SPREAD = 0.1


class Outcome(Enum):
    """What an attempt was worth."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One POST as it ended: an HTTP status, or an error of ours in its place, and what mends it.

    `is_refused_by_us`: the egress policy forbids the address. `excerpt` is how the answer begins, printable,
    at most 1 KiB; it is empty where the first attempt is a success.
    """

    duration_ms: int
    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None
    is_refused_by_us: bool = False
    excerpt: str = ""
    mend: str = ""

    @property
    def reason(self) -> str:
        """Why it failed, if it did."""
        if self.error is None:
            return f"status {self.status}"
        return f"{self.error}; {self.mend}" if self.mend else self.error


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do now: `wait_ms` until the next attempt of this delivery; `rests_ms`, by its failures in a
    row, and at least `wish_ms` to leave the whole subscription alone; `pause` it until it is resumed."""

    outcome: Outcome
    reason: str = ""
    wait_ms: int = 0
    rests_ms: Sequence[int] = (0,)
    wish_ms: int = 0
    pause: bool = False


def judge(attempt: Attempt, failed_before: int, retries: Sequence[timedelta], *, chance: float) -> Verdict:
    """Judge an attempt that `failed_before` others of the same delivery came before.

    | attempt | delivery | subscription |
    |---|---|---|
    | 2xx | done | stands well again |
    | 410 | kept | paused at once |
    | refused by our own policy | kept, looked at every 15 minutes | left alone as long |
    | 429, 502, 503, 504, no answer | next on its schedule | left alone, longer each time, or as it wishes |
    | 3xx (never followed), other 4xx and 5xx | next on its schedule | goes on: it may be this one event |
    | the last on the schedule | dead letter | goes on |
    """
    reason = attempt.reason
    wish_ms = int(1000 * min(attempt.retry_after_s or 0, LONGEST_RETRY_AFTER_S))
    if attempt.status is not None and 200 <= attempt.status < 300:
        return Verdict(Outcome.DELIVERED)
    if attempt.is_refused_by_us:
        rest_ms = 1000 * _REFUSED_BY_US_S
        return Verdict(Outcome.RETRY, reason, rest_ms, (rest_ms,))
    is_slow = attempt.status is None or attempt.status in _SLOW_DOWN
    rests_ms = tuple(1000 * rest_s for rest_s in _RESTS_S) if is_slow else (0,)
    wish_ms = wish_ms if is_slow else 0
    is_last = failed_before + 1 >= len(retries)
    if attempt.status == GONE:
        return Verdict(Outcome.RETRY, reason, _wait_ms(retries[-1], chance), pause=True)
    if is_last:
        return Verdict(Outcome.REFUSED, reason, 0, rests_ms, wish_ms)
    wait_ms = max(_wait_ms(retries[failed_before + 1], chance), wish_ms)
    return Verdict(Outcome.RETRY, reason, wait_ms, rests_ms, wish_ms)


def _wait_ms(wait: timedelta, chance: float) -> int:
    """Spread those who would wait equally long."""
    return int(1000 * wait.total_seconds() * (1 + _SPREAD * chance))
