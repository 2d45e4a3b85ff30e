"""What an explanation has besides its changes, and the way from text to integers and back."""

import pytest

from watcher.journal.explain import Explanation, Vector, Withdrawals, explain, in_atoms, in_text
from watcher.snapshot import Balance

WITHOUT_PENDINGS = Balance("0", "0", None, None)
WITH_PENDINGS = Balance("0", "0", "0", "0")


def first_look(before: Vector, after: Vector, withdrawals: Withdrawals = "outside") -> Explanation:
    return explain(before, after, confirmation_polls=0, settle_polls=2, withdrawals=withdrawals)


@pytest.mark.parametrize(
    ("withdrawals", "before", "after", "why"),
    [
        ("outside", (100, 20, 5, 0), (100, 20, 0, 0), "a pending deposit's credit is not seen"),
        ("outside", (100, 20, 5, 0), (103, 20, 5, 0), "a credit may belong to a pending deposit"),
        ("outside", (100, 20, 0, 0), (100, 20, 0, 5), "a withdrawal's debit is not seen"),
        ("outside", (100, 20, 0, 5), (100, 20, 0, 0), "a withdrawal may still come back"),
        ("inside", (100, 20, 0, 0), (100, 20, 0, 5), "a withdrawal's lock is not seen"),
        ("inside", (100, 20, 0, 5), (100, 17, 0, 0), "a withdrawal's debit is not seen"),
    ],
)
def test_a_pending_change_says_what_it_waits_for(
    withdrawals: Withdrawals, before: tuple[int, ...], after: tuple[int, ...], why: str
) -> None:
    explanation = first_look(Vector(*before), Vector(*after), withdrawals)
    assert explanation.why == (why,)
    assert explanation.pending_confirmation == Vector(*after) - Vector(*before)
    assert explanation.confirmation_polls == 1


def test_two_pending_changes_both_say_why() -> None:
    explanation = first_look(Vector(100, 20, 5, 0), Vector(100, 20, 0, 3))
    assert explanation.why == ("a pending deposit's credit is not seen", "a withdrawal's debit is not seen")


def test_two_equal_readings_leave_nothing_pending() -> None:
    state = Vector(100, 20, 5, 3)
    explanation = explain(state, state, confirmation_polls=1, settle_polls=2, withdrawals="outside")
    assert explanation == Explanation((), state, Vector(), 0, ())


def test_a_late_movement_is_emitted_with_the_settled_ones_and_does_not_delay_them() -> None:
    deposit_fell, withdrawal_too = Vector(100, 20, 0, 5), Vector(100, 20, 0, 3)
    explanation = explain(
        deposit_fell + Vector(pending_deposit=5),
        withdrawal_too,
        confirmation_polls=2,
        settle_polls=2,
        withdrawals="outside",
    )
    assert [change.type for change in explanation.changes] == ["deposit.dropped", "withdrawal.cleared"]
    assert explanation.published == withdrawal_too


def test_a_credit_beyond_what_is_pending_is_emitted_while_the_rest_is_pending() -> None:
    explanation = first_look(Vector(100, 20, 4, 0), Vector(110, 20, 4, 0))
    assert [(change.type, change.amount) for change in explanation.changes] == [("total.increased", 6)]
    assert explanation.pending_confirmation == Vector(total=4)


def test_text_becomes_integers_exactly_and_comes_back_the_same() -> None:
    balance = Balance(str(2**256 - 1), "0." + "0" * 77 + "1", "12.5", "0")
    assert in_text(in_atoms(balance), like=balance) == balance


def test_a_missing_pending_field_counts_as_zero_and_stays_null() -> None:
    balance = Balance("7", "1", None, None)
    assert in_atoms(balance) == in_atoms(Balance("7", "1", "0", "0"))
    assert in_text(in_atoms(balance), like=WITHOUT_PENDINGS) == balance
    assert in_text(in_atoms(balance), like=WITH_PENDINGS) == Balance("7", "1", "0", "0")


def test_a_pending_amount_is_never_hidden_behind_a_null() -> None:
    assert in_text(in_atoms(Balance("7", "1", "3", "0")), like=WITHOUT_PENDINGS).pending_deposit == "3"


def test_an_effect_below_zero_is_text_with_a_minus() -> None:
    effect = in_atoms(Balance("0", "0", "12.5", "0")) - in_atoms(Balance("0", "1", "25", "0"))
    assert in_text(effect, like=WITH_PENDINGS) == Balance("0", "-1", "-12.5", "0")
