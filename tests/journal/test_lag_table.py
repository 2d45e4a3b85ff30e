"""The claims of the table of late halves, so that they stay true when the rules change."""

import pytest

from tests.journal.lag_table import DEPOSIT_CLEARS, LAGS, SETTLE_POLLS, share, table


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("settle_polls", SETTLE_POLLS)
def test_a_deposit_is_recognised_exactly_if_its_halves_come_within_the_time_to_settle(
    lag: int, settle_polls: int
) -> None:
    is_in_time = abs(lag) <= settle_polls
    assert share(DEPOSIT_CLEARS, lag, settle_polls, trials=20, noise=0) == (is_in_time, not is_in_time)


@pytest.mark.parametrize("lag", LAGS)
def test_among_other_movements_more_time_to_settle_never_recognises_fewer_deposits(lag: int) -> None:
    shares = [share(DEPOSIT_CLEARS, lag, polls, trials=200, noise=0.3) for polls in SETTLE_POLLS]
    assert [each.recognised for each in shares] == sorted(each.recognised for each in shares)
    assert [each.mistaken for each in shares] == sorted((each.mistaken for each in shares), reverse=True)


def test_the_default_time_to_settle_recognises_most_deposits_that_are_two_polls_apart() -> None:
    for lag in (-2, 2):
        assert share(DEPOSIT_CLEARS, lag, 2, trials=200, noise=0.3).recognised > 0.6
        assert share(DEPOSIT_CLEARS, lag, 1, trials=200, noise=0.3).recognised < 0.2


def test_the_table_has_a_row_for_each_lag_of_each_movement_and_is_the_same_each_time() -> None:
    lines = list(table(trials=2, noise=0.3))
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 3 * len(LAGS)
    assert list(table(trials=2, noise=0.3)) == lines
