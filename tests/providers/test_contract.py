"""What every provider module must do, run against all that are registered; each has an example here."""

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.evm_scenes import evm_account, evm_settings, recorded
from tests.support.fuzzing import tried
from tests.support.provider_staging import (
    API_KEY,
    TOKENS_PATH,
    Stage,
    a_token_list,
    answer,
    declared_account,
    declared_settings,
    dripping,
    loopring_account,
    loopring_settings,
    metakeep_account,
    metakeep_settings,
    never_answer,
    raw,
)
from watcher.providers.contract import PLACE_BY_KIND, Provider, Rejected, provider_class
from watcher.providers.evm import NATIVE, Evm
from watcher.providers.http import ProviderClient
from watcher.providers.strict_json import NotJson, parse
from watcher.sandbox.answers import FAULTS
from watcher.sandbox.book import ListedAsset
from watcher.sandbox.knobs import LoopringKnobs
from watcher.sandbox.server import Sandbox
from watcher.sandbox.world import World
from watcher.settings import AccountSettings, ProviderSettings
from watcher.snapshot import Balance


class Example(NamedTuple):
    """How a provider is asked and how it answers, as its documentation shows it."""

    settings: Callable[..., ProviderSettings]
    account: AccountSettings
    method: str
    target: str
    key_header: str | None
    """None: it stands in the path."""
    sent: Any
    answer: Any
    balance_by_asset: Mapping[str, Balance]
    unauthorized: tuple[int, Any]
    url_in_sandbox: Callable[[Sandbox], str] | None
    """None: the sandbox does not simulate it."""


ALICE = "0x1456b21890f920110190063921f6bc7f7b027fa6"
COIN = "0x0186b21890f920110190063921f6bc7f7b027fa6"

EXAMPLE_BY_KIND = {
    "evm": Example(
        settings=evm_settings,
        account=evm_account(),
        method="POST",
        target=f"/v2/{API_KEY}",
        key_header=None,
        sent=Evm(evm_settings()).requests(evm_account())[0].json,
        answer=recorded()["withdrawal"].answers[0],
        balance_by_asset={NATIVE: Balance("123.456789012345678901", "0", "0", "1")},
        unauthorized=(401, {"error": {"code": -32600, "message": "Must be authenticated!"}}),
        url_in_sandbox=None,
    ),
    "http": Example(
        settings=declared_settings,
        account=declared_account(id=10110),
        method="GET",
        target="/api/v3/user/balances?accountId=10110&tokens=0,1",
        key_header="x-api-key",
        sent=None,
        answer=[
            {
                "tokenId": 0,
                "total": "99476758000000000",
                "locked": "0",
                "pending": {"withdraw": "0", "deposit": "500000000000000000"},
            }
        ],
        balance_by_asset={"0": Balance("0.099476758", "0", "0.5", "0")},
        unauthorized=(400, {"resultInfo": {"code": 104002, "message": "Invalid ApiKey"}}),
        url_in_sandbox=lambda sandbox: sandbox.loopring_url,
    ),
    "loopring": Example(
        settings=loopring_settings,
        account=loopring_account(tokens=(0, 1)),
        method="GET",
        target="/api/v3/user/balances?accountId=10110&tokens=0,1",
        key_header="x-api-key",
        sent=None,
        answer=[
            {
                "accountId": 10110,
                "tokenId": 0,
                "total": "99476758000000000",
                "locked": "0",
                "pending": {"withdraw": "0", "deposit": "500000000000000000"},
            }
        ],
        balance_by_asset={"0": Balance("0.099476758", "0", "0.5", "0")},
        unauthorized=(400, {"resultInfo": {"code": 104002, "message": "Invalid ApiKey"}}),
        url_in_sandbox=lambda sandbox: sandbox.loopring_url,
    ),
    "metakeep": Example(
        settings=metakeep_settings,
        account=metakeep_account(ALICE, COIN),
        method="POST",
        target="/v2/app/coin/balance",
        key_header="x-api-key",
        sent={"coins": {"currencies": [ALICE, COIN]}, "of": {"email": "alice@example.com"}},
        answer={
            "status": "SUCCESS",
            "balances": [
                {"currency": ALICE, "balance": "1.12", "name": "MetaKeep", "symbol": "MK"},
                {
                    "currency": COIN,
                    "balance": "100041.234567",
                    "name": "VEuBtTAtPu",
                    "symbol": "ZBVS",
                    "locked": "10.12",
                },
            ],
        },
        balance_by_asset={
            ALICE: Balance("1.12", "0", None, None),
            COIN: Balance("100041.234567", "10.12", None, None),
        },
        unauthorized=(401, {"status": "UNAUTHORIZED"}),
        url_in_sandbox=lambda sandbox: sandbox.metakeep_url,
    ),
}

ELSEWHERE = {"exchange"}
"""Kinds that need a program that may be missing: test_exchange.py asks the same of it."""

every_provider = pytest.mark.parametrize("kind", EXAMPLE_BY_KIND)
every_simulated = pytest.mark.parametrize(
    "kind", [kind for kind, example in EXAMPLE_BY_KIND.items() if example.url_in_sandbox]
)


def test_every_registered_provider_has_an_example() -> None:
    assert EXAMPLE_BY_KIND.keys() | ELSEWHERE == PLACE_BY_KIND.keys()


@every_provider
async def test_it_asks_as_the_documentation_says(kind: str) -> None:
    example = EXAMPLE_BY_KIND[kind]
    async with staged(kind) as (stage, client):
        assert len(await client.ask(example.account)) == client.cost(example.account) == 1
    (seen,) = stage.seen
    assert (seen.method, seen.target) == (example.method, example.target)
    assert not example.key_header or seen.header_by_name[example.key_header] == API_KEY
    assert seen.header_by_name["accept-encoding"] == "gzip"
    assert "idempotency-key" not in seen.header_by_name
    assert (json.loads(seen.body) if seen.body else None) == example.sent


@every_provider
async def test_it_reads_the_documented_answer(kind: str) -> None:
    example = EXAMPLE_BY_KIND[kind]
    async with staged(kind) as (_, client):
        snapshot = await client.read(example.account, await client.ask(example.account))
    balance_by_asset = {asset: row.balance for asset, row in snapshot.row_by_asset.items()}
    assert balance_by_asset == example.balance_by_asset
    assert snapshot.watched is not None or kind == "http"
    assert not snapshot.absent_is_zero


@every_provider
async def test_a_refused_key_is_the_error_class_auth(kind: str) -> None:
    status, body = EXAMPLE_BY_KIND[kind].unauthorized
    async with staged(kind) as (stage, client):
        stage.reply = answer(body, status)
        refused = await refusal(client, kind)
    assert (refused.error_class, refused.status) == ("auth", status)


@every_provider
async def test_an_answer_that_stops_anywhere_is_refused(kind: str) -> None:
    example = EXAMPLE_BY_KIND[kind]
    whole = json.dumps(example.answer).encode()
    async with staged(kind) as (_, client):
        for length in range(len(whole)):
            with pytest.raises(Rejected):
                await client.read(example.account, (whole[:length],))


@every_provider
async def test_the_key_is_only_in_its_documented_place(kind: str) -> None:
    example = EXAMPLE_BY_KIND[kind]
    async with staged(kind) as (stage, client):
        stage.reply = answer({"resultInfo": {"message": API_KEY}, "status": API_KEY}, 400)
        refused = await refusal(client, kind)
    (seen,) = stage.seen
    elsewhere = {name: value for name, value in seen.header_by_name.items() if name != example.key_header}
    target = seen.target if example.key_header else seen.target.replace(API_KEY, "", 1)
    assert API_KEY not in f"{target}{elsewhere}{seen.body!r}"
    assert API_KEY not in f"{refused!r}{refused.reason}{refused.__cause__!r}"
    provider = provider_class(kind)(example.settings(stage.url))
    assert API_KEY not in repr(list(provider.requests(example.account)))
    assert API_KEY not in repr(example.settings(stage.url))


@pytest.mark.parametrize("kind", ["loopring", "metakeep"])
@pytest.mark.parametrize("key", ["", "two words", "line\n", "line\r\nx-admin: 1", "nul\0", "clé"])
def test_a_key_that_no_header_can_carry_is_found_before_anything_runs(kind: str, key: str) -> None:
    settings = EXAMPLE_BY_KIND[kind].settings()
    with pytest.raises(ValidationError) as raised:
        type(settings).model_validate(settings.model_dump() | {"api_key": key})
    assert "not an API key" in str(raised.value)
    assert not key or key not in str(raised.value)


@every_provider
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(kind: str, status: int) -> None:
    async with Stage() as elsewhere, staged(kind) as (stage, client):
        stage.reply = answer(b"", status, headers={"Location": elsewhere.url + "/"})
        refused = await refusal(client, kind)
    assert (refused.error_class, refused.status) == ("configuration", status)
    assert elsewhere.connections == 0


@every_provider
async def test_a_proxy_in_the_environment_is_not_used(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Stage() as proxy, staged(kind) as (stage, client):
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        await client.ask(EXAMPLE_BY_KIND[kind].account)
    assert (len(stage.seen), proxy.connections) == (1, 0)


@every_provider
async def test_a_cookie_is_not_sent_back(kind: str) -> None:
    example = EXAMPLE_BY_KIND[kind]
    async with staged(kind, host="localhost") as (stage, client):  # an address is never sent a cookie
        stage.reply = answer(example.answer, headers={"Set-Cookie": "replica=2; Path=/"})
        await client.ask(example.account)
        await client.ask(example.account)
    assert [seen.header_by_name.get("cookie") for seen in stage.seen] == [None, None]
    assert stage.connections == 1


SLACK_S = 1.0  # of a machine that does other things as well
HEAD = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "silence": never_answer,
    "a header every now and then": dripping(HEAD, b"x-a: 1\r\n", every_s=0.01),
    "interim answers": dripping(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", every_s=0.01),
    "a body by drops": dripping(HEAD + b"Content-Length: 226\r\n\r\n", b" ", every_s=0.02),
    "a body without length by drops": dripping(HEAD + b"\r\n", b" ", every_s=0.02),
}


@every_provider
@pytest.mark.parametrize("reply", ENDLESS.values(), ids=ENDLESS.keys())
async def test_a_request_ends_at_its_timeout_though_bytes_keep_coming(kind: str, reply: Any) -> None:
    async with staged(kind, timeout_s=0.15) as (stage, client):
        stage.reply = reply
        started = time.monotonic()
        refused = await refusal(client, kind)
        took_s = time.monotonic() - started
    assert 0.14 < took_s < 0.15 + SLACK_S
    assert refused.error_class in ("gone", "transient")
    assert "in time" in refused.reason


NOT_HTTP = {
    "nothing": raw(b"", hang_up=True),
    "garbage": raw(b"SSH-2.0-OpenSSH_9.6\r\n", hang_up=True),
    "an odd status": raw(b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n"),
    "status 0": raw(b"HTTP/1.1 000 Nil\r\nContent-Length: 0\r\n\r\n", hang_up=True),
    "switching protocols": raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", hang_up=True),
    "two lengths": raw(HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]", hang_up=True),
    "a broken chunk": raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n0\r\n\r\n", hang_up=True),
    "a chunk too few": raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n", hang_up=True),
    "a header of 10 kB": raw(HEAD + b"x-a: " + b"a" * 10_000 + b"\r\n\r\n", hang_up=True),
    "1,000 headers": raw(HEAD + b"x-a: 1\r\n" * 1_000 + b"\r\n", hang_up=True),
    "a header without an end": raw(HEAD + b"x-a: " + b"a" * 1_000_000, hang_up=True),
    "bytes in a header": raw(HEAD + b"x-a: \xff\xfe\r\nContent-Length: 4\r\n\r\nnull"),
}


@every_provider
@pytest.mark.parametrize("reply", NOT_HTTP.values(), ids=NOT_HTTP.keys())
async def test_barely_valid_http_is_rejected_and_nothing_worse(kind: str, reply: Any) -> None:
    async with staged(kind) as (stage, client):
        stage.reply = reply
        await refusal(client, kind)


@every_provider
async def test_after_any_error_the_next_answer_is_read(kind: str) -> None:
    example = EXAMPLE_BY_KIND[kind]
    async with staged(kind) as (stage, client):
        stage.reply = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", hang_up=True)
        await refusal(client, kind)
        stage.reply = answer(example.answer)
        assert (await client.read(example.account, await client.ask(example.account))).row_by_asset


@every_simulated
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_of_the_sandbox_rejects_the_poll_and_the_next_one_succeeds(
    kind: str, fault: str
) -> None:
    example = EXAMPLE_BY_KIND[kind]
    async with sandboxed(kind, timeout_s=0.2) as (sandbox, client):
        knobs = sandbox.metakeep if kind == "metakeep" else sandbox.loopring
        knobs.every_answer = FAULTS[fault]
        assert isinstance(await refusal(client, kind), Rejected)
        knobs.every_answer = None
        assert (await client.read(example.account, await client.ask(example.account))).row_by_asset


@every_simulated
async def test_the_balances_of_the_sandbox_are_read(kind: str) -> None:
    example = EXAMPLE_BY_KIND[kind]
    async with sandboxed(kind) as (_, client):
        snapshot = await client.read(example.account, await client.ask(example.account))
    assert {asset: row.balance for asset, row in snapshot.row_by_asset.items()} == example.balance_by_asset


@every_simulated
async def test_an_unknown_account_is_not_read_as_an_empty_one(kind: str) -> None:
    async with sandboxed(kind, world=World()) as (_, client):
        assert (await refusal(client, kind)).error_class == "configuration"


@every_provider
async def test_two_accounts_have_two_sources_and_a_filter_keeps_the_source(kind: str) -> None:
    example = EXAMPLE_BY_KIND[kind]
    others: dict[str, Any] = {
        "evm": {"address": ALICE},
        "http": {"of": {"id": "10111"}},
        "loopring": {"account_id": 10111},
        "metakeep": {"of": {"email": "bob@example.com"}},
    }
    fewer: dict[str, Any] = {
        "evm": {"tokens": (COIN,)},
        "http": {"interval": timedelta(minutes=5)},
        "loopring": {"tokens": (0,)},
        "metakeep": {"currencies": (COIN,)},
    }
    async with staged(kind) as (_, client):
        source = client.source(example.account)
        assert client.source(example.account.model_copy(update=fewer[kind])) == source
        assert client.source(example.account.model_copy(update=others[kind])) != source
    assert "alice" not in source


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["0", "SUCCESS"])
)
LOOPRING_NAMES = ["accountId", "tokenId", "total", "locked", "pending", "withdraw", "deposit", "decimals"]
METAKEEP_NAMES = ["status", "balances", "currency", "balance", "locked", "name", "symbol"]
EVM_NAMES = ["jsonrpc", "id", "result", "error"]
NAMES = st.sampled_from(["resultInfo", "code", *LOOPRING_NAMES, *METAKEEP_NAMES, *EVM_NAMES])
ANY_JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(), inner, max_size=6)
)


@st.composite
def almost_right(draw: st.DrawFn, kind: str) -> Any:
    """The documented answer with something else in one place."""
    value = json.loads(json.dumps(EXAMPLE_BY_KIND[kind].answer))
    holder, key = draw(st.sampled_from(list(places(value))))
    holder[key] = draw(ANY_JSON)
    return value


def places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places(inner)


@every_provider
@tried(40)
@given(data=st.data())
def test_whatever_is_answered_only_rejected_is_raised(kind: str, data: st.DataObject) -> None:
    example = EXAMPLE_BY_KIND[kind]
    value = data.draw(ANY_JSON | almost_right(kind))
    provider: Provider = provider_class(kind)(example.settings())
    try:
        parsed = parse(json.dumps(value).encode())
    except NotJson:
        return  # a float that JSON has no number for
    for status in (200, 400, 500):
        assert isinstance(provider.refusal(status, parsed), Rejected | None)
    for read in (
        lambda: provider.read(example.account, [parsed], {}),
        lambda: provider.read_catalogue(parsed),
    ):
        with suppress(Rejected):
            read()


@asynccontextmanager
async def staged(
    kind: str, *, host: str = "127.0.0.1", timeout_s: float = 5
) -> AsyncIterator[tuple[Stage, ProviderClient]]:
    """A client whose provider gives the documented answer by default."""
    example = EXAMPLE_BY_KIND[kind]
    async with Stage() as stage:
        stage.reply = answer(example.answer)
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0, 1, decimals=18))
        settings = example.settings(f"http://{host}:{stage.port}", timeout_s=timeout_s)
        async with ProviderClient(provider_class(kind)(settings), settings) as client:
            yield stage, client


@asynccontextmanager
async def sandboxed(
    kind: str, *, timeout_s: float = 5, world: World | None = None
) -> AsyncIterator[tuple[Sandbox, ProviderClient]]:
    """A client of the sandbox, where the account of the documented answer lives."""
    example = EXAMPLE_BY_KIND[kind]
    assert example.url_in_sandbox
    knobs = LoopringKnobs(requests_per_second=None)
    async with Sandbox(world or the_documented_world(), loopring=knobs) as sandbox:
        sandbox.loopring.api_keys.add(API_KEY)
        sandbox.metakeep.api_keys.add(API_KEY)
        settings = example.settings(example.url_in_sandbox(sandbox), timeout_s=timeout_s)
        async with ProviderClient(provider_class(kind)(settings), settings) as client:
            yield sandbox, client


def the_documented_world() -> World:
    world = World()
    world.list_asset("loopring", ListedAsset("0", "ETH", "Ethereum", 18))
    world.list_asset("loopring", ListedAsset("1", "LRC", "Loopring", 18))
    world.open_account(10110)
    world.set(10110, "ETH", total="0.099476758", pending_deposit="0.5")
    world.list_asset("metakeep", ListedAsset(ALICE, "MK", "MetaKeep", 18))
    world.list_asset("metakeep", ListedAsset(COIN, "ZBVS", "VEuBtTAtPu", 18, lockable=True))
    world.open_account("alice@example.com", MK="1.12")
    world.set("alice@example.com", "ZBVS", total="100041.234567", locked="10.12")
    return world


async def refusal(client: ProviderClient, kind: str) -> Rejected:
    """The refusal of one poll; a successful poll is a failed test."""
    account = EXAMPLE_BY_KIND[kind].account
    with pytest.raises(Rejected) as raised:
        await client.read(account, await client.ask(account))
    return raised.value
