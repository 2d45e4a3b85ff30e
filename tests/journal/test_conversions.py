"""An amount is parsed once a poll, and printed only if its text is not known yet."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.house import traced
from tests.support.builders import a_balance, a_snapshot, a_state, a_subscription
from watcher.amounts import MAX_INTEGER, Conversions, NotAnAmount, check_canonical, to_atoms, to_text
from watcher.journal.account import Rules
from watcher.journal.interest import Interest
from watcher.journal.step import Reading, diff
from watcher.store.state import dump_state, load_state

ATOMS = st.integers(-MAX_INTEGER, MAX_INTEGER) | st.integers(-(MAX_INTEGER * 10**78), MAX_INTEGER * 10**78)


async def test_a_changed_poll_converts_only_the_amounts_that_moved() -> None:
    stored = dump_state(a_state(ETH="100", LRC="5.5", USDC="7"), {})
    after = a_snapshot(ETH=a_balance("100", "12.5"), LRC="5.5", USDC="7")
    interest = Interest({"ops": a_subscription()})
    with traced() as tracer:
        state = load_state(stored, {})
        reading = Reading("treasury", "loopring", "here", after, 1_000)
        step = diff(state, reading, rules=Rules(), interest=interest, version="v2", now_ms=1_005)
        assert step is not None
        dump_state(step.state, {})
    task = asyncio.current_task()
    assert task is not None
    trip = tracer.trip(task.get_name())
    assert trip.times("amounts", "to_atoms") == 2, "100 and 12.5; there is one text of zero"
    assert trip.times("amounts", "to_text") == 1, "87.5, which is available now"


@given(ATOMS)
def test_an_amount_is_the_same_from_the_cache_and_without_it(atoms: int) -> None:
    conversions, text = Conversions(), to_text(atoms)
    assert conversions.text(atoms) == conversions.text(atoms) == text
    assert conversions.atoms(text) == Conversions().atoms(text) == to_atoms(text) == atoms
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
