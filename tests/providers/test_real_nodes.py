"""Transactions on the chains of real nodes are emitted exactly, by the recipes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.builders import SECRET
from tests.support.nodes import MONERO_LOCKS, PASSWORD, USER, Monero, litecoin, monero
from tests.support.rig import assert_reconciled, workers
from watcher.amounts import from_integer, to_atoms, to_text
from watcher.config.loading import load
from watcher.receiver import Receiver
from watcher.settings import Settings
from watcher.snapshot import Balance
from watcher.store.opening import open_store
from watcher.store.reader import Reader

pytestmark = pytest.mark.slow

CONFIGURATION = """
[redis]
url = "{redis}"
namespace = "{namespace}"

[egress]
allow = ["127.0.0.0/8"]
allow_http = true

[[subscriptions]]
name = "ops"
url = "{receiver}"
secrets = ["{secret}"]
events = ["*"]
{sources}
"""

BITCOIN = """
[providers.node]
kind = "bitcoin-core"
base_url = "{url}"
basic = "{user}:{password}"
requests_per_second = 100

[[providers.node.read]]
id = "LTC"

[[accounts]]
name = "shop"
provider = "node"
of = {{ wallet = "shop" }}

[[accounts]]
name = "miner"
provider = "node"
of = {{ wallet = "miner" }}
"""

MONERO = """
[providers.node]
kind = "monero"
base_url = "{url}"

[[accounts]]
name = "shop"
provider = "node"
"""

OFTEN = {"interval": timedelta(milliseconds=50), "pending_interval": timedelta(milliseconds=50)}
"""Shorter than a file may say."""


class Watched:
    """A worker that runs, and what it emits."""

    def __init__(self, settings: Settings, receiver: Receiver) -> None:
        self._settings = settings
        self._receiver = receiver
        self._taken_by_account: dict[str, int] = {}

    def _emitted(self, account: str) -> list[tuple[str, str]]:
        about = [event for event in self._receiver.events if event["data"]["account"]["name"] == account]
        return [(event["type"], event["data"]["amount"]) for event in about]

    async def next(self, account: str, count: int) -> list[tuple[str, str]]:
        """The type and amount of each event of one account that came since; so many at least."""
        taken = self._taken_by_account.get(account, 0)
        async with asyncio.timeout(10):
            while len(self._emitted(account)) < taken + count:
                await self._receiver.wait_for(self._receiver.taken + 1)
        self._taken_by_account[account] = len(self._emitted(account))
        return self._emitted(account)[taken:]

    async def balances(self, account: str) -> dict[str, Balance]:
        """What the store says that an account holds."""
        async with open_store(self._settings.redis) as store:
            async for seen in Reader(store.pipe, store.keys).read_states({account: "node"}):
                assert seen.state
                return {asset: entry.published for asset, entry in seen.state.entry_by_asset.items()}
        raise AssertionError("it has no state")


@asynccontextmanager
async def watching(
    place: Path, redis_url: str, namespace: str, sources: str, *, is_read: bool = True
) -> AsyncIterator[Watched]:
    """A worker that polls what a file says, and more often; if anything `is_read`, all baselines are."""
    async with Receiver(secrets=[SECRET]) as receiver:
        file = place / "watcher.toml"
        file.write_text(
            CONFIGURATION.format(
                redis=redis_url, namespace=namespace, receiver=receiver.url, secret=SECRET, sources=sources
            )
        )
        settings = load(file, {}).settings
        accounts = {name: one.model_copy(update=OFTEN) for name, one in settings.account_by_name.items()}
        settings = settings.model_copy(update={"account_by_name": accounts})
        async with workers(settings, "w"):
            watched = Watched(settings, receiver)
            for name in accounts if is_read else ():
                assert [type_ for type_, _ in await watched.next(name, 1)] == ["account.baseline"]
            yield watched
            await assert_reconciled(settings, receiver)


async def test_a_bitcoin_wallet_is_followed_through_a_reorganisation_until_it_is_unloaded(
    tmp_path: Path, redis_server_url: str, namespace: str
) -> None:
    amount = "12.34567891"
    with litecoin() as chain:
        chain.open_wallet("shop")
        sources = BITCOIN.format(url=chain.node.url, user=USER, password=PASSWORD)
        async with watching(tmp_path, redis_server_url, namespace, sources) as watched:
            chain.send("shop", amount)
            assert await watched.next("shop", 1) == [("deposit.pending", amount)]
            block = chain.mine()
            assert await watched.next("shop", 1) == [("deposit.cleared", amount)]
            chain.node.call("invalidateblock", block)
            shown = await watched.next("shop", 2)
            assert sorted(shown) == [("deposit.pending", amount), ("total.decreased", amount)]
            chain.node.call("reconsiderblock", block)
            assert await watched.next("shop", 1) == [("deposit.cleared", amount)]
            chain.send("miner", "2", by="shop")
            ((type_, spent),) = await watched.next("shop", 1)
            assert type_ == "total.decreased"
            assert 0 < to_atoms(spent) - to_atoms("2") < to_atoms("0.0001"), "what it cost to send"
            last = await watched.balances("shop")
            assert last == {"LTC": Balance(to_text(to_atoms(amount) - to_atoms(spent)), "0", "0", None)}
            with capture_logs() as logs:
                chain.node.call("unloadwallet", "shop")
                while not (lines := [line for line in logs if line["event"] == "poll.rejected"]):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert (lines[0]["account"], lines[0]["error_class"]) == ("shop", "configuration")
            await watched.next("miner", 0)
            chain.mine()
            await watched.next("miner", 1)
            assert await watched.next("shop", 0) == []
            assert await watched.balances("shop") == last


async def test_a_node_that_refuses_the_password_moves_nothing(
    tmp_path: Path, redis_server_url: str, namespace: str
) -> None:
    with litecoin() as chain:
        sources = BITCOIN.format(url=chain.node.url, user=USER, password="another")
        with capture_logs() as logs:
            async with watching(tmp_path, redis_server_url, namespace, sources, is_read=False) as watched:
                chain.open_wallet("shop")
                while not (lines := [line for line in logs if line["event"] == "poll.rejected"]):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert {(line["error_class"], line["status"]) for line in lines} == {("auth", 401)}
                assert await watched.next("miner", 0) == []


@pytest.mark.parametrize("blocks", [2, pytest.param(MONERO_LOCKS + 2, marks=pytest.mark.long)])
async def test_a_monero_wallet_is_read_to_the_last_digit_and_followed(
    tmp_path: Path, redis_server_url: str, namespace: str, blocks: int
) -> None:
    with monero(blocks) as chain:
        sources = MONERO.format(url=chain.wallet.url)
        async with watching(tmp_path, redis_server_url, namespace, sources) as watched:
            before = held_by(chain)
            assert (before.locked == before.total) == (blocks <= MONERO_LOCKS)
            assert await watched.balances("shop") == {"XMR": before}
            chain.mine()
            after = held_by(chain)
            shown = dict(await watched.next("shop", 2))
            assert await watched.balances("shop") == {"XMR": after}
            assert shown["total.increased"] == to_text(to_atoms(after.total) - to_atoms(before.total))
            unlocked = to_atoms(before.locked) - to_atoms(after.locked)
            type_ = "locked.decreased" if unlocked > 0 else "locked.increased"
            assert shown[type_] == to_text(abs(unlocked))


def held_by(chain: Monero) -> Balance:
    """What the wallet itself says, of which the amounts are integers."""
    said = chain.wallet.call("get_balance", account_index=0)
    total, unlocked = said["balance"], said["unlocked_balance"]
    return Balance(from_integer(str(total), 12), from_integer(str(total - unlocked), 12), None, None)
