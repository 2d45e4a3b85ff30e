"""How layout 1 stored states: a store is moved from there, and back."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import a_balance, a_state
from tests.support.fuzzing import tried
from tests.support.some_states import anything, counts, paths, states, words
from watcher.journal.account import AccountState, Entry
from watcher.snapshot import Asset
from watcher.store.state import BadState, dump_body, load_hash


def fields(
    state: AccountState, previous: Mapping[str, int] | None = None, *, body: bytes | None = None
) -> dict[str, bytes]:
    """What the HASH of a state holds."""
    return {
        "version": state.version.encode(),
        "sequence": b"%d" % state.sequence,
        "polled_at": b"%d" % state.polled_at_ms,
        "body": dump_body(state, previous or {}) if body is None else body,
    }


def never_misread(damaged: dict[str, bytes]) -> None:
    """Claim that this is refused as BadState, or is a state that can be written down again as it was read."""
    try:
        state, previous = load_hash(damaged)
    except BadState:
        return
    assert load_hash(fields(state, previous)) == (state, previous)


@tried(30)
@given(states(), st.dictionaries(words, counts, max_size=3))
def test_a_state_is_read_back_as_it_was_written_but_for_what_0_1_lacks(
    state: AccountState, previous: dict[str, int]
) -> None:
    assert load_hash(fields(state, previous)) == (state._replace(emptiness=None, height=None), previous)


def test_pending_and_suspect_amounts_are_kept_to_the_digit() -> None:
    huge = "9" * 77 + "." + "1" * 78
    entry = Entry(
        Asset("ETH", "ETH", None, 18),
        a_balance("-" + huge, "0", None, "-0.5"),
        a_balance(huge, "1", None, "0"),
        confirmation_polls=2,
        suspect=a_balance("0", "0", None, "0"),
    )
    state = AccountState("here", ("ETH",), {"ETH": entry}, "v1", 9, 1000)
    assert load_hash(fields(state, {"ops": 7})) == (state, {"ops": 7})


def test_a_quiet_asset_takes_one_short_row() -> None:
    body = json.loads(dump_body(a_state(ETH="10"), {}))
    assert body["assets"] == {"ETH": ["10", "0", "0", "0", None, None, 0]}


def test_zero_and_null_are_not_the_same() -> None:
    state = a_state(ETH=a_balance("1", "0", None, "0"))
    entry = load_hash(fields(state))[0].entry_by_asset["ETH"]
    assert (entry.published.pending_deposit, entry.published.pending_withdrawal) == (None, "0")


def test_a_state_of_another_version_is_refused() -> None:
    body = json.loads(dump_body(a_state(ETH="10"), {}))
    with pytest.raises(BadState, match="another version"):
        load_hash(fields(a_state(), body=json.dumps({**body, "schema": 2}).encode()))


@tried(40)
@given(st.data(), states(), anything)
def test_one_damaged_value_is_refused_or_harmless(
    data: st.DataObject, state: AccountState, value: Any
) -> None:
    body = json.loads(dump_body(state, {"ops": 7}))
    path = data.draw(st.sampled_from([path for path in paths(body) if path]))
    inner = body
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    never_misread(fields(state, body=json.dumps(body).encode()))


@tried(20)
@given(states(), st.integers(0, 300))
def test_a_body_that_was_cut_off_is_refused(state: AccountState, length: int) -> None:
    body = dump_body(state, {"ops": 7})
    with pytest.raises(BadState):
        load_hash(fields(state, body=body[: min(length, len(body) - 1)]))


@given(anything)
def test_any_other_json_is_refused(value: Any) -> None:
    with pytest.raises(BadState):
        load_hash(fields(a_state(), body=json.dumps(value).encode()))


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
        load_hash(fields(a_state(), body=body))


@pytest.mark.parametrize("field", ["sequence", "polled_at"])
@pytest.mark.parametrize("text", [b"", b"-1", b" 1", b"1_0", b"1.0", b"1e3", b"9" * 15, b"9" * 5000])
def test_a_time_that_no_calendar_knows_is_refused(field: str, text: bytes) -> None:
    with pytest.raises(BadState):
        load_hash({**fields(a_state()), field: text})
