"""What becomes of a delivery after an attempt: a table, with its reasons. Pure: chance comes in.

Refuses to send, to wait and to count: it is told how often the delivery failed before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

LONGEST_RETRY_AFTER_S = 86_400
"""A subscriber may ask for a day of silence; more would outlast the patience of whoever waits."""

SLOW_DOWN = frozenset({429, 502, 503, 504})
"""Statuses that speak for the whole subscriber, not for the one event: everybody there waits."""

_SPREAD = 0.1


class Outcome(Enum):
    """What an attempt was worth. STYLE: an expected outcome is a value, not an exception."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One POST as it ended: an HTTP status, or an error of ours in its place."""

    duration_ms: int
    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`wait_ms` until the next attempt (RETRY); `hold_ms` for the whole subscription, 0 if only this lane."""

    outcome: Outcome
    reason: str = ""
    wait_ms: int = 0
    hold_ms: int = 0


def judge(attempt: Attempt, failed_before: int, retries: Sequence[timedelta], *, chance: float) -> Verdict:
    """Judge an attempt that `failed_before` others of the same delivery came before.

    2xx is success, nothing else: a redirect is a misconfigured URL and is never followed. Everything
    else is tried again on the subscription's schedule, as even a 4xx may be a deployment gone wrong;
    when the schedule is over, the delivery becomes a dead letter.
    """
    if attempt.status is not None and 200 <= attempt.status < 300:
        return Verdict(Outcome.DELIVERED)
    reason = attempt.error or f"status {attempt.status}"
    if failed_before + 1 >= len(retries):
        return Verdict(Outcome.REFUSED, reason)
    wait_s = retries[failed_before + 1].total_seconds() * (1 + _SPREAD * chance)
    asked_s = min(attempt.retry_after_s or 0, LONGEST_RETRY_AFTER_S)
    hold_s = asked_s if attempt.status in SLOW_DOWN else 0
    return Verdict(Outcome.RETRY, reason, int(1000 * max(wait_s, asked_s)), int(1000 * hold_s))
