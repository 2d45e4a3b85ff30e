"""The promise itself, for any series of answers: baseline + effects + what is pending confirmation = the last
accepted answer."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import a_balance, a_row
from tests.support.fuzzing import tried
from watcher.journal.account import AccountState, Advance, Rules, advance
from watcher.journal.explain import Vector, Withdrawals, in_atoms
from watcher.snapshot import Balance, Snapshot
from watcher.store.state import dump_state, load_state

ASSETS = ("0", "1", "0xabc")


class Poll(NamedTuple):
    """A successful poll; a failed one is simply not in the series."""

    balance_by_asset: dict[str, Balance]
    watched: tuple[str, ...] | None


AMOUNTS = st.one_of(st.integers(0, 6), st.sampled_from([10**77, 10**77 + 1, 2**256 - 1])).map(str)
TOTALS = st.one_of(AMOUNTS, st.integers(-6, 6).map(str), st.sampled_from([str(1 - 2**256), str(-(10**77))]))
BALANCES = st.builds(a_balance, TOTALS, AMOUNTS, AMOUNTS, AMOUNTS)
LISTINGS = st.dictionaries(st.sampled_from(ASSETS), BALANCES)
WATCHED = st.one_of(
    st.none(),
    st.none(),
    st.lists(st.sampled_from(ASSETS), min_size=1, unique=True).map(lambda ids: tuple(sorted(ids))),
)
SERIES = st.lists(st.builds(Poll, LISTINGS, WATCHED), min_size=1, max_size=8)
RULES = st.builds(Rules, st.sampled_from(["outside", "inside"]), st.integers(0, 3))


def snapshot_of(poll: Poll) -> Snapshot:
    rows = {
        asset: a_row(asset, balance)
        for asset, balance in poll.balance_by_asset.items()
        if poll.watched is None or asset in poll.watched
    }
    return Snapshot(rows, poll.watched, absent_is_zero=poll.watched is None)


def stored(state: AccountState) -> AccountState:
    """The state as Redis gives it back."""
    return load_state(dump_state(state, {}), {})


def followed(series: Iterable[Poll], rules: Rules) -> Iterable[tuple[AccountState, Advance]]:
    """Poll every 20 s."""
    state = None
    for observed_ms, poll in zip(count(0, 20_000), series, strict=False):
        result = advance(state, snapshot_of(poll), source="here", rules=rules, observed_ms=observed_ms)
        watched = state.watched if state and result.emptiness else poll.watched
        entries, emptiness = result.entry_by_asset, result.emptiness
        state = stored(AccountState("here", watched, entries, version="v", emptiness=emptiness))
        yield state, result


@tried(60)
@given(SERIES, RULES)
def test_all_events_match_the_schema_and_their_chain_has_no_gap(series: list[Poll], rules: Rules) -> None:
    emitted: dict[str, Vector] = {}
    for state, result in followed(series, rules):
        for asset in result.forgotten:
            emitted.pop(asset, None)
        for asset in result.baselined:
            emitted[asset] = in_atoms(state.entry_by_asset[asset].published)
        for moved in result.moved:
            # An asset that a full listing names for the first time had nothing before.
            before = emitted.get(moved.asset.id, Vector())
            assert in_atoms(moved.before) == before
            emitted[moved.asset.id] = before + in_atoms(moved.effect)
            assert in_atoms(moved.after) == emitted[moved.asset.id]
        published = {asset: in_atoms(entry.published) for asset, entry in state.entry_by_asset.items()}
        assert {asset: emitted.get(asset, Vector()) for asset in published} == published
        assert all(asset in published or vector == Vector() for asset, vector in emitted.items())


def called_x(state: AccountState) -> AccountState:
    entries = state.entry_by_asset.items()
    return state._replace(
        entry_by_asset={
            asset: entry._replace(asset=entry.asset._replace(symbol="X")) for asset, entry in entries
        }
    )


def nameless(result: Advance) -> tuple[object, ...]:
    """All that it says, but for what the assets are called."""
    entries = [(asset, entry[1:]) for asset, entry in result.entry_by_asset.items()]
    moved = [(moved.asset.id, *moved[1:]) for moved in result.moved]
    return entries, moved, replace(result, entry_by_asset={}, moved=[])


@tried(60)
@given(SERIES, RULES)
def test_skipping_assets_without_movement_changes_no_result(series: list[Poll], rules: Rules) -> None:
    """An asset that is called otherwise than in the answer is looked at as closely as one that moved."""
    before = None
    for observed_ms, poll, (after, result) in zip(
        count(0, 20_000), series, followed(series, rules), strict=False
    ):
        if before:
            whole = advance(
                called_x(before), snapshot_of(poll), source="here", rules=rules, observed_ms=observed_ms
            )
            assert nameless(result) == nameless(whole)
        before = after


@tried(60)
@given(SERIES, RULES)
def test_an_answer_that_stays_is_emitted_completely_in_the_end(series: list[Poll], rules: Rules) -> None:
    last = series[-1]
    # Three to confirm what is suspect (an empty listing), one to begin to wait, then to settle.
    patience = rules.settle_polls + 5
    *_, (state, result) = followed([*series, *[last] * patience], rules)
    assert not result.moved
    for asset, entry in state.entry_by_asset.items():
        if asset not in last.balance_by_asset and last.watched is not None:
            continue  # the answer does not speak of it: what is pending confirmation of it stays so
        assert entry.published == entry.seen
        assert not entry.suspect
        assert not entry.confirmation_polls
        assert entry.seen == last.balance_by_asset.get(asset, Balance("0", "0", "0", "0"))


@tried(40)
@given(SERIES, RULES)
def test_the_same_answers_make_the_same_events(series: list[Poll], rules: Rules) -> None:
    first, again = (
        [[(moved.asset.id, *moved[1:]) for moved in result.moved] for _, result in followed(series, rules)]
        for _ in range(2)
    )
    assert first == again


@tried(40)
@given(st.lists(LISTINGS, min_size=2, max_size=6), st.sampled_from(["outside", "inside"]))
def test_repeating_an_answer_more_than_twice_changes_nothing(
    listings: list[dict[str, Balance]], withdrawals: Withdrawals
) -> None:
    with_short_timeouts = Rules(withdrawals, settle_polls=0)
    once = [Poll(listing, None) for listing in listings for _ in range(2)]
    thrice = [Poll(listing, None) for listing in listings for _ in range(3)]
    *_, (state, _) = followed(once, with_short_timeouts)
    *_, (same, _) = followed(thrice, with_short_timeouts)
    assert {key: entry.published for key, entry in state.entry_by_asset.items()} == {
        key: entry.published for key, entry in same.entry_by_asset.items()
    }
