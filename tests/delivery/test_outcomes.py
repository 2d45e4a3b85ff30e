"""What becomes of a delivery after an attempt."""

import pytest

from tests.support.builders import seconds
from watcher.delivery.outcomes import LONGEST_RETRY_AFTER_S, Attempt, Outcome, judge
from watcher.durations import parse_duration
from watcher.settings import DEFAULT_RETRIES

DEFAULT = tuple(map(parse_duration, DEFAULT_RETRIES))


def an_attempt(
    status: int | None = None, error: str | None = None, retry_after_s: float | None = None
) -> Attempt:
    return Attempt(5, status, error, retry_after_s)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert judge(an_attempt(status), 0, DEFAULT, chance=0).outcome is Outcome.DELIVERED


@pytest.mark.parametrize(
    "status", [0, 100, 199, 300, 301, 302, 307, 308, 400, 401, 404, 410, 429, 500, 503, 999]
)
def test_nothing_else_is(status: int) -> None:
    assert judge(an_attempt(status), 0, DEFAULT, chance=0).outcome is Outcome.RETRY


def test_the_schedule_is_the_documented_one() -> None:
    waits_s = [judge(an_attempt(500), n, DEFAULT, chance=0).wait_ms / 1000 for n in range(9)]
    assert waits_s == [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]


def test_after_the_last_attempt_the_delivery_is_a_dead_letter() -> None:
    verdict = judge(an_attempt(404), 9, DEFAULT, chance=0)
    assert verdict.outcome is Outcome.REFUSED
    assert verdict.reason == "status 404"


def test_a_schedule_of_its_own_is_kept() -> None:
    retries = seconds(0, 1)
    assert judge(an_attempt(500), 0, retries, chance=0).wait_ms == 1000
    assert judge(an_attempt(500), 1, retries, chance=0).outcome is Outcome.REFUSED


def test_jitter_makes_waits_up_to_a_tenth_longer() -> None:
    assert 5000 < judge(an_attempt(500), 0, DEFAULT, chance=0.99).wait_ms <= 5500


def test_retry_after_of_429_holds_the_whole_subscription() -> None:
    verdict = judge(an_attempt(429, retry_after_s=60), 0, DEFAULT, chance=0)
    assert (verdict.wait_ms, verdict.wish_ms) == (60_000, 60_000)


def test_retry_after_is_believed_for_a_day_at_most() -> None:
    verdict = judge(an_attempt(503, retry_after_s=1e9), 0, DEFAULT, chance=0)
    assert verdict.wish_ms == 1000 * LONGEST_RETRY_AFTER_S


def test_retry_after_never_shortens_the_schedule() -> None:
    assert judge(an_attempt(503, retry_after_s=1), 3, DEFAULT, chance=0).wait_ms == 7_200_000


@pytest.mark.parametrize("attempt", [*map(an_attempt, (429, 502, 503, 504)), an_attempt(error="TLS failed")])
def test_what_speaks_for_the_whole_receiver_gives_it_rest_longer_each_time(attempt: Attempt) -> None:
    rests_ms = judge(attempt, 0, DEFAULT, chance=0).rests_ms
    assert list(rests_ms) == sorted(rests_ms)
    assert 0 < rests_ms[0] < rests_ms[-1] <= 300_000


@pytest.mark.parametrize("status", [301, 400, 404, 422, 500])
def test_what_may_be_about_one_event_lets_the_others_go_on(status: int) -> None:
    verdict = judge(an_attempt(status, retry_after_s=60), 0, DEFAULT, chance=0)
    assert (max(verdict.rests_ms), verdict.wish_ms, verdict.pause) == (0, 0, False)


@pytest.mark.parametrize("failed_before", [0, 9, 20])
def test_410_pauses_at_once_and_keeps_the_event(failed_before: int) -> None:
    verdict = judge(an_attempt(410), failed_before, DEFAULT, chance=0)
    assert (verdict.outcome, verdict.pause) == (Outcome.RETRY, True)


@pytest.mark.parametrize("failed_before", [0, 9, 20])
def test_what_our_own_policy_refuses_is_kept_and_tried_slowly(failed_before: int) -> None:
    refused = Attempt(0, error="refused: private address", is_refused_by_us=True)
    verdict = judge(refused, failed_before, DEFAULT, chance=0)
    assert (verdict.outcome, verdict.wait_ms) == (Outcome.RETRY, 900_000)
    assert verdict.reason == "refused: private address"


def test_an_error_of_ours_is_told_in_our_words() -> None:
    assert judge(an_attempt(error="TLS failed"), 0, DEFAULT, chance=0).reason == "TLS failed"
