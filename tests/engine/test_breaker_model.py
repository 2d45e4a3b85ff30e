"""A small model of queues and a receiver, run by the decisions of the engine: what gets through.

Time is made up, and goes from event to event. What settling counts, and turns, are done here as the store
does them.
"""

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watcher.delivery.sink import Attempt, Outcome, judge
from watcher.durations import parse_duration
from watcher.engine import breaker as decide
from watcher.engine.breaker import (
    RESULTS,
    TURN_MS,
    Answer,
    Concurrency,
    Failure,
    Recent,
    State,
    is_closed,
    pace_per_s,
    state,
)
from watcher.settings import DEFAULT_RETRIES
from watcher.store.queues import WINDOW_MS, Breaker, Miss, Results

RETRIES = tuple(map(parse_duration, DEFAULT_RETRIES))
NOW_MS = 1_800_000_000_000
Receiver = Callable[[float, int], Attempt]
"""Answers an attempt at a time (ms since the start) of a queue."""

OK = Attempt(Answer.DELIVERED, 5)
BUSY = Attempt(Answer.OVERLOADED, 5, 503)
ERROR = Attempt(Answer.FAILED, 5, 500)


@dataclass
class Queue:
    """Times at which its events came, oldest first. `due_ms`: when its head may be tried."""

    events: list[float] = field(default_factory=list)
    failed: int = 0
    due_ms: float = 0.0
    is_busy: bool = False


class Model:
    """One worker and one subscription."""

    def __init__(self, queues: int, receiver: Receiver, *, retries: Sequence[timedelta] = RETRIES) -> None:
        self.queues = [Queue() for _ in range(queues)]
        self.delivered: list[tuple[float, int]] = []
        self.lags_ms: list[float] = []
        self.dead: Counter[int] = Counter()
        self.answers: Counter[Answer] = Counter()
        self.openings = 0
        self.breaker: Breaker | None = None
        self._receiver = receiver
        self._retries = retries
        self._concurrency = Concurrency(200)
        self._recent = Recent()
        self._in_flight: list[tuple[float, int, int, bool, bool]] = []
        self._numbers = itertools.count()
        self._chance = random.Random(7)
        self._results: dict[int, tuple[float, bool]] = {}
        self._row: list[Miss] = []
        self._attempts: list[tuple[float, bool]] = []
        self._turn_ms = 0.0

    def run(self, events: Sequence[tuple[float, int]], until_ms: float) -> None:
        """Let events (time, queue) arrive, in order, and run until then."""
        coming, now_ms = 0, 0.0
        while now_ms <= until_ms:
            while coming < len(events) and events[coming][0] <= now_ms:
                self.queues[events[coming][1]].events.append(events[coming][0])
                coming += 1
            while self._in_flight and self._in_flight[0][0] <= now_ms:
                at_ms, _, queue, is_probe, was_closed = heapq.heappop(self._in_flight)
                self._end(at_ms, queue, is_probe=is_probe, was_closed=was_closed)
            later = self._start(now_ms)
            nexts = [later, until_ms + 1]
            if coming < len(events):
                nexts.append(events[coming][0])
            if self._in_flight:
                nexts.append(self._in_flight[0][0])
            now_ms = max(min(nexts), now_ms + 0.01)

    def _start(self, now_ms: float) -> float:
        """Start all attempts that may start; returns when more may."""
        breaker, at_ms = self.breaker, int(NOW_MS + now_ms)
        if (backoff_ms := decide.backs_off_until_ms(breaker) - at_ms) > 0:
            return now_ms + backoff_ms if math.isfinite(backoff_ms) else math.inf
        waiting = [
            (queue.due_ms, n) for n, queue in enumerate(self.queues) if queue.events and not queue.is_busy
        ]
        if state(breaker, at_ms) is State.HALF_OPEN and not waiting and not self._in_flight:
            self.breaker = decide.idle(breaker, at_ms)
            return now_ms
        pace = pace_per_s(breaker, at_ms)
        capacity = self._concurrency.capacity(
            "ops",
            probes=None if breaker is None or is_closed(breaker) else breaker.allowed,
            limit=32,
            per_second=pace,
            in_flight=len(self._in_flight),
            in_flight_of_all=len(self._in_flight),
        )
        for due_ms, n in sorted(waiting):
            if due_ms > now_ms:
                return due_ms
            if capacity <= 0:
                return math.inf  # until something ends
            start_ms = now_ms
            if pace:
                if self._turn_ms - now_ms > TURN_MS:
                    return self._turn_ms - TURN_MS / 2
                start_ms = max(now_ms, self._turn_ms)
                self._turn_ms = start_ms + 1000 / pace
            capacity -= 1
            self.queues[n].is_busy = True
            probe = not is_closed(breaker)
            heapq.heappush(self._in_flight, (start_ms + 10, next(self._numbers), n, probe, not probe))
        return math.inf

    def _end(self, now_ms: float, n: int, *, is_probe: bool, was_closed: bool) -> None:
        attempt, queue, at_ms = self._receiver(now_ms, n), self.queues[n], int(NOW_MS + now_ms)
        answer, name = attempt.answer, f"a{n}"
        self.answers[answer] += 1
        failure = Failure(attempt.reason, int(1000 * (attempt.retry_after_s or 0)))
        verdict = judge(
            attempt,
            queue.failed,
            self._retries,
            chance=self._chance.random(),
            is_closed=was_closed and is_closed(self.breaker),
            is_alone=self.breaker is not None and self.breaker.prober == name,
        )
        queue.is_busy, queue.due_ms = False, now_ms + verdict.wait_ms
        if verdict.outcome is Outcome.RETRY:
            queue.failed += verdict.is_used
        else:
            came_ms = queue.events.pop(0)
            queue.failed = 0
            if verdict.outcome is Outcome.DELIVERED:
                self.delivered.append((now_ms, n))
                self.lags_ms.append(now_ms - came_ms)
            else:
                self.dead[n] += 1
        is_delivered = answer is Answer.DELIVERED
        if is_delivered:
            self._concurrency.delivered("ops", limit=32)
            self._recent.add(now_ms)
            self._row.clear()
        elif answer in RESULTS:
            self._row.append(Miss(at_ms, RESULTS[answer] == "unavailable", name))
        if is_delivered or answer in RESULTS:
            self._results[n] = now_ms, is_delivered
            self._attempts.append((now_ms, is_delivered))
        if answer is Answer.OVERLOADED:
            self._concurrency.overloaded("ops", now_ms)
        if answer is Answer.SLOW_DOWN:
            delivered = self._recent.per_s(now_ms)
            self.breaker = decide.limited(self.breaker, at_ms, failure=failure, delivered_per_s=delivered)
            if self.breaker:
                self._turn_ms = max(self._turn_ms, self.breaker.held_until_ms - NOW_MS)
        elif is_probe and (is_delivered or answer in RESULTS):
            failed = None if is_delivered else failure
            self.breaker = decide.probed(self.breaker, at_ms, account=name, failure=failed)
            if is_closed(self.breaker):
                self._row.clear()
        elif answer in RESULTS:
            was = is_closed(self.breaker)
            self.breaker = decide.counted(self.breaker, at_ms, results=self._count(now_ms), failure=failure)
            self.openings += was and not is_closed(self.breaker)

    def _count(self, now_ms: float) -> Results:
        closed_ms = self.breaker.closed_at_ms - NOW_MS if self.breaker else -math.inf
        from_ms = max(now_ms - WINDOW_MS, closed_ms)
        results = [is_delivered for at_ms, is_delivered in self._results.values() if at_ms > from_ms]
        self._attempts = [one for one in self._attempts if one[0] > now_ms - 1500]
        taken = sum(is_delivered for _, is_delivered in self._attempts)
        return Results(
            int(NOW_MS + max(from_ms, 0)),
            len(results),
            results.count(False),
            taken,
            len(self._attempts) - taken,
            tuple(self._row[-5:]),
        )


def offered(per_s: float, queues: int, seconds: float) -> list[tuple[float, int]]:
    """Events at an even pace, to one queue after the other."""
    return [(1000 * n / per_s, n % queues) for n in range(int(per_s * seconds))]


def failing(share: float, *, how: Attempt = BUSY, seed: int = 1) -> Receiver:
    chance = random.Random(seed)
    return lambda _now_ms, _queue: how if chance.random() < share else OK


def limited_to(per_s: float) -> Receiver:
    """A token bucket, one second deep."""
    left, at_ms = per_s, 0.0

    def answer(now_ms: float, _queue: int) -> Attempt:
        nonlocal left, at_ms
        left, at_ms = min(per_s, left + (now_ms - at_ms) / 1000 * per_s), now_ms
        if left < 1:
            return Attempt(Answer.SLOW_DOWN, 5, 429, retry_after_s=1.0)
        left -= 1
        return OK

    return answer


def through(model: Model, events: Sequence[tuple[float, int]], seconds: float) -> int:
    model.run(events, 1000 * seconds)
    assert not model.dead
    for n in range(len(model.queues)):
        times = [at_ms for at_ms, queue in model.delivered if queue == n]
        assert times == sorted(times)
    return len(model.delivered)


@pytest.mark.parametrize(
    ("share", "least", "how"),
    [(0.01, 0.98, BUSY), (0.05, 0.97, BUSY), (0.2, 0.92, BUSY), (0.33, 0.8, BUSY), (0.33, 0.8, ERROR)],
)
def test_a_receiver_that_takes_half_of_its_requests_gets_most_events(
    share: float, least: float, how: Attempt
) -> None:
    events = offered(150, 75, 10)
    model = Model(75, failing(share, how=how))
    assert through(model, events, 10) >= least * len(events)


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([0.05, 0.2, 0.33]), st.integers(0, 10**6))
def test_throughput_never_falls_because_more_is_offered_to_a_receiver_that_fails_at_random(
    share: float, seed: int
) -> None:
    # Four of a kind: one that fails often at its start opens the breaker, and may open it again and again.
    found = [
        sum(
            through(Model(30, failing(share, seed=seed + one)), offered(per_s, 30, 20), 20)
            for one in range(4)
        )
        for per_s in (20, 40, 80)
    ]
    for fewer, more in itertools.pairwise(found):
        assert more >= fewer, found


@pytest.mark.parametrize("per_s", [20, 100])
@pytest.mark.parametrize("overload", [1, 1.5, 2, 4])
def test_throughput_never_falls_because_more_is_offered_than_a_receiver_takes(
    per_s: float, overload: float
) -> None:
    events = offered(overload * per_s, 50, 40)
    model = Model(50, limited_to(per_s))
    assert through(model, events, 40) >= 0.85 * 40 * min(1, overload) * per_s
    refused = model.answers[Answer.SLOW_DOWN]
    assert refused <= 0.1 * sum(model.answers.values())
    assert model.openings == 0


def test_a_single_queue_to_a_receiver_that_fails_one_in_three_gets_through() -> None:
    model = Model(1, failing(0.33))
    assert through(model, offered(1, 1, 60), 70) >= 0.9 * 60


@pytest.mark.parametrize("queues", [1, 2, 30])
def test_a_receiver_that_is_down_for_four_days_misses_nothing(queues: int) -> None:
    """Its time is scaled: an hour of the schedule and of the outage is 36 seconds."""
    down_ms = 4 * 864_000
    down = Attempt(Answer.NO_ANSWER, 5, error="refused")
    model = Model(
        queues, lambda now_ms, _: down if now_ms < down_ms else OK, retries=[wait / 100 for wait in RETRIES]
    )
    events = sorted((at_ms * down_ms / 2000, queue) for at_ms, queue in offered(queues, queues, 2))
    assert through(model, events, down_ms / 1000 + 700) == len(events)
    assert sum(model.answers.values()) < 10 * queues + down_ms / 100_000 * 10


@pytest.mark.parametrize("how", [BUSY, ERROR, Attempt(Answer.REJECTED, 5, 400)])
def test_a_poison_event_opens_no_breaker_and_ends_as_a_dead_letter(how: Attempt) -> None:
    model = Model(
        30,
        lambda _now_ms, queue: how if queue == 0 and not model.dead else OK,
        retries=RETRIES[:9],
    )
    model.run(offered(10, 30, 400), 400_000)
    assert model.dead == {0: 1}
    assert model.openings == 0
    assert sorted(model.lags_ms)[len(model.lags_ms) * 9 // 10] < 100
    assert len(model.delivered) == 10 * 400 - 1


def test_a_receiver_that_is_down_gets_few_attempts_and_its_recovery_is_found() -> None:
    model = Model(60, lambda now_ms, _: BUSY if 5_000 < now_ms < 35_000 else OK)
    events = offered(120, 60, 15)
    model.run(events, 60_000)
    assert model.openings == 1
    assert model.answers[Answer.OVERLOADED] < 500
    assert len(model.delivered) == len(events)
