"""When an account is polled next, and when it is stale."""

from datetime import timedelta

import pytest

from tests.support.builders import a_balance, a_state, an_account, seconds
from watcher.journal.account import AccountState, Emptiness, Entry
from watcher.polling.cadence import (
    Watch,
    patience_ms,
    spread_ms,
    stale_since_ms,
    wait_s,
    waits_ms,
)
from watcher.snapshot import Asset, Balance

INTERVAL, PENDING = seconds(30, 10)
ACCOUNT = an_account(interval=INTERVAL, pending_interval=PENDING)


def with_entry(confirmation_polls: int = 0, suspect: Balance | None = None) -> AccountState:
    entry = Entry(Asset("ETH"), a_balance("1"), a_balance("1"), confirmation_polls, suspect)
    return AccountState("here", None, {"ETH": entry})


def emptied(state: AccountState) -> AccountState:
    return state._replace(emptiness=Emptiness(0))


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
def test_an_account_with_pending_amounts_is_polled_sooner(state: AccountState, expected_s: float) -> None:
    assert wait_s(ACCOUNT, state) == expected_s


def test_an_empty_listing_makes_no_poll_later() -> None:
    assert wait_s(an_account(interval=PENDING), emptied(a_state(ETH="1"))) == 10


def test_a_pending_interval_never_makes_polls_later() -> None:
    often = an_account(interval=PENDING, pending_interval=INTERVAL)
    assert wait_s(often, a_state(ETH=a_balance("1", pending_deposit="2"))) == 10


def test_rejected_polls_wait_longer_each_time_up_to_five_minutes() -> None:
    assert list(waits_ms(ACCOUNT, "transient", chance=0)) == [
        *(5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000)
    ]


def test_a_short_interval_means_short_waits_after_a_rejection() -> None:
    (second,) = seconds(1)
    assert list(waits_ms(an_account(interval=second), "gone", chance=0))[:3] == [1_000, 2_000, 4_000]


def test_errors_that_need_a_person_wait_long_from_the_start() -> None:
    assert min(waits_ms(ACCOUNT, "auth", chance=0)) >= 60_000


def test_jitter_spreads_waits_without_making_them_longer() -> None:
    assert spread_ms(30, 0.0) == 30_000
    assert 27_000 <= spread_ms(30, 0.999) < 27_100


def test_an_account_goes_stale_after_three_intervals_and_the_timeout() -> None:
    assert patience_ms(ACCOUNT, timedelta(seconds=10)) == 100_000


@pytest.mark.parametrize(
    ("polled_at_ms", "reported_ms", "watched_since_ms", "now_ms", "expected"),
    [
        (5_000, 0, 0, 104_999, None),
        (5_000, 0, 0, 105_000, 5_000),
        (5_000, 0, 50_000, 149_999, None),  # the workers came back
        (5_000, 0, 50_000, 150_000, 50_000),
        (80_000, 0, 50_000, 150_000, None),
        (0, 0, 50_000, 500_000, None),  # it was never read, and it is not known since when
        (149_000, 7, 50_000, 150_000, 7),  # emitted, and not recovered
        (0, 7, 0, 150_000, 7),
    ],
)
def test_an_account_is_stale_by_the_age_of_its_last_successful_poll_while_workers_were_there(
    polled_at_ms: int, reported_ms: int, watched_since_ms: int, now_ms: int, expected: int | None
) -> None:
    found = stale_since_ms(
        polled_at_ms, reported_ms, watched_since_ms=watched_since_ms, patience_ms=100_000, now_ms=now_ms
    )
    assert found == expected


def names_due(watch: Watch, now_ms: int, at_most: int = 9) -> list[str]:
    return [one.account for one in watch.due(now_ms, at_most)]


def test_each_account_is_checked_when_due_the_longest_wait_first() -> None:
    watch = Watch()
    for number, name in enumerate(("c", "a", "b")):
        watch.follow("loopring", name, 10 + number)
    assert names_due(watch, 9) == []
    first, second = watch.due(12, at_most=2)
    assert (first.account, second.account) == ("c", "a")
    watch.again(first, 50)
    watch.again(second)
    assert names_due(watch, 49) == ["a", "b"]
    assert names_due(watch, 50) == ["c"]


def test_a_forgotten_account_is_not_checked_and_once_when_it_is_back() -> None:
    watch = Watch()
    watch.follow("loopring", "a", 10)
    watch.follow("loopring", "a", 11)
    watch.forget("loopring", "a")
    assert names_due(watch, 99) == []
    watch.follow("loopring", "a", 10)
    (one,) = watch.due(99, 9)
    watch.forget("loopring", "a")
    watch.again(one, 20)
    watch.follow("loopring", "a", 30)
    assert [one.first_seen_ms for one in watch.due(99, 9)] == [30]


def test_an_account_that_moves_to_another_provider_is_checked_only_there() -> None:
    watch = Watch()
    watch.follow("loopring", "a", 10)
    watch.follow("shop", "a", 11)
    watch.forget("loopring", "a")
    assert [(one.provider, one.account) for one in watch.due(99, 9)] == [("shop", "a")]


def test_no_account_of_a_removed_provider_is_checked() -> None:
    watch = Watch()
    for name in ("a", "b"):
        watch.follow("loopring", name, 10)
        watch.follow("shop", name, 11)
    watch.forget_all("loopring")
    assert [(one.provider, one.account) for one in watch.due(99, 9)] == [("shop", "a"), ("shop", "b")]
