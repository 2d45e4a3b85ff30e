"""When a provider counts as unavailable, which account may probe it, and when it is back."""

from itertools import pairwise

import pytest

from watcher.engine.breaker import OPEN_AFTER, ProviderBreaker, State
from watcher.providers.contract import ErrorClass, Rejected

NOW = 200.0


def a_breaker(
    *, accounts: int = 2, rejections: int = OPEN_AFTER, error_class: ErrorClass = "gone"
) -> ProviderBreaker:
    breaker = ProviderBreaker()
    for number in range(rejections):
        breaker.rejected(f"account-{number % accounts}", Rejected(error_class, "no"), now=100.0 + number)
    return breaker


def test_rejections_of_several_accounts_in_a_row_open_the_breaker() -> None:
    assert a_breaker(rejections=OPEN_AFTER - 1).state(NOW) is State.CLOSED
    assert a_breaker(rejections=OPEN_AFTER).state(NOW) is not State.CLOSED


def test_rejections_of_a_single_account_are_no_outage() -> None:
    assert a_breaker(accounts=1, rejections=50).state(NOW) is State.CLOSED


def test_mistakes_in_a_configuration_do_not_count_for_the_breaker() -> None:
    assert a_breaker(rejections=50, error_class="configuration").state(NOW) is State.CLOSED


@pytest.mark.parametrize("error_class", ["auth", "rate", "transient", "malformed", "gone"])
def test_any_other_error_of_all_accounts_opens_it(error_class: ErrorClass) -> None:
    assert a_breaker(error_class=error_class).state(NOW) is not State.CLOSED


def test_a_successful_poll_in_between_restarts_the_count() -> None:
    breaker = a_breaker(rejections=OPEN_AFTER - 1)
    breaker.answered()
    breaker.rejected("account-0", Rejected("gone", "no"), 201.0)
    assert breaker.state(NOW) is State.CLOSED
    assert breaker.may_ask(201.0)


def test_during_an_outage_one_account_probes_at_growing_intervals() -> None:
    breaker = a_breaker()
    asked_at = [now for now in range(105, 1000) if breaker.may_ask(float(now))]
    gaps = [later - sooner for sooner, later in pairwise(asked_at)]
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (5, 60)


def test_the_first_successful_poll_closes_it() -> None:
    breaker = a_breaker()
    breaker.answered()
    assert breaker.state(NOW) is State.CLOSED
    assert all(breaker.may_ask(160.0) for _ in range(100))


def test_a_wrong_key_stays_the_cause_beside_rate_limits_until_another_error() -> None:
    breaker = a_breaker(error_class="auth")
    for number in range(3 * OPEN_AFTER):
        breaker.rejected(f"account-{number}", Rejected("rate", "over the limit"), 300.0)
    assert breaker.cause is not None
    assert breaker.cause.error_class == "auth"
    for number in range(OPEN_AFTER):
        assert breaker.cause
        breaker.rejected(f"account-{number}", Rejected("transient", "down"), 300.0)
    assert breaker.cause is None


def test_a_successful_poll_ends_the_cause() -> None:
    breaker = a_breaker(error_class="auth")
    breaker.answered()
    assert breaker.cause is None


def test_after_an_outage_two_accounts_must_fail_to_open_it_again() -> None:
    breaker = a_breaker()
    breaker.answered()
    for number in range(2 * OPEN_AFTER):
        breaker.rejected("account-0", Rejected("gone", "no"), 201.0 + number)
    assert breaker.state(NOW) is State.CLOSED


def test_the_next_outage_is_probed_as_early_as_the_first() -> None:
    breaker = a_breaker()
    for now in range(105, 1000):
        breaker.may_ask(float(now))
    breaker.answered()
    for number in range(OPEN_AFTER):
        breaker.rejected(f"account-{number}", Rejected("gone", "no"), 1000.0)
    asked_at = [now for now in range(1000, 1100) if breaker.may_ask(float(now))]
    assert asked_at[:3] == [1005, 1010, 1020]
