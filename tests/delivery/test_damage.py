"""A damaged key affects only its own queue or subscription, until it is fixed."""

from typing import Any

import pytest
from redis.asyncio import Redis

from tests.delivery.staged_subscriber import Backlogs, StagedSubscriber, backlogs_of, lines_of
from tests.support.stores import fail
from watcher.delivery import breakers, queue
from watcher.engine import loop
from watcher.engine.breaker import is_closed
from watcher.store.keys import shard_of

pytest_plugins = ("tests.delivery.subscribers",)

SHARD = 3
SICK, NEAR, *_ = (name for name in map("account-{}".format, range(200)) if shard_of(name) == SHARD)
FAR = next(name for name in map("account-{}".format, range(200)) if shard_of(name) != SHARD)
EVERYTHING = {(name, account) for name in ("ops", "audit") for account in (SICK, NEAR, FAR)}


@pytest.fixture
def audit(second: StagedSubscriber) -> StagedSubscriber:
    return second


@pytest.fixture
def both(
    redis_client: Redis,
    redis_server_url: str,
    namespace: str,
    subscriber: StagedSubscriber,
    audit: StagedSubscriber,
) -> Backlogs:
    return backlogs_of(redis_client, redis_server_url, namespace, ops=subscriber.url, audit=audit.url)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off from damaged or leased keys for a moment only."""
    monkeypatch.setattr(queue, "_LEAST_MS", 500)
    monkeypatch.setattr(queue, "LEASE_MS", 1000)
    monkeypatch.setattr(queue, "CLAIM_MS", 1000)
    monkeypatch.setattr(queue, "LONGEST_LEASE_MS", 1000)
    monkeypatch.setattr(loop, "DAMAGED_S", 0.5)
    monkeypatch.setattr(breakers, "_DAMAGED_S", 0.5)


def taken(*subscribers: StagedSubscriber) -> set[tuple[str, str]]:
    return {
        (event["subscription"]["name"], event["data"]["account"]["name"])
        for subscriber in subscribers
        for event in subscriber.taken
    }


OWN_QUEUE = {("ops", SICK)}
OWN_SUBSCRIPTION = {("ops", SICK), ("ops", NEAR)}
OWN_SHARD = OWN_SUBSCRIPTION | {("audit", SICK), ("audit", NEAR)}


@pytest.mark.parametrize(
    ("key", "costs"),
    [
        ("queue", OWN_QUEUE),
        ("queues", OWN_SUBSCRIPTION),
        ("tries", OWN_SUBSCRIPTION),
        ("results", set()),
        ("row", set()),
        ("attempts", OWN_SUBSCRIPTION),
        ("dead", OWN_SUBSCRIPTION),
        ("due_subscriptions", OWN_SHARD),
        ("probe", set()),
        ("breakers", set()),
        ("bodies", OWN_SHARD),
        ("sizes", OWN_SHARD),
        ("given_up", OWN_SHARD),
    ],
)
async def test_a_key_of_another_type_affects_only_what_it_stores_until_it_is_fixed(
    both: Backlogs,
    subscriber: StagedSubscriber,
    audit: StagedSubscriber,
    key: str,
    costs: set[tuple[str, str]],
) -> None:
    keys = both.keys
    name = {
        "queue": keys.queue("ops", SICK),
        "queues": keys.queues(SHARD, "ops"),
        "tries": keys.tries(SHARD, "ops"),
        "results": keys.results(SHARD, "ops"),
        "row": keys.row(SHARD, "ops"),
        "attempts": keys.attempts(SHARD, "ops"),
        "dead": keys.dead(SHARD, "ops"),
        "due_subscriptions": keys.due_subscriptions(SHARD),
        "probe": keys.probes("ops"),
        "breakers": keys.breakers(),
        "bodies": keys.bodies(SHARD),
        "sizes": keys.sizes(SHARD),
        "given_up": keys.given_up(SHARD),
    }[key]
    for to in ("ops", "audit"):
        await both.queue([SICK, NEAR, FAR], to=to)
    if key == "probe":  # it is asked for where a subscription fails
        await fail(both.breakers, "ops", "status 503", open_ms=1)
    kept = await both.pipe.command("DUMP", name)
    await both.pipe.command("DEL", name)
    other = {"queue": ("HSET", name, "is"), "probe": ("RPUSH", name), "row": ("RPUSH", name)}
    await both.pipe.command(*other.get(key, ("SET", name)), "damaged")
    async with both.worker():
        await subscriber.until(lambda: taken(subscriber, audit) >= EVERYTHING - costs)
        fixed = ("RESTORE", name, 0, kept, "REPLACE") if kept else ("DEL", name)
        await both.pipe.command(*fixed)
        await subscriber.until(lambda: taken(subscriber, audit) == EVERYTHING)


@pytest.mark.parametrize("junk", [b"", b"x evt", b"-1 evt", b"9" * 400 + b" evt", b"1_0 evt", b"\xff\x00"])
async def test_damaged_records_of_attempts_or_breakers_heal_with_the_next_attempt(
    both: Backlogs, subscriber: StagedSubscriber, logged: list[Any], junk: bytes
) -> None:
    subscriber.status = 500
    await both.queue([SICK])
    tries = both.keys.tries(SHARD, "ops")
    await both.pipe.command("HSET", tries, SICK, junk)
    await both.pipe.command("HSET", both.keys.breakers(), "ops", junk)
    async with both.worker():
        await subscriber.until(lambda: len(subscriber.arrivals) == 3)
        subscriber.status = 200
        await subscriber.until(lambda: bool(subscriber.taken))
    assert [arrival.attempt for arrival in subscriber.arrivals][:3] == [1, 2, 3]
    assert await both.pipe.command("HGET", tries, SICK) is None
    assert is_closed((await both.breakers.read()).get("ops"))
    assert not lines_of(logged, "bug")
