"""A full listing that is suddenly empty counts only after a minute of agreement."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.builders import a_balance, a_snapshot, a_subscription
from watcher.journal.account import AccountState, Rules, absent
from watcher.journal.events import Origin
from watcher.journal.interest import Interest
from watcher.journal.step import Reading, Step, diff, go_stale
from watcher.settings import ThresholdSettings
from watcher.snapshot import Snapshot
from watcher.store.state import dump_state, load_state

NOW_MS = 1_795_175_095_846
NOTHING = a_snapshot()
BACKING_OFF = a_snapshot(ETH="10", LRC=a_balance("5", "2", "1"))
LOW = a_subscription(
    events=("*.*", "threshold.crossed", "account.*"),
    thresholds=(ThresholdSettings(asset="ETH", field="total", below="5"),),
)
INTEREST = Interest({LOW.name: LOW})
RULES = Rules("outside", settle_polls=2)


def poll(
    state: AccountState | None, snapshot: Snapshot, at_s: float, *, source: str = "here"
) -> tuple[AccountState, Step | None]:
    """Take in a successful poll; the state is as Redis gives it back to another worker."""
    observed_ms = NOW_MS + int(1000 * at_s)
    reading = Reading("treasury", "loopring", source, snapshot, observed_ms)
    step = diff(state, reading, rules=RULES, interest=INTEREST, version="v", now_ms=observed_ms)
    after = step.state if step else state
    assert after
    return load_state(dump_state(after, {}), {}), step


def emitted(*polls: tuple[float, Snapshot], state: AccountState | None = None) -> list[list[str]]:
    """The types of the events of each poll, made so many seconds after the first."""
    types = []
    for at_s, snapshot in polls:
        state, step = poll(state, snapshot, at_s)
        types.append([event.type for event in step.events] if step else [])
    return types


HELD_STATE = poll(None, BACKING_OFF, -30)[0]
GONE = ["locked.decreased", "total.decreased"]


@pytest.mark.parametrize(
    ("seconds", "counts_at"),
    [
        ([0, 20, 40, 60], 60),
        ([0, 20, 40, 59.9, 80], 80),
        ([0, 1, 2, 3, 4, 30, 59, 61], 61),
        ([0, 60, 120, 180], 180),  # which took three more, however long
        ([0, 3600, 3601, 3602], 3602),  # rejected polls between them count neither way
    ],
)
def test_an_empty_listing_counts_after_a_minute_and_three_more_polls(
    seconds: list[float], counts_at: float
) -> None:
    events = emitted(*((at_s, NOTHING) for at_s in seconds), state=HELD_STATE)
    first = next(place for place, types in enumerate(events) if types)
    assert seconds[first] == counts_at
    assert events[first] == ["total.decreased", *GONE, "threshold.crossed"]


def test_while_an_empty_listing_is_suspect_all_balances_stay_and_are_marked() -> None:
    state, step = poll(HELD_STATE, NOTHING, 0)
    assert step
    assert set(step.advance.suspect) == {"ETH", "LRC"}
    assert state.entry_by_asset == HELD_STATE.entry_by_asset
    assert [entry.suspect for entry in state.suspected.values()] == [a_balance(), a_balance()]


def test_a_listing_that_names_an_asset_again_ends_the_suspicion_without_a_trace() -> None:
    state = HELD_STATE
    for at_s in (0, 20, 40):
        state, _ = poll(state, NOTHING, at_s)
    state, step = poll(state, BACKING_OFF, 60)
    assert step
    assert not step.events
    assert state._replace(polled_at_ms=0) == HELD_STATE._replace(polled_at_ms=0)
    state, _ = poll(state, NOTHING, 80)
    assert state.emptiness == (NOW_MS + 80_000, 0), "the next one starts anew"


def test_an_asset_missing_afterwards_must_be_confirmed_by_itself() -> None:
    rest = a_snapshot(ETH="10")
    assert emitted((0, NOTHING), (20, rest), (22, rest), state=HELD_STATE) == [[], [], GONE]


def test_an_earlier_suspicion_is_confirmed_by_the_next_listing_that_is_not_empty() -> None:
    rest = a_snapshot(ETH="10")
    assert emitted((0, rest), (2, NOTHING), (22, rest), state=HELD_STATE) == [[], [], GONE]


def test_a_first_listing_may_be_empty_and_later_assets_make_events() -> None:
    assert emitted((0, NOTHING), (30, NOTHING), (60, a_snapshot(ETH="10"))) == [
        ["account.baseline"],
        [],
        ["total.increased"],
    ]


def test_an_account_that_holds_nothing_may_list_zeros_or_nothing() -> None:
    state, _ = poll(None, a_snapshot(ETH="0", LRC=a_balance("0", "0", None)), 0)
    after, step = poll(state, NOTHING, 30)
    assert step is None
    assert after == state


def test_rows_of_zeros_count_after_two_polls() -> None:
    zeros = a_snapshot(ETH="0", LRC="0")
    assert emitted((0, zeros), (2, zeros), state=HELD_STATE)[0] == []
    assert emitted((0, zeros), (2, zeros), state=HELD_STATE)[1]


@pytest.mark.parametrize("watched", [None, ("ETH", "LRC")])
def test_an_empty_filtered_listing_changes_nothing(watched: tuple[str, ...] | None) -> None:
    asked = BACKING_OFF._replace(watched=watched, absent_is_zero=False)
    state, _ = poll(None, asked, 0)
    for at_s in (30, 60, 90, 120):
        state, step = poll(state, asked._replace(row_by_asset={}), at_s)
        assert step is None


def test_the_suspicion_outlives_an_account_that_goes_stale() -> None:
    state, _ = poll(HELD_STATE, NOTHING, 0)
    origin = Origin("treasury", "loopring", state.sequence, NOW_MS, NOW_MS + 90_000)
    stale = go_stale(
        state, origin, "gone", "no answer", interest=INTEREST, version="v", now_ms=NOW_MS + 90_000
    )
    assert emitted((100, NOTHING), (120, NOTHING), (140, NOTHING), state=stale.state) == [
        ["account.recovered"],
        [],
        ["total.decreased", *GONE, "threshold.crossed"],
    ]


def test_a_clock_that_is_set_back_delays_it_but_not_for_ever() -> None:
    polls = [(0, NOTHING), *((at_s - 3600, NOTHING) for at_s in (20, 40, 60, 80))]
    assert [bool(types) for types in emitted(*polls, state=HELD_STATE)] == [False, False, False, False, True]


def test_tokens_added_meanwhile_still_get_a_baseline() -> None:
    state, _ = poll(None, a_snapshot(ETH="10", watched=("ETH",)), 0)
    state, step = poll(state, NOTHING, 30)
    assert step
    assert state.watched == ("ETH",)
    state, step = poll(state, BACKING_OFF, 50)
    assert step
    assert not step.events
    assert set(step.advance.baselined) == {"LRC"}


def test_at_a_new_source_one_empty_listing_does_not_count_either() -> None:
    state = HELD_STATE
    for at_s in (0, 20, 40):
        state, step = poll(state, NOTHING, at_s, source="there")
        assert step
        assert not step.events
        assert state.source == "here"
    found, step = poll(state, BACKING_OFF, 60, source="there")
    assert step
    assert [event.type for event in step.events] == ["account.baseline"]
    assert found.entry_by_asset == HELD_STATE.entry_by_asset
    empty, step = poll(state, NOTHING, 60, source="there")
    assert step
    assert [event.type for event in step.events] == ["account.baseline"]
    assert (empty.source, empty.entry_by_asset) == ("there", {})


def test_a_threshold_on_an_unlisted_asset_fires_once_and_not_for_an_empty_listing() -> None:
    absent = BACKING_OFF._replace(row_by_asset={"LRC": BACKING_OFF.row_by_asset["LRC"]})
    zero = (a_snapshot(ETH="0").row_by_asset["ETH"],)
    crossed = "threshold.crossed"
    listed, emptied = absent._replace(zeros=zero), NOTHING._replace(zeros=zero)
    events = emitted((0, listed), (30, emptied), (50, listed), (80, listed))
    assert [crossed in types for types in events] == [True, False, False, False]
    state, _ = poll(None, absent, 0)
    events = emitted((30, emptied), (50, listed), state=state)
    assert [crossed in types for types in events] == [False, True]


AMOUNTS = st.sampled_from(["0", "1", "2", "9"])
BALANCES = st.builds(a_balance, AMOUNTS, AMOUNTS, AMOUNTS)
LISTINGS = st.dictionaries(st.sampled_from(["ETH", "LRC"]), BALANCES).map(a_snapshot)
POLLS = st.lists(
    st.tuples(st.sampled_from([1, 20, 61]), LISTINGS | st.just(NOTHING)), min_size=1, max_size=12
)


def lasting(polls: Sequence[tuple[int, Snapshot]]) -> list[bool]:
    """Return for each poll, by the contract, whether absent assets may count as zero."""
    empty_at: list[int] = []
    lasts = []
    for at_s, snapshot in polls:
        empty_at = [] if snapshot.row_by_asset else [*empty_at, at_s]
        lasts.append(not empty_at or (len(empty_at) > 3 and at_s - empty_at[0] >= 60))
    return lasts


class Seen(NamedTuple):
    """A poll: whether the account had any balance before, what is suspect after it, and its events."""

    held: bool
    is_suspect: bool
    events: tuple[tuple[str, str, str], ...]


def follow(polls: Sequence[tuple[int, Snapshot]]) -> list[Seen]:
    state, seen = HELD_STATE, []
    for at_s, snapshot in polls:
        held = any(entry.seen != absent(entry.seen) for entry in state.entry_by_asset.values())
        state, step = poll(state, snapshot, at_s)
        events = ((one.id, one.type, one.amount) for one in (step.events if step else ()))
        seen.append(Seen(held, state.emptiness is not None, tuple(events)))
    return seen


@settings(max_examples=150, deadline=None)
@given(POLLS)
def test_empty_listings_count_if_they_last_and_leave_no_trace_otherwise(
    gaps: list[tuple[int, Snapshot]],
) -> None:
    times = accumulate(gap for gap, _ in gaps)
    polls = [(at_s, snapshot) for at_s, (_, snapshot) in zip(times, gaps, strict=True)]
    seen = follow(polls)
    for lasts, one in zip(lasting(polls), seen, strict=True):
        assert one.is_suspect == (one.held and not lasts)
        assert not (one.is_suspect and one.events)
    # Those that did not last: the next one that is not suspect names something.
    passing, ends_at = set(), len(polls)
    for place in reversed(range(len(polls))):
        if not seen[place].is_suspect:
            ends_at = place
        elif ends_at < len(polls) and polls[ends_at][1].row_by_asset:
            passing.add(place)
    kept = [one for place, one in enumerate(polls) if place not in passing]
    assert [one for place, one in enumerate(seen) if place not in passing] == follow(kept)


def test_an_empty_listing_does_not_raise_the_height_until_it_counts() -> None:
    """So a node that lags behind the empty one, but not behind what was accepted, ends it."""
    state, _ = poll(HELD_STATE, BACKING_OFF._replace(height=1000), -20)
    for at_s, height in ((0, 1010), (20, 1011)):
        state, _ = poll(state, NOTHING._replace(height=height), at_s)
        assert state.emptiness
        assert state.height == 1000
    again, _ = poll(state, BACKING_OFF._replace(height=1005), 40)
    assert (again.emptiness, again.height) == (None, 1005)
    for at_s, height in ((40, 1012), (60, 1013)):
        state, _ = poll(state, NOTHING._replace(height=height), at_s)
    assert (state.emptiness, state.height) == (None, 1013)
