"""What becomes of a delivery after an attempt, whatever the sink."""

import pytest

from tests.support.builders import seconds
from watcher.delivery.sink import LONGEST_RETRY_AFTER_S, Attempt, Outcome, judge
from watcher.durations import parse_duration
from watcher.engine.breaker import RULES, Answer
from watcher.settings import DEFAULT_RETRIES

DEFAULT = tuple(map(parse_duration, DEFAULT_RETRIES))


def an_attempt(answer: Answer = Answer.REJECTED, retry_after_s: float | None = None) -> Attempt:
    return Attempt(answer, 5, 404, retry_after_s=retry_after_s)


@pytest.mark.parametrize("failed_before", [0, 9, 20])
def test_what_is_delivered_is_done(failed_before: int) -> None:
    assert judge(an_attempt(Answer.DELIVERED), failed_before, DEFAULT, chance=0) == (
        Outcome.DELIVERED,
        0,
        ("", ((0,), False, False), 0),
    )


@pytest.mark.parametrize("answer", [answer for answer in Answer if answer is not Answer.DELIVERED])
def test_nothing_else_is(answer: Answer) -> None:
    verdict = judge(an_attempt(answer), 0, DEFAULT, chance=0)
    assert verdict.outcome is Outcome.RETRY
    assert verdict.failure.rule is RULES[answer]


def test_the_schedule_is_the_documented_one() -> None:
    waits_s = [judge(an_attempt(), n, DEFAULT, chance=0).wait_ms / 1000 for n in range(9)]
    assert waits_s == [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]


@pytest.mark.parametrize("answer", [Answer.REJECTED, Answer.SLOW_DOWN, Answer.NO_ANSWER])
def test_after_the_last_attempt_the_delivery_is_a_dead_letter(answer: Answer) -> None:
    verdict = judge(an_attempt(answer), 9, DEFAULT, chance=0)
    assert verdict.outcome is Outcome.REFUSED
    assert verdict.failure.reason == "status 404"
    assert verdict.failure.rule is RULES[answer], "and it says the same of its subscription"


def test_a_schedule_of_its_own_is_kept() -> None:
    retries = seconds(0, 1)
    assert judge(an_attempt(), 0, retries, chance=0).wait_ms == 1000
    assert judge(an_attempt(), 1, retries, chance=0).outcome is Outcome.REFUSED


def test_jitter_makes_waits_up_to_a_tenth_longer() -> None:
    assert 5000 < judge(an_attempt(), 0, DEFAULT, chance=0.99).wait_ms <= 5500


def test_retry_after_holds_the_whole_subscription() -> None:
    verdict = judge(an_attempt(Answer.SLOW_DOWN, 60), 0, DEFAULT, chance=0)
    assert (verdict.wait_ms, verdict.failure.retry_after_ms) == (60_000, 60_000)


def test_retry_after_is_believed_for_a_day_at_most() -> None:
    verdict = judge(an_attempt(Answer.SLOW_DOWN, 1e9), 0, DEFAULT, chance=0)
    assert verdict.failure.retry_after_ms == 1000 * LONGEST_RETRY_AFTER_S


def test_retry_after_never_shortens_the_schedule() -> None:
    assert judge(an_attempt(Answer.SLOW_DOWN, 1), 3, DEFAULT, chance=0).wait_ms == 7_200_000


def test_retry_after_of_what_may_be_about_one_event_is_not_obeyed() -> None:
    verdict = judge(an_attempt(Answer.REJECTED, 60), 0, DEFAULT, chance=0)
    assert (verdict.wait_ms, verdict.failure.retry_after_ms) == (5000, 0)


@pytest.mark.parametrize("failed_before", [0, 9, 20])
def test_what_is_gone_is_paused_at_once_and_keeps_the_event(failed_before: int) -> None:
    verdict = judge(an_attempt(Answer.GONE), failed_before, DEFAULT, chance=0)
    assert (verdict.outcome, verdict.wait_ms) == (Outcome.RETRY, 86_400_000)
    assert verdict.failure.rule.pauses


@pytest.mark.parametrize("failed_before", [0, 9, 20])
def test_what_our_own_policy_forbids_is_kept_and_tried_slowly(failed_before: int) -> None:
    refused = Attempt(Answer.FORBIDDEN, 0, error="refused: private address")
    verdict = judge(refused, failed_before, DEFAULT, chance=0)
    assert (verdict.outcome, verdict.wait_ms) == (Outcome.RETRY, 900_000)
    assert verdict.failure.reason == "refused: private address"


def test_an_error_of_ours_is_told_in_our_words_with_what_fixes_it() -> None:
    attempt = Attempt(Answer.NO_ANSWER, 0, error="TLS failed", fix="look at its certificate")
    assert judge(attempt, 0, DEFAULT, chance=0).failure.reason == "TLS failed; look at its certificate"
