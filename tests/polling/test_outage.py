"""When a provider counts as unavailable, who may ask it then, and when it is back."""

from itertools import pairwise

from watcher.polling.outage import OPEN_AFTER, Outage
from watcher.providers.contract import ErrorClass, Rejected


def an_outage(*, accounts: int = 2, refusals: int = OPEN_AFTER, error_class: ErrorClass = "gone") -> Outage:
    outage = Outage()
    for number in range(refusals):
        outage.refused(f"account-{number % accounts}", Rejected(error_class, "no"), now=100.0 + number)
    return outage


def test_refusals_of_several_accounts_in_a_row_are_an_outage() -> None:
    assert not an_outage(refusals=OPEN_AFTER - 1).is_on
    assert an_outage(refusals=OPEN_AFTER).is_on


def test_one_account_alone_is_no_outage_whatever_it_meets() -> None:
    assert not an_outage(accounts=1, refusals=50).is_on


def test_mistakes_in_a_configuration_say_nothing_of_the_provider() -> None:
    assert not an_outage(refusals=50, error_class="configuration").is_on


def test_a_good_answer_in_between_starts_the_count_anew() -> None:
    outage = an_outage(refusals=OPEN_AFTER - 1)
    outage.good()
    outage.refused("account-0", Rejected("gone", "no"), 201.0)
    assert not outage.is_on
    assert outage.may_ask(201.0)


def test_during_an_outage_one_account_at_a_time_asks_ever_more_seldom() -> None:
    outage = an_outage()
    asked_at = [now for now in range(105, 1000) if outage.may_ask(float(now))]
    gaps = [later - sooner for sooner, later in pairwise(asked_at)]
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (5, 60)


def test_the_first_good_answer_ends_it() -> None:
    outage = an_outage()
    outage.good()
    assert not outage.is_on
    assert all(outage.may_ask(160.0) for _ in range(100))


def test_a_wrong_key_is_the_cause_whatever_rate_limits_answer_since_until_it_fails_in_another_way() -> None:
    outage = an_outage(error_class="auth")
    for number in range(3 * OPEN_AFTER):
        outage.refused(f"account-{number}", Rejected("rate", "over the limit"), 300.0)
    assert outage.cause is not None
    assert outage.cause.error_class == "auth"
    for number in range(OPEN_AFTER):
        assert outage.cause
        outage.refused(f"account-{number}", Rejected("transient", "down"), 300.0)
    assert outage.cause is None


def test_a_good_answer_ends_the_cause() -> None:
    outage = an_outage(error_class="auth")
    outage.good()
    assert outage.cause is None
