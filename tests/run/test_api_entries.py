"""Entries of the API are polled and delivered while workers run, and survive a reload or a loss."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from tests.support.directory import Programs, with_key
from tests.support.rig import ALICE, MK, TREASURY, Rig, a_rig, workers
from watcher.receiver import Fail
from watcher.run import upkeep, verification
from watcher.run.worker import Worker
from watcher.settings import Settings
from watcher.store.directory import Directory
from watcher.store.keys import SHARDS
from watcher.store.opening import open_store

SOON = {"interval": "1s"}


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        rig.settings = with_key(rig.settings)
        yield rig


@asynccontextmanager
async def programs_of(rig: Rig) -> AsyncIterator[Programs]:
    async with open_store(rig.settings.redis) as store:
        yield Programs(Directory(store.pipe, store.keys), rig.settings.redis.namespace)


async def until(is_so: Callable[[], object], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not is_so():  # noqa: ASYNC110 - of many parts
            await asyncio.sleep(0.005)


def polled(worker: Worker, name: str) -> bool:
    """Whether this worker has taken in an answer for an account."""
    assert worker.configured
    return any(name in polls.poller._settled for polls in worker.configured.poll_work.by_provider.values())


def without(settings: Settings, *accounts: str) -> Settings:
    left = {name: one for name, one in settings.account_by_name.items() if name not in accounts}
    return settings.model_copy(update={"account_by_name": left})


def begun(*started: Worker) -> Callable[[], bool]:
    return lambda: all(
        worker.has_begun and worker.configured and worker.configured.is_begun for worker in started
    )


async def follow(*started: Worker) -> None:
    """What these workers do once a second."""
    for worker in started:
        assert worker.followed
        await worker.followed.follow_now()


async def test_an_account_added_by_the_api_is_polled_at_once_and_delivered_to_a_new_subscription(
    rig: Rig,
) -> None:
    """A worker that finds it due before it knows it looks what was added, and does not leave it to others."""
    rig.settings = without(rig.settings, "alice").model_copy(update={"subscription_by_name": {}})
    async with rig.worker() as worker, programs_of(rig) as programs:
        await until(begun(worker))
        began = asyncio.get_running_loop().time()
        await programs.put_account("alice", "shop", of={"email": ALICE}, currencies=[MK], **SOON)
        await until(lambda: polled(worker, "alice"))
        assert asyncio.get_running_loop().time() - began < 0.9, "before it would look by itself"
        await programs.put_subscription("hook", rig.receiver.url, accounts=["alice"])
        await follow(worker)
        rig.sandbox.world.credit(ALICE, "MK", "3.25")
        (event,) = await rig.events(1)
        assert event["type"] == "total.increased"
        assert event["subscription"]["name"] == "hook"
        await programs.directory.delete("account", "alice")
        await follow(worker)
        assert not polled(worker, "alice")


async def test_events_wait_until_their_url_has_answered_a_ping(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "VERIFY_S", 0.02)
    for name, value in {"BACKOFF_MS": (20,), "SPACING_MS": 1, "PATIENCE_MS": 10**15}.items():
        monkeypatch.setattr(verification, name, value)
    rig.settings = rig.settings.model_copy(update={"subscription_by_name": {}})
    rig.receiver.fail = Fail(500, times=1)  # each ping is an event of its own
    async with rig.worker() as worker, programs_of(rig) as programs:
        await until(begun(worker))
        await until(lambda: polled(worker, "treasury"))
        await programs.put_subscription("hook", rig.receiver.url, is_verified=False)
        await follow(worker)
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        await until(lambda: worker.counters.changes and len(rig.receiver.receipts) >= 2)
        assert rig.receiver.taken == 0
        rig.receiver.fail = None
        events = await rig.events(2)
        assert [event["type"] for event in events] == ["subscription.ping", "total.increased"]
        assert worker.followed
        assert worker.followed.unverified() == []
    heard = [receipt.event["type"] for receipt in rig.receiver.receipts if receipt.event]
    assert heard == ["subscription.ping"] * (len(heard) - 1) + ["total.increased"]


async def test_a_reload_removes_nothing_that_the_api_added(rig: Rig) -> None:
    file = without(rig.settings, "alice")
    async with rig.worker(file) as worker, programs_of(rig) as programs:
        await until(begun(worker))
        await programs.put_account("alice", "shop", of={"email": ALICE}, currencies=[MK], **SOON)
        await until(lambda: polled(worker, "alice"))
        assert worker.configured
        shop = worker.configured.poll_work.by_provider["shop"]
        worker.reload(without(file, "treasury"))
        await until(lambda: not worker.is_reloading)
        assert [*worker.settings.account_by_name] == ["alice"]
        assert worker.configured.poll_work.by_provider["shop"] is shop
        async with open_store(rig.settings.redis) as store:
            keys = [store.keys.polls(shard, "shop") for shard in range(SHARDS)]
            found = [await store.pipe.command("ZRANGE", key, 0, -1) for key in keys]
            assert [name for names in found for name in names] == [b"alice"]
        await programs.put_subscription("hook", rig.receiver.url)
        await until(lambda: "hook" in worker.settings.subscription_by_name, within_s=5)


async def test_a_worker_without_the_key_leaves_encrypted_records_to_another(rig: Rig) -> None:
    """But it queues the events of its own accounts for all that want them."""
    locked = rig.settings.model_copy(update={"api": None, "subscription_by_name": {}})
    opens = without(rig.settings, "treasury", "alice").model_copy(update={"subscription_by_name": {}})
    async with workers(locked, "locked") as (without_key,), programs_of(rig) as programs:
        await until(begun(without_key))
        await programs.put_subscription("hook", rig.receiver.url)
        await follow(without_key)
        await until(lambda: polled(without_key, "treasury"))
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        await until(lambda: without_key.counters.changes)
        assert without_key.counters.deliveries == 0
        async with workers(opens, "opens") as (with_the_key,):
            await until(lambda: with_the_key.counters.deliveries)
    assert without_key.counters.deliveries == 0


@pytest.mark.fault
async def test_a_wiped_redis_is_given_the_directory_again(rig: Rig) -> None:
    """Its accounts get new baselines, and there is no storm."""
    file = without(rig.settings, "alice")
    rig.is_damaged = True
    async with workers(file, "w1", "w2") as started, programs_of(rig) as programs:
        await until(begun(*started))
        await programs.put_account("alice", "shop", of={"email": ALICE}, currencies=[MK], **SOON)
        await programs.put_subscription("hook", rig.receiver.url)
        await follow(*started)
        await until(lambda: any(polled(worker, "alice") for worker in started))
        async with open_store(rig.settings.redis) as store:
            with capture_logs() as lines:
                for key in await store.pipe.command("KEYS", f"{store.keys.namespace}:*"):
                    await store.pipe.command("DEL", key)
                await until(
                    lambda: (
                        {"directory.restored", "state.lost"} < {line["event"] for line in lines}
                        and [
                            one
                            for one in lines
                            if one.get("account") == "alice" and one["event"] == "account.baseline"
                        ]
                    )
                )
        counts = await programs.directory.counts()
        assert counts == {"account": 1, "subscription": 1}
        rig.sandbox.world.credit(ALICE, "MK", "1")
        await until(lambda: rig.receiver.events)
    assert {event["type"] for event in rig.receiver.events} == {"total.increased"}
