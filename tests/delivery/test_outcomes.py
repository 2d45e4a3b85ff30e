"""What becomes of a delivery after an attempt, whatever the sink."""

import pytest

from tests.support.builders import seconds
from watcher.delivery.sink import LONGEST_RETRY_AFTER_S, Attempt, Outcome, Verdict, judge
from watcher.durations import parse_duration
from watcher.engine.breaker import Answer
from watcher.settings import DEFAULT_RETRIES

DEFAULT = tuple(map(parse_duration, DEFAULT_RETRIES))
LAST = len(DEFAULT) - 1
ORDINARY = [Answer.REJECTED, Answer.FAILED, Answer.NO_ANSWER, Answer.OVERLOADED, Answer.SLOW_DOWN]


def an_attempt(answer: Answer = Answer.FAILED, retry_after_s: float | None = None) -> Attempt:
    return Attempt(answer, 5, 404, retry_after_s=retry_after_s)


@pytest.mark.parametrize("failed_before", [0, LAST, 40])
def test_a_success_is_delivered(failed_before: int) -> None:
    verdict = judge(an_attempt(Answer.DELIVERED), failed_before, DEFAULT, chance=0)
    assert verdict == Verdict(Outcome.DELIVERED)


@pytest.mark.parametrize("answer", [answer for answer in Answer if answer is not Answer.DELIVERED])
def test_nothing_but_a_success_is_delivered(answer: Answer) -> None:
    assert judge(an_attempt(answer), 0, DEFAULT, chance=0).outcome is Outcome.RETRY


def test_the_schedule_is_the_documented_one() -> None:
    waits_s = [judge(an_attempt(), n, DEFAULT, chance=0).wait_ms / 1000 for n in range(LAST)]
    hour = 3600
    assert waits_s[:9] == [0.25, 0.5, 1, 2, 5, 10, 30, 120, 300]
    assert waits_s[9:] == [1800, 2 * hour, 5 * hour, 10 * hour, 24 * hour, 24 * hour]


@pytest.mark.parametrize("answer", ORDINARY)
def test_after_the_last_attempt_the_delivery_is_a_dead_letter(answer: Answer) -> None:
    assert judge(an_attempt(answer), LAST - 1, DEFAULT, chance=0).outcome is Outcome.RETRY
    assert judge(an_attempt(answer), LAST, DEFAULT, chance=0).outcome is Outcome.REFUSED


@pytest.mark.parametrize("failed_before", [0, 3, LAST, 40])
@pytest.mark.parametrize("answer", [Answer.FAILED, Answer.NO_ANSWER, Answer.OVERLOADED, Answer.SLOW_DOWN])
def test_while_the_breaker_is_not_closed_no_retry_is_used_up(answer: Answer, failed_before: int) -> None:
    verdict = judge(an_attempt(answer), failed_before, DEFAULT, chance=0, is_closed=False)
    wait_ms = 1000 * DEFAULT[min(failed_before + 1, LAST)].total_seconds()
    assert verdict == Verdict(Outcome.RETRY, int(wait_ms), is_used=False)


@pytest.mark.parametrize("answer", ORDINARY)
def test_for_a_single_queue_a_500_or_4xx_uses_up_a_retry_all_the_same(answer: Answer) -> None:
    verdict = judge(an_attempt(answer), LAST, DEFAULT, chance=0, is_closed=False, is_alone=True)
    is_used = answer in (Answer.REJECTED, Answer.FAILED)
    assert verdict.outcome is (Outcome.REFUSED if is_used else Outcome.RETRY)


def test_an_error_about_one_event_uses_up_a_retry_in_any_state_of_the_breaker() -> None:
    verdict = judge(an_attempt(Answer.REJECTED), LAST, DEFAULT, chance=0, is_closed=False)
    assert verdict.outcome is Outcome.REFUSED


def test_a_configured_schedule_is_followed() -> None:
    retries = seconds(0, 1)
    assert judge(an_attempt(), 0, retries, chance=0).wait_ms == 1000
    assert judge(an_attempt(), 1, retries, chance=0).outcome is Outcome.REFUSED
    assert judge(an_attempt(), 0, seconds(0), chance=0, is_closed=False).wait_ms == 0


def test_jitter_makes_waits_up_to_a_tenth_longer() -> None:
    assert 5000 < judge(an_attempt(), 4, DEFAULT, chance=0.99).wait_ms <= 5500


@pytest.mark.parametrize("answer", ORDINARY)
def test_a_queue_waits_for_as_long_as_retry_after_asks(answer: Answer) -> None:
    assert judge(an_attempt(answer, 60), 0, DEFAULT, chance=0).wait_ms == 60_000
    assert judge(an_attempt(answer, 0.75), 0, DEFAULT, chance=0).wait_ms == 750
    assert judge(an_attempt(answer, 1), 9, DEFAULT, chance=0).wait_ms == 1_800_000, "and never less"
    longest = judge(an_attempt(answer, 1e9), 0, DEFAULT, chance=0).wait_ms
    assert longest == 1000 * LONGEST_RETRY_AFTER_S, "a day at most"


def test_the_retry_after_of_a_probe_is_left_to_the_breaker() -> None:
    waits_ms = [
        judge(an_attempt(answer, 60), 0, DEFAULT, chance=0, is_closed=False).wait_ms
        for answer in (Answer.OVERLOADED, Answer.SLOW_DOWN)
    ]
    assert waits_ms == [250, 60_000], "but for a 429, which holds all"


@pytest.mark.parametrize("failed_before", [0, LAST, 40])
def test_a_receiver_that_is_gone_is_paused_at_once_and_its_event_is_kept(failed_before: int) -> None:
    verdict = judge(an_attempt(Answer.GONE), failed_before, DEFAULT, chance=0)
    assert verdict == Verdict(Outcome.RETRY, 86_400_000, is_used=False)


@pytest.mark.parametrize("failed_before", [0, LAST, 40])
def test_an_address_that_policy_denies_is_retried_slowly(failed_before: int) -> None:
    refused = Attempt(Answer.FORBIDDEN, 0, error="refused: private address")
    verdict = judge(refused, failed_before, DEFAULT, chance=0)
    assert verdict == Verdict(Outcome.RETRY, 900_000, is_used=False)


def test_a_refusal_by_policy_names_its_reason_and_its_fix() -> None:
    attempt = Attempt(Answer.NO_ANSWER, 0, error="TLS failed", fix="look at its certificate")
    assert attempt.reason == "TLS failed; look at its certificate"
