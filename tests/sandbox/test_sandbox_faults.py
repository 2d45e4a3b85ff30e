"""The simulators can return any bytes and any fault, once or permanently, over real sockets."""

import asyncio
import base64
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from watcher.sandbox.answers import (
    BAD_GATEWAY,
    CHALLENGE,
    DISCONNECT,
    FAULTS,
    FORBIDDEN_RATE,
    HANG,
    SERVER_ERROR,
    UNAVAILABLE,
    Answer,
    short_body,
    slow,
    slow_body,
    too_many,
    truncated,
)
from watcher.sandbox.server import Sandbox

BALANCES = "/api/v3/user/balances?accountId=10110"
TOKENS = "/api/v3/exchange/tokens"
CASES = json.loads((Path(__file__).parents[1] / "data" / "provider_answers.json").read_text())["cases"]
STAGED_ELSEWHERE = {"tls_bad_certificate", "dns_failure", "connect_refused"}


@asynccontextmanager
async def a_relayer() -> AsyncIterator[tuple[Sandbox, aiohttp.ClientSession]]:
    async with (
        Sandbox() as sandbox,
        aiohttp.ClientSession(
            sandbox.loopring_url, headers={"X-API-KEY": "sandbox"}, auto_decompress=False
        ) as http,
    ):
        sandbox.loopring.requests_per_second = None
        yield sandbox, http


async def fetched(http: aiohttp.ClientSession, path: str = BALANCES) -> tuple[int, str | None, bytes]:
    async with http.get(path, allow_redirects=False) as response:
        return response.status, response.headers.get("Content-Type"), await response.read()


async def balances_within(seconds: float, http: aiohttp.ClientSession) -> Any:
    async with asyncio.timeout(seconds), http.get(BALANCES, raise_for_status=True) as response:
        return json.loads(await response.read())


def staged(case: dict[str, Any]) -> Answer:
    """Make the answer that a case of provider_answers.json describes."""
    body = base64.b64decode(case["body_base64"]) if "body_base64" in case else case.get("body", "").encode()
    if generated := case.get("body_gen"):
        text = generated.get("prefix", "") + generated["repeat"] * generated["times"]
        body = (text + generated.get("suffix", "")).encode()
        body = gzip.compress(body, 1) if generated.get("gzip") else body
    return Answer(
        case.get("status", 200),
        body,
        headers=case.get("headers", {}) | ({"Content-Encoding": "gzip"} if "gzip" in str(generated) else {}),
        content_type=case.get("content_type", "application/json"),
    )


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.get("transport_fault")], ids=lambda case: str(case["id"])
)
async def test_every_odd_answer_reaches_the_client_byte_for_byte(case: dict[str, Any]) -> None:
    answer = staged(case)
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.next_answers.append(answer)
        async with http.get(BALANCES, allow_redirects=False) as response:
            assert response.status == answer.status
            assert response.headers.get("Content-Type") == answer.content_type
            assert {name: response.headers[name] for name in answer.headers} == answer.headers
            assert await response.read() == answer.body


def test_every_transport_fault_is_known() -> None:
    faults = {case["transport_fault"] for case in CASES if case.get("transport_fault")}
    assert faults - STAGED_ELSEWHERE == {"content_length_short", "slow_body"}


async def test_a_queued_answer_is_given_once() -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.next_answers.extend([UNAVAILABLE, BAD_GATEWAY])
        assert await fetched(http) == (503, None, b"")
        status, kind, body = await fetched(http)
        assert (status, kind) == (502, "text/html")
        assert body.startswith(b"<html>")
        assert (await fetched(http))[0] == 200


async def test_a_fault_can_last_and_end() -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.every_answer = CHALLENGE
        for _ in range(3):
            assert (await fetched(http))[:2] == (200, "text/html")
        sandbox.loopring.every_answer = None
        assert (await fetched(http))[:2] == (200, "application/json")


async def test_faults_of_balances_do_not_affect_other_endpoints() -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.next_answers.append(UNAVAILABLE)
        sandbox.loopring.next_token_answers.append(SERVER_ERROR)
        assert (await fetched(http, "/api/v3/timestamp"))[0] == 200
        assert (await fetched(http, TOKENS))[0] == 500
        assert (await fetched(http, TOKENS))[0] == 200
        assert (await fetched(http))[0] == 503
        sandbox.loopring.every_token_answer = UNAVAILABLE
        assert [(await fetched(http, TOKENS))[0] for _ in range(2)] == [503, 503]


async def test_an_outage_affects_every_endpoint() -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.outage = UNAVAILABLE
        for path in (BALANCES, TOKENS, "/api/v3/account?accountId=10110", "/api/v3/timestamp"):
            assert (await fetched(http, path))[0] == 503


async def test_truncated_json_is_framed_well_and_never_ends() -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.next_answers.append(truncated)
        _, _, body = await fetched(http)
        with pytest.raises(json.JSONDecodeError):
            json.loads(body)


async def test_fewer_bytes_than_content_length_end_the_connection() -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.next_answers.append(short_body)
        with pytest.raises(aiohttp.ClientPayloadError):
            await fetched(http)
        assert (await fetched(http))[0] == 200


async def test_a_slow_body_begins_at_once_and_outlasts_a_total_timeout() -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.next_answers.append(slow_body)
        async with http.get(BALANCES) as response:
            assert response.status == 200
            assert await response.content.readexactly(1) == b"["
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await response.read()


async def test_a_slow_body_arrives_whole_in_the_end() -> None:
    async with a_relayer() as (sandbox, http):
        honest = await fetched(http)
        sandbox.loopring.next_answers.append(lambda answer: replace(slow_body(answer), byte_every_s=0))
        assert await fetched(http) == honest


@pytest.mark.parametrize("fault", [HANG, slow(30)], ids=["hang", "slow"])
async def test_an_answer_can_outlast_any_timeout(fault: Any) -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.next_answers.append(fault)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await fetched(http)


async def test_latency_delays_every_answer() -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.latency_s = 0.03
        started_at = time.monotonic()
        await fetched(http)
        assert time.monotonic() - started_at >= 0.03


async def test_a_disconnect_sends_no_answer() -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.every_answer = DISCONNECT
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await fetched(http)


async def test_a_429_can_say_when_to_come_back() -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.loopring.next_answers.append(too_many("7"))
        async with http.get(BALANCES) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "7")


async def test_a_fault_rejects_the_poll() -> None:
    async with a_relayer() as (sandbox, http):
        sandbox.world.deposit_seen(10110, "1", 5)
        sandbox.world.deposit_cleared(10110, "1", 5, split=1, first="total")
        sandbox.loopring.next_answers.extend([UNAVAILABLE, truncated])
        await fetched(http)
        await fetched(http)
        assert sandbox.world.holding(10110, "1").pending_deposit == 5
        await fetched(http)
        assert sandbox.world.holding(10110, "1").pending_deposit == 0


async def test_metakeep_has_the_same_faults() -> None:
    async with Sandbox() as sandbox, aiohttp.ClientSession(sandbox.metakeep_url) as http:
        sandbox.metakeep.next_answers.extend([SERVER_ERROR, FORBIDDEN_RATE])
        async with http.post("/v2/app/coin/balance", json={}) as response:
            assert (response.status, await response.json()) == (500, {"status": "SOMETHING_WENT_WRONG"})
        async with http.post("/v2/app/coin/balance", json={}) as response:
            assert (response.status, await response.json()) == (403, {"message": "Limit Exceeded"})


@pytest.mark.parametrize("name", sorted(FAULTS))
async def test_no_named_fault_is_a_valid_answer(name: str) -> None:
    async with a_relayer() as (sandbox, http):
        # For ever, not once: aiohttp repeats a GET whose connection was closed without an answer.
        sandbox.loopring.every_answer = FAULTS[name]
        with pytest.raises((aiohttp.ClientError, ValueError, TimeoutError)):
            await balances_within(0.1, http)


async def test_a_provider_can_be_taken_down_and_brought_back_on_its_port() -> None:
    async with a_relayer() as (sandbox, http):
        await fetched(http)
        url = sandbox.loopring_url
        await sandbox.take_down("loopring")
        with pytest.raises(aiohttp.ClientConnectorError):
            await fetched(http)
        await sandbox.bring_back("loopring")
        assert sandbox.loopring_url == url
        assert (await fetched(http))[0] == 200


async def test_a_sandbox_stops_while_an_answer_hangs() -> None:
    async with aiohttp.ClientSession() as http:
        async with Sandbox() as sandbox:
            sandbox.loopring.outage = HANG
            hanging = asyncio.ensure_future(http.get(sandbox.loopring_url + TOKENS))
            while not sandbox.traffic.count():  # noqa: ASYNC110 -- Traffic has no event to wait for
                await asyncio.sleep(0)
        with pytest.raises(aiohttp.ClientError):
            await hanging


async def test_a_port_that_is_taken_leaves_nothing_running() -> None:
    async with Sandbox() as first:
        taken = int(first.metakeep_url.rpartition(":")[2])
        second = Sandbox(metakeep_port=taken)
        with pytest.raises(OSError, match="address already in use"):
            await second.__aenter__()
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientConnectorError):
                await http.get(second.loopring_url + TOKENS)
