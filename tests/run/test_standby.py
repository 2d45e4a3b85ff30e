"""A worker beside a store in another layout stands by, moves it once it may, and goes on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.rig import TREASURY, Rig, a_rig
from tests.support.scraped import parsed
from tests.support.stores import Store, a_store
from watcher.observe.metrics import Metrics, livez, readyz
from watcher.observe.page.look import Look
from watcher.run.worker import Worker
from watcher.store import move
from watcher.store.exceptions import LayoutAwaited, StoreUnreachable
from watcher.store.layout import Layout, Numbers
from watcher.store.members import Presence, Workers
from watcher.store.move import Mover


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move, "SETTLE_S", 0.0)


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


@pytest.fixture
def store(redis_client: Redis, namespace: str) -> Store:
    return a_store(redis_client, namespace)


async def until(is_so: Callable[[], Any], *, within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not is_so():  # noqa: ASYNC110 - another task makes it so
            await asyncio.sleep(0.01)


async def until_at(store: Store, is_so: Callable[[Numbers], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so(await Layout(store.pipe, store.keys).read()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def older(store: Store, worker: str = "older") -> Presence:
    """Let a worker of 0.1 be seen."""
    presence = Presence(worker, "here", 1, "0.1.0", 0, {})
    await Workers(store.pipe, store.keys).note(presence)
    return presence


async def in_layout_1(rig: Rig, store: Store) -> None:
    """Bring the store to where 0.1 left it: both accounts have a state."""
    async with rig.worker():
        async with asyncio.timeout(10):
            while not await store.polls.read_state("shop", "alice"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while not await store.polls.read_state("loopring", "treasury"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    layout = Layout(store.pipe, store.keys)
    await layout.want(1)
    assert await Mover(store.pipe, store.keys, "back").advance()
    await layout.want(2)


def said(found: list[Any], event: str) -> list[Any]:
    return [line for line in found if line["event"] == event]


async def test_an_unused_store_of_0_1_is_moved_at_once_and_no_account_starts_anew(
    rig: Rig, store: Store
) -> None:
    await in_layout_1(rig, store)
    with capture_logs() as found:
        async with rig.worker():
            await until(lambda: said(found, "worker.started"))
            rig.sandbox.world.credit(TREASURY, "ETH", "1")
            await rig.events(1)
    (moved,) = said(found, "layout.moved")
    assert (moved["layout"], moved["accounts"]) == (2, 2)
    assert moved["duration_ms"] >= 0
    assert said(found, "account.baseline") == []
    assert said(found, "bug") == []


async def test_a_worker_stands_by_until_the_last_one_of_0_1_has_ended(rig: Rig, store: Store) -> None:
    await in_layout_1(rig, store)
    await older(store)
    with capture_logs() as found:
        async with rig.worker() as worker:
            await until(lambda: said(found, "layout.awaited"))
            assert (await readyz(worker)).status == 200, "a rolling deploy must go on"
            assert (await livez(worker)).status == 200
            exposed = parsed((await Metrics(worker).text()).decode())
            assert exposed.value("watcher_stands_by") == 1
            assert not exposed.has("watcher_store_up"), "Redis works, and is in another layout"
            assert "stands by" in orjson.loads(await Look(worker).json())["error"]
            (line,) = said(found, "layout.awaited")
            assert line["workers"] == ["older (0.1.0)"]
            assert (line["layout"], "watcher store layout" in line["reason"]) == (1, True)
            (me,) = [one for one in await Workers(store.pipe, store.keys).read() if one.worker == worker.name]
            assert (me.layouts, me.stands_by) == ((2,), True)
            rig.sandbox.world.credit(TREASURY, "ETH", "1")
            await asyncio.sleep(1.5)
            assert (await Layout(store.pipe, store.keys).read()).at == 1
            assert not rig.receiver.events
            assert len(said(found, "layout.awaited")) == 1
            await Workers(store.pipe, store.keys).leave("older")
            await rig.events(1)
            (me,) = [one for one in await Workers(store.pipe, store.keys).read() if one.worker == worker.name]
            assert not me.stands_by
            exposed = parsed((await Metrics(worker).text()).decode())
            assert (exposed.value("watcher_stands_by"), exposed.value("watcher_store_up")) == (0, 1)
    assert len(said(found, "worker.started")) == 1


async def test_a_standby_is_logged_once_a_minute(
    rig: Rig, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("watcher.run.members._SAY_S", 0.0)
    monkeypatch.setattr("watcher.run.members.LOOK_S", 0.01)
    await in_layout_1(rig, store)
    await older(store)
    with capture_logs() as found:
        async with rig.worker():
            await until(lambda: len(said(found, "layout.awaited")) >= 3)
        await Workers(store.pipe, store.keys).leave("older")
        async with rig.worker():
            await until(lambda: said(found, "worker.started"))


async def test_a_worker_that_stands_by_can_be_stopped_at_once(rig: Rig, store: Store) -> None:
    await in_layout_1(rig, store)
    await older(store)
    worker = Worker(rig.settings, name="asked")
    running = asyncio.create_task(worker.run())
    with capture_logs() as found:
        await until(lambda: said(found, "layout.awaited"))
        worker.stop()
        await asyncio.wait_for(running, 1)
    seen = await Workers(store.pipe, store.keys).read()
    assert [one.worker for one in seen] == ["older"]
    await Workers(store.pipe, store.keys).leave("older")
    assert await Mover(store.pipe, store.keys, "later").advance()


async def test_a_worker_that_ends_in_the_middle_of_the_move_leaves_it_to_the_next_one(
    rig: Rig, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_layout_1(rig, store)
    hung, states = asyncio.Event(), move._Up._states

    async def hang(*_: Any) -> None:
        hung.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(move._Up, "_states", hang)
    worker = Worker(rig.settings, name="ends")
    running = asyncio.create_task(worker.run())
    await asyncio.wait_for(hung.wait(), 10)
    worker.stop()
    await asyncio.wait_for(running, 2)
    monkeypatch.setattr(move._Up, "_states", states)
    assert not (await Layout(store.pipe, store.keys).read()).rests
    with capture_logs() as found:
        async with rig.worker():
            await until(lambda: said(found, "worker.started"), within_s=15)
    assert said(found, "account.baseline") == []


async def test_a_worker_drains_and_stands_by_while_another_layout_is_asked_for(
    rig: Rig, store: Store
) -> None:
    layout = Layout(store.pipe, store.keys)
    with capture_logs() as found:
        async with rig.worker() as worker:
            await until(lambda: len(said(found, "account.baseline")) == 2)
            rig.sandbox.world.credit(TREASURY, "ETH", "1")
            await rig.events(1)
            await layout.want(1)
            await until_at(store, lambda numbers: numbers.rests and numbers.at == 1)
            assert (await readyz(worker)).status == 200
            assert worker.in_flight == 0
            rig.sandbox.world.credit(TREASURY, "ETH", "1")
            await asyncio.sleep(1.2)
            assert len(rig.receiver.events) == 1
            await layout.want(2)
            await rig.events(2)
    assert [line["layout"] for line in said(found, "layout.moved")] == [1, 2]
    assert len(said(found, "worker.started")) == 2
    assert len(said(found, "account.baseline")) == 2
    assert said(found, "bug") == said(found, "state.lost") == []


async def test_run_once_moves_a_store_that_no_worker_uses(rig: Rig, store: Store) -> None:
    await in_layout_1(rig, store)
    worker = Worker(rig.settings, name="once")
    await asyncio.wait_for(worker.run(once=True), 20)
    assert worker.has_read_all
    assert (await Layout(store.pipe, store.keys).read()).is_ready


async def test_run_once_says_which_workers_must_end_first(rig: Rig, store: Store) -> None:
    await in_layout_1(rig, store)
    await older(store)
    with pytest.RaisesGroup(
        pytest.RaisesExc(StoreUnreachable, match=r"older of version 0\.1\.0; end them, and run again")
    ):
        await asyncio.wait_for(Worker(rig.settings, name="once").run(once=True), 10)
    workers = Workers(store.pipe, store.keys)
    assert [one.worker for one in await workers.read()] == ["older"], "it leaves no trace"
    await workers.leave("older")
    await asyncio.wait_for(Worker(rig.settings, name="once").run(once=True), 20)


async def test_run_once_says_that_the_store_is_kept_for_0_1(rig: Rig, store: Store) -> None:
    await in_layout_1(rig, store)
    await Layout(store.pipe, store.keys).want(1)
    with pytest.RaisesGroup(pytest.RaisesExc(LayoutAwaited, match="watcher store layout --to 2")):
        await asyncio.wait_for(Worker(rig.settings, name="once").run(once=True), 10)
    await Layout(store.pipe, store.keys).want(2)
    await asyncio.wait_for(Worker(rig.settings, name="once").run(once=True), 20)


async def test_run_once_does_not_move_a_store_back(rig: Rig, store: Store) -> None:
    await Layout(store.pipe, store.keys).want(1)
    with pytest.RaisesGroup(pytest.RaisesExc(LayoutAwaited, match="is to be moved back to layout 1")):
        await asyncio.wait_for(Worker(rig.settings, name="once").run(once=True), 10)
    assert (await Layout(store.pipe, store.keys).read()).at == 2


async def test_run_once_does_not_wait_for_a_long_move(
    rig: Rig, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("watcher.run.members._PATIENCE_S", 0.5)
    await in_layout_1(rig, store)
    layout = Layout(store.pipe, store.keys)
    await layout.begin(await layout.read(), 1)
    await layout.take_lease("another")
    with pytest.RaisesGroup(pytest.RaisesExc(StoreUnreachable, match="run again when that is done")):
        await asyncio.wait_for(Worker(rig.settings, name="once").run(once=True), 10)
    await layout.leave_lease("another")
    await asyncio.wait_for(Worker(rig.settings, name="once").run(once=True), 20)


async def test_errors_of_redis_are_waited_for(
    rig: Rig, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_layout_1(rig, store)
    key = store.keys.sizes(0)
    await store.pipe.command("SET", key, "not ours")
    with capture_logs() as found:
        async with rig.worker():
            await until(lambda: said(found, "store.refusing"))
            assert "sizes" in said(found, "store.refusing")[0]["reason"]
            await store.pipe.command("UNLINK", key)
            await until(lambda: said(found, "worker.started"))
    assert said(found, "bug") == []
