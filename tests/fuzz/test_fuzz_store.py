"""Any damage in Redis is seen by every reader, and work beside it goes on.

A real server holds two accounts of one shard, with all that a worker keeps of them. Of one account, and of
what belongs to no account, something is overwritten; then every reader is tried, and the other account
is polled and delivered.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
import uvloop
from hypothesis import example
from hypothesis import strategies as st
from redis.asyncio import Redis

from tests.support.builders import a_subscription, an_account
from tests.support.fuzzing import fuzz, garbage, made
from tests.support.servers import real_server
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
    fail,
    some_deliveries,
)
from watcher.delivery.breakers import SubscriptionBreakers
from watcher.delivery.sink import Attempt
from watcher.delivery.webhook import answer_of
from watcher.durations import parse_duration
from watcher.observe.views import account_line, problems_of, provider_line, subscription_line, worker_line
from watcher.settings import Settings
from watcher.store import history, members, reader
from watcher.store.client import connect
from watcher.store.history import History
from watcher.store.keys import Keys
from watcher.store.members import Presence, Workers
from watcher.store.pipe import Pipe
from watcher.store.polls import Polls
from watcher.store.queues import Bounds, Breaker, Breakers, Queues
from watcher.store.reader import Reader
from watcher.store.schedule import Lease, Reply
from watcher.store.state import BadState

NEIGHBOUR = next(name for name in NEIGHBOURS if name != ACCOUNT)
KEYS = Keys("watcher")
SCORES = (b"inf", b"-inf", b"1e300", b"-1", b"0.5", b"0", b"99999999999999999")
DELIVERIES = {ACCOUNT: some_deliveries(1, 2, 3), NEIGHBOUR: some_deliveries(11, 12, 13)}
REFERENCES = tuple(f"{one.event_id} {one.sequence}".encode() for one in DELIVERIES[ACCOUNT])
NARROW = Bounds(1, 1, 1)
RETRIES = (parse_duration("0s"), parse_duration("5s"))
SETTINGS = a_subscription(OPS)

Damage = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A server with a store in it that can be put back to what it was."""

    runner: asyncio.Runner
    client: Redis
    pipe: Pipe
    """One for all examples: each keeps the connections that it has used."""
    dumps: Mapping[bytes, bytes]

    def _repr_pretty_(self, printer: Any, _is_cycle: bool) -> None:
        """Keep its contents out of what hypothesis says of a failure."""
        printer.text("place")

    async def damaged(self, damage: Damage) -> Store:
        async with self.client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("FLUSHALL")
            for key, dump in self.dumps.items():
                pipeline.execute_command("RESTORE", key, 0, dump)
            pipeline.execute_command(*damage)
            await pipeline.execute()
        store = a_store(self.client, KEYS.namespace, self.pipe)
        await store.schedule.read_clock()
        return store


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """All is in the first shard, and no other one is looked at: that is sixteen times as fast."""
    assert SHARD == 0
    with (
        real_server("valkey") as server,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        pytest.MonkeyPatch.context() as patch,
    ):
        for module in (history, members, reader):
            patch.setattr(module, "SHARDS", 1)
        client = runner.run(_connected(server.url))
        pipe = Pipe(client)
        yield Place(runner, client, pipe, runner.run(_furnished(client)))
        runner.run(pipe.aclose())


async def _connected(url: str) -> Redis:
    return connect(url)


async def _furnished(client: Redis) -> dict[bytes, bytes]:
    """Let two accounts live through everything that is written down; returns all keys."""
    store = a_store(client, KEYS.namespace)
    await store.roster.enroll({PROVIDER: [ACCOUNT, NEIGHBOUR]}, now_ms=1)
    await store.roster.note_enrolled("a")
    for account in (ACCOUNT, NEIGHBOUR):
        step = a_commit(
            await store.lease(account),
            deliveries={OPS: DELIVERIES[account]},
            notes=[b'{"type":"forgotten","sequence":1,"timestamp":"2026-11-20T14:03:05.120Z","assets":[]}'],
            LRC="12",
        )
        assert (await store.polls.commit(step)).reply is Reply.DONE
        first, second, _ = DELIVERIES[account]
        lease = await store.lease_queue(account)
        reply, deadline = await store.queues.dead(
            OPS,
            lease,
            first.entry,
            until=store.queues.until(lease, MINUTE_MS),
            reason="no",
            record=b'{"attempt":1}',
        )
        assert reply is Reply.DONE
        await store.queues.retry(OPS, Lease(account, deadline), second.entry, wait_ms=1)
        await store.polls.postpone(
            PROVIDER, await store.lease(account), why="rate slow", at_least_ms=1, waits_ms=[1]
        )
        await store.due(KEYS.polls(SHARD, PROVIDER), **{account: -1})
        await store.due(KEYS.queues(SHARD, OPS), **{account: -1})
    breakers, workers = Breakers(store.pipe, KEYS), Workers(store.pipe, KEYS)
    await fail(breakers, "other", "status 500", pause=True)
    await breakers.take_probes(OPS, ["me"], at_most=1, lease_ms=MINUTE_MS)
    await breakers.count_results(OPS, closed_at_ms=0)
    await workers.note(Presence("w", "host", 1, "1.0", 1, {PROVIDER: 0.5}))
    await store.polls.take_turns(PROVIDER, 1, spacing_ms=1)
    await breakers.take_turn(OPS, spacing_ms=1, within_ms=1000)
    keys: Any = await client.keys("*")
    return {key: (await client.dump(key)) or b"" for key in keys}


def _damage(random: Random) -> Damage:
    """One command that overwrites something of ACCOUNT's, or adds what belongs to no account."""
    member = random.choice((ACCOUNT.encode(), garbage(random)))
    sub = random.choice((OPS.encode(), garbage(random)))
    score = random.choice(SCORES)
    text = garbage(random)
    reference = random.choice((*REFERENCES, member))
    count = b"%d " % random.choice(_COUNTS)
    return random.choice(
        (
            ("HSET", KEYS.meta(), random.choice(("providers", "enrolled")), text),
            ("HSET", KEYS.breakers(), sub, text),
            (
                "HSET",
                KEYS.breakers(),
                OPS,
                b'{"since_ms":%d,"allowed":%d}' % tuple(random.choices(_COUNTS, k=2)),
            ),
            ("HSET", KEYS.workers(), "w", text),
            ("HSET", KEYS.workers(), b"w2", b"%d " % random.choice(_COUNTS) + text),
            ("HSET", KEYS.failing(SHARD, PROVIDER), member, text),
            (
                "HSET",
                KEYS.failing(SHARD, PROVIDER),
                member,
                b"%d %d x y" % tuple(random.choices(_COUNTS, k=2)),
            ),
            ("HSET", KEYS.tries(SHARD, OPS), member, text),
            ("HSET", KEYS.tries(SHARD, OPS), member, count + DELIVERIES[ACCOUNT][1].entry),
            ("SETRANGE", KEYS.state(ACCOUNT), random.choice((0, 16, 17, 31, 32, 33, 40)), text),
            ("SET", KEYS.state(ACCOUNT), text),
            ("HSET", KEYS.queued(ACCOUNT), sub, text),
            ("HSET", KEYS.bodies(SHARD), reference, text),
            ("HSET", KEYS.bodies(SHARD), reference, count + text),
            ("HDEL", KEYS.bodies(SHARD), reference),
            ("DEL", KEYS.queued(ACCOUNT)),
            ("SET", KEYS.queued(ACCOUNT), text),
            ("HSET", KEYS.sizes(SHARD), random.choice(("log", "dead", "attempts")), text),
            ("HSET", KEYS.sizes(SHARD), random.choice(("log", "dead", "attempts")), random.choice(_COUNTS)),
            ("XADD", KEYS.given_up(SHARD), "*", b"subscription", sub, b"account", member, b"delivery", text),
            ("SET", KEYS.rate(PROVIDER), text),
            ("SET", KEYS.rate(PROVIDER), random.choice(SCORES)),
            ("SET", KEYS.subscription_rate(OPS), random.choice(SCORES)),
            ("SET", KEYS.subscription_rate(OPS), b" ".join(random.choices(SCORES, k=5))),
            ("SET", KEYS.row(SHARD, OPS), text),
            ("ZADD", KEYS.results(SHARD, OPS), score, member),
            ("SET", KEYS.probes(OPS), text),
            ("ZADD", KEYS.polls(SHARD, PROVIDER), score, member),
            ("ZADD", KEYS.queues(SHARD, OPS), score, member),
            ("ZADD", KEYS.due_subscriptions(SHARD), random.choice((b"0", b"-inf")), sub),
            ("LSET", KEYS.queue(OPS, ACCOUNT), random.choice((0, -1)), text),
            ("RPUSH", KEYS.queue(OPS, ACCOUNT), text),
            ("DEL", KEYS.queue(OPS, ACCOUNT)),
            ("SET", KEYS.queue(OPS, ACCOUNT), text),
            ("SET", KEYS.queue(OPS, "left"), text),
            (
                "XADD",
                KEYS.log(SHARD),
                "*",
                random.choice((b"account", text)),
                member,
                b"entry",
                garbage(random),
            ),
            ("XADD", KEYS.log(SHARD), "*", b"account", member, b"entry", b"0 evt_2 2", b"queued", text),
            ("XADD", KEYS.dead(SHARD, OPS), "*", b"account", member, b"reason", text, b"delivery", text),
            ("XADD", random.choice((KEYS.log(SHARD), KEYS.dead(SHARD, OPS))), "*", b"account", member),
            ("XADD", KEYS.attempts(SHARD, OPS), "*", b"attempt", text),
            ("XADD", KEYS.attempts(SHARD, OPS), "*", b"attempt", _json(random)),
        )
    )


_COUNTS = (0, 1, 7, 10**13, 10**14, 10**18, 10**30)


def _json(random: Random) -> bytes:
    values = ("x", 1, 10**20, 1.5, None, [1], {"a": 1}, True)
    names = ("account", "event_id", "attempt", "outcome", "status", "error", "duration_ms", "answer")
    return json.dumps({name: random.choice(values) for name in names if random.random() < 0.8}).encode()


DAMAGES: st.SearchStrategy[Damage] = made(_damage)


@example(damage=("ZADD", KEYS.polls(SHARD, PROVIDER), "inf", ACCOUNT))
@example(damage=("ZADD", KEYS.queues(SHARD, OPS), "inf", ACCOUNT))
@example(damage=("ZADD", KEYS.due_subscriptions(SHARD), 0, b"\xff"))
@example(damage=("HSET", KEYS.breakers(), OPS, b"1 %d 0 1 no" % 10**30))
@example(damage=("HSET", KEYS.tries(SHARD, OPS), ACCOUNT, b"9" * 5000 + b" x"))
@example(damage=("HSET", KEYS.workers(), "w", b"1 " + b"[" * 5000))
@example(damage=("LSET", KEYS.queue(OPS, ACCOUNT), 0, b"evt_2 " + b"9" * 5000 + b" 1"))
@fuzz(damage=DAMAGES)
def test_every_reader_sees_the_damage(place: Place, damage: Damage) -> None:
    place.runner.run(_look(place, damage))


@example(damage=("HSET", KEYS.meta(), "providers", "{"))
@example(damage=("HSET", KEYS.tries(SHARD, OPS), ACCOUNT, "x"))
@example(damage=("XADD", KEYS.log(SHARD), "*", "account", ACCOUNT))
@example(damage=("XADD", KEYS.dead(SHARD, OPS), "*", "account", ACCOUNT))
@example(damage=("HSET", KEYS.sizes(SHARD), "log", "nan", "dead", "inf", "attempts", "-1"))
@example(damage=("HSET", KEYS.bodies(SHARD), "evt_2 2", "1e300 x"))
@example(damage=("ZADD", KEYS.polls(SHARD, PROVIDER), 0, b"\xff"))
@example(damage=("ZADD", KEYS.queues(SHARD, OPS), 0, b"\xff"))
@fuzz(damage=DAMAGES)
def test_work_beside_the_damage_goes_on(place: Place, damage: Damage) -> None:
    place.runner.run(_go_on(place, damage))


async def _look(place: Place, damage: Damage) -> None:
    store = await place.damaged(damage)
    pipe, looker = store.pipe, Reader(store.pipe, KEYS)
    now_ms = await store.now_ms()
    failing = await looker.failing(PROVIDER)
    json.dumps(provider_line(PROVIDER, failing, await looker.overdue(PROVIDER), now_ms))
    accounts = {name: an_account(name) for name in (ACCOUNT, NEIGHBOUR)}
    settings = Settings(provider_by_name={}, account_by_name=accounts, subscription_by_name={})
    since_ms = await looker.watched_since_ms()
    async for seen in looker.read_states({ACCOUNT: PROVIDER, NEIGHBOUR: PROVIDER}):
        one = failing.get(seen.account)
        problems = problems_of(settings, seen, one, now_ms, watched_since_ms=since_ms)
        json.dumps(account_line(accounts[seen.account], seen, one, problems))
    breakers = await Breakers(pipe, KEYS).read()
    for name, backlog in (await looker.backlogs([OPS])).items():
        json.dumps(
            subscription_line(name, backlog, breakers.get(name), now_ms, known=None, is_configured=True)
        )
    for presence in await Workers(pipe, KEYS).read():
        json.dumps(worker_line(presence, now_ms))
    await Reader(pipe, KEYS).waiting([OPS])
    await Reader(pipe, KEYS).count_due([PROVIDER], now_ms=now_ms)
    queues = Reader(pipe, KEYS)
    for queue in await queues.queues(OPS):
        async for _ in queues.deliveries(OPS, queue.account):
            pass
    post, log = Reader(pipe, KEYS), History(pipe, KEYS)
    await post.owed_subscriptions()
    assert await post.dead_letters(OPS, 10, lambda _: True)
    await post.attempts(OPS, 10, lambda _: True)
    assert [record async for record in log.in_order(await log.ends())]
    with suppress(BadState):
        await store.polls.read_state(PROVIDER, ACCOUNT)


async def _go_on(place: Place, damage: Damage) -> None:
    store = await place.damaged(damage)
    # So small a bound that all that was written before is trimmed, whatever it is.
    polls, queues = Polls(store.schedule, KEYS, NARROW), Queues(store.schedule, KEYS, NARROW)
    store = replace(store, polls=polls, queues=queues)
    await store.roster.enroll({PROVIDER: [ACCOUNT, NEIGHBOUR]}, now_ms=1)
    assert await store.roster.enrolled() is not None
    await _polls(store)
    assert OPS in await store.queues.due_subscriptions(SHARD)
    await _delivers(store)
    await _goes_by_breakers(store)


async def _polls(store: Store) -> None:
    assert 0 <= await store.polls.take_turns(PROVIDER, 1, spacing_ms=1) < 21_600_001
    claimed = await store.polls.claim(PROVIDER, SHARD, lease_ms=MINUTE_MS, at_most=9)
    lease = next(lease for lease in claimed.leases if lease.member == NEIGHBOUR)
    state = await store.polls.read_state(PROVIDER, NEIGHBOUR)
    assert state
    step = a_commit(lease, expected=state.version, version="v2", deliveries={OPS: [a_delivery(14)]}, LRC="13")
    assert (await store.polls.commit(step)).reply is Reply.DONE
    for other in claimed.leases:
        await store.polls.postpone(PROVIDER, other, why="rate slow", at_least_ms=1, waits_ms=[1])


async def _delivers(store: Store) -> None:
    turn_ms = await Breakers(store.pipe, KEYS).take_turn(OPS, spacing_ms=1, within_ms=10**9)
    assert 0 <= turn_ms < 90_000_001
    claimed = await store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=9)
    lease = next(lease for lease in claimed.leases if lease.member == NEIGHBOUR)
    lease, begun = await store.begin(lease)
    assert (begun.tries, len(begun.deliveries)) == (1, 3)
    _, second, third = DELIVERIES[NEIGHBOUR]
    assert [delivery for _, delivery in begun.deliveries] == [second, third, a_delivery(14)]
    until = store.queues.until(lease, MINUTE_MS)
    reply, deadline = await store.queues.dead(
        OPS, lease, second.entry, until=until, reason="no", record=b'{"attempt":2}'
    )
    assert reply is Reply.DONE
    lease = lease._replace(deadline=deadline)
    reply, _ = await store.queues.delivered(
        OPS, lease, third.entry, until=store.queues.until(lease, MINUTE_MS)
    )
    assert reply is Reply.DONE
    for other in claimed.leases:
        held, begun = await store.begin(other)
        for entry, _ in begun.deliveries[:1]:
            await store.queues.retry(OPS, held, entry, wait_ms=1)


async def _goes_by_breakers(store: Store) -> None:
    """Let a worker read the subscription's breaker, fail once and deliver once."""
    shared, now_ms = Breakers(store.pipe, KEYS), store.schedule.now_ms
    breakers = SubscriptionBreakers(shared, now_ms=now_ms, alert=_without_backlog, most=100)
    await breakers.refresh()
    assert 0 <= breakers.backoff_ms(OPS) <= MINUTE_MS
    assert breakers.capacity(SETTINGS, 0, 0)
    await breakers.take_probes(OPS, 1, lease_ms=1000)
    await breakers.probe(OPS, [NEIGHBOUR])
    for status in (500, 503, 429, 200):
        await breakers.note(SETTINGS, NEIGHBOUR, Attempt(answer_of(status), 1, status))
    await breakers.leave_probe(OPS, NEIGHBOUR)
    assert 0 <= breakers.backoff_ms(OPS) <= MINUTE_MS


async def _without_backlog(_subscription: str, _breaker: Breaker) -> None:
    pass
