"""What a receiver learns from sequence numbers."""

import pytest

from tests.support.signed_webhooks import a_change, an_event
from watcher.receive import Event, Order
from watcher.receiver import Sequences


def event(sequence: object, previous: object, *, account: str = "treasury", to: str = "ops") -> Event:
    data = a_change(sequence=sequence, account={"name": account})
    return an_event(data=data, subscription={"name": to, "previous_sequence": previous})


def orders(*events: Event) -> list[Order | None]:
    sequences = Sequences()
    return [sequences.note(each) for each in events]


def test_events_that_follow_each_other_are_in_order() -> None:
    assert orders(event(10, None), event(12, 10), event(30, 12)) == [None, None, None]


def test_listening_may_begin_anywhere() -> None:
    assert orders(event(12, 10), event(30, 12)) == [None, None]


@pytest.mark.parametrize(
    ("next_event", "order"),
    [
        (event(30, 25), "gap"),
        (event(15, 12), "late"),
        (event(20, 12), "late"),
        (event(30, None), "restart"),
        (event(30, 15), "rewound"),
    ],
)
def test_an_event_that_does_not_follow_the_last_one_is_reported(next_event: Event, order: Order) -> None:
    assert orders(event(20, None), next_event) == [None, order]


def test_the_order_is_found_again_after_a_gap_and_a_late_event() -> None:
    shown = orders(event(10, None), event(30, 20), event(20, 10), event(40, 30))
    assert shown == [None, "gap", "late", None]


def test_a_repeat_is_never_late_and_its_new_sequence_is_the_latest() -> None:
    sequences = Sequences()
    shown = [sequences.note(event(10, None)), sequences.note(event(20, 10))]
    shown += [sequences.note(event(10, None), is_repeat=True), sequences.note(event(20, 10), is_repeat=True)]
    assert shown == [None] * 4
    # The store was set back to where 10 was the last: 20 is made again, under a sequence that is free.
    assert sequences.note(event(30, 10), is_repeat=True) == "rewound"
    assert sequences.note(event(40, 30)) is None
    assert sequences.note(event(60, 50)) == "gap"


def test_accounts_and_subscriptions_do_not_mix() -> None:
    shown = orders(
        event(10, None), event(5, None, account="alice"), event(7, None, to="audit"), event(11, 10)
    )
    assert shown == [None] * 4


@pytest.mark.parametrize("sequence", [None, "11", 1.5, True])
def test_an_event_without_a_sequence_does_not_affect_the_order(sequence: object) -> None:
    assert orders(event(10, None), event(sequence, 3), event(11, 10)) == [None, None, None]


@pytest.mark.parametrize(
    "odd", [{}, {"data": 1, "subscription": []}, {"data": {"sequence": 3, "account": 5}}]
)
def test_an_odd_event_raises_nothing(odd: Event) -> None:
    assert orders(odd) == [None]
