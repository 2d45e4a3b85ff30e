"""A real Ethereum node: its transactions become the right events, and no others."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.evm_scenes import NO_CONTRACT, evm_account, evm_settings, recorded, scenes
from tests.support.nodes import EMPTY, RICH, Ethereum, ethereum
from tests.support.rig import Rig, a_rig
from tests.support.tokens import erc20
from watcher import recipes
from watcher.config.loading import load
from watcher.providers.contract import Rejected, provider_class
from watcher.providers.evm import MOST_TOKENS, NATIVE, Evm
from watcher.providers.http import LIMIT, ProviderClient
from watcher.settings import AccountSettings, ProviderSettings
from watcher.snapshot import Snapshot

pytestmark = pytest.mark.slow

OFTEN: Mapping[str, Any] = {
    "interval": timedelta(milliseconds=100),
    "pending_interval": timedelta(milliseconds=100),
}
"""Shorter than a file may say, so that tests are quick."""


@pytest.fixture
def chain() -> Iterator[Ethereum]:
    with ethereum() as chain:
        yield chain


def test_recorded_answers_match_a_real_node() -> None:
    recording, made = recorded(), dict(scenes())
    assert made.keys() == recording.keys()
    for name, scene in made.items():
        assert read(scene) == read(recording[name]), name


def read(scene: Any) -> Snapshot | str:
    try:
        return Evm(evm_settings(**scene.settings)).read(evm_account(*scene.tokens), scene.answers, {})
    except Rejected as rejected:
        return rejected.reason


async def test_two_hundred_tokens_fit_in_one_answer_of_the_client(chain: Ethereum) -> None:
    tokens = chain.deploy(
        *(erc20(number, symbol="A LONGER SYMBOL THAN MOST HAVE") for number in range(MOST_TOKENS))
    )
    settings = evm_settings(chain.node.url, path="/", api_key=None, requests_per_second=10_000)
    account = evm_account(*tokens, address=RICH)
    async with ProviderClient(Evm(settings), settings) as client:
        without = await client.read(account, await client.ask(account))
        chain.install_multicall3()
        (body,) = await client.ask(account)
        snapshot = await client.read(account, (body,))
    assert len(body) < LIMIT / 3
    amounts = [row.balance.total for asset, row in snapshot.row_by_asset.items() if asset != NATIVE]
    assert amounts == ["0", *(f"0.{number:018}".rstrip("0") for number in range(1, MOST_TOKENS))]
    assert without.row_by_asset == snapshot.row_by_asset


@pytest.mark.parametrize("name", [name for name in recipes.names() if recipes.recipe(name).kind == "evm"])
async def test_a_recipe_reads_its_chain_and_no_other(name: str, tmp_path: Path) -> None:
    file, said = tmp_path / "watcher.toml", recipes.recipe(name).section
    address, coin = EMPTY.upper().replace("X", "x"), said["symbol"]
    with ethereum(f"--chain-id={said['chain_id']}") as own, ethereum() as another:
        for chain in (own, another):
            chain.send(EMPTY, 12)
            chain.mine()
        for chain in (own, another):
            file.write_text(
                f'[providers.{name}]\nbase_url = "{chain.node.url}"\npath = "/"\n'
                f'[[accounts]]\nname = "a"\nprovider = "{name}"\naddress = "{address}"\n'
            )
            settings = load(file, {}).settings
            (provider,), (account,) = settings.provider_by_name.values(), settings.account_by_name.values()
            async with ProviderClient(provider_class(provider.kind)(provider), provider) as client:
                if chain is another:
                    with pytest.raises(Rejected, match=f"on chain 31337, not on {said['chain_id']}"):
                        await client.read(account, await client.ask(account))
                else:
                    (row,) = (await client.read(account, await client.ask(account))).row_by_asset.values()
                    assert (row.asset.symbol, row.balance.pending_deposit) == (coin, "0.000000000000000012")


@asynccontextmanager
async def a_rig_on(
    chain: Ethereum, url: str, namespace: str, *tokens: str, **settings: Any
) -> AsyncIterator[Rig]:
    """A worker's surroundings: an address on a chain, and the same on a chain that the node is not on."""
    own: dict[str, Any] = {"path": "/", "api_key": None, "requests_per_second": 1000, **settings}
    base = evm_settings(chain.node.url, **own)
    elsewhere = evm_settings(chain.node.url, **own | {"chain_id": 8453}).model_copy(
        update={"name": "elsewhere"}
    )
    accounts: list[AccountSettings] = [
        evm_account(*tokens, **OFTEN),
        evm_account(**OFTEN).model_copy(update={"name": "lost", "provider": "elsewhere"}),
    ]
    providers: list[ProviderSettings] = [base, elsewhere]
    async with a_rig(url, namespace) as rig:
        rig.settings = rig.settings.model_copy(
            update={
                "provider_by_name": {one.name: one for one in providers},
                "account_by_name": {one.name: one for one in accounts},
            }
        )
        yield rig


def emitted(events: list[Any]) -> list[tuple[str, str, str]]:
    return [(event["type"], event["data"]["asset"]["symbol"], event["data"]["amount"]) for event in events]


async def until_polled(worker: Any, more: int) -> None:
    """Wait until the worker made so many polls more."""
    enough = worker.counters.polls + more
    async with asyncio.timeout(10):
        while worker.counters.polls < enough:  # noqa: ASYNC110 - it is only counted
            await asyncio.sleep(0.005)


async def test_transfers_make_events_and_a_reorganisation_moves_no_total(
    chain: Ethereum, redis_server_url: str, namespace: str
) -> None:
    (token,) = chain.deploy(erc20(10**24))
    chain.install_multicall3()
    with capture_logs() as lines:
        async with a_rig_on(chain, redis_server_url, namespace, token) as rig, rig.worker() as worker:
            await until_polled(worker, 4)
            chain.send(EMPTY, 123_456_789_012_345_678_901)
            chain.transfer(token, EMPTY, 7 * 10**18 + 1)
            await until_polled(worker, 4)
            assert not rig.receiver.events, "a transfer outside of any block changes no balance"
            chain.mine()
            await rig.events(2)
            chain.mine(6)
            await rig.events(4)
            chain.send(EMPTY, 5 * 10**18)
            chain.mine()
            await rig.events(5)
            chain.reorganise(2)
            await rig.events(6)
            chain.node.call("anvil_impersonateAccount", EMPTY)
            chain.send(NO_CONTRACT, 10**18, by=EMPTY)
            chain.mine()
            await rig.events(7)
            chain.mine(8)
            events = await rig.events(8)
    ether, tokens = "123.456789012345678901", "7.000000000000000001"
    assert emitted(events) == [
        ("deposit.pending", "TST", tokens),
        ("deposit.pending", "ETH", ether),
        ("deposit.cleared", "TST", tokens),
        ("deposit.cleared", "ETH", ether),
        ("deposit.pending", "ETH", "5"),
        ("deposit.dropped", "ETH", "5"),
        ("withdrawal.pending", "ETH", "1"),
        ("withdrawal.cleared", "ETH", "1"),
    ]
    totals = [event["data"]["after"]["total"] for event in events if event["data"]["asset"]["id"] == NATIVE]
    assert totals == ["0", ether, ether, ether, ether, "122.456789012345678901"]
    rejected = [line for line in lines if line["event"] == "poll.rejected" and line["account"] == "lost"]
    assert {line["error_class"] for line in rejected} == {"configuration"}
    assert "on chain 31337, not on 8453" in rejected[0]["reason"]
    assert "error" in {line["log_level"] for line in lines if "on chain 31337" in str(line.get("reason"))}


async def test_answers_of_a_lagging_node_are_discarded_until_it_has_caught_up(
    chain: Ethereum, redis_server_url: str, namespace: str
) -> None:
    chain.install_multicall3()
    with capture_logs() as lines:
        async with a_rig_on(chain, redis_server_url, namespace) as rig, rig.worker() as worker:
            await until_polled(worker, 4)
            behind = chain.node.call("evm_snapshot")
            chain.send(EMPTY, 5 * 10**18)
            chain.mine(2)
            await rig.events(1)
            chain.node.call("evm_revert", behind)
            await until_polled(worker, 8)
            assert len(rig.receiver.events) == 1, "a deposit that a lagging node does not know is not dropped"
            chain.mine(3)
            events = await rig.events(2)
    assert emitted(events) == [("deposit.pending", "ETH", "5"), ("deposit.dropped", "ETH", "5")]
    behind_lines = [line for line in lines if line["event"] == "poll.rejected" and line["account"] == "gas"]
    assert {line["error_class"] for line in behind_lines} == {"transient"}


@pytest.mark.parametrize("settings", [{"confirmations": 3}, {}], ids=["confirmations", "finality"])
async def test_a_chain_without_multicall3_works_too(
    settings: dict[str, Any], chain: Ethereum, redis_server_url: str, namespace: str
) -> None:
    (token,) = chain.deploy(erc20(10**24, decimals=6, symbol=b"OLD"))
    async with a_rig_on(chain, redis_server_url, namespace, token, **settings) as rig, rig.worker() as worker:
        await until_polled(worker, 4)
        chain.transfer(token, EMPTY, 5_000_001)
        chain.mine()
        await rig.events(1)
        chain.mine(5)
        events = await rig.events(2)
    assert emitted(events) == [("deposit.pending", "OLD", "5.000001"), ("deposit.cleared", "OLD", "5.000001")]
