"""State that is wiped or damaged under the feet of running workers."""

import asyncio

from scene import a_scene


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
    assert verdict.problems == []
    first_by_account = {}
    for arrival in news:
        first_by_account.setdefault(arrival.event["data"]["account"]["name"], arrival.event)
    for account, event in first_by_account.items():
        assert event["subscription"]["previous_sequence"] is None
        assert event["data"]["sequence"] > sequences.get(account, 0)
    lost = [line for worker in workers for line in worker.lines("state.lost")]
    assert len(lost) == len(workers), "each worker says so once"


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
