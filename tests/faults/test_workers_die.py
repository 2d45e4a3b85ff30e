"""Workers that are killed, stopped, frozen and replaced under load."""

import asyncio
import signal
import time

import pytest
from recording_receiver import Arrival
from scene import SHORT_LEASES, Scene, a_scene
from worker_processes import WorkerProcess

STEPS = ("fetched", "commit sent", "commit answered", "POST sent", "2xx read", "settle sent")


async def test_killed_workers_lose_nothing() -> None:
    kills = 5
    async with a_scene() as scene:
        await scene.start_workers(4)
        await scene.begin(changes_per_second=300)
        for _ in range(kills):
            await asyncio.sleep(2)
            await scene.random.choice(scene.running).kill()
            await scene.start_worker()
        verdict = await scene.verdict()
    assert verdict.problems == []
    assert verdict.repeats <= 32 * kills


@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_after_any_step_loses_nothing(step: str) -> None:
    crashes = 3
    async with a_scene(accounts=30) as scene:
        await scene.start_workers(1)
        await scene.begin(changes_per_second=90)
        for _ in range(crashes):
            await _crash(scene, step)
        verdict = await scene.verdict()
    assert verdict.problems == []
    if step in STEPS[:3]:
        assert verdict.repeats == 0, "nothing was sent that could be repeated"


async def _crash(scene: Scene, step: str) -> None:
    """Start a worker that crashes when it reaches a step, and wait until it has."""
    times = scene.random.randint(1, 20)
    if step == "POST sent":
        worker = await scene.start_worker()
        await worker.logged("worker.started")
        others = {other.process.pid for other in scene.running if other is not worker}
        await _kill_at_its_post(scene, worker, times)
    else:
        worker = await scene.start_worker(crash_at=step, crash_after=times)
    async with asyncio.timeout(15):
        assert await worker.process.wait() == -signal.SIGKILL
