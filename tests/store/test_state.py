"""How a state is stored: in few bytes, read back exactly; anything else is refused with its place."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from tests.support.builders import a_balance, a_state
from tests.support.fuzzing import tried
from tests.support.servers import ENGINES
from tests.support.some_states import anything, entries, named_states, paths, states
from tests.support.stores import a_store
from watcher.amounts import MAX_INTEGER
from watcher.journal.account import AccountState, Entry
from watcher.journal.events import shown
from watcher.snapshot import LOST, Asset, Balance
from watcher.store.keys import stamp_of
from watcher.store.state import BadState, Called, Kept, dump_body, dump_state, load_state

VERSION = "0123456789abcdef"
HEAD = b"0123456789abcdef 00000000001000 1\n"
Table = Mapping[str, Called]


def of_asset(**fields: Any) -> AccountState:
    """A state with one asset, called 18 Ether."""
    whole: dict[str, Any] = {"asset": Asset("ETH", "ETH", "Ether", 18), "published": a_balance("1")} | fields
    entry = Entry(**{"seen": whole["published"], **whole})
    return AccountState("here", None, {"ETH": entry}, version=VERSION, sequence=1, polled_at_ms=1000)


ETHER: Table = {"ETH": ("ETH", "Ether", 18)}


def written(source: Any = "here", rows: Any = None, *rest: Any, head: bytes = HEAD) -> bytes:
    """A state with this in it, by default that of `of_asset`."""
    return head + json.dumps([source, {"ETH": "18 1"} if rows is None else rows, *rest]).encode()


def row_of(state: AccountState, names: Table = ETHER) -> Any:
    text = dump_state(state, names)
    return json.loads(text[text.index(b"\n") :])[1]["ETH"]


def as_called(state: AccountState, names: Table) -> AccountState:
    """The state with the names of a table, where an asset has none of its own."""
    entries = {
        asset_id: entry._replace(asset=Asset(asset_id, *names[asset_id][:2], entry.asset.decimals))
        if entry.asset[1:3] == (None, None) and asset_id in names
        else entry
        for asset_id, entry in state.entry_by_asset.items()
    }
    return state._replace(entry_by_asset=entries)


def amounts_of(state: AccountState) -> AccountState:
    entries = {
        asset_id: entry._replace(asset=Asset(asset_id)) for asset_id, entry in state.entry_by_asset.items()
    }
    return state._replace(entry_by_asset=entries)


def never_misread(text: bytes, names: Table) -> None:
    """Claim that this is refused as BadState, or is a state that can be written down again as it was read."""
    try:
        state = load_state(text, names)
    except BadState:
        return
    assert load_state(dump_state(state, names), names) == as_called(state, names)


@tried(40)
@given(named_states())
def test_a_state_is_read_back_as_it_was_written(drawn: tuple[AccountState, Table]) -> None:
    state, names = drawn
    assert load_state(dump_state(state, names), names) == as_called(state, names)


@tried(40)
@given(named_states(), st.booleans())
def test_a_lost_table_costs_names_and_decimals_but_no_amount(
    drawn: tuple[AccountState, Table], is_lost: bool
) -> None:
    state, names = drawn
    read = load_state(dump_state(state, names), {} if is_lost else names)
    assert amounts_of(read) == amounts_of(state)
    for asset_id, entry in state.entry_by_asset.items():
        decimals = read.entry_by_asset[asset_id].asset.decimals
        assert decimals in ((entry.asset.decimals, LOST) if is_lost else (entry.asset.decimals,))


@tried(40)
@given(states(), st.integers(0, 10**14 - 1), st.integers(0, 10**20 - 1))
def test_version_time_and_height_are_at_fixed_positions(
    state: AccountState, polled_at_ms: int, height: int
) -> None:
    text = dump_state(state, {})
    assert text[:17].decode() == f"{state.version:17}"
    assert int(text[17:31]) == state.polled_at_ms
    touched = text[:17] + b"%014d" % polled_at_ms + text[31:]
    assert load_state(touched, {}) == load_state(text, {})._replace(polled_at_ms=polled_at_ms)
    if state.height is not None:
        stamp = stamp_of(polled_at_ms, height).encode()
        touched = text[:17] + stamp + text[17 + len(stamp) :]
        after = load_state(text, {})._replace(polled_at_ms=polled_at_ms, height=height)
        assert load_state(touched, {}) == after


def test_a_state_without_a_height_has_the_same_bytes_as_before_heights() -> None:
    state = of_asset()
    text = dump_state(state, ETHER)
    assert text.partition(b"\n")[0] == HEAD.partition(b"\n")[0]
    assert load_state(text, ETHER).height is None
    high = dump_state(state._replace(height=19_000_000), ETHER)
    assert high.partition(b" 1\n")[0].endswith(b" 00000000000019000000")
    assert len(high) == len(text) + 21


def test_a_height_that_does_not_fit_is_not_written() -> None:
    for height in (-1, 10**20):
        with pytest.raises(ValueError, match="20"):
            dump_state(of_asset()._replace(height=height), ETHER)


def test_a_quiet_account_takes_a_line_and_a_short_object() -> None:
    text = dump_state(a_state(ETH="10", LRC="0", version=VERSION), {})
    assert text == HEAD + b'["here",{"ETH":"0 10","LRC":"0"}]'


@pytest.mark.parametrize(
    ("balance", "row"),
    [
        (a_balance("0"), "="),
        (a_balance("-0.5"), "=-0.5"),
        (a_balance("1", "0.5"), "=1 0.5"),
        (a_balance("0", "0.5"), "=0 0.5"),
        (a_balance("1", "0", "2"), "=1 0 2"),
        (a_balance("1", "0", "0", "2"), "=1 0 0 2"),
        (a_balance("1", "0", None, "0"), "=1 0 -"),
        (a_balance("1", "0", "0", None), "=1 0 0 -"),
        (a_balance("1", "0", None, None), "=1 0 - -"),
    ],
)
def test_zeros_at_the_end_are_cut_off_and_null_is_not_zero(balance: Balance, row: str) -> None:
    state = of_asset(published=balance)
    assert row_of(state) == row
    assert load_state(dump_state(state, ETHER), ETHER) == state


def test_decimals_that_are_not_known_are_not_zero_decimals() -> None:
    state = of_asset(asset=Asset("ETH", "ETH", "Ether"))
    assert row_of(state) == "- 1"
    assert load_state(dump_state(state, ETHER), ETHER) == state


def test_pending_and_suspect_amounts_are_kept_to_the_digit() -> None:
    huge = "9" * 77 + "." + "1" * 78
    state = of_asset(
        published=a_balance("-" + huge, "0", None, "-0.5"),
        seen=a_balance(huge, "1", None, "0"),
        confirmation_polls=2,
        suspect=a_balance("0"),
    )
    assert row_of(state) == [f"=-{huge} 0 - -0.5", 2, f"{huge} 1 -", "0"]
    assert load_state(dump_state(state, ETHER), ETHER) == state


def test_a_state_is_the_same_bytes_in_every_process() -> None:
    names = [f"below {number}" for number in range(50)]
    text = dump_state(of_asset()._replace(crossed=frozenset(names)), {})
    assert json.loads(text.partition(b"\n")[2])[-1] == sorted(names)


def test_an_asset_with_another_name_has_it_in_its_row() -> None:
    state = of_asset()
    tables: list[Table] = [{}, {"ETH": ("ETH", None, 6)}, {"ETH": ("WETH", "Ether", None)}]
    for names in tables:
        assert row_of(state, names) == {"is": "18 1", "symbol": "ETH", "name": "Ether"}
        assert load_state(dump_state(state, names), {}) == state
    pending = of_asset(confirmation_polls=1)
    assert row_of(pending, {}) == {"is": ["18 1", 1, "1", None], "symbol": "ETH", "name": "Ether"}


def test_an_asset_without_a_name_gets_that_of_the_table_later() -> None:
    state = of_asset(asset=Asset("ETH", decimals=18))
    assert (row_of(state, ETHER), row_of(state, {})) == ("=1", "18 1")
    assert load_state(dump_state(state, {}), ETHER).entry_by_asset["ETH"].asset.name == "Ether"


def test_an_asset_with_other_decimals_has_them_in_its_row() -> None:
    state = of_asset(asset=Asset("ETH", "ETH", "Ether", 6))
    assert row_of(state) == "6 1"
    assert load_state(dump_state(state, ETHER), ETHER) == state


def test_lost_decimals_stay_unknown_until_the_table_has_them_again() -> None:
    text = dump_state(of_asset(), ETHER)
    lost = load_state(text, {})
    assert lost.entry_by_asset["ETH"].asset == Asset("ETH", decimals=LOST)
    assert load_state(dump_state(lost, {}), ETHER) == of_asset()
    assert shown(lost.entry_by_asset["ETH"].asset)["decimals"] is None
    assert json.loads(dump_body(lost, {}))["assets"]["ETH"][6] is None


@pytest.mark.parametrize(
    "fields",
    [{"version": "0" * 17}, {"version": "a b"}, {"version": "ä"}, {"version": ""}]
    + [{name: value} for name in ("sequence", "polled_at_ms") for value in (-1, 10**14)],
)
def test_only_readable_states_are_written(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="16 characters"):
        dump_state(of_asset()._replace(**fields), ETHER)


@tried(40)
@given(st.data(), named_states())
def test_writing_what_differs_gives_the_bytes_of_the_whole_state(
    data: st.DataObject, drawn: tuple[AccountState, Table]
) -> None:
    before, names = drawn
    assets = before.entry_by_asset
    moved = data.draw(st.dictionaries(st.sampled_from([*assets]), st.none() | entries())) if assets else {}
    changed = {name: entry and entry._replace(asset=assets[name].asset) for name, entry in moved.items()}
    left = {name: entry for name, entry in {**assets, **changed}.items() if entry}
    others: list[Any] = [{}, {}, {"sequence": 7}, {"source": "there"}, {"crossed": frozenset()}]
    after = before._replace(entry_by_asset=left, **data.draw(st.sampled_from(others)))
    kept = Kept.of(before, dump_state(before, names), is_ours=True)
    assert dump_state(after, names, kept) == dump_state(after, names)


def test_a_name_that_looks_like_a_row_is_not_taken_for_one() -> None:
    named = Entry(Asset("a", '=1","b":"=', 'b":"=1', 18), a_balance("1"), a_balance("1"))
    waiting = Entry(Asset("symbol", None, None, 18), a_balance("1"), a_balance("2"), confirmation_polls=1)
    rests = Entry(Asset("b", None, None, 18), a_balance("3"), a_balance("3"))
    before = of_asset()._replace(entry_by_asset={"a": named, "symbol": waiting, "b": rests})
    names: Table = dict.fromkeys(before.entry_by_asset, ("", "", 18))
    kept = Kept.of(before, dump_state(before, names), is_ours=True)
    for asset_id in before.entry_by_asset:
        moved = before.entry_by_asset[asset_id]._replace(published=a_balance("5"))
        after = before._replace(entry_by_asset={**before.entry_by_asset, asset_id: moved})
        assert dump_state(after, names, kept) == dump_state(after, names)


@tried(40)
@given(st.data(), named_states())
def test_a_state_that_was_cut_off_is_refused(data: st.DataObject, drawn: tuple[AccountState, Table]) -> None:
    text = dump_state(*drawn)
    with pytest.raises(BadState):
        load_state(text[: data.draw(st.integers(0, len(text) - 1))], drawn[1])


@tried(40)
@given(st.data(), named_states())
def test_changed_bytes_are_refused_or_another_whole_state(
    data: st.DataObject, drawn: tuple[AccountState, Table]
) -> None:
    state, names = drawn
    text = bytearray(dump_state(state, names))
    places = st.integers(0, len(text) - 1)
    likely = st.sampled_from(list(b'0123456789-. ",:[]{}\n\\u\x00\xff'))
    for place, byte in data.draw(st.dictionaries(places, likely | st.integers(0, 255), max_size=3)).items():
        text[place] = byte
    never_misread(bytes(text), names)


@tried(40)
@given(st.data(), named_states(), anything)
def test_one_damaged_value_is_refused_or_harmless(
    data: st.DataObject, drawn: tuple[AccountState, Table], value: Any
) -> None:
    state, names = drawn
    head, _, said = dump_state(state, names).partition(b"\n")
    body = json.loads(said)
    path = data.draw(st.sampled_from([path for path in paths(body) if path]))
    inner = body
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    never_misread(head + b"\n" + json.dumps(body).encode(), names)


@given(anything)
def test_any_other_json_is_refused_or_a_whole_state(value: Any) -> None:
    never_misread(HEAD + json.dumps(value).encode(), {})


@given(st.binary(), st.booleans())
def test_any_other_bytes_are_refused(text: bytes, has_head: bool) -> None:
    with pytest.raises(BadState):
        load_state(HEAD + text if has_head else text, {})


HOSTILE = [b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"null", b"NaN", b"{}", b"[]"]


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: f"{body[:8]!r}{len(body)}")
def test_a_hostile_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadState):
        load_state(HEAD + body, {})
    if body != b"{}":
        with pytest.raises(BadState):
            load_state(HEAD + b'["",' + body + b"]", {})


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\n",
        b"0123456789abcde 00000000001000 1\n",
        b"01234567 9abcdef 00000000001000 1\n",
        b"                 00000000001000 1\n",
        b"v 00000000000000 1\n",
        b"v                 00000000000000 1\n",
        b"v\xff               00000000000000 1\n",
        b"0123456789abcdef  0000000001000 1\n",
        b"0123456789abcdef -0000000001000 1\n",
        b"0123456789abcdef 0000000000_000 1\n",
        b"0123456789abcdef 0000000001000 1\n",
        b"0123456789abcdef 000000000001000 1\n",
        b"0123456789abcdef 00000000001000 \n",
        b"0123456789abcdef 00000000001000 01\n",
        b"0123456789abcdef 00000000001000 -1\n",
        b"0123456789abcdef 00000000001000 1.0\n",
        b"0123456789abcdef 00000000001000 1 \n",
        b"0123456789abcdef 00000000001000 123456789012345\n",
        b"0123456789abcdef 00000000001000 1",
        b" 0123456789abcdef 00000000001000 1\n",
        b"0123456789abcdef\n00000000001000 1\n",
    ],
)
def test_any_other_head_is_refused(head: bytes) -> None:
    body = dump_state(of_asset(), ETHER)[len(HEAD) :]
    assert load_state(HEAD + body, ETHER) == of_asset()
    with pytest.raises(BadState):
        load_state(head + body, ETHER)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_any_other_encoding_is_refused(encoding: str) -> None:
    body = dump_state(of_asset(), ETHER)[len(HEAD) :].decode()
    with pytest.raises(BadState):
        load_state(HEAD + body.encode(encoding), ETHER)


ROWS = [
    *(
        None,
        True,
        18,
        1.5,
        {},
        [],
        "",
        " ",
        " 18",
        "18 ",
        "18  1",
        "18\t1",
        "18 1\n",
        "79 1",
        "018 1",
        "+1 1",
    ),
    *("-1 1", "\uff11\uff18 1", "1_0 1", "x 1", "18 x", "18 -", "18 1 -", "18 1 - 0", "18 1 2 3 4 5"),
    *("=0", "= 1", "=1 ", "=18 0", "=1 0", "==1", "=-", "=1.50", "=-0", "=1 2 3 4 5", " =1"),
    *("18 1 2 3 0", "18 0", "18 1 0", "0 0", "18 1.50", "18 01", "18 -0", "18 +1", "18 1e3", "18 .5"),
    *(f"18 {MAX_INTEGER + 1}", f"18 1.{'1' * 79}", "18 \ud800"),
    *(["18 1"], ["18 1", 1], ["18 1", 1, "1"], ["18 1", 0, "1", None], ["18 1", -1, "1", None]),
    *(
        ["18 1", 1.0, "1", None],
        ["18 1", True, "1", None],
        ["18 1", "1", "1", None],
        ["18 1", 10**14, "1", None],
    ),
    *(["18 1", 1, None, None], ["18 1", 1, "", None], ["18 1", 1, "1 0", None], ["18 1", 1, "-", None]),
    *(["18 1", 1, "1", 0], ["18 1", 1, "1", ""], ["18 1", 1, "1", "1 2 3 4 5"], ["18 1", 1, "1", None, 1]),
    *([["18 1"], 1, "1", None], {"is": "18 1"}, {"is": "18 1", "symbol": "E"}),
    *({"is": "18 1", "symbol": "E", "name": 1}, {"is": "18 1", "symbol": "E", "name": "E", "x": 1}),
    *({"is": None, "symbol": "E", "name": "E"}, {"is": "18 1", "symbol": "\ud800", "name": None}),
    {"is": {"is": "18 1", "symbol": "E", "name": "E"}, "symbol": "E", "name": "E"},
]


def any_of(*values: Any) -> tuple[Any, ...]:
    return values


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_any_other_row_is_refused(row: Any) -> None:
    with pytest.raises(BadState):
        load_state(written("here", {"ETH": row}), {})


@pytest.mark.parametrize(
    "damage",
    [
        (None,),
        ("\ud800",),
        ("here", []),
        ("here", "18 1"),
        ("here", {"\ud800": "18 1"}),
        *(("here", {}, watched) for watched in any_of("ETH", [1], ["\ud800"], {})),
        *(("here", {}, None, stale) for stale in any_of(-1, 10**14, True, "1", None)),
        *(("here", {}, None, 0, crossed) for crossed in any_of("low", [None], [[]], None)),
        ("here", {}, None, 0, [], None),
    ],
    ids=str,
)
def test_any_other_part_is_refused(damage: tuple[Any, ...]) -> None:
    with pytest.raises(BadState):
        load_state(written(*damage), ETHER)


def test_a_state_may_end_early_but_not_before_its_assets() -> None:
    whole: tuple[Any, ...] = ("here", {"ETH": "18 1"}, None, 0, [])
    for length in (2, 3, 4, 5):
        assert load_state(written(*whole[:length]), ETHER) == of_asset()
    for body in (b"[]", b'["here"]', b'{"source":"here"}', b'"here"', b"null"):
        with pytest.raises(BadState):
            load_state(HEAD + body, ETHER)


@pytest.mark.parametrize("engine", sorted(ENGINES))
async def test_an_account_of_ten_assets_takes_700_bytes_at_most(redis_client: Redis, namespace: str) -> None:
    """As the benchmark weighs it, in a short schedule. From 129 accounts in a shard on, an entry of it takes
    50 bytes more."""
    store = a_store(redis_client, namespace)
    balance = a_balance("1234.567890123456789", "12.5")
    assets = [Asset(str(n), f"TOK{n}", f"Token {n}", 18) for n in range(10)]
    state = of_asset()._replace(
        source="0" * 32,
        entry_by_asset={asset.id: Entry(asset, balance, balance) for asset in assets},
        sequence=1_795_175_125_000,
    )
    text = dump_state(state, {asset.id: asset[1:] for asset in assets})
    schedule, accounts = f"{namespace}:{{0}}:schedule", [f"account-{n}" for n in range(100)]
    states = [f"{namespace}:{{0}}:account:{account}" for account in accounts]
    for account, key in zip(accounts, states, strict=True):
        await store.pipe.command("SET", key, text)
        await store.pipe.command("ZADD", schedule, 1_795_175_125_000.25, account)
    used = [await redis_client.memory_usage(key, samples=0) for key in (schedule, *states)]
    assert sum(map(int, filter(None, used))) / len(accounts) <= 700
    assert not re.search(rb"TOK|Token", text)
