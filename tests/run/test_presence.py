"""A worker is listed in Redis from its start to its end, and works on if that cannot be written."""

import asyncio
from collections import Counter
from collections.abc import Mapping

import pytest
from redis.asyncio import Redis

from tests.support.rig import TREASURY, a_rig
from tests.support.servers import real_server
from watcher import __version__
from watcher.run.members import Pace
from watcher.run.worker import Worker
from watcher.store.client import connect
from watcher.store.keys import Keys
from watcher.store.members import Presence, Workers
from watcher.store.pipe import Pipe


async def seen(client: Redis, namespace: str) -> list[Presence]:
    return await Workers(Pipe(client), Keys(namespace)).read()


async def until_seen(client: Redis, namespace: str, count: int) -> list[Presence]:
    async with asyncio.timeout(10):
        while len(found := await seen(client, namespace)) != count:  # noqa: ASYNC110 - the worker writes
            await asyncio.sleep(0.01)
    return found


async def test_a_worker_is_listed_while_it_runs_and_not_after_its_end(
    redis_client: Redis, redis_server_url: str, namespace: str
) -> None:
    async with a_rig(redis_server_url, namespace) as rig:
        async with rig.worker() as first, rig.worker() as second:
            found = await until_seen(redis_client, namespace, 2)
            assert {one.worker for one in found} == {first.name, second.name}
            assert {one.version for one in found} == {__version__}
        assert await seen(redis_client, namespace) == []


async def test_a_worker_that_polls_once_leaves_no_trace(
    redis_client: Redis, redis_server_url: str, namespace: str
) -> None:
    async with a_rig(redis_server_url, namespace) as rig:
        worker = Worker(rig.settings, name="once")
        await worker.run(once=True)
        assert await seen(redis_client, namespace) == []
        assert worker.counters.by_request.keys() == {"loopring", "shop"}


async def test_a_worker_without_the_right_to_register_still_works() -> None:
    with real_server() as server:
        async with connect(server.url) as admin:
            own = ("meta", "breakers", "rate:*", "names:*")
            read = "%R~watcher:marks"  # by the audit at the end
            rights = ("on", "nopass", "~watcher:{*", read, *(f"~watcher:{key}" for key in own))
            await admin.execute_command("ACL", "SETUSER", "narrow", *rights, "+@all")  # type: ignore[no-untyped-call]
            async with a_rig(f"{server.url}?username=narrow&password=x", "watcher") as rig:
                await Worker(rig.settings, name="first").run(once=True)
                rig.sandbox.world.credit(TREASURY, "ETH", "1")
                async with rig.worker():
                    await rig.events(1)
            assert await seen(admin, "watcher") == []


@pytest.mark.parametrize(
    ("counts", "rates"),
    [
        ([{}], [{}]),
        ([{"shop": 5}], [{}]),
        ([{}, {"shop": 20}], [{}, {"shop": 2}]),
        ([{"shop": 5}, {"shop": 5}], [{}, {"shop": 0}]),
        ([{"shop": 0}, {"shop": 30}, {"shop": 30}], [{}, {"shop": 3}, {"shop": 1.5}]),
        ([{"shop": n * n} for n in range(9)], [{}, *({"shop": s / 10} for s in (1, 2, 3, 4, 5, 6, 8, 10))]),
    ],
)
def test_the_rate_of_a_worker_is_the_average_of_the_last_minute(
    counts: list[Mapping[str, int]], rates: list[Mapping[str, float]]
) -> None:
    pace = Pace()
    assert [pace.per_second(Counter(one), 10.0 * number) for number, one in enumerate(counts)] == rates
