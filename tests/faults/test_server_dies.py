"""A server that is killed, hangs, cannot be reached, or whose answers are lost."""

import asyncio
import time

from scene import a_scene
from worker_processes import WorkerProcess


async def test_a_killed_server_loses_nothing_and_no_worker_ends() -> None:
    kills = 3
    async with a_scene(leases={}) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=300)
        back_s = []
        for _ in range(kills):
            await asyncio.sleep(2)
            scene.server.kill()
            await asyncio.sleep(scene.random.uniform(0.3, 2))
            scene.server.start()
            back_s.append(await scene.until_told(1, within_s=20))
        print("told again after", [f"{seconds:.2f} s" for seconds in back_s])
        verdict = await scene.verdict(within_s=45)
        assert [worker.process.returncode for worker in workers] == [0, 0]
    assert verdict.problems == []
    assert max(back_s) <= 2.5


async def test_lost_answers_make_nothing_happen_twice() -> None:
    async with a_scene(through_proxy=True) as scene:
        await scene.start_workers(2)
        await scene.begin(changes_per_second=300)
        scene.proxy.lose_every = 5
        await asyncio.sleep(8)
        scene.proxy.lose_every = 0
        print(f"{scene.proxy.lost} answers lost of {scene.proxy.scripts} requests with scripts")
        assert scene.proxy.lost > 50
        verdict = await scene.verdict()
    assert verdict.problems == []
    assert verdict.repeats <= scene.proxy.lost


async def test_a_hanging_server_is_waited_for_quietly() -> None:
    async with a_scene(leases={}) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=300)
        await scene.until_told(300, within_s=10)
        with scene.server.paused():
            await asyncio.sleep(1)  # what it had answered before is still being told
            watch = Watch(workers)
            await asyncio.sleep(7)
            watch.end()
        back_s = await scene.until_told(1, within_s=10)
        verdict = await scene.verdict(within_s=45)
    assert verdict.problems == []
    assert back_s <= 5
    watch.was_quiet()


async def test_a_closed_port_is_waited_for_quietly() -> None:
    async with a_scene(through_proxy=True, leases={}) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=300)
        await scene.until_told(300, within_s=10)
        await scene.proxy.close()
        await asyncio.sleep(1)  # what it had answered before is still being told
        watch = Watch(workers)
        await asyncio.sleep(7)
        watch.end()
        await scene.proxy.open()
        back_s = await scene.until_told(1, within_s=10)
        verdict = await scene.verdict(within_s=45)
    assert verdict.problems == []
    assert back_s <= 5
    watch.was_quiet()


async def test_flushed_scripts_are_sent_again_unnoticed() -> None:
    async with a_scene(leases={}) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=300)
        for _ in range(20):
            await asyncio.sleep(0.1)
            await scene.redis.script_flush()
        verdict = await scene.verdict()
        levels = {line["level"] for worker in workers for line in worker.lines()}
    assert verdict.problems == []
    assert verdict.repeats == 0
    assert verdict.lag_ms(99) <= 1000
    assert levels == {"info"}


class Watch:
    """How much workers do, from its making until `end`."""

    def __init__(self, workers: list[WorkerProcess]) -> None:
        self._workers = workers
        self._started = time.monotonic()
        self._before = [(worker.cpu_s(), len(worker.lines())) for worker in workers]

    def end(self) -> None:
        self.wall_s = time.monotonic() - self._started
        after = [(worker.cpu_s(), len(worker.lines())) for worker in self._workers]
        self.cpu = [(now[0] - then[0]) / self.wall_s for now, then in zip(after, self._before, strict=True)]
        self.lines = [now[1] - then[1] for now, then in zip(after, self._before, strict=True)]
        print(f"cores used: {[f'{share:.3f}' for share in self.cpu]}, lines: {self.lines}")

    def was_quiet(self) -> None:
        assert max(self.cpu) < 0.1
        assert max(self.lines) <= 1 + self.wall_s / 5
