"""The judge of the fault tests finds every violation: a judge that finds nothing proves nothing."""

import json
from typing import Any

import pytest

from tests.faults.recording_receiver import Arrival
from tests.faults.verdict import judge
from watcher.demo.judge import walk
from watcher.journal.log import Record

TRUTH = {("a", "0"): {"total": "3", "locked": "0", "pending_deposit": "0"}}


def an_event(
    number: int, *, previous: int | None, total: str | None = None, before: str | None = None
) -> dict[str, Any]:
    begin, end = before or str(number - 1), total or str(number)
    effect = {**a_balance(str(int(end) - int(begin))), "pending_withdrawal": None}
    states = {
        "before": {**a_balance(begin), "pending_withdrawal": None},
        "after": {**a_balance(end), "pending_withdrawal": None},
        "effect": effect,
    }
    return {
        "id": f"evt_{number}",
        "type": "total.increased",
        "timestamp": "2026-11-20T15:00:00.000Z",
        "data": {"account": {"name": "a"}, "asset": {"id": "0"}, "sequence": number, **states},
        "subscription": {"name": "ops", "previous_sequence": previous},
    }


def a_balance(total: str) -> dict[str, str]:
    return {"total": total, "locked": "0", "pending_deposit": "0"}


def an_arrival(event: dict[str, Any], problem: str | None = None) -> Arrival:
    body = json.dumps(event).encode()
    return Arrival(1_795_186_800.1, event["id"], body, {} if problem else event, problem, "worker-1")


def a_record(event: dict[str, Any]) -> Record:
    return Record("a", 0, {name: value for name, value in event.items() if name != "subscription"})


ONE, TWO, THREE = an_event(1, previous=None), an_event(2, previous=1), an_event(3, previous=2)
RECORDS = [a_record(event) for event in (ONE, TWO, THREE)]
ARRIVALS = [an_arrival(event) for event in (ONE, TWO, THREE)]


def test_events_that_arrived_once_and_in_order_pass() -> None:
    verdict = judge(ARRIVALS, RECORDS, TRUTH)
    assert verdict.problems == []
    assert (verdict.committed, verdict.lost, verdict.out_of_order, verdict.repeats) == (3, 0, 0, 0)
    assert round(verdict.lag_ms(50)) == 100


def test_a_repeat_is_counted_and_is_no_problem() -> None:
    verdict = judge([*ARRIVALS, an_arrival(ONE)], RECORDS, TRUTH)
    assert verdict.problems == []
    assert verdict.repeated == [(ARRIVALS[0], ARRIVALS[0])]


@pytest.mark.parametrize(
    ("arrivals", "records", "problem"),
    [
        ([*ARRIVALS[:1], *ARRIVALS[2:]], RECORDS, "committed, but never arrived: evt_2 (1 in all)"),
        ([*ARRIVALS[:1], *ARRIVALS[2:]], RECORDS, "names another one as the one before: a (1 in all)"),
        (ARRIVALS, RECORDS[:2], "arrived, but was never committed: evt_3 (1 in all)"),
        (ARRIVALS, [*RECORDS, RECORDS[1]], "committed twice: evt_2 (1 in all)"),
        ([ARRIVALS[0], ARRIVALS[2], ARRIVALS[1]], RECORDS, "out of order, 2 after 3: evt_2 of a (1 in all)"),
        (
            [*ARRIVALS, an_arrival({**THREE, "added": 1})],
            RECORDS,
            "came again with other bytes: evt_3 (1 in all)",
        ),
        (
            [*ARRIVALS[:2], an_arrival({**THREE, "added": 1})],
            RECORDS,
            "says something else than the event log: evt_3 (1 in all)",
        ),
        (
            [*ARRIVALS[:2], an_arrival(an_event(3, previous=None))],
            RECORDS,
            "names another one as the one before: a (1 in all)",
        ),
        (
            [*ARRIVALS[:2], an_arrival(an_event(3, previous=2, total="4"))],
            [*RECORDS[:2], a_record(an_event(3, previous=2, total="4"))],
            "was not sent as it is: a, asset 0 (1 in all)",
        ),
        (
            [*ARRIVALS[:2], an_arrival(an_event(3, previous=2, before="1"))],
            RECORDS,
            "does not begin where the one before it ended: a, asset 0 (1 in all)",
        ),
        ([*ARRIVALS, an_arrival(THREE, "too old")], RECORDS, "does not verify: evt_3 (1 in all)"),
    ],
)
def test_every_kind_of_violation_is_found(
    arrivals: list[Arrival], records: list[Record], problem: str
) -> None:
    assert problem in judge(arrivals, records, TRUTH).problems


def test_a_trimmed_log_is_judged_from_its_oldest_record_on() -> None:
    assert judge(ARRIVALS, RECORDS[1:], TRUTH, is_trimmed=True).problems == []
    problems = judge(ARRIVALS, [RECORDS[0], RECORDS[2]], TRUTH, is_trimmed=True).problems
    assert problems == ["arrived, but was never committed: evt_2 (1 in all)"]


def test_a_balance_must_continue_character_by_character() -> None:
    three = an_event(3, previous=2)
    three["data"]["before"]["available"] = "2"
    problems = judge([*ARRIVALS[:2], an_arrival(three)], [*RECORDS[:2], a_record(three)], TRUTH).problems
    assert problems == ["does not begin where the one before it ended: a, asset 0 (1 in all)"]


def test_the_first_event_may_begin_anywhere() -> None:
    first = an_event(1, previous=None, before="5", total="3")
    assert judge([an_arrival(first)], [a_record(first)], TRUTH).problems == []


def test_the_event_after_a_late_one_continues_from_the_latest() -> None:
    four = an_arrival(an_event(4, previous=3))
    found = walk([ARRIVALS[0], ARRIVALS[2], ARRIVALS[1], four], lambda one: one.event, losses=1)
    assert [one.order for one in found.received] == [None, "gap", "late", None]


def test_after_a_loss_of_state_an_event_may_be_recomputed_and_named_by_the_next_one() -> None:
    again = json.loads(json.dumps({**ONE, "timestamp": "2026-11-20T15:00:00.050Z"}))
    again["data"]["sequence"] = 4
    last = an_event(5, previous=4, before="1", total="3")
    arrivals = [*ARRIVALS, an_arrival(again), an_arrival(last)]
    records = [a_record(again), a_record(last)]
    verdict = judge(arrivals, records, TRUTH, losses=1)
    assert verdict.problems == []
    assert (verdict.repeats, verdict.out_of_order) == (0, 0)
    assert judge(arrivals, records, TRUTH).repeats == 1


def test_after_a_loss_of_state_an_asset_may_start_anew_once() -> None:
    leap = an_arrival(an_event(3, previous=1, before="7", total="3"))
    assert judge([ARRIVALS[0], leap], [], TRUTH, losses=1).problems == []
    (problem, _) = judge([ARRIVALS[0], leap], [RECORDS[0], a_record(leap.event)], TRUTH).problems
    assert problem == "does not begin where the one before it ended: a, asset 0 (1 in all)"


def test_after_a_loss_of_state_an_account_may_start_anew_once() -> None:
    two, three = (an_arrival(an_event(number, previous=None)) for number in (2, 3))
    assert judge([ARRIVALS[0], three], RECORDS[2:], TRUTH, losses=1).problems == []
    twice = judge([ARRIVALS[0], two, three], RECORDS[1:], TRUTH, losses=1)
    assert twice.problems == ["names another one as the one before: a (1 in all)"]


def test_a_subscription_that_got_nothing_is_found() -> None:
    assert judge([], [], TRUTH).problems == ["was not sent as it is: a, asset 0 (1 in all)"]


def test_damaged_accounts_are_not_judged() -> None:
    assert judge(ARRIVALS[:1], RECORDS, TRUTH, spared={"a"}).problems == []
