"""`kind = "http"`: what is declared is requested, and answers are read exactly or not at all."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.benchmarks.declared import LISTING, ROWS, a_listing, cpu_ms
from tests.support.fuzzing import tried
from tests.support.provider_staging import Stage, answer, declared_account, declared_client, declared_settings
from watcher.amounts import check_canonical, to_atoms
from watcher.config.loading import as_toml, load, shown
from watcher.providers.contract import Rejected
from watcher.providers.declared import Http, HttpAccount
from watcher.providers.http import LIMIT, ProviderClient
from watcher.providers.paths import MOST_VALUES, read_path
from watcher.providers.strict_json import Number, parse
from watcher.snapshot import Asset, Balance, Snapshot

BITCOIN: dict[str, Any] = {
    "basic": "user:pass",
    "error": "error.code",
    "error_classes": {"-18": "configuration", "-28": "transient"},
    "ask": [
        {
            "method": "POST",
            "path": "/wallet/{wallet}",
            "json": {"jsonrpc": "1.0", "id": "w", "method": "getbalances", "params": []},
        }
    ],
    "read": [
        {
            "rows": "[result.mine]",
            "id": "BTC",
            "total": ["trusted", "immature"],
            "locked": "immature",
            "pending_deposit": "untrusted_pending",
        }
    ],
}
BALANCES = '{"result": {"mine": {"trusted": 1e-8, "untrusted_pending": 12.34567891, "immature": 24.9999859}}}'


def declared(**said: Any) -> Http:
    """A provider that asks one thing, unless something else is said."""
    return Http(declared_settings(**{"ask": [{"path": "/"}], **said}))


def read(said: Any, /, **part: Any) -> Snapshot:
    """Read one answer, its JSON text or what it says, by one part."""
    text = said if isinstance(said, str) else json.dumps(said)
    return declared(read=[part]).read(declared_account(), [parse(text.encode())], {})


def balances(snapshot: Snapshot) -> dict[str, Balance]:
    return {asset: row.balance for asset, row in snapshot.row_by_asset.items()}


def total(said: Any, /, **part: Any) -> str:
    """Read the total of the one asset that a part reads."""
    (balance,) = balances(read(said, **{"id": "X", "total": "a", **part})).values()
    return balance.total


def flaw(said: Any, /, **part: Any) -> str:
    """Say why an answer is rejected."""
    with pytest.raises(Rejected) as rejected:
        total(said, **part)
    return rejected.value.reason


async def test_a_node_is_asked_and_its_numbers_are_read_to_the_last_digit() -> None:
    async with Stage() as stage, declared_client(stage.url, **BITCOIN) as client:
        stage.reply = answer(BALANCES)
        account = declared_account(wallet="shop")
        snapshot = await client.read(account, await client.ask(account))
    (seen,) = stage.seen
    assert (seen.method, seen.target) == ("POST", "/wallet/shop")
    assert seen.header_by_name["authorization"] == "Basic dXNlcjpwYXNz"
    assert json.loads(seen.body) == {"jsonrpc": "1.0", "id": "w", "method": "getbalances", "params": []}
    assert balances(snapshot) == {"BTC": Balance("24.99998591", "24.9999859", "12.34567891", None)}


async def test_configured_headers_are_sent_once_and_unchanged() -> None:
    said: dict[str, Any] = {
        "headers": {"user-agent": "me", "ACCEPT": "text/json", "X-Key": "k"},
        "ask": [{"path": "/"}],
        "read": [{"id": "X", "total": "a"}],
    }
    async with Stage() as stage, declared_client(stage.url, **said) as client:
        stage.reply = answer({"a": 1})
        await client.ask(declared_account())
    (seen,) = stage.seen
    assert seen.header_by_name["user-agent"] == "me"
    assert seen.header_by_name["accept"] == "text/json"
    (request,) = Http(declared_settings(**said)).requests(declared_account())
    assert request.secret_headers == {"User-Agent": "me", "Accept": "text/json", "X-Key": "k"}


async def test_a_post_without_a_body_has_content_length_zero() -> None:
    said: dict[str, Any] = {"ask": [{"method": "POST", "path": "/"}], "read": [{"id": "X", "total": "a"}]}
    async with Stage() as stage, declared_client(stage.url, **said) as client:
        await client.ask(declared_account())
    (seen,) = stage.seen
    assert (seen.header_by_name["content-length"], seen.body) == ("0", b"")
    assert "content-type" not in seen.header_by_name


@pytest.mark.parametrize(
    ("said", "error_class"),
    [
        ({"result": None, "error": {"code": -18, "message": "not loaded"}}, "configuration"),
        ({"result": None, "error": {"code": -28, "message": "Loading"}}, "transient"),
        ({"result": None, "error": {"code": -1}}, "malformed"),
    ],
)
async def test_an_error_is_classed_by_the_beginning_of_its_text_whatever_its_status(
    said: Any, error_class: str
) -> None:
    provider, parsed = Http(declared_settings(**BITCOIN)), parse(json.dumps(said).encode())
    found = provider.refusal(200, parsed)
    assert found
    assert found.error_class == error_class
    by_status = provider.refusal(500, parsed)
    assert by_status.error_class == error_class if by_status else error_class == "malformed"


NUMBERS = [
    ("1", "whole", "1"),
    ("0.10", "whole", "0.1"),
    ("1e-8", "whole", "0.00000001"),
    ("1.5E+3", "whole", "1500"),
    ("-0.5", "whole", "-0.5"),
    (
        "123456789012345678901234567890.123456789012345678",
        "whole",
        "123456789012345678901234567890.123456789012345678",
    ),
    ("150", "smallest", "1.5"),
    ("1.5e2", "smallest", "1.5"),
    ("-7", "smallest", "-0.07"),
]
AS_TEXT = [(f'"{number}"', unit, expected) for number, unit, expected in NUMBERS if "e" not in number.lower()]


@pytest.mark.parametrize(("written", "unit", "expected"), [*NUMBERS, *AS_TEXT])
def test_a_number_is_read_as_it_is_written(written: str, unit: str, expected: str) -> None:
    assert total(f'{{"a": {written}}}', unit=unit, decimals=2) == expected


NO_AMOUNTS = [
    *("null", "true", "false", "[]", "{}", "[1]", '""', '" 1"', '"1 "', '"+1"', '"1e3"', '"1_0"', '"NaN"'),
    *("NaN", "Infinity", "-Infinity", "1e400000", "1e-400000", "1e999", "9" * 79, f'"{"9" * 79}"', '"0x1"'),
    *('{"a": 1, "a": 2}', '"１"', "1e-79"),
]


@pytest.mark.parametrize("unit", ["whole", "smallest"])
@pytest.mark.parametrize("written", NO_AMOUNTS)
def test_what_is_no_amount_rejects_the_poll_and_is_not_repeated(written: str, unit: str) -> None:
    reason = flaw(f'{{"a": {written}}}', unit=unit, decimals=2, default="0")
    assert reason.startswith("read[0] row 0: total: 'a' ")


def test_a_path_that_finds_nothing_says_so_and_names_row_and_field() -> None:
    rows = {"rows": "balances", "id": None, "asset": "asset", "total": ["free", "locked"], "locked": "locked"}
    said = {"balances": [{"asset": "A", "free": "1", "locked": "0"}, {"asset": "B", "free": "1"}]}
    assert flaw(said, **rows) == "read[0] row 1: total, locked: 'locked' finds nothing"
    assert flaw({}, **rows) == "read[0]: rows: 'balances' finds nothing"
    assert flaw({"balances": {}}, **rows) == "read[0]: rows: 'balances' is not a list"
    assert flaw({"balances": [{"free": "1"}]}, **rows) == "read[0] row 0: asset: 'asset' finds nothing"


@st.composite
def amounts(draw: st.DrawFn) -> str:
    whole = draw(st.integers(0, 10**30))
    places = draw(st.integers(0, 30))
    return f"{whole}.{draw(st.integers(0, 10**places - 1)):0{places}d}" if places else str(whole)


@tried(60)
@given(
    st.dictionaries(
        st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=1, max_size=6),
        st.tuples(amounts(), amounts(), amounts()),
        max_size=8,
    )
)
def test_random_rows_come_out_exact(row_by_asset: dict[str, tuple[str, str, str]]) -> None:
    rows = [
        f'{{"asset": "{asset}", "free": {free}, "held": "{held}", "in": {coming}}}'
        for asset, (free, held, coming) in row_by_asset.items()
    ]
    found = read(
        f'{{"balances": [{", ".join(rows)}]}}',
        rows="balances",
        asset="asset",
        total=["free", "held"],
        locked="held",
        pending=["in", "-held"],
    )
    assert found.row_by_asset.keys() == row_by_asset.keys()
    for asset, texts in row_by_asset.items():
        free, held, coming = (to_atoms(text) for text in texts)
        balance = found.row_by_asset[asset].balance
        assert to_atoms(balance.total) == free + held
        assert to_atoms(balance.locked) == held
        assert to_atoms(balance.pending_deposit or "") == max(coming - held, 0)
        assert to_atoms(balance.pending_withdrawal or "") == max(held - coming, 0)


def test_amounts_of_an_asset_in_several_parts_are_added_up() -> None:
    provider = declared(
        ask=[{"path": "/finalized"}, {"path": "/latest"}],
        read=[
            {"id": "ETH", "unit": "smallest", "decimals": 18, "total": "b", "pending": "-b", "height": "h"},
            {"id": "ETH", "unit": "smallest", "decimals": 18, "answer": 1, "pending": "b", "height": "h"},
        ],
    )
    for latest, pendings in (("7", ("0.000000000000000002", "0")), ("3", ("0", "0.000000000000000002"))):
        answers = [{"b": "5", "h": 100}, {"b": latest, "h": 132}]
        snapshot = provider.read(declared_account(), answers, {})
        assert balances(snapshot) == {"ETH": Balance("0.000000000000000005", "0", *pendings)}
        assert snapshot.height == 100


def test_rows_of_one_asset_are_added_up_only_if_a_key_distinguishes_them() -> None:
    twice = [{"mint": "M", "at": "x", "n": 5}, {"mint": "M", "at": "y", "n": 7}]
    part = {"rows": "@", "id": None, "asset": "mint", "total": "n"}
    assert flaw(twice, **part) == "read[0] row 1: 'mint' is as in a row above"
    assert total(twice, **part, unique="at") == "12"
    assert flaw([*twice, twice[0]], **part, unique="at") == "read[0] row 2: 'at' is as in a row above"


def test_rows_in_an_object_are_named_by_its_keys() -> None:
    said = {"result": {"XXBT": {"balance": "1.5", "hold": "0.5"}, "ZEUR": {"balance": "2", "hold": "0"}}}
    part = {"rows": "result", "total": "balance", "locked": "hold"}
    assert balances(read(said, **part)) == {
        "XXBT": Balance("1.5", "0.5", None, None),
        "ZEUR": Balance("2", "0", None, None),
    }
    with pytest.raises(Rejected, match="is not an object whose names are the assets"):
        read({"result": []}, **part)


def test_decimals_are_a_number_a_path_or_a_table() -> None:
    said = {"asset": "usd", "a": 150, "places": 3}
    assert total(said, unit="smallest", decimals=2) == "1.5"
    assert total(said, unit="smallest", decimals="places") == "0.15"
    assert (
        total(said, unit="smallest", id=None, rows="[@]", asset="asset", decimals={"usd": 1, "*": 2}) == "15"
    )
    assert (
        flaw(said, unit="smallest", decimals={"usd": 1})
        == "read[0] row 0: no decimals are given for its asset"
    )
    assert (
        flaw(said, unit="smallest", decimals="nowhere") == "read[0] row 0: decimals: 'nowhere' finds nothing"
    )
    snapshot = read(said, id="usd", unit="smallest", decimals="places", total="a", symbol="'USD'")
    assert snapshot.row_by_asset["usd"].asset == Asset("usd", "USD", None, 3)


def test_a_default_stands_for_a_name_that_is_not_there_and_for_nothing_else() -> None:
    for part in ({"total": "a"}, {"total": "b.a"}):
        assert total({"rows": [{}]}, rows="rows", default="0", **part) == "0"
        assert total({"locked": "1", "b": {}}, locked="locked", default="0", **part) == "0"
    for said in ('{"a": null}', '{"a": "busy"}', '{"a": {}}', "[]"):
        assert flaw(said, default="0")
    for said in ('{"b": null}', '{"b": "busy"}', '{"b": []}'):
        assert flaw(said, total="b.a", default="0")
    assert flaw({}, rows="[result]", default="0") == "read[0] row 0: is null"


def test_an_error_that_is_all_defaults_is_no_zero() -> None:
    """Any object may be the row, where the answer is, or its members are."""
    none, error = "read[0] row 0: none of its amounts is there, as in an error", dict[str, Any]()
    for error in ({}, {"message": "busy"}, {"b": {}}, {"error": {"code": 7}}):
        assert flaw(error, total=["a", "c"], locked="d", default="0") == none
    for error in ({"error": {"code": 7}}, {"error": {}, "BTC": {"a": "5"}}):
        assert flaw(error, id=None, total="a", locked="d", default="0") == none
        assert flaw(error, id=None, rows="@", total="a", default="0") == none
    pending = {"id": "X", "pending_deposit": "p", "default": "0"}
    both = declared(read=[{"id": "X", "total": "a"}, pending])
    assert balances(both.read(declared_account(), [{"a": "5"}], {})) == {"X": Balance("5", "0", "0", None)}


def test_a_value_cannot_escape_its_slot() -> None:
    provider = declared(
        secrets={"key": "k/e?y&z=1"},
        ask=[
            {
                "method": "POST",
                "path": "/v1/{who}/{key}",
                "query": {"who": "{who}", "key": "{key}"},
                "json": {"who": ["{who}"], "{who}": "{{who}} {key}"},
            }
        ],
        read=[{"id": "X", "total": "a"}],
    )
    hostile = 'a/../b?c=d&e#f%2f"\r\nx: y {key} é'
    (request,) = provider.requests(declared_account(who=hostile))
    quoted = "a%2F..%2Fb%3Fc%3Dd%26e%23f%252f%22%0D%0Ax%3A%20y%20%7Bkey%7D%20%C3%A9"
    assert request.path == f"/v1/{quoted}/k%2Fe%3Fy%26z%3D1"
    assert request.query == {"who": hostile, "key": "k/e?y&z=1"}
    assert request.json == {"who": [hostile], "{who}": "{who} k/e?y&z=1"}
    assert not any(text in repr(request) for text in ("k/e", "k%2Fe", "a/.."))


@pytest.mark.parametrize("value", [".", ".."])
def test_dots_that_lead_up_are_not_put_into_a_path(value: str) -> None:
    provider = declared(ask=[{"path": "/wallet/{who}/x"}], read=[{"id": "X", "total": "a"}])
    with pytest.raises(Rejected, match="lead elsewhere"):
        provider.source(declared_account(who=value))


def test_an_accounts_source_depends_on_its_values_and_not_on_keys() -> None:
    def source(account: HttpAccount, key: str) -> str:
        said = {"ask": [{"path": "/{who}", "query": {"k": "{key}"}}], "read": [{"id": "X", "total": "a"}]}
        return declared(secrets={"key": key}, **said).source(account)

    assert source(declared_account(who="a"), "key-1") == source(declared_account(who="a"), "key-2")
    assert source(declared_account(who="a"), "key-1") != source(declared_account(who="b"), "key-1")
    with pytest.raises(Rejected, match="lacks who"):
        source(declared_account(), "key")
    with pytest.raises(Rejected, match="no ask takes whom"):
        source(declared_account(who="a", whom="b"), "key")


def test_an_edit_of_what_is_read_changes_the_source_and_one_of_display_does_not() -> None:
    """Else it would come out as events, and two workers in a rollout would answer each other's."""
    part: dict[str, Any] = {"rows": "rows", "asset": "a", "total": "n"}
    ask: dict[str, Any] = {"path": "/{who}", "query": {"types": "STANDARD"}}

    def source(ask: dict[str, Any] = ask, part: dict[str, Any] = part, **said: Any) -> str:
        return declared(ask=[ask], read=[part], **said).source(declared_account(who="a"))

    shown = ({"symbol": "s"}, {"name": "n"}, {"height": "h"}, {"decimals": 8}, {"total": ["n"]})
    assert {source()} == {source(part=part | more) for more in shown}
    assert source() == source(error="error", more="more", headers={"x": "y"}, requests_per_second=1)
    read: tuple[dict[str, Any], ...] = (
        *({"total": ["n", "held"]}, {"total": "-n"}, {"locked": "held"}, {"pending": "p"}, {"default": "0"}),
        *({"rows": "others"}, {"asset": "b"}, {"unique": "id"}, {"unit": "smallest", "decimals": 2}),
    )
    asked = ({"query": {"types": "SAVINGS"}}, {"path": "/v2/{who}"}, {"next": {"url": "next"}})
    edits = [source(part=part | more) for more in read] + [source(ask | more) for more in asked]
    assert len({source(), *edits, source(absent_is_zero=True)}) == 2 + len(edits)


PAGED: dict[str, Any] = {"rows": "items", "asset": "id", "total": "n"}


def paged(method: str = "GET", **following: Any) -> Http:
    body = {"json": {"limit": 2}} if method == "POST" else {"query": {"limit": "2"}}
    return declared(ask=[{"method": method, "path": "/items", **body, "next": following}], read=[PAGED])


def page(*ids: str, **more: Any) -> dict[str, Any]:
    return {"items": [{"id": id_, "n": "1"} for id_ in ids], **more}


def flaw_of_pages(provider: Http, *answers: Any) -> str:
    with pytest.raises(Rejected) as rejected:
        provider.read(declared_account(), answers, {})
    return rejected.value.reason


def test_a_cursor_is_followed_to_the_last_page_and_all_pages_are_one_listing() -> None:
    provider = paged(cursor="next", query="after")
    account = declared_account()
    answers = [page("A", "B", next="c/1&x"), page("C", next=7), page("D", next="")]
    asked = [provider.requests(account, answers[:rounds]) for rounds in range(4)]
    assert [[request.query for request in requests] for requests in asked] == [
        [{"limit": "2"}],
        [{"limit": "2", "after": "c/1&x"}],
        [{"limit": "2", "after": "7"}],
        [],
    ]
    assert [*provider.read(account, answers, {}).row_by_asset] == ["A", "B", "C", "D"]
    assert flaw_of_pages(provider, *answers[:2]) == "an answer is missing"


def test_a_cursor_may_go_into_the_body_and_keeps_its_type() -> None:
    provider = paged("POST", cursor="next", json="after")
    requests = provider.requests(declared_account(), [page("A", next=7)])
    assert [request.json for request in requests] == [{"limit": 2, "after": 7}]


def test_pages_may_be_counted() -> None:
    provider = paged(page=0, step=2, query="offset", more="length(items) == `2`")
    answers = [page("A", "B"), page("C", "D"), page("E")]
    asked = [provider.requests(declared_account(), answers[:rounds]) for rounds in range(4)]
    assert [request.query.get("offset") for requests in asked for request in requests] == [None, "2", "4"]
    assert len(provider.read(declared_account(), answers, {}).row_by_asset) == 5
    assert flaw_of_pages(provider, answers[0], answers[0]) == "the same page twice"
    by_name = paged(page=1, query="page", more="has_more")
    assert flaw_of_pages(by_name, page("A")).startswith("more: 'has_more' finds nothing")
    or_none = paged(page=1, query="page", more="not_null(has_more, `false`)")
    for provider, last in ((by_name, page("A", has_more=False)), (or_none, page("A"))):
        assert not provider.requests(declared_account(), [last])


@pytest.mark.parametrize(
    ("said", "target"),
    [
        ("http://127.0.0.1:9/v1/items?after=a%2Fb", "/items?after=a%2Fb"),
        ("/v1/more?x=1#y", "/more?x=1"),
        ("?after=2", "/items?after=2"),
        ("more", "/more"),
    ],
)
def test_the_url_of_the_next_page_is_requested_unchanged(said: str, target: str) -> None:
    ask = {"path": "/items", "query": {"limit": "2"}, "next": {"url": "next"}}
    given = declared_settings("http://127.0.0.1:9/v1", ask=[ask], read=[PAGED])
    (request,) = Http(given).requests(declared_account(), [page("A", next=said)])
    assert (request.path, dict(request.query)) == (target, {})


ELSEWHERE = [
    *("https://127.0.0.1:9/v1/items", "http://127.0.0.1:99/v1/items", "http://127.0.0.1:9@evil.example/v1/"),
    *(
        "//evil.example/v1/items",
        "http://evil.example/v1/items",
        "/items",
        "/v1/../items",
        "../items",
        "/v10/x",
    ),
    *(
        "ftp://127.0.0.1:9/v1/x",
        "http://[::1/v1/x",
        "/v1/a b",
        "/v1/é",
        "/v1/a\r\nx: y",
        "/v1/" + "a" * 5_000,
    ),
    *("http://127.0.0.1:9/v1", "javascript:alert(1)", ["/v1/x"], {"a": 1}),
]


@pytest.mark.parametrize("said", ELSEWHERE)
def test_a_next_page_at_another_host_is_not_requested(said: Any) -> None:
    ask = {"path": "/items", "next": {"url": "next"}}
    provider = Http(declared_settings("http://127.0.0.1:9/v1", ask=[ask], read=[PAGED]))
    with pytest.raises(Rejected, match=r"another place than base_url|what is asked next"):
        provider.requests(declared_account(), [page("A", next=said)])


def test_half_of_a_listing_is_never_read() -> None:
    part = {"rows": "items", "asset": "id", "total": "n"}
    whole = declared(more="has_next", read=[part])
    assert whole.read(declared_account(), [page("A", has_next=False)], {}).row_by_asset
    assert (
        flaw_of_pages(whole, page("A", has_next=True))
        == "there are more pages than the one that is asked for"
    )
    following = paged(cursor="next", query="after", more="has_next", most=2)
    assert (
        flaw_of_pages(following, page("A", has_next=True)) == "there is another page, and nothing leads to it"
    )
    for unsaid in (page("A", next="c"), page("A", next="c", has_next=None)):
        assert "nothing says whether there is" in flaw_of_pages(following, unsaid)
    for last in (page("A"), page("A", next="c", has_next=False)):
        assert not following.requests(declared_account(), [last])
    assert flaw_of_pages(following, page("A", next=[], has_next="yes"))
    assert flaw_of_pages(following, page("A", next={"a": 1}, has_next=True))
    assert flaw_of_pages(following, page("A", next="c" * 600, has_next=True))
    twice = [page("A", next="c", has_next=True), page("B", next="c", has_next=True)]
    assert flaw_of_pages(paged(cursor="next", query="after"), *twice) == "the same cursor twice"
    longer = [page("A", next="c", has_next=True), page("B", next="d", has_next=True)]
    assert flaw_of_pages(following, *longer) == "more than 2 pages; raise most"


async def test_pages_are_asked_for_over_a_socket_and_a_listing_without_an_end_is_rejected() -> None:
    ask = {"path": "/items", "next": {"cursor": "next", "query": "after", "most": 3}}
    async with Stage() as stage, declared_client(stage.url, ask=[ask], read=[PAGED]) as client:
        stage.replies = [answer(page("A", next="1")), answer(page("B", next="2")), answer(page("C"))]
        account = declared_account()
        snapshot = await client.read(account, await client.ask(account))
        assert [*snapshot.row_by_asset] == ["A", "B", "C"]
        assert [seen.target for seen in stage.seen] == ["/items", "/items?after=1", "/items?after=2"]
        stage.replies = [answer(page("A", next=str(number))) for number in range(9)]
        with pytest.raises(Rejected, match="more than 3 pages"):
            await client.ask(account)
        assert len(stage.seen) == 6


def test_a_request_may_use_the_answer_to_the_one_before() -> None:
    provider = declared(
        ask=[
            {"path": "/profiles"},
            {"path": "/rates"},
            {"path": "/profiles/{id}/balances", "given": {"id": "rate"}},
        ],
        read=[{"answer": 2, "rows": "@", "asset": "currency", "total": "amount"}],
    )
    account = declared_account()
    assert provider.source(account)
    assert [request.path for request in provider.requests(account)] == ["/profiles", "/rates"]
    answers = [[], {"rate": "a/b"}, [{"currency": "EUR", "amount": "1.5"}]]
    assert [request.path for request in provider.requests(account, answers[:2])] == [
        "/profiles/a%2Fb/balances"
    ]
    assert not provider.requests(account, answers)
    assert balances(provider.read(account, answers, {})) == {"EUR": Balance("1.5", "0", None, None)}
    for odd in ("..", "", None, 1.5, ["a"], {"a": 1}, True, "x" * 600, "\ud800"):
        with pytest.raises(Rejected):
            provider.requests(account, [[], parse(json.dumps({"rate": odd}).encode())])


ABOUT = {
    "ask": [{"path": "/of/{id}", "same": {"id": "about.id"}, "next": {"cursor": "next", "query": "after"}}],
    "read": [PAGED],
}


@pytest.mark.parametrize(
    ("name", "said"),
    [("7", 7), ("7", "7"), ("a b", "a b"), ("0xAb", "0xaB")],
)
def test_an_answer_may_name_its_account(name: str, said: object) -> None:
    account = declared_account(id=name)
    pages = [page("A", about={"id": said}, next="2"), page("B", about={"id": said})]
    assert [*declared(**ABOUT).read(account, pages, {}).row_by_asset] == ["A", "B"]


@pytest.mark.parametrize(
    "said", ["8", 8, "07", " 7", "", None, True, ["7"], {"7": "7"}, Number("7.0"), "missing"]
)
def test_an_answer_about_another_account_rejects_the_poll_on_any_page(said: object) -> None:
    provider, account = declared(**ABOUT), declared_account(id="7")
    good, odd = {"id": "7"}, {} if said == "missing" else {"id": said}
    whose = {
        "missing": "no account: 'about.id' finds nothing",
        "None": "no account: 'about.id' finds null, or no way",
    }
    for one, other in ((good, odd), (odd, good)):
        pages = [page("A", about=one, next="2"), page("B", about=other)]
        with pytest.raises(Rejected, match=r"^an answer about (another|no) account: 'about\.id' ") as refused:
            provider.read(account, pages, {})
        assert refused.value.error_class == "malformed"
        assert refused.value.words.endswith(whose.get(str(said), "another account: 'about.id' is not its id"))


def test_the_account_check_uses_values_of_the_account_only() -> None:
    ask = {"path": "/{id}/{key}/{got}", "same": dict.fromkeys(("id", "key", "got", "other"), "id")}
    first = {"path": "/"}
    with pytest.raises(ValidationError) as refused:
        declared(ask=[first, ask | {"given": {"got": "x"}}], secrets={"key": "k"}, read=[PAGED])
    assert [(error["loc"], error["msg"]) for error in refused.value.errors()] == [
        (("ask", 1, "same", name), f"this ask takes no {{{name}}} from the account")
        for name in ("got", "key", "other")
    ]


def test_a_large_listing_is_read_quickly() -> None:
    provider, answer = Http(declared_settings(**LISTING)), parse(a_listing())
    account = declared_account()
    assert len(provider.read(account, [answer], {}).row_by_asset) == ROWS
    assert cpu_ms(lambda: provider.read(account, [answer], {}), 9) < 15, (
        "3 on a machine that does nothing else"
    )


def filled(item: str, values: int) -> str:
    """A list as large as a body may be, but for so many values in it."""
    return f"[{','.join([item] * min(values, LIMIT // (len(item) + 1)))}]"


HOSTILE = {
    "objects": filled('{"a":"1"}', MOST_VALUES // 2 - 2),
    "numbers": filled("0", MOST_VALUES - 2),
    "more objects": filled("{}", LIMIT),
    "more numbers": filled("0", LIMIT),
    "one text": json.dumps(["1" * LIMIT]),
    "one number": f"[0.{'1' * LIMIT}]",
    "deep": "[" * 900 + "]" * 900,
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    "path", ["@", "[?a == '1' && b != '2' || c == '3']", "[].to_string(@)", "sort_by(@, &a)", "[[@, @], @][]"]
)
def test_a_hostile_answer_keeps_a_path_busy_for_a_moment_only(path: str, said: str) -> None:
    answer = parse(said.encode())
    part = {"rows": path, "asset": "a", "total": "a || '0'", "unique": "to_string(@)"}
    provider = declared(error="[?error].error | [0]", read=[part])

    def refused() -> None:
        if not provider.refusal(200, answer):
            with suppress(Rejected):
                provider.read(declared_account(), [answer], {})

    assert cpu_ms(refused, 1) < 3000, "0.3 s on a machine that does nothing else"


def test_pages_that_are_nearly_the_same_keep_it_busy_for_a_moment_only() -> None:
    provider, account = paged(page=1, query="page", more="more"), declared_account()

    def nearly(number: int) -> Any:
        spelled = ("1.5", "1.50")[number % 2]
        return parse(f'{{"items": [], "more": true, "padding": [{f"{spelled}, " * 1000}{number}]}}'.encode())

    pages = [nearly(number) for number in range(19)]

    def follow() -> None:
        for count in range(1, 20):
            assert len(provider.requests(account, pages[:count])) == 1

    assert cpu_ms(follow, 1) < 1000, "10 ms on a machine that does nothing else"
    with pytest.raises(Rejected, match="the same page twice"):
        provider.requests(account, [*pages, pages[-1]])


def test_the_values_of_all_pages_are_counted_together() -> None:
    ask = {"path": "/items", "next": {"cursor": "next", "query": "after", "more": "next != 'end'"}}
    provider = declared(ask=[ask], read=[PAGED])
    answers = [{"items": [0] * (MOST_VALUES // 2), "next": text} for text in ("a", "end")]
    assert provider.requests(declared_account(), answers[:1])
    assert flaw_of_pages(provider, *answers) == "more than 50,000 values in the answer"


def test_what_no_path_can_be_applied_to_rejects_the_poll() -> None:
    for path in ("sum(a)", "sort_by(a, &b)", "max(a)", "join('', a)", "contains(a, 'x')", "abs(a)"):
        for said in ('{"a": 1.5}', '{"a": {"b": 1}}', '{"a": [1, "x", null]}', '{"a": [1.5, 2]}', "{}"):
            assert flaw(said, total=path)
    assert (
        total('{"a": [1, 2, 123456789012345678901234567890]}', total="sum(a)")
        == "123456789012345678901234567893"
    )
    assert flaw('{"a": 1.5}', total="to_string(a)")
    longest = "9" * 4300  # digits, the most that Python reads; it does not write their sum
    assert "too large" in flaw(f'{{"a": [{longest}, {longest}]}}', total="sum(a)")
    long = parse(f'{{"a": [{longest}, {longest}], "t": "1"}}'.encode())
    wrong = declared(error="sum(a)", read=[{"id": "X", "total": "t"}]).refusal(200, long)
    assert wrong
    assert "too large" in wrong.reason
    assert "too large" in flaw_of_pages(paged(cursor="sum(a)", query="c"), long)
    for twice in ('{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 2}}'):
        assert flaw(twice, total="b.a || '0'")
        assert flaw(twice, total="not_null(b.a, '0')")
    assert flaw('{"a": "x", "b": 1}', total="contains(a, b)")
    unclear = parse(b'{"error": {"code": 1, "code": 1}, "a": "1"}')
    assert declared(error="error.code", read=[{"id": "X", "total": "a"}]).refusal(200, unclear)
    named_twice = '[{"id": "A", "a": "1"}, {"id": "B", "id": "A", "a": "2"}]'
    assert flaw(named_twice, rows="[?id != 'A']")
    assert flaw(named_twice, rows="[*].a", total="@")


@pytest.mark.parametrize(
    "path",
    ["sum(a[].n)", "sum(a[*].n)", "sum(a[?n].n)", "sum(a.*)", "sum(a[])", "sum(map(&n, a[].b[]))"],
)
def test_a_sum_does_not_pass_over_what_is_missing(path: str) -> None:
    with pytest.raises(ValueError, match=r"write sum\(map\("):
        read_path(path)


def test_a_sum_of_amounts_in_lists_takes_each_of_them_or_none() -> None:
    nested = "sum(map(&sum(map(&n, b)), a[?k == 'x']))"
    assert total('{"a": [{"k": "x", "b": [{"n": 1}, {"n": 2}]}, {"k": "y"}]}', total=nested) == "3"
    for lacking in ("{}", '{"n": null}', "null", '{"n": "2"}', '{"n": true}'):
        assert flaw(f'{{"a": [{{"k": "x", "b": [{{"n": 1}}, {lacking}]}}]}}', total=nested)


def test_an_answer_without_a_row_of_the_one_asset_rejects_the_poll() -> None:
    found = {"rows": "[@] | [?status == '1']", "id": "ETH", "total": "result"}
    assert total({"status": "1", "result": "5"}, **found) == "5"
    for odd in ({}, {"status": "0", "result": "5"}, {"message": "busy"}):
        assert flaw(odd, **found) == "no row says anything of ETH"
    both = declared(
        read=[{"rows": "a", "id": "A", "total": "n"}, {"rows": "b", "id": "A", "total": "n", "unique": "k"}]
    )
    snapshot = both.read(declared_account(), [{"a": [{"n": "1"}], "b": []}], {})
    assert balances(snapshot)["A"].total == "1", "one of the parts says something"
    whole = declared(read=[found], absent_is_zero=True)
    assert not whole.read(declared_account(), [{}], {}).row_by_asset, "an empty listing, which is suspect"


def test_decimals_of_one_asset_are_stated_once() -> None:
    with pytest.raises(ValueError, match="an asset is named twice"):
        declared(read=[{"rows": "@", "asset": "a", "total": "n", "decimals": {"0xAB": 6, "0xab": 18}}])


def test_which_assets_it_may_hold_is_known_as_far_as_it_can_be() -> None:
    account = declared_account()

    def may_hold(asset: str, *parts: dict[str, Any]) -> bool | None:
        return declared(read=[{"total": "a"} | part for part in parts]).may_hold(account, asset)

    assert may_hold("BTC", {"id": "BTC"}, {"id": "LTC"})
    assert may_hold("0xAB", {"id": "0xab"})
    assert may_hold("ETH", {"id": "BTC"}) is False
    assert may_hold("ETH", {"id": "0xab", "symbol": "ticker"}) is None
    assert may_hold("ETH", {"id": "BTC"}, {"rows": "rows", "asset": "asset"})


def test_an_asset_that_no_part_names_is_zero_only_in_a_full_listing() -> None:
    parts = [
        {"rows": "held", "asset": "asset", "total": "n"},
        {"rows": "coming", "asset": "asset", "pending_deposit": "n"},
    ]
    said = {"held": [{"asset": "A", "n": "1"}], "coming": [{"asset": "B", "n": "2"}]}
    whole = declared(read=parts, absent_is_zero=True)
    assert whole.unknown_fields == {"pending_withdrawal"}
    assert balances(whole.read(declared_account(), [said], {})) == {
        "A": Balance("1", "0", "0", None),
        "B": Balance("0", "0", "2", None),
    }
    with pytest.raises(Rejected, match="of which no part says the total"):
        declared(read=parts).read(declared_account(), [said], {})


async def test_an_asset_of_a_threshold_that_a_full_listing_lacks_is_zero() -> None:
    settings = declared_settings(**{**LISTING, "absent_is_zero": True})
    account = declared_account()
    async with ProviderClient(Http(settings), settings) as client:
        snapshot = await client.read(account, [a_listing(2)])
        assert [row.asset.id for row in (await client.add_zeros(snapshot, ["A1", "BTC"])).zeros] == ["BTC"]


@pytest.mark.parametrize("part", [{"total": "-a"}, {"total": ["a", "-b"]}, {"total": "c"}])
def test_a_total_may_be_below_zero(part: dict[str, Any]) -> None:
    assert total({"a": "1.5", "b": 3, "c": "-1.5"}, **part) == "-1.5"


@pytest.mark.parametrize("field", ["locked", "pending_deposit", "pending_withdrawal"])
def test_nothing_else_may_be_below_zero(field: str) -> None:
    assert "is below zero" in flaw({"a": "1", "b": "-1"}, **{field: "b"})


SHOWN = r"""
[providers.api]
kind = "http"
base_url = "https://api.example.com/v1"
error = "errors[0].code || error"
error_classes = { "-18" = "configuration" }
absent_is_zero = true
decimals = { jpy = 0, "*" = 2 }

[[providers.api.ask]]
method = "POST"
path = "/{who}/{what}"
query = { a = "{who} {{b}}" }
json = { a = [1, "{what}", true, 1.5], b = { c = "d\u001b" } }

[providers.api.ask.next]
cursor = 'page."next-one"'
json = "cursor"
more = "length(items) == `100`"

[[providers.api.read]]
rows = "items[?type == 'x'].\"y-z\""
asset = "currency"
unit = "smallest"
decimals = "places"
total = ["a", "-b"]
pending = "-c"
default = 0
height = "h"

[[accounts]]
name = "a"
provider = "api"
of = { who = 7, what = "x y" }
"""


def test_the_output_of_check_show_loads_as_the_same_provider(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(SHOWN)
    settings = load(first, {}).settings
    second.write_text("\n".join(as_toml(shown(settings))))
    again = load(second, {}).settings
    assert again.provider_by_name == settings.provider_by_name
    assert again.account_by_name["a"].model_dump()["of"] == {"who": 7, "what": "x y"}


STEPS = st.sampled_from(
    ["a", "b", "@", '"c d"', "a[0]", "a[-1]", "[0]", "a[]", "[]", "a[*].b", "*", "a.*", "[1:3]"]
)
PATHS = st.recursive(
    STEPS,
    lambda inner: st.one_of(
        *(
            inner.map(call.format)
            for call in (
                *(
                    "abs({})",
                    "contains({}, 'a')",
                    "ends_with({}, 'a')",
                    "join(',', {})",
                    "keys({})",
                    "length({})",
                ),
                *("map(&a, {})", "max({})", "max_by({}, &a)", "merge({}, {{}})", "min({})", "min_by({}, &a)"),
                *("not_null({}, b)", "reverse({})", "sort({})", "sort_by({}, &b)", "starts_with({}, 'a')"),
                *("sum({})", "to_array({})", "to_string({})", "type({})", "values({})", "!{}", "({})"),
                *(
                    "[?{}]",
                    "[?a == {}]",
                    "{} | [0]",
                    "[{}, a]",
                    "{{a: {}}}",
                    "{} || b",
                    "{} && a",
                    "[::0] | {}",
                ),
            )
        )
    ),
    max_leaves=4,
)
INNER = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text("ab1.", max_size=3)
    | st.sampled_from([1.5, 1e300, "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c d"]), inner),
    max_leaves=8,
)


@tried(40)
@given(PATHS, PATHS, PATHS, INNER)
def test_a_path_on_any_value_raises_only_rejected(first: str, second: str, third: str, said: Any) -> None:
    part = {
        "rows": first,
        "asset": second,
        "total": third,
        "decimals": second,
        "unique": third,
        "symbol": first,
    }
    try:
        provider = declared(read=[part], error=third, more=second, height=first)
    except ValidationError:
        assume(False)  # no path: too long, or ( [?a] ) where an expression is wanted
    answer = parse(json.dumps(said).encode())
    for status in (200, 500):
        assert isinstance(provider.refusal(status, answer), Rejected | None)
    with suppress(Rejected):
        snapshot = provider.read(declared_account(), [answer], {})
        for row in snapshot.row_by_asset.values():
            assert [check_canonical(text) for text in row.balance[:2]] == [*row.balance[:2]]
