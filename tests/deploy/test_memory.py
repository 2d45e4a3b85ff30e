"""The memory figures of deploy/REDIS.md are true: its formula, measured, and its bounds."""

import re
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from tests.benchmarks.stage import Stage, a_namespace
from tests.benchmarks.waiting import account_bytes, delivery_bytes, write_backlog
from tests.docs.blocks import texts_in
from tests.support.directory import Programs
from tests.support.servers import ENGINES, RealServer, real_server
from watcher.settings import SubscriptionSettings
from watcher.store.client import connect
from watcher.store.directory import Directory
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import Pipe
from watcher.store.queues import DEAD_PER_SUBSCRIPTION, Bounds
from watcher.store.schedule import Schedule

TEXT = " ".join(texts_in("deploy/REDIS").split())
MANY = ("--zset-max-listpack-entries", "0")
"""Schedules as they are where there are many accounts."""


def figures(pattern: str) -> tuple[int, ...]:
    (found,) = re.findall(pattern, TEXT)
    return tuple(int(figure.replace(",", "")) for figure in found)


ACCOUNT, ASSET = figures(r"accounts × \((\d+) \+ (\d+) × assets\)")
LAST, EVENT, DELIVERY = figures(r"subscriptions × (\d+) \+ events in that time × \((\d+) \+ (\d+) × ")
OF_API, SUBSCRIPTION = figures(r"adds 1\.6 × \(accounts × (\d+) \+ subscriptions × (\d+)\)")
LONG_ASSET, ALONE = figures(r"\((\d+) where assets are contract addresses\).* up to (\d+) alone in its queue")


@pytest.fixture(scope="module", params=sorted(ENGINES))
def server(request: pytest.FixtureRequest) -> Iterator[RealServer]:
    with real_server(request.param, *MANY) as server:
        yield server


async def a_stage(client: Redis) -> Stage:
    schedule = Schedule(Pipe(client))
    await schedule.read_clock()
    return Stage("", client, schedule, StoreHealth())


async def used(client: Redis) -> int:
    return int((await client.info("memory"))["used_memory"])


@pytest.mark.parametrize(
    ("asset_ids", "each"),
    [
        ([str(number) for number in range(10)], ASSET),
        ([f"0x{number:040x}" for number in range(10)], LONG_ASSET),
        (["0"], ASSET),
    ],
    ids=["numbers", "addresses", "one"],
)
async def test_an_account_takes_no_more_than_the_formula_says(
    server: RealServer, asset_ids: list[str], each: int
) -> None:
    async with connect(server.url) as client:
        taken = await account_bytes(await a_stage(client), 1000, asset_ids)
    planned = ACCOUNT + each * len(asset_ids) + LAST
    assert planned / 2 < taken < planned


async def test_a_record_of_the_directory_takes_no_more_than_the_table_says(server: RealServer) -> None:
    async with connect(server.url) as client:
        pipe, namespace = Pipe(client), a_namespace()
        directory, programs = (
            Directory(pipe, Keys(namespace)),
            Programs(Directory(pipe, Keys(namespace)), namespace),
        )
        names = [f"customer-{number}" for number in range(8000)]
        accounts = [
            programs.account(name, "loopring", address=f"0x{number:040x}", interval="60s")._replace(
                is_shadowed=True
            )
            for number, name in enumerate(names)
        ]
        subscriptions = [
            programs.subscription(
                name,
                f"https://{name}.example.com/hooks/balances",
                tokens={"0" * 64: None},
                accounts=[name],
                events=["deposit.*"],
            )
            for name in names[:4000]
        ]
        await directory.put_all(
            [*accounts[:1], *subscriptions[:1]]
        )  # the server knows the script from now on
        for writes, planned in ((accounts, OF_API), (subscriptions, SUBSCRIPTION)):
            before = await used(client)
            await directory.put_all(writes)
            taken = (await used(client) - before) / len(writes)
            assert planned / 2 < taken < planned


@pytest.mark.parametrize(("per_queue", "each"), [(1, ALONE), (5, DELIVERY), (50, DELIVERY)])
async def test_a_backlog_takes_no_more_than_the_formula_says(
    server: RealServer, per_queue: int, each: int
) -> None:
    async with connect(server.url) as client:
        taken = await delivery_bytes(await a_stage(client), 400, per_queue)
    assert 0.7 * (EVENT + each) < taken < EVENT + each
    assert LAST + ALONE <= 400, "what a lone delivery costs beside its event, with its last sequence"


async def test_a_server_takes_no_more_than_the_formula_says_for_all_together(server: RealServer) -> None:
    accounts, per_queue, keys = 1000, 5, Keys(a_namespace())
    async with connect(server.url) as client:
        stage = await a_stage(client)
        await write_backlog(stage, Keys(a_namespace()), 1, 1)  # the server knows the scripts from now on
        before = await used(client)
        await write_backlog(stage, keys, accounts, per_queue)
        taken = await used(client) - before
        logs = [await client.memory_usage(keys.log(shard), samples=0) or 0 for shard in range(SHARDS)]
    planned = accounts * (ACCOUNT + ASSET + LAST + per_queue * (EVENT + DELIVERY))
    assert 0.7 * planned < taken - sum(logs) < 1.6 * planned


def test_the_worked_example_is_what_the_formula_makes() -> None:
    accounts, assets, subscriptions = figures(
        r"For ([\d,]+) accounts of (\d+) assets and (\d+) subscriptions"
    )
    per_second, hours, events = figures(r"with (\d+) events a second .*? \((\d+) hours, ([\d,]+) events\)")
    assert events == per_second * 3600 * hours
    (backlog,) = re.findall(r"`max_backlog = ([\d_]+)` for that receiver", TEXT)
    assert int(backlog) > events
    parts = (
        accounts * (ACCOUNT + assets * ASSET),
        accounts * subscriptions * LAST,
        events * (EVENT + DELIVERY),
    )
    said = "({:.1f} MB + {:.1f} MB + {:,.0f} MB)".format(*(part / 1e6 for part in parts))
    assert f"1.6 × {said} = {int(1.6 * sum(parts) / 1e7) / 100} GB, so `maxmemory 2gb`" in TEXT


def test_the_bounds_are_those_of_the_code() -> None:
    log, dead, attempts = (SHARDS * bound >> 20 for bound in Bounds())
    assert f"{log} MiB for the log (" in TEXT
    assert f"{dead} MiB for the dead letters and {attempts} MiB for the attempts" in TEXT
    assert [2**40 // (SHARDS * bound) for bound in Bounds.within(2**40)] == [8, 8, 32]
    assert "an eighth, an eighth and a thirty-second of `maxmemory`" in TEXT
    assert f"at most {SHARDS * DEAD_PER_SUBSCRIPTION:,} are kept for one subscription" in TEXT
    assert f"`max_backlog` ({SubscriptionSettings.model_fields['max_backlog'].default:,} deliveries" in TEXT
