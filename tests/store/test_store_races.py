"""Two workers at once: nothing is claimed twice or skipped, whatever the leases do."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from fakeredis import FakeAsyncRedis
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE, FAKE
from tests.support.stores import MINUTE_MS, OPS, PROVIDER, Store, a_commit, a_delivery, a_store, running
from watcher.store.client import connect
from watcher.store.keys import SHARDS, shard_of
from watcher.store.schedule import Lease, Reply

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

ACCOUNTS = tuple(f"account-{n}" for n in range(40))
STEPS = 5
"""Commits of each account until a race is over."""


@pytest.fixture
async def stores(
    engine: str, server_url_of: Callable[[str], str], redis_client: Redis, namespace: str
) -> AsyncIterator[tuple[Store, Store]]:
    """Two workers' sides of one namespace, each with a client and runners of its own."""
    if engine == FAKE:
        server = redis_client.connection_pool.connection_kwargs["server"]
        second: Redis = FakeAsyncRedis(server=server)
    else:
        second = connect(server_url_of(engine))
    async with second:
        one, other = a_store(redis_client, namespace), a_store(second, namespace)
        async with running(one.pipe), running(other.pipe):
            yield one, other


@dataclass
class Race:
    """What the workers of a race did, as they saw it."""

    replies: Counter[Reply] = field(default_factory=Counter)
    held: set[str] = field(default_factory=set)
    claimed_twice: list[str] = field(default_factory=list)
    commits: Counter[str] = field(default_factory=Counter)
    goal: int = STEPS
    """How many commits each account is to have."""

    @property
    def is_over(self) -> bool:
        return all(self.commits[account] >= self.goal for account in ACCOUNTS)

    async def work(self, store: Store, *, lease_ms: int) -> None:
        """Poll everything that falls due until the race is over."""
        async with asyncio.timeout(20):
            while not self.is_over:
                claims = [
                    # As many as a shard has, or one whose lease ended might never have its turn: the others
                    # are due before it again and again.
                    store.polls.claim(PROVIDER, shard, lease_ms=lease_ms, at_most=4)
                    for shard in range(SHARDS)
                ]
                leases = [lease for claimed in await asyncio.gather(*claims) for lease in claimed.leases]
                await asyncio.gather(*(self._poll(store, lease) for lease in leases))

    async def _poll(self, store: Store, lease: Lease) -> None:
        if lease.member in self.held:
            self.claimed_twice.append(lease.member)
        self.held.add(lease.member)
        state = await store.polls.read_state(PROVIDER, lease.member)
        version = int(state.version) if state else 0
        step = a_commit(
            lease,
            expected=str(version) if state else "",
            version=str(version + 1),
            due_in_ms=-2 * MINUTE_MS,
            notes=[b"%d" % (version + 1)],
            deliveries={OPS: [a_delivery(version + 1)]},
        )
        self.held.discard(lease.member)  # from here on another worker may get it before we know
        reply, _ = await store.polls.commit(step)
        self.replies[reply] += 1
        self.commits[lease.member] += reply is Reply.DONE


async def enroll(store: Store) -> None:
    await store.roster.enroll({PROVIDER: ACCOUNTS}, now_ms=await store.now_ms())


async def nothing_skipped(store: Store, race: Race) -> None:
    """Claim that each account's log and queue hold every version once, in order, up to its state's."""
    versions: dict[str, list[int]] = {account: [] for account in ACCOUNTS}
    for shard in range(SHARDS):
        for entry in await store.stream(store.keys.log(shard)):
            if "queued" not in entry:
                versions[entry["account"].decode()].append(int(entry["entry"].removeprefix(b"0 ")))
    for account in ACCOUNTS:
        state = await store.polls.read_state(PROVIDER, account)
        assert state
        expected = list(range(1, int(state.version) + 1))
        assert versions[account] == expected
        assert await store.queue(account) == [a_delivery(number).entry for number in expected]
        assert race.commits[account] == len(expected)


async def test_no_account_is_claimed_twice_and_no_version_skipped(stores: tuple[Store, Store]) -> None:
    race = Race()
    await enroll(stores[0])
    await asyncio.gather(*(race.work(store, lease_ms=MINUTE_MS) for store in stores * 2))
    assert race.claimed_twice == []
    assert set(race.replies) == {Reply.DONE}
    await nothing_skipped(stores[0], race)


async def test_leases_that_end_too_early_skip_and_repeat_nothing(stores: tuple[Store, Store]) -> None:
    race, (patient, hasty) = Race(), stores
    await enroll(patient)
    while not race.replies.keys() - {Reply.DONE}:  # until a lease has ended too early
        await asyncio.gather(
            race.work(patient, lease_ms=MINUTE_MS), race.work(hasty, lease_ms=1), race.work(hasty, lease_ms=1)
        )
        race.goal += STEPS
    await nothing_skipped(stores[0], race)


async def test_two_workers_deliver_each_queue_once_and_in_order(stores: tuple[Store, Store]) -> None:
    one = stores[0]
    numbers = range(1, STEPS + 1)
    for account in ACCOUNTS:
        await one.fill(*map(a_delivery, numbers), account=account)
    heard: dict[str, list[bytes]] = {account: [] for account in ACCOUNTS}

    async def deliver(store: Store, shard: int) -> None:
        while (await store.queues.claim(OPS, shard, lease_ms=MINUTE_MS, at_most=0)).next_due_ms is not None:
            claimed = await store.queues.claim(OPS, shard, lease_ms=MINUTE_MS, at_most=2)
            for lease in claimed.leases:
                await work_off(store, lease)

    async def work_off(store: Store, lease: Lease) -> None:
        lease, begun = await store.begin(lease, at_most=3)
        assert begun.reply is Reply.DONE
        for entry, _ in begun.deliveries:
            heard[lease.member].append(entry)
            reply, deadline = await store.queues.delivered(
                OPS, lease, entry, until=store.queues.until(lease, MINUTE_MS)
            )
            assert reply is Reply.DONE
            lease = Lease(lease.member, deadline)
            if not deadline:
                return
        await store.queues.release(OPS, lease)

    async with asyncio.timeout(20):
        await asyncio.gather(
            *(deliver(store, shard) for store in stores * 2 for shard in {*map(shard_of, ACCOUNTS)})
        )
    assert heard == {account: [a_delivery(n).entry for n in numbers] for account in ACCOUNTS}


async def test_workers_that_poll_all_accounts_at_once_are_served_one_each(
    stores: tuple[Store, Store],
) -> None:
    await enroll(stores[0])
    claims = await asyncio.gather(
        *(
            store.polls.claim(PROVIDER, shard, lease_ms=MINUTE_MS, at_most=2)
            for _ in range(3)
            for shard in range(SHARDS)
            for store in stores
        )
    )
    claimed = Counter(lease.member for each in claims for lease in each.leases)
    assert claimed == Counter(ACCOUNTS)
