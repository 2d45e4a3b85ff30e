"""A reload and what is under way: a subscription that was taken out gets no POST a second later."""

import asyncio
import time

from moody_subscriber import MoodySubscriber, owed
from raw_subscribers import Peer, subscribing
from redis.asyncio import Redis

from watcher.settings import Settings

pytest_plugins = ("owing",)

FIVE = [f"account-{number}" for number in range(5)]


def without_subscriptions(settings: Settings) -> Settings:
    return settings.model_copy(update={"subscription_by_name": {}})


async def test_what_waits_for_its_turn_is_not_sent_to_who_was_taken_out(
    redis_client: Redis, redis_server_url: str, namespace: str, subscriber: MoodySubscriber
) -> None:
    one = owed(redis_client, redis_server_url, namespace, ops=subscriber.url)
    told = one.settings.subscription_by_name
    told["ops"] = told["ops"].model_copy(update={"requests_per_second": 1.0})
    await one.queue(FIVE, [1, 2])
    async with one.worker() as worker:
        await subscriber.until(lambda: len(subscriber.taken) == 2)
        worker.reload(without_subscriptions(one.settings))
        removed_at = time.monotonic()
        await asyncio.sleep(2.5)  # two more turns
    assert [each.at for each in subscriber.arrivals if each.at > removed_at + 1] == []


async def test_a_connection_that_is_slow_to_come_about_carries_no_post_to_who_was_taken_out(
    redis_client: Redis, redis_server_url: str, namespace: str
) -> None:
    sent, is_over = bytearray(), asyncio.Event()

    async def never_shaking_hands(peer: Peer) -> None:
        while data := await peer.reader.read(4096):
            sent.extend(data)
        is_over.set()

    async with subscribing(never_shaking_hands) as subscriber:
        one = owed(redis_client, redis_server_url, namespace, ops=subscriber.url.replace("http:", "https:"))
        await one.queue(FIVE)
        async with one.worker() as worker:
            await subscriber.until(lambda subscriber: subscriber.connections > 0)
            worker.reload(without_subscriptions(one.settings))
            await asyncio.wait_for(is_over.wait(), 1)
    assert sent.startswith(b"\x16\x03"), "the beginning of TLS, and nothing behind it"
    assert b"POST" not in sent
