"""State that is wiped or damaged under the feet of running workers."""

import asyncio
import shutil

from restless_provider import account_name
from scene import BOUNDED, SUBSCRIPTION, a_scene

from watcher.receive import Event
from watcher.store.keys import SHARDS, Keys, shard_of

pytestmark = BOUNDED

ACCOUNTS = 60
NAMES = [account_name(number) for number in range(1, ACCOUNTS + 1)]


async def test_a_wiped_server_means_new_baselines_and_no_storm() -> None:
    async with a_scene(accounts=ACCOUNTS) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=180)
        await scene.until_told(2 * ACCOUNTS, within_s=20)
        await scene.provider.rest()
        scene.provider.move_all()
        assert await scene.until_all_is_told(within_s=20)
        told = scene.receiver.taken
        last = {arrival.account: arrival.event["data"]["sequence"] for arrival in scene.receiver.arrivals}
        await scene.redis.flushall()
        await scene.until_polled(within_s=10)
        assert scene.receiver.taken == told, "a baseline is no change"
        verdict = await scene.verdict(losses=1)
        lost = [line["accounts"] for worker in workers for line in worker.lines("state.lost")]
        news = scene.receiver.arrivals[told:]
    assert verdict.problems == []
    assert lost == [ACCOUNTS], "whoever has enrolled all accounts again says so, and nobody else"
    first_by_account: dict[str, Event] = {}
    for arrival in news:
        first_by_account.setdefault(arrival.account, arrival.event)
    assert len(first_by_account) == ACCOUNTS
    for account, event in first_by_account.items():
        assert event["subscription"]["previous_sequence"] is None
        assert event["data"]["sequence"] > last[account]


async def test_a_server_that_goes_back_in_time_tells_again_and_gives_no_number_twice() -> None:
    async with a_scene(accounts=ACCOUNTS) as scene:
        await scene.start_workers(2)
        await scene.begin(changes_per_second=180)
        await scene.until_told(100, within_s=20)
        kept, earlier = scene.server.directory / "appendonlydir", scene.directory / "earlier"
        shutil.copytree(kept, earlier)
        await scene.until_told(300, within_s=20)
        scene.server.kill()
        shutil.rmtree(kept)
        earlier.rename(kept)
        scene.server.start()
        verdict = await scene.verdict(losses=1)
    assert verdict.problems == []
    assert verdict.out_of_order == 0


async def test_damaged_states_are_left_out_and_nobody_else_is() -> None:
    damaged = {"account-1", "account-2", "account-3"}
    async with a_scene(accounts=ACCOUNTS) as scene:
        workers = await scene.start_workers(2)
        await scene.begin(changes_per_second=180)
        await scene.until_told(100, within_s=20)
        of_another_type, cut, of_the_future = map(scene.keys.state, sorted(damaged))
        await scene.redis.delete(of_another_type)
        await scene.redis.set(of_another_type, "not a hash")
        body = await scene.redis.hget(cut, "body")
        assert body
        await scene.redis.hset(cut, "body", body[: len(body) // 2])
        await scene.redis.hset(of_the_future, "body", '{"schema": 999}')
        await asyncio.sleep(2)
        verdict = await scene.verdict(spared=damaged)
        said = [line["account"] for worker in workers for line in worker.lines("account.quarantined")]
    assert verdict.problems == []
    assert sorted(said) == sorted(damaged), "each is said once"


async def test_damaged_keys_stop_their_shards_and_nothing_else() -> None:
    async with a_scene(accounts=ACCOUNTS) as scene:
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
        spared = {name for name in NAMES if shard_of(name) < len(keys)}
        verdict = await scene.verdict(spared=spared, may_say={"bug"})
    assert len(keys) < SHARDS
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
