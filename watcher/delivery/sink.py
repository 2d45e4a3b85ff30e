"""What a sink does: it brings one delivery to one subscription, and says what became of it.

A sink knows its own service: it alone reads statuses and answers, and translates them. What an attempt
means for the delivery and for its subscription is the same for all sinks: `judge` says it, and is pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

from watcher.engine.breaker import RULES, Answer, Failure
from watcher.journal.events import Delivery
from watcher.settings import SubscriptionSettings

ATTEMPT_TIMEOUT_S = 20
"""A whole attempt, name look-up to last byte. Shorter than a queue's lease and than the drain."""

LONGEST_RETRY_AFTER_S = 86_400
"""A receiver may ask for a day of silence; more would outlast the patience of its operator."""

_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt as it ended: what it says, by a status, or an error of ours in its place and what fixes it.

    `excerpt` is how the answer begins, printable, at most 1 KiB; it is empty where the first attempt is a
    success.
    """

    answer: Answer
    duration_ms: int
    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None
    excerpt: str = ""
    fix: str = ""

    @property
    def reason(self) -> str:
        """Why it failed, if it did."""
        said = f"status {self.status}" if self.error is None else self.error
        return f"{said}; {self.fix}" if self.fix else said


class Target(Protocol):
    """Where and how one subscription is reached: checked and prepared once per configuration."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> SubscriptionSettings: ...


T_contra = TypeVar("T_contra", bound=Target, contravariant=True)


class Sink(Protocol[T_contra]):
    """A way to subscriptions of one kind."""

    async def send(self, target: T_contra, delivery: Delivery, attempt: int) -> Attempt:
        """Make one attempt, the first has number 1. Ends within ATTEMPT_TIMEOUT_S, and raises nothing but
        what is a bug: whatever the service does comes back as an Attempt."""
        ...


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
