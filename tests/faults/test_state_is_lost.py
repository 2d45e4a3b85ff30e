"""State that is wiped or damaged while workers run."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from tests.faults.restless_provider import account_name
from tests.faults.scene import BOUNDED, LONG, SUBSCRIPTION, a_scene
from watcher.receive import Event
from watcher.store.keys import SHARDS, Keys, shard_of

pytestmark = BOUNDED

SHAPES: Mapping[str, Callable[[Pipeline, str], object]] = {
    "string": lambda pipe, key: pipe.set(key, "of another type"),
    "list": lambda pipe, key: pipe.rpush(key, "account-1", "\xff 1 {"),
    "set": lambda pipe, key: pipe.sadd(key, "account-1"),
    "hash": lambda pipe, key: pipe.hset(key, mapping={"account-1": "no", "shards": "many", "ops": "{"}),
    "sorted set": lambda pipe, key: pipe.zadd(key, {"account-1": 0, "nobody": -1, "ops": 1e300}),
    "stream": lambda pipe, key: pipe.xadd(key, {"account": "account-1", "entry": "no"}),
}
"""What may lie under a key: of another type than belongs there, or of the same and without sense."""

OTHER_SHAPES = [shape for shape in SHAPES if shape != "string"]

ACCOUNTS = 60
NAMES = [account_name(number) for number in range(1, ACCOUNTS + 1)]


async def test_a_wiped_server_means_new_baselines_and_no_false_changes() -> None:
    async with a_scene(accounts=ACCOUNTS) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=180)
        await scene.until_delivered(2 * ACCOUNTS, within_s=20)
        await scene.provider.rest()
        scene.provider.move_all()
        assert await scene.until_all_is_delivered(within_s=20)
        before = scene.receiver.taken
        last = {arrival.account: arrival.event["data"]["sequence"] for arrival in scene.receiver.arrivals}
        await scene.redis.flushall()
        await scene.until_polled(within_s=10)
        assert scene.receiver.taken == before, "a baseline is no change"
        verdict = await scene.verdict(losses=1)
        lost = [line["accounts"] for worker in workers for line in worker.lines("state.lost")]
        news = scene.receiver.arrivals[before:]
    assert verdict.problems == []
    assert lost == [ACCOUNTS], "one worker logs that it enrolled all accounts again"
    first_by_account: dict[str, Event] = {}
    for arrival in news:
        first_by_account.setdefault(arrival.account, arrival.event)
    assert len(first_by_account) == ACCOUNTS
    for account, event in first_by_account.items():
        assert event["subscription"]["previous_sequence"] is None
        assert event["data"]["sequence"] > last[account]


@pytest.mark.parametrize("wipes", [pytest.param(10, marks=LONG)])
async def test_after_repeated_wipes_under_load_no_sequence_is_used_twice(wipes: int) -> None:
    async with a_scene(accounts=ACCOUNTS) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=180)
        for _ in range(wipes):
            await scene.until_delivered(2 * ACCOUNTS, within_s=20)
            await scene.redis.flushall()
            await scene.until_polled(within_s=10)
        verdict = await scene.verdict(losses=wipes)
        lost = [line["accounts"] for worker in workers for line in worker.lines("state.lost")]
        first = Counter(
            arrival.account
            for arrival in scene.receiver.arrivals
            if arrival.event["subscription"]["previous_sequence"] is None
        )
    print(f"{scene.receiver.taken} events sent over {wipes} wipes")
    assert verdict.problems == []
    assert lost == [ACCOUNTS] * wipes
    assert max(first.values()) == wipes + 1


async def test_after_a_rollback_events_are_sent_again_and_no_sequence_is_used_twice() -> None:
    async with a_scene(accounts=ACCOUNTS) as scene:
        await scene.start_workers(2)
        await scene.begin(changes_per_second=180)
        await scene.until_delivered(100, within_s=20)
        kept, earlier = scene.server.directory / "appendonlydir", scene.directory / "earlier"
        shutil.copytree(kept, earlier)
        await scene.until_delivered(300, within_s=20)
        scene.server.kill()
        shutil.rmtree(kept)
        earlier.rename(kept)
        scene.server.start()
        verdict = await scene.verdict(losses=1)
    assert verdict.problems == []
    assert verdict.out_of_order == 0


async def test_damaged_states_quarantine_only_their_own_accounts() -> None:
    damaged = {"account-1", "account-2", "account-3"}
    async with a_scene(accounts=ACCOUNTS) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=180)
        await scene.until_delivered(100, within_s=20)
        of_another_type, cut, of_the_future = map(scene.keys.state, sorted(damaged))
        await scene.redis.delete(of_another_type)
        await scene.redis.hset(of_another_type, "not", "a string")
        whole = await scene.redis.get(cut)
        assert isinstance(whole, bytes)
        await scene.redis.set(cut, whole[: len(whole) // 2])
        await scene.redis.set(
            of_the_future, whole[: whole.index(b"\n")] + b'\n{"as": "no version writes it"}'
        )
        await asyncio.sleep(2)
        verdict = await scene.verdict(spared=damaged)
        said = [line["account"] for worker in workers for line in worker.lines("account.quarantined")]
    assert verdict.problems == []
    assert sorted(said) == sorted(damaged), "each is logged once"


@pytest.mark.parametrize("shape", ["string", *(pytest.param(other, marks=LONG) for other in OTHER_SHAPES)])
async def test_damaged_keys_stop_their_shards_and_nothing_else(shape: str) -> None:
    async with a_scene(accounts=ACCOUNTS) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=180)
        await scene.until_delivered(100, within_s=20)
        keys = _one_key_of_each_kind(scene.keys)
        spared = {name for name in NAMES if shard_of(name) < len(keys)}
        async with _damaged(scene.redis, keys, SHAPES[shape]):
            await asyncio.sleep(0.5)
            seen = len(scene.receiver.arrivals)
            await asyncio.sleep(2.5)
            assert all(worker.is_running for worker in workers)
            emitted = {arrival.account for arrival in scene.receiver.arrivals[seen:]}
            assert emitted >= {*NAMES} - spared, "all others go on"
        verdict = await scene.verdict(spared=spared, may_say={"bug"})
    assert len(keys) < SHARDS
    assert verdict.problems == []


@pytest.mark.parametrize("shape", [pytest.param(shape, marks=LONG) for shape in SHAPES])
async def test_damaged_keys_shared_by_all_workers_end_none(shape: str) -> None:
    async with a_scene(accounts=ACCOUNTS) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=180)
        for key in _keys_of_all(scene.keys):
            await scene.until_delivered(100, within_s=60)
            async with _damaged(scene.redis, [key], SHAPES[shape]):
                await asyncio.sleep(3)
                assert all(worker.is_running for worker in workers)
        verdict = await scene.verdict(within_s=50, losses=1, may_say={"bug"})
    assert verdict.problems == []


@asynccontextmanager
async def _damaged(
    redis: Redis, keys: Collection[str], damage: Callable[[Pipeline, str], object]
) -> AsyncIterator[None]:
    """Have something else under these keys inside the block, and again afterwards what was there before."""
    whole = {key: await redis.dump(key) for key in keys}
    async with redis.pipeline() as at_once:  # else a worker may write in between
        for key in keys:
            at_once.delete(key)
            damage(at_once, key)
        await at_once.execute()
    yield
    async with redis.pipeline() as at_once:
        for key, content in whole.items():
            at_once.delete(key)
            if content:
                at_once.restore(key, 0, content)
        await at_once.execute()


def _keys_of_all(keys: Keys) -> list[str]:
    """The keys that are no shard's."""
    return [
        keys.meta(),
        keys.breakers(),
        keys.workers(),
        keys.rate("loopring"),
        keys.probes(SUBSCRIPTION),
    ]


def _one_key_of_each_kind(keys: Keys) -> list[str]:
    """One shared key of each kind, each in a shard of its own: the first one in shard 0."""
    return [
        keys.polls(0, "loopring"),
        keys.failing(1, "loopring"),
        keys.log(2),
        keys.due_subscriptions(3),
        keys.queues(4, SUBSCRIPTION),
        keys.tries(5, SUBSCRIPTION),
        keys.dead(6, SUBSCRIPTION),
        keys.bodies(7),
        keys.sizes(8),
        keys.given_up(9),
    ]
