"""Reviewed exchanges are read exactly, or not at all. Needs no ccxt."""

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.exchanges import Sample, exchange_settings, samples
from tests.support.fuzzing import tried
from watcher.commands.check import command
from watcher.providers.contract import Rejected
from watcher.providers.exchange import REVIEWED, ExchangeSettings, Listing, read_listing
from watcher.providers.strict_json import NotJson, parse
from watcher.snapshot import Balance, Row

SAMPLES = samples()
every_listing = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def read(listing: Listing, *bodies: bytes) -> dict[str, Row]:
    return read_listing(listing, [*map(parse, bodies)], str.upper)


def rejected(listing: Listing, *bodies: bytes) -> str:
    with pytest.raises(Rejected) as refused:
        read(listing, *bodies)
    assert refused.value.error_class == "malformed"
    return refused.value.words


def test_every_listing_has_a_documented_answer() -> None:
    there = [(name, listing) for name, venue in REVIEWED.items() for listing in venue.listings]
    assert len(SAMPLES) == len(there)
    for sample in SAMPLES:
        assert (sample.exchange, sample.listing) in there
        assert sample.balance_by_asset


@every_listing
def test_the_documented_answer_is_read_to_the_last_digit(sample: Sample) -> None:
    rows = read(sample.listing, *sample.bodies)
    assert {asset: row.balance for asset, row in rows.items()} == sample.balance_by_asset


NO_LISTING = (
    "null",
    "{}",
    '"maintenance"',
    "0",
    "true",
    '{"status": "ok", "message": "welcome"}',
    '{"balances": null, "accounts": null, "data": null, "result": null}',
    '{"balances": "", "accounts": "", "data": "", "result": ""}',
    '{"result": {"list": [{"coin": null}], "balance": null}}',
    '{"result": {"list": []}}',
    '{"balances": [null], "accounts": [null], "data": [null], "result": {"BTC": null}}',
    "[null]",
    "[1, 2]",
    '["error", 10020, "limit: invalid"]',
    '{"result": "error", "reason": "Maintenance"}',
    '{"balances": [], "balances": [], "accounts": [], "accounts": [],'
    ' "data": [], "data": [], "result": {}, "result": {}}',
)


@every_listing
def test_an_answer_that_is_no_listing_is_never_read_as_empty(sample: Sample) -> None:
    for body in NO_LISTING:
        rejected(sample.listing, body.encode())


@every_listing
def test_an_answer_without_its_list_or_with_another_type_is_rejected(sample: Sample) -> None:
    for index, body in enumerate(sample.bodies):
        odds: list[Any] = [None, {}, [], "x", 7, [[]], [{}], {"BTC": {}}, {"BTC": []}]
        for odd in odds:
            broken = [*sample.bodies]
            broken[index] = json.dumps(replaced(body, sample.listing.rows, odd)).encode()
            nothing: Any = {} if sample.listing.asset is None else []
            if odd == nothing and sample.listing.may_be_empty:
                continue
            rejected(sample.listing, *broken)


def test_an_empty_listing_is_accepted_only_where_zeros_are_left_out() -> None:
    full = {str(sample) for sample in SAMPLES if not sample.listing.may_be_empty}
    assert full == {"binance-spot", "bitstamp-spot", "coinbase-accounts"}
    empty = next(sample for sample in SAMPLES if str(sample) == "okx-funding")
    assert read(empty.listing, b'{"code": "0", "data": [], "msg": ""}') == {}


AMOUNTS_NOT: list[Any] = [
    None,
    "",
    " 1",
    "1,5",
    "0x10",
    "NaN",
    "Infinity",
    "1e400000",
    True,
    [],
    {},
    "9" * 79,
    "+1",
    ".5",
]


@every_listing
def test_an_invalid_amount_rejects_the_poll(sample: Sample) -> None:
    ways = [way for way in (sample.listing.total, sample.listing.free, sample.listing.locked) if way]
    assert len(ways) == 2
    for way, odd in product(ways, AMOUNTS_NOT):
        broken = json.dumps(with_first_row(sample, way, odd)).encode()
        assert rejected(sample.listing, broken, *sample.bodies[1:]).startswith("row 0: an amount is")


@every_listing
def test_a_json_number_is_read_by_its_text_or_rejects_the_poll(sample: Sample) -> None:
    way = sample.listing.total or sample.listing.free
    assert way
    text = json.dumps(with_first_row(sample, way, "@here@"))
    for number in ("NaN", "1e400000", "-Infinity", "1e-400", "1" * 79):
        rejected(sample.listing, text.replace('"@here@"', number).encode(), *sample.bodies[1:])
    large = "123456789012345678901234567890.5"
    for number in (large, f'"{large}"', "1234567890123456789012345678905e-1"):
        rows = read(sample.listing, text.replace('"@here@"', number).encode(), *sample.bodies[1:])
        assert next(iter(rows.values())).balance.total.startswith(large[:-3])
    if not sample.listing.free or sample.listing.locked:
        rows = read(sample.listing, text.replace('"@here@"', "1E-30").encode(), *sample.bodies[1:])
        assert next(iter(rows.values())).balance.total.endswith("00000000001")


@every_listing
def test_an_asset_without_a_name_rejects_the_poll(sample: Sample) -> None:
    odds: list[Any] = [None, "", 7, [], "a\nb", " BTC", "B" * 65]
    for odd in odds:
        if sample.listing.asset:
            said = with_first_row(sample, sample.listing.asset, odd)
        else:
            said = {"result": {odd if isinstance(odd, str) else "": {"balance": "1", "hold_trade": "0"}}}
        words = rejected(sample.listing, json.dumps(said).encode(), *sample.bodies[1:])
        assert words == "row 0: not an asset"


@every_listing
def test_an_asset_listed_twice_is_added_up_only_where_that_is_documented(sample: Sample) -> None:
    if sample.listing.asset is None:
        return  # a name given twice is no object
    said = parsed(sample.bodies[0])
    rows = at(said, sample.listing.rows)
    rows.append(json.loads(json.dumps(rows[0])))
    if sample.listing.parts:
        assert "is the same" in rejected(sample.listing, json.dumps(said).encode(), *sample.bodies[1:])
        set_at(rows[-1], (), sample.listing.parts, "another")
    same = read(sample.listing, json.dumps(said).encode(), *sample.bodies[1:])
    if sample.listing.parts:
        assert same["BTC"].balance == Balance("2.600000000000000001", "0.14", None, None)
        return
    assert same.keys() == sample.balance_by_asset.keys()
    way = sample.listing.total or sample.listing.free
    assert way
    set_at(rows[-1], (), way, "77777777777")
    assert "listed above" in rejected(sample.listing, json.dumps(said).encode(), *sample.bodies[1:])


@pytest.mark.parametrize("pages", [[True], [False, False], [True, True], [None], ["false"], [0], [1, 0]])
def test_a_part_of_a_listing_is_never_read_as_the_whole(pages: list[Any]) -> None:
    coinbase = next(sample for sample in SAMPLES if sample.exchange == "coinbase")
    said = parsed(coinbase.bodies[0])
    bodies = [json.dumps(said | {"has_next": more}).encode() for more in pages]
    assert "pages do not end" in rejected(coinbase.listing, *bodies)


def test_more_answers_than_requests_are_rejected() -> None:
    binance = next(sample for sample in SAMPLES if str(sample) == "binance-spot")
    rejected(binance.listing, *binance.bodies, *binance.bodies)


def test_more_free_than_total_rejects_the_poll() -> None:
    gemini = next(sample for sample in SAMPLES if sample.exchange == "gemini")
    said = with_first_row(gemini, ("available",), "10.6")
    assert "row 0: an amount is" in rejected(gemini.listing, json.dumps(said).encode())


def test_another_wallet_is_ignored_and_one_without_a_name_rejects_the_poll() -> None:
    bitfinex = next(sample for sample in SAMPLES if sample.exchange == "bitfinex")
    assert read(bitfinex.listing, b'[["margin", "BTC", 5, 0, 5, null, null]]') == {}
    assert "of which wallet" in rejected(bitfinex.listing, b'[[null, "BTC", 5, 0, 5, null, null]]')
    assert "of which wallet" in rejected(bitfinex.listing, b"[[]]")
    assert "of which wallet" in rejected(bitfinex.listing, b'[["Exchange", "BTC", 5, 0, 5, null, null]]')
    coinbase = next(sample for sample in SAMPLES if sample.exchange == "coinbase")
    for odd in ("", "CRYPTO", "account_type_crypto"):
        said = json.dumps(with_first_row(coinbase, ("type",), odd)).encode()
        assert "of which wallet" in rejected(coinbase.listing, said, coinbase.bodies[1])


@every_listing
@tried(10)
@given(data=st.data())
def test_whatever_is_answered_only_rejected_is_raised(sample: Sample, data: st.DataObject) -> None:
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    names = st.sampled_from(["balances", "result", "data", "accounts", "list", "coin", "balance", "has_next"])
    any_json = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4)
    )
    try:
        said = parse(json.dumps(data.draw(any_json)).encode())
    except NotJson:
        return
    try:
        rows = read_listing(sample.listing, [said], str.upper)
    except Rejected:
        return
    assert all(isinstance(row.balance.total, str) for row in rows.values())


def test_without_ccxt_a_configuration_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ccxt", None)
    with pytest.raises(ValidationError) as raised:
        exchange_settings("kraken")
    (flaw,) = raised.value.errors()
    assert flaw["loc"] == ("exchange",)
    assert "needs ccxt: pip install 'balance-watcher[exchange]'" in flaw["msg"]


def test_without_ccxt_check_says_so_in_one_line_and_exits_with_78(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ccxt", None)
    path = tmp_path / "watcher.toml"
    path.write_text(
        '[providers.kraken]\nkind = "exchange"\nexchange = "kraken"\napi_key = "k"\nsecret = "c2VjcmV0"\n\n'
        '[[accounts]]\nname = "spot"\nprovider = "kraken"\n'
    )
    result = CliRunner().invoke(command, ["--config", str(path)])
    assert result.exit_code == 78
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning")]
    assert lines == [
        f"{path}:3: providers.kraken.exchange: needs ccxt: pip install 'balance-watcher[exchange]'"
    ]


def test_the_shape_of_a_section_needs_no_ccxt() -> None:
    assert ExchangeSettings.model_fields["secret"].is_required()
    assert not ExchangeSettings.model_fields["base_url"].is_required()


def parsed(body: bytes) -> Any:
    return json.loads(body)


def at(said: Any, way: tuple[str | int, ...]) -> Any:
    for step in way:
        said = said[step]
    return said


def set_at(said: Any, start: tuple[str | int, ...], way: tuple[str | int, ...], value: Any) -> Any:
    *above, last = (*start, *way)
    at(said, tuple(above))[last] = value
    return said


def replaced(body: bytes, way: tuple[str | int, ...], value: Any) -> Any:
    return set_at(parsed(body), (), way, value) if way else value


def row_way(sample: Sample) -> tuple[str | int, ...]:
    first: str | int = next(iter(sample.balance_by_asset)) if sample.listing.asset is None else 0
    return (*sample.listing.rows, first)


def with_first_row(sample: Sample, way: tuple[str | int, ...], value: Any) -> Any:
    """The first answer, with something else in its first row."""
    return set_at(parsed(sample.bodies[0]), row_way(sample), way, value)
