"""A reload and attempts in flight: a removed or changed URL gets no POST a second later."""

import asyncio
import json
import time
from collections.abc import Sequence

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.delivery.staged_subscriber import Backlogs, StagedSubscriber, backlogs_of
from tests.support.builders import SECRET
from tests.support.raw_subscribers import OK, Peer, Request, Script, answering, subscribing
from tests.support.rig import workers
from watcher.receive import InvalidWebhook, verify
from watcher.settings import Settings

pytest_plugins = ("tests.delivery.subscribers",)

FIVE = [f"account-{number}" for number in range(5)]


def without_subscriptions(settings: Settings) -> Settings:
    return settings.model_copy(update={"subscription_by_name": {}})


async def test_a_delivery_that_waits_for_its_turn_is_not_sent_to_a_removed_subscription(
    redis_client: Redis, redis_server_url: str, namespace: str, subscriber: StagedSubscriber
) -> None:
    one = backlogs_of(redis_client, redis_server_url, namespace, ops=subscriber.url)
    by_name = one.settings.subscription_by_name
    by_name["ops"] = by_name["ops"].model_copy(update={"requests_per_second": 1.0})
    await one.queue(FIVE, [1, 2])
    async with one.worker() as worker:
        await subscriber.until(lambda: len(subscriber.taken) == 2)
        worker.reload(without_subscriptions(one.settings))
        removed_at = time.monotonic()
        await asyncio.sleep(2.5)  # two more turns
    assert [each.at for each in subscriber.arrivals if each.at > removed_at + 1] == []


async def test_a_slow_connection_carries_no_post_to_a_removed_subscription(
    redis_client: Redis, redis_server_url: str, namespace: str
) -> None:
    sent, is_over = bytearray(), asyncio.Event()

    async def never_shaking_hands(peer: Peer) -> None:
        while data := await peer.reader.read(4096):
            sent.extend(data)
        is_over.set()

    async with subscribing(never_shaking_hands) as subscriber:
        one = backlogs_of(
            redis_client, redis_server_url, namespace, ops=subscriber.url.replace("http:", "https:")
        )
        await one.queue(FIVE)
        async with one.worker() as worker:
            await subscriber.until(lambda subscriber: subscriber.connections > 0)
            worker.reload(without_subscriptions(one.settings))
            await asyncio.wait_for(is_over.wait(), 1)
    assert sent.startswith(b"\x16\x03"), "the beginning of TLS, and nothing behind it"
    assert b"POST" not in sent


def changed(settings: Settings, **fields: object) -> Settings:
    ops = settings.subscription_by_name["ops"].model_copy(update=fields)
    return settings.model_copy(update={"subscription_by_name": {"ops": ops}})


def sequences(requests: Sequence[Request]) -> list[int]:
    return [json.loads(request.body)["data"]["sequence"] for request in requests]


async def never_answering(peer: Peer) -> None:
    await peer.receive()
    await peer.wait_for_the_end()


async def gone_in_a_moment(peer: Peer) -> None:
    """It is asked before the reload, and answers after it."""
    await peer.receive()
    await asyncio.sleep(0.3)
    await peer.send(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("reloads_before", [0, 2])
@pytest.mark.parametrize("script", [never_answering, gone_in_a_moment])
async def test_a_url_changed_during_an_attempt_gets_no_more_and_the_new_one_gets_all_in_order(
    redis_client: Redis, redis_server_url: str, namespace: str, script: Script, reloads_before: int
) -> None:
    async with subscribing(script) as old, subscribing(answering(OK)) as new:
        one = backlogs_of(redis_client, redis_server_url, namespace, ops=old.url)
        await one.queue(["treasury"], [1, 2, 3])
        async with one.worker() as worker:
            await old.until(lambda old: len(old.requests) == 1)
            for _ in range(reloads_before):
                worker.reload(one.settings)
                await asyncio.sleep(0.05)
            worker.reload(changed(one.settings, url=SecretStr(new.url)))
            async with asyncio.timeout(5):  # and not when the attempt's time, or its lease, is over
                await new.until(lambda new: len(new.requests) == 3)
            await one.queue(["treasury"], [4])
            async with asyncio.timeout(5):
                await new.until(lambda new: len(new.requests) == 4)
        assert sequences(new.requests) == [1, 2, 3, 4]
        assert len(old.requests) == 1
        assert await one.breakers.read() == {}, "errors of the old URL do not count for the new one"


async def gone_for_good(peer: Peer) -> None:
    await peer.receive()
    await peer.send(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")


async def until_paused(one: Backlogs) -> None:
    async with asyncio.timeout(5):
        while "ops" not in await one.breakers.read():  # noqa: ASYNC110 - Redis sends no signal
            await asyncio.sleep(0.01)


async def test_a_paused_subscription_resumes_at_its_new_url(
    redis_client: Redis, redis_server_url: str, namespace: str
) -> None:
    async with subscribing(gone_for_good) as old, subscribing(answering(OK)) as new:
        one = backlogs_of(redis_client, redis_server_url, namespace, ops=old.url)
        await one.queue(["treasury"], [1, 2])
        async with one.worker() as worker, asyncio.timeout(10):
            await until_paused(one)
            worker.reload(changed(one.settings, url=SecretStr(new.url)))
            await new.until(lambda new: len(new.requests) == 2)
            assert await one.breakers.read() == {}
    assert len(old.requests) == 1
    assert sequences(new.requests) == [1, 2]


async def test_a_paused_subscription_resumes_at_its_new_url_after_a_restart_too(
    redis_client: Redis, redis_server_url: str, namespace: str
) -> None:
    async with subscribing(gone_for_good) as old, subscribing(answering(OK)) as new:
        one = backlogs_of(redis_client, redis_server_url, namespace, ops=old.url)
        await one.queue(["treasury"], [1, 2])
        async with one.worker():
            await until_paused(one)
        async with one.worker():  # the same URL: who paused it, or why, still counts
            await one.until_nothing_is_due()
        assert len(old.requests) == 1
        moved = changed(one.settings, url=SecretStr(new.url))
        async with workers(moved, "w2"), asyncio.timeout(5):
            await new.until(lambda new: len(new.requests) == 2)
        assert await one.breakers.read() == {}
    assert len(old.requests) == 1
    assert sequences(new.requests) == [1, 2]


async def test_a_slow_connection_to_a_replaced_url_carries_no_post_and_delays_nothing(
    redis_client: Redis, redis_server_url: str, namespace: str
) -> None:
    sent = bytearray()

    async def never_shaking_hands(peer: Peer) -> None:
        while data := await peer.reader.read(4096):
            sent.extend(data)

    async with subscribing(never_shaking_hands) as old, subscribing(answering(OK)) as new:
        one = backlogs_of(redis_client, redis_server_url, namespace, ops=old.url.replace("http:", "https:"))
        await one.queue(FIVE)
        async with one.worker() as worker:
            await old.until(lambda old: old.connections > 0)
            worker.reload(changed(one.settings, url=SecretStr(new.url)))
            async with asyncio.timeout(5):
                await new.until(lambda new: len(new.requests) == len(FIVE))
    assert b"POST" not in sent


def is_signed(request: Request, secret: str) -> bool:
    try:
        verify(request.headers, request.body, secret)
    except InvalidWebhook:
        return False
    return True


async def test_secrets_rotated_by_reloads_leave_no_moment_without_a_valid_signature(
    redis_client: Redis, redis_server_url: str, namespace: str
) -> None:
    later = "whsec_" + "b3RoZXIg" * 4
    signed_by = [(SECRET,), (later, SECRET), (later,)]
    async with subscribing(answering(OK)) as subscriber:
        one = backlogs_of(redis_client, redis_server_url, namespace, ops=subscriber.url)
        async with one.worker() as worker:
            for number, secrets in enumerate(signed_by, start=1):
                worker.reload(changed(one.settings, secrets=tuple(map(SecretStr, secrets))))
                async with asyncio.timeout(5):
                    while worker.is_reloading:  # noqa: ASYNC110 - the worker takes it up
                        await asyncio.sleep(0)
                await one.queue(FIVE, [number])
                await subscriber.until(lambda seen: len(seen.requests) == number * len(FIVE))  # noqa: B023
    found = [[is_signed(request, secret) for secret in (SECRET, later)] for request in subscriber.requests]
    assert found == [[True, False]] * 5 + [[True, True]] * 5 + [[False, True]] * 5
    assert sorted(sequences(subscriber.requests)) == sequences(subscriber.requests)
