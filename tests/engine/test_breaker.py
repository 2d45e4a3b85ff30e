"""Circuit breakers, without Redis: what opens and closes them, for how long, and how much they let out."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.engine import breaker as decide
from watcher.engine.breaker import (
    BACKOFF_MS,
    FORBIDDEN_MS,
    LEAST_PER_S,
    LONGEST_RETRY_AFTER_MS,
    MOST_PER_S,
    PATIENCE,
    REPORT_MS,
    RESULTS,
    Answer,
    Concurrency,
    Failure,
    Recent,
    State,
    is_better,
    is_closed,
    pace_per_s,
    state,
)
from watcher.store.queues import WINDOW_MS, Breaker, Miss, Results

NOW_MS = 1_800_000_000_000
MINUTE_MS = 60_000
PATIENCE_MS = int(1000 * PATIENCE.total_seconds())
MOST = 100
DOWN = Failure("status 503")


def a_row(*misses: str) -> tuple[Miss, ...]:
    """Failures in a row: `a` of an account, `a!` one that was not answered."""
    return tuple(Miss(NOW_MS + i, miss.endswith("!"), miss.strip("!")) for i, miss in enumerate(misses))


BAD = Results(NOW_MS, row=a_row(*["a!"] * 5))


def opened(now_ms: int = NOW_MS, before: Breaker | None = None) -> Breaker:
    after = decide.counted(before, now_ms, results=BAD, failure=DOWN)
    assert after
    return after


def probing(results: str, breaker: Breaker | None = None, **failure: Any) -> Breaker:
    """The breaker after some probes, each made as soon as possible: 1 is delivered, 0 is not."""
    after = breaker or opened()
    for result in results:
        now_ms = max(after.open_until_ms, NOW_MS)
        failed = None if result == "1" else DOWN._replace(**failure)
        found = decide.probed(after, now_ms, account="a", failure=failed)
        assert found
        after = found
    return after


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (Results(NOW_MS, 20, 10), True),
        (Results(NOW_MS, 20, 9), False),
        (Results(NOW_MS, 19, 19), False),
        (Results(NOW_MS, 100, 60, taken_lately=201, failed_lately=200), False),
        (Results(NOW_MS, 100, 60, taken_lately=200, failed_lately=200), True),
        (Results(NOW_MS, 100, 33, taken_lately=1, failed_lately=99), False),
        (Results(NOW_MS, 0, 0), False),
    ],
)
def test_it_opens_when_half_of_twenty_queues_failed_unless_more_is_delivered_than_fails(
    results: Results, expected: bool
) -> None:
    assert decide.opens(results) is expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (["a!"] * 5, True),
        (["a!"] * 4, False),
        (["a"] * 5, False),
        (["a!", "a", "a!", "a!", "a!"], False),
        (["a", "a", "b", "a", "a"], True),
        (["b", "a", "a", "a", "a", "a"], False),
        (["b", *["a!"] * 5], True),
    ],
)
def test_of_few_queues_five_failures_in_a_row_open_it_if_of_two_queues_or_unanswered(
    row: list[str], expected: bool
) -> None:
    assert decide.opens(Results(NOW_MS, 19, 1, row=a_row(*row))) is expected
    assert not decide.opens(Results(NOW_MS, 20, 1, row=a_row(*row))), "where many were tried, they decide"
    busy = Results(NOW_MS, 19, 1, taken_lately=6, failed_lately=5, row=a_row(*row))
    assert not decide.opens(busy), "more is taken than fails"


def test_it_opens_for_a_second_with_its_reason() -> None:
    breaker = opened()
    assert breaker == Breaker(since_ms=NOW_MS, open_until_ms=NOW_MS + 1000, rests=1, reason="status 503")
    assert [state(breaker, NOW_MS + ms) for ms in (0, 999, 1000)] == [State.OPEN, State.OPEN, State.HALF_OPEN]
    assert opened(NOW_MS + 5, breaker) == breaker, "it opens once"


def test_a_count_that_began_before_it_closed_does_not_reopen_it() -> None:
    closed = Breaker(closed_at_ms=NOW_MS + 1)
    assert opened(NOW_MS + 2, closed) == closed
    assert not is_closed(opened(NOW_MS + 2, closed._replace(closed_at_ms=NOW_MS)))


def test_it_stays_open_longer_each_time_while_no_probe_is_delivered() -> None:
    breaker, rests = opened(), [1000]
    for _ in range(9):
        now_ms = breaker.open_until_ms
        breaker = probing("0", breaker)
        rests.append(breaker.open_until_ms - now_ms)
    assert rests == [1000, 2000, 5000, 10_000, 30_000, 60_000, 120_000, 300_000, 300_000, 300_000]
    assert tuple(rests[:8]) == BACKOFF_MS


def test_after_a_delivery_among_the_last_five_a_failed_probe_opens_it_for_a_second_only() -> None:
    for results in ("10", "0010", "010000"):
        before = probing(results[:-1])
        after = probing(results[-1], before)
        assert after.open_until_ms - max(before.open_until_ms, NOW_MS) == 1000, results
    before = probing("10000")
    assert probing("0", before).open_until_ms - before.open_until_ms == 2000, "it is no longer among them"


@pytest.mark.parametrize("results", ["111", "11001", "10101", "01011", "0000111"])
def test_three_of_the_last_five_probes_close_it(results: str) -> None:
    assert not is_closed(probing(results[:-1]))
    after = probing(results)
    assert is_closed(after)
    assert (after.since_ms, after.open_until_ms, after.probes, after.allowed) == (0, 0, "", 1)
    assert after.closed_at_ms >= NOW_MS


@pytest.mark.parametrize(("results", "allowed"), [("", 1), ("1", 2), ("11", 4), ("110", 1), ("1001", 2)])
def test_each_delivery_doubles_the_probes_and_a_failure_resets_them_to_one(
    results: str, allowed: int
) -> None:
    assert probing(results).allowed == allowed


def test_a_probe_that_ends_after_it_reopened_counts_but_prolongs_nothing() -> None:
    breaker = probing("110")
    late = decide.probed(breaker, NOW_MS, account="b", failure=DOWN._replace(retry_after_ms=MINUTE_MS))
    assert late
    assert late.open_until_ms == breaker.open_until_ms
    closed = decide.probed(breaker, NOW_MS, account="b")
    assert closed
    assert is_closed(closed), "three of five"


def test_retry_after_of_a_failed_probe_keeps_it_open_for_a_day_at_most() -> None:
    before = probing("0")
    for asked_ms, backoff_ms in ((1, 5000), (MINUTE_MS, MINUTE_MS), (10**12, LONGEST_RETRY_AFTER_MS)):
        after = probing("0", before, retry_after_ms=asked_ms)
        assert after.open_until_ms - before.open_until_ms == backoff_ms


def test_a_probe_of_a_breaker_that_was_closed_meanwhile_changes_nothing() -> None:
    for breaker in (None, Breaker(closed_at_ms=NOW_MS), Breaker(paused_at_ms=1)):
        assert decide.probed(breaker, NOW_MS, account="a", failure=DOWN) == breaker
        assert decide.probed(breaker, NOW_MS, account="a") == breaker


def test_the_account_of_the_last_probe_is_remembered() -> None:
    assert probing("0").prober == "a"
    found = decide.probed(probing("0"), NOW_MS + MINUTE_MS, account="b", failure=DOWN)
    assert found
    assert found.prober == "b"


def test_it_is_paused_after_five_days_without_closing() -> None:
    breaker = Breaker(since_ms=NOW_MS - PATIENCE_MS, open_until_ms=NOW_MS - 1, rests=8, reason="x")
    young = breaker._replace(since_ms=breaker.since_ms + 1)
    found = decide.probed(young, NOW_MS, account="a", failure=DOWN)
    assert found
    assert not found.paused_at_ms
    found = decide.probed(breaker, NOW_MS, account="a", failure=DOWN)
    assert found
    assert (found.paused_at_ms, found.report_from_ms, found.reason) == (
        NOW_MS,
        NOW_MS + REPORT_MS,
        "status 503",
    )
    assert PATIENCE.days == 5


def test_without_a_backlog_only_a_half_open_breaker_closes() -> None:
    breaker = opened()
    found = decide.idle(breaker, NOW_MS + 1000)
    assert found
    assert is_closed(found)
    for other in (None, breaker._replace(open_until_ms=NOW_MS + 1001), breaker._replace(paused_at_ms=1)):
        assert decide.idle(other, NOW_MS + 1000) == other


def test_a_refusal_by_policy_opens_it_at_once_for_a_quarter_of_an_hour() -> None:
    refused = Failure("refused: loopback")
    first = decide.forbidden(None, NOW_MS, failure=refused)
    assert (first.open_until_ms - NOW_MS, first.since_ms, first.reason) == (
        FORBIDDEN_MS,
        NOW_MS,
        refused.reason,
    )
    assert decide.forbidden(first, NOW_MS + 1, failure=refused) == first
    again = decide.forbidden(first, first.open_until_ms, failure=refused)
    assert (again.open_until_ms - first.open_until_ms, again.since_ms) == (FORBIDDEN_MS, NOW_MS)
    late = decide.forbidden(first, NOW_MS + PATIENCE_MS, failure=refused)
    assert late.paused_at_ms == NOW_MS + PATIENCE_MS


def test_a_receiver_that_is_gone_is_paused_at_once_and_stays_so() -> None:
    breaker = decide.gone(None, NOW_MS, failure=Failure("status 410"))
    assert (breaker.paused_at_ms, breaker.report_from_ms) == (NOW_MS, NOW_MS + REPORT_MS)
    assert (breaker.reason, breaker.since_ms) == ("status 410", NOW_MS)
    for later in (
        decide.gone(breaker, NOW_MS + 9, failure=Failure("again")),
        decide.probed(breaker, NOW_MS + 9, account="a"),
        decide.forbidden(breaker, NOW_MS + 9, failure=DOWN),
        decide.limited(breaker, NOW_MS + 9, failure=DOWN, delivered_per_s=9),
        decide.counted(breaker, NOW_MS + 9, results=BAD, failure=DOWN),
        decide.tidied(breaker, NOW_MS + 10 * PATIENCE_MS),
        decide.paused(breaker, NOW_MS + 9, reason="by hand"),
    ):
        assert later == breaker


def test_a_pause_by_hand_may_be_reported_by_any_worker_at_once() -> None:
    breaker = decide.paused(None, NOW_MS, reason="by hand")
    assert breaker == Breaker(NOW_MS, NOW_MS, "by hand", NOW_MS)
    found = decide.paused(opened(), NOW_MS + 1, reason="by hand")
    assert (found.since_ms, found.open_until_ms) == (NOW_MS, NOW_MS + 1000)


def test_a_pause_is_reported_by_one_worker_at_a_time_until_it_is_reported() -> None:
    breaker = decide.gone(None, NOW_MS, failure=DOWN)
    due = NOW_MS + REPORT_MS
    assert decide.report_taken(breaker, due - 1, paused_at_ms=NOW_MS) == breaker
    taken = decide.report_taken(breaker, due, paused_at_ms=NOW_MS)
    assert taken == breaker._replace(report_from_ms=due + REPORT_MS)
    assert decide.report_taken(taken, due + 1, paused_at_ms=NOW_MS) == taken
    done = decide.reported(taken, due, paused_at_ms=NOW_MS)
    assert done == breaker._replace(report_from_ms=0)
    assert decide.report_taken(done, due + 2 * REPORT_MS, paused_at_ms=NOW_MS) == done


def test_a_report_of_a_finished_pause_does_not_count_for_the_next_one() -> None:
    following = Breaker(NOW_MS + 1, 7, "by hand", 5)
    for found in (following, None):
        assert decide.reported(found, NOW_MS + 2, paused_at_ms=NOW_MS) == found
        assert decide.report_taken(found, NOW_MS + 2, paused_at_ms=NOW_MS) == found


@pytest.mark.parametrize("reason", ["refused: loopback", "no name: hooks"])
def test_a_breaker_lets_a_probe_out_at_once_when_its_reason_is_over(reason: str) -> None:
    breaker = opened()._replace(reason=reason)
    found = decide.tried_again(breaker, NOW_MS, reasons=("refused", "no name"))
    assert found == breaker._replace(open_until_ms=0)
    assert state(found, NOW_MS) is State.HALF_OPEN


@pytest.mark.parametrize(
    "breaker",
    [None, Breaker(since_ms=5, reason="status 503 refused"), Breaker(paused_at_ms=7, reason="refused")],
)
def test_no_breaker_with_another_reason_lets_a_probe_out(breaker: Breaker | None) -> None:
    assert decide.tried_again(breaker, NOW_MS, reasons=("refused",)) == breaker


def test_a_breaker_is_better_if_it_lets_more_through_or_sooner() -> None:
    by_hand = decide.paused(None, NOW_MS, reason="by hand")
    held = Breaker(held_until_ms=NOW_MS + 900)
    worse_to_better = [by_hand, opened(), held, None]
    for worse, better in pairwise(worse_to_better):
        assert is_better(better, worse)
        assert not is_better(worse, better)
    assert is_better(Breaker(closed_at_ms=1), opened()._replace(open_until_ms=0))
    assert not is_better(None, Breaker(closed_at_ms=1)), "as much was let through before"


# 429


def limited(
    before: Breaker | None,
    now_ms: int = NOW_MS,
    *,
    asked_ms: int = 0,
    delivered_per_s: float = 100,
    **start: float,
) -> Breaker:
    failure = Failure("status 429", asked_ms)
    after = decide.limited(before, now_ms, failure=failure, delivered_per_s=delivered_per_s, **start)
    assert after
    return after


def test_a_429_holds_the_subscription_and_sets_the_rate_to_four_fifths() -> None:
    breaker = limited(None, asked_ms=1000)
    assert [state(breaker, NOW_MS + ms) for ms in (0, 999, 1000)] == [
        State.BACKING_OFF,
        State.BACKING_OFF,
        State.CLOSED,
    ]
    assert pace_per_s(breaker, NOW_MS + 1000) == 80
    assert breaker.reason == "status 429"


def test_a_429_without_retry_after_sets_the_rate_only() -> None:
    breaker = limited(None)
    assert state(breaker, NOW_MS) is State.CLOSED
    assert pace_per_s(breaker, NOW_MS) == 80


def test_a_429_during_a_hold_sets_no_rate_and_may_prolong_the_hold() -> None:
    breaker = limited(None, asked_ms=1000)
    found = limited(breaker, NOW_MS + 999, asked_ms=500, delivered_per_s=1)
    assert (found.pace_per_s, found.pace_at_ms) == (breaker.pace_per_s, breaker.pace_at_ms)
    assert found.held_until_ms == NOW_MS + 1499
    assert limited(breaker, NOW_MS + 10, asked_ms=500) == breaker, "and never for less"


def test_a_burst_of_429s_without_retry_after_sets_one_rate() -> None:
    breaker = limited(None)
    assert limited(breaker, NOW_MS + 999, delivered_per_s=1) == breaker
    assert limited(breaker, NOW_MS + 1000, delivered_per_s=50).pace_per_s == 40


def test_a_rate_grows_by_a_twentieth_each_second_and_ends_at_a_thousand() -> None:
    breaker = limited(None, asked_ms=2000)
    found = [round(pace_per_s(breaker, NOW_MS + 1000 * second), 2) for second in (0, 2, 3, 4)]
    assert found == [80, 80, 84, 88.2], "not while it is held"
    assert pace_per_s(breaker, NOW_MS + 10**12) == 0
    assert decide.tidied(breaker, NOW_MS + 10**12) is None


@pytest.mark.parametrize("delivered", [0.0, 0.1, 0.25])
def test_a_rate_is_never_slower_than_one_attempt_in_five_seconds(delivered: float) -> None:
    breaker, now_ms, paces = None, NOW_MS, list[float]()
    for _ in range(12):
        breaker = limited(breaker, now_ms, delivered_per_s=delivered)
        paces.append(pace_per_s(breaker, now_ms))
        now_ms += 1000
    assert paces[0] == 0.8, "nothing else is known of it"
    assert sorted(paces, reverse=True) == paces
    assert paces[-1] == LEAST_PER_S == 1 / 5


@pytest.mark.parametrize(
    ("known", "delivered", "start", "expected"),
    [
        (None, 0, 20, 16),  # by its own requests_per_second
        (None, 5, 20, 4),  # what was delivered says more
        (80, 0, 20, 0.8),  # it took 100 a second, and takes nothing
        (0.5, 0, 20, 0.4),  # one second shows nothing of a pace that is slower
        (0.5, 1, 20, 0.8),
    ],
)
def test_without_recent_deliveries_a_rate_begins_with_the_last_or_configured_one(
    known: float | None, delivered: float, start: float, expected: float
) -> None:
    before = None if known is None else Breaker(pace_per_s=known, pace_at_ms=NOW_MS - 1000)
    found = limited(before, delivered_per_s=delivered, start_per_s=start)
    assert found.pace_per_s == pytest.approx(expected, rel=0.06)


def test_a_rate_and_a_hold_outlast_an_opening_and_a_closing() -> None:
    breaker = limited(None, asked_ms=1000)
    after = probing("111", opened(NOW_MS, breaker))
    assert (after.pace_per_s, after.pace_at_ms, after.held_until_ms) == (80, NOW_MS + 1000, NOW_MS + 1000)


@given(st.floats(0, 1e6), st.integers(0, 10**13), st.integers(0, 10**9))
def test_a_hold_is_a_day_at_most_and_a_rate_within_its_bounds(
    delivered: float, asked_ms: int, later_ms: int
) -> None:
    breaker = limited(None, asked_ms=asked_ms, delivered_per_s=delivered)
    assert breaker.held_until_ms <= NOW_MS + LONGEST_RETRY_AFTER_MS
    pace = pace_per_s(breaker, NOW_MS + later_ms)
    assert pace == 0 or LEAST_PER_S <= pace < MOST_PER_S


def test_a_breaker_without_any_effect_is_forgotten() -> None:
    closed = Breaker(closed_at_ms=NOW_MS)
    assert decide.tidied(closed, NOW_MS + WINDOW_MS) == closed
    assert decide.tidied(closed, NOW_MS + WINDOW_MS + 1) is None
    for kept in (opened(), limited(None), limited(None, asked_ms=MINUTE_MS), Breaker(since_ms=1)):
        assert decide.tidied(kept, NOW_MS + 30_000) == kept
    assert decide.tidied(Breaker(reason="unreadable"), NOW_MS) is None


EVENTS = st.sampled_from(["count", "idle", "forbidden", "limited", "tidy", "1", "0", "0!"])


@given(st.lists(st.tuples(EVENTS, st.integers(0, 400_000)), max_size=60))
def test_whatever_happens_an_unpaused_breaker_lets_an_attempt_through_within_a_day(
    happened: list[tuple[str, int]],
) -> None:
    breaker: Breaker | None = None
    now_ms = NOW_MS
    for event, later_ms in happened:
        now_ms += later_ms
        asked = DOWN._replace(retry_after_ms=10**10 if event == "0!" else 0)
        decisions: dict[str, Any] = {
            "count": partial(decide.counted, results=BAD._replace(from_ms=now_ms), failure=DOWN),
            "idle": decide.idle,
            "forbidden": partial(decide.forbidden, failure=DOWN),
            "limited": partial(decide.limited, failure=asked, delivered_per_s=3),
            "tidy": decide.tidied,
            "1": partial(decide.probed, account="a"),
        }
        decision = decisions.get(event, partial(decide.probed, account="a", failure=asked))
        before, breaker = breaker, decision(breaker, now_ms)
        assert decide.backs_off_until_ms(breaker) <= now_ms + LONGEST_RETRY_AFTER_MS or (
            breaker and breaker.paused_at_ms
        )
        if before and breaker and before.paused_at_ms:
            assert breaker == before
        if breaker:
            assert 1 <= breaker.allowed <= 4
            assert len(breaker.probes) <= 5
            assert bool(breaker.since_ms) or not (breaker.open_until_ms or breaker.probes or breaker.rests)


def test_errors_about_one_event_and_429s_are_not_counted() -> None:
    assert {answer for answer in Answer if answer not in RESULTS} == {
        Answer.DELIVERED,
        Answer.REJECTED,
        Answer.SLOW_DOWN,
        Answer.FORBIDDEN,
        Answer.GONE,
    }


# Concurrency


def capacity(
    concurrency: Concurrency,
    in_flight: int = 0,
    of_all: int = 0,
    *,
    name: str = "ops",
    probes: int | None = None,
    per_second: float = 0,
) -> int:
    return concurrency.capacity(
        name,
        probes=probes,
        limit=32,
        per_second=per_second,
        in_flight=in_flight,
        in_flight_of_all=of_all,
    )


def earning(deliveries: int, name: str = "ops") -> Concurrency:
    concurrency = Concurrency(MOST)
    for _ in range(deliveries):
        concurrency.delivered(name, limit=32)
    return concurrency


@pytest.mark.parametrize(("deliveries", "expected"), [(0, 2), (1, 3), (7, 9), (100, 32)])
def test_each_delivery_adds_one_to_the_concurrency_up_to_the_configured_limit(
    deliveries: int, expected: int
) -> None:
    assert capacity(earning(deliveries)) == expected


def test_overload_halves_the_concurrency_once_a_second_down_to_two() -> None:
    concurrency = earning(40)
    found = []
    for now_ms in (0, 999, 1000, 2000, 3000, 4000, 5000):
        concurrency.overloaded("ops", now_ms)
        found.append(capacity(concurrency, in_flight=0))
    assert found == [16, 16, 8, 4, 2, 2, 2]
    concurrency.delivered("ops", limit=32)
    assert capacity(concurrency) == 3


def test_other_failures_do_not_reduce_the_concurrency() -> None:
    concurrency = earning(40)
    concurrency.failed("ops")
    assert capacity(concurrency) == 32


@pytest.mark.parametrize(("probes", "in_flight", "expected"), [(1, 0, 1), (1, 1, 0), (4, 1, 3), (64, 0, 32)])
def test_a_half_open_breaker_allows_its_probes_whatever_the_concurrency(
    probes: int, in_flight: int, expected: int
) -> None:
    assert capacity(earning(40), in_flight, in_flight, probes=probes) == expected


@pytest.mark.parametrize(("per_second", "expected"), [(0.1, 1), (2.5, 1), (20, 5), (1000, 32)])
def test_no_more_attempts_begin_than_have_a_turn_within_a_quarter_of_a_second(
    per_second: float, expected: int
) -> None:
    assert capacity(earning(40), per_second=per_second) == expected


def test_subscriptions_with_attempts_in_flight_leave_a_fifth_to_those_without() -> None:
    concurrency = earning(40)
    assert capacity(concurrency, 3, 70) == 10
    assert capacity(concurrency, 3, 80) == 0
    assert capacity(concurrency, 0, 80) == 20
    assert capacity(concurrency, 0, MOST) == 0


def test_unanswered_subscriptions_leave_half_and_unknown_ones_take_one_of_the_last_fifth() -> None:
    concurrency = earning(40)
    concurrency.failed("ops")
    assert [capacity(concurrency, 0, of_all) for of_all in (49, 50)] == [1, 0]
    assert [capacity(earning(0), 0, of_all, probes=1) for of_all in (49, 50)] == [1, 0]
    assert [capacity(earning(0), 0, of_all) for of_all in (78, 79, 80, 99, 100)] == [2, 1, 1, 1, 0]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(0, 3)), max_size=300),
)
def test_a_healthy_subscription_without_attempts_in_flight_always_finds_capacity(
    happened: list[tuple[str, bool, int]],
) -> None:
    """A few subscriptions use all the capacity they get, and fail or deliver in any order."""
    concurrency, names = Concurrency(20), "abcdef"
    in_flight, fails = dict.fromkeys(names, 0), dict.fromkeys(names, False)
    for now_s, (name, is_delivered, ends) in enumerate(happened):
        of_all = sum(in_flight.values())
        most = capacity(concurrency, in_flight[name], of_all, name=name)
        assert of_all + most <= 20
        if fails[name] or in_flight[name]:
            bound = 10 if fails[name] else 16
            assert of_all + most <= max(of_all, bound), "one half is not theirs, nor the last fifth"
        else:
            assert most or of_all == 20
        in_flight[name] += most
        ended = min(ends, in_flight[name])
        in_flight[name] -= ended
        if ended:
            fails[name] = not is_delivered
            if is_delivered:
                concurrency.delivered(name, limit=32)
            else:
                concurrency.failed(name)
                concurrency.overloaded(name, 1000 * now_s)


def test_the_rate_of_the_last_second_is_counted() -> None:
    recent = Recent()
    for at_ms in range(0, 2000, 10):
        recent.add(at_ms)
    assert recent.per_s(1999) == pytest.approx(100, rel=0.02)
    assert recent.per_s(2500) == pytest.approx(50, rel=0.02)
    assert recent.per_s(4000) == 0


@given(st.lists(st.integers(0, 400), max_size=60))
def test_the_counted_rate_is_never_more_than_the_events_of_two_seconds(gaps_ms: Sequence[int]) -> None:
    recent, now_ms, times = Recent(), 0, []
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        recent.add(now_ms)
        times.append(now_ms)
        found = recent.per_s(now_ms)
        assert sum(at > now_ms - 1 for at in times) <= found + 1e-9
        assert found <= sum(at > now_ms - 2000 for at in times) + 1e-9


def test_the_reason_why_a_url_is_unverified_is_kept_until_it_is_verified() -> None:
    failed = decide.pinged(None, NOW_MS, error="status 404")
    assert failed == Breaker(ping_error="status 404")
    assert decide.tidied(failed, NOW_MS + 10 * PATIENCE_MS) == failed
    assert state(failed, NOW_MS) is State.CLOSED
    assert decide.pinged(failed, NOW_MS, error="") is None
    open_ = opened()
    assert decide.pinged(open_._replace(ping_error="x"), NOW_MS, error="") == open_
