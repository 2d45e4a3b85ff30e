"""A server that answers and refuses: its memory or its disk is full, it became a replica, it evicts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from scene import Scene, a_scene


async def test_a_full_memory_stops_polling_and_heals() -> None:
    async with _a_busy_scene() as scene:
        used = (await scene.redis.info("memory"))["used_memory"]
        await scene.redis.config_set("maxmemory", used - 1_000_000)
        await _is_refusing(scene)
        await scene.redis.config_set("maxmemory", 0)
        await _heals(scene)


async def test_a_full_disk_is_named_and_heals() -> None:
    flags = ("--save", "3600 1000000", "--enable-protected-configs", "yes")
    async with _a_busy_scene(*flags) as scene:
        place = Path(str((await scene.redis.config_get("dir"))["dir"]))
        with TemporaryDirectory() as gone:
            await scene.redis.config_set("dir", gone)
        await scene.redis.bgsave()
        await _is_refusing(scene)
        await scene.redis.config_set("dir", str(place))
        await scene.redis.bgsave()
        await _heals(scene)


async def test_a_primary_that_becomes_a_replica_and_comes_back_has_lost_nothing() -> None:
    async with _a_busy_scene() as scene:
        await scene.redis.replicaof("127.0.0.1", "1")
        await _is_refusing(scene)
        await scene.redis.replicaof("NO", "ONE")
        await _heals(scene)


async def test_a_server_that_evicts_is_refused_at_the_start() -> None:
    flags = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    async with a_scene(accounts=1, flags=flags, leases={}) as scene:
        worker = await scene.start_worker()
        async with asyncio.timeout(10):
            assert await worker.process.wait() == 78
        (complaint,) = worker.errors.splitlines()
    assert "noeviction" in complaint


@asynccontextmanager
async def _a_busy_scene(*flags: str) -> AsyncIterator[Scene]:
    async with a_scene(flags=flags, leases={}) as scene:
        await scene.start_workers(2)
        await scene.begin(changes_per_second=300)
        await scene.until_told(300, within_s=10)
        yield scene


async def _is_refusing(scene: Scene) -> None:
    """For some seconds nothing is told, and it is said once that the server refuses."""
    await asyncio.sleep(1)
    told = scene.receiver.taken
    await asyncio.sleep(4)
    assert scene.receiver.taken == told, "what is not committed is not told"
    for worker in scene.workers:
        assert worker.is_running
        said = worker.lines("store.refusing")
        print(f"{worker.name}: {len(said)} lines, {said[0]['reason'] if said else None}")
        assert len(said) == 1
        assert not worker.lines("store.recovered")


async def _heals(scene: Scene) -> None:
    back_s = await scene.until_told(1, within_s=10)
    await asyncio.gather(*(worker.logged("store.recovered") for worker in scene.workers))
    verdict = await scene.verdict(within_s=45)
    assert verdict.problems == []
    assert back_s <= 5
    assert all(len(worker.lines("store.recovered")) == 1 for worker in scene.workers)
