"""`run --once`: every account is read once, and the run ends, whatever else is going on."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.rig import Rig, a_rig
from tests.support.servers import a_free_port, real_server
from tests.support.stores import some_deliveries
from watcher.providers.metakeep import MetaKeepSettings
from watcher.run import upkeep
from watcher.run.worker import Worker
from watcher.sandbox.answers import BAD_GATEWAY
from watcher.settings import Settings, WorkerSettings
from watcher.store.exceptions import StoreError
from watcher.store.opening import open_store
from watcher.store.queues import Queues
from watcher.store.reader import Reader
from watcher.store.schedule import Schedule

SHOP = "/v2/app/coin/balance"


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


async def once(settings: Settings, name: str = "w", *, within_s: float = 10) -> Worker:
    worker = Worker(settings, name=name)
    async with asyncio.timeout(within_s):
        await worker.run(once=True)
    return worker


def changed(rig: Rig, **parts: object) -> Settings:
    return rig.settings.model_copy(update=parts)


def an_idle_provider(rig: Rig) -> Settings:
    url = rig.sandbox.metakeep_url
    idle = MetaKeepSettings(name="idle", kind="metakeep", base_url=url, api_key=SecretStr("k"))
    return changed(rig, provider_by_name={**rig.settings.provider_by_name, "idle": idle})


async def test_once_ends_beside_a_provider_without_accounts(rig: Rig) -> None:
    assert (await once(an_idle_provider(rig))).has_read_all


async def test_once_ends_without_any_account_provider_or_subscription(rig: Rig) -> None:
    nothing: dict[str, Any] = {}
    assert (await once(changed(rig, account_by_name=nothing))).has_read_all
    assert (await once(changed(rig, account_by_name=nothing, provider_by_name=nothing))).has_read_all
    assert (await once(changed(rig, subscription_by_name=nothing))).has_read_all


async def test_once_ends_unsuccessfully_if_a_provider_stays_down(rig: Rig) -> None:
    rig.sandbox.metakeep.every_answer = BAD_GATEWAY
    assert not (await once(rig.settings)).has_read_all
    await rig.sandbox.take_down("loopring")
    assert not (await once(rig.settings)).has_read_all
    await rig.sandbox.bring_back("loopring")


async def test_once_ends_though_a_subscriber_stays_down(rig: Rig) -> None:
    gone = {"url": SecretStr("http://127.0.0.1:1999/"), "events": ("account.*",)}
    dead = rig.settings.subscription_by_name["ops"].model_copy(update=gone)
    assert (await once(changed(rig, subscription_by_name={"ops": dead}))).has_read_all


def only_alice(rig: Rig) -> Settings:
    return changed(rig, account_by_name={"alice": rig.settings.account_by_name["alice"]})


async def asked(rig: Rig) -> None:
    """Wait until a poll is under way."""
    async with asyncio.timeout(10):
        while rig.sandbox.traffic.count(SHOP) == 0:  # noqa: ASYNC110 - the simulator only counts
            await asyncio.sleep(0.005)


async def test_an_account_that_another_worker_polls_is_left_to_it(rig: Rig) -> None:
    rig.sandbox.metakeep.latency_s = 0.7
    settings = only_alice(rig)
    with capture_logs() as said:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(once(settings, "first"))
            await asked(rig)
            second = group.create_task(once(settings, "second"))
    events = [line["event"] for line in said]
    assert events.count("poll.left") == 1
    assert "poll.discarded" not in events
    assert first.result().has_read_all
    assert not second.result().has_read_all, "it has read nothing"
    assert rig.sandbox.traffic.count(SHOP) == 1


async def test_an_account_left_to_another_worker_counts_as_read(rig: Rig) -> None:
    rig.sandbox.metakeep.latency_s = 0.7
    async with asyncio.TaskGroup() as group:
        group.create_task(
            once(changed(rig, account_by_name={"alice": rig.settings.account_by_name["alice"]}))
        )
        await asked(rig)
        second = group.create_task(once(rig.settings, "second"))
    assert second.result().has_read_all


async def test_stopping_once_ends_it_within_the_drain_unsuccessfully(rig: Rig) -> None:
    rig.sandbox.metakeep.latency_s = 5
    settings = changed(rig, worker=WorkerSettings(drain=timedelta(seconds=0.3)))
    worker = Worker(settings, name="w")
    async with asyncio.timeout(3), asyncio.TaskGroup() as group:
        group.create_task(worker.run(once=True))
        await asked(rig)
        worker.stop()
    assert not worker.has_read_all


async def test_once_gives_up_if_redis_stays_unreachable(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_PATIENCE_S", 0.3)
    with real_server() as server:
        async with a_rig(server.url, namespace) as rig:
            rig.is_damaged = True
            rig.sandbox.metakeep.latency_s = 0.5
            running = asyncio.create_task(Worker(rig.settings, name="w").run(once=True))
            await asked(rig)
            server.kill()
            with pytest.raises(ExceptionGroup) as ended:
                await asyncio.wait_for(running, 30)
    assert ended.group_contains(StoreError)


async def test_runs_that_cannot_read_an_account_report_it_stale_and_the_first_that_can_recovered(
    rig: Rig,
) -> None:
    settings = rig.with_short_timeouts()
    ops = settings.subscription_by_name["ops"].model_copy(
        update={"events": ("account.stale", "account.rec*")}
    )
    settings = settings.model_copy(update={"subscription_by_name": {"ops": ops}})
    await once(settings)
    await rig.sandbox.take_down("loopring")
    while not rig.receiver.events:
        await once(settings)
    await once(settings)
    await rig.sandbox.bring_back("loopring")
    await once(settings)
    assert [(event["type"], event["data"]["account"]["name"]) for event in rig.receiver.events] == [
        ("account.stale", "treasury"),
        ("account.recovered", "treasury"),
    ]


async def test_once_keeps_backlogs_within_their_bounds(rig: Rig) -> None:
    ops = rig.settings.subscription_by_name["ops"]
    nowhere = SecretStr(f"http://127.0.0.1:{a_free_port()}/")
    settings = changed(
        rig, subscription_by_name={"ops": ops.model_copy(update={"max_backlog": 1, "url": nowhere})}
    )
    async with open_store(settings.redis) as store:
        await Queues(Schedule(store.pipe), store.keys).enqueue("ops", "treasury", some_deliveries(1, 2, 3))
        await once(settings)
        (waiting,) = (await Reader(store.pipe, store.keys).waiting(["ops"])).values()
    assert (waiting.deliveries, waiting.dead) == (1, 2)
