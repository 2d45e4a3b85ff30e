"""ccxt builds and signs requests without ever connecting; they are checked as an exchange would."""

import asyncio
import base64
import builtins
import hashlib
import hmac
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.exchanges import (
    DATA,
    SECRET,
    Sample,
    a_private_key,
    an_exchange,
    errors,
    exchange_account,
    exchange_settings,
    keys_of,
    needs_ccxt,
    samples,
)
from tests.support.fuzzing import tried
from tests.support.odd_answers import Odd, complaint, oddities
from tests.support.provider_staging import Seen, Stage, answer
from watcher.amounts import check_canonical
from watcher.providers.contract import Rejected, Request, requests_needed
from watcher.providers.exchange import REVIEWED, Exchange
from watcher.providers.http import ProviderClient
from watcher.providers.strict_json import NotJson, Number, parse
from watcher.snapshot import Balance, Snapshot

pytestmark = [pytest.mark.slow, needs_ccxt]

SAMPLES = samples()
every_listing = pytest.mark.parametrize("sample", SAMPLES, ids=str)
every_exchange = pytest.mark.parametrize("exchange", REVIEWED)


def a_sample(exchange: str) -> Sample:
    return next(sample for sample in SAMPLES if sample.exchange == exchange)


def an_account_at(exchange: str) -> Any:
    return exchange_account(**a_sample(exchange).params)


@asynccontextmanager
async def staged(
    exchange: str, check: Callable[[Seen], bool] = lambda _: True, **more: Any
) -> AsyncIterator[tuple[Stage, ProviderClient]]:
    """An exchange that answers page by page what it documents, to requests that pass `check`."""
    pages = a_sample(exchange).bodies
    async with Stage() as stage:

        async def reply(writer: asyncio.StreamWriter) -> None:
            if not check(stage.seen[-1]):
                return await answer({"code": -1022, "msg": "Signature is not valid."}, 400)(writer)
            cursor = dict(parse_qsl(stage.seen[-1].target.partition("?")[2])).get("cursor")
            return await answer(pages[1 if cursor else 0])(writer)

        stage.reply = reply
        settings = exchange_settings(exchange, base_url=stage.url, **more)
        async with ProviderClient(Exchange(settings), settings) as client:
            yield stage, client


async def polled(client: ProviderClient, account: Any) -> Snapshot:
    return await client.read(account, await client.ask(account))


def signed_by_binance(seen: Seen) -> bool:
    signed, _, signature = seen.target.partition("?")[2].partition("&signature=")
    made = hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).hexdigest()
    late_ms = time.time() * 1000 - int(dict(parse_qsl(signed))["timestamp"])
    return signature == made and -1000 < late_ms < 5000 and seen.header_by_name["x-mbx-apikey"] != ""


def signed_by_coinbase(seen: Seen) -> bool:
    """Check the token of a key of the Developer Platform, as its documentation describes it."""
    token = seen.header_by_name["authorization"].removeprefix("Bearer ")
    signed, _, signature = token.rpartition(".")
    r_and_s = unpadded(signature)
    two = encode_dss_signature(int.from_bytes(r_and_s[:32], "big"), int.from_bytes(r_and_s[32:], "big"))
    try:
        a_private_key().public_key().verify(two, signed.encode(), ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    claims = json.loads(unpadded(signed.partition(".")[2]))
    path = seen.target.partition("?")[0]
    return bool(
        claims["uri"] == f"GET {seen.header_by_name['host']}{path}"
        and claims["sub"] == "organizations/canary/apiKeys/k"
        and claims["nbf"] <= time.time() + 1 < claims["exp"]
    )


def signed_by_kraken(seen: Seen) -> bool:
    nonce = dict(parse_qsl(seen.body.decode()))["nonce"]
    inner = hashlib.sha256(nonce.encode() + seen.body).digest()
    key = base64.b64decode(SECRET)
    made = hmac.new(key, seen.target.encode() + inner, hashlib.sha512).digest()
    return seen.header_by_name["api-sign"] == base64.b64encode(made).decode()


def signed_by_bitstamp(seen: Seen) -> bool:
    said = seen.header_by_name
    text = (
        f"{said['x-auth']}{seen.method}{said['host']}{seen.target}{said['content-type']}"
        f"{said['x-auth-nonce']}{said['x-auth-timestamp']}{said['x-auth-version']}{seen.body.decode()}"
    )
    made = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()
    return said["x-auth-signature"] == made


CHECKS = {
    "binance": signed_by_binance,
    "bitstamp": signed_by_bitstamp,
    "coinbase": signed_by_coinbase,
    "kraken": signed_by_kraken,
}


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.parametrize("exchange", CHECKS)
async def test_a_request_is_signed_as_the_exchange_checks_it_byte_for_byte(exchange: str) -> None:
    sample = a_sample(exchange)
    async with staged(exchange, CHECKS[exchange]) as (stage, client):
        account = an_account_at(exchange)
        snapshot = await polled(client, account)
    found = {asset: row.balance for asset, row in snapshot.row_by_asset.items()}
    assert found == sample.balance_by_asset
    assert len(stage.seen) == len(sample.bodies)


async def test_a_wrong_secret_is_the_error_class_auth_and_is_never_shown() -> None:
    async with staged("binance", signed_by_binance, secret="canary-wrong") as (_, client):
        with pytest.raises(Rejected) as refused:
            await client.ask(an_account_at("binance"))
    assert (refused.value.error_class, refused.value.status) == ("auth", 400)
    assert "canary" not in f"{refused.value!r}{refused.value.reason}{refused.value.__cause__!r}"


async def test_the_pages_of_coinbase_are_requested_in_order_and_added_up() -> None:
    async with staged("coinbase", signed_by_coinbase) as (stage, client):
        account = an_account_at("coinbase")
        snapshot = await polled(client, account)
    first, second = (dict(parse_qsl(seen.target.partition("?")[2])) for seen in stage.seen)
    assert (first.get("cursor"), second["cursor"]) == (None, "789100")
    assert snapshot.row_by_asset["BTC"].balance == Balance("1.300000000000000001", "0.07", None, None)
    assert snapshot.absent_is_zero


async def test_a_legacy_key_of_coinbase_signs_too() -> None:
    def check(seen: Seen) -> bool:
        said, path = seen.header_by_name, seen.target.partition("?")[0]
        made = hmac.new(b"s3cret", f"{said['cb-access-timestamp']}GET{path}".encode(), hashlib.sha256)
        return said["cb-access-sign"] == made.hexdigest()

    async with staged("coinbase", check, api_key="k", secret="s3cret") as (stage, client):
        assert len(await client.ask(an_account_at("coinbase"))) == len(stage.seen) == 2


async def test_a_page_is_signed_when_its_turn_comes_and_not_before() -> None:
    """A signature holds the time: while it waits for its turn at the rate limit, it would age."""
    signed_at = []

    async def wait_turn() -> None:
        await asyncio.sleep(2.1)

    def check(seen: Seen) -> bool:
        token = seen.header_by_name["authorization"].split(".")[1]
        signed_at.append(time.time() - json.loads(unpadded(token))["iat"])
        return True

    async with staged("coinbase", check) as (stage, _):
        settings = exchange_settings("coinbase", base_url=stage.url)
        async with ProviderClient(Exchange(settings), settings, wait_turn=wait_turn) as client:
            await client.ask(an_account_at("coinbase"))
    assert max(signed_at) < 2, "whole seconds: it is at most one old"


@every_listing
def test_ccxt_reads_the_same_from_the_documented_answer(sample: Sample) -> None:
    """Two readers that know nothing of each other: ccxt's, and the table of what was reviewed."""
    exchange = an_exchange(sample.exchange)
    answers = [*map(parse, sample.bodies)]
    rows = exchange.read(exchange_account(**sample.params), answers, {}).row_by_asset
    found = exchange._signer.run(sample.params, answers)
    assert {row.asset.symbol: row.balance.total for row in rows.values()} == {
        code: exact(total) for code, total in found["total"].items()
    }
    if str(sample) != "bybit-unified":  # ccxt adds the margins to what is used, which move with prices
        assert {row.asset.symbol: row.balance.locked for row in rows.values()} == {
            code: exact(used) for code, used in found["used"].items()
        }
    for asset, symbol in sample.symbol_by_asset.items():
        assert rows[asset].asset.symbol == symbol


def exact(text: str) -> str:
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


@every_exchange
def test_requests_go_where_ccxt_sends_them_and_the_table_names_the_endpoint(exchange: str) -> None:
    ccxt = import_module("ccxt")
    asked: list[str] = []
    keys = exchange_settings(exchange).credentials
    made = getattr(ccxt, exchange)(keys)
    made.set_markets([])
    made.options |= REVIEWED[exchange].options

    def fetch(url: str, *_: Any) -> None:
        asked.append(url)
        raise KeyboardInterrupt

    made.fetch = fetch
    with pytest.raises(KeyboardInterrupt):
        made.fetch_balance(dict(a_sample(exchange).params))
    (request,) = an_exchange(exchange).requests(an_account_at(exchange))
    url = REVIEWED[exchange].base_url + request.path
    assert url.partition("?")[0] == asked[0].partition("?")[0]


@every_exchange
def test_a_poll_needs_as_many_requests_as_it_has_pages_at_first(exchange: str) -> None:
    provider, account = an_exchange(exchange), an_account_at(exchange)
    assert requests_needed(provider, [account, account]) == pytest.approx(2 / 30)
    assert provider.most_rounds == (8 if exchange == "coinbase" else 1)
    assert an_exchange(exchange, unreviewed=True).most_rounds == 8
    assert provider.unknown_fields == {"pending_deposit", "pending_withdrawal"}


def test_nonces_rise_with_the_clock_and_counting_requests_uses_none_up() -> None:
    """A worker that counts the cost of a thousand accounts would else be a second ahead of all others."""
    provider, account = an_exchange("kraken"), an_account_at("kraken")
    before = time.time_ns() // 1_000_000
    for _ in range(300):
        (request,) = provider.requests(account)
    nonce = int((request.body or b"").removeprefix(b"nonce="))
    assert before <= nonce <= time.time_ns() // 1_000_000


@pytest.mark.parametrize(("exchange", "status", "said", "error_class"), errors())
async def test_an_error_means_what_its_exchange_documents(
    exchange: str, status: int, said: Any, error_class: str
) -> None:
    async with Stage() as stage:
        stage.reply = answer(said, status)
        settings = exchange_settings(exchange, base_url=stage.url)
        async with ProviderClient(Exchange(settings), settings) as client:
            with pytest.raises(Rejected) as refused:
                await polled(client, an_account_at(exchange))
    assert refused.value.error_class == error_class
    assert refused.value.__cause__ is None


ODD = (
    *("null", "{}", "[]", "[[]]", "[{}]", "0", '"x"', "", "NaN", "<html>maintenance</html>"),
    *('{"a": 1, "a": 2}', '{"error": null}', '{"error": {}, "result": 5}', '{"errors": [5]}'),
    *('{"code": 1e99999999, "msg": "1e99999999"}', '{"code": "1e99999999"}', "[" * 900 + "]" * 900),
    *('{"result": null, "retCode": 0}', '{"status": "error"}', '{"message": "moved"}'),
)


@every_exchange
async def test_an_odd_answer_of_any_status_is_rejected_and_never_zero(exchange: str) -> None:
    empty = {"bitfinex": {"[]"}, "gemini": {"[]"}}.get(exchange, set())
    provider, account = an_exchange(exchange), an_account_at(exchange)
    async with staged(exchange) as (stage, client):
        for status in (200, 400, 500):
            for odd in ODD:
                stage.reply = answer(odd, status)
                if status == 200 and odd in empty:
                    assert not (await polled(client, account)).row_by_asset
                    continue
                with pytest.raises(Rejected):
                    await polled(client, account)
    assert provider.refusal(503, None) is None


def is_meant(sample: Sample, odd: Odd) -> bool:
    """Say whether what is read is what the spoilt answer says."""
    if odd.value == "1e3" and odd.place.rpartition(".")[2] not in ("currency", "type"):
        return True  # exact, and an amount
    if odd.value in ([], {}, "[]") and sample.listing.may_be_empty:
        return True  # nothing is left, if it says so again
    if sample.listing.asset is None and odd.kind == "missing" and odd.place.startswith("result."):
        return True  # a row
    # Of an asset in several wallets one is gone, or another asset's.
    return bool(sample.listing.parts) and (odd.kind == "row missing" or odd.place.endswith(".currency"))


@every_listing
def test_an_answer_damaged_in_one_place_is_never_misread(sample: Sample) -> None:
    provider, account = an_exchange(sample.exchange), exchange_account(**sample.params)

    def polled_(bodies: list[bytes]) -> Snapshot | Rejected:
        try:
            answers = []
            for body in bodies:
                try:
                    answers.append(parse(body))
                except NotJson:
                    return Rejected("malformed", "not JSON")
                if refused := provider.refusal(200, answers[-1]):
                    return refused
            return provider.read(account, answers, {})
        except Rejected as rejected:
            return rejected

    good = polled_(sample.bodies)
    assert isinstance(good, Snapshot)
    complaints = []
    for number, body in enumerate(sample.bodies):
        for odd in oddities(body):
            said = polled_([*sample.bodies[:number], odd.body, *sample.bodies[number + 1 :]])
            if not is_meant(sample, odd) and (wrong := complaint(odd, said, good)):
                complaints.append(f"answer {number}, {odd}: {wrong}")
    assert not complaints, "\n".join(complaints)


async def test_a_truncated_answer_is_rejected_wherever_it_ends() -> None:
    (body,), account = a_sample("kraken").bodies, an_account_at("kraken")
    async with staged("kraken") as (_, client):
        for length in range(0, len(body) - 1, 7):
            with pytest.raises(Rejected):
                await client.read(account, (body[:length],))


@every_exchange
def test_ccxt_opens_no_connection_never_waits_and_logs_nothing(
    exchange: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("ccxt did what it must not")

    import_module("ccxt")
    provider, account, sample = an_exchange(exchange), an_account_at(exchange), a_sample(exchange)
    answers = [*map(parse, sample.bodies)]
    caplog.set_level(0)
    with monkeypatch.context() as without:
        for place, name in ((socket, "socket"), (socket, "getaddrinfo"), (time, "sleep"), (builtins, "open")):
            without.setattr(place, name, forbidden)
        without.setattr(os, "environ", None)
        asked = [provider.requests(account, answers[:known]) for known in range(len(answers) + 1)]
        provider.read(account, answers, {})
        provider.refusal(400, parse(b'{"code": -2014, "msg": "x"}'))
    assert [len(requests) for requests in asked] == [1] * len(answers) + [0] * (len(asked) - len(answers))
    assert provider._signer._made.session is None
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@every_exchange
def test_no_amount_ever_becomes_a_float(exchange: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, account, sample = an_exchange(exchange), an_account_at(exchange), a_sample(exchange)
    answers = [*map(parse, sample.bodies)]
    provider.requests(account)

    def poisoned(value: Any) -> float:
        raise AssertionError(f"float({value!r})")

    for module in ("ccxt.base.precise", f"ccxt.{exchange}", "watcher.providers.exchange", "watcher.amounts"):
        monkeypatch.setattr(import_module(module), "float", poisoned, raising=False)
    monkeypatch.setattr(import_module("ccxt.base.exchange").Exchange, "number", poisoned)
    provider.refusal(200, answers[0])
    rows = provider.read(account, answers, {}).row_by_asset
    assert {asset: row.balance for asset, row in rows.items()} == sample.balance_by_asset
    found = provider._signer.run(account.params, answers)
    assert all(
        isinstance(text, str) for amounts in (found["total"], found["used"]) for text in amounts.values()
    )


@every_exchange
def test_ccxt_keeps_nothing_of_one_account_for_the_next(exchange: str) -> None:
    provider, account, sample = an_exchange(exchange), an_account_at(exchange), a_sample(exchange)
    before = json.dumps(provider._signer._made.options, default=str)
    answers = [*map(parse, sample.bodies)]
    for _ in range(2):
        assert len(provider.requests(account)) == 1
        provider._signer.run(account.params, answers)
    assert json.dumps(provider._signer._made.options, default=str) == before
    assert all(not any(isinstance(part, float) for part in walk(page)) for page in answers)


def walk(said: Any) -> Any:
    for part in said.values() if isinstance(said, dict) else said if isinstance(said, list) else ():
        yield part
        yield from walk(part)


def test_requests_to_a_regional_host_are_signed_for_it() -> None:
    provider = an_exchange("okx", base_url="https://my.okx.com")
    (request,) = provider.requests(an_account_at("okx"))
    assert request.path == "/api/v5/asset/balances"
    (request,) = an_exchange("bitstamp", base_url="http://localhost:1/eu").requests(exchange_account())
    assert request.path == "/api/v2/account_balances/"


def test_two_keys_at_one_exchange_are_two_sections_and_a_filter_is_no_other_account() -> None:
    provider = an_exchange("binance")
    plain = provider.source(exchange_account())
    assert provider.source(exchange_account(type="spot")) == plain
    assert provider.source(exchange_account(omitZeroBalances=True)) == plain
    assert provider.source(exchange_account(recvWindow=5000)) == plain
    other = an_exchange("bybit")
    assert other.source(exchange_account()) != other.source(exchange_account(type="funding"))
    assert an_exchange("binance", api_key="another").source(exchange_account()) == plain


NOT_REVIEWED = [
    ("okx", {}, 'were not reviewed, { type = "funding" } was'),
    ("okx", {"type": "trading"}, 'were not reviewed, { type = "funding" } was'),
    ("binance", {"type": "margin"}, 'were not reviewed, { type = "spot" } was'),
    ("kraken", {"asset": "XBT"}, "were not reviewed, {} was"),
]


@pytest.mark.parametrize(("exchange", "params", "words"), NOT_REVIEWED)
def test_unreviewed_exchanges_need_an_explicit_setting(
    exchange: str, params: dict[str, Any], words: str
) -> None:
    account = exchange_account(**params)
    with pytest.raises(Rejected, match="equity") as raised:
        an_exchange(exchange).source(account)
    assert raised.value.words.startswith(words)
    assert an_exchange(exchange, unreviewed=True).source(account) == f"{exchange} {json.dumps(params)}"


def test_a_balance_that_ccxt_cannot_request_is_a_mistake_of_its_account() -> None:
    provider = an_exchange("okx", unreviewed=True)
    with pytest.raises(Rejected, match="no request of them with this key"):
        provider.source(exchange_account(type="nonsense", ccy=7, marginMode="x", maxRetriesOnFailure="x"))
    provider = an_exchange("htx", unreviewed=True, secret="?")
    assert provider.source(exchange_account()) == "htx {}"


def test_equity_is_read_if_configured_and_an_absent_asset_stays_unknown() -> None:
    said = {"code": "0", "msg": "", "data": [{"uTime": "1705474164160", "details": [
        {"ccy": "USDT", "eq": "4992.890093622894", "availEq": "4834.317093622894", "cashBal": "4850.4",
         "frozenBal": "158.573", "availBal": "4834.3"}]}]}  # fmt: skip
    provider, account = an_exchange("okx", unreviewed=True), exchange_account()
    answers = [parse(json.dumps(said).encode())]
    assert provider.requests(account, answers) == []
    snapshot = provider.read(account, answers, {})
    assert snapshot.row_by_asset["USDT"].balance == Balance("4992.890093622894", "158.573", None, None)
    assert not snapshot.absent_is_zero
    for odd in ("A" * 65, "a\\nb", " A"):
        with pytest.raises(Rejected):
            provider.read(account, [parse(json.dumps(said).replace("USDT", odd).encode())], {})
    answers = [parse(b'{"code": "0", "data": []}')]
    assert not provider.read(account, answers, {}).row_by_asset


@pytest.mark.parametrize("number", ["1e-8", "0.10000000000000000001", "123456789012345678901234567890.5"])
def test_numbers_that_ccxt_reads_stay_exact(number: str) -> None:
    provider, account = an_exchange("binance", unreviewed=True), exchange_account(type="margin")
    said = {"userAssets": [{"asset": "BTC", "free": "@", "locked": "1", "borrowed": "0", "interest": "0"}]}
    (answer_,) = [parse(json.dumps(said).replace('"@"', number).encode())]
    assert isinstance(answer_["userAssets"][0]["free"], Number)
    total = provider.read(account, [answer_], {}).row_by_asset["BTC"].balance.total
    assert total == {"1e-8": "1.00000001", "0.10000000000000000001": "1.10000000000000000001"}.get(
        number, "123456789012345678901234567891.5"
    )


@pytest.mark.parametrize(
    ("exchange", "more", "field", "words"),
    [
        ("krakn", {}, "exchange", "ccxt knows no exchange of this name -- did you mean 'kraken'?"),
        ("Binance", {}, "exchange", "ccxt knows no exchange of this name -- did you mean 'binance'?"),
        ("deribit", {}, None, "exchange: deribit was not reviewed: ccxt's total may be equity"),
        ("okx", {"password": None}, None, "password: is missing: the exchange needs it"),
        ("okx", {"password": "two\nlines"}, "password", "must be one line of ASCII"),
        ("okx", {"password": ""}, "password", "must be one line of ASCII"),
        ("kraken", {"secret": "abcde"}, None, "secret: this exchange's keys and secrets look otherwise"),
        ("gemini", {"api_key": "master-k"}, None, "secret: this exchange's keys and secrets look otherwise"),
        ("hyperliquid", {"unreviewed": True}, None, "exchange: needs a"),
    ],
)
def test_an_impossible_section_is_a_mistake_before_anything_runs(
    exchange: str, more: dict[str, Any], field: str | None, words: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        exchange_settings(exchange, **more)
    (flaw,) = raised.value.errors()
    assert flaw["loc"] == ((field,) if field else ())
    assert flaw["msg"].startswith(f"Value error, {words}")
    assert "canary" not in str(raised.value)


def test_most_exchanges_can_be_polled_with_the_explicit_setting() -> None:
    """How many of them sign a first request, offline, for their own address: of answers it says nothing."""
    ccxt = import_module("ccxt")
    can = []
    for name in ccxt.exchanges:
        keys = {"uid": "1", "unreviewed": True, **(keys_of(name) if name == "coinbase" else {})}
        try:
            provider = an_exchange(name, **keys)
            (request,) = provider.requests(exchange_account(**({"type": "funding"} if name == "okx" else {})))
        except (ValidationError, Rejected):
            continue
        assert isinstance(request, Request)
        assert request.path.startswith("/")
        can.append(name)
    assert len(can) >= 0.75 * len(ccxt.exchanges)
    assert REVIEWED.keys() <= {*can}


UNREVIEWED = [
    *(("binance", "margin"), ("bitget", "spot"), ("cryptocom", None), ("gate", None), ("htx", None)),
    *(("kucoin", None), ("mexc", None), ("okx", None), ("whitebit", None)),
]
TEXTS = [
    "0",
    "1.5",
    "",
    "BTC",
    "1e99999999",
    "-1e-99999999",
    "e",
    "SUCCESS",
    "ok",
    "spot",
    "@1e9999@",
    "@1e-8@",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.sampled_from(TEXTS)
NAMES = st.sampled_from(
    [
        *(
            "data",
            "result",
            "code",
            "success",
            "status",
            "balances",
            "list",
            "userAssets",
            "asset",
            "currency",
        ),
        *("free", "available", "locked", "total", "balance", "type", "coin", "error", "message", "details"),
    ]
)


@pytest.mark.parametrize(("exchange", "kind"), UNREVIEWED)
@tried(25)
@given(data=st.data())
def test_whatever_is_answered_only_rejected_is_raised(
    exchange: str, kind: str | None, data: st.DataObject
) -> None:
    provider = lenient(exchange)
    account = exchange_account(**({"type": kind} if kind else {}))
    any_json = st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6)
    )
    answers = [parse(written(data.draw(any_json))) for _ in range(2)]
    for status in (200, 400, 500):
        assert isinstance(provider.refusal(status, answers[0]), Rejected | None)
    for known in (1, 2):
        with suppress(Rejected):
            assert len(provider.requests(account, answers[:known])) <= 1
        with suppress(Rejected):
            snapshot = provider.read(account, answers[:known], {})
            assert not snapshot.absent_is_zero
            for row in snapshot.row_by_asset.values():
                check_canonical(row.balance.total)
                check_canonical(row.balance.locked)


@cache
def lenient(exchange: str) -> Exchange:
    return an_exchange(exchange, unreviewed=True, uid="1")


def written(said: Any) -> bytes:
    return re.sub(r'"@([^"]*)@"', r"\1", json.dumps(said)).encode()


def test_ccxt_is_imported_only_if_a_configuration_names_an_exchange(tmp_path: Any) -> None:
    path = tmp_path / "watcher.toml"
    path.write_text('[providers.loopring]\napi_key = "k"\n')
    program = (
        "import sys; from pathlib import Path; from watcher.config.loading import load;"
        "import watcher.providers.exchange, watcher.run.worker;"
        f"load(Path({str(path)!r}), {{}}); print('ccxt' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_all_mistakes_of_a_section_are_reported_with_their_lines(tmp_path: Any) -> None:
    path = tmp_path / "watcher.toml"
    path.write_text(
        '[providers.okx]\nkind = "exchange"\nexchange = "okx"\n'
        'api_key = "k"\nsecret = "s"\npassword = "p"\n\n'
        '[[accounts]]\nname = "trading"\nprovider = "okx"\n\n'
        '[[accounts]]\nname = "funding"\nprovider = "okx"\nparams = { type = "funding" }\n\n'
        '[[accounts]]\nname = "twice"\nprovider = "okx"\nparams = { type = "funding" }\n'
    )
    command = [sys.executable, "-m", "watcher", "check", "--config", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 78
    lines = [line for line in result.stderr.splitlines() if "warning" not in line]
    assert lines == [
        f'{path}:8: accounts[0].params: were not reviewed, {{ type = "funding" }} was: ccxt\'s total may be '
        "equity, which moves with prices; the provider's `unreviewed = true` allows it",
        f"{path}:17: accounts[2]: is the same account at the same provider as the one at {path}:12",
    ]


def test_the_data_names_its_sources() -> None:
    for path in DATA.glob("*/*.expected.json"):
        assert len(json.loads(path.read_text())["source"]) > 40
    assert {path.name for path in DATA.iterdir()} == REVIEWED.keys()
