"""What a sink does: it sends deliveries to one subscription, and returns the result.

A sink knows its own service: it alone reads statuses and answers. What an attempt means for the delivery and
for the subscription is the same for all sinks: `judge` decides that, and is pure.
"""

import re
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeVar

from watcher.engine.breaker import FORBIDDEN_MS, LONGEST_RETRY_AFTER_MS, Answer
from watcher.journal.events import Delivery
from watcher.settings import SubscriptionSettings

ATTEMPT_TIMEOUT_S = 20
"""For a whole attempt, from the name look-up to the last byte: shorter than a queue's lease and than the
drain."""

LONGEST_RETRY_AFTER_S = LONGEST_RETRY_AFTER_MS // 1000
"""A receiver may ask for a day: its operator would not expect a longer wait."""

_SPREAD = 0.1


class Attempt(NamedTuple):
    """The result of one attempt: the status, or instead our own error and how to fix it.

    `excerpt` is the beginning of the answer, printable, at most 1 KiB; it is empty if the first attempt
    succeeded.
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
        """Why it failed, if it failed."""
        said = f"status {self.status}" if self.error is None else self.error
        return f"{said}; {self.fix}" if self.fix else said


class Target(Protocol):
    """Where and how one subscription is reached: checked and prepared once for each configuration."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> SubscriptionSettings: ...

    @property
    def most_together(self) -> int:
        """How many deliveries of a queue may go out in one attempt."""
        ...

    def together(self, deliveries: Sequence[Delivery]) -> int:
        """Return how many of these, from the first one on, fit into one attempt: from one to
        `most_together`."""
        ...


T_contra = TypeVar("T_contra", bound=Target, contravariant=True)


class Sink(Protocol[T_contra]):
    """Sends to the subscriptions of one kind."""

    async def send(self, target: T_contra, deliveries: Sequence[Delivery], attempt: int) -> Attempt:
        """Make one attempt for deliveries of one queue, in their order, as many as `together` allows. The
        first attempt has number 1.

        Ends within ATTEMPT_TIMEOUT_S. Raises nothing but bugs: whatever the service does becomes an Attempt,
        which counts for all these deliveries.
        """
        ...


class Outcome(StrEnum):
    """What an attempt means for its delivery."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"


class Verdict(NamedTuple):
    """What to do now: `wait_ms` until the next attempt of this delivery. Unless it `is_used`, the attempt
    uses up nothing of the delivery's schedule."""

    outcome: Outcome
    wait_ms: int = 0
    is_used: bool = True


DELIVERED = Verdict(Outcome.DELIVERED)
"""The verdict on every attempt that is delivered: nothing else decides it."""


def judge(
    attempt: Attempt,
    failed_before: int,
    retries: Sequence[timedelta],
    *,
    chance: float,
    is_closed: bool = True,
    is_alone: bool = False,
) -> Verdict:
    """Judge an attempt that `failed_before` others of the same delivery came before.

    `is_closed`: whether the subscription's breaker was closed all the time; `is_alone`: whether this queue is
    the only one that is sent to.

    | attempt | delivery |
    |---|---|
    | delivered | done |
    | gone | kept, until the subscription is resumed |
    | forbidden by our own policy | kept, tried every 15 minutes |
    | anything else | next on its schedule, and not before the receiver's Retry-After |
    | the last on the schedule | dead letter |
    | no answer, or a gateway's, while the breaker is not closed | kept, and nothing is used up |
    | failed, while the breaker is not closed | the same, unless the queue is alone |
    """
    answer = attempt.answer
    if answer is Answer.DELIVERED:
        return DELIVERED
    if answer is Answer.FORBIDDEN:
        return Verdict(Outcome.RETRY, FORBIDDEN_MS, is_used=False)
    is_of_one_event = answer is Answer.REJECTED or (answer is Answer.FAILED and is_alone)
    is_used = answer is not Answer.GONE and (is_closed or is_of_one_event)
    if is_used and failed_before + 1 >= len(retries):
        return Verdict(Outcome.REFUSED)
    wait = retries[-1] if answer is Answer.GONE else retries[min(failed_before + 1, len(retries) - 1)]
    spread_ms = int(1000 * wait.total_seconds() * (1 + _SPREAD * chance))  # so that retries spread
    asked_s = min(attempt.retry_after_s or 0, LONGEST_RETRY_AFTER_S)
    must_wait = is_closed or answer is Answer.SLOW_DOWN  # else the subscription backs off as long
    return Verdict(Outcome.RETRY, max(spread_ms, int(1000 * asked_s) if must_wait else 0), is_used)


_BY_STATUS = {
    400: "it may not accept the signature: give its request to `watcher verify`, which names the step",
    401: "compare the secret on both sides; `watcher verify` says which step of a verification fails",
    403: "compare the secret on both sides, and the `headers` of the subscription with what it expects",
    404: "look at the path of the subscription's url",
    405: "look at the path of the subscription's url: it accepts no POST",
    410: "it says that this URL is gone for good: set the new url, or remove the subscription",
    413: "it refuses the size of the body: allow 20 kB, which no event exceeds",
    429: "it asks for fewer requests: set requests_per_second of the subscription",
}
_BY_ERROR = (
    ("resolve", "look at the host name of the subscription's url, and at the DNS of this machine"),
    ("no connection within", "check whether the receiver listens at that port, and the firewalls in between"),
    ("cannot connect", "check whether the receiver listens at that port, and the firewalls in between"),
    ("no answer within", "answer first and work later: an attempt ends after 20 seconds"),
)
_ANY_ERROR = "look at the receiver, and at what is in front of it; a port with TLS needs https://"
_ANY_MESSAGE = "look at the subscription's url and format, and at what the service says"
_MESSAGE_BY_STATUS = {
    429: "it accepts no more for now: ping again in a minute; a worker waits as long as it asks",
}
_SERVICE_FAILS = "the service itself fails: ping again in a minute; a worker tries again on its schedule"
_BAD_REQUEST, _ANY_FAILURE = 400, 500
_BY_KIND = {
    4: "look into the receiver's log: it rejected the request",
    5: "look into the receiver's log: it failed while it handled the event",
}


def remedy(attempt: Attempt, *, is_signed: bool) -> str:
    """Return how to fix a failed attempt: of a webhook that `is_signed`, or of a message."""
    if attempt.answer is Answer.FORBIDDEN:
        return "if this address is yours, add it to [egress] allow; no byte was sent there"
    if attempt.status is None:
        found = (advice for words, advice in _BY_ERROR if words in (attempt.error or ""))
        return attempt.fix or next(found, _ANY_ERROR)
    if attempt.fix:
        return attempt.fix
    if attempt.status == _BAD_REQUEST and "https" in attempt.excerpt.lower():
        return "its port speaks TLS, as it says: write https:// in the subscription's url"
    if not is_signed:
        any_message = _SERVICE_FAILS if attempt.status >= _ANY_FAILURE else _ANY_MESSAGE
        return _MESSAGE_BY_STATUS.get(attempt.status, any_message)
    return _BY_STATUS.get(attempt.status) or _BY_KIND.get(
        attempt.status // 100, "it is not a webhook receiver"
    )


_STATUS = re.compile(r"status ([0-9]{3})")


def remedy_for(reason: str, *, is_signed: bool) -> str | None:
    """Return how to fix an attempt of which only the `reason` is known; None if the reason says it."""
    said, _, fix = reason.partition("; ")
    if fix or "[egress]" in said:
        return None
    status = _STATUS.fullmatch(said)
    attempt = Attempt(Answer.FAILED, 0, status=int(status[1]) if status else None, error=said)
    return remedy(attempt, is_signed=is_signed)
