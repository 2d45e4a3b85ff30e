"""One worker's deliveries on a real store: what it sends, what it gives back, and for how long it leases."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.builders import a_subscription, seconds
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    NEIGHBOURS,
    OPS,
    SHARD,
    Store,
    a_commit,
    a_store,
    fail,
    some_deliveries,
)
from watcher.delivery import queue
from watcher.delivery.breakers import SubscriptionBreakers
from watcher.delivery.queue import DeliveryWork
from watcher.delivery.sink import Attempt
from watcher.engine.breaker import Answer
from watcher.engine.dispatch import Capacity, Claim
from watcher.engine.loop import InUse, Neighbours
from watcher.journal.events import Delivery
from watcher.observe.counters import LAG_BOUNDS_S, Counters
from watcher.settings import SubscriptionSettings
from watcher.store.exceptions import StoreError, StoreUnreachable
from watcher.store.queues import LEASE_MS, Begun, Breaker, Breakers, Queues
from watcher.store.schedule import Lease, Reply


class Target:
    most_together = 1

    def __init__(self, settings: SubscriptionSettings) -> None:
        self.name, self.settings = settings.name, settings

    def together(self, deliveries: Sequence[Delivery]) -> int:
        return self.most_together


class Sent:
    """A sink that records what it is to send, and calls the test's `meanwhile`."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.answer = Answer.DELIVERED
        self.meanwhile: Callable[[], object] = lambda: None

    async def send(self, _target: Target, deliveries: Sequence[Delivery], attempt: int) -> Attempt:
        (delivery,) = deliveries
        self.sent.append((delivery.sequence, attempt))
        done = self.meanwhile()
        if isinstance(done, asyncio.Future) or asyncio.iscoroutine(done):
            await done
        return Attempt(self.answer, 1, 200)


class FailingQueues(Queues):
    """Redis that fails so many calls. It counts the queues that were read."""

    away = 0
    reads = 0

    async def begin(self, *arguments: Any, **named: Any) -> Begun:
        self.reads += 1
        return await super().begin(*arguments, **named)

    async def delivered(self, *arguments: Any, **named: Any) -> tuple[Reply, int]:
        if self.away:
            self.away -= 1
            raise StoreUnreachable("Redis is away")
        return await super().delivered(*arguments, **named)

    async def release(self, *arguments: Any, **named: Any) -> Reply:
        if self.away:
            self.away -= 1
            raise StoreUnreachable("Redis is away")
        return await super().release(*arguments, **named)


class Slow(Breakers):
    """Slow to give a turn, if a test wants it so."""

    wait_ms: float | None = None
    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    async def take_turn(self, subscription: str, **arguments: Any) -> float:
        if self.wait_ms is None:
            return await super().take_turn(subscription, **arguments)
        self.meanwhile()
        return self.wait_ms


class Bench:
    """One worker that delivers to OPS, whose queue holds three."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sink = Sent()
        self.stack = AsyncExitStack()
        self.stopped = asyncio.Event()
        self.neighbours = Neighbours()
        self.ahead_ms = 0
        """How far this worker's time is ahead of the server's."""
        self.troubles: list[StoreError] = []
        self.counters = Counters()
        self.queues = FailingQueues(store.schedule, store.keys)
        self.shared = Slow(store.pipe, store.keys)
        self.breakers = SubscriptionBreakers(
            self.shared, now_ms=store.schedule.now_ms, alert=self._alert, most=100
        )
        self.work: DeliveryWork[Target] = DeliveryWork(
            self.queues,
            self.breakers,
            self.counters,
            stopped=self.stopped,
            neighbours=self.neighbours,
            now_ms=lambda: store.schedule.now_ms() + self.ahead_ms,
            failed=self._failed,
        )

    async def _alert(self, _name: str, _breaker: Breaker) -> None:
        pass

    async def _failed(self, error: StoreError) -> float:
        self.troubles.append(error)
        return 0.0

    def configure(self, **settings: Any) -> None:
        self.work.targets[OPS] = Target(a_subscription(OPS, **settings))

    async def deliver(self) -> Sequence[bool]:
        """Claim what is due and work it off."""
        await self.store.queues.make_due(OPS, SHARD, lease_ms=MINUTE_MS)
        claimed = await self.work.claim(OPS, Claim(SHARD, 9))
        async with asyncio.timeout(5):
            return await asyncio.gather(*await self.work.begin(OPS, claimed.leases))

    async def lease(self, *numbers: int) -> tuple[Lease, Sequence[Delivery]]:
        """Commit deliveries to the queue while it is empty; returns its lease, and what is in it."""
        await self.store.pipe.command("DEL", self.store.keys.queue(OPS, ACCOUNT))
        await self.store.pipe.command("DEL", self.store.keys.queues(SHARD, OPS))
        step = a_commit(await self.store.lease(), deliveries={OPS: some_deliveries(*numbers)})
        step = self.store.leasing(step, OPS)
        done = await self.store.polls.commit(step)
        return Lease(ACCOUNT, step.leased_until), done.leased[OPS]

    async def deliver_leased(self, lease: Lease, deliveries: Sequence[Delivery]) -> bool:
        async with asyncio.timeout(5):
            return await self.work.deliver(OPS, lease, deliveries)

    @property
    def sent(self) -> list[tuple[int, int]]:
        """What was sent: sequences, and which attempt that was."""
        return self.sink.sent

    async def waits_ms(self) -> float:
        """In how many ms the queue is due."""
        due_ms = await self.store.scores(self.store.keys.queues(SHARD, OPS))
        return due_ms[ACCOUNT] - await self.store.now_ms()

    async def is_probed(self) -> bool:
        """Whether no other worker may send the probe."""
        return not await self.shared.take_probes(OPS, ["another's"], at_most=1, lease_ms=1)


@pytest.fixture
async def bench(redis_client: Redis, namespace: str) -> Bench:
    bench = Bench(a_store(redis_client, namespace))
    await bench.store.schedule.read_clock()
    await bench.work.send_by(bench.sink, InUse(bench.stack))
    bench.configure()
    await bench.store.queues.enqueue(OPS, ACCOUNT, some_deliveries(1, 2, 3))
    return bench


async def test_a_queue_is_worked_off_in_order_and_leaves_nothing(bench: Bench) -> None:
    await bench.deliver()
    assert bench.sent == [(1, 1), (2, 1), (3, 1)]
    assert await bench.store.queue() == []
    attempts = bench.store.keys.attempts(SHARD, OPS)
    assert await bench.store.stream(attempts) == [], "no attempt of them is recorded"


@pytest.mark.parametrize(
    ("inactive", "is_alone", "known", "unknown"),
    [((), True, True, True), ((), False, True, False), ((OPS,), False, False, False)],
)
async def test_queues_left_to_other_workers_are_neither_claimed_nor_delayed(
    bench: Bench, inactive: tuple[str, ...], is_alone: bool, known: bool, unknown: bool
) -> None:
    bench.neighbours.is_alone, bench.neighbours.inactive = is_alone, frozenset(inactive)
    assert (bench.work.takes(OPS), bench.work.takes("unknown")) == (known, unknown)


async def test_a_queue_left_to_another_worker_is_given_back_before_the_next_delivery(
    bench: Bench,
) -> None:
    def left() -> None:
        bench.neighbours.inactive = frozenset((OPS,))

    bench.sink.meanwhile = left
    await bench.deliver()
    assert bench.sent == [(1, 1)]
    assert await bench.waits_ms() <= 0


async def test_a_queue_is_given_back_while_its_subscription_backs_off(bench: Bench) -> None:
    async def limited() -> None:
        refused = Attempt(Answer.SLOW_DOWN, 1, 429, retry_after_s=30)
        await bench.breakers.note(a_subscription(OPS), "another", refused)

    bench.sink.meanwhile = limited
    await bench.deliver()
    assert bench.sent == [(1, 1)]
    assert await bench.waits_ms() <= 0


async def test_a_queue_of_a_removed_subscription_is_given_back(bench: Bench) -> None:
    await bench.store.queues.make_due(OPS, SHARD, lease_ms=MINUTE_MS)
    claimed = await bench.work.claim(OPS, Claim(SHARD, 9))
    begun = await bench.work.begin(OPS, claimed.leases)
    del bench.work.targets[OPS]
    await asyncio.gather(*begun)
    assert bench.sent == []
    assert await bench.waits_ms() <= 0


async def test_a_worker_that_stops_sends_nothing_more_and_gives_the_queue_back(bench: Bench) -> None:
    bench.sink.meanwhile = bench.stopped.set
    await bench.deliver()
    assert bench.sent == [(1, 1)]
    assert await bench.waits_ms() <= 0


async def test_a_worker_that_is_stopped_before_its_turn_sends_nothing(bench: Bench) -> None:
    bench.configure(requests_per_second=10)
    bench.shared.wait_ms, bench.shared.meanwhile = 1, bench.stopped.set
    await bench.deliver()
    assert bench.sent == []
    assert await bench.waits_ms() <= 0


async def test_a_worker_that_stops_takes_no_turn_from_others(bench: Bench) -> None:
    turns: list[int] = []
    bench.configure(requests_per_second=10)
    bench.shared.wait_ms, bench.shared.meanwhile = 1, lambda: turns.append(1)
    bench.sink.meanwhile = bench.stopped.set
    await bench.deliver()
    assert (bench.sent, turns) == ([(1, 1)], [1])


async def test_a_queue_is_given_back_until_a_distant_turn(bench: Bench) -> None:
    bench.configure(requests_per_second=10)
    bench.shared.wait_ms = 30_000
    await bench.deliver()
    assert bench.sent == []
    assert await bench.waits_ms() <= 0
    assert 29_000 < bench.breakers.backoff_ms(OPS) <= 30_000
    assert (await bench.work.capacity(OPS, 0, 0)).most == 0


async def test_a_long_queue_is_given_back_in_between(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "AT_ONCE", 2)
    assert await bench.deliver() == [True]
    assert bench.sent == [(1, 1), (2, 1)]
    assert await bench.waits_ms() <= 0


async def test_a_queue_whose_deliveries_were_removed_leaves_the_schedule(bench: Bench) -> None:
    await bench.store.pipe.command("DEL", bench.store.keys.queue(OPS, ACCOUNT))
    await bench.deliver()
    assert await bench.store.scores(bench.store.keys.queues(SHARD, OPS)) == {}


async def test_no_attempt_begins_on_a_lease_that_may_end_before_it_is_settled(bench: Bench) -> None:
    def late() -> None:
        bench.ahead_ms = 5000

    bench.sink.meanwhile = late
    await bench.deliver()
    assert bench.sent == [(1, 1)]
    assert await bench.waits_ms() <= 0


async def test_failed_attempts_count_for_their_own_delivery(bench: Bench) -> None:
    bench.sink.answer = Answer.REJECTED
    await bench.deliver()
    await bench.deliver()
    assert bench.sent == [(1, 1), (1, 2)]
    await bench.store.pipe.command("LPOP", bench.store.keys.queue(OPS, ACCOUNT))
    await bench.deliver()
    assert bench.sent[2:] == [(2, 1)]


async def test_deliveries_are_counted_by_how_long_after_their_event_they_arrive(bench: Bench) -> None:
    await bench.store.pipe.command("DEL", bench.store.keys.queue(OPS, ACCOUNT))
    now_ms = await bench.store.now_ms()
    await bench.store.queues.enqueue(OPS, ACCOUNT, some_deliveries(now_ms - 6000))
    await bench.deliver()
    counters = bench.counters
    assert (counters.deliveries, counters.retried) == (1, 0)
    assert counters.by_lag == {LAG_BOUNDS_S.index(30.0): 1}
    assert 6 <= counters.lagging_s < 30


async def test_failed_attempts_are_counted_by_what_becomes_of_their_delivery(bench: Bench) -> None:
    bench.configure(retries=seconds(0, 0))
    bench.sink.answer = Answer.REJECTED
    await bench.deliver()
    assert (bench.counters.deliveries, bench.counters.retried) == (0, 1)
    await bench.deliver()
    assert bench.sent == [(1, 1), (1, 2), (2, 1)]
    assert bench.counters.by_attempt == {(OPS, "retry"): 2, (OPS, "refused"): 1}
    assert bench.counters.retried == 2
    (letter,) = await bench.store.stream(bench.store.keys.dead(SHARD, OPS))
    assert letter["reason"] == b"status 200", "as the sink reports it"


async def test_an_unknown_subscription_is_not_claimed_for_two_seconds(bench: Bench) -> None:
    """It may have been added just now: the shared index holds it back no longer."""
    assert bench.work.takes("unknown")
    assert await bench.work.capacity("unknown", 0, 0) == Capacity(0, 2.0)


async def test_a_subscription_that_cannot_be_decrypted_is_left_to_other_workers(bench: Bench) -> None:
    """Nor is it held back in the index."""
    bench.neighbours.locked_subscriptions = {"locked"}
    assert not bench.work.takes("locked")


async def test_the_answer_of_a_replaced_target_does_not_count_for_its_subscription(
    bench: Bench,
) -> None:
    bench.sink.answer = Answer.SLOW_DOWN
    bench.sink.meanwhile = bench.configure
    await bench.deliver()
    assert await bench.shared.read() == {}
    await bench.deliver()
    bench.sink.meanwhile = lambda: None
    await bench.deliver()
    assert [*await bench.shared.read()] == [OPS]


async def test_a_sink_that_is_replaced_is_closed_after_its_last_attempt(bench: Bench) -> None:
    closed: list[bool] = []
    bench.stack.callback(closed.append, True)
    other = Sent()

    async def replaced() -> None:
        await bench.work.send_by(other, InUse(AsyncExitStack()))
        assert not closed

    bench.sink.meanwhile = replaced
    await bench.deliver()
    assert closed
    assert (bench.sent, other.sent) == ([(1, 1)], [(2, 1), (3, 1)])


async def test_a_sink_that_is_replaced_while_nothing_is_sent_is_closed_at_once(bench: Bench) -> None:
    closed = asyncio.Event()
    bench.stack.callback(closed.set)
    await bench.work.send_by(Sent(), InUse(AsyncExitStack()))
    assert closed.is_set()


@pytest.mark.parametrize("is_due", [True, False])
async def test_a_finished_or_unused_probe_is_free_for_other_workers(bench: Bench, is_due: bool) -> None:
    failing = (await fail(bench.shared, OPS, "status 503", open_ms=1)).after
    assert failing
    while await bench.store.now_ms() <= failing.open_until_ms:  # noqa: ASYNC110 - the server's time
        await asyncio.sleep(0.001)
    await bench.breakers.refresh()
    assert (await bench.work.capacity(OPS, 0, 0)).most == 1
    assert await bench.is_probed()
    bench.sink.answer = Answer.REJECTED
    if is_due:
        await bench.deliver()
    else:
        await bench.work.begin(OPS, ())
    assert len(bench.sent) == is_due
    assert not await bench.is_probed()


@pytest.mark.parametrize(
    ("answer", "failed", "is_unavailable"),
    [(Answer.REJECTED, 0, []), (Answer.FAILED, 1, [False]), (Answer.OVERLOADED, 1, [True])],
)
async def test_a_failed_attempt_is_settled_together_with_its_count_for_the_breaker(
    bench: Bench, answer: Answer, failed: int, is_unavailable: list[bool]
) -> None:
    await bench.shared.count_results(OPS, closed_at_ms=0)
    bench.sink.answer = answer
    await bench.deliver()
    results = await bench.shared.count_results(OPS, closed_at_ms=0)
    assert (results.tried, results.failed) == (failed, failed)
    assert [miss.is_unavailable for miss in results.row] == is_unavailable


async def half_open(bench: Bench) -> None:
    """Let the worker know that the breaker is half-open."""
    await fail(bench.shared, OPS, "status 503")
    bench.breakers._read_at = 0.0
    await bench.breakers.refresh()


async def test_a_queue_without_a_probe_sends_nothing_while_the_breaker_is_not_closed(bench: Bench) -> None:
    await half_open(bench)
    await bench.deliver()
    assert bench.sent == []
    assert await bench.waits_ms() <= 0


async def test_a_probe_is_one_attempt_and_a_failed_one_uses_up_no_retry(bench: Bench) -> None:
    bench.sink.answer = Answer.OVERLOADED
    for _ in range(3):
        await half_open(bench)
        assert (await bench.work.capacity(OPS, 0, 0)).most == 1
        await bench.deliver()
    bench.sink.answer = Answer.DELIVERED
    await half_open(bench)
    assert (await bench.work.capacity(OPS, 0, 0)).most == 1
    await bench.deliver()
    assert bench.sent == [(1, 1)] * 4, "the first attempt is still the first; the next delivery has no probe"


async def test_an_attempt_that_began_before_the_breaker_opened_uses_up_no_retry(bench: Bench) -> None:
    bench.sink.answer, bench.sink.meanwhile = Answer.OVERLOADED, lambda: half_open(bench)
    await bench.deliver()
    assert await bench.store.tries(ACCOUNT) == (0, b"")


async def test_a_probe_that_began_before_the_breaker_closed_uses_up_no_retry(bench: Bench) -> None:
    async def resumed() -> None:
        await bench.shared.resume(OPS)
        bench.breakers._read_at = 0.0
        await bench.breakers.refresh()

    await half_open(bench)
    assert (await bench.work.capacity(OPS, 0, 0)).most == 1
    bench.sink.answer, bench.sink.meanwhile = Answer.OVERLOADED, resumed
    await bench.deliver()
    assert bench.breakers.is_closed(OPS)
    assert await bench.store.tries(ACCOUNT) == (0, b"")


async def test_an_attempt_is_settled_though_redis_was_unreachable_for_longer_than_the_lease(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_AGAIN_S", 0.001)

    def late() -> None:
        bench.ahead_ms, bench.queues.away = MINUTE_MS, 3

    bench.sink.meanwhile = late
    await bench.deliver()
    assert bench.sent == [(1, 1)]
    assert len(bench.troubles) == 3
    assert len(await bench.store.queue()) == 2


async def test_a_queue_whose_head_was_given_up_after_many_failures_waits_as_after_one(bench: Bench) -> None:
    async def given_up() -> None:
        head = (await bench.store.queue())[0]
        await bench.queues.give_up(OPS, ACCOUNT, head, reason="by hand")

    bench.configure(retries=seconds(0, 1, 2000))
    bench.sink.answer = Answer.REJECTED
    await bench.deliver()
    bench.sink.meanwhile = given_up
    await bench.deliver()
    assert bench.sent == [(1, 1), (1, 2)]
    assert 0 < await bench.waits_ms() < 2000


async def test_a_queue_whose_unreadable_head_is_gone_before_it_is_buried_is_due(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, key, bury = bench.store.pipe.command, bench.store.keys.queue(OPS, ACCOUNT), bench.queues.dead
    await command("LPUSH", key, b"no delivery")

    async def too_late(*arguments: Any, **named: Any) -> tuple[Reply, int]:
        await command("LPOP", key)
        return await bury(*arguments, **named)

    monkeypatch.setattr(bench.queues, "dead", too_late)
    await bench.deliver()
    assert bench.sent == []
    assert await bench.waits_ms() <= 0


async def test_a_stopping_worker_waits_for_redis_no_longer_than_its_lease(bench: Bench) -> None:
    def late() -> None:
        bench.ahead_ms, bench.queues.away = MINUTE_MS, 1000
        bench.stopped.set()

    bench.sink.meanwhile = late
    assert await bench.deliver() == [False]
    assert len(await bench.store.queue()) == 3, "it is sent again with the same id and bytes"


async def test_all_claimed_queues_are_worked_off_though_one_is_lost(bench: Bench) -> None:
    await bench.store.queues.enqueue(OPS, NEIGHBOURS[0], some_deliveries(7))
    await bench.store.queues.make_due(OPS, SHARD, lease_ms=MINUTE_MS)
    claimed = await bench.work.claim(OPS, Claim(SHARD, 9))
    begun = await bench.work.begin(OPS, claimed.leases)
    await bench.store.lease_queue()  # another worker's, by now
    with capture_logs() as lines:
        await asyncio.gather(*begun)
    assert bench.sent == [(7, 1)]
    assert [line["account"] for line in lines if line["event"] == "lease.lost"] == [ACCOUNT]
    assert await bench.waits_ms() > MINUTE_MS / 2, "it stays that worker's"


async def test_a_queue_that_a_commit_leased_is_delivered_without_reading_it(bench: Bench) -> None:
    lease, deliveries = await bench.lease(11, 12)
    assert await bench.deliver_leased(lease, deliveries) is False
    assert bench.sent == [(11, 1), (12, 1)]
    assert bench.queues.reads == 0
    assert await bench.store.queue() == []
    assert await bench.store.scores(bench.store.keys.queues(SHARD, OPS)) == {}


async def test_a_worker_that_was_away_since_its_commit_gives_the_queue_back_unsent(bench: Bench) -> None:
    lease, deliveries = await bench.lease(11)
    assert await bench.waits_ms() > LEASE_MS - 1000
    bench.ahead_ms = LEASE_MS - queue._LEAST_MS + 1  # what is left is too little for an attempt
    assert await bench.deliver_leased(lease, deliveries) is True
    assert bench.sent == []
    assert await bench.waits_ms() <= 0


async def test_a_queue_whose_commit_has_no_answer_is_due_as_soon_as_redis_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_AGAIN_S", 0.001)
    lease, _ = await bench.lease(11)
    bench.queues.away = 3
    assert await bench.work.let_go(OPS, lease) is True
    assert len(bench.troubles) == 3
    assert await bench.waits_ms() <= 0
    await bench.deliver()
    assert bench.sent == [(11, 1)]


async def test_a_queue_whose_commit_was_not_written_stays_as_it_is(bench: Bench) -> None:
    lease, _ = await bench.lease(11)
    other = await bench.store.lease_queue()
    assert await bench.work.let_go(OPS, lease) is False
    assert await bench.store.scores(bench.store.keys.queues(SHARD, OPS)) == {ACCOUNT: other.deadline}


async def test_a_stopping_worker_lets_go_of_no_queue_after_its_lease(bench: Bench) -> None:
    lease, _ = await bench.lease(11)
    bench.ahead_ms, bench.queues.away = MINUTE_MS, 1000
    bench.stopped.set()
    assert await bench.work.let_go(OPS, lease) is False


async def test_a_failure_on_a_commits_lease_is_settled_like_any_other(bench: Bench) -> None:
    bench.sink.answer = Answer.REJECTED
    assert await bench.deliver_leased(*await bench.lease(11, 12)) is False
    assert await bench.waits_ms() > 0
    bench.sink.answer = Answer.DELIVERED
    await bench.deliver()
    assert bench.sent == [(11, 1), (11, 2), (12, 1)]


async def stopped(bench: Bench) -> None:
    bench.stopped.set()


async def taken_out(bench: Bench) -> None:
    del bench.work.targets[OPS]


async def another_workers(bench: Bench) -> None:
    bench.neighbours.inactive = frozenset((OPS,))


async def backing_off(bench: Bench) -> None:
    await fail(bench.shared, OPS, "down", open_ms=MINUTE_MS)
    await bench.breakers.refresh()


@pytest.mark.parametrize("happens", [stopped, taken_out, another_workers, backing_off])
async def test_a_commits_lease_is_given_back_at_once_if_it_may_not_be_sent_any_more(
    bench: Bench, happens: Callable[[Bench], Awaitable[None]]
) -> None:
    lease, deliveries = await bench.lease(11)
    await happens(bench)
    await bench.deliver_leased(lease, deliveries)
    assert bench.sent == []
    assert await bench.waits_ms() <= 0
    assert len(await bench.store.queue()) == 1


async def test_what_was_sent_under_a_commits_lease_that_another_worker_has_is_not_settled(
    bench: Bench,
) -> None:
    lease, deliveries = await bench.lease(11)
    other = await bench.store.lease_queue()
    with capture_logs() as lines:
        await bench.deliver_leased(lease, deliveries)
    assert await bench.store.queue() == [one.entry for one in deliveries]
    assert [line["event"] for line in lines] == ["lease.lost", "delivery.delivered"]
    assert await bench.store.scores(bench.store.keys.queues(SHARD, OPS)) == {ACCOUNT: other.deadline}


async def test_a_delivery_dropped_before_its_attempt_is_settled_no_more_and_the_next_is_due(
    bench: Bench,
) -> None:
    lease, deliveries = await bench.lease(11, 12)
    await bench.queues.give_up(OPS, ACCOUNT, deliveries[0].entry, reason="by hand")
    await bench.deliver_leased(lease, deliveries)
    await bench.deliver()
    assert bench.sent == [(11, 1), (12, 1)]


async def test_a_long_queue_that_a_commit_leased_is_given_back_in_between(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "AT_ONCE", 2)
    assert await bench.deliver_leased(*await bench.lease(11, 12, 13)) is True
    assert bench.sent == [(11, 1), (12, 1)]
    assert await bench.waits_ms() <= 0


async def test_a_commit_may_lease_as_many_queues_as_the_capacity_allows(bench: Bench) -> None:
    def spare(in_flight: int, in_flight_of_all: int) -> int:
        return bench.work.spare(OPS, in_flight, in_flight_of_all)

    assert [spare(0, 0), spare(1, 1), spare(2, 2)] == [2, 1, 0]
    assert spare(0, 1000) == 0, "the worker is at its capacity"
    assert bench.work.spare("unknown", 0, 0) == 0
    bench.configure(requests_per_second=1)
    assert [spare(0, 0), spare(1, 1)] == [1, 0], "as many as have a turn soon"
    bench.shared.wait_ms = MINUTE_MS
    assert await bench.breakers.turn_ms(a_subscription(OPS, requests_per_second=1)) is None
    assert spare(0, 0) == 0, "the next turn is far off"


@pytest.mark.parametrize("open_ms", [MINUTE_MS, 0])
async def test_nothing_is_leased_for_a_breaker_that_is_open_or_half_open(bench: Bench, open_ms: int) -> None:
    assert bench.work.spare(OPS, 0, 0) > 0
    await fail(bench.shared, OPS, "down", open_ms=open_ms)
    await bench.breakers.refresh()
    assert bench.work.spare(OPS, 0, 0) == 0
