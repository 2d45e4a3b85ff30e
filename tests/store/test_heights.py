"""The height of the last accepted snapshot rises with a commit or a touch, and no worker lowers it."""

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import ACCOUNT, MINUTE_MS, PROVIDER, Store, a_commit, a_store
from watcher.journal.account import AccountState
from watcher.store.polls import Commit
from watcher.store.schedule import Reply

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)


async def at(store: Store, height: int | None, *, expected: str = "", version: str = "v1") -> Commit:
    """A step of a poll that was read at this height."""
    made = a_commit(await store.lease(), expected=expected, version=version, ETH="10")
    return made._replace(step=made.step._replace(state=made.step.state._replace(height=height)))


async def touch(store: Store, height: int | None, *, polled_at_ms: int = 7777) -> Reply:
    lease = await store.lease()
    return await store.polls.touch(
        PROVIDER,
        lease,
        version="v1",
        polled_at_ms=polled_at_ms,
        due_ms=lease.deadline + MINUTE_MS,
        height=height,
    )


async def state(store: Store) -> AccountState:
    """The state as any worker reads it."""
    found = await store.polls.read_state(PROVIDER, ACCOUNT)
    assert found
    return found


async def test_a_touch_raises_the_height_and_changes_nothing_else(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    step = await at(store, 100)
    assert (await store.polls.commit(step)).reply is Reply.DONE
    assert await state(store) == step.step.state
    assert await touch(store, 10**20 - 1) is Reply.DONE
    after = step.step.state._replace(polled_at_ms=7777, height=10**20 - 1)
    assert await state(store) == after
    assert await store.polls.state_of(PROVIDER, ACCOUNT) == after


async def test_a_touch_without_a_height_keeps_it(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.polls.commit(await at(store, 100))
    assert await touch(store, None) is Reply.DONE
    assert ((await state(store)).polled_at_ms, (await state(store)).height) == (7777, 100)


@pytest.mark.parametrize(("height", "reply"), [(99, Reply.MOVED_ON), (100, Reply.DONE), (101, Reply.DONE)])
async def test_a_worker_with_an_older_height_lowers_nothing(
    redis_client: Redis, namespace: str, height: int, reply: Reply
) -> None:
    store, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    await store.polls.commit(await at(store, 50))
    assert await touch(other, 100) is Reply.DONE
    assert await touch(store, height, polled_at_ms=8888) is reply
    assert (await state(store)).height == max(height, 100)
    kept = await store.polls.state_of(PROVIDER, ACCOUNT)
    assert kept
    assert kept.height == max(height, 100), "its cached state is out of date"


async def test_a_touch_never_writes_a_height_into_a_state_that_has_none(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.polls.commit(await at(store, None))
    before = await store.pipe.command("GET", store.keys.state(ACCOUNT))
    assert await touch(store, 1) is Reply.MOVED_ON
    assert await store.pipe.command("GET", store.keys.state(ACCOUNT)) == before


@pytest.mark.parametrize("height", [None, 100])
async def test_a_commit_without_a_poll_keeps_the_touch_of_a_poll_meanwhile(
    redis_client: Redis, namespace: str, height: int | None
) -> None:
    store = a_store(redis_client, namespace)
    await store.polls.commit(await at(store, height))
    stale = await at(store, height, expected="v1", version="v2")
    assert await touch(store, height and 120) is Reply.DONE
    assert (await store.polls.commit(stale._replace(lease=None))).reply is Reply.DONE
    after = await state(store)
    assert after == stale.step.state._replace(polled_at_ms=7777, height=height and 120)


async def test_a_commit_without_a_poll_that_starts_anew_has_no_time(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.polls.commit(await at(store, 100))
    anew = await at(store, None, expected="v1", version="v2")
    begins = anew.step.state._replace(polled_at_ms=0, entry_by_asset={})
    step = anew._replace(lease=None, step=anew.step._replace(state=begins))
    assert (await store.polls.commit(step)).reply is Reply.DONE
    assert await state(store) == begins


async def test_a_commit_from_an_outdated_height_is_refused_whatever_the_time(
    redis_client: Redis, namespace: str
) -> None:
    store, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    first = await at(store, 50)
    await store.polls.commit(first)
    assert await touch(other, 100, polled_at_ms=first.step.state.polled_at_ms) is Reply.DONE
    step = await at(store, 60, expected="v1", version="v2")
    assert (await store.polls.commit(step)).reply is Reply.MOVED_ON
    assert (await state(store)).height == 100
