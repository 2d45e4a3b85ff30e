"""Two deployments in one namespace, as after copying one: nothing of one reaches the other."""

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping
from typing import Any

import orjson
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.builders import SECRET
from tests.support.rig import TREASURY, Rig, a_rig
from watcher.observe.metrics import Metrics
from watcher.observe.page.look import Look
from watcher.polling import work
from watcher.providers.loopring import LoopringAccount
from watcher.receiver import Fail, Receiver
from watcher.sandbox.server import Sandbox
from watcher.settings import Settings
from watcher.store.keys import Keys


@pytest.fixture
async def production(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


@pytest.fixture
def lines() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as found:
        yield found


def copied(settings: Settings, sandbox: Sandbox, receiver: Receiver) -> Settings:
    """Staging: the same names, another provider, another URL, and one account more."""
    loopring = settings.provider_by_name["loopring"].model_copy(update={"base_url": sandbox.loopring_url})
    ops = settings.subscription_by_name["ops"].model_copy(update={"url": SecretStr(receiver.url)})
    often = settings.account_by_name["treasury"]
    own = LoopringAccount(
        name="staging",
        provider="loopring",
        account_id=TREASURY,
        interval=often.interval,
        pending_interval=often.pending_interval,
    )
    accounts = {name: one for name, one in settings.account_by_name.items() if one.provider == "loopring"}
    return settings.model_copy(
        update={
            "provider_by_name": {**settings.provider_by_name, "loopring": loopring},
            "subscription_by_name": {"ops": ops},
            "account_by_name": {**accounts, "staging": own},
        }
    )


async def until(is_so: Any, within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not is_so():  # noqa: ASYNC110 - a list sends no signal
            await asyncio.sleep(0.01)


async def test_events_of_production_wait_for_it_while_staging_runs_on(
    production: Rig, lines: list[MutableMapping[str, Any]], redis_client: Redis
) -> None:
    rig, keys = production, Keys(production.settings.redis.namespace)

    def said(event: str) -> list[MutableMapping[str, Any]]:
        return [line for line in lines if line["event"] == event]

    async with Sandbox() as sandbox, Receiver(secrets=[SECRET]) as receiver:
        sandbox.loopring.requests_per_second = None
        sandbox.world.credit(TREASURY, "ETH", "5")
        staging = copied(rig.settings, sandbox, receiver)
        rig.receiver.fail = Fail(503, 1_000)
        async with rig.worker() as worker:
            await until(lambda: len(said("account.baseline")) == 2)
            rig.sandbox.world.credit(TREASURY, "ETH", "1")
            await until(lambda: said("delivery.retried"))
            async with rig.worker(staging):
                await until(lambda: len(said("configuration.differs")) == 2)
                assert b"watcher_configuration_differs 3.0" in await Metrics(worker).text()
                (seen,) = orjson.loads(await Look(worker).json())["differs"]
                assert seen["names"] == ["provider loopring", "subscription ops", "account treasury"]
                sandbox.world.credit(TREASURY, "ETH", "7")
                rig.sandbox.world.credit(TREASURY, "ETH", "2")
                await until(lambda: len(said("event.created")) >= 2)
        # Production has ended; staging starts anew while it is away, and runs on alone.
        async with rig.worker(staging):
            sandbox.world.credit(TREASURY, "ETH", "9")
            await asyncio.sleep(0.5)  # ten intervals in which nothing is to happen
            assert await redis_client.exists(keys.state("alice")), "it may only be restarting"
            assert not await redis_client.exists(keys.state("staging"))
            rig.receiver.fail = None
            async with rig.worker():
                await rig.events(2)
    assert not receiver.receipts
    amounts = [event["data"]["amount"] for event in rig.receiver.events]
    assert amounts == ["1", "2"]
    assert len(said("account.baseline")) == 2, "no change of worker made another baseline"


async def test_an_account_polled_at_two_sources_makes_no_baseline_at_each_change_of_worker(
    production: Rig, lines: list[MutableMapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_UNKNOWN_MS", 500)  # the first worker puts off what only the second knows
    rig = production
    async with Sandbox() as sandbox:
        sandbox.loopring.requests_per_second = None
        sandbox.world.credit(TREASURY, "ETH", "500")
        elsewhere = copied(rig.settings, sandbox, rig.receiver)
        async with rig.worker():
            await until(lambda: baselines(lines) == ["alice", "treasury"])
            async with rig.worker(elsewhere) as second:
                await until(lambda: "staging" in baselines(lines))
                for number in range(1, 6):
                    rig.sandbox.world.credit(TREASURY, "ETH", str(number))
                    sandbox.world.credit(TREASURY, "ETH", "100")
                    await until(lambda number=number: len(amounts(rig)) == number)
                await until(lambda: second.counters.by_request["loopring"] > 5)
    assert amounts(rig) == ["1", "2", "3", "4", "5"]
    assert baselines(lines) == ["alice", "staging", "treasury"]


def baselines(lines: list[MutableMapping[str, Any]]) -> list[str]:
    return sorted(line["account"] for line in lines if line["event"] == "account.baseline")


def amounts(rig: Rig) -> list[str]:
    """The movements of the account that both have, as they were sent."""
    shown = (event["data"] for event in rig.receiver.events)
    return [data["amount"] for data in shown if data["account"]["name"] == "treasury"]
