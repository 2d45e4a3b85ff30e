"""An account is reset beside workers: work in hand goes on from there, and the backlog stays."""

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    OPS,
    PROVIDER,
    SHARD,
    Store,
    a_commit,
    a_store,
    some_deliveries,
)
from watcher.journal.step import reset
from watcher.store.polls import Commit
from watcher.store.schedule import Reply

ONE, TWO = some_deliveries(1, 2)

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)


@pytest.fixture
async def store(redis_client: Redis, namespace: str) -> Store:
    """With an account that was read, and two events of it that wait."""
    store = a_store(redis_client, namespace)
    step = a_commit(await store.lease(), ETH="10", deliveries={OPS: [ONE, TWO]})
    assert (await store.polls.commit(step)).reply is Reply.DONE
    return store


async def anew(store: Store, version: str = "anew") -> Commit:
    """The step of a reset from what any worker reads now."""
    state = await store.polls.read_state(PROVIDER, ACCOUNT)
    assert state
    step = reset(state, "ann@host", version=version, now_ms=await store.now_ms())
    return Commit(ACCOUNT, PROVIDER, None, state.version, step)


async def test_a_reset_changes_neither_queues_nor_bodies_nor_the_schedule(store: Store) -> None:
    commit = await anew(store)
    before = await store.contents()
    assert (await store.polls.commit(commit)).reply is Reply.DONE
    assert (await store.polls.commit(commit)).reply is Reply.DONE_BEFORE, "a repeat after a lost answer"
    after = await store.contents()
    keys = store.keys
    moved = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert moved == {keys.state(ACCOUNT), keys.log(SHARD), keys.sizes(SHARD)}
    assert await store.polls.read_state(PROVIDER, ACCOUNT) == commit.step.state
    assert b'"type":"forgotten"' in (await store.stream(keys.log(SHARD)))[-1]["entry"]


async def test_the_event_in_flight_is_settled_and_the_next_one_follows(store: Store) -> None:
    lease = await store.lease_queue()
    assert (await store.polls.commit(await anew(store))).reply is Reply.DONE
    for one, left in ((ONE, [TWO.entry]), (TWO, [])):
        until = store.queues.until(lease, 2 * MINUTE_MS)
        reply, _ = await store.queues.delivered(OPS, lease, one.entry, until=until)
        assert reply is Reply.DONE
        assert await store.queue() == left
        lease = lease._replace(deadline=until)


async def test_after_a_reset_a_poll_in_flight_and_its_touch_are_refused(store: Store) -> None:
    lease = await store.lease()
    assert (await store.polls.commit(await anew(store))).reply is Reply.DONE
    touched = await store.polls.touch(
        PROVIDER, lease, version="v1", polled_at_ms=7777, due_ms=lease.deadline + MINUTE_MS
    )
    assert touched is Reply.MOVED_ON
    stale = a_commit(lease, expected="v1", version="v2", ETH="11")
    assert (await store.polls.commit(stale)).reply is Reply.MOVED_ON
    fresh = a_commit(lease, expected="anew", version="v3", ETH="11")
    assert (await store.polls.commit(fresh)).reply is Reply.DONE


async def test_a_reset_that_a_poll_overtakes_is_refused(store: Store) -> None:
    late = await anew(store)
    poll = a_commit(await store.lease(), expected="v1", version="v2", ETH="11")
    assert (await store.polls.commit(poll)).reply is Reply.DONE
    assert (await store.polls.commit(late)).reply is Reply.MOVED_ON
    assert await store.polls.read_state(PROVIDER, ACCOUNT) == poll.step.state
