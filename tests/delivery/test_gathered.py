"""A burst stays readable: late deliveries of a chat's queue go out in one message."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.builders import a_subscription
from tests.support.stores import ACCOUNT, MINUTE_MS, OPS, SHARD, Store, a_store, fail
from watcher.delivery.breakers import SubscriptionBreakers
from watcher.delivery.queue import AT_ONCE, LATE_MS, DeliveryWork
from watcher.delivery.sink import Attempt
from watcher.engine.breaker import Answer
from watcher.engine.loop import InUse, Neighbours
from watcher.journal.events import Delivery
from watcher.observe.counters import Counters
from watcher.settings import SubscriptionSettings
from watcher.store.exceptions import StoreError
from watcher.store.keeper import Keeper
from watcher.store.queues import Breaker, Breakers

pytest_plugins = ("tests.delivery.subscribers",)

Message = list[int]
"""The numbers of the events that went in it."""


class ChannelTarget:
    """A chat channel, whose messages hold so many lines and characters."""

    def __init__(self, settings: SubscriptionSettings, most_together: int = 20, size: int = 10_000) -> None:
        self.name, self.settings, self.most_together, self._size = (
            settings.name,
            settings,
            most_together,
            size,
        )

    def together(self, deliveries: Sequence[Delivery]) -> int:
        size, count = 0, 0
        for each in deliveries:
            size += len(each.content) + 1
            count += size <= self._size
        return max(1, count)


def number(delivery: Delivery) -> int:
    return int(delivery.event_id.removeprefix("evt_"))


@dataclass
class Channel:
    """The service, and a clock that goes on by `takes_ms` with each message: it is the worker's."""

    takes_ms: int = 0
    ahead_ms: int = 0
    answer: Callable[[Message], Answer] = lambda message: Answer.DELIVERED
    posted: list[Message] = field(default_factory=list)
    refused: list[Message] = field(default_factory=list)
    meanwhile: Callable[[], Any] | None = None

    async def send(self, target: ChannelTarget, deliveries: Sequence[Delivery], attempt: int) -> Attempt:
        message = [*map(number, deliveries)]
        self.ahead_ms += self.takes_ms
        answer = self.answer(message)
        (self.posted if answer is Answer.DELIVERED else self.refused).append(message)
        if self.meanwhile:
            await self.meanwhile()
        return Attempt(answer, 1, 200, error=None if answer is Answer.DELIVERED else "no")

    @property
    def received(self) -> Message:
        """All that it took, in its order."""
        return [one for message in self.posted for one in message]


@dataclass
class Stage:
    """A queue to the channel, delivered when a test says so."""

    store: Store
    channel: Channel = field(default_factory=Channel)
    counters: Counters = field(default_factory=Counters)
    target: ChannelTarget = field(default_factory=lambda: ChannelTarget(a_subscription(OPS)))

    def __post_init__(self) -> None:
        real_ms = self.store.schedule.now_ms
        self.store.schedule.now_ms = lambda: real_ms() + self.channel.ahead_ms

    async def queue(self, numbers: Sequence[int], *, age_ms: int = MINUTE_MS) -> None:
        """Let events wait that were committed so long ago, one a ms: the ids say their numbers."""
        first = self.store.schedule.now_ms() - age_ms
        some = [
            Delivery(f"evt_{one}", "total.increased", first + place, b'{"id":"evt"', OPS, None)
            for place, one in enumerate(numbers)
        ]
        await self.store.queues.enqueue(OPS, ACCOUNT, some)

    async def work(self) -> bool:
        """Claim the queue and work it off, as a worker that has just started; says whether more is due."""
        shared, now_ms = Breakers(self.store.pipe, self.store.keys), self.store.schedule.now_ms
        breakers = SubscriptionBreakers(shared, now_ms=now_ms, alert=self.alert, most=100)
        await breakers.refresh()
        await breakers.take_probes(OPS, 1, lease_ms=MINUTE_MS)
        await breakers.probe(OPS, [ACCOUNT])
        work: DeliveryWork[ChannelTarget] = DeliveryWork(
            self.store.queues,
            breakers,
            self.counters,
            stopped=asyncio.Event(),
            neighbours=Neighbours(),
            now_ms=now_ms,
            failed=self.never,
        )
        await work.send_by(self.channel, InUse(AsyncExitStack()))
        work.targets[OPS] = self.target
        await self.store.queues.make_due(OPS, SHARD, lease_ms=0)
        leases = (await self.store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=9)).leases
        return bool(leases) and await work.work(self.target, leases[0])

    async def work_off(self) -> None:
        """Work as long as the queue is due."""
        while await self.work():
            pass

    async def alert(self, name: str, breaker: Breaker) -> None:
        raise AssertionError(breaker.reason)

    async def never(self, error: StoreError) -> float:
        raise error

    async def waiting(self) -> Message:
        return [int(entry.split()[0].removeprefix(b"evt_")) for entry in await self.store.queue()]

    async def dead(self) -> Message:
        letters = await self.store.stream(self.store.keys.dead(SHARD, OPS))
        return [int(letter["delivery"].split()[0].removeprefix(b"evt_")) for letter in letters]

    async def tries(self) -> list[Any]:
        """The attempts that are remembered."""
        found = await self.store.stream(self.store.keys.attempts(SHARD, OPS))
        return [json.loads(each["attempt"]) for each in found]


@pytest.fixture
async def stage(redis_client: Redis, namespace: str) -> Stage:
    stage = Stage(a_store(redis_client, namespace))
    await stage.store.schedule.read_clock()
    return stage


def count(*numbers: int) -> Message:
    """From the first to the last of them."""
    return [*range(numbers[0], numbers[1] + 1)]


async def test_a_burst_of_500_events_is_26_messages_at_one_a_second_each_event_once_in_order(
    stage: Stage,
) -> None:
    stage.channel.takes_ms = 1000
    await stage.queue(count(1, 500), age_ms=0)
    await stage.work_off()
    assert len(stage.channel.posted) <= 26
    assert stage.channel.posted[0] == [1], "the first one is sent as it comes"
    assert stage.channel.received == count(1, 500)
    assert stage.counters.deliveries == 500
    assert stage.counters.by_attempt[OPS, "delivered"] == len(stage.channel.posted)
    assert sum(stage.counters.by_lag.values()) == 500
    assert await stage.waiting() == []


@pytest.mark.parametrize(("age_ms", "messages"), [(LATE_MS - 400, [[1], [2], [3]]), (LATE_MS, [[1, 2, 3]])])
async def test_only_late_events_are_gathered(stage: Stage, age_ms: int, messages: list[Message]) -> None:
    await stage.queue([1, 2, 3], age_ms=age_ms)
    await stage.work()
    assert stage.channel.posted == messages


async def test_a_format_that_does_not_gather_sends_one_by_one_however_late(stage: Stage) -> None:
    stage.target = ChannelTarget(a_subscription(OPS), most_together=1)
    await stage.queue([1, 2, 3])
    await stage.work()
    assert stage.channel.posted == [[1], [2], [3]]


async def test_a_message_gathers_no_more_than_it_holds_and_the_rest_follows(stage: Stage) -> None:
    stage.target = ChannelTarget(a_subscription(OPS), size=4 * len(b'{"id":"evt" '))
    await stage.queue(count(1, 10))
    await stage.work()
    assert stage.channel.posted == [count(1, 4), count(5, 8), [9, 10]]


async def test_an_unreadable_event_is_given_up_alone_and_overtaken_by_none(stage: Stage) -> None:
    await stage.queue(count(1, 5))
    third = (await stage.store.queue())[2].rpartition(b" ")[0]
    await stage.store.pipe.command("HSET", stage.store.keys.bodies(SHARD), third, "damaged")
    await stage.work()
    assert stage.channel.posted == [[1, 2], [4, 5]]
    assert await stage.dead() == [3]


async def test_after_a_failure_all_events_are_kept_and_the_head_is_retried_alone(stage: Stage) -> None:
    stage.channel.answer = lambda message: Answer.REJECTED if 3 in message else Answer.DELIVERED
    await stage.queue(count(1, 5))
    assert not await stage.work()
    assert (stage.channel.refused, await stage.waiting()) == ([count(1, 5)], count(1, 5))
    (tried,) = await stage.tries()
    assert (tried["event_id"], tried["outcome"], tried["deliveries"]) == ("evt_1", "retry", 5)
    for _ in range(3):
        await stage.work()
    assert stage.channel.posted == [[1], [2]]
    assert stage.channel.refused == [count(1, 5), count(2, 5), count(3, 5), [3]]
    stage.channel.answer = lambda message: Answer.DELIVERED
    await stage.work()
    assert stage.channel.posted == [[1], [2], [3], [4, 5]]
    assert stage.counters.retried == 4


async def test_an_event_that_is_refused_for_good_takes_no_other_with_it(stage: Stage) -> None:
    stage.target = ChannelTarget(a_subscription(OPS, retries=(timedelta(0),)))
    stage.channel.answer = lambda message: Answer.REJECTED if 1 in message else Answer.DELIVERED
    await stage.queue(count(1, 25))
    await stage.work_off()
    assert await stage.dead() == [1]
    assert stage.channel.received == count(2, 25)
    assert [*map(len, stage.channel.posted)] == [19, 5], "in their order"


@pytest.mark.parametrize("left", [0, 1, 3, 4])
async def test_if_one_was_dropped_meanwhile_none_is_settled_and_the_rest_is_resent(
    stage: Stage, left: int
) -> None:
    async def give_up() -> None:
        stage.channel.meanwhile = None
        if left:
            await Keeper(stage.store.pipe, stage.store.keys, "w").look({OPS: left})
        else:
            head = (await stage.store.queue())[0]
            await stage.store.queues.give_up(OPS, ACCOUNT, head, reason="by hand")

    await stage.queue(count(1, 5))
    stage.channel.meanwhile = give_up
    assert not await stage.work()
    rest = count(2, 5) if left == 0 else count(6 - left, 5)
    assert (stage.channel.posted, await stage.waiting()) == ([count(1, 5)], rest)
    await stage.work_off()
    assert stage.channel.posted == [count(1, 5), rest]
    assert await stage.dead() == [one for one in count(1, 5) if one not in rest]


async def test_an_event_that_comes_while_a_message_is_in_flight_waits_behind_it(stage: Stage) -> None:
    async def more() -> None:
        stage.channel.meanwhile = None
        await stage.queue([4, 5])

    await stage.queue([1, 2, 3])
    stage.channel.meanwhile = more
    await stage.work_off()
    assert stage.channel.posted == [[1, 2, 3], [4, 5]]


async def test_a_probe_is_one_message(stage: Stage) -> None:
    await fail(Breakers(stage.store.pipe, stage.store.keys), OPS, "status 503")
    await stage.queue(count(1, 30))
    await stage.work()
    assert stage.channel.posted == [count(1, 20)]
    assert await stage.waiting() == count(21, 30)


async def test_a_worker_that_dies_before_it_settles_repeats_one_message_and_nothing_else(
    stage: Stage,
) -> None:
    """Nothing of the message is taken, so the next worker sends the same again, then what is behind it."""
    await stage.queue(count(1, AT_ONCE + 5))
    has_posted = asyncio.Event()

    async def never_answered() -> None:
        stage.channel.meanwhile = None
        has_posted.set()
        await asyncio.Event().wait()

    stage.channel.meanwhile = never_answered
    dying = asyncio.create_task(stage.work())
    await has_posted.wait()
    dying.cancel()
    with suppress(asyncio.CancelledError):
        await dying
    assert await stage.waiting() == count(1, 25)
    await stage.store.due(stage.store.keys.queues(SHARD, OPS), **{ACCOUNT: -1})  # its lease has run out
    await stage.work_off()
    assert stage.channel.posted == [count(1, 20), count(1, 20), count(21, 25)]
    assert await stage.waiting() == []


async def test_a_log_line_counts_and_names_the_events_of_a_message(stage: Stage, logged: list[Any]) -> None:
    await stage.queue(count(1, 21), age_ms=MINUTE_MS)
    await stage.work_off()
    many, one = [line for line in logged if line["event"] == "delivery.delivered"]
    assert (many["event_id"], many["last_event_id"], many["deliveries"]) == ("evt_1", "evt_20", 20)
    assert one["event_id"] == "evt_21"
    assert not {"deliveries", "last_event_id"} & one.keys()
