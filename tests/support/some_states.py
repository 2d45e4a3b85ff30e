"""States of accounts as hypothesis draws them: any amounts, any text in ids and names."""

from collections.abc import Mapping

from hypothesis import strategies as st

from watcher.amounts import MAX_FRACTION_DIGITS, MAX_INTEGER, to_text
from watcher.journal.account import AccountState, Emptiness, Entry
from watcher.snapshot import Asset, Balance
from watcher.store.state import Called

LARGEST = (MAX_INTEGER + 1) * 10**MAX_FRACTION_DIGITS - 1

amounts = st.integers(0, LARGEST).map(to_text) | st.sampled_from(["0", "1", "12.5", str(MAX_INTEGER)])
signed = st.integers(-LARGEST, LARGEST).map(to_text) | amounts
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["0", "-", "is", "a b", 'a"b', "a\nb", "a\\b", "\x00", "ß€😀"]
)
counts = st.integers(0, 10**14 - 1)
decimals = st.none() | st.integers(0, MAX_FRACTION_DIGITS)
named = st.tuples(st.none() | words, st.none() | words)
called = st.tuples(st.none() | words, st.none() | words, decimals)

anything: st.SearchStrategy[object] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | amounts
    | st.sampled_from(
        ["-0", "1.0", "01", "1e3", "-", "", "\ud800", 10**14, -1, 2**300, float("inf"), "1234567"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
"""Any JSON value, and a few that are none."""


def balances(amount: st.SearchStrategy[str]) -> st.SearchStrategy[Balance]:
    return st.builds(Balance, amount, amount, st.none() | amount, st.none() | amount)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """An asset at rest, or one of which something is pending confirmation, suspect or both."""
    asset = Asset("", *draw(named), draw(decimals))
    published = draw(balances(signed))
    confirmation_polls = draw(st.integers(0, 3))
    suspect = draw(st.none() | balances(signed))
    is_at_rest = not confirmation_polls and suspect is None
    return Entry(
        asset, published, published if is_at_rest else draw(balances(signed)), confirmation_polls, suspect
    )


@st.composite
def states(draw: st.DrawFn) -> AccountState:
    entry_by_asset = draw(st.dictionaries(words, entries(), max_size=4))
    return AccountState(
        source=draw(words),
        watched=draw(st.none() | st.lists(words, max_size=3).map(tuple)),
        entry_by_asset={
            name: entry._replace(asset=entry.asset._replace(id=name))
            for name, entry in entry_by_asset.items()
        },
        version=draw(st.text("0123456789abcdefv+", min_size=1, max_size=16)),
        sequence=draw(counts),
        polled_at_ms=draw(counts),
        stale_since_ms=draw(counts),
        crossed=frozenset(draw(st.sets(words, max_size=2))),
        emptiness=draw(st.none() | st.builds(Emptiness, counts, counts)),
        height=draw(st.none() | st.integers(0, 10**20 - 1)),
    )


@st.composite
def named_states(draw: st.DrawFn) -> tuple[AccountState, Mapping[str, Called]]:
    """A state, and a table that calls its assets the same, otherwise, or nothing."""
    state = draw(states())
    names = draw(st.dictionaries(words, called, max_size=2))
    for asset_id, entry in state.entry_by_asset.items():
        said = draw(st.none() | st.just(entry.asset[1:]) | called)
        if said is not None:
            names[asset_id] = said
    return state, names


def paths(value: object, path: tuple[int | str, ...] = ()) -> list[tuple[int | str, ...]]:
    """Where the values of a JSON document lie, inner and outer ones."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in inner for found in paths(part, (*path, key)))]
