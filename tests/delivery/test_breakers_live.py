"""How running workers treat subscriptions that fail, send Retry-After or limit their rate."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.delivery.staged_subscriber import (
    Backlogs,
    CommandLine,
    StagedSubscriber,
    backlogs_of,
    inactive,
)
from tests.support.events_schema import assert_valid
from tests.support.stores import fail
from watcher.delivery import breakers
from watcher.engine.breaker import is_closed
from watcher.settings import SubscriptionSettings
from watcher.store.keys import shard_of

pytest_plugins = ("tests.delivery.subscribers",)

FIFTY = [f"account-{number}" for number in range(50)]


def change(one: Backlogs, **fields: Any) -> Backlogs:
    """The same with another setting of the subscription."""
    ops: SubscriptionSettings = one.settings.subscription_by_name["ops"].model_copy(update=fields)
    return replace(one, settings=one.settings.model_copy(update={"subscription_by_name": {"ops": ops}}))


def in_order(events: list[Any]) -> bool:
    by_account: dict[str, list[int]] = {}
    for event in events:
        by_account.setdefault(event["data"]["account"]["name"], []).append(event["data"]["sequence"])
    return all(sequences == sorted(set(sequences)) for sequences in by_account.values())


async def test_a_410_pauses_at_once_with_a_log_line_and_loses_nothing(
    redis_client: Redis,
    redis_server_url: str,
    namespace: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    logged: list[Any],
) -> None:
    async with StagedSubscriber(status=410) as gone, StagedSubscriber() as pager:
        both = backlogs_of(redis_client, redis_server_url, namespace, ops=gone.url, pager=pager.url)
        by_name = both.settings.subscription_by_name
        by_name["ops"] = by_name["ops"].model_copy(update={"alerts_to": "pager"})
        run = CommandLine(both.settings, tmp_path / "watcher.toml", capsys)
        await both.queue(["treasury", "alice"], [1, 2, 3])
        async with both.worker():
            await pager.until(lambda: bool(pager.taken))
            await gone.until(lambda: gone.in_flight == 0)
            attempts = len(gone.arrivals)
            gone.status = 200
            await both.queue(["treasury"], [4])
            shown = (await run("subscriptions", "--json")).objects[0]
            assert (shown["reason"], bool(shown["paused_at"])) == ("status 410", True)
            assert len(gone.arrivals) == attempts <= 2
            assert (await run("subscriptions", "resume", "ops")).code == 0
            await gone.until(lambda: len(gone.taken) == 7)
    assert in_order(gone.taken)
    (alert,) = pager.arrivals
    assert_valid(alert.body)
    assert (alert.event["type"], alert.event["data"]["paused"]) == ("subscription.paused", "ops")
    paused = [line for line in logged if line["event"] == "subscription.paused"]
    assert [(line["subscription"], line["reason"]) for line in paused] == [("ops", "status 410")]
    assert {line["event"] for line in logged} >= {"subscription.resumed"}


async def test_an_open_breaker_lets_one_attempt_of_all_workers_out_until_one_succeeds(
    one: Backlogs, subscriber: StagedSubscriber, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    inactive(monkeypatch, 50, 100, 200)
    subscriber.status, subscriber.delay_s = 503, 0.02
    await one.queue(FIFTY, [1, 2])
    async with one.worker() as first, one.worker() as second, one.worker() as third:
        await subscriber.until(lambda: "subscription.failing" in [line["event"] for line in logged])
        # What was under way when it opened is over, and all know that it is open.
        await subscriber.until(
            lambda: all(
                worker.configured and not worker.configured.breakers.is_closed("ops") and not worker.in_flight
                for worker in (first, second, third)
            )
        )
        probes_from = len(subscriber.arrivals)
        await subscriber.until(lambda: len(subscriber.arrivals) >= probes_from + 3)
        subscriber.status = 200
        await subscriber.until(lambda: len(subscriber.taken) == 100)
    first_taken = next(i for i, each in enumerate(subscriber.arrivals) if each.status == 200)
    burst = sum(each.in_flight > 1 for each in subscriber.arrivals[:first_taken])
    assert burst < 32, "only what was under way when it first failed"
    assert {each.in_flight for each in subscriber.arrivals[probes_from : first_taken + 1]} == {1}
    assert max(each.in_flight for each in subscriber.arrivals[first_taken:]) > 5, "then all of it goes out"
    assert in_order(subscriber.taken)
    assert is_closed((await one.breakers.read()).get("ops"))
    assert [line["event"] for line in logged].count("subscription.recovered") == 1
    assert not await one.pipe.command("ZCARD", one.keys.probes("ops"))


async def test_the_probe_of_a_worker_that_died_is_made_by_another_when_its_lease_ends(
    one: Backlogs, subscriber: StagedSubscriber
) -> None:
    await fail(one.breakers, "ops", "status 503", open_ms=1)
    assert await one.breakers.take_probes("ops", ["of one that died"], at_most=1, lease_ms=1500)
    probed_from = time.monotonic() + 1.4
    await one.queue(FIFTY[:5])
    async with one.worker(), one.worker():
        await subscriber.until(lambda: len(subscriber.taken) == 5)
    assert subscriber.arrivals[0].at > probed_from


async def test_concurrency_grows_with_each_delivery(one: Backlogs, subscriber: StagedSubscriber) -> None:
    subscriber.delay_s = 0.05
    await one.queue(FIFTY)
    async with one.worker():
        await subscriber.until(lambda: len(subscriber.taken) == 50)
    in_flight = [each.in_flight for each in subscriber.arrivals]
    assert max(in_flight[:2]) <= 2
    assert 8 < max(in_flight) <= 32


async def test_a_subscriber_that_hangs_from_the_beginning_gets_two_attempts(
    one: Backlogs, subscriber: StagedSubscriber
) -> None:
    subscriber.delay_s = 1.0
    await one.queue(FIFTY)
    async with one.worker():
        await subscriber.until(lambda: len(subscriber.arrivals) > 2)
    assert subscriber.arrivals[2].at - subscriber.arrivals[0].at > 0.9


async def test_thirty_attempts_that_fail_at_once_open_the_breaker_once(
    one: Backlogs, subscriber: StagedSubscriber
) -> None:
    await one.queue(FIFTY)
    async with one.worker():
        await subscriber.until(lambda: len(subscriber.taken) == 50)
        subscriber.status, subscriber.delay_s = 503, 0.5
        await one.queue(FIFTY, [2])
        await subscriber.until(lambda: len(subscriber.arrivals) >= 80 and subscriber.in_flight == 0)
        subscriber.status = 200
        await subscriber.until(lambda: len(subscriber.taken) == 100, within_s=5)


async def test_an_attempt_that_lost_its_lease_does_not_count_for_the_breaker(
    one: Backlogs, subscriber: StagedSubscriber, logged: list[Any]
) -> None:
    subscriber.status, subscriber.delay_s = 503, 0.3
    await one.queue(["treasury"])
    async with one.worker():
        await subscriber.until(lambda: bool(subscriber.arrivals))
        queues = one.keys.queues(shard_of("treasury"), "ops")
        far_off = one.queues._schedule.now_ms() + 60_000
        await one.pipe.command("ZADD", queues, far_off, "treasury")  # as another worker's claim would
        await subscriber.until(lambda: "lease.lost" in [line["event"] for line in logged])
        assert await one.breakers.read() == {}


async def test_retry_after_holds_all_queues_of_the_receiver_and_later_deliveries(
    one: Backlogs, subscriber: StagedSubscriber
) -> None:
    subscriber.delay_s = 0.3
    await one.queue(["slow"])
    async with one.worker():
        await subscriber.until(lambda: bool(subscriber.arrivals))
        subscriber.status, subscriber.headers, subscriber.delay_s = 429, {"Retry-After": "2"}, 0.0
        await one.queue(["limited"])
        await subscriber.until(lambda: len(subscriber.arrivals) == 2)
        asked_at = subscriber.arrivals[1].at
        subscriber.status, subscriber.headers = 200, {}
        await subscriber.until(lambda: subscriber.in_flight == 0)  # the slow one was taken meanwhile
        await one.queue(["later"])
        await subscriber.until(lambda: len(subscriber.taken) == 3)
    waited = [each.at - asked_at for each in subscriber.arrivals[2:]]
    assert min(waited) > 1.9
    assert {each.event["data"]["account"]["name"] for each in subscriber.arrivals[2:]} == {"limited", "later"}


async def test_a_resume_ends_a_days_wait_at_once(
    one: Backlogs, subscriber: StagedSubscriber, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = CommandLine(one.settings, tmp_path / "watcher.toml", capsys)
    subscriber.status, subscriber.headers = 429, {"Retry-After": "86400"}
    await one.queue(["treasury"])
    async with one.worker(), one.worker():
        await one.queue(FIFTY)
        await one.until_nothing_is_due()
        subscriber.status, attempts = 200, len(subscriber.arrivals)
        shown = (await run("subscriptions")).out
        assert "backing off for 23h 59m" in shown
        assert "status 429" in shown
        assert len(subscriber.arrivals) == attempts
        await run("subscriptions", "resume", "ops")
        await subscriber.until(lambda: len(subscriber.taken) == 51, within_s=4)


async def test_a_rate_is_kept_over_two_workers(one: Backlogs, subscriber: StagedSubscriber) -> None:
    limited = change(one, requests_per_second=20)
    await one.queue(FIFTY[:30])
    async with limited.worker(), limited.worker():
        await subscriber.until(lambda: len(subscriber.taken) == 30)
    at = [each.at for each in subscriber.arrivals]
    assert len(at) == 30
    assert at[-1] - at[0] > 0.95 * 29 / 20
    assert max(sum(start <= other < start + 0.5 for other in at) for start in at) <= 15


async def test_a_queue_is_given_back_while_its_turn_is_far_off(
    one: Backlogs, subscriber: StagedSubscriber, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    monkeypatch.setattr(breakers, "TURN_MS", 50)
    limited = change(one, requests_per_second=5)
    await one.queue(FIFTY[:6])
    async with limited.worker(), limited.worker() as worker:
        await subscriber.until(lambda: len(subscriber.taken) == 2)
        await subscriber.until(lambda: not worker.in_flight)
        assert len(subscriber.taken) < 6, "it waits for turns with no queue in hand"
        await subscriber.until(lambda: len(subscriber.taken) == 6)
    assert subscriber.arrivals[-1].at - subscriber.arrivals[0].at > 0.9, "six at five a second"
    assert not [line for line in logged if line["event"] == "lease.lost"]
    assert Counter(event["id"] for event in subscriber.taken).most_common(1)[0][1] == 1


async def test_an_unreadable_delivery_becomes_a_dead_letter_and_holds_up_no_other(
    one: Backlogs, subscriber: StagedSubscriber, logged: list[Any]
) -> None:
    await one.pipe.command("RPUSH", one.keys.queue("ops", "treasury"), b"\xff\x1b damaged")
    await one.queue(["treasury"], [1, 2])
    async with one.worker():
        await subscriber.until(lambda: len(subscriber.taken) == 2)
    (letter,) = await one.letters.dead_letters("ops", 10, lambda _letter: True)
    assert (letter.account, letter.delivery) == ("treasury", None)
    assert letter.reason == "its stored event cannot be read"
    assert "bug" not in [line["event"] for line in logged]
