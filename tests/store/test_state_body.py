"""How states and deliveries are written down: read back exactly, and anything else is refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.builders import a_balance, a_state
from watcher.amounts import MAX_FRACTION_DIGITS, MAX_INTEGER, to_text
from watcher.journal.account import AccountState, Entry
from watcher.journal.events import Delivery, load_delivery
from watcher.snapshot import Asset, Balance
from watcher.store.state import BadState, dump_body, load_state

LARGEST = (MAX_INTEGER + 1) * 10**MAX_FRACTION_DIGITS - 1

amounts = st.integers(0, LARGEST).map(to_text) | st.sampled_from(["0", "1", "12.5", str(MAX_INTEGER)])
signed = st.integers(-LARGEST, LARGEST).map(to_text) | amounts
words = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20)
counts = st.integers(0, 10**13)


def balances(amount: st.SearchStrategy[str]) -> st.SearchStrategy[Balance]:
    return st.builds(Balance, amount, amount, st.none() | amount, st.none() | amount)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """An asset at rest, or one of which something is held, suspect or both."""
    decimals = st.none() | st.integers(0, MAX_FRACTION_DIGITS)
    asset = Asset("", draw(st.none() | words), draw(st.none() | words), draw(decimals))
    published = draw(balances(signed))
    confirmation_polls = draw(st.integers(0, 3))
    suspect = draw(st.none() | balances(amounts))
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
        previous_sequence=draw(st.dictionaries(words, counts, max_size=3)),
        version=draw(st.text("0123456789abcdef", min_size=1, max_size=16)),
        sequence=draw(counts),
        polled_at_ms=draw(counts),
        stale_since_ms=draw(counts),
        crossed=frozenset(draw(st.sets(words, max_size=2))),
    )


def fields(state: AccountState, body: bytes | None = None) -> dict[str, bytes]:
    """What the HASH of a state holds."""
    return {
        "version": state.version.encode(),
        "sequence": b"%d" % state.sequence,
        "polled_at": b"%d" % state.polled_at_ms,
        "body": dump_body(state) if body is None else body,
    }


def never_misread(damaged: dict[str, bytes]) -> None:
    """Claim that this is refused as BadState, or is a state that can be written down again as it was read."""
    try:
        state = load_state(damaged)
    except BadState:
        return
    assert load_state(fields(state)) == state


@settings(max_examples=60)
@given(states())
def test_a_state_is_read_back_as_it_was_written(state: AccountState) -> None:
    assert load_state(fields(state)) == state


def test_what_is_pending_confirmation_and_suspect_is_kept_to_the_digit() -> None:
    huge = "9" * 77 + "." + "1" * 78
    entry = Entry(
        Asset("ETH", "ETH", None, 18),
        a_balance("-" + huge, "0", None, "-0.5"),
        a_balance(huge, "1", None, "0"),
        confirmation_polls=2,
        suspect=a_balance("0", "0", None, "0"),
    )
    state = AccountState("here", ("ETH",), {"ETH": entry}, {"ops": 7}, "v1", 9, 1000)
    assert load_state(fields(state)) == state


def test_a_quiet_asset_takes_one_short_row() -> None:
    body = json.loads(dump_body(a_state(ETH="10")))
    assert body["assets"] == {"ETH": ["10", "0", "0", "0", None, None, 0]}


def test_zero_and_null_are_not_the_same() -> None:
    state = a_state(ETH=a_balance("1", "0", None, "0"))
    entry = load_state(fields(state)).entry_by_asset["ETH"]
    assert (entry.published.pending_deposit, entry.published.pending_withdrawal) == (None, "0")


def test_what_another_version_wrote_is_not_guessed_at() -> None:
    body = json.loads(dump_body(a_state(ETH="10")))
    with pytest.raises(BadState, match="another version"):
        load_state(fields(a_state(), json.dumps({**body, "schema": 2}).encode()))


anything: st.SearchStrategy[Any] = st.recursive(
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


@given(st.data(), states(), anything)
def test_one_damaged_value_is_refused_or_harmless(
    data: st.DataObject, state: AccountState, value: Any
) -> None:
    body = json.loads(dump_body(state))
    paths = [path for path in _paths(body) if path]
    path = data.draw(st.sampled_from(paths))
    inner = body
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    never_misread(fields(state, json.dumps(body).encode()))


@settings(max_examples=40)
@given(states(), st.integers(0, 300))
def test_a_body_that_was_cut_off_is_refused(state: AccountState, length: int) -> None:
    body = dump_body(state)
    with pytest.raises(BadState):
        load_state(fields(state, body[: min(length, len(body) - 1)]))


@given(anything)
def test_any_other_json_is_refused(value: Any) -> None:
    with pytest.raises(BadState):
        load_state(fields(a_state(), json.dumps(value).encode()))


@given(st.dictionaries(st.sampled_from(["version", "sequence", "polled_at", "body"]), st.binary()))
def test_any_other_bytes_are_refused(damage: dict[str, bytes]) -> None:
    never_misread({**fields(a_state(ETH="10")), **damage})


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"[" * 100_000, b"{" * 100_000, b"9" * 5000, b'{"schema":1}', b"null", b'"\\ud800"'],
    ids=lambda body: f"{body[:12]!r}{len(body)}",
)
def test_a_hostile_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadState):
        load_state(fields(a_state(), body))


@pytest.mark.parametrize("field", ["sequence", "polled_at"])
@pytest.mark.parametrize("text", [b"", b"-1", b" 1", b"1_0", b"1.0", b"1e3", b"9" * 15, b"9" * 5000])
def test_a_time_that_no_calendar_knows_is_refused(field: str, text: bytes) -> None:
    with pytest.raises(BadState):
        load_state({**fields(a_state()), field: text})


@given(st.binary())
def test_a_delivery_is_read_back_as_it_was_written(body: bytes) -> None:
    delivery = Delivery("evt_abc", "deposit.cleared", 1795175095846, b"{" + body)
    assert load_delivery(delivery.entry) == delivery


def test_a_delivery_is_named_by_its_first_line() -> None:
    delivery = Delivery("evt_1", "deposit.cleared", 7, b'{"id":"evt_1"}')
    assert delivery.entry == delivery.entry + delivery.body == b'evt_1 7 deposit.cleared\n{"id":"evt_1"}'


heads = st.from_regex(rb"[a-z_ ]{0,6} ?[-+_ 0-9]{0,5} ?[a-z.]{0,5}\n?[a-z]{0,2}", fullmatch=True)


@given(st.binary() | heads)
def test_no_other_bytes_are_taken_for_a_delivery(entry: bytes) -> None:
    try:
        delivery = load_delivery(entry)
    except ValueError:
        return
    assert delivery.entry == entry


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a JSON document lie, inner and outer ones."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in inner for found in _paths(part, (*path, key)))]
