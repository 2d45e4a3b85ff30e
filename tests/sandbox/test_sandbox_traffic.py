"""Requests are counted, timed and limited per endpoint."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from watcher.sandbox.answers import TOO_MANY_HTML, Answer, too_many
from watcher.sandbox.knobs import LoopringKnobs, MetakeepKnobs
from watcher.sandbox.server import Sandbox

BALANCES = "/api/v3/user/balances"
TOKENS = "/api/v3/exchange/tokens"
TIMESTAMP = "/api/v3/timestamp"
BALANCE = "/v2/app/coin/balance"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Visitor:
    """Makes requests at moments that the test chooses."""

    def __init__(self, sandbox: Sandbox, http: aiohttp.ClientSession, clock: Clock) -> None:
        self.sandbox = sandbox
        self.http = http
        self.clock = clock

    async def get(self, path: str = TIMESTAMP, *, at: float = 0, key: str = "sandbox") -> int:
        self.clock.now = 1000.0 + at
        async with self.http.get(self.sandbox.loopring_url + path, headers={"X-API-KEY": key}) as response:
            return response.status

    async def post(self) -> int:
        async with self.http.post(self.sandbox.metakeep_url + BALANCE, json={}) as response:
            return response.status


@asynccontextmanager
async def a_visitor(
    loopring: LoopringKnobs | None = None, metakeep: MetakeepKnobs | None = None
) -> AsyncIterator[Visitor]:
    clock = Clock()
    async with (
        Sandbox(loopring=loopring, metakeep=metakeep, clock=clock) as sandbox,
        aiohttp.ClientSession() as http,
    ):
        yield Visitor(sandbox, http, clock)


async def test_the_sixth_request_within_a_second_is_429_with_an_empty_body() -> None:
    async with a_visitor() as visitor:
        assert [await visitor.get(at=tenth / 10) for tenth in range(6)] == [200] * 5 + [429]
        async with visitor.http.get(visitor.sandbox.loopring_url + TIMESTAMP) as response:
            assert await response.read() == b""
            assert "Retry-After" not in response.headers


async def test_the_window_slides() -> None:
    async with a_visitor() as visitor:
        for tenth in range(5):
            await visitor.get(at=tenth / 10)
        assert await visitor.get(at=0.99) == 429
        assert await visitor.get(at=1.0) == 200
        assert await visitor.get(at=1.05) == 429
        assert await visitor.get(at=1.1) == 200


async def test_each_endpoint_has_its_own_limit() -> None:
    async with a_visitor() as visitor:
        for _ in range(5):
            await visitor.get(TIMESTAMP)
        assert await visitor.get(TIMESTAMP) == 429
        assert await visitor.get(TOKENS) == 200


async def test_one_limit_can_hold_over_all_endpoints() -> None:
    async with a_visitor(LoopringKnobs(rate_scope="provider", requests_per_second=1)) as visitor:
        assert await visitor.get(TIMESTAMP) == 200
        assert await visitor.get(TOKENS) == 429
        assert await visitor.post() == 401, "the other provider has its own"


async def test_a_limit_can_be_per_key() -> None:
    async with a_visitor(LoopringKnobs(rate_scope="key", requests_per_second=1)) as visitor:
        statuses = [await visitor.get(key=key) for key in ("one", "one", "two")]
        assert statuses == [200, 429, 200]


async def test_a_limit_can_be_per_account() -> None:
    async with a_visitor(LoopringKnobs(rate_scope="account", requests_per_second=1)) as visitor:
        visitor.sandbox.world.open_account(10111)
        asked = [f"{BALANCES}?accountId={account}" for account in (10110, 10110, 10111)]
        assert [await visitor.get(path) for path in asked] == [200, 429, 200]


@pytest.mark.parametrize("scope", ["endpoint", "provider", "key", "account"])
async def test_metakeep_is_limited_over_any_scope(scope: str) -> None:
    knobs = MetakeepKnobs(rate_scope=scope, requests_per_second=1)  # type: ignore[arg-type]
    async with a_visitor(metakeep=knobs) as visitor:
        assert [await visitor.post(), await visitor.post()] == [401, 429]


async def test_metakeep_allows_a_hundred_a_second() -> None:
    async with a_visitor() as visitor:
        assert [await visitor.post() for _ in range(101)] == [401] * 100 + [429]


async def test_the_limit_can_be_turned_off_while_it_runs() -> None:
    async with a_visitor(LoopringKnobs(requests_per_second=0)) as visitor:
        assert await visitor.get() == 429
        visitor.sandbox.loopring.requests_per_second = None
        assert await visitor.get() == 200


@pytest.mark.parametrize("answer", [TOO_MANY_HTML, too_many("30")], ids=["html", "retry-after"])
async def test_the_answer_over_the_limit_can_be_changed(answer: Answer) -> None:
    async with (
        a_visitor(LoopringKnobs(requests_per_second=0, rate_limited=answer)) as visitor,
        visitor.http.get(visitor.sandbox.loopring_url + TIMESTAMP) as response,
    ):
        assert (response.status, await response.read()) == (429, answer.body)
        assert response.headers.get("Retry-After") == answer.headers.get("Retry-After")


async def test_a_request_over_the_limit_uses_up_no_queued_fault() -> None:
    async with a_visitor(LoopringKnobs(requests_per_second=0)) as visitor:
        visitor.sandbox.loopring.next_answers.append(TOO_MANY_HTML)
        await visitor.get(f"{BALANCES}?accountId=10110")
        assert len(visitor.sandbox.loopring.next_answers) == 1


async def test_traffic_has_counts_times_and_statuses() -> None:
    async with a_visitor() as visitor:
        for at in (0, 0.5, 0.75, 1.25):
            await visitor.get(at=at)
        await visitor.get(f"{BALANCES}?accountId=10110", key="stranger", at=3)
        traffic = visitor.sandbox.traffic
        assert (traffic.count(), traffic.count(TIMESTAMP), traffic.count(TOKENS)) == (5, 4, 0)
        assert traffic.times(TIMESTAMP) == [1000.0, 1000.5, 1000.75, 1001.25]
        assert traffic.gaps(TIMESTAMP) == [0.5, 0.25, 0.5]
        assert traffic.most_within(TIMESTAMP) == 3
        assert traffic.most_within(TIMESTAMP, 0.3) == 2
        assert traffic.statuses(BALANCES) == {400: 1}


async def test_traffic_keeps_the_requests() -> None:
    async with a_visitor() as visitor:
        await visitor.get(f"{BALANCES}?accountId=10110&tokens=0,1")
        await visitor.post()
        first, second = visitor.sandbox.traffic.calls
        assert (first.method, first.path, dict(first.query)) == (
            "GET",
            BALANCES,
            {"accountId": "10110", "tokens": "0,1"},
        )
        assert first.headers["x-api-key"] == "sandbox"
        assert (second.method, second.path, second.body) == ("POST", BALANCE, b"{}")
