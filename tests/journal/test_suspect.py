"""Which readings count at once, and which wait for a second one that agrees."""

import pytest

from watcher.journal.account import absent, why_suspect
from watcher.snapshot import Asset, Balance, Row


def a_balance(
    total: str = "100", locked: str = "20", deposit: str | None = "5", withdrawal: str | None = "3"
) -> Balance:
    return Balance(total, locked, deposit, withdrawal)


def a_row(balance: Balance, *, locked_absent: bool = False) -> Row:
    return Row(Asset("1"), balance, locked_absent)


ACCEPTED = a_balance()
EMPTY = a_balance("0", "0", "0", "0")
ZERO_TOTAL = a_balance(total="0", locked="0")
NO_LOCK = a_balance(locked="0")
OVERLOCKED = a_balance(total="20", locked="100")
OVERDRAWN = a_balance(total="-5", locked="20")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (None, "the asset disappeared"),
        (a_row(ZERO_TOTAL), "total fell to zero"),
        (a_row(NO_LOCK, locked_absent=True), "locked disappeared"),
        (a_row(OVERLOCKED), "more is locked than there is"),
        (a_row(a_balance(total="19.999", locked="20")), "more is locked than there is"),
    ],
)
def test_a_suspect_reading_says_why_it_waits(row: Row | None, why: str) -> None:
    assert why_suspect(ACCEPTED, row) == why


@pytest.mark.parametrize(
    "balance",
    [
        ACCEPTED,
        NO_LOCK,  # said in so many words
        a_balance(total="100", locked="100"),
        a_balance(total="1", locked="1"),
        a_balance(total="9", locked="0"),
        a_balance(deposit="0", withdrawal="0"),
        a_balance(total="1000", locked="200"),
        OVERDRAWN,
        a_balance(total="-5", locked="0"),
        a_balance(total="-0.000000000000000001", locked="20"),
    ],
)
def test_a_plain_reading_counts_at_once(balance: Balance) -> None:
    assert why_suspect(ACCEPTED, a_row(balance)) is None


@pytest.mark.parametrize("field", range(4))
def test_an_asset_with_any_balance_is_suspect_when_absent(field: int) -> None:
    held = Balance(*("1" if each == field else "0" for each in range(4)))
    assert why_suspect(held, None) == "the asset disappeared"


def test_an_empty_asset_may_appear_and_vanish_unnoticed() -> None:
    assert why_suspect(EMPTY, None) is None
    assert why_suspect(EMPTY, a_row(EMPTY, locked_absent=True)) is None


def test_a_total_that_was_zero_already_is_not_suspect() -> None:
    assert why_suspect(ZERO_TOTAL, a_row(ZERO_TOTAL._replace(pending_deposit="6"))) is None


@pytest.mark.parametrize("total", ["-5.5", "-0.1", "3000"])
def test_an_overdrawn_account_changes_at_once(total: str) -> None:
    assert why_suspect(OVERDRAWN, a_row(OVERDRAWN._replace(total=total))) is None


def test_a_debt_that_is_suddenly_zero_waits_as_a_balance_does() -> None:
    assert why_suspect(OVERDRAWN, a_row(ZERO_TOTAL)) == "total rose to zero"
    assert why_suspect(OVERDRAWN, None) == "the asset disappeared"
    assert why_suspect(OVERDRAWN, a_row(ZERO_TOTAL), suspect=ZERO_TOTAL) is None


def test_an_absent_lock_that_never_existed_is_not_suspect() -> None:
    assert why_suspect(NO_LOCK, a_row(a_balance(total="90", locked="0"), locked_absent=True)) is None


def test_more_locked_than_the_total_stays_accepted_whatever_the_pendings_do() -> None:
    assert why_suspect(OVERLOCKED, a_row(OVERLOCKED._replace(pending_deposit="6"))) is None
    assert why_suspect(OVERLOCKED, a_row(OVERLOCKED._replace(locked="101"))) == "more is locked than there is"


@pytest.mark.parametrize("row", [a_row(ZERO_TOTAL), a_row(NO_LOCK, locked_absent=True), a_row(OVERLOCKED)])
def test_the_same_suspect_reading_twice_counts(row: Row) -> None:
    assert why_suspect(ACCEPTED, row) is not None
    assert why_suspect(ACCEPTED, row, suspect=row.balance) is None


def test_absence_and_a_row_of_zeros_agree_with_each_other() -> None:
    assert why_suspect(ACCEPTED, a_row(EMPTY), suspect=absent(ACCEPTED)) is None
    assert why_suspect(ACCEPTED, None, suspect=EMPTY) is None


def test_a_reading_that_is_suspect_for_another_reason_is_a_new_suspicion() -> None:
    assert why_suspect(ACCEPTED, None, suspect=OVERLOCKED) == "the asset disappeared"
    assert why_suspect(ACCEPTED, a_row(ZERO_TOTAL), suspect=OVERLOCKED) == "total fell to zero"
    assert why_suspect(ACCEPTED, a_row(OVERLOCKED), suspect=NO_LOCK) == "more is locked than there is"


def test_a_suspicion_ends_with_the_next_successful_poll_even_if_other_fields_go_on_moving() -> None:
    assert why_suspect(ACCEPTED, a_row(ZERO_TOTAL), suspect=EMPTY) is None
    assert why_suspect(ACCEPTED, a_row(OVERLOCKED), suspect=OVERLOCKED._replace(locked="99")) is None


def test_a_plain_reading_ends_a_suspicion() -> None:
    assert why_suspect(ACCEPTED, a_row(ACCEPTED), suspect=ZERO_TOTAL) is None
    assert why_suspect(ACCEPTED, a_row(a_balance(total="99")), suspect=ZERO_TOTAL) is None


def test_an_absent_asset_reads_as_zero_in_the_fields_that_the_provider_has() -> None:
    assert absent(ACCEPTED) == EMPTY
    assert absent(a_balance(deposit=None, withdrawal=None)) == Balance("0", "0", None, None)
