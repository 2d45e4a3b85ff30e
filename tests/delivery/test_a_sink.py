"""A sink as CONTRIBUTING.md describes one: a chat that answers always 200, with the result in its body."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.builders import a_subscription
from tests.support.stores import ACCOUNT, MINUTE_MS, OPS, SHARD, Store, a_delivery, a_store
from watcher.delivery.breakers import SubscriptionBreakers
from watcher.delivery.queue import DeliveryWork
from watcher.delivery.sink import Attempt, Sink, Target
from watcher.engine.breaker import Answer, State, pace_per_s, state
from watcher.engine.loop import InUse, Neighbours
from watcher.journal.events import Delivery
from watcher.observe.counters import Counters
from watcher.settings import SubscriptionSettings
from watcher.store.exceptions import StoreError
from watcher.store.queues import Breaker, Breakers


class ChatTarget:
    """A channel."""

    most_together = 1

    def __init__(self, settings: SubscriptionSettings) -> None:
        self.name, self.settings = settings.name, settings

    def together(self, deliveries: Sequence[Delivery]) -> int:
        return self.most_together


@dataclass
class Chat:
    """The service: what it was sent, and what is wrong with it."""

    error: str | None = None
    posted: list[tuple[str, bytes]] = field(default_factory=list)

    def post(self, channel: str, text: bytes) -> tuple[int, Mapping[str, Any]]:
        if self.error is None:
            self.posted.append((channel, text))
        return 200, {"ok": self.error is None, "error": self.error}


class ChatSink:
    """Translates what the service says inside its 200."""

    _ANSWERS: Mapping[str, Answer] = {"ratelimited": Answer.SLOW_DOWN, "channel_gone": Answer.GONE}

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    async def send(self, target: ChatTarget, deliveries: Sequence[Delivery], attempt: int) -> Attempt:
        (delivery,) = deliveries
        status, body = self._chat.post(target.name, delivery.body)
        if body["ok"]:
            return Attempt(Answer.DELIVERED, 1, status)
        answer = self._ANSWERS.get(body["error"], Answer.REJECTED)
        return Attempt(answer, 1, status, error=body["error"])


TARGET: Target = ChatTarget(a_subscription(OPS))
SINK: Sink[ChatTarget] = ChatSink(Chat())

DELIVERIES = [a_delivery(number, b'{"text":"%d"' % number) for number in (1, 2, 3)]


@dataclass
class Stage:
    """A queue of three deliveries to the chat, delivered when a test says so."""

    store: Store
    chat: Chat = field(default_factory=Chat)
    alerts: list[str] = field(default_factory=list)

    async def work(self) -> bool:
        """Claim the queue and work it off, as a worker that has just started."""
        await self.store.queues.make_due(OPS, SHARD, lease_ms=MINUTE_MS)
        shared, now_ms = Breakers(self.store.pipe, self.store.keys), self.store.schedule.now_ms
        breakers = SubscriptionBreakers(shared, now_ms=now_ms, alert=self.alert, most=100)
        await breakers.refresh()
        work: DeliveryWork[ChatTarget] = DeliveryWork(
            self.store.queues,
            breakers,
            Counters(),
            stopped=asyncio.Event(),
            neighbours=Neighbours(),
            now_ms=now_ms,
            failed=self.never,
        )
        await work.send_by(ChatSink(self.chat), InUse(AsyncExitStack()))
        target = work.targets[OPS] = ChatTarget(a_subscription(OPS))
        (lease,) = (await self.store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=9)).leases
        return await work.work(target, lease)

    async def alert(self, name: str, breaker: Breaker) -> None:
        self.alerts.append(f"{name}: {breaker.reason}")

    async def never(self, error: StoreError) -> float:
        raise error

    async def breaker(self) -> Breaker | None:
        return (await Breakers(self.store.pipe, self.store.keys).read()).get(OPS)

    async def tries(self) -> list[Any]:
        """The attempts that are remembered."""
        key = self.store.keys.attempts(SHARD, OPS)
        return [
            json.loads(fields[-1]) for _, fields in await self.store.pipe.command("XRANGE", key, "-", "+")
        ]


@pytest.fixture
async def stage(redis_client: Redis, namespace: str) -> Stage:
    stage = Stage(a_store(redis_client, namespace))
    await stage.store.schedule.read_clock()
    await stage.store.queues.enqueue(OPS, ACCOUNT, DELIVERIES)
    return stage


async def test_accepted_messages_are_delivered_in_order(stage: Stage) -> None:
    await stage.work()
    assert stage.chat.posted == [(OPS, each.body) for each in DELIVERIES]
    assert await stage.store.queue() == []
    assert await stage.breaker() is None


async def test_a_200_with_an_error_is_retried_and_overtaken_by_nothing(stage: Stage) -> None:
    stage.chat.error = "message_too_long"
    assert not await stage.work()
    assert (len(await stage.store.queue()), stage.chat.posted) == (3, [])
    (tried,) = await stage.tries()
    assert (tried["outcome"], tried["error"], tried["status"]) == ("retry", "message_too_long", 200)
    stage.chat.error = None
    await stage.work()
    assert await stage.breaker() is None
    assert stage.chat.posted == [(OPS, each.body) for each in DELIVERIES]


async def test_a_200_that_asks_to_slow_down_sets_a_rate(stage: Stage) -> None:
    stage.chat.error = "ratelimited"
    await stage.work()
    assert pace_per_s(await stage.breaker(), stage.store.schedule.now_ms()) > 0


async def test_a_channel_that_is_gone_is_paused_and_the_alert_is_sent(stage: Stage) -> None:
    stage.chat.error = "channel_gone"
    await stage.work()
    assert state(await stage.breaker(), stage.store.schedule.now_ms()) is State.PAUSED
    assert stage.alerts == ["ops: channel_gone"]
    assert len(await stage.store.queue()) == 3
