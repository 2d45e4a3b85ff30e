"""Messages to simulated services that check shape, size and rate: in bursts, refusals and after a crash."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.delivery.staged_subscriber import Backlogs, backlogs_of, some_settings
from tests.delivery.test_sentences import a_change
from tests.support.audited import flaws
from tests.support.builders import a_subscription
from tests.support.chat import Answer, ChatService
from tests.support.processes import a_process
from tests.support.raw_subscribers import LOOPBACK, a_sink
from watcher.delivery.chat import ChatTarget
from watcher.delivery.formats import services
from watcher.engine import breaker
from watcher.journal.events import Delivery
from watcher.store.keys import shard_of

ACCOUNT = "treasury"
FIELDS: dict[str, dict[str, Any]] = {
    "telegram": {"chat": "-1001234567890"},
    "pagerduty": {"routing_key": "a" * 32},
}
"""What a format needs besides its URL."""

every_format = pytest.mark.parametrize("format_", services.SERVICES)


def a_storm(first: int, last: int, **says: Any) -> list[Delivery]:
    """Events of a minute ago, each of another amount."""
    then_ms = int(1000 * time.time()) - 60_000
    return [
        a_change(amount=f"{number}.5", **says)._replace(event_id=f"evt_{number}", sequence=then_ms + number)
        for number in range(first, last + 1)
    ]


def said(first: int, last: int) -> list[str]:
    """What people read of these events."""
    return [f"treasury: deposit cleared, +{n}.5 LRC (total 112.5)" for n in range(first, last + 1)]


def a_chat(service: ChatService, **fields: Any) -> ChatTarget:
    format_: Any = service.format
    fields = {**FIELDS.get(format_, {}), **fields}
    return ChatTarget(a_subscription(url=service.url, format=format_, **fields), LOOPBACK)


def seen(lines: Sequence[str]) -> list[str]:
    """Lines as the eye reads them."""
    return [line.replace("\N{ZERO WIDTH SPACE}", "") for line in lines]


@every_format
async def test_each_service_accepts_its_message_and_shows_each_event_in_a_line(format_: str) -> None:
    async with ChatService(format_) as service, a_sink() as sink:
        target = a_chat(service)
        storm = a_storm(1, 20)
        some = storm[: target.together(storm)]
        assert len(some) == min(20, target.most_together)
        attempt = await sink.send(target, some, 1)
    assert (service.flaws, attempt.answer) == ([], breaker.Answer.DELIVERED)
    assert seen(service.lines) == said(1, len(some))


@every_format
async def test_a_message_holds_as_many_events_as_the_service_accepts(format_: str) -> None:
    asset = {"id": "7" * 200, "symbol": "&<*_@#" * 40, "name": "x", "decimals": 18}
    storm = a_storm(1, 20, asset=asset, after={"total": "9" * 78 + "." + "9" * 78, "locked": "0"})
    async with ChatService(format_) as service, a_sink() as sink:
        target = a_chat(service)
        some = storm[: target.together(storm)]
        attempt = await sink.send(target, some, 1)
    assert (service.flaws, attempt.answer) == ([], breaker.Answer.DELIVERED)
    assert len(service.lines) == len(some) >= 1
    for number, line in enumerate(service.lines, 1):
        assert f"+{number}.5 " in line
        assert "9" * 78 + "." + "9" * 78 in line, "amounts are exact"


@every_format
async def test_the_rate_limit_answer_of_each_service_is_understood(format_: str) -> None:
    async with ChatService(format_, credit=1.0) as service, a_sink() as sink:
        target = a_chat(service)
        answers = [await sink.send(target, a_storm(n, n), 1) for n in (1, 2)]
    assert [each.answer for each in answers] == [
        breaker.Answer.DELIVERED,
        breaker.Answer.SLOW_DOWN,
    ]
    assert service.limited == 1
    asks_s = answers[1].retry_after_s
    assert asks_s is None if format_ in ("ntfy", "pagerduty") else asks_s and 0 < asks_s <= 1


@every_format
async def test_a_message_that_the_service_would_refuse_is_found(format_: str) -> None:
    async with ChatService(format_) as service, a_sink() as sink:
        target = a_chat(service)
        body = b"x" * 600_000 if format_ == "ntfy" else b'{"text":""}'
        head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n" % service.rules.path.encode()
        request = head + b"content-length: %d\r\n\r\n" % len(body) + body
        target.request = lambda *_: request  # type: ignore[method-assign]
        attempt = await sink.send(target, a_storm(1, 1), 1)
    assert service.flaws
    assert attempt.answer is not breaker.Answer.DELIVERED
    assert service.messages == []


def to(service: ChatService, client: Redis, url: str, namespace: str) -> Backlogs:
    """A namespace with one subscription, to that service, at the service's own rate."""
    fields = {"url": service.url, "format": service.format, **FIELDS.get(service.format, {})}
    settings = some_settings(url, namespace, {"ops": fields})
    return replace(backlogs_of(client, url, namespace), settings=settings)


async def assert_settled(one: Backlogs) -> None:
    """Nothing waits, nothing was given up, and all that lies in the store agrees."""
    assert await one.queues.backlog("ops") == 0
    assert await one.letters.dead_letters("ops", 9, lambda _: True) == []
    assert await flaws(one.pipe, one.keys) == []


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(180, marks=pytest.mark.fault),
        pytest.param(500, marks=pytest.mark.long),
    ],
)
async def test_a_burst_becomes_a_few_messages_at_slacks_rate_each_event_once_in_order(
    redis_client: Redis, redis_server_url: str, namespace: str, count: int
) -> None:
    async with ChatService("slack") as slack:
        one = to(slack, redis_client, redis_server_url, namespace)
        await one.queues.enqueue("ops", ACCOUNT, a_storm(1, count))
        async with one.worker():
            await slack.until(lambda: len(slack.lines) >= count, within_s=60)
    assert seen(slack.lines) == said(1, count)
    assert len(slack.messages) <= 1 + count / 20
    assert (slack.flaws, slack.limited) == ([], 0)
    await assert_settled(one)


@pytest.mark.parametrize(
    ("count", "for_s"),
    [
        pytest.param(15, 3, marks=pytest.mark.fault),
        pytest.param(60, 60, marks=[pytest.mark.long, pytest.mark.timeout(240)]),
    ],
)
async def test_an_outage_of_a_service_loses_no_event_and_ends_without_a_burst(
    redis_client: Redis, redis_server_url: str, namespace: str, count: int, for_s: int
) -> None:
    until_s = time.monotonic() + for_s
    limited = Answer(429, "rate_limited", {"Retry-After": "1"})

    async with ChatService("slack", lambda _: limited if time.monotonic() < until_s else None) as slack:
        one = to(slack, redis_client, redis_server_url, namespace)
        await one.queues.enqueue("ops", ACCOUNT, a_storm(1, count))
        async with one.worker():
            await slack.until(lambda: len(slack.lines) >= count, within_s=for_s + 90)
    assert seen(slack.lines) == said(1, count)
    assert 1 <= slack.refused <= for_s + 1
    assert (slack.flaws, slack.limited) == ([], 0)
    await assert_settled(one)


@pytest.mark.fault
async def test_a_worker_that_is_killed_before_it_has_the_answer_has_the_whole_message_repeated(
    redis_client: Redis, redis_server_url: str, namespace: str, tmp_path: Path
) -> None:
    """A message that was taken and not settled is repeated whole; then the rest follows, in order."""
    async with ChatService("slack", is_stuck=True) as slack:
        one = to(slack, redis_client, redis_server_url, namespace)
        (tmp_path / "watcher.toml").write_text(
            f'[redis]\nurl = "{redis_server_url}"\nnamespace = "{namespace}"\n'
            '[egress]\nallow = ["127.0.0.0/8"]\nallow_http = true\n'
            f'[[subscriptions]]\nname = "ops"\nurl = "{slack.url}"\nformat = "slack"\n'
        )
        await one.queues.enqueue("ops", ACCOUNT, a_storm(1, 45))
        async with a_process(tmp_path, "run") as worker:
            await slack.until(lambda: bool(slack.messages), within_s=20)
            worker.kill()
            await worker.wait()
        assert await one.queues.backlog("ops") == 45
        slack.is_stuck = False
        now_s, _ = await redis_client.time()
        key = one.keys.queues(shard_of(ACCOUNT), "ops")
        await redis_client.zadd(key, {ACCOUNT: 1000 * now_s})  # as if its lease had run out
        await redis_client.zadd(one.keys.due_subscriptions(shard_of(ACCOUNT)), {"ops": 1000 * now_s})
        async with one.worker():
            await slack.until(lambda: len(slack.lines) >= 65, within_s=20)
    assert seen(slack.lines) == said(1, 20) + said(1, 45)
    assert slack.flaws == []
    await assert_settled(one)
