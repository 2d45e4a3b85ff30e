"""A full backlog gives up its oldest deliveries: logged, counted, and with a gap that receivers see."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.delivery.staged_subscriber import inactive, lines_of
from tests.support.builders import seconds
from tests.support.raw_subscribers import OK, Peer, subscribing
from tests.support.rig import TREASURY, Rig, a_rig, quick
from tests.support.scraped import a_listener_of, scrape
from watcher.run.upkeep import Overflows
from watcher.store.keys import Keys
from watcher.store.pipe import Pipe
from watcher.store.reader import Reader

pytest_plugins = ("tests.delivery.subscribers",)


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - the worker only logs
            await asyncio.sleep(0.005)


async def credited(rig: Rig, logged: list[Any], times: int) -> list[int]:
    """Let one account receive so often, and wait for each to be committed; returns their sequences."""
    for _ in range(times):
        before = len(lines_of(logged, "event.created"))
        rig.sandbox.world.credit(TREASURY, "ETH", 1)
        await until(lambda: len(lines_of(logged, "event.created")) > before)  # noqa: B023
    return [line["sequence"] for line in lines_of(logged, "event.created")[-times:]]


def change(rig: Rig, **fields: Any) -> None:
    by_name = rig.settings.subscription_by_name
    by_name["ops"] = by_name["ops"].model_copy(update=fields)


def test_a_full_backlog_is_logged_at_once_then_every_five_minutes_with_all_drops_counted(
    logged: list[Any],
) -> None:
    overflows = Overflows()
    for second in range(700):
        overflows.add("ops", "more than max_backlog wait (5)", 2)
        overflows.say(float(second))
    overflows.say(700.0, at_once=True)
    overflows.say(701.0, at_once=True)
    assert [line["deliveries"] for line in lines_of(logged, "subscription.overflowed")] == [2, 600, 600, 198]


async def test_a_receiver_sees_the_gap_after_its_backlog_overflowed(
    rig: Rig, logged: list[Any], redis_client: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inactive(monkeypatch, 50)
    change(rig, retries=quick(1000), max_backlog=5)
    receiver = rig.receiver

    def overflows() -> list[Any]:
        return lines_of(logged, "subscription.overflowed")

    async with rig.worker() as worker, a_listener_of(worker) as port:
        await until(lambda: len(lines_of(logged, "account.baseline")) == 2)
        (first,) = await credited(rig, logged, 1)
        await rig.events(1)
        receiver.port = int(receiver.url.rstrip("/").rpartition(":")[2])
        await receiver.__aexit__()
        missed = await credited(rig, logged, 12)
        await until(lambda: worker.counters.pushed_out["ops"] == 7)
        metrics = await scrape(port)
        await receiver.__aenter__()
        await rig.events(6)
    lost, kept = missed[:7], missed[7:]
    assert sum(line["deliveries"] for line in overflows()) == 7, "the rest is logged at the end"
    assert {(line["log_level"], line["subscription"], line["reason"]) for line in overflows()} == {
        ("warning", "ops", "more than max_backlog wait (5)")
    }
    assert metrics.value("watcher_deliveries_pushed_out_total", subscription="ops") == 7
    assert metrics.value("watcher_dead_letters", subscription="ops") == 7
    letters = await Reader(Pipe(redis_client), Keys(namespace)).dead_letters("ops", 100, lambda _letter: True)
    assert [letter.delivery.sequence for letter in letters if letter.delivery] == lost
    assert {letter.reason for letter in letters} == {"backlog full"}
    assert [event["data"]["sequence"] for event in receiver.events] == [first, *kept]
    assert receiver.events[1]["subscription"]["previous_sequence"] == lost[-1], "which did not come"
    assert [receipt.order for receipt in receiver.receipts if receipt.is_taken] == [
        None,
        "gap",
        *[None] * 4,
    ]


@pytest.mark.parametrize(
    ("answer", "waits_s"), [(OK, 0), (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", 1)]
)
async def test_dropping_a_head_in_flight_delays_its_queue_no_longer_than_a_retry(
    rig: Rig, logged: list[Any], answer: bytes, waits_s: int
) -> None:
    may_answer, answered_at = asyncio.Event(), 0.0

    async def script(peer: Peer) -> None:
        nonlocal answered_at
        await peer.receive()
        await may_answer.wait()
        answered_at = time.monotonic()
        await peer.send(answer)
        while True:
            await peer.receive()
            heard_at.append(time.monotonic())
            await peer.send(OK)

    heard_at: list[float] = []
    async with subscribing(script) as subscriber:
        change(rig, url=SecretStr(subscriber.url), retries=seconds(0, waits_s, waits_s), max_backlog=2)
        async with rig.worker():
            await until(lambda: len(lines_of(logged, "account.baseline")) == 2)
            sequences = await credited(rig, logged, 1)
            await subscriber.until(lambda subscriber: len(subscriber.requests) == 1)
            sequences += await credited(rig, logged, 3)
            await until(lambda: bool(lines_of(logged, "subscription.overflowed")))
            may_answer.set()
            await until(lambda: len(subscriber.requests) == 3)
        sent = [json.loads(request.body)["data"]["sequence"] for request in subscriber.requests]
    assert sent == [sequences[0], *sequences[2:]]
    assert waits_s <= heard_at[0] - answered_at < waits_s + 1
    assert not lines_of(logged, "lease.lost")
