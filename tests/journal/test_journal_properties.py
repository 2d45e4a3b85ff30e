"""What holds for every series of readings, under both models and every time to settle."""

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, product
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzzing import tried
from watcher.journal.explain import NOTHING, RULES, Change, Explanation, Vector, Withdrawals, explain

often = tried(400)

# Where a test's minute ends in the midst of an example, hypothesis blames the strategy for it.
# These take five seconds of the processor, and on a busy machine many times that.
pytestmark = pytest.mark.timeout(600)

small_vectors = st.sampled_from([Vector(*amounts) for amounts in product(range(6), repeat=4)])
"""So small that halves often match, also by accident."""

fine_and_coarse_vectors = st.builds(
    lambda fine, coarse: fine + Vector(*(10**77 * amount for amount in coarse)), small_vectors, small_vectors
)
"""So wide that a float or a rounding context would show; halves that match but for a last digit."""

any_amount = st.integers(0, 10**78)
any_total = st.integers(-(10**78), 10**78)
any_vectors = st.tuples(any_total, any_amount, any_amount, any_amount).map(Vector._make)

narrow_vectors = small_vectors | fine_and_coarse_vectors
overdrawn_vectors = st.builds(
    lambda vector, by: vector - Vector(by), narrow_vectors, st.sampled_from([3, 6, 3 * 10**77])
)
"""Whose total is below zero, or about it: only a total can be."""

vectors = narrow_vectors | overdrawn_vectors | any_vectors
series = st.lists(narrow_vectors | overdrawn_vectors, min_size=2, max_size=6)


class Terms(NamedTuple):
    settle_polls: int
    withdrawals: Withdrawals


every_terms = st.sampled_from([Terms(polls, model) for polls in range(4) for model in RULES])

Shape = Callable[[int, Vector], bool]
"""Whether an effect is one that its row of the event table allows, for this x."""

SHAPE_BY_TYPE: dict[Withdrawals, dict[str, Shape]] = {
    "outside": {
        "withdrawal.pending": lambda x, e: -x <= e.total <= e.locked <= 0 and e[2:] == (0, x),
        "withdrawal.cleared": lambda x, e: e == (0, 0, 0, -x),
        "withdrawal.returned": lambda x, e: e == (x, 0, 0, -x),
    },
    "inside": {
        "withdrawal.pending": lambda x, e: 0 <= e.locked <= x and e == (0, e.locked, 0, x),
        "withdrawal.cleared": lambda x, e: -x <= e.locked <= 0 and e == (-x, e.locked, 0, -x),
        "withdrawal.returned": lambda x, e: -x <= e.locked <= 0 and e == (0, e.locked, 0, -x),
    },
}
SHARED_SHAPES: dict[str, Shape] = {
    "deposit.pending": lambda x, e: e == (0, 0, x, 0),
    "deposit.cleared": lambda x, e: e == (x, 0, -x, 0),
    "deposit.dropped": lambda x, e: e == (0, 0, -x, 0),
    "locked.increased": lambda x, e: e == (0, x, 0, 0),
    "locked.decreased": lambda x, e: e == (0, -x, 0, 0),
    "total.increased": lambda x, e: e == (x, 0, 0, 0),
    "total.decreased": lambda x, e: e == (-x, 0, 0, 0),
}


def explained(snapshots: Sequence[Vector], terms: Terms) -> list[Explanation]:
    """Explain each snapshot after the first, which is the baseline."""
    explanations = [Explanation((), snapshots[0], NOTHING, 0, ())]
    for seen in snapshots[1:]:
        last = explanations[-1]
        explanations.append(
            explain(last.published, seen, confirmation_polls=last.confirmation_polls, **terms._asdict())
        )
    return explanations[1:]


def changes_of(explanations: Iterable[Explanation]) -> list[Change]:
    return [change for explanation in explanations for change in explanation.changes]


def total_effect(changes: Iterable[Change]) -> Vector:
    return functools.reduce(Vector.__add__, (change.effect for change in changes), NOTHING)


@often
@given(vectors, vectors, every_terms)
def test_effects_and_pending_amounts_add_up_to_what_moved(
    before: Vector, after: Vector, terms: Terms
) -> None:
    [explanation] = explained([before, after], terms)
    assert before + total_effect(explanation.changes) + explanation.pending_confirmation == after


@often
@given(series, st.sets(st.integers(0, 7)), every_terms)
def test_the_journal_reconciles_after_every_successful_poll_whatever_polls_failed_between(
    snapshots: list[Vector], failed: set[int], terms: Terms
) -> None:
    baseline, *later = snapshots
    good = [seen for poll, seen in enumerate(later) if poll not in failed]
    effects = NOTHING
    for explanation, seen in zip(explained([baseline, *good], terms), good, strict=True):
        effects += total_effect(explanation.changes)
        assert baseline + effects + explanation.pending_confirmation == seen
        assert explanation.published + explanation.pending_confirmation == seen


@often
@given(series, every_terms)
def test_each_change_starts_where_the_last_one_ended_and_none_overshoots_the_reading(
    snapshots: list[Vector], terms: Terms
) -> None:
    """So an amount is negative only if it was read so, and no event corrects another."""
    state = snapshots[0]
    for explanation, seen in zip(explained(snapshots, terms), snapshots[1:], strict=True):
        for change in explanation.changes:
            assert change.before == state
            assert change.before + change.effect == change.after
            assert [sorted(field)[1] for field in zip(state, change.after, seen, strict=True)] == [
                *change.after
            ]
            state = change.after
        assert explanation.published == state


@often
@given(series, every_terms)
def test_a_poll_emits_each_type_at_most_once_in_table_order_and_shape(
    snapshots: list[Vector], terms: Terms
) -> None:
    order = [rule.type for rule in RULES[terms.withdrawals]]
    shape_by_type = SHARED_SHAPES | SHAPE_BY_TYPE[terms.withdrawals]
    for explanation in explained(snapshots, terms):
        emitted = [change.type for change in explanation.changes]
        assert emitted == sorted(set(emitted), key=order.index)
        for change in explanation.changes:
            assert change.amount > 0
            assert shape_by_type[change.type](change.amount, change.effect), change


@often
@given(series, every_terms)
def test_nothing_is_pending_for_more_successful_polls_than_it_may_settle(
    snapshots: list[Vector], terms: Terms
) -> None:
    explanations = explained(snapshots, terms)
    holding = [any(explanation.pending_confirmation) for explanation in explanations]
    in_a_row = list(accumulate(holding, lambda polls, is_held: (polls + 1) * is_held, initial=0))[1:]
    assert max(in_a_row) <= terms.settle_polls
    assert [explanation.confirmation_polls for explanation in explanations] == in_a_row
    assert [bool(explanation.why) for explanation in explanations] == holding


@often
@given(vectors, vectors, vectors, every_terms)
def test_splitting_a_movement_over_two_polls_never_changes_the_sum_of_effects(
    before: Vector, halfway: Vector, after: Vector, terms: Terms
) -> None:
    quiet = [after] * terms.settle_polls
    at_once = changes_of(explained([before, after, *quiet], terms))
    in_halves = changes_of(explained([before, halfway, after, *quiet], terms))
    assert total_effect(at_once) == total_effect(in_halves) == after - before


@often
@given(series, st.sampled_from((1, 10**18)), every_terms)
def test_the_same_readings_are_always_explained_the_same_way_in_whatever_unit(
    snapshots: list[Vector], unit: int, terms: Terms
) -> None:
    in_units = [Vector(*(unit * amount for amount in snapshot)) for snapshot in snapshots]
    emitted, again = explained(snapshots, terms), explained(in_units, terms)
    assert [each.why for each in again] == [each.why for each in emitted]
    assert [(change.type, change.amount) for change in changes_of(again)] == [
        (change.type, unit * change.amount) for change in changes_of(emitted)
    ]


@pytest.mark.parametrize("withdrawals", RULES)
def test_without_time_to_settle_everything_is_emitted_at_once(withdrawals: Withdrawals) -> None:
    [explanation] = explained([Vector(100, 20, 5, 3), Vector(100, 17, 0, 0)], Terms(0, withdrawals))
    assert explanation.published == Vector(100, 17, 0, 0)
    assert explanation.confirmation_polls == 0


def test_the_types_are_those_of_the_event_table() -> None:
    shapes = SHARED_SHAPES.keys() | SHAPE_BY_TYPE["outside"].keys()
    for rules in RULES.values():
        assert {rule.type for rule in rules} == shapes
