"""MetaKeep's simulator answers as its documentation says, over real sockets."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from watcher.sandbox.answers import Call
from watcher.sandbox.knobs import MetakeepKnobs
from watcher.sandbox.metakeep import digest
from watcher.sandbox.server import Sandbox
from watcher.sandbox.world import World, empty_world

PATH = "/v2/app/coin/balance"
ALICE = {"email": "alice@example.com"}
ADDRESS = "0x00000000000000000000000000000000000A11CE"
MK = "0x1456b21890f920110190063921f6bc7f7b027fa6"
ZBVS = "0x0186b21890f920110190063921f6bc7f7b027fa6"
WETH = "0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619"
STRANGE = "0x9999999999999999999999999999999999999999"


def a_world() -> World:
    world = empty_world()
    world.open_account("alice@example.com", address=ADDRESS, MK="1.1", ZBVS="100041.234567")
    world.open_account("bob@example.com", MK="7")
    world.lock("alice@example.com", "ZBVS", "10.12")
    return world


class App:
    """A plain client of one sandbox."""

    def __init__(self, sandbox: Sandbox, http: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.http = http

    async def post(self, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(PATH, data=data, headers={"x-api-key": "sandbox"} | (headers or {})) as got:
            return got.status, await got.json()

    async def rows(self, *currencies: str, of: dict[str, str] | None = None) -> list[dict[str, str]]:
        status, body = await self.post({"coins": {"currencies": currencies}, "of": of or ALICE})
        assert (status, body["status"]) == (200, "SUCCESS")
        rows: list[dict[str, str]] = body["balances"]
        return rows

    async def balance(self, currency: str = MK) -> str:
        return (await self.rows(currency))[0]["balance"]

    async def refusal(self, body: Any) -> tuple[int, str]:
        status, said = await self.post(body)
        assert set(said) == {"status"}
        return status, said["status"]


def asking(*currencies: str, **of: str) -> dict[str, Any]:
    return {"coins": {"currencies": currencies}, "of": of or ALICE}


@asynccontextmanager
async def an_app(**knobs: Any) -> AsyncIterator[App]:
    async with (
        Sandbox(a_world(), metakeep=MetakeepKnobs(**knobs)) as sandbox,
        aiohttp.ClientSession(sandbox.metakeep_url) as http,
    ):
        yield App(sandbox, http)


async def test_balances_are_decimal_texts_in_whole_coins() -> None:
    async with an_app() as app:
        assert await app.post(asking(MK, ZBVS)) == (
            200,
            {
                "status": "SUCCESS",
                "balances": [
                    {"currency": MK, "balance": "1.1", "name": "MetaKeep", "symbol": "MK"},
                    {
                        "currency": ZBVS,
                        "balance": "100041.234567",
                        "name": "VEuBtTAtPu",
                        "symbol": "ZBVS",
                        "locked": "10.12",
                    },
                ],
            },
        )


@pytest.mark.parametrize(
    "of", [ALICE, {"ethAddress": ADDRESS}, {"ethAddress": ADDRESS.lower()}, {**ALICE, "ethAddress": ADDRESS}]
)
async def test_a_user_is_named_by_email_or_address(of: dict[str, str]) -> None:
    async with an_app() as app:
        assert (await app.rows(MK, of=of))[0]["balance"] == "1.1"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        {},
        {"of": ALICE},
        {"coins": [MK], "of": ALICE},
        {"coins": {}, "of": ALICE},
        {"coins": {"currencies": []}, "of": ALICE},
        {"coins": {"currencies": MK}, "of": ALICE},
        {"coins": {"currencies": [1]}, "of": ALICE},
        {"coins": {"currencies": [""]}, "of": ALICE},
        {"coins": {"currencies": [MK]}},
        {"coins": {"currencies": [MK]}, "of": "alice@example.com"},
        {"coins": {"currencies": [MK]}, "of": {}},
        {"coins": {"currencies": [MK]}, "of": {"email": 5}},
        {"coins": {"currencies": [MK]}, "of": {"phone": "+15550100"}},
        {"coins": {"currencies": [MK]}, "of": {"email": "bob@example.com", "ethAddress": ADDRESS}},
        {"coin": {}, "of": ALICE},
        {"coin": {"currency": 5}, "of": ALICE},
    ],
    ids=lambda body: repr(body)[:40],
)
async def test_a_body_that_is_not_a_request_is_refused(body: Any) -> None:
    async with an_app() as app:
        assert await app.refusal(body) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("of", "answer"),
    [
        ("USER_NOT_FOUND", (404, "USER_NOT_FOUND")),
        ("INVALID_EMAIL", (400, "INVALID_EMAIL")),
        ("INVALID_REQUEST", (400, "INVALID_REQUEST")),
    ],
)
async def test_an_unknown_user_gets_an_error(of: str, answer: tuple[int, str]) -> None:
    async with an_app(unknown_account=of) as app:
        assert await app.refusal(asking(MK, email="nobody@example.com")) == answer
        assert await app.refusal(asking(MK, ethAddress="alice@example.com")) == answer


async def test_an_unknown_user_may_have_zero_balances() -> None:
    async with an_app(unknown_account="zero") as app:
        rows = await app.rows(MK, of={"email": "nobody@example.com"})
    assert rows == [{"currency": MK, "balance": "0", "name": "MetaKeep", "symbol": "MK"}]


@pytest.mark.parametrize("key", ["", "stranger"])
async def test_a_key_is_needed(key: str) -> None:
    async with an_app() as app:
        assert await app.post(asking(MK), {"x-api-key": key}) == (401, {"status": "UNAUTHORIZED"})


async def test_a_key_may_be_forbidden() -> None:
    async with an_app(forbidden_keys={"sandbox"}) as app:
        assert await app.refusal(asking(MK)) == (403, "FORBIDDEN")


async def test_a_chain_may_not_support_the_operation() -> None:
    async with an_app(unsupported=True) as app:
        assert await app.refusal(asking(MK)) == (400, "UNSUPPORTED_OPERATION")


async def test_only_post_is_answered() -> None:
    async with an_app() as app, app.http.get(PATH) as response:
        assert response.status == 405


@pytest.mark.parametrize(
    ("casing", "currency"),
    [("echo", WETH), ("lower", WETH.lower()), ("upper", "0x" + WETH[2:].upper())],
)
async def test_currencies_come_back_in_the_casing_that_is_asked_for(casing: str, currency: str) -> None:
    async with an_app(casing=casing) as app:
        assert (await app.rows(WETH))[0]["currency"] == currency


@pytest.mark.parametrize(("zero", "balances"), [("0", ["0"]), ("0.0", ["0.0"]), ("omitted", [])])
async def test_zero_is_written_in_every_way(zero: str, balances: list[str]) -> None:
    async with an_app(zero=zero) as app:
        assert [row["balance"] for row in await app.rows(WETH)] == balances


async def test_an_absent_lock_may_be_zero_for_coins_that_have_locks() -> None:
    async with an_app() as app:
        assert "locked" not in (await app.rows(MK))[0]
        app.sandbox.metakeep.zero_locked = "0"
        assert (await app.rows(MK))[0]["locked"] == "0"
        assert "locked" not in (await app.rows(WETH))[0]


@pytest.mark.parametrize(
    ("knob", "balances"), [("omitted", ["1.1"]), ("zero", ["1.1", "0"])], ids=["omitted", "zero"]
)
async def test_an_unknown_currency_is_omitted_or_zero(knob: str, balances: list[str]) -> None:
    async with an_app(unknown_currency=knob) as app:
        assert [row["balance"] for row in await app.rows(MK, STRANGE)] == balances


@pytest.mark.parametrize("status", ["INVALID_REQUEST", "INVALID_CURRENCY"])
async def test_an_unknown_currency_may_fail_the_request(status: str) -> None:
    async with an_app(unknown_currency=status) as app:
        assert await app.refusal(asking(MK, STRANGE)) == (400, status)


async def test_a_symbol_is_no_currency() -> None:
    async with an_app() as app:
        assert await app.rows("MK") == []


async def test_the_number_of_currencies_may_be_limited() -> None:
    async with an_app(max_currencies=1) as app:
        assert len(await app.rows(MK)) == 1
        assert await app.refusal(asking(MK, ZBVS)) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("zeros", "texts"),
    [
        ("none", ["1.1", "1.1"]),
        ("one", ["1.10", "1.10"]),
        ("full", ["1.100000000000000000"] * 2),
        ("alternating", ["1.1", "1.10"]),
    ],
)
async def test_the_same_amount_is_written_in_many_ways(zeros: str, texts: list[str]) -> None:
    async with an_app(zeros=zeros) as app:
        assert [await app.balance(), await app.balance()] == texts


async def test_fractions_have_18_digits() -> None:
    async with an_app() as app:
        app.sandbox.world.credit("alice@example.com", "MK", 1)
        assert await app.balance() == "1.100000000000000001"


async def test_a_change_is_delayed_for_the_configured_number_of_polls() -> None:
    async with an_app(stale_polls=2) as app:
        assert await app.balance() == "1.1"
        app.sandbox.world.credit("alice@example.com", "MK", "1")
        assert [await app.balance() for _ in range(4)] == ["1.1", "1.1", "2.1", "2.1"]


async def test_staleness_is_per_account() -> None:
    async with an_app(stale_polls=1) as app:
        await app.balance()
        app.sandbox.world.credit("alice@example.com", "MK", "1")
        await app.rows(MK, of={"email": "bob@example.com"})
        assert [await app.balance(), await app.balance()] == ["1.1", "2.1"]


async def test_two_replicas_flap_between_old_and_new() -> None:
    async with an_app() as app:
        for _ in range(4):
            await app.balance()
        app.sandbox.metakeep.stale_polls = 3
        app.sandbox.metakeep.flapping = True
        app.sandbox.world.credit("alice@example.com", "MK", "1")
        assert [await app.balance() for _ in range(6)] == ["2.1", "1.1", "2.1", "2.1", "2.1", "2.1"]


async def test_rows_can_be_doubled_the_same_or_different() -> None:
    async with an_app(duplicates="same") as app:
        assert [row["balance"] for row in await app.rows(MK)] == ["1.1", "1.1"]
        app.sandbox.metakeep.duplicates = "different"
        assert [row["balance"] for row in await app.rows(MK)] == ["1.1", "1.100000000000000001"]


async def test_rows_come_in_the_order_that_is_asked_for() -> None:
    async with an_app(row_order="descending") as app:
        assert [row["currency"] for row in await app.rows(MK, ZBVS)] == [ZBVS, MK]


async def test_names_may_be_blank_and_keys_may_be_new() -> None:
    async with an_app(blank_names=True, extra_keys=True) as app:
        row = (await app.rows(MK))[0]
    assert (row["name"], row["symbol"], row["chain"]) == ("", "", "sandbox")


async def test_a_status_other_than_success_may_come_with_200() -> None:
    async with an_app(status="QUEUED") as app:
        status, body = await app.post(asking(MK))
    assert (status, body["status"]) == (200, "QUEUED")


async def test_the_old_body_for_one_currency_gets_a_flat_answer() -> None:
    async with an_app() as app:
        asked = {"coin": {"currency": MK}, "of": {"ethAddress": ADDRESS}}
        status, body = await app.post(asked)
        assert (status, body["status"], body["balance"]) == (200, "SUCCESS", "1.1")
        app.sandbox.metakeep.legacy_body = False
        assert await app.refusal(asked) == (400, "INVALID_REQUEST")


async def test_a_constant_idempotency_key_freezes_the_answer() -> None:
    async with an_app() as app:
        frozen = {"Idempotency-Key": "same"}
        first = await app.post(asking(MK), frozen)
        app.sandbox.world.credit("alice@example.com", "MK", "1")
        assert await app.post(asking(MK), frozen) == first
        assert await app.balance() == "2.1"


def signed(key: ec.EllipticCurvePrivateKey, host: str, body: bytes, *, at_ms: int) -> dict[str, str]:
    point = key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
    )
    headers = {"x-api-key": base64.b64encode(point).decode(), "X-Timestamp": str(at_ms)}
    call = Call("POST", PATH, host, {}, headers, body)
    r, s = decode_dss_signature(key.sign(digest(call), ec.ECDSA(SHA256())))
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return headers | {"X-Api-Signature": base64.b64encode(signature).decode()}


@pytest.mark.parametrize(
    ("skew_ms", "spoil", "status"),
    [(0, {}, 200), (-59_000, {}, 200), (61_000, {}, 401), (0, {"X-Timestamp": "1"}, 401)]
    + [(0, {"X-Api-Signature": text}, 401) for text in ("", "!", "AAAA")],
    ids=repr,
)
async def test_a_signature_is_checked_where_it_is_required(
    skew_ms: int, spoil: dict[str, str], status: int
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    async with Sandbox(a_world(), now=lambda: 1_700_000_000) as sandbox:
        sandbox.metakeep.signatures = "required"
        body = json.dumps(asking(MK)).encode()
        host = sandbox.metakeep_url.removeprefix("http://")
        headers = signed(key, host, body, at_ms=1_700_000_000_000 + skew_ms)
        sandbox.metakeep.api_keys.add(headers["x-api-key"])
        async with aiohttp.ClientSession(sandbox.metakeep_url) as http:
            app = App(sandbox, http)
            assert (await app.post(body, headers | spoil))[0] == status


async def test_a_signature_of_another_body_is_no_good() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    async with Sandbox(a_world(), now=lambda: 1_700_000_000) as sandbox:
        sandbox.metakeep.signatures = "checked"
        host = sandbox.metakeep_url.removeprefix("http://")
        headers = signed(key, host, b"{}", at_ms=1_700_000_000_000)
        sandbox.metakeep.api_keys.add(headers["x-api-key"])
        async with aiohttp.ClientSession(sandbox.metakeep_url) as http:
            app = App(sandbox, http)
            assert (await app.post(asking(MK), headers))[0] == 401
            assert (await app.post(asking(MK)))[0] == 200, "an unsigned request is accepted"
