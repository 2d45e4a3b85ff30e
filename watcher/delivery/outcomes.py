"""What happens to a delivery, and to its subscription, after an attempt.

Pure: chance, and how often the delivery failed before, come in. The sink has read the answer already.
"""

from collections.abc import Sequence
from datetime import timedelta
from enum import Enum
from typing import NamedTuple

from watcher.delivery.sink import LONGEST_RETRY_AFTER_S, Attempt
from watcher.engine.breaker import RULES, Answer, Failure

_SPREAD = 0.1


class Outcome(Enum):
    """What an attempt was worth."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"


class Verdict(NamedTuple):
    """What to do now: `wait_ms` until the next attempt of this delivery; what `failure` says of the
    subscription."""

    outcome: Outcome
    wait_ms: int = 0
    failure: Failure = Failure("")


def judge(attempt: Attempt, failed_before: int, retries: Sequence[timedelta], *, chance: float) -> Verdict:
    """Judge an attempt that `failed_before` others of the same delivery came before.

    | attempt | delivery | subscription |
    |---|---|---|
    | delivered | done | well again    |
    | gone | kept | paused at once |
    | forbidden by our own policy | kept, tried every 15 minutes | backing off as long |
    | slow down, no answer | next on its schedule | backing off, longer each time, or as it asks |
    | rejected | next on its schedule | goes on: it may be this one event |
    | the last on the schedule | dead letter | as above |
    """
    if attempt.answer is Answer.DELIVERED:
        return Verdict(Outcome.DELIVERED)
    rule = RULES[attempt.answer]
    asked_s = min(attempt.retry_after_s or 0, LONGEST_RETRY_AFTER_S) if rule.obeys_retry_after else 0
    failure = Failure(attempt.reason, rule, int(1000 * asked_s))
    if attempt.answer is Answer.FORBIDDEN:
        return Verdict(Outcome.RETRY, rule.waits_ms[0], failure)
    is_last = failed_before + 1 >= len(retries)
    if is_last and not rule.pauses:
        return Verdict(Outcome.REFUSED, 0, failure)
    wait = retries[-1] if rule.pauses else retries[failed_before + 1]
    spread_ms = int(1000 * wait.total_seconds() * (1 + _SPREAD * chance))  # not all at the same moment
    return Verdict(Outcome.RETRY, max(spread_ms, failure.retry_after_ms), failure)
