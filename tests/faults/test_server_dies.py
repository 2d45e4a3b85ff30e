"""A server that is killed, hangs, cannot be reached, or whose answers are lost."""

import asyncio

from scene import a_scene


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
