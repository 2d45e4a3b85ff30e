"""State that is wiped or damaged under the feet of running workers."""

import asyncio
import collections


import pytest
from restless_provider import account_name
from scene import SUBSCRIPTION, a_scene

from watcher.store.keys import shard_of


async def test_a_wiped_server_means_new_baselines_and_no_storm() -> None:
    async with a_scene() as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=100)
        await scene.until_told(300, within_s=20)
        await scene.provider.rest()
        await asyncio.sleep(3)  # until everything is told
        told = scene.receiver.taken
        sequences = {
            arrival.event["data"]["account"]["name"]: arrival.event["data"]["sequence"]
            for arrival in scene.receiver.arrivals
        }
        await scene.redis.flushall()
        await scene.until_polled(within_s=10)
        assert scene.receiver.taken == told, "a baseline is no change"
        scene.provider.run(100)
        await asyncio.sleep(2)
        verdict = await scene.verdict(is_state_lost=True)
        news = scene.receiver.arrivals[told:]
        lost = [line["accounts"] for worker in workers for line in worker.lines("state.lost")]
    assert verdict.problems == []
    first_by_account = {}
    for arrival in news:
        first_by_account.setdefault(arrival.event["data"]["account"]["name"], arrival.event)
    for account, event in first_by_account.items():
        assert event["subscription"]["previous_sequence"] is None
        assert event["data"]["sequence"] > sequences.get(account, 0)
    assert sum(lost) == 100, "whoever enrols an account again says so, and nobody else"


async def test_damaged_states_are_left_out_and_nobody_else_is() -> None:
    async with a_scene(accounts=40) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=120)
        await scene.until_told(100, within_s=20)
        keys, redis = scene.keys, scene.redis
        await redis.delete(keys.state("account-1"))
        await redis.set(keys.state("account-1"), "of another type")
        body = await redis.hget(keys.state("account-2"), "body")
        await redis.hset(keys.state("account-2"), "body", body[: len(body) // 2])
        body = await redis.hget(keys.state("account-3"), "body")
        await redis.hset(keys.state("account-3"), "body", body.replace(b'"schema":1', b'"schema":999'))
        spared = {"account-1", "account-2", "account-3"}
        await asyncio.sleep(3)
        verdict = await scene.verdict(spared=spared)
        said = [line for worker in workers for line in worker.lines("account.quarantined")]
    assert verdict.problems == []
    assert {line["account"] for line in said} == spared
    assert len(said) == 3


@pytest.mark.parametrize("damage", ["polls", "failing", "log", "due", "lanes", "tries", "lane", "rate"])
async def test_a_damaged_key_is_nothing_to_the_other_shards(damage: str) -> None:
    """One key that accounts share; all of them may wait for its mending, and nobody else."""
    async with a_scene(accounts=40) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=120)
        await scene.until_told(100, within_s=20)
        shard = shard_of("account-1")
        keys = scene.keys
        key = {
            "polls": keys.polls(shard, "loopring"),
            "failing": keys.failing(shard, "loopring"),
            "log": keys.log(shard),
            "due": keys.due_subscriptions(shard),
            "lanes": keys.lanes(shard, SUBSCRIPTION),
            "tries": keys.tries(shard, SUBSCRIPTION),
            "lane": keys.lane(SUBSCRIPTION, "account-1"),
            "rate": keys.rate("loopring"),
        }[damage]
        await scene.redis.delete(key)
        if damage == "rate":
            await scene.redis.lpush(key, "of another type")
        else:
            await scene.redis.set(key, "of another type")
        await asyncio.sleep(3)
        spared = {account_name(n) for n in range(1, 41) if shard_of(account_name(n)) == shard}
        verdict = await scene.verdict(spared=spared, within_s=8)
        print({w.name: (w.process.returncode, collections.Counter(l["event"] for l in w.lines())) for w in workers})
        print("".join(w.errors[-1500:] for w in workers))
    print(*verdict.problems, sep="\n")
    assert verdict.problems == []
