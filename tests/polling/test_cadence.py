"""When an account is polled next."""

from dataclasses import replace

import pytest

from tests.support.builders import a_balance, a_state, an_account, seconds
from watcher.journal.account import AccountState, Emptiness, Entry
from watcher.polling.cadence import spread_ms, wait_s, waits_ms
from watcher.snapshot import Asset, Balance

INTERVAL, PENDING = seconds(30, 10)
ACCOUNT = an_account(interval=INTERVAL, pending_interval=PENDING)


def with_entry(confirmation_polls: int = 0, suspect: Balance | None = None) -> AccountState:
    entry = Entry(Asset("ETH"), a_balance("1"), a_balance("1"), confirmation_polls, suspect)
    return AccountState("here", None, {"ETH": entry})


def emptied(state: AccountState) -> AccountState:
    return replace(state, emptiness=Emptiness(0))


@pytest.mark.parametrize(
    ("state", "expected_s"),
    [
        (a_state(ETH="1"), 30),
        (a_state(ETH=a_balance("1", pending_deposit="2")), 10),
        (a_state(ETH=a_balance("1", pending_withdrawal="2")), 10),
        (a_state(ETH=a_balance("1", "0", None, None)), 30),
        (with_entry(confirmation_polls=1), 10),
        (with_entry(suspect=a_balance("0")), 2),
        (emptied(a_state(ETH="1")), 20),
        (emptied(with_entry(confirmation_polls=1, suspect=a_balance("0"))), 20),
    ],
)
def test_what_is_unfinished_is_asked_about_sooner(state: AccountState, expected_s: float) -> None:
    assert wait_s(ACCOUNT, state) == expected_s


def test_an_empty_listing_makes_no_poll_rarer() -> None:
    assert wait_s(an_account(interval=PENDING), emptied(a_state(ETH="1"))) == 10


def test_a_pending_interval_never_makes_polls_rarer() -> None:
    often = an_account(interval=PENDING, pending_interval=INTERVAL)
    assert wait_s(often, a_state(ETH=a_balance("1", pending_deposit="2"))) == 10


def test_rejected_polls_wait_longer_each_time_up_to_five_minutes() -> None:
    assert list(waits_ms(ACCOUNT, "transient", chance=0)) == [
        *(5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000)
    ]


def test_an_account_that_is_polled_often_is_asked_again_soon() -> None:
    (second,) = seconds(1)
    assert list(waits_ms(an_account(interval=second), "gone", chance=0))[:3] == [1_000, 2_000, 4_000]


def test_what_needs_a_person_is_asked_seldom_from_the_start() -> None:
    assert min(waits_ms(ACCOUNT, "auth", chance=0)) >= 60_000


def test_chance_spreads_waits_without_making_them_longer() -> None:
    assert spread_ms(30, 0.0) == 30_000
    assert 27_000 <= spread_ms(30, 0.999) < 27_100
