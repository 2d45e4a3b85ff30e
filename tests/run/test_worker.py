"""The whole way: a change at a provider becomes a signed webhook, once, in order."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.builders import seconds
from tests.support.rig import ALICE, MK, TREASURY, Rig, a_rig, some_settings
from tests.support.servers import real_server
from watcher.receiver import Fail
from watcher.run import members, upkeep, worker
from watcher.run.worker import Worker
from watcher.sandbox.answers import BAD_GATEWAY
from watcher.settings import ThresholdSettings, WorkerSettings
from watcher.store import move
from watcher.store.client import connect
from watcher.store.exceptions import StoreUnreachable
from watcher.store.keys import Keys, shard_of
from watcher.store.layout import Layout
from watcher.store.members import Workers
from watcher.store.pipe import Pipe
from watcher.store.queues import Begun, Queues


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


SHARD = shard_of("alice")

LOOPRING = "/api/v3/user/balances"
SHOP = "/v2/app/coin/balance"


async def polls(rig: Rig, path: str, more: int) -> None:
    """Wait until so many more polls arrived; the one before the last has then been committed."""
    enough = rig.sandbox.traffic.count(path) + more
    async with asyncio.timeout(10):
        while rig.sandbox.traffic.count(path) < enough:  # noqa: ASYNC110 - the simulator only counts
            await asyncio.sleep(0.005)


async def baselines(rig: Rig) -> None:
    await polls(rig, LOOPRING, 2)
    await polls(rig, SHOP, 2)


def types(events: Iterable[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def test_changes_at_both_providers_become_verified_webhooks(rig: Rig) -> None:
    async with rig.worker():
        await baselines(rig)
        rig.sandbox.world.deposit_seen(TREASURY, "LRC", "12.5")
        await rig.events(1)
        rig.sandbox.world.deposit_cleared(TREASURY, "LRC", "12.5")
        await rig.events(2)
        rig.sandbox.world.credit(ALICE, "MK", "3.25")
        events = await rig.events(3)
    assert types(events) == ["deposit.pending", "deposit.cleared", "total.increased"]
    assert all(receipt.is_verified and not receipt.is_repeat for receipt in rig.receiver.receipts)


async def test_the_committing_worker_sends_a_change_without_reading_it_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    async def begin(_: Queues, subscription: str, *__: object, **___: object) -> Begun:
        read.append(subscription)
        raise StoreUnreachable("no queue is to be read")

    monkeypatch.setattr(Queues, "begin", begin)
    async with rig.worker() as worker:
        await baselines(rig)
        for number in range(1, 4):
            rig.sandbox.world.lock(TREASURY, "LRC", number)
            await rig.events(number)
            async with asyncio.timeout(10):
                while worker.counters.deliveries < number:  # noqa: ASYNC110 - it is settled by then
                    await asyncio.sleep(0.005)
    assert read == []
    assert not any(receipt.is_repeat for receipt in rig.receiver.receipts)


async def test_a_failing_provider_makes_no_event_and_recovers(rig: Rig) -> None:
    async with rig.worker():
        await baselines(rig)
        rig.sandbox.metakeep.every_answer = BAD_GATEWAY
        await polls(rig, SHOP, 1)
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        events = await rig.events(1)
    assert types(events) == ["total.increased"]
    assert rig.receiver.taken == 1


async def test_a_subscriber_that_fails_gets_its_events_later_in_order(rig: Rig) -> None:
    rig.receiver.fail = Fail(500, 2)  # which speaks for the one event, not for the receiver
    async with rig.worker():
        await baselines(rig)
        for number in range(1, 6):
            rig.sandbox.world.lock(TREASURY, "LRC", number)
            await rig.events(number)
    sequences = [event["data"]["sequence"] for event in rig.receiver.events]
    assert sequences == sorted(sequences)
    assert [receipt.attempt for receipt in rig.receiver.receipts if receipt.is_taken] == [3] * 5


async def test_a_restarted_worker_goes_on_where_the_last_one_stopped(rig: Rig) -> None:
    async with rig.worker():
        await baselines(rig)
    rig.sandbox.world.credit(TREASURY, "ETH", "1")  # while no worker runs
    async with rig.worker():
        events = await rig.events(1)
    assert types(events) == ["total.increased"]


async def test_a_drain_finishes_work_in_hand_and_sends_nothing_twice(rig: Rig) -> None:
    rig.receiver.delay_s = 0.3
    async with rig.worker() as worker:
        await baselines(rig)
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        async with asyncio.timeout(10):
            while not rig.receiver.receipts:  # noqa: ASYNC110 - it has no signal for a first attempt
                await asyncio.sleep(0.005)
        worker.stop()  # the attempt is in flight
    async with rig.worker():
        await baselines(rig)
        rig.sandbox.world.credit(ALICE, MK, "1")
        await rig.events(2)
    assert not any(receipt.is_repeat for receipt in rig.receiver.receipts)
    assert len(rig.receiver.receipts) == 2


async def test_unfinished_work_of_a_drain_is_counted_also_that_of_an_old_configuration(rig: Rig) -> None:
    rig.receiver.delay_s = 2
    rig.settings = rig.settings.model_copy(update={"worker": WorkerSettings(drain=timedelta(seconds=0.2))})
    with capture_logs() as lines:
        async with rig.worker() as worker:
            await baselines(rig)
            rig.sandbox.world.credit(TREASURY, "ETH", "1")
            async with asyncio.timeout(10):
                while not rig.receiver.receipts:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.005)
            worker.reload(rig.settings)
            await asyncio.sleep(0.05)
    cut_off = [line["in_flight"] for line in lines if line["event"] == "worker.cut_off"]
    assert cut_off == [1]


async def test_two_workers_share_the_work_and_send_everything_once(rig: Rig) -> None:
    async with rig.worker(), rig.worker():
        await baselines(rig)
        for number in range(1, 21):
            rig.sandbox.world.credit(TREASURY, "ETH", number)
            await rig.events(number)
    assert len(rig.receiver.receipts) == 20
    assert not any(receipt.is_repeat for receipt in rig.receiver.receipts)
    assert {receipt.order for receipt in rig.receiver.receipts} == {None}


async def test_a_reload_that_removes_a_subscription_ends_its_posts(rig: Rig) -> None:
    async with rig.worker() as worker:
        await baselines(rig)
        worker.reload(rig.settings.model_copy(update={"subscription_by_name": {}}))
        await asyncio.sleep(0)
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        await polls(rig, LOOPRING, 4)
    assert not rig.receiver.receipts


async def test_a_changed_url_gets_the_backlog_of_the_old_one_in_order(rig: Rig) -> None:
    dead = some_settings(
        rig.settings.redis.url.get_secret_value(),
        rig.settings.redis.namespace,
        rig.sandbox,
        "http://127.0.0.1:1999/",
    )
    waiting = dead.subscription_by_name["ops"].model_copy(update={"retries": seconds(0, 3600)})
    async with rig.worker(dead.model_copy(update={"subscription_by_name": {"ops": waiting}})) as worker:
        await baselines(rig)
        for number in range(1, 4):
            rig.sandbox.world.credit(TREASURY, "ETH", number)
            await polls(rig, LOOPRING, 2)
        worker.reload(rig.settings)
        events = await rig.events(3)
    sequences = [event["data"]["sequence"] for event in events]
    assert sequences == sorted(sequences)


async def test_an_account_removed_and_added_again_within_minutes_goes_on_from_its_state(rig: Rig) -> None:
    without = rig.settings.model_copy(
        update={"account_by_name": {"alice": rig.settings.account_by_name["alice"]}}
    )
    async with rig.worker() as worker:
        await baselines(rig)
        worker.reload(without)
        await polls(rig, SHOP, 3)
        rig.sandbox.world.credit(TREASURY, "ETH", "5")
        worker.reload(rig.settings)
        await polls(rig, LOOPRING, 3)
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        events = await rig.events(2)
    assert [event["data"]["amount"] for event in events] == ["5", "1"]


async def test_once_polls_everything_delivers_it_and_ends(rig: Rig) -> None:
    await Worker(rig.settings, name="first").run(once=True)
    rig.sandbox.world.credit(TREASURY, "ETH", "1")
    rig.sandbox.world.credit(ALICE, "MK", "1")
    async with asyncio.timeout(10):
        await Worker(rig.settings, name="second").run(once=True)
    assert sorted(types(rig.receiver.events)) == ["total.increased", "total.increased"]


async def test_a_provider_that_never_recovers_is_reported_once_per_account(rig: Rig) -> None:
    ops = rig.settings.subscription_by_name["ops"].model_copy(update={"events": ("account.*", "total.*")})
    settings = rig.with_short_timeouts().model_copy(update={"subscription_by_name": {"ops": ops}})
    async with rig.worker(settings):
        await rig.events(2)  # the baselines
        await rig.sandbox.take_down("loopring")
        await rig.events(3, within_s=20)
        await rig.sandbox.bring_back("loopring")
        events = await rig.events(4, within_s=20)
    assert [(event["type"], event["data"]["account"]["name"]) for event in events[2:]] == [
        ("account.stale", "treasury"),
        ("account.recovered", "treasury"),
    ]
    assert rig.receiver.taken == 4


async def test_a_damaged_schedule_stops_its_shard_and_nothing_else(rig: Rig, redis_client: Redis) -> None:
    """`treasury` and `alice` live on different shards."""
    keys = Keys(rig.settings.redis.namespace)
    async with rig.worker():
        await baselines(rig)
        for key in (keys.polls(SHARD, "shop"), keys.due_subscriptions(SHARD), keys.breakers(), keys.meta()):
            await redis_client.delete(key)
            await redis_client.set(key, "damaged")
        await polls(rig, LOOPRING, 25)  # more than a second: breakers were read again
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        events = await rig.events(1)
        await redis_client.delete(keys.polls(SHARD, "shop"), keys.due_subscriptions(SHARD), keys.breakers())
        await redis_client.delete(keys.meta())
    assert [event["data"]["account"]["name"] for event in events] == ["treasury"]


async def test_a_schedule_that_was_deleted_is_made_again(rig: Rig, redis_client: Redis) -> None:
    async with rig.worker():
        await baselines(rig)
        await redis_client.delete(Keys(rig.settings.redis.namespace).polls(SHARD, "shop"))
        rig.sandbox.world.credit(ALICE, MK, "1")
        assert types(await rig.events(1)) == ["total.increased"], "its state is as it was"


async def test_a_reload_beside_damaged_keys_ends_no_worker(rig: Rig, redis_client: Redis) -> None:
    keys = Keys(rig.settings.redis.namespace)
    async with rig.worker() as worker:
        await baselines(rig)
        damaged = (keys.meta(), keys.breakers(), keys.polls(SHARD, "shop"), keys.queues(SHARD, "ops"))
        for key in damaged:
            await redis_client.delete(key)
            await redis_client.set(key, "damaged")
        ops = rig.settings.subscription_by_name["ops"]
        moved = ops.model_copy(update={"url": SecretStr(f"{rig.receiver.url}moved")})
        worker.reload(rig.settings.model_copy(update={"subscription_by_name": {"ops": moved}}))
        await polls(rig, LOOPRING, 25)
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        events = await rig.events(1)
        await redis_client.delete(*damaged)
    assert [event["data"]["account"]["name"] for event in events] == ["treasury"]


async def test_a_worker_that_starts_beside_a_damaged_schedule_polls_the_others(
    rig: Rig, redis_client: Redis
) -> None:
    keys = Keys(rig.settings.redis.namespace)
    await redis_client.set(keys.polls(SHARD, "shop"), "damaged")
    async with rig.worker():
        await polls(rig, LOOPRING, 1)
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        events = await rig.events(1)
        await redis_client.delete(keys.polls(SHARD, "shop"))
    assert [event["data"]["account"]["name"] for event in events] == ["treasury"]


async def test_a_threshold_on_a_token_that_never_had_a_balance_fires_and_the_audit_passes(rig: Rig) -> None:
    below = ThresholdSettings(asset="USDT", below="5")
    ops = rig.settings.subscription_by_name["ops"].model_copy(update={"thresholds": (below,)})
    rig.settings = rig.settings.model_copy(update={"subscription_by_name": {"ops": ops}})
    async with rig.worker():
        await rig.events(1)
        rig.sandbox.world.credit(TREASURY, "USDT", "3")
        events = await rig.events(2)
    crossed, credited = (event["data"] for event in events)
    assert types(events) == ["threshold.crossed", "total.increased"]
    assert crossed["asset"] == credited["asset"]
    assert (crossed["threshold"]["value"], credited["before"]) == ("0", crossed["after"])


async def test_lost_asset_names_are_written_again(
    rig: Rig, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_KEEP_NAMES_S", 0.1)
    key = Keys(rig.settings.redis.namespace).names("loopring")
    async with rig.worker(), asyncio.timeout(10):
        for _ in range(2):
            while not await redis_client.exists(key):  # noqa: ASYNC110 - the worker writes
                await asyncio.sleep(0.01)
            noted = await redis_client.hgetall(key)
            assert b'["ETH","Ethereum",18]' in noted.values()
            await redis_client.delete(key)


async def test_a_lost_table_of_names_makes_neither_a_baseline_nor_an_event(
    rig: Rig, redis_client: Redis
) -> None:
    key = Keys(rig.settings.redis.namespace).names("loopring")
    async with rig.worker():
        await baselines(rig)
        rig.sandbox.world.credit(TREASURY, "ETH", "3")
        await rig.events(1)
    await redis_client.delete(key)
    async with rig.worker():
        rig.sandbox.world.credit(TREASURY, "LRC", "2")
        events = await rig.events(2)
        assert await redis_client.hlen(key) == 3
    assert [(event["type"], event["data"]["amount"]) for event in events] == [
        ("total.increased", "3"),
        ("total.increased", "2"),
    ]
    assert [event["data"]["asset"]["decimals"] for event in events] == [18, 18]


async def test_a_worker_stands_by_while_another_layout_is_asked_for(
    rig: Rig, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move, "SETTLE_S", 0.0)
    for module in (members, worker):
        monkeypatch.setattr(module, "LOOK_S", 0.05)
    pipe, keys = Pipe(redis_client), Keys(rig.settings.redis.namespace)
    layout, traffic = Layout(pipe, keys), rig.sandbox.traffic

    async def is_so(number: int, stands_by: bool) -> bool:
        numbers, noted = await layout.read(), await Workers(pipe, keys).read()
        return (numbers.at, numbers.to) == (number, number) and [one.stands_by for one in noted] == [
            stands_by
        ]

    async def moved(number: int, *, stands_by: bool) -> None:
        async with asyncio.timeout(10):
            while not await is_so(number, stands_by):  # noqa: ASYNC110 - the worker writes
                await asyncio.sleep(0.01)

    await layout.want(1)
    async with rig.worker():
        await moved(1, stands_by=True)
        assert (traffic.count(LOOPRING), await redis_client.hget(keys.meta(), "enrolled")) == (0, None)
        for number in (1, 2):
            await layout.want(2)
            await moved(2, stands_by=False)
            await baselines(rig)
            rig.sandbox.world.credit(TREASURY, "ETH", number)
            await rig.events(number)
            await layout.want(1)
            await moved(1, stands_by=True)
            before = traffic.count(LOOPRING)
            await asyncio.sleep(0.2)  # four polls of each account
            assert traffic.count(LOOPRING) == before
        await layout.want(2)
        await moved(2, stands_by=False)


async def test_the_event_log_stays_within_its_share_of_the_servers_memory(namespace: str) -> None:
    with real_server("valkey", "--maxmemory", "4mb") as server:
        async with a_rig(server.url, namespace) as rig:
            keys = Keys(namespace)
            async with rig.worker() as worker, connect(server.url) as client:
                await baselines(rig)
                for number in range(1, 16):
                    for symbol in ("ETH", "LRC", "USDT"):
                        rig.sandbox.world.credit(TREASURY, symbol, number)
                    await polls(rig, LOOPRING, 2)
                assert worker.counters.changes > 45
                noted = await client.hget(keys.sizes(shard_of("treasury")), "log")
                assert noted
                assert int(noted) <= (4 << 20) // 16 // 8


@pytest.mark.slow  # a list that was refused is asked for again after ten seconds
async def test_a_list_of_tokens_that_fails_at_first_suppresses_no_threshold(rig: Rig) -> None:
    rig.sandbox.world.open_account(20_000)
    rig.sandbox.loopring.next_token_answers.append(BAD_GATEWAY)
    treasury = rig.settings.account_by_name["treasury"]
    empty = treasury.model_copy(update={"name": "empty", "account_id": 20_000})
    below = ThresholdSettings(asset="USDT", below="5")
    ops = rig.settings.subscription_by_name["ops"].model_copy(update={"thresholds": (below,)})
    rig.settings = rig.settings.model_copy(
        update={"account_by_name": {"empty": empty}, "subscription_by_name": {"ops": ops}}
    )
    async with rig.worker():
        (crossed,) = await rig.events(1, within_s=20)
    assert types([crossed]) == ["threshold.crossed"]
    assert crossed["data"]["asset"]["symbol"] == "USDT"
