"""The normal form of one asset, whichever way a provider writes it."""

import pytest

from watcher.snapshot import Balance


@pytest.mark.parametrize(
    ("pending", "comes_in", "goes_out"),
    [
        ("0", "0", "0"),
        ("2.5", "2.5", "0"),
        ("-2.5", "0", "2.5"),
        ("-0.000000000000000001", "0", "0.000000000000000001"),
    ],
)
def test_a_signed_pending_is_a_deposit_above_zero_and_a_withdrawal_below(
    pending: str, comes_in: str, goes_out: str
) -> None:
    assert Balance.of_signed("-7", "1", pending) == Balance("-7", "1", comes_in, goes_out)
