"""A server that answers and refuses: its memory or its disk is full, it became a replica, it evicts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from redis.asyncio import Redis

from tests.faults.scene import AS_IT_COMES, BOUNDED, IN_FLIGHT, LONG, Scene, a_scene
from tests.support.servers import ENGINES

pytestmark = BOUNDED

WORKERS = 2
CONFIGURABLE = ("--save", "3600 1000000", "--enable-protected-configs", "yes")


@asynccontextmanager
async def full_memory(redis: Redis) -> AsyncIterator[None]:
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", used - 1_000_000)
    yield
    await redis.config_set("maxmemory", 0)


@asynccontextmanager
async def full_disk(redis: Redis) -> AsyncIterator[None]:
    place = Path(str((await redis.config_get("dir"))["dir"]))
    with TemporaryDirectory() as gone:
        await redis.config_set("dir", gone)
    await redis.bgsave()
    yield
    await redis.config_set("dir", str(place))
    await redis.bgsave()


@asynccontextmanager
async def replica(redis: Redis) -> AsyncIterator[None]:
    await redis.replicaof("127.0.0.1", "1")
    yield
    await redis.replicaof("NO", "ONE")


REFUSALS = {"OOM": full_memory, "MISCONF": full_disk, "READONLY": replica}


@pytest.mark.parametrize(
    ("engine", "for_s"), [("valkey", 2), *(pytest.param(engine, 30, marks=LONG) for engine in ENGINES)]
)
async def test_a_server_that_refuses_writes_is_named_and_waited_for(engine: str, for_s: float) -> None:
    async with a_scene(flags=CONFIGURABLE, engine=engine, leases=AS_IT_COMES) as scene:
        scene.receiver.delay_s = 0.02  # so that something is in hand whenever it begins
        await scene.start_workers(WORKERS)
        await scene.begin(changes_per_second=200)
        for times, (name, refusal) in enumerate(REFUSALS.items(), 1):
            await scene.until_delivered(100, within_s=10)
            await _refuse(scene, refusal(scene.redis), for_s)
            back_s = await scene.until_delivered(1, within_s=10)
            assert back_s <= 5
            await asyncio.gather(*(worker.logged("store.recovered", times) for worker in scene.workers))
            for worker in scene.workers:
                said = worker.lines("store.refusing")
                assert [line for line in said if name in line["reason"]] == said[-1:]
                assert len(said) == len(worker.lines("store.recovered")) == times
        verdict = await scene.verdict()
        assert not any(worker.lines("store.unreachable") for worker in scene.workers), "it answers"
    assert verdict.problems == []
    # What was in hand is written down when the server takes writes again. Only where that lasts longer than a
    # lease may another worker claim the queue first, and repeat it: it cannot know.
    assert verdict.repeats <= (0 if for_s <= 8 else WORKERS * IN_FLIGHT * len(REFUSALS))


@pytest.mark.parametrize("times", [pytest.param(15, marks=LONG)])
async def test_a_server_that_is_demoted_again_and_again_loses_nothing(times: int) -> None:
    async with a_scene(leases=AS_IT_COMES) as scene:
        await scene.start_workers(WORKERS)
        await scene.begin(changes_per_second=200)
        back_s = []
        for _ in range(times):
            await scene.until_delivered(400, within_s=20)
            async with replica(scene.redis):
                await asyncio.sleep(scene.random.uniform(0.1, 4))
            back_s.append(await scene.until_delivered(1, within_s=10))
        verdict = await scene.verdict()
    print("delivered again after", ", ".join(f"{seconds:.2f} s" for seconds in back_s))
    assert verdict.problems == []
    assert verdict.repeats == 0
    assert max(back_s) <= 5


async def test_a_server_that_evicts_is_refused_at_the_start() -> None:
    flags = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    async with a_scene(accounts=1, flags=flags) as scene:
        worker = await scene.start_worker()
        async with asyncio.timeout(10):
            assert await worker.process.wait() == 78
        (complaint,) = worker.errors.splitlines()
    assert "noeviction" in complaint


async def test_a_server_that_takes_rights_away_for_a_while_is_waited_for() -> None:
    """No worker ends that polls or posts at that moment, and no answered POST is repeated."""
    async with a_scene(leases=AS_IT_COMES) as scene:
        scene.receiver.delay_s = scene.provider.delay_s = 0.1  # so that something is in hand
        await scene.start_workers(WORKERS)
        await scene.begin(changes_per_second=200)
        await scene.until_delivered(100, within_s=20)
        await scene.redis.acl_setuser("default", enabled=True, commands=["-evalsha", "-eval"])
        await asyncio.sleep(4)
        assert all(worker.is_running for worker in scene.workers)
        said = [len(worker.lines("store.refusing")) for worker in scene.workers]
        await scene.redis.acl_setuser("default", enabled=True, commands=["+evalsha", "+eval"])
        assert await scene.until_delivered(1, within_s=10) <= 5
        verdict = await scene.verdict()
    assert verdict.problems == []
    assert verdict.repeats == 0
    assert said == [1] * WORKERS


async def _refuse(scene: Scene, refusal: AbstractAsyncContextManager[None], for_s: float) -> None:
    """Let the server refuse for a while: nothing uncommitted is sent, and no worker ends."""
    async with refusal:
        await asyncio.sleep(1)
        taken_before = scene.receiver.taken
        await asyncio.sleep(for_s)
        assert scene.receiver.taken == taken_before
        assert all(worker.is_running for worker in scene.workers)
