"""Amounts from text to integers and back: exact, and no more often than needed."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.house import traced
from tests.support.builders import a_balance, a_snapshot, a_state, a_subscription
from watcher.amounts import MAX_INTEGER, NotAnAmount, check_canonical, to_atoms, to_text
from watcher.journal.account import Rules
from watcher.journal.interest import Interest
from watcher.journal.step import Reading, diff
from watcher.store.state import dump_state, load_state

ATOMS = st.integers(-MAX_INTEGER, MAX_INTEGER) | st.integers(-(MAX_INTEGER * 10**78), MAX_INTEGER * 10**78)


async def test_a_changed_poll_converts_the_amounts_of_assets_that_moved_and_no_others() -> None:
    others = {"LRC": "5.5", "USDC": a_balance("7", "1.5")}
    alone, among = [conversions_of_a_change(**more) for more in ({}, others)]
    assert alone == among == (2, 2), "100 and 12.5; 12.5 and 87.5, which is available now"


def conversions_of_a_change(**others: Any) -> tuple[int, int]:
    """How many texts become integers, and integers texts, when something is locked of one asset."""
    stored = dump_state(a_state(ETH="100", **others), {})
    after = a_snapshot(ETH=a_balance("100", "12.5"), **others)
    interest = Interest({"ops": a_subscription()})
    to_atoms.cache_clear()
    to_text.cache_clear()
    with traced() as tracer:
        state = load_state(stored, {})
        reading = Reading("treasury", "loopring", "here", after, 1_000)
        step = diff(state, reading, rules=Rules(), interest=interest, version="v2", now_ms=1_005)
        assert step is not None
        dump_state(step.state, {})
    task = asyncio.current_task()
    assert task is not None
    trip = tracer.trip(task.get_name())
    return trip.times("amounts", "to_atoms"), trip.times("amounts", "to_text")


@given(ATOMS)
def test_an_amount_is_the_same_after_a_way_there_and_back(atoms: int) -> None:
    text = to_text(atoms)
    assert to_atoms(text) == atoms
    assert check_canonical(text) == text


ODD = ["-0", "00", "01", "1.", ".5", "1.50", "0.0", "-0.0", "--1", "+1", "1e3", "1_0", "0x1", "NaN", "\uff11"]


@pytest.mark.parametrize("odd", [*ODD, "", " 1", "1\n", f"1.{'1' * 79}", None, 1, 1.5])
def test_no_other_spelling_is_canonical(odd: object) -> None:
    with pytest.raises(NotAnAmount):
        check_canonical(odd)


@pytest.mark.parametrize("text", [str(MAX_INTEGER + 1), f"-{MAX_INTEGER + 1}", "9" * 78, "9" * 79])
def test_no_amount_exceeds_the_widest_that_an_api_can_report(text: str) -> None:
    with pytest.raises(NotAnAmount):
        check_canonical(text)
