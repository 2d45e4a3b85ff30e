"""Workers that are killed, stopped, frozen and replaced under load."""

import asyncio
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.faults.recording_receiver import Arrival, Said
from tests.faults.scene import AS_IT_COMES, BOUNDED, IN_FLIGHT, LEASE_S, LONG, SHORT_LEASES, Scene, a_scene
from tests.faults.worker_processes import WorkerProcess

pytestmark = BOUNDED

STEPS = ("fetched", "commit sent", "commit answered", "POST sent", "2xx read", "settle sent")
FREEZES = ("fetched", "commit sent", "POST sent", "2xx read", "settle sent")
REACHED_S = 50
"""Until a worker has started and come to a step twenty times, on a busy machine."""

PRESSED_TWICE_S = 0.01
"""Two signals closer than that are one key press, which a wrapper passed on."""

VOID = {"fetched": "poll.discarded", "POST sent": "lease.lost", "2xx read": "lease.lost"}
"""What a worker says that was frozen there: it comes too late, and the store refuses it."""


@pytest.mark.parametrize(
    ("kills", "every_s", "leases", "lease_s"),
    [(5, 1.2, SHORT_LEASES, LEASE_S), pytest.param(30, 2, AS_IT_COMES, 15, marks=LONG)],
)
async def test_killed_workers_lose_nothing(
    kills: int, every_s: float, leases: Mapping[str, Any], lease_s: float
) -> None:
    async with a_scene(leases=leases) as scene:
        await scene.start_workers(4)
        await scene.begin(changes_per_second=300)
        for _ in range(kills):
            await asyncio.sleep(every_s)
            await scene.random.choice(scene.running).kill()
            await scene.start_worker()
        verdict = await scene.verdict(within_s=50)
    assert verdict.problems == []
    assert verdict.repeats <= IN_FLIGHT * kills
    assert verdict.lag_ms(99) <= 1000 * (lease_s + 1)


@pytest.mark.parametrize(
    ("rounds", "lease_s"),
    # Six that start take both cores for seconds, again and again: a lease must last longer than that.
    [(1, LEASE_S), *(pytest.param(25, 8, marks=LONG, id=f"part {part} of 4") for part in range(1, 5))],
)
async def test_a_crash_after_any_step_loses_nothing(rounds: int, lease_s: float) -> None:
    async with a_scene(accounts=60, leases={"lease_s": lease_s}) as scene:
        await scene.start_workers(1)
        await scene.begin(changes_per_second=60)  # one worker must keep up while six start
        for _ in range(rounds):
            await asyncio.gather(*(_crash(scene, step) for step in STEPS))
        verdict = await scene.verdict()
        crashed = {worker.name for worker in scene.workers if worker.process.returncode}
    assert verdict.problems == []
    assert {first.worker for first, _ in verdict.repeated} <= crashed, "only a crash repeats anything"


@pytest.mark.parametrize(("rounds", "leases"), [(1, 1.5), pytest.param(4, 3, marks=LONG)])
async def test_workers_that_freeze_at_any_step_beyond_their_leases_do_no_harm(
    rounds: int, leases: float
) -> None:
    thawed_at: dict[str, float] = {}
    async with a_scene(accounts=60) as scene:
        await scene.start_workers(1)
        await scene.begin(changes_per_second=60)
        for _ in range(rounds):
            frozen = await asyncio.gather(*(_freeze(scene, step) for step in FREEZES))
            await asyncio.sleep(leases * LEASE_S)
            for worker in frozen:
                worker.send(signal.SIGCONT)
                thawed_at[worker.name] = time.time()
            for step, worker in zip(FREEZES, frozen, strict=True):
                if step in VOID:
                    await worker.logged(VOID[step])
            assert {await worker.terminate() for worker in frozen} == {0}
        verdict = await scene.verdict(within_s=50)
    stale = [again for _, again in verdict.repeated if again.at > thawed_at.get(again.worker, math.inf)]
    print(f"{len(thawed_at)} stops, {len(stale)} POSTs from a time that was over")
    assert verdict.problems == []
    assert len(stale) <= len(thawed_at), "at most one per stop, over all of them"
    # A stop may catch several queues between the look at the lease and the POST, but none of them twice.
    assert max(Counter((each.worker, each.account) for each in stale).values(), default=0) <= 1


@pytest.mark.parametrize(
    ("leases", "wait_s"), [(SHORT_LEASES, LEASE_S + 1), pytest.param(AS_IT_COMES, 60, marks=LONG)]
)
async def test_after_the_last_worker_was_killed_the_next_one_goes_on_from_there(
    leases: Mapping[str, Any], wait_s: float
) -> None:
    async with a_scene(leases=leases) as scene:
        scene.receiver.delay_s = 0.2  # so that deliveries are waiting when all workers die
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=300)
        await scene.until_delivered(200, within_s=20)
        await asyncio.gather(*(worker.kill() for worker in workers))
        scene.receiver.delay_s = 0
        await asyncio.sleep(wait_s)
        await scene.start_workers(1)
        first_s = await scene.until_delivered(1, within_s=10)
        verdict = await scene.verdict()
    assert verdict.problems == []
    assert verdict.repeats <= IN_FLIGHT * len(workers)
    assert first_s <= 5


@pytest.mark.parametrize(("rounds", "rate"), [(3, 150), pytest.param(50, 300, marks=LONG)])
async def test_a_worker_that_drains_repeats_nothing_and_others_take_over(rounds: int, rate: float) -> None:
    async with a_scene(leases=AS_IT_COMES) as scene:
        await scene.start_workers(2)
        await scene.begin(changes_per_second=rate)
        began = time.monotonic()
        for _ in range(rounds):
            (newcomer,) = await scene.start_workers(1)
            await asyncio.sleep(0.5)
            leaver = scene.random.choice([worker for worker in scene.running if worker is not newcomer])
            assert await leaver.terminate(within_s=5) == 0
        gap_s = scene.provider.longest_gap_s(began, time.monotonic())
        verdict = await scene.verdict()
    print(f"longest time between two polls of an account: {gap_s:.2f} s")
    assert verdict.problems == []
    assert verdict.repeats == 0
    assert verdict.lag_ms(99) <= 1000
    assert gap_s <= 2.5, "an interval, a second to take over, and what a busy machine adds"


@pytest.mark.parametrize(("rounds", "workers", "rate"), [(1, 3, 100), pytest.param(10, 4, 300, marks=LONG)])
async def test_a_rolling_restart_is_invisible_to_receivers(rounds: int, workers: int, rate: float) -> None:
    async with a_scene(leases=AS_IT_COMES) as scene:
        await scene.start_workers(workers)
        await scene.begin(changes_per_second=rate)
        for _ in range(rounds):
            for worker in scene.running:
                assert await worker.terminate(within_s=5) == 0
                await scene.start_workers(1)
        verdict = await scene.verdict()
    assert verdict.problems == []
    assert verdict.repeats == 0
    assert verdict.lag_ms(99) <= 2000


async def test_a_second_signal_ends_a_worker_at_once_and_loses_nothing() -> None:
    async with a_scene(accounts=40) as scene:
        worker, _ = await scene.start_workers(2)
        await scene.begin(changes_per_second=60)
        await scene.until_delivered(20, within_s=20)
        hangs = asyncio.Event()

        def hang(arrival: Arrival) -> Said:
            if arrival.worker == worker.name:
                hangs.set()
            return Said(after_s=20)

        scene.receiver.respond = hang
        async with asyncio.timeout(20):
            await hangs.wait()
        worker.send(signal.SIGTERM)
        await worker.logged("worker.draining")
        await asyncio.sleep(2 * PRESSED_TWICE_S)
        worker.send(signal.SIGINT)
        assert await asyncio.wait_for(worker.process.wait(), 5) == 128 + signal.SIGINT
        scene.receiver.respond = lambda _arrival: Said()
        scene.receiver.is_hung_no_more.set()
        verdict = await scene.verdict()
    assert verdict.problems == []


async def test_a_worker_that_is_stopped_while_it_starts_ends_cleanly() -> None:
    async with a_scene(accounts=1) as scene:
        worker = await scene.start_worker()
        assert await worker.terminate() == 0
        assert worker.lines("worker.stopped")


async def _crash(scene: Scene, step: str) -> None:
    """Start a worker that crashes when it reaches a step for the n-th time, and wait until it has."""
    times = scene.random.randint(1, 20)
    if step == "POST sent":  # no place in the program is behind the last byte: its receiver ends it
        worker = await scene.start_worker()
        scene.receiver.notice = _striker(worker, times, signal.SIGKILL)
    else:
        worker = await scene.start_worker(crash_at=step, crash_after=times)
    async with asyncio.timeout(REACHED_S):
        assert await worker.process.wait() == -signal.SIGKILL


async def _freeze(scene: Scene, step: str) -> WorkerProcess:
    """Start a worker that is stopped when it reaches a step for the n-th time, and wait until it is."""
    times = scene.random.randint(1, 20)
    if step == "POST sent":
        worker = await scene.start_worker()
        scene.receiver.notice = _striker(worker, times, signal.SIGSTOP)
    else:
        worker = await scene.start_worker(freeze_at=step, freeze_after=times)
    await worker.until_frozen(within_s=REACHED_S)
    return worker


def _striker(worker: WorkerProcess, times: int, number: signal.Signals) -> Callable[[Arrival], None]:
    left = times

    def notice(arrival: Arrival) -> None:
        nonlocal left
        if arrival.worker == worker.name:
            left -= 1
            if left == 0:
                worker.send(number)

    return notice
