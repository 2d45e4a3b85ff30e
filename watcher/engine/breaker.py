"""Circuit breakers: whether a receiver or a provider that fails is asked, when again, and how much at a time.

Pure: times come in, and the rules are a table. A subscription's breaker is shared by all workers
(`store.queues` writes a decision of this module as one step); a provider's is one worker's own.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import NamedTuple

from watcher.providers.contract import PERMANENT, Rejected
from watcher.store.queues import Breaker


class State(Enum):
    """What a breaker lets through: all, nothing for a while, one probe at a time, nothing until resumed."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    PAUSED = "paused"


class Answer(Enum):
    """What an attempt says of the receiver, or of the one event."""

    DELIVERED = "delivered"
    REJECTED = "rejected"
    """It may be this one event."""
    SLOW_DOWN = "slow down"
    """The receiver is overloaded, or its gateway cannot reach it."""
    NO_ANSWER = "no answer"
    FORBIDDEN = "forbidden"
    """Our own policy forbids its address. Nothing was sent."""
    GONE = "gone"
    """The receiver says that it is not coming back: its owner has to act."""


class Rule(NamedTuple):
    """What a failure does to its subscription.

    The breaker opens for `waits_ms` after the first failure in a row, the second, ..., then level. If it
    `obeys_retry_after`, it opens for as long as the receiver asks for, if that is longer. If it `pauses`,
    nothing is sent until an operator resumes the subscription.
    """

    waits_ms: tuple[int, ...] = (0,)
    obeys_retry_after: bool = False
    pauses: bool = False


_BACK_OFF = Rule((1000, 2000, 5000, 10_000, 30_000, 60_000, 120_000, 300_000), obeys_retry_after=True)

RULES: Mapping[Answer, Rule] = {
    Answer.REJECTED: Rule(),
    Answer.SLOW_DOWN: _BACK_OFF,
    Answer.NO_ANSWER: _BACK_OFF,
    # Our policy or its DNS must change first; looking every quarter of an hour finds that early enough.
    Answer.FORBIDDEN: Rule((900_000,)),
    Answer.GONE: Rule(pauses=True),
}

HALF_OPEN_FROM = 3
"""After so many failures in a row, or after it was open, one queue at a time goes out, over all workers,
until one is delivered: no stampede."""

PATIENCE = timedelta(days=5)
"""A subscription that fails everything for so long is paused."""

REPORT_MS = 5_000
"""How long a worker that is to report a pause has for it; then any other worker reports it."""

SHARED = 0.8
"""The last fifth of what a worker can bear is for healthy subscriptions that have nothing in flight: a
thousand that hang must leave room for the one that does not."""


class Failure(NamedTuple):
    """What a failed attempt says of its subscription. `retry_after_ms`: what the receiver asks for."""

    reason: str
    rule: Rule = Rule()
    retry_after_ms: int = 0


def state(breaker: Breaker | None, now_ms: float) -> State:
    """Say what a subscription's breaker lets through."""
    if breaker is None:
        return State.CLOSED
    if breaker.paused_at_ms:
        return State.PAUSED
    if now_ms < breaker.open_until_ms:
        return State.OPEN
    has_opened = breaker.open_until_ms > 0 or breaker.failures >= HALF_OPEN_FROM
    return State.HALF_OPEN if has_opened else State.CLOSED


def is_failing(breaker: Breaker | None) -> bool:
    """Say whether at most one worker at a time may send to the subscription."""
    return state(breaker, math.inf) is not State.CLOSED


def closed_at_ms(breaker: Breaker | None) -> float:
    """Say until when nothing is let through, as far as is known."""
    if breaker is None:
        return 0
    return math.inf if breaker.paused_at_ms else breaker.open_until_ms


def is_better(new: Breaker | None, old: Breaker | None) -> bool:
    """Say whether more is let through than before, or sooner."""
    return closed_at_ms(new) < closed_at_ms(old) or (is_failing(old) and not is_failing(new))


def failed(breaker: Breaker | None, now_ms: int, *, failure: Failure) -> Breaker:
    """Note a failed attempt.

    One that ends while the breaker is open had begun before: thirty at the same moment count as one.
    """
    before = breaker or Breaker(0, now_ms, 0, 0, "")
    failures, rule = before.failures, failure.rule
    wait_ms = failure.retry_after_ms if rule.obeys_retry_after else 0
    if now_ms >= before.open_until_ms:
        failures += 1
        wait_ms = max(wait_ms, rule.waits_ms[min(failures, len(rule.waits_ms)) - 1])
    open_until_ms = max(before.open_until_ms, now_ms + wait_ms if wait_ms else 0)
    after = before._replace(failures=failures, open_until_ms=open_until_ms)
    if before.paused_at_ms:
        return after  # with the reason that it was paused for
    after = after._replace(reason=failure.reason)
    is_patient = timedelta(milliseconds=now_ms - before.since_ms) < PATIENCE
    if is_patient and not rule.pauses:
        return after
    return after._replace(paused_at_ms=now_ms, report_from_ms=now_ms + REPORT_MS)


def succeeded(breaker: Breaker | None, now_ms: int) -> Breaker | None:
    """Note a delivery: it closes the breaker, unless the subscription is paused. One that is open stays so
    until its time: the attempt had begun before, and a Retry-After is not taken back."""
    if breaker is None or breaker.paused_at_ms:
        return breaker
    if now_ms < breaker.open_until_ms:
        return breaker._replace(failures=0, since_ms=now_ms)
    return None


def paused(breaker: Breaker | None, now_ms: int, *, reason: str) -> Breaker:
    """Pause by hand: any worker is to report it at once."""
    before = breaker or Breaker(0, now_ms, 0, 0, "")
    if before.paused_at_ms:
        return before
    return before._replace(paused_at_ms=now_ms, reason=reason, report_from_ms=now_ms)


def report_taken(breaker: Breaker | None, now_ms: int, *, paused_at_ms: int) -> Breaker | None:
    """Keep other workers from reporting a pause for a while, if it is to be reported now."""
    if breaker is None or breaker.paused_at_ms != paused_at_ms or not 0 < breaker.report_from_ms <= now_ms:
        return breaker
    return breaker._replace(report_from_ms=now_ms + REPORT_MS)


def reported(breaker: Breaker | None, _: int, *, paused_at_ms: int) -> Breaker | None:
    """Note that this pause was reported."""
    if breaker is None or breaker.paused_at_ms != paused_at_ms:
        return breaker
    return breaker._replace(report_from_ms=0)


def tried_again(breaker: Breaker | None, _: int, *, reasons: tuple[str, ...]) -> Breaker | None:
    """End a breaker's wait if it opened for one of these reasons (how they begin). Failures count on, and a
    pause stays."""
    if breaker is None or breaker.paused_at_ms or not breaker.reason.startswith(reasons):
        return breaker
    return breaker._replace(open_until_ms=0)


class Concurrency:
    """How many attempts may be in flight at the same time: those of each subscription, and `most` of all.

    A subscription starts with one, and each delivery earns it one more: at first it is not known which are
    dead, and of one that comes back not how much it can bear.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._earned: Counter[str] = Counter()

    def delivered(self, name: str) -> None:
        self._earned[name] += 1

    def opened(self, name: str) -> None:
        """Let a subscription whose breaker opened start with one again."""
        del self._earned[name]

    def room(
        self,
        name: str,
        *,
        is_failing: bool,
        limit: int,
        per_second: float | None,
        in_flight: int,
        in_flight_of_all: int,
    ) -> int:
        """Say how many more may start. `limit` and `per_second` are the subscription's own."""
        allowed = 1 if is_failing else min(1 + self._earned[name], limit)
        if per_second:
            allowed = min(allowed, max(1, int(per_second)))
        bearable = int(self._most * SHARED) if is_failing or in_flight else self._most
        return max(0, min(allowed - in_flight, bearable - in_flight_of_all))


OPEN_AFTER = 5
"""Rejected polls in a row, of two accounts at least, that open a provider's breaker."""

PROBES_S = (5.0, 10.0, 20.0, 40.0, 60.0)
"""How long after each probe in a row the next one goes out; then level."""


@dataclass(slots=True)
class ProviderBreaker:
    """What one worker knows of one provider's availability. `cause` is why it fails, if only a person can fix
    that: its other rejections since are taken for consequences.

    | a poll | counts | the cause |
    |---|---|---|
    | answered | closes | over |
    | rejected: configuration | no: a mistake in one account says nothing of the provider | stays |
    | rejected: auth | yes | is this |
    | rejected: rate | yes | stays |
    | rejected in another way | yes | over after five of them |
    """

    cause: Rejected | None = None
    failures: int = 0
    """Rejected polls in a row that count."""
    _besides: int = 0
    _accounts: set[str] = field(default_factory=set)
    _probes: int = 0
    _probe_at: float = 0.0

    def state(self, now: float) -> State:
        if self.failures < OPEN_AFTER or len(self._accounts) < 2:
            return State.CLOSED
        return State.OPEN if now < self._probe_at else State.HALF_OPEN

    def may_ask(self, now: float) -> bool:
        """Say whether a poll may go out; where it is a probe, the next one waits for longer."""
        found = self.state(now)
        if found is State.HALF_OPEN:
            self._probe_at = now + PROBES_S[min(self._probes, len(PROBES_S) - 1)]
            self._probes += 1
        return found is not State.OPEN

    def rejected(self, account: str, rejected: Rejected, now: float) -> None:
        if rejected.error_class == "configuration":
            return
        if rejected.error_class in PERMANENT:
            self.cause, self._besides = rejected, 0
        elif rejected.error_class != "rate":
            self._besides += 1
            if self._besides >= OPEN_AFTER:
                self.cause = None  # it fails in another way by now
        was_closed = self.state(now) is State.CLOSED
        self.failures += 1
        if len(self._accounts) < 2:
            self._accounts.add(account)
        if was_closed and self.state(now) is not State.CLOSED:
            self._probe_at = now + PROBES_S[0]

    def answered(self) -> None:
        self.cause = None
        self.failures = 0
        self._accounts.clear()
        self._probes = 0
