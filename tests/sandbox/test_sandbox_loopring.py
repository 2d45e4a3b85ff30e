"""Loopring's simulator answers as documentation and captures say, over real sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from watcher.sandbox.book import ListedAsset
from watcher.sandbox.knobs import LoopringKnobs
from watcher.sandbox.server import Sandbox
from watcher.sandbox.world import World, empty_world

KEY = {"X-API-KEY": "sandbox"}
OWNER = "0x8656920c85342d646E5286Cb841F90209272ABeb"
OTHER = "0x1111111111111111111111111111111111111111"


def a_world() -> World:
    world = empty_world()
    world.open_account(10110, address=OWNER, ETH=100, LRC=5, USDC=0)
    world.open_account(10111, address=OTHER, ETH=1)
    world.set(10110, "ETH", locked=10, pending_deposit=50, pending_withdrawal=3)
    return world


class Relayer:
    """A plain client of one sandbox."""

    def __init__(self, sandbox: Sandbox, http: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.http = http

    async def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        async with self.http.get(path, headers=KEY if headers is None else headers) as response:
            return response.status, await response.json()

    async def balances(self, query: str = "accountId=10110") -> tuple[int, Any]:
        return await self.get(f"/api/v3/user/balances?{query}")

    async def ids(self, query: str = "accountId=10110") -> list[int]:
        return [row["tokenId"] for row in (await self.balances(query))[1]]

    async def code(self, path: str, headers: dict[str, str] | None = None) -> int:
        status, body = await self.get(path, headers)
        assert status == 400
        code = body["resultInfo"]["code"]
        assert isinstance(code, int)
        return code


@asynccontextmanager
async def a_relayer(**knobs: Any) -> AsyncIterator[Relayer]:
    async with (
        Sandbox(a_world(), loopring=LoopringKnobs(**{"requests_per_second": None} | knobs)) as sandbox,
        aiohttp.ClientSession(sandbox.loopring_url) as http,
    ):
        yield Relayer(sandbox, http)


async def test_balances_are_a_bare_array_of_texts_in_smallest_units() -> None:
    async with a_relayer() as relayer:
        status, rows = await relayer.balances()
    assert status == 200
    assert rows == [
        {
            "accountId": 10110,
            "tokenId": 0,
            "total": "100",
            "locked": "10",
            "pending": {"withdraw": "3", "deposit": "50"},
        },
        {
            "accountId": 10110,
            "tokenId": 1,
            "total": "5",
            "locked": "0",
            "pending": {"withdraw": "0", "deposit": "0"},
        },
        {
            "accountId": 10110,
            "tokenId": 6,
            "total": "0",
            "locked": "0",
            "pending": {"withdraw": "0", "deposit": "0"},
        },
    ]


async def test_a_token_that_was_never_touched_is_absent_and_a_zero_row_may_be() -> None:
    async with a_relayer() as relayer:
        assert await relayer.ids() == [0, 1, 6]
        relayer.sandbox.loopring.zero_rows = "omitted"
        assert await relayer.ids() == [0, 1]
        relayer.sandbox.world.deposit_seen(10110, "USDC", 1)
        assert await relayer.ids() == [0, 1, 6], "a pending alone is no zero row"


async def test_an_account_that_holds_nothing_is_an_empty_array() -> None:
    async with a_relayer(zero_rows="omitted") as relayer:
        relayer.sandbox.world.debit(10111, "ETH", 1)
        assert await relayer.balances("accountId=10111") == (200, [])


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("accountId=10110&tokens=", [0, 1, 6]),
        ("accountId=10110&address=&tokens=", [0, 1, 6]),
        ("accountId=10110&tokens=1", [1]),
        ("accountId=10110&tokens=6,0", [0, 6]),
        ("accountId=10110&tokens=3", []),
        (f"address={OWNER}", [0, 1, 6]),
        (f"address={OWNER.lower()}", [0, 1, 6]),
        (f"accountId=10110&address={OWNER}", [0, 1, 6]),
        ("accountId=10111", [0]),
    ],
)
async def test_accounts_and_tokens_are_selected_by_the_query(query: str, ids: list[int]) -> None:
    async with a_relayer() as relayer:
        assert await relayer.ids(query) == ids


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", 100001),
        ("accountId=&address=", 100001),
        ("accountId=10199", 104003),
        ("accountId=treasury", 104003),
        ("accountId=-1", 104003),
        ("accountId=" + "9" * 5000, 104003),
        ("address=0x2222222222222222222222222222222222222222", 101002),
        (f"accountId=10111&address={OWNER}", 104003),
        ("accountId=10110&tokens=LRC", 100001),
        ("accountId=10110&tokens=1,", 100001),
        ("accountId=10110&tokens=1,999", 102002),
    ],
)
async def test_a_bad_query_gets_its_error_code(query: str, code: int) -> None:
    async with a_relayer() as relayer:
        assert await relayer.code(f"/api/v3/user/balances?{query}") == code


async def test_undocumented_codes_can_be_configured() -> None:
    async with a_relayer(
        unknown_key_code=101002, unknown_account_code=102003, unknown_address_code=101001
    ) as relayer:
        balances = "/api/v3/user/balances?"
        assert await relayer.code(f"{balances}accountId=10110", {"X-API-KEY": "stranger"}) == 101002
        assert await relayer.code(f"{balances}accountId=10199") == 102003
        assert await relayer.code(f"{balances}address=0x22") == 101001


async def test_an_unknown_token_can_be_left_out_instead() -> None:
    async with a_relayer(unknown_token_code=None) as relayer:
        assert await relayer.ids("accountId=10110&tokens=1,999") == [1]


@pytest.mark.parametrize(
    ("headers", "code"),
    [({}, 104001), ({"X-API-KEY": ""}, 104001), ({"X-API-KEY": "stranger"}, 104002)],
    ids=["missing", "empty", "unknown"],
)
async def test_a_key_is_needed(headers: dict[str, str], code: int) -> None:
    async with a_relayer() as relayer:
        assert await relayer.code("/api/v3/user/balances?accountId=10110", headers) == code


async def test_a_key_can_become_invalid() -> None:
    async with a_relayer() as relayer:
        assert (await relayer.balances())[0] == 200
        relayer.sandbox.loopring.api_keys.discard("sandbox")
        assert await relayer.code("/api/v3/user/balances?accountId=10110") == 104002


async def test_a_key_can_be_for_one_account_only() -> None:
    async with a_relayer(api_keys=set(), account_by_key={"sandbox": 10111}) as relayer:
        assert await relayer.ids("accountId=10111") == [0]
        assert await relayer.code("/api/v3/user/balances?accountId=10110") == 104002


@pytest.mark.parametrize(
    ("knobs", "status", "body"),
    [
        ({"error_shape": "msg"}, 400, {"resultInfo": {"code": 104002, "msg": "ERR_REST_INVALID_API_KEY"}}),
        ({"error_shape": "top-level"}, 400, {"code": 104002, "msg": "ERR_REST_INVALID_API_KEY"}),
        (
            {"error_status": 200, "error_messages": {104002: "no"}},
            200,
            {"resultInfo": {"code": 104002, "message": "no"}},
        ),
    ],
    ids=["msg", "top-level", "status 200"],
)
async def test_errors_have_every_shape_seen_in_the_wild(
    knobs: dict[str, Any], status: int, body: dict[str, Any]
) -> None:
    async with a_relayer(api_keys={"another"}, **knobs) as relayer:
        assert await relayer.balances() == (status, body)


async def test_rows_can_lack_the_account_and_carry_texts_for_ids() -> None:
    async with a_relayer(account_id_in_rows=False, token_id_as_text=True) as relayer:
        _, rows = await relayer.balances("accountId=10110&tokens=1")
    assert rows == [
        {"tokenId": "1", "total": "5", "locked": "0", "pending": {"withdraw": "0", "deposit": "0"}}
    ]


async def test_rows_come_in_the_order_that_is_asked_for() -> None:
    async with a_relayer() as relayer:
        relayer.sandbox.loopring.row_order = "descending"
        assert await relayer.ids() == [6, 1, 0]
        relayer.sandbox.loopring.row_order = "shuffled"
        orders = {tuple(await relayer.ids()) for _ in range(20)}
    assert len(orders) > 1
    assert all(sorted(order) == [0, 1, 6] for order in orders)


async def test_the_same_seed_shuffles_the_same_way() -> None:
    async def orders(seed: int) -> list[list[int]]:
        knobs = LoopringKnobs(requests_per_second=None, row_order="shuffled")
        async with (
            Sandbox(a_world(), loopring=knobs, seed=seed) as sandbox,
            aiohttp.ClientSession(sandbox.loopring_url) as http,
        ):
            relayer = Relayer(sandbox, http)
            return [await relayer.ids() for _ in range(6)]

    assert await orders(1) == await orders(1) != await orders(3)


async def test_amounts_are_exact_up_to_78_digits() -> None:
    largest = 2**256 - 1
    async with a_relayer() as relayer:
        relayer.sandbox.world.set(10110, "LRC", total=largest)
        _, rows = await relayer.balances("accountId=10110&tokens=1")
    assert rows[0]["total"] == str(largest)
    assert len(rows[0]["total"]) == 78


async def test_the_other_provider_on_the_same_path_has_rows_of_address_and_value() -> None:
    async with a_relayer(defi_rows=True) as relayer:
        status, rows = await relayer.balances(f"owner={OWNER}")
    assert status == 200
    assert rows[0] == {"address": "0x" + "0" * 40, "value": "100"}
    assert all(set(row) == {"address", "value"} for row in rows)


async def test_the_token_list_needs_no_key_and_has_decimals_and_precision() -> None:
    async with a_relayer() as relayer:
        status, tokens = await relayer.get("/api/v3/exchange/tokens", headers={})
    assert status == 200
    assert [(one["tokenId"], one["symbol"], one["decimals"]) for one in tokens] == [
        (0, "ETH", 18),
        (1, "LRC", 18),
        (3, "USDT", 6),
        (6, "USDC", 6),
    ]
    assert tokens[0]["type"] == "ETH"
    assert tokens[0]["address"] == "0x" + "0" * 40
    assert tokens[0]["precision"] != tokens[0]["decimals"]
    assert tokens[1]["address"] == tokens[1]["address"].lower()
    assert len({one["address"] for one in tokens}) == 4


async def test_a_balance_can_be_of_a_token_that_is_not_in_the_list() -> None:
    async with a_relayer(unlisted_tokens={"1"}) as relayer:
        _, tokens = await relayer.get("/api/v3/exchange/tokens")
        assert 1 not in [one["tokenId"] for one in tokens]
        assert await relayer.ids("accountId=10110&tokens=1") == [1]


async def test_an_id_can_be_as_large_as_an_nft_s() -> None:
    async with a_relayer(unlisted_tokens={"32768"}) as relayer:
        relayer.sandbox.world.list_asset("loopring", ListedAsset("32768", "NFT", "An NFT", 0))
        relayer.sandbox.world.credit(10110, "NFT", 1)
        assert await relayer.ids() == [0, 1, 6, 32768]


@pytest.mark.parametrize("query", [f"owner={OWNER}", "accountId=10110", f"owner={OWNER}&accountId=10110"])
async def test_an_account_can_be_looked_up_without_a_key(query: str) -> None:
    async with a_relayer() as relayer:
        status, account = await relayer.get(f"/api/v3/account?{query}", headers={})
    assert status == 200
    assert (account["accountId"], account["owner"], account["frozen"]) == (10110, OWNER, False)
    assert account["publicKey"]["x"]
    assert account["keySeed"].startswith("Sign this message")


async def test_an_account_that_was_never_activated_has_no_keys() -> None:
    async with a_relayer(inactive_accounts={10110}) as relayer:
        _, account = await relayer.get("/api/v3/account?accountId=10110")
    assert (account["publicKey"], account["keySeed"]) == ({"x": "", "y": ""}, "")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", 100001),
        ("owner=0x22", 101002),
        ("accountId=10199", 104003),
        (f"owner={OTHER}&accountId=10110", 104003),
    ],
)
async def test_an_unknown_account_gets_its_error_code(query: str, code: int) -> None:
    async with a_relayer() as relayer:
        assert await relayer.code(f"/api/v3/account?{query}") == code


async def test_the_time_is_in_milliseconds() -> None:
    async with (
        Sandbox(now=lambda: 1653575725.333) as sandbox,
        aiohttp.ClientSession(sandbox.loopring_url) as http,
        http.get("/api/v3/timestamp") as response,
    ):
        assert await response.json() == {"timestamp": 1653575725333}


async def test_polls_show_the_second_half_of_a_split_deposit() -> None:
    async with a_relayer() as relayer:
        world = relayer.sandbox.world
        world.deposit_seen(10110, "1", 5)
        world.deposit_cleared(10110, "1", 5, split=1, first="pending")
        seen = []
        for _ in range(2):
            _, rows = await relayer.balances("accountId=10110&tokens=1")
            seen.append((rows[0]["total"], rows[0]["pending"]["deposit"]))
    assert seen == [("5", "0"), ("10", "0")]


async def test_a_poll_that_got_an_error_does_not_count_as_one() -> None:
    async with a_relayer() as relayer:
        relayer.sandbox.world.deposit_seen(10110, "1", 5)
        relayer.sandbox.world.deposit_cleared(10110, "1", 5, split=1, first="total")
        relayer.sandbox.loopring.api_keys.clear()
        await relayer.balances()
        await relayer.balances()
    assert relayer.sandbox.world.holding(10110, "1").pending_deposit == 5
