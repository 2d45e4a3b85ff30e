"""Circuit breakers: whether a failing receiver or provider is asked, when again, and how much at a time.

Pure: times come in, and the rules are tables. A subscription's breaker is shared by all workers
(`store.queues` writes each decision of this module as one step); a provider's belongs to one worker.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Literal, NamedTuple

from watcher.providers.contract import PERMANENT, Rejected
from watcher.store.queues import WINDOW_MS, Breaker, Results


class State(Enum):
    """What a breaker lets through: everything, nothing for a while, a few probes, nothing until resumed."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    BACKING_OFF = "backing off"
    """Not open, but the receiver answered 429 and asked for a while without requests."""
    PAUSED = "paused"


class Answer(Enum):
    """What an attempt says of the receiver, or of the one event."""

    DELIVERED = "delivered"
    REJECTED = "rejected"
    """The answer is about this event only: other events may succeed."""
    FAILED = "failed"
    """The receiver answered with an error, perhaps because of this event."""
    NO_ANSWER = "no answer"
    """There was no answer, or a gateway's instead of the receiver's."""
    OVERLOADED = "overloaded"
    """The receiver has too much to do: it says so, or does not answer in time."""
    SLOW_DOWN = "slow down"
    """The receiver accepts fewer requests than it gets."""
    FORBIDDEN = "forbidden"
    """Our own policy forbids its address. Nothing was sent."""
    GONE = "gone"
    """The receiver says that it is gone for good: its owner has to act."""


Result = Literal["", "failed", "unavailable"]
"""How a failed attempt counts for the breaker; '': not at all."""

RESULTS: Mapping[Answer, Result] = {
    Answer.FAILED: "failed",
    Answer.NO_ANSWER: "unavailable",
    Answer.OVERLOADED: "unavailable",
}

BACKOFF_MS = (1000, 2000, 5000, 10_000, 30_000, 60_000, 120_000, 300_000)
"""How long a breaker stays open: the first time, after the first failed probe, and so on; the last one
repeats."""

FORBIDDEN_MS = 900_000
"""Our policy or its DNS has to change first: once in a quarter of an hour is early enough to notice."""

LONGEST_RETRY_AFTER_MS = 86_400_000
"""A receiver may ask for a day: its operator would not expect a longer wait."""

MANY = 20
"""Of so many queues half must fail to open a breaker. If fewer were tried, failures in a row open it."""

ROW = 5

LAST_PROBES = 5
GOOD_PROBES = 3
"""So many of the last probes must be delivered to close a breaker."""

PATIENCE = timedelta(days=5)
"""A subscription whose breaker was not closed for so long is paused."""

REPORT_MS = 5_000
"""How long the worker that is to report a pause has for it; after that, any other worker reports it."""

SAID_FROM_MS = 5_000
"""A longer wait is logged."""

LEAST_PER_S = 0.2
MOST_PER_S = 1000.0
"""The bounds of a pace: it is never slower than one attempt in 5 s, and above this one there is no pace."""

START_PER_S = 1.0
"""The pace that a receiver is supposed to bear of which nothing is known but a refusal."""

_SLOWER = 0.8
_FASTER = 1.05  # each second
_PACE_MS = 1000  # a pace is measured over so long, and not changed before

TURN_MS = 250
"""How far ahead turns are taken: so few attempts are still to come when a receiver asks for a break."""

SHARED = 0.8
"""The last fifth of what a worker can bear is for healthy subscriptions without an attempt in flight: a
thousand subscriptions that hang must leave capacity for the one that does not."""

UNANSWERED = 0.5
"""Subscriptions whose last attempt was not answered share half of it: those that were not tried yet must not
wait until all of these have hung again."""


BY_HAND = "by hand"
"""The reason of a pause that a person asked for."""


class Failure(NamedTuple):
    """What a failed attempt says of its subscription. `retry_after_ms`: what the receiver asks for."""

    reason: str
    retry_after_ms: int = 0

    @property
    def asked_ms(self) -> int:
        """How long the receiver's request is obeyed."""
        return min(self.retry_after_ms, LONGEST_RETRY_AFTER_MS)


def state(breaker: Breaker | None, now_ms: float) -> State:
    """Say what a subscription's breaker lets through."""
    if breaker is None:
        return State.CLOSED
    if breaker.paused_at_ms:
        return State.PAUSED
    if now_ms < breaker.open_until_ms:
        return State.OPEN
    if now_ms < breaker.held_until_ms:
        return State.BACKING_OFF
    return State.HALF_OPEN if breaker.since_ms else State.CLOSED


def is_closed(breaker: Breaker | None) -> bool:
    """Say whether concurrency and pace alone limit the attempts."""
    return breaker is None or not (breaker.since_ms or breaker.paused_at_ms)


def backs_off_until_ms(breaker: Breaker | None) -> float:
    """Return until when nothing is let through, as far as is known."""
    if breaker is None:
        return 0
    return math.inf if breaker.paused_at_ms else max(breaker.open_until_ms, breaker.held_until_ms)


def is_better(new: Breaker | None, old: Breaker | None) -> bool:
    """Say whether a breaker lets more through than before, or earlier."""
    return backs_off_until_ms(new) < backs_off_until_ms(old) or (is_closed(new) and not is_closed(old))


def opens(results: Results) -> bool:
    """Say whether these results open a closed breaker.

    A queue that fails waits, and counts as failed for as long; one that delivers goes on at once until it
    fails. So half of the queues may count as failed if a third of the attempts fails. Therefore attempts
    count as well: if more of them succeed than fail, the receiver is not down.
    """
    if results.taken_lately > results.failed_lately:
        return False
    if results.tried >= MANY:
        return 2 * results.failed >= results.tried
    row = results.row[-ROW:]
    are_more = len({miss.account for miss in row}) > 1
    return len(row) == ROW and (are_more or all(miss.is_unavailable for miss in row))


def counted(breaker: Breaker | None, now_ms: int, *, results: Results, failure: Failure) -> Breaker | None:
    """Open a closed breaker if these results call for it; not if it was closed after the count began."""
    before = breaker or Breaker()
    if not is_closed(breaker) or before.closed_at_ms > results.from_ms or not opens(results):
        return breaker
    return before._replace(
        since_ms=now_ms, open_until_ms=now_ms + BACKOFF_MS[0], rests=1, reason=failure.reason
    )


def probed(
    breaker: Breaker | None, now_ms: int, *, account: str, failure: Failure | None = None
) -> Breaker | None:
    """Note a probe that was delivered or failed.

    A probe that fails while the breaker is open again had begun before that, as had the one that opened it:
    it lengthens nothing.
    """
    if breaker is None or is_closed(breaker) or breaker.paused_at_ms:
        return breaker
    probes = (breaker.probes + ("0" if failure else "1"))[-LAST_PROBES:]
    if probes.count("1") >= GOOD_PROBES:
        return _closed(breaker, now_ms)
    allowed = 1 if failure else 2 * breaker.allowed
    after = breaker._replace(probes=probes, prober=account, allowed=allowed)
    if failure is None or now_ms < breaker.open_until_ms:
        return after
    rests = 1 if "1" in probes else min(breaker.rests + 1, len(BACKOFF_MS))
    backoff_ms = max(BACKOFF_MS[rests - 1], failure.asked_ms)
    after = after._replace(rests=rests, open_until_ms=now_ms + backoff_ms, reason=failure.reason)
    is_patient = timedelta(milliseconds=now_ms - breaker.since_ms) < PATIENCE
    return after if is_patient else _paused(after, now_ms)


def idle(breaker: Breaker | None, now_ms: int) -> Breaker | None:
    """Close a half-open breaker: nothing waits that could be a probe."""
    if breaker is None or state(breaker, now_ms) is not State.HALF_OPEN:
        return breaker
    return _closed(breaker, now_ms)


def _closed(breaker: Breaker, now_ms: int) -> Breaker:
    return breaker._replace(
        since_ms=0, open_until_ms=0, rests=0, probes="", prober="", allowed=1, closed_at_ms=now_ms
    )


def forbidden(breaker: Breaker | None, now_ms: int, *, failure: Failure) -> Breaker:
    """Open for as long as it takes an operator to change a policy."""
    before = breaker or Breaker()
    if before.paused_at_ms or now_ms < before.open_until_ms:
        return before
    since_ms = before.since_ms or now_ms
    after = before._replace(
        since_ms=since_ms,
        open_until_ms=now_ms + FORBIDDEN_MS,
        rests=max(1, before.rests),
        reason=failure.reason,
    )
    is_patient = timedelta(milliseconds=now_ms - since_ms) < PATIENCE
    return after if is_patient else _paused(after, now_ms)


def gone(breaker: Breaker | None, now_ms: int, *, failure: Failure) -> Breaker:
    """Pause at once."""
    before = breaker or Breaker()
    if before.paused_at_ms:
        return before
    return _paused(before._replace(reason=failure.reason, since_ms=before.since_ms or now_ms), now_ms)


def _paused(breaker: Breaker, now_ms: int) -> Breaker:
    """Pause; the worker that does so reports it."""
    return breaker._replace(paused_at_ms=now_ms, report_from_ms=now_ms + REPORT_MS)


def limited(
    breaker: Breaker | None,
    now_ms: int,
    *,
    failure: Failure,
    delivered_per_s: float,
    start_per_s: float = START_PER_S,
) -> Breaker | None:
    """Note that the receiver accepts fewer requests than it gets: send nothing for as long as it asks, and
    then somewhat less than all workers together delivered before.

    A second in which less than one was delivered says nothing of a receiver: then somewhat less than the pace
    is sent, and one a second at most; where there was no pace, somewhat less than `start_per_s`.

    Other requests that it refuses meanwhile were sent before the first refusal was known: they set no pace.
    """
    before = breaker or Breaker()
    if before.paused_at_ms:
        return breaker
    asked_ms = failure.asked_ms
    held_until_ms = max(before.held_until_ms, now_ms + asked_ms if asked_ms else 0)
    after = before._replace(held_until_ms=held_until_ms)
    if is_closed(breaker):
        after = after._replace(reason=failure.reason)
    if now_ms >= before.held_until_ms and now_ms >= before.pace_at_ms + _PACE_MS:
        if delivered_per_s < 1:
            pace = min(pace_per_s(before, now_ms), START_PER_S) or start_per_s
            delivered_per_s = max(delivered_per_s, pace)
        pace = max(LEAST_PER_S, _SLOWER * delivered_per_s)
        after = after._replace(pace_per_s=round(pace, 3), pace_at_ms=max(now_ms, held_until_ms))
    return after


def pace_per_s(breaker: Breaker | None, now_ms: float) -> float:
    """Return how many attempts a second all workers together may begin; 0 is no limit."""
    if breaker is None or not breaker.pace_per_s:
        return 0.0
    seconds = min(max(0.0, now_ms - breaker.pace_at_ms) / 1000, 200.0)  # then it has passed its bound
    pace = breaker.pace_per_s * _FASTER**seconds
    return pace if pace < MOST_PER_S else 0.0


def tidied(breaker: Breaker | None, now_ms: int) -> Breaker | None:
    """Forget a breaker that is closed and holds nothing else that is still needed."""
    is_over = breaker is None or (
        is_closed(breaker)
        and now_ms >= breaker.held_until_ms
        and now_ms - breaker.closed_at_ms > WINDOW_MS
        and not pace_per_s(breaker, now_ms)
        and not breaker.ping_error
    )
    return None if is_over else breaker


def pinged(breaker: Breaker | None, now_ms: int, *, error: str) -> Breaker | None:
    """Note the result of the last ping of a URL that is not verified; "" if it was answered."""
    return tidied((breaker or Breaker())._replace(ping_error=error), now_ms)


def paused(breaker: Breaker | None, now_ms: int, *, reason: str) -> Breaker:
    """Pause by hand: any worker is to report it at once."""
    before = breaker or Breaker()
    if before.paused_at_ms:
        return before
    return before._replace(
        since_ms=before.since_ms or now_ms, paused_at_ms=now_ms, reason=reason, report_from_ms=now_ms
    )


def report_taken(breaker: Breaker | None, now_ms: int, *, paused_at_ms: int) -> Breaker | None:
    """If a pause is to be reported now, keep other workers from reporting it for a while."""
    if breaker is None or breaker.paused_at_ms != paused_at_ms or not 0 < breaker.report_from_ms <= now_ms:
        return breaker
    return breaker._replace(report_from_ms=now_ms + REPORT_MS)


def reported(breaker: Breaker | None, _: int, *, paused_at_ms: int) -> Breaker | None:
    """Note that this pause was reported."""
    if breaker is None or breaker.paused_at_ms != paused_at_ms:
        return breaker
    return breaker._replace(report_from_ms=0)


def tried_again(breaker: Breaker | None, _: int, *, reasons: tuple[str, ...]) -> Breaker | None:
    """End a breaker's backoff if it opened for one of these reasons (how they begin). A pause stays."""
    if breaker is None or breaker.paused_at_ms or not breaker.reason.startswith(reasons):
        return breaker
    return breaker._replace(open_until_ms=0)


class Recent:
    """Counts what happened in the last second, as one worker sees it: a sliding window of two parts."""

    __slots__ = ("_before", "_count", "_second")

    def __init__(self) -> None:
        self._second, self._count, self._before = 0, 0, 0

    def add(self, now_ms: float) -> None:
        self._turn(now_ms)
        self._count += 1

    def per_s(self, now_ms: float) -> float:
        self._turn(now_ms)
        return self._before * (1 - now_ms % 1000 / 1000) + self._count

    def _turn(self, now_ms: float) -> None:
        second = int(now_ms // 1000)
        if second != self._second:
            self._before = self._count if second == self._second + 1 else 0
            self._second, self._count = second, 0


class Concurrency:
    """How many attempts may be in flight at the same time: of each subscription, and `most` of all.

    A subscription starts with two. Each delivery adds one, and an overload halves them: at first it is not
    known which receivers are dead, nor how much one can bear.
    """

    _LEAST = 2
    _HALVE_MS = 1000

    def __init__(self, most: int) -> None:
        self._most, self._shared, self._unanswered = most, int(most * SHARED), int(most * UNANSWERED)
        self._allowed: dict[str, int] = {}
        self._halved_at_ms: dict[str, float] = {}
        self._is_healthy: dict[str, bool] = {}

    def delivered(self, name: str, *, limit: int) -> None:
        self._allowed[name] = min(self._allowed.get(name, self._LEAST) + 1, max(limit, self._LEAST))
        self._is_healthy[name] = True

    def failed(self, name: str) -> None:
        """Note that an attempt was not answered: the last fifth is not for its subscription."""
        self._is_healthy[name] = False

    def overloaded(self, name: str, now_ms: float) -> None:
        """Halve it, once a second: thirty attempts that were in flight together are one overload."""
        if now_ms - self._halved_at_ms.get(name, -math.inf) >= self._HALVE_MS:
            self._halved_at_ms[name] = now_ms
            self._allowed[name] = max(self._LEAST, self._allowed.get(name, 0) // 2)

    def capacity(
        self,
        name: str,
        *,
        probes: int | None,
        limit: int,
        per_second: float,
        in_flight: int,
        in_flight_of_all: int,
    ) -> int:
        """Return how many more may start. `probes`: at most so many, if the breaker is half-open (None: it is
        closed). `limit` is the subscription's own; `per_second` its pace or its own rate (0: none)."""
        allowed = min(self._allowed.get(name, self._LEAST), limit)
        if probes is not None:
            allowed = min(allowed, probes)
        wanted = allowed - in_flight
        if per_second:
            wanted = min(wanted, math.ceil(per_second * TURN_MS / 1000))
        if probes is not None or not self._is_healthy.get(name, True):
            return max(0, min(wanted, self._unanswered - in_flight_of_all))
        shared = self._shared - in_flight_of_all
        if in_flight:
            return max(0, min(wanted, shared))
        left = self._most - in_flight_of_all
        if name not in self._is_healthy:
            return max(0, min(wanted, max(shared, min(1, left))))
        return max(0, min(wanted, left))


OPEN_AFTER = 5
"""Rejected polls in a row, of two accounts at least, that open a provider's breaker."""

PROBES_S = (5.0, 10.0, 20.0, 40.0, 60.0)
"""How long after each probe in a row the next one is sent; the last one repeats."""


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
        """Say whether a poll may be sent. If it is a probe, the next one waits for longer."""
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
                self.cause = None  # it fails in another way now
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
