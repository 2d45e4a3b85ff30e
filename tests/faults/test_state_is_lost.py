"""State that is wiped or damaged under the feet of running workers."""

import asyncio

from restless_provider import account_name
from scene import SUBSCRIPTION, a_scene

from watcher.receive import Event
from watcher.store.keys import Keys, shard_of


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
    first_by_account: dict[str, Event] = {}
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
        assert body
        await redis.hset(keys.state("account-2"), "body", body[: len(body) // 2])
        await redis.hset(keys.state("account-3"), "body", '{"schema": 999}')
        spared = {"account-1", "account-2", "account-3"}
        await asyncio.sleep(3)
        verdict = await scene.verdict(spared=spared)
        said = [line for worker in workers for line in worker.lines("account.quarantined")]
    assert verdict.problems == []
    assert {line["account"] for line in said} == spared
    assert len(said) == 3


async def test_damaged_keys_stop_their_shards_and_nothing_else() -> None:
    async with a_scene(accounts=60) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=180)
        await scene.until_told(100, within_s=20)
        keys = _one_key_of_each_kind(scene.keys)
        whole = {key: await scene.redis.dump(key) for key in keys}
        for key in keys:
            await scene.redis.delete(key)
            await scene.redis.set(key, "of another type")
        await asyncio.sleep(3)
        assert all(worker.is_running for worker in workers)
        for key, content in whole.items():
            await scene.redis.delete(key)
            if content:
                await scene.redis.restore(key, 0, content)
        spared = {name for name in map(account_name, range(1, 61)) if shard_of(name) < len(keys)}
        verdict = await scene.verdict(spared=spared, may_say={"bug"})
    assert verdict.problems == []


def _one_key_of_each_kind(keys: Keys) -> list[str]:
    """One shared key of each kind, each in a shard of its own: the first one in shard 0."""
    return [
        keys.polls(0, "loopring"),
        keys.failing(1, "loopring"),
        keys.log(2),
        keys.due_subscriptions(3),
        keys.lanes(4, SUBSCRIPTION),
        keys.tries(5, SUBSCRIPTION),
        keys.dead(6, SUBSCRIPTION),
    ]
