"""The commit: state, log, queues and the next poll change in one step, once, or not at all."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.builders import a_balance
from tests.support.servers import EVERY_ENGINE
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    NEIGHBOURS,
    OPS,
    PROVIDER,
    SHARD,
    Store,
    a_commit,
    a_delivery,
    a_store,
    running,
    some_deliveries,
)
from watcher.store.polls import Commit
from watcher.store.queues import Bounds
from watcher.store.schedule import Lease, Reply
from watcher.store.state import BadState

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

HOSTILE = b"\x00\xff\r\n%s %d \x1b[2J" + b"9" * 78 + b"1e400000 \xf0\x9f\x92\xb8"


async def committed(store: Store, **fields: Any) -> Commit:
    """A step that went through."""
    step = a_commit(await store.lease(), **fields)
    assert (await store.polls.commit(step)).reply is Reply.DONE
    return step


async def refused(store: Store, step: Commit, reply: Reply) -> None:
    """Claim that a step is answered so, and leaves everything as it was."""
    before = await store.contents()
    assert (await store.polls.commit(step)).reply is reply
    assert await store.contents() == before


async def test_one_commit_writes_state_log_queues_and_the_next_poll(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    first, second = some_deliveries(1, 2)
    other = a_delivery(3, previous=None, subscription="audit")
    step = await committed(
        store,
        ETH="10",
        follows=6,
        notes=[b"baseline", b"event"],
        deliveries={OPS: [first, second], "audit": [other]},
    )
    keys = store.keys
    assert await store.polls.read_state(PROVIDER, ACCOUNT) == step.step.state
    account = ACCOUNT.encode()
    assert await store.stream(keys.log(SHARD)) == [
        {"account": account, "entry": b"6 baseline"},
        {"account": account, "entry": b"6 event"},
        {"account": account, "entry": b"6 evt_1 1", "queued": b"ops -"},
        {"account": account, "entry": b"6 evt_2 2", "queued": b"ops 1"},
        {"account": account, "entry": b"6 evt_3 3", "queued": b"audit -"},
    ]
    assert await store.bodies() == {
        one.entry.rpartition(b" ")[0]: b"2 " + one.stored for one in (first, second, other)
    }
    assert await store.queue() == [first.entry, second.entry]
    assert await store.queue(subscription="audit") == [other.entry]
    assert await store.scores(keys.polls(SHARD, PROVIDER)) == {ACCOUNT: step.due_ms}
    await store.now_ms()
    assert sorted(await store.queues.due_subscriptions(SHARD)) == ["audit", OPS]
    for subscription in ("audit", OPS):
        claimed = await store.queues.claim(subscription, SHARD, lease_ms=MINUTE_MS, at_most=10)
        assert [lease.member for lease in claimed.leases] == [ACCOUNT]


async def test_an_account_without_a_baseline_has_no_state(redis_client: Redis, namespace: str) -> None:
    assert await a_store(redis_client, namespace).polls.read_state(PROVIDER, ACCOUNT) is None


async def test_the_next_commit_replaces_the_state_and_appends_to_the_queue(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    one, two, three = some_deliveries(1, 2, 3)
    await committed(store, ETH="10", deliveries={OPS: [one]})
    after = await committed(
        store, expected="v1", version="v2", sequence=3, BTC="1", deliveries={OPS: [two, three]}
    )
    assert await store.polls.read_state(PROVIDER, ACCOUNT) == after.step.state
    assert await store.queue() == [one.entry, two.entry, three.entry]


async def test_a_successful_poll_resets_the_count_of_rejections(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.polls.postpone(PROVIDER, await store.lease(), why="down", at_least_ms=0, waits_ms=[5])
    await committed(store)
    assert store.keys.failing(SHARD, PROVIDER) not in await store.contents()


async def test_a_commit_without_a_successful_poll_keeps_its_time_and_the_rejections(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    before = await committed(store, ETH="10")
    lease = await store.lease()
    await store.polls.postpone(PROVIDER, lease, why="down", at_least_ms=0, waits_ms=[5])
    step = a_commit(await store.lease(), expected="v1", version="v2", ETH="10")
    state = step.step.state._replace(polled_at_ms=before.step.state.polled_at_ms + 1)
    step = step._replace(lease=None, step=step.step._replace(state=state))
    assert (await store.polls.commit(step)).reply is Reply.DONE
    after = await store.polls.read_state(PROVIDER, ACCOUNT)
    assert after
    assert (after.version, after.polled_at_ms) == ("v2", before.step.state.polled_at_ms)
    assert store.keys.failing(SHARD, PROVIDER) in await store.contents()


async def test_a_commit_without_a_poll_needs_no_lease_and_keeps_the_schedule(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await committed(store, ETH="10")
    lease = await store.lease()
    step = a_commit(lease, expected="v1", version="v2", deliveries={OPS: [a_delivery()]})._replace(lease=None)
    assert (await store.polls.commit(step)).reply is Reply.DONE
    assert (await store.polls.commit(step)).reply is Reply.DONE_BEFORE
    key = store.keys.polls(SHARD, PROVIDER)
    assert float(await store.pipe.command("ZSCORE", key, ACCOUNT)) == lease.deadline
    assert len(await store.queue()) == 1
    poll = a_commit(lease, expected="v2", version="v3", ETH="11")
    assert (await store.polls.commit(poll)).reply is Reply.DONE, "the poll under way goes on from it"


async def test_a_commit_without_a_poll_schedules_no_unscheduled_account(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    step = a_commit(await store.lease())._replace(lease=None)
    await store.roster.enroll({PROVIDER: []}, now_ms=await store.now_ms())
    await refused(store, step, Reply.LEASE_LOST)


async def test_an_account_may_have_a_state_before_its_first_successful_poll(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    step = a_commit(await store.lease())._replace(lease=None)
    assert (await store.polls.commit(step)).reply is Reply.DONE
    state = await store.polls.read_state(PROVIDER, ACCOUNT)
    assert state
    assert state.polled_at_ms == 0


async def test_a_commit_from_an_outdated_state_is_refused(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await committed(store, deliveries={OPS: [a_delivery(1)]})
    await committed(store, expected="v1", version="v2", deliveries={OPS: [a_delivery(2)]})
    late = a_commit(
        await store.lease(), expected="v1", version="v2b", notes=[b"late"], deliveries={OPS: [a_delivery(3)]}
    )
    await refused(store, late, Reply.MOVED_ON)


async def test_a_second_baseline_is_refused(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await committed(store, ETH="10")
    await refused(store, a_commit(await store.lease(), version="v1b", ETH="11"), Reply.MOVED_ON)


async def test_a_commit_on_a_lost_state_is_refused(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await refused(store, a_commit(await store.lease(), expected="v7", version="v8"), Reply.MOVED_ON)


@pytest.mark.parametrize("off_ms", [-MINUTE_MS, -1, 1])
async def test_a_commit_without_the_lease_is_refused(
    redis_client: Redis, namespace: str, off_ms: int
) -> None:
    store = a_store(redis_client, namespace)
    held = await store.lease()
    late = a_commit(
        Lease(ACCOUNT, held.deadline + off_ms), notes=[b"late"], deliveries={OPS: [a_delivery()]}, ETH="1"
    )
    await refused(store, late, Reply.LEASE_LOST)


async def test_a_commit_of_an_account_removed_meanwhile_is_refused(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.roster.enroll({PROVIDER: [ACCOUNT]}, now_ms=await store.now_ms())
    step = a_commit(await store.lease(), ETH="1", deliveries={OPS: [a_delivery()]})
    await store.roster.enroll({PROVIDER: []}, now_ms=await store.now_ms())
    await refused(store, step, Reply.LEASE_LOST)


async def test_a_worker_that_wakes_after_its_lease_undoes_no_work_of_another(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await committed(store, ETH="10")
    lease = await store.lease()
    zombie = a_commit(lease, expected="v1", version="zombie", ETH="11", deliveries={OPS: [a_delivery(11)]})
    heir = Lease(ACCOUNT, lease.deadline + 1)
    await store.pipe.command("ZADD", store.keys.polls(SHARD, PROVIDER), heir.deadline, ACCOUNT)
    await refused(store, zombie, Reply.LEASE_LOST)
    taken = a_commit(heir, expected="v1", version="v2", ETH="12", deliveries={OPS: [a_delivery(12)]})
    assert (await store.polls.commit(taken)).reply is Reply.DONE
    await refused(store, zombie, Reply.MOVED_ON)


async def test_a_repeated_commit_is_recognized_and_queues_nothing_twice(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    step = await committed(store, notes=[b"event"], deliveries={OPS: [a_delivery()]})
    await refused(store, step, Reply.DONE_BEFORE)
    await refused(store, step, Reply.DONE_BEFORE)


async def test_a_commit_sent_twice_in_one_pipeline_is_done_once(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    step = a_commit(await store.lease(), notes=[b"event"], deliveries={OPS: [a_delivery()]})
    async with running(store.pipe):
        first, second = await asyncio.gather(store.polls.commit(step), store.polls.commit(step))
    assert (first.reply, second.reply) == (Reply.DONE, Reply.DONE_BEFORE)
    assert await store.queue() == [a_delivery().entry]
    assert len(await store.stream(store.keys.log(SHARD))) == 2


async def test_a_repeat_after_the_next_commit_changes_nothing(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    step = await committed(store, deliveries={OPS: [a_delivery(1)]})
    await committed(store, expected="v1", version="v2", deliveries={OPS: [a_delivery(2)]})
    await refused(store, step, Reply.MOVED_ON)


async def test_bytes_are_stored_unchanged(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    delivery = a_delivery(content=HOSTILE)
    huge = a_balance("9" * 77, "0." + "1" * 78, None, "-" + "7" * 77)
    step = await committed(store, ETH=huge, notes=[HOSTILE], deliveries={OPS: [delivery]})
    assert await store.queue() == [delivery.entry]
    assert (await store.stream(store.keys.log(SHARD)))[0]["entry"] == b"0 " + HOSTILE
    _, begun = await store.begin(await store.lease_queue())
    assert begun.deliveries == [(delivery.entry, delivery)]
    assert await store.polls.read_state(PROVIDER, ACCOUNT) == step.step.state


async def test_a_commit_may_be_large(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    numbers = range(1, 201)
    await committed(
        store,
        notes=[b"%d" % number for number in numbers],
        deliveries={f"s{n}": some_deliveries(*numbers) for n in range(30)},
    )
    entries = [entry["entry"] for entry in await store.stream(store.keys.log(SHARD))]
    assert entries == [
        *(b"0 %d" % number for number in numbers),
        *(b"0 evt_%d %d" % (number, number) for number in numbers),
    ]
    assert {body[:3] for body in (await store.bodies()).values()} == {b"31 "}
    for n in range(30):
        assert await store.queue(subscription=f"s{n}") == [each.entry for each in some_deliveries(*numbers)]


async def test_a_queue_takes_more_values_than_lua_unpacks_at_once(
    redis_client: Redis, namespace: str
) -> None:
    store, many = a_store(redis_client, namespace), some_deliveries(*range(1, 2502))
    await committed(store, deliveries={OPS: many})
    assert await store.queue() == [each.entry for each in many]


async def test_a_leased_or_waiting_queue_keeps_its_time(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await committed(store, deliveries={OPS: [a_delivery(1)]})
    lease = await store.lease_queue()
    await store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=10)  # the index learns of the lease
    await committed(store, expected="v1", version="v2", deliveries={OPS: [a_delivery(2)]})
    assert await store.scores(store.keys.queues(SHARD, OPS)) == {ACCOUNT: lease.deadline}
    assert await store.scores(store.keys.due_subscriptions(SHARD)) == {OPS: lease.deadline}


async def test_a_new_queue_never_delays_a_subscription_that_was_due_before(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.due(store.keys.due_subscriptions(SHARD), **{OPS: -MINUTE_MS})
    before = await store.scores(store.keys.due_subscriptions(SHARD))
    await committed(store, deliveries={OPS: [a_delivery()]})
    assert await store.scores(store.keys.due_subscriptions(SHARD)) == before


async def test_the_log_is_trimmed_to_its_bytes_and_queued_events_keep_their_bodies(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace, bounds=Bounds(log=20_000))
    content = b'{"id":"' + b"x" * 700
    expected = ""
    for number in range(1, 101):
        deliveries = {OPS: [a_delivery(number, content)]}
        await committed(store, expected=expected, version=f"v{number}", deliveries=deliveries)
        expected = f"v{number}"
    entries = [entry["entry"] for entry in await store.stream(store.keys.log(SHARD))]
    assert 15 < len(entries) < 25
    assert entries[-1] == b"0 evt_100 100"
    kept = {entry.partition(b" ")[2] for entry in entries}
    counts = {reference: body[:2] for reference, body in (await store.bodies()).items()}
    assert counts == {
        b"evt_%d %d" % (n, n): b"2 " if b"evt_%d %d" % (n, n) in kept else b"1 " for n in range(1, 101)
    }


async def test_a_large_commit_is_trimmed_by_later_commits(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace, bounds=Bounds(log=2_000))
    await committed(store, deliveries={OPS: some_deliveries(*range(1, 401))})
    for number in range(500, 600):
        expected = "v1" if number == 500 else f"v{number - 1}"
        deliveries = {OPS: [a_delivery(number)]}
        await committed(store, expected=expected, version=f"v{number}", deliveries=deliveries)
    assert len(await store.stream(store.keys.log(SHARD))) < 40
    assert len(await store.bodies()) == 500


async def test_a_log_with_a_lowered_bound_is_within_it_after_a_few_commits(
    redis_client: Redis, namespace: str
) -> None:
    for bound, numbers in ((8 << 20, range(1, 101)), (1_000, range(101, 112))):
        store = a_store(redis_client, namespace, bounds=Bounds(log=bound))
        for number in numbers:
            await store.fill(a_delivery(number))
    assert len(await store.stream(store.keys.log(SHARD))) < 10


async def test_an_event_that_is_committed_again_is_counted_again(redis_client: Redis, namespace: str) -> None:
    """Its id and sequence may come again: a server that was rolled back computes the same event anew."""
    store = a_store(redis_client, namespace)
    await committed(store, deliveries={OPS: [a_delivery()]})
    await committed(
        store, expected="v1", version="v2", deliveries={OPS: [a_delivery()], "audit": [a_delivery()]}
    )
    assert await store.bodies() == {b"evt_1 1": b"5 " + a_delivery().stored}


@pytest.mark.parametrize(
    "damaged",
    [
        *(
            "state",
            "queued",
            "polls",
            "failing",
            "log",
            "bodies",
            "sizes",
            "backlogs",
            "due",
            "queue",
            "queues",
        ),
        *("second queue", "second queues"),
    ],
)
async def test_a_damaged_key_fails_the_commit_before_anything_is_written(
    redis_client: Redis, namespace: str, damaged: str
) -> None:
    store = a_store(redis_client, namespace)
    await committed(store, ETH="10", deliveries={OPS: [a_delivery(1)]})
    step = a_commit(
        await store.lease(),
        expected="v1",
        version="v2",
        ETH="11",
        notes=[b"event"],
        deliveries={OPS: [a_delivery(2)], "second": [a_delivery(2)]},
    )
    keys = store.keys
    key = {
        "state": keys.state(ACCOUNT),
        "polls": keys.polls(SHARD, PROVIDER),
        "failing": keys.failing(SHARD, PROVIDER),
        "log": keys.log(SHARD),
        "due": keys.due_subscriptions(SHARD),
        "queue": keys.queue(OPS, ACCOUNT),
        "queues": keys.queues(SHARD, OPS),
        "queued": keys.queued(ACCOUNT),
        "bodies": keys.bodies(SHARD),
        "sizes": keys.sizes(SHARD),
        "backlogs": keys.backlogs(SHARD),
        "second queue": keys.queue("second", ACCOUNT),
        "second queues": keys.queues(SHARD, "second"),
    }[damaged]
    await store.damage(key)
    before = await store.contents()
    with pytest.raises(BadState, match="of another type"):
        await store.polls.commit(step)
    assert await store.contents() == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"schema":2}', b"\xff"])
async def test_a_damaged_state_is_reported_and_affects_no_other_account(
    redis_client: Redis, namespace: str, body: bytes
) -> None:
    store = a_store(redis_client, namespace)
    await committed(store, ETH="10")
    await store.pipe.command("SETRANGE", store.keys.state(ACCOUNT), 34, body.ljust(200))
    with pytest.raises(BadState):
        await store.polls.read_state(PROVIDER, ACCOUNT)
    step = a_commit(await store.lease(NEIGHBOURS[0]), ETH="1")
    assert (await store.polls.commit(step)).reply is Reply.DONE
    assert await store.polls.read_state(PROVIDER, NEIGHBOURS[0]) == step.step.state


@pytest.mark.parametrize(
    "command", [("HSET", "is", "damaged"), ("RPUSH", "damaged"), ("ZADD", "1", "damaged")]
)
async def test_a_state_of_another_type_is_reported_as_damage(
    redis_client: Redis, namespace: str, command: tuple[str, ...]
) -> None:
    store = a_store(redis_client, namespace)
    name, *arguments = command
    await store.pipe.command(name, store.keys.state(ACCOUNT), *arguments)
    with pytest.raises(BadState, match="of another type"):
        await store.polls.read_state(PROVIDER, ACCOUNT)


@pytest.mark.parametrize("length", [0, 10, 16, 20, 32, 40, 50])
async def test_a_state_that_is_cut_off_is_reported_as_damage(
    redis_client: Redis, namespace: str, length: int
) -> None:
    store = a_store(redis_client, namespace)
    await committed(store, ETH="10")
    text = await store.pipe.command("GET", store.keys.state(ACCOUNT))
    await store.pipe.command("SET", store.keys.state(ACCOUNT), text[:length])
    with pytest.raises(BadState):
        await store.polls.read_state(PROVIDER, ACCOUNT)


async def test_a_wiped_server_accepts_a_new_baseline_and_no_older_commit(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.roster.enroll({PROVIDER: [ACCOUNT]}, now_ms=await store.now_ms())
    await committed(store, ETH="10")
    late = a_commit(
        await store.lease(), expected="v1", version="v2", deliveries={OPS: [a_delivery()]}, ETH="11"
    )
    await store.pipe.command("DEL", *await store.contents())  # FLUSHALL, as far as this namespace can see
    await refused(store, late, Reply.MOVED_ON)
    enrolled = await store.roster.enroll({PROVIDER: [ACCOUNT]}, now_ms=await store.now_ms())
    assert (enrolled.added, enrolled.removed) == (1, 0)
    assert await store.polls.read_state(PROVIDER, ACCOUNT) is None
    await committed(store, version="v1b", ETH="11")
