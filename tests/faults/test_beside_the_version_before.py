"""Workers of version 0.1 and of this one on one store: moved up, rolling, killed, delayed, and back.

`.ci/run` installs v0.1.0 as a package in an environment of its own; WATCHER_BEFORE names its Python.
"""

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from tests.faults.scene import AS_IT_COMES, NAMESPACE, Scene, a_scene
from tests.faults.worker_processes import WorkerProcess
from tests.support.old_store import without_numbers
from tests.support.stores import a_store
from watcher.store.keys import SHARDS, Keys, OldKeys
from watcher.store.layout import LEASE_MS
from watcher.store.members import GONE_AFTER

BEFORE = os.environ.get("WATCHER_BEFORE", "")

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(300),
    pytest.mark.may_skip,
    pytest.mark.skipif(not BEFORE, reason="WATCHER_BEFORE names no Python with that version: see .ci/run"),
]

CHANGES = 60
LEASE_S = 30
"""As the program comes: a poll in the hand of a worker that was killed is free again after so long."""

GONE_S = GONE_AFTER.total_seconds()


async def more(scene: Scene) -> None:
    await scene.until_delivered(CHANGES, within_s=LEASE_S)


async def begun(scene: Scene, count: int) -> list[WorkerProcess]:
    """Let workers of 0.1 work."""
    scene.keys = OldKeys(NAMESPACE)
    workers = await scene.start_workers(count, python=BEFORE)
    await scene.begin(changes_per_second=60)
    scene.keys = Keys(NAMESPACE)
    await more(scene)
    return workers


async def standing_by(scene: Scene, **faults: Any) -> WorkerProcess:
    """Start a worker of this version, which finds layout 1."""
    worker = await scene.start_worker(**faults)
    await worker.logged("layout.awaited")
    assert not worker.lines("worker.started")
    return worker


async def work(*workers: WorkerProcess, times: int = 1) -> None:
    await asyncio.gather(*(worker.logged("worker.started", times, within_s=60) for worker in workers))


async def test_a_rolling_deploy_up_and_back_and_up_again_loses_nothing() -> None:
    async with a_scene(accounts=60, leases=AS_IT_COMES) as scene:
        older = await begun(scene, 3)
        newer: list[WorkerProcess] = []
        for old in older:
            newer.append(await standing_by(scene))
            await more(scene)  # by those of 0.1 that are left
            assert await old.terminate() == 0
        started = time.monotonic()
        await work(*newer)
        print(f"{time.monotonic() - started:.1f} s after the last worker of 0.1 had ended, all others worked")
        assert sum(len(worker.lines("layout.moved")) for worker in newer) == 1
        await more(scene)
        refused = await scene.start_worker(python=BEFORE)
        assert await refused.process.wait() == 78
        scene.workers.remove(refused)  # which says so on stderr

        said = await scene.layout("--to", "1")
        assert (said["layout"], said["wanted"], {one["stands_by"] for one in said["workers"]}) == (
            1,
            1,
            {True},
        )
        assert [worker.is_running for worker in newer] == [True] * 3
        older = await scene.start_workers(2, python=BEFORE)
        await more(scene)
        assert {await old.terminate() for old in older} == {0}

        await scene.layout("--to", "2")
        await work(*newer, times=2)
        await more(scene)
        verdict = await scene.verdict(within_s=2 * LEASE_S)
    assert verdict.problems == []
    assert (verdict.lost, verdict.out_of_order) == (0, 0)


async def test_a_worker_that_is_killed_in_the_middle_of_the_move_is_followed_by_the_next_one() -> None:
    async with a_scene(accounts=60, leases=AS_IT_COMES) as scene:
        (old,) = await begun(scene, 1)
        scene.receiver.fail_every = 2  # so that something waits
        await more(scene)
        first = await standing_by(scene, crash_at="move sent", crash_after=60)
        assert await old.terminate() == 0
        async with asyncio.timeout(30):
            assert await first.process.wait() == -signal.SIGKILL
        said = await scene.layout()
        assert (said["layout"], said["moving_to"]) == (1, 2)
        moved = sum(one["is_moved"] for one in said["shards"])
        assert 0 < moved < SHARDS
        second = await scene.start_worker(crash_at="move sent", crash_after=60)
        async with asyncio.timeout(30):
            assert await second.process.wait() == -signal.SIGKILL
        third = await scene.start_worker()
        await work(third)
        scene.receiver.fail_every = 0
        await more(scene)

        scene.receiver.fail_every = 2
        await more(scene)
        back = asyncio.create_task(scene.layout("--to", "1"))
        await third.logged("layout.awaited", within_s=40)
        await back
        scene.receiver.fail_every = 0
        (old,) = await scene.start_workers(1, python=BEFORE)
        await more(scene)
        assert await old.terminate() == 0
        await scene.layout("--to", "2")
        verdict = await scene.verdict(within_s=2 * LEASE_S)
    assert verdict.problems == []
    assert (verdict.lost, verdict.out_of_order) == (0, 0)


@pytest.mark.long
async def test_a_server_that_dies_in_the_middle_of_the_move_takes_nothing_with_it() -> None:
    async with a_scene(accounts=60, leases=AS_IT_COMES) as scene:
        (old,) = await begun(scene, 1)
        scene.receiver.fail_every = 2  # so that something waits
        await more(scene)
        mover = await standing_by(scene, freeze_at="move sent", freeze_after=60)
        assert await old.terminate() == 0
        await mover.until_frozen()
        assert 0 < sum(one["is_moved"] for one in (await scene.layout())["shards"]) < SHARDS
        await asyncio.to_thread(scene.server.restart)
        mover.send(signal.SIGCONT)
        await work(mover)
        scene.receiver.fail_every = 0
        await more(scene)
        back = asyncio.create_task(scene.layout("--to", "1"))
        await mover.logged("layout.awaited", times=2, within_s=40)
        await asyncio.to_thread(scene.server.restart)
        await asyncio.gather(back, return_exceptions=True)  # it may have been cut off
        assert (await scene.layout("--to", "1"))["layout"] == 1
        await scene.layout("--to", "2")
        await work(mover, times=2)
        verdict = await scene.verdict(within_s=2 * LEASE_S)
    assert verdict.problems == []
    assert (verdict.lost, verdict.out_of_order) == (0, 0)


@pytest.mark.long
async def test_a_delayed_worker_of_0_1_changes_nothing_during_or_after_the_move() -> None:
    async with a_scene(accounts=60, leases=AS_IT_COMES) as scene:
        straggler, other = await begun(scene, 2)
        straggler.send(signal.SIGSTOP)  # with polls and deliveries in hand
        await more(scene)
        mover = await standing_by(scene, freeze_at="move sent", freeze_after=60)
        assert await other.terminate() == 0
        await mover.until_frozen(within_s=GONE_S + 30)
        assert (await scene.layout())["moving_to"] == 2
        store = a_store(scene.redis, NAMESPACE)
        before = await store.contents()
        straggler.send(signal.SIGCONT)
        await asyncio.sleep(5)
        straggler.send(signal.SIGSTOP)
        await straggler.until_frozen()
        assert changed(before, await store.contents()) == []
        next_one = await scene.start_worker()
        await next_one.logged("worker.started", within_s=LEASE_MS / 1000 + 20)
        mover.send(signal.SIGCONT)
        await work(mover)
        straggler.send(signal.SIGCONT)
        await more(scene)
        await asyncio.sleep(5)
        old = OldKeys(NAMESPACE)
        found = await store.contents()
        assert [key for key in found if ":lane" in key or ":state:" in key or key.endswith(":log")] == []
        assert old.breakers() not in found
        await straggler.kill()
        scene.workers.remove(straggler)
        verdict = await scene.verdict(within_s=2 * LEASE_S)
    assert verdict.problems == []
    assert (verdict.lost, verdict.out_of_order) == (0, 0)


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name the keys that differ, but for what says which workers are there and where 0.1 is to look, and for
    a provider's rate, which expires by itself and which a worker of 0.1 and this one share."""
    spared, rate = (":workers", ":mover", ":due"), f"{NAMESPACE}:rate:"
    return [
        key
        for key in {*before, *after}
        if before.get(key) != after.get(key) and not key.endswith(spared) and not key.startswith(rate)
    ]


async def test_data_of_0_1_comes_back_byte_for_byte() -> None:
    async with a_scene(accounts=30, leases=AS_IT_COMES) as scene:
        scene.receiver.fail_every = 3
        (old,) = await begun(scene, 1)
        await more(scene)
        await scene.provider.rest()
        await old.kill()  # as it is in the middle of its work
        await scene.redis.delete(Keys(NAMESPACE).workers())
        store = a_store(scene.redis, NAMESPACE)
        before = without_numbers(await store.contents())
        assert [key for key in before if ":lane:" in key]
        await scene.layout("--to", "2")
        assert await scene.audit() == []
        await scene.layout("--to", "1")
        after = without_numbers(await store.contents())
        for shard in range(SHARDS):
            after.pop(Keys(NAMESPACE).due_polls(shard), None)  # 0.1 has none
            for contents in (before, after):  # which may still name what was delivered
                contents.pop(OldKeys(NAMESPACE).due_subscriptions(shard), None)
        before.pop(OldKeys(NAMESPACE).breakers(), None)  # it had failed once or twice: that counts anew
        assert after == before
