"""Circuit breakers, without Redis: what each failure does, for how long, and how much goes out at a time."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.engine.breaker import (
    HALF_OPEN_FROM,
    PATIENCE,
    REPORT_MS,
    RULES,
    Answer,
    Concurrency,
    Failure,
    State,
    failed,
    is_better,
    is_failing,
    paused,
    report_taken,
    reported,
    state,
    succeeded,
    tried_again,
)
from watcher.store.queues import Breaker

NOW_MS = 1_800_000_000_000
MINUTE_MS = 60_000
PATIENCE_MS = int(1000 * PATIENCE.total_seconds())
MOST = 100


def failing(answer: Answer = Answer.SLOW_DOWN, *, retry_after_ms: int = 0) -> Failure:
    return Failure(f"because: {answer.value}", RULES[answer], retry_after_ms)


def after(*answers: Answer, every_ms: int = 0) -> Breaker | None:
    """How a breaker stands after attempts, each as soon as it may be made and `every_ms` later."""
    breaker, now_ms = None, NOW_MS
    for answer in answers:
        now_ms = max(now_ms, breaker.open_until_ms if breaker else 0) + every_ms
        if answer is Answer.DELIVERED:
            breaker = succeeded(breaker, now_ms)
        else:
            breaker = failed(breaker, now_ms, failure=failing(answer))
    return breaker


def opens_for_ms(answer: Answer, times: int) -> Sequence[int]:
    """For how long each failure in a row opens a breaker."""
    found, breaker, now_ms = [], None, NOW_MS
    for _ in range(times):
        breaker = failed(breaker, now_ms, failure=failing(answer))
        found.append(max(0, breaker.open_until_ms - now_ms))
        now_ms = max(now_ms, breaker.open_until_ms)
    return found


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (Answer.SLOW_DOWN, [1, 2, 5, 10, 30, 60, 120, 300, 300]),
        (Answer.NO_ANSWER, [1, 2, 5, 10, 30, 60, 120, 300, 300]),
        (Answer.REJECTED, [0] * 9),
        (Answer.FORBIDDEN, [900] * 9),
        (Answer.GONE, [0] * 9),
    ],
)
def test_the_table_says_for_how_long_each_failure_in_a_row_opens(answer: Answer, seconds: list[int]) -> None:
    assert opens_for_ms(answer, 9) == [1000 * each for each in seconds]


@pytest.mark.parametrize(
    ("breaker", "expected"),
    [
        (None, State.CLOSED),
        (Breaker(2, 1, 0, 0, "no"), State.CLOSED),
        (Breaker(HALF_OPEN_FROM, 1, 0, 0, "no"), State.HALF_OPEN),
        (Breaker(1, 1, NOW_MS + 1, 0, "no"), State.OPEN),
        (Breaker(1, 1, NOW_MS, 0, "no"), State.HALF_OPEN),
        (Breaker(0, 1, NOW_MS, 0, "no"), State.HALF_OPEN),
        (Breaker(0, 1, 0, 1, "by hand"), State.PAUSED),
        (Breaker(9, 1, NOW_MS + 1, 1, "no"), State.PAUSED),
    ],
)
def test_what_is_written_down_says_what_is_let_through(breaker: Breaker | None, expected: State) -> None:
    assert state(breaker, NOW_MS) is expected


def test_rejections_of_single_events_let_the_others_go_on_until_the_third_in_a_row() -> None:
    assert not is_failing(after(*[Answer.REJECTED] * 2))
    assert is_failing(after(*[Answer.REJECTED] * 3))
    assert not is_failing(after(Answer.REJECTED, Answer.REJECTED, Answer.DELIVERED, Answer.REJECTED))


def test_one_failure_of_the_whole_receiver_is_enough() -> None:
    assert is_failing(after(Answer.SLOW_DOWN))


def test_failures_in_a_row_are_counted_since_the_first() -> None:
    breaker = after(*[Answer.REJECTED] * 4, every_ms=1000)
    assert breaker == Breaker(4, NOW_MS + 1000, 0, 0, "because: rejected")


def test_what_ends_while_it_is_open_had_begun_before_and_does_not_count() -> None:
    once = after(Answer.SLOW_DOWN)
    assert failed(once, NOW_MS + 500, failure=failing()) == once


def test_a_delivery_while_it_is_open_ends_the_row_and_does_not_close_it() -> None:
    opened = failed(None, NOW_MS, failure=failing(retry_after_ms=MINUTE_MS))
    late = succeeded(opened, NOW_MS + 10)
    assert late
    assert (late.failures, late.since_ms, late.open_until_ms) == (0, NOW_MS + 10, NOW_MS + MINUTE_MS)
    again = failed(late, NOW_MS + MINUTE_MS, failure=failing())
    assert (again.failures, again.open_until_ms) == (1, NOW_MS + MINUTE_MS + 1000)
    assert succeeded(again, again.open_until_ms) is None


def test_what_the_receiver_asks_for_is_granted_where_it_is_longer_and_never_shortened() -> None:
    opened = failed(None, NOW_MS, failure=failing(retry_after_ms=MINUTE_MS))
    assert opened.open_until_ms == NOW_MS + MINUTE_MS
    assert failed(opened, NOW_MS, failure=failing(retry_after_ms=10)).open_until_ms == NOW_MS + MINUTE_MS
    longer = failed(opened, NOW_MS + 1, failure=failing(retry_after_ms=2 * MINUTE_MS))
    assert (longer.failures, longer.open_until_ms) == (1, NOW_MS + 1 + 2 * MINUTE_MS)


@pytest.mark.parametrize("answer", [Answer.REJECTED, Answer.FORBIDDEN, Answer.GONE])
def test_only_a_receiver_that_is_slowed_down_is_obeyed(answer: Answer) -> None:
    asked = failed(None, NOW_MS, failure=failing(answer, retry_after_ms=MINUTE_MS))
    assert asked == failed(None, NOW_MS, failure=failing(answer))


def test_a_receiver_that_is_gone_is_paused_at_once_and_stays_so() -> None:
    breaker = failed(None, NOW_MS, failure=failing(Answer.GONE))
    assert (breaker.paused_at_ms, breaker.report_from_ms) == (NOW_MS, NOW_MS + REPORT_MS)
    later = failed(breaker, NOW_MS + 9, failure=failing())
    assert (later.paused_at_ms, later.reason) == (NOW_MS, "because: gone"), "why it was paused"
    assert later.report_from_ms == breaker.report_from_ms, "what had begun before leaves it to be reported"
    assert succeeded(later, NOW_MS + MINUTE_MS) == later, "a late success does not resume what was paused"


def test_a_subscription_that_fails_everything_is_paused_when_patience_ends() -> None:
    breaker = Breaker(9, NOW_MS - PATIENCE_MS, 0, 0, "status 503")
    assert not failed(breaker, NOW_MS - 1, failure=failing()).paused_at_ms
    found = failed(breaker, NOW_MS, failure=failing())
    assert (found.failures, found.paused_at_ms) == (10, NOW_MS)
    assert PATIENCE.days == 5


def test_a_pause_by_hand_is_for_any_worker_to_report_at_once() -> None:
    breaker = paused(None, NOW_MS, reason="by hand")
    assert breaker == Breaker(0, NOW_MS, 0, NOW_MS, "by hand", NOW_MS)
    assert paused(breaker, NOW_MS + 1, reason="by another hand") == breaker
    counted = paused(after(Answer.SLOW_DOWN), NOW_MS + 1, reason="by hand")
    assert (counted.failures, counted.open_until_ms) == (1, NOW_MS + 1000)


def test_a_pause_is_reported_by_one_worker_at_a_time_until_it_is_reported() -> None:
    breaker = failed(None, NOW_MS, failure=failing(Answer.GONE))
    due = NOW_MS + REPORT_MS
    assert report_taken(breaker, due - 1, paused_at_ms=NOW_MS) == breaker
    taken = report_taken(breaker, due, paused_at_ms=NOW_MS)
    assert taken == breaker._replace(report_from_ms=due + REPORT_MS)
    assert report_taken(taken, due + 1, paused_at_ms=NOW_MS) == taken
    done = reported(taken, due, paused_at_ms=NOW_MS)
    assert done == breaker._replace(report_from_ms=0)
    assert report_taken(done, due + 2 * REPORT_MS, paused_at_ms=NOW_MS) == done


def test_a_report_of_a_pause_that_is_over_says_nothing_of_the_next_one() -> None:
    following = Breaker(1, 5, 0, NOW_MS + 1, "by hand", 7)
    for found in (following, None):
        assert reported(found, NOW_MS + 2, paused_at_ms=NOW_MS) == found
        assert report_taken(found, NOW_MS + 2, paused_at_ms=NOW_MS) == found


@pytest.mark.parametrize("reason", ["refused: loopback", "no name: hooks"])
def test_a_breaker_that_opened_for_a_reason_that_is_over_lets_a_probe_out_at_once(reason: str) -> None:
    breaker = Breaker(4, 5, NOW_MS + MINUTE_MS, 0, reason)
    found = tried_again(breaker, NOW_MS, reasons=("refused", "no name"))
    assert found == breaker._replace(open_until_ms=0)
    assert state(found, NOW_MS) is State.HALF_OPEN, "its failures count on"


@pytest.mark.parametrize(
    "breaker",
    [
        None,
        Breaker(4, 5, NOW_MS + MINUTE_MS, 0, "status 503 refused"),
        Breaker(4, 5, NOW_MS + MINUTE_MS, 7, "refused"),
    ],
)
def test_no_other_breaker_does(breaker: Breaker | None) -> None:
    assert tried_again(breaker, NOW_MS, reasons=("refused",)) == breaker


def test_it_is_better_where_more_is_let_through_or_sooner() -> None:
    opened, half_open, rejecting = (
        after(Answer.SLOW_DOWN),
        Breaker(3, 1, 0, 0, "no"),
        Breaker(1, 1, 0, 0, "no"),
    )
    by_hand = paused(None, NOW_MS, reason="by hand")
    worse_to_better = [by_hand, opened, half_open, None]
    for worse, better in pairwise(worse_to_better):
        assert is_better(better, worse)
        assert not is_better(worse, better)
    assert is_better(rejecting, half_open)
    assert not is_better(rejecting, None)
    assert not is_better(None, rejecting), "as much went out before"


FAILURES = st.sampled_from([answer for answer in Answer if answer is not Answer.DELIVERED])
HAPPENED = st.lists(st.tuples(st.sampled_from([*Answer]), st.integers(0, 2 * PATIENCE_MS // 40)), max_size=60)
"""Answers, and how many ms after the one before each of them came."""


@given(HAPPENED, st.integers(0, 86_400_000))
def test_whatever_happens_time_only_opens_later_and_a_pause_stays(
    happened: list[tuple[Answer, int]], retry_after_ms: int
) -> None:
    breaker, now_ms = None, NOW_MS
    for answer, later_ms in happened:
        now_ms += later_ms
        before = breaker
        if answer is Answer.DELIVERED:
            breaker = succeeded(before, now_ms)
        else:
            breaker = failed(before, now_ms, failure=failing(answer, retry_after_ms=retry_after_ms))
        if before and before.paused_at_ms:
            assert breaker
            assert (breaker.paused_at_ms, breaker.reason) == (before.paused_at_ms, before.reason)
        if before and before.open_until_ms > now_ms:  # what had begun before shortens and counts nothing
            assert breaker
            assert breaker.open_until_ms >= before.open_until_ms
            assert breaker.failures <= before.failures
        if breaker and not breaker.paused_at_ms:
            assert breaker.failures == 0 or now_ms - breaker.since_ms < PATIENCE_MS
        assert state(breaker, now_ms + 86_400_000) is not State.OPEN, "a day at most"


@given(st.lists(FAILURES, min_size=1, max_size=30))
def test_one_delivery_closes_it_whatever_failed_before(answers: list[Answer]) -> None:
    breaker = after(*answers)
    assert breaker
    if not breaker.paused_at_ms:
        assert succeeded(breaker, max(NOW_MS, breaker.open_until_ms)) is None


def room(
    concurrency: Concurrency,
    in_flight: int = 0,
    of_all: int = 0,
    *,
    name: str = "ops",
    is_failing: bool = False,
    per_second: float | None = None,
) -> int:
    return concurrency.room(
        name,
        is_failing=is_failing,
        limit=32,
        per_second=per_second,
        in_flight=in_flight,
        in_flight_of_all=of_all,
    )


def earning(deliveries: int, name: str = "ops") -> Concurrency:
    concurrency = Concurrency(MOST)
    for _ in range(deliveries):
        concurrency.delivered(name)
    return concurrency


@pytest.mark.parametrize(("deliveries", "expected"), [(0, 1), (1, 2), (7, 8), (100, 32)])
def test_each_delivery_earns_one_more_up_to_what_is_set(deliveries: int, expected: int) -> None:
    assert room(earning(deliveries)) == expected


def test_one_whose_breaker_opened_starts_with_one_again() -> None:
    concurrency = earning(40)
    concurrency.opened("ops")
    assert room(concurrency) == 1
    concurrency.delivered("ops")
    assert room(concurrency) == 2


def test_one_that_fails_has_one_probe_whatever_it_earned() -> None:
    assert room(earning(40), is_failing=True) == 1
    assert room(earning(40), 1, 1, is_failing=True) == 0


@pytest.mark.parametrize(("per_second", "expected"), [(0.1, 1), (2.5, 2), (1000, 32)])
def test_no_more_go_out_than_its_rate_lets_out_in_a_second(per_second: float, expected: int) -> None:
    assert room(earning(40), per_second=per_second) == expected


def test_those_that_have_something_in_flight_leave_a_fifth_to_those_that_have_nothing() -> None:
    concurrency = earning(40)
    assert room(concurrency, 3, 70) == 10
    assert room(concurrency, 3, 80) == 0
    assert room(concurrency, 0, 80) == 20
    assert room(concurrency, 0, MOST) == 0


def test_of_those_that_fail_none_takes_the_last_fifth() -> None:
    assert room(earning(0), 0, 79, is_failing=True) == 1
    assert room(earning(0), 0, 80, is_failing=True) == 0


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(0, 3)), max_size=300))
def test_whatever_happens_a_healthy_subscription_with_nothing_in_flight_finds_room(
    happened: list[tuple[str, bool, int]],
) -> None:
    """A few subscriptions take all they can get, and fail or deliver in any order."""
    concurrency, in_flight, is_open = (
        Concurrency(20),
        dict.fromkeys("abcdef", 0),
        dict.fromkeys("abcdef", False),
    )
    for name, is_delivered, ends in happened:
        of_all = sum(in_flight.values())
        most = room(concurrency, in_flight[name], of_all, name=name, is_failing=is_open[name])
        assert of_all + most <= 20
        if is_open[name]:
            assert most == 0 or most + in_flight[name] == 1, "one probe at a time"
        if is_open[name] or in_flight[name]:
            assert of_all + most <= max(of_all, 16), "the last fifth is not for them"
        else:
            assert most or of_all == 20
        in_flight[name] += most
        ended = min(ends, in_flight[name])
        in_flight[name] -= ended
        if ended:
            (concurrency.delivered if is_delivered else concurrency.opened)(name)
            is_open[name] = not is_delivered
