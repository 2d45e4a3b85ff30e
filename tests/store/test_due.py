"""The index of due work: it has whatever a schedule says is due, rather too early than too late."""

from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import ACCOUNT, MINUTE_MS, NEIGHBOURS, PROVIDER, SHARD, Store, a_commit, a_store
from watcher.store.schedule import Due, DueIndex, Lease

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

PROVIDERS = (PROVIDER, "shop")


def an_index(store: Store) -> DueIndex:
    return DueIndex(store.schedule, store.keys)


async def found(store: Store) -> list[Due]:
    """What one look finds."""
    await store.schedule.read_clock()
    parts = await an_index(store).look()
    return [due for part in parts if not isinstance(part, BaseException) for due in part]


async def named(store: Store) -> list[tuple[str, int, str]]:
    return [due[:3] for due in await found(store)]


async def first_due(store: Store, provider: str) -> float | None:
    """When the first poll of a provider is due in SHARD, by its schedule."""
    scores = await store.scores(store.keys.polls(SHARD, provider))
    return min(scores.values(), default=None)


async def assert_no_later(store: Store) -> None:
    """The index knows each provider that has a poll here, and no later a time than its schedule."""
    index = await store.scores(store.keys.due_polls(SHARD))
    for provider in PROVIDERS:
        first = await first_due(store, provider)
        assert first is None or index[provider] <= first


class Worker:
    """Does by chance what a worker may do to a schedule."""

    def __init__(self, store: Store, chance: Random) -> None:
        self.store = store
        self.chance = chance
        self.leases: list[tuple[str, Lease]] = []
        self.version_by_account: dict[str, str] = {}

    async def act(self) -> None:
        provider = self.chance.choice(PROVIDERS)
        acts: list[Any] = [self.enroll, self.claim, self.claim, self.make_due, self.make_retries_due]
        if self.leases:
            acts += [self.settle] * 4
        await self.chance.choice(acts)(provider)

    async def enroll(self, _: str) -> None:
        names = {name: self.some_names(name) for name in PROVIDERS}
        await self.store.roster.enroll(names, now_ms=await self.store.now_ms())

    def some_names(self, provider: str) -> list[str]:
        mine = NEIGHBOURS[:6] if provider == PROVIDER else NEIGHBOURS[6:12]
        return self.chance.sample(mine, self.chance.randint(0, 6))

    async def make_due(self, provider: str) -> None:
        names = self.some_names(provider)
        await self.store.roster.make_due(provider, names, now_ms=await self.store.now_ms())

    async def claim(self, provider: str) -> None:
        at_most = self.chance.randint(1, 4)
        claimed = await self.store.polls.claim(provider, SHARD, lease_ms=MINUTE_MS, at_most=at_most)
        self.leases += [(provider, lease) for lease in claimed.leases]

    async def make_retries_due(self, provider: str) -> None:
        await self.store.polls.make_due(provider, SHARD, lease_ms=2 * MINUTE_MS)

    async def settle(self, _: str) -> None:
        """Give a lease back in one of the ways there are."""
        provider, lease = self.leases.pop(self.chance.randrange(len(self.leases)))
        wait_ms = self.chance.choice([0, 10, 10 * MINUTE_MS, 10 * MINUTE_MS])
        polls, account = self.store.polls, lease.member
        version = self.version_by_account.get(account, "")
        new = f"{int(version or 0) + 1}"
        match self.chance.choice(["release", "postpone", "touch", "commit"]):
            case "release":
                await polls.release(provider, lease, due_in_ms=wait_ms)
            case "postpone":
                await polls.postpone(provider, lease, why="down", at_least_ms=0, waits_ms=[wait_ms])
            case "touch":
                due_ms = await self.store.now_ms() + wait_ms
                await polls.touch(provider, lease, version=version, polled_at_ms=1, due_ms=due_ms)
            case "commit":
                step = a_commit(
                    lease,
                    expected=version,
                    version=new,
                    provider=provider,
                    due_in_ms=wait_ms - MINUTE_MS,
                )
                if (await polls.commit(step)).reply == 1:
                    self.version_by_account[account] = new
                else:
                    state = await polls.read_state(PROVIDER, account)
                    self.version_by_account[account] = state.version if state else ""


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
async def test_whatever_workers_do_the_index_is_never_late(
    redis_client: Redis, namespace: str, seed: int
) -> None:
    worker = Worker(a_store(redis_client, namespace), Random(seed))
    for _ in range(120):
        await worker.act()
        await assert_no_later(worker.store)


async def test_one_look_finds_exactly_the_polls_and_queues_that_are_due(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    assert await named(store) == []
    await store.due(store.keys.due_polls(3), loopring=-10, later=MINUTE_MS)
    await store.due(store.keys.due_subscriptions(9), ops=-10, later=MINUTE_MS)
    assert await named(store) == [("poll", 3, "loopring"), ("delivery", 9, "ops")]


async def test_due_work_is_found_however_wrong_the_clock_of_the_last_claim_was(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.due(store.keys.due_polls(3), loopring=-10)
    store.pipe.set_clock(await store.now_ms() - 10 * MINUTE_MS)  # of a server whose clock was back meanwhile
    index = an_index(store)
    assert not any(await index.look())
    await index.read_clock()
    assert sum(map(len, await index.look())) == 1  # type: ignore[arg-type]


async def test_a_look_says_for_how_long_something_is_due(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.due(store.keys.due_polls(3), loopring=-MINUTE_MS)
    ((*_, for_s),) = await found(store)
    assert 60 <= for_s < 65


async def test_unindexed_work_is_found_once_the_index_is_fixed(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.due(store.keys.polls(SHARD, PROVIDER), **{ACCOUNT: -1})  # by a version that keeps no index
    assert await named(store) == []
    await an_index(store).fix(SHARD, PROVIDERS)
    assert await named(store) == [("poll", SHARD, PROVIDER)]


async def test_a_schedule_deleted_during_a_poll_is_claimed_once_the_index_is_fixed(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.roster.enroll({PROVIDER: [ACCOUNT]}, now_ms=await store.now_ms())
    await store.polls.claim(PROVIDER, SHARD, lease_ms=MINUTE_MS, at_most=1)
    await store.pipe.command("DEL", store.keys.polls(SHARD, PROVIDER))
    assert await named(store) == []
    await an_index(store).fix(SHARD, PROVIDERS)
    assert await named(store) == [("poll", SHARD, PROVIDER)]
    claimed = await store.polls.claim(PROVIDER, SHARD, lease_ms=MINUTE_MS, at_most=1)
    assert claimed.next_due_ms is None
    await an_index(store).fix(SHARD, PROVIDERS)
    assert await named(store) == []


async def test_an_index_of_another_type_is_rebuilt_and_empty_until_then(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.due(store.keys.polls(SHARD, PROVIDER), **{ACCOUNT: -1})
    await store.pipe.command("SET", store.keys.due_polls(SHARD), "damaged")
    assert await named(store) == []
    await an_index(store).fix(SHARD, PROVIDERS)
    assert await named(store) == [("poll", SHARD, PROVIDER)]


async def test_a_schedule_of_another_type_does_not_affect_other_providers(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("SET", store.keys.polls(SHARD, "shop"), "damaged")
    await store.due(store.keys.polls(SHARD, PROVIDER), **{ACCOUNT: -1})
    await an_index(store).fix(SHARD, ["shop", PROVIDER])
    assert await named(store) == [("poll", SHARD, PROVIDER)]


async def test_an_enrolled_account_is_due_at_once_in_its_shard(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.roster.enroll({PROVIDER: [ACCOUNT]}, now_ms=await store.now_ms())
    assert await named(store) == [("poll", SHARD, PROVIDER)]
