"""A wake is never lost: whatever workers do, a poll begins after it; and no more than one a second."""

from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import ACCOUNT, MINUTE_MS, PROVIDER, SHARD, Store, a_commit, a_store
from watcher.store.polls import Failing
from watcher.store.schedule import Lease, Reply

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

LATER_MS = 10 * MINUTE_MS
SECOND_MS = 1000


async def enrolled(client: Redis, namespace: str) -> Store:
    """A store whose only account is due."""
    store = a_store(client, namespace)
    await store.roster.enroll({PROVIDER: [ACCOUNT], "shop": []}, now_ms=await store.now_ms())
    return store


async def claimed(store: Store, *, lease_ms: int = MINUTE_MS) -> Lease:
    (lease,) = (await store.polls.claim(PROVIDER, SHARD, lease_ms=lease_ms, at_most=1)).leases
    return lease


async def polled(store: Store, lease: Lease, *, ago_ms: int = 0, version: str = "") -> str:
    """Settle a successful poll, the next one due in ten minutes: by a touch, or with "" by a first commit."""
    now = await store.now_ms()
    if version:
        reply = await store.polls.touch(
            PROVIDER, lease, version=version, polled_at_ms=now - ago_ms, due_ms=now + LATER_MS
        )
    else:
        step = a_commit(lease, due_in_ms=LATER_MS - MINUTE_MS, polled_at_ms=now - ago_ms)
        reply = (await store.polls.commit(step)).reply
    assert reply is Reply.DONE
    return "v1"


async def set_due(store: Store, ms: float) -> None:
    """Make it due so many ms from now, in the index too."""
    await store.due(store.keys.due_polls(SHARD), **{PROVIDER: ms})
    await store.due(store.keys.polls(SHARD, PROVIDER), **{ACCOUNT: ms})


async def due_in_ms(store: Store) -> float:
    due = (await store.scores(store.keys.polls(SHARD, PROVIDER)))[ACCOUNT]
    index = (await store.scores(store.keys.due_polls(SHARD)))[PROVIDER]
    assert index <= due, "a worker that looks sees it in time"
    return due - await store.now_ms()


async def test_an_account_that_is_woken_is_due_at_once(redis_client: Redis, namespace: str) -> None:
    store = await enrolled(redis_client, namespace)
    await polled(store, await claimed(store), ago_ms=5 * SECOND_MS)
    assert await due_in_ms(store) > 9 * MINUTE_MS
    (woken,) = await store.roster.wake([ACCOUNT])
    assert woken == (ACCOUNT, PROVIDER, 0, "turn", None)
    assert await due_in_ms(store) <= 0
    await claimed(store)


async def test_an_unscheduled_account_is_reported_missing_and_stays_unscheduled(
    redis_client: Redis, namespace: str
) -> None:
    store = await enrolled(redis_client, namespace)
    before = await store.contents()
    assert await store.roster.wake(["unknown"]) == []
    assert await store.contents() == before
    assert await a_store(redis_client, f"{namespace}:other").roster.wake([ACCOUNT]) == []


async def test_an_account_that_is_due_sooner_stays_so(redis_client: Redis, namespace: str) -> None:
    store = await enrolled(redis_client, namespace)
    await set_due(store, -5 * SECOND_MS)
    await store.roster.wake([ACCOUNT])
    assert await due_in_ms(store) <= -5 * SECOND_MS


@pytest.mark.parametrize("settle", ["commit", "touch"])
async def test_a_wake_during_a_poll_leads_to_one_more_poll(
    redis_client: Redis, namespace: str, settle: str
) -> None:
    store = await enrolled(redis_client, namespace)
    lease, version = await claimed(store), ""
    if settle == "touch":
        version = await polled(store, lease, ago_ms=SECOND_MS)
        await store.roster.wake([ACCOUNT])
        lease = await claimed(store)
    for _ in range(2):
        (woken,) = await store.roster.wake([ACCOUNT])
        assert woken.waits_for == "poll"
    assert (await store.polls.claim(PROVIDER, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases == ()
    await polled(store, lease, ago_ms=SECOND_MS, version=version)
    assert await due_in_ms(store) <= 0
    await polled(store, await claimed(store), version="v1")
    assert await due_in_ms(store) > 9 * MINUTE_MS, "once more is enough"


async def test_a_wake_of_an_expired_lease_survives_its_late_worker(
    redis_client: Redis, namespace: str
) -> None:
    store = await enrolled(redis_client, namespace)
    lease = await claimed(store, lease_ms=-5)
    (woken,) = await store.roster.wake([ACCOUNT])
    assert woken[2:4] == (0, "turn")
    await polled(store, lease, ago_ms=SECOND_MS)
    assert await due_in_ms(store) <= 0


async def test_a_worker_whose_account_was_woken_still_has_its_lease_and_loses_it_to_the_next(
    redis_client: Redis, namespace: str
) -> None:
    store = await enrolled(redis_client, namespace)
    lease = await claimed(store, lease_ms=-5)
    await store.roster.wake([ACCOUNT])
    await claimed(store)
    assert await store.polls.release(PROVIDER, lease) is Reply.LEASE_LOST
    assert await store.polls.postpone(PROVIDER, lease, why="x", at_least_ms=0, waits_ms=[1]) is None
    late = await store.polls.commit(a_commit(lease))
    assert late.reply is Reply.LEASE_LOST


async def test_an_account_that_is_woken_a_thousand_times_is_polled_once_a_second(
    redis_client: Redis, namespace: str
) -> None:
    store = await enrolled(redis_client, namespace)
    version = await polled(store, await claimed(store))
    for _ in range(30):
        (woken,) = await store.roster.wake([ACCOUNT])
    assert 0 < woken.in_ms <= SECOND_MS
    assert SECOND_MS / 2 < await due_in_ms(store) <= SECOND_MS
    await set_due(store, 0)  # that second is over
    lease = await claimed(store)
    for _ in range(30):
        await store.roster.wake([ACCOUNT])
    await polled(store, lease, version=version)
    assert SECOND_MS / 2 < await due_in_ms(store) <= SECOND_MS, "nor sooner after the poll in hand"


async def test_an_account_whose_polls_have_a_height_is_polled_once_a_second_too(
    redis_client: Redis, namespace: str
) -> None:
    store = await enrolled(redis_client, namespace)
    now = await store.now_ms()
    first = a_commit(await claimed(store), due_in_ms=LATER_MS, polled_at_ms=now - SECOND_MS)
    at_7 = first._replace(step=first.step._replace(state=first.step.state._replace(height=7)))
    assert (await store.polls.commit(at_7)).reply is Reply.DONE
    await store.roster.wake([ACCOUNT])
    lease = await claimed(store)
    await store.roster.wake([ACCOUNT])
    now = await store.now_ms()
    reply = await store.polls.touch(
        PROVIDER, lease, version="v1", polled_at_ms=now, due_ms=now + LATER_MS, height=8
    )
    assert reply is Reply.DONE
    assert SECOND_MS / 2 < await due_in_ms(store) <= SECOND_MS


async def test_a_clock_that_was_set_back_holds_a_wake_up_for_a_second_at_most(
    redis_client: Redis, namespace: str
) -> None:
    store = await enrolled(redis_client, namespace)
    await polled(store, await claimed(store), ago_ms=-60 * MINUTE_MS)
    (woken,) = await store.roster.wake([ACCOUNT])
    assert woken.in_ms <= SECOND_MS


@pytest.mark.parametrize("is_in_hand", [True, False])
async def test_a_waiting_retry_is_not_polled_sooner_and_the_wake_says_why(
    redis_client: Redis, namespace: str, is_in_hand: bool
) -> None:
    store = await enrolled(redis_client, namespace)
    lease = await claimed(store)
    if is_in_hand:
        await store.roster.wake([ACCOUNT])
    before = await store.now_ms()
    await store.polls.postpone(PROVIDER, lease, why="gone HTTP 502", at_least_ms=0, waits_ms=[MINUTE_MS])
    (woken,) = await store.roster.wake([ACCOUNT])
    assert MINUTE_MS - SECOND_MS * 5 < woken.in_ms <= MINUTE_MS
    assert woken.waits_for == "retry"
    assert woken.failing == Failing(1, woken.failing.since_ms if woken.failing else 0, "gone", "HTTP 502")
    assert woken.failing.since_ms >= before
    assert await due_in_ms(store) > MINUTE_MS / 2


async def test_a_leased_account_that_was_woken_is_still_left_to_its_worker(
    redis_client: Redis, namespace: str
) -> None:
    store = await enrolled(redis_client, namespace)
    lease = await claimed(store)
    await store.roster.wake([ACCOUNT])
    assert await store.roster.make_due(PROVIDER, [ACCOUNT], now_ms=await store.now_ms()) == {ACCOUNT}
    assert await store.polls.make_due(PROVIDER, SHARD, lease_ms=MINUTE_MS) == 0
    await polled(store, lease, ago_ms=SECOND_MS)
    assert await due_in_ms(store) <= 0


@pytest.mark.parametrize("damaged", ["state", "failing", "index", "schedule"])
async def test_a_damaged_key_keeps_no_other_account_from_being_woken(
    redis_client: Redis, namespace: str, damaged: str
) -> None:
    store = await enrolled(redis_client, namespace)
    await store.roster.enroll({PROVIDER: [ACCOUNT], "shop": [ACCOUNT]}, now_ms=await store.now_ms())
    for provider in (PROVIDER, "shop"):
        await store.due(store.keys.polls(SHARD, provider), **{ACCOUNT: LATER_MS})
    key = {
        "state": store.keys.state(ACCOUNT),
        "failing": store.keys.failing(SHARD, "shop"),
        "index": store.keys.due_polls(SHARD),
        "schedule": store.keys.polls(SHARD, "shop"),
    }[damaged]
    await store.pipe.command("DEL", key)
    await store.pipe.command(*(("SET", key, "9" * 40) if damaged != "state" else ("HSET", key, "a", "b")))
    woken = await store.roster.wake([ACCOUNT])
    assert [one.provider for one in woken] == [PROVIDER, "shop"][: 1 if damaged == "schedule" else 2]
    assert {one.waits_for for one in woken} == {"turn"}
    assert (await store.scores(store.keys.polls(SHARD, PROVIDER)))[ACCOUNT] <= await store.now_ms()


class Workers:
    """Do by chance what workers and callers may do. `is_owed`: no poll has begun since a wake."""

    def __init__(self, store: Store, chance: Random) -> None:
        self.store = store
        self.chance = chance
        self.leases: list[Lease] = []
        self.is_owed = False
        self.version = ""

    async def act(self) -> None:
        acts: list[Any] = [self.wake, self.wake, self.claim, self.claim, self.run_out, self.second_passes]
        acts += [self.make_retries_due, self.second_passes]
        if self.leases:
            acts += [self.commit, self.touch, self.release, self.postpone] * 2
        await self.chance.choice(acts)()

    async def wake(self) -> None:
        (woken,) = await self.store.roster.wake([ACCOUNT])
        self.is_owed = True
        assert woken.waits_for in ("poll", "retry") or woken.in_ms <= SECOND_MS

    async def claim(self) -> None:
        """Begin a poll; its lease may have run out at once, as where the worker hangs."""
        lease_ms = self.chance.choice([MINUTE_MS, MINUTE_MS, -5])
        found = await self.store.polls.claim(PROVIDER, SHARD, lease_ms=lease_ms, at_most=1)
        if found.leases:
            self.leases += found.leases
            self.is_owed = False

    async def run_out(self) -> None:
        """Let the time of a lease pass. Its worker may be gone, or come late."""
        score = await self.score()
        if score % 0.5 and score > await self.store.now_ms():
            await set_due(self.store, -1 + score % 1)
            late = [Lease(ACCOUNT, int(await self.score()) + 0.25)] * self.chance.randint(0, 1)
            self.leases = [one for one in self.leases if int(one.deadline) != int(score)] + late

    async def second_passes(self) -> None:
        """Let the second pass that must be between two polls."""
        score, now = await self.score(), await self.store.now_ms()
        if score % 1 == 0 and now < score <= now + SECOND_MS:
            await set_due(self.store, 0)

    async def make_retries_due(self) -> None:
        await self.store.polls.make_due(PROVIDER, SHARD, lease_ms=2 * MINUTE_MS)

    async def commit(self) -> None:
        new = f"{int(self.version or 0) + 1}"
        polled_at_ms = await self.store.now_ms()
        step = a_commit(
            self.take(), expected=self.version, version=new, due_in_ms=LATER_MS, polled_at_ms=polled_at_ms
        )
        if (await self.store.polls.commit(step)).reply is Reply.DONE:
            self.version = new

    async def touch(self) -> None:
        now = await self.store.now_ms()
        await self.store.polls.touch(
            PROVIDER, self.take(), version=self.version, polled_at_ms=now, due_ms=now + LATER_MS
        )

    async def release(self) -> None:
        await self.store.polls.release(PROVIDER, self.take(), due_in_ms=self.chance.choice([0, LATER_MS]))

    async def postpone(self) -> None:
        await self.store.polls.postpone(PROVIDER, self.take(), why="down", at_least_ms=0, waits_ms=[LATER_MS])

    def take(self) -> Lease:
        return self.leases.pop(self.chance.randrange(len(self.leases)))

    async def score(self) -> float:
        return (await self.store.scores(self.store.keys.polls(SHARD, PROVIDER)))[ACCOUNT]

    async def assert_kept(self) -> None:
        """A poll after a wake is due within a second, waits for a retry, or follows the poll in hand."""
        score = await self.score()
        assert await due_in_ms(self.store) <= SECOND_MS or score % 1 in (0.5, 0.375) or not self.is_owed


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 9))]
)
async def test_a_poll_begins_after_every_wake_whatever_workers_do(
    redis_client: Redis, namespace: str, seed: int
) -> None:
    workers = Workers(await enrolled(redis_client, namespace), Random(seed))
    for _ in range(150):
        await workers.act()
        await workers.assert_kept()
