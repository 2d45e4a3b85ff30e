"""A pause is reported at least once, to the log and to `alerts_to`, whichever worker dies."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.delivery.staged_subscriber import Backlogs, StagedSubscriber, backlogs_of, lines_of
from tests.support.stores import fail, pause
from watcher.engine import breaker
from watcher.engine.breaker import is_closed
from watcher.store.exceptions import StoreUnreachable
from watcher.store.queues import Breakers, Queues

pytest_plugins = ("tests.delivery.subscribers",)


@pytest.fixture
def pager(second: StagedSubscriber) -> StagedSubscriber:
    return second


@pytest.fixture
def both(
    redis_client: Redis,
    redis_server_url: str,
    namespace: str,
    subscriber: StagedSubscriber,
    pager: StagedSubscriber,
) -> Backlogs:
    both = backlogs_of(redis_client, redis_server_url, namespace, ops=subscriber.url, pager=pager.url)
    by_name = both.settings.subscription_by_name
    by_name["ops"] = by_name["ops"].model_copy(update={"alerts_to": "pager"})
    return both


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let Redis fail after this call, so many times: what the call did is done."""

    def away(of: type, name: str, times: int = 1, *, is_done: bool = False) -> None:
        """`name` is a method, or what is decided in a change of a breaker."""
        method = "change" if of is Breakers else name
        ask = getattr(of, method)
        left = times

        def is_meant(decide: Any) -> bool:
            return of is not Breakers or getattr(decide, "func", decide).__name__ == name

        async def asked(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if not is_meant(arguments[-1]):
                return await ask(*arguments, **named)
            left -= 1
            if left < 0 or is_done:
                answer = await ask(*arguments, **named)
            if left >= 0:
                raise StoreUnreachable("it is away")
            return answer

        monkeypatch.setattr(of, method, asked)

    return away


def pauses(logged: list[Any], level: str) -> int:
    return sum(line["log_level"] == level for line in lines_of(logged, "subscription.paused"))


@pytest.mark.parametrize(
    ("of", "name", "is_done"),
    [
        (Breakers, "gone", False),
        (Breakers, "gone", True),
        (Queues, "enqueue", False),
        (Queues, "enqueue", True),
        (Breakers, "reported", False),
        (Breakers, "reported", True),
    ],
)
async def test_redis_may_fail_at_any_step_of_a_pause_without_losing_it_or_its_alert(
    both: Backlogs,
    subscriber: StagedSubscriber,
    pager: StagedSubscriber,
    logged: list[Any],
    away: Callable[..., None],
    of: type,
    name: str,
    is_done: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(breaker, "REPORT_MS", 500)
    subscriber.status = 410
    await both.queue(["treasury"])
    away(of, name, is_done=is_done)
    async with both.worker():
        await pager.until(lambda: bool(pager.taken) and pauses(logged, "warning") > 0)
        async with asyncio.timeout(10):
            while (await both.breakers.read())["ops"].report_from_ms:  # noqa: ASYNC110 - a store has no signal
                await asyncio.sleep(0.05)
    assert len({arrival.body for arrival in pager.arrivals}) == 1, "sent again, it is the same event"
    assert pager.taken[0]["data"]["paused"] == "ops"


@pytest.mark.parametrize("due_in_ms", [0, 100])
async def test_the_pause_of_a_worker_that_died_is_reported_by_another(
    both: Backlogs,
    pager: StagedSubscriber,
    logged: list[Any],
    due_in_ms: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By one that is just starting, too."""
    monkeypatch.setattr(breaker, "REPORT_MS", due_in_ms)
    await fail(both.breakers, "ops", "status 410", pause=True)
    monkeypatch.setattr(breaker, "REPORT_MS", 60_000)
    async with both.worker(), both.worker():
        await pager.until(lambda: bool(pager.taken))
    assert len(pager.arrivals) == 1
    assert pager.taken[0]["data"]["reason"] == "status 410"


async def test_one_worker_logs_a_pause_and_the_others_do_not(
    both: Backlogs, subscriber: StagedSubscriber, pager: StagedSubscriber, logged: list[Any]
) -> None:
    async with both.worker(), both.worker(), both.worker():
        await subscriber.until(lambda: len(lines_of(logged, "worker.started")) == 3)
        await both.queue(["treasury"], to="pager")
        await pager.until(lambda: bool(pager.taken))
        subscriber.status = 410
        await both.queue(["treasury"])
        await pager.until(lambda: len(pager.taken) == 2)
        await pager.until(lambda: len(lines_of(logged, "subscription.paused")) == 3)
    assert (pauses(logged, "warning"), pauses(logged, "debug")) == (1, 2)


async def test_a_pause_by_hand_is_reported_like_any_other(
    both: Backlogs, pager: StagedSubscriber, logged: list[Any]
) -> None:
    async with both.worker(), both.worker():
        await both.queue(["treasury"], to="pager")
        await pager.until(lambda: bool(pager.taken))
        await pause(both.breakers, "ops", "by hand")
        await pager.until(lambda: len(pager.taken) == 2 and pauses(logged, "warning") == 1)
    assert pager.taken[1]["data"]["reason"] == "by hand"
    assert pauses(logged, "warning") == 1


async def test_an_alert_that_cannot_be_queued_is_logged_as_one_bug_and_stops_nothing(
    both: Backlogs, subscriber: StagedSubscriber, pager: StagedSubscriber, logged: list[Any]
) -> None:
    queue = both.keys.queue("pager", "ops")
    await both.pipe.command("HSET", queue, "is", "damaged")
    subscriber.status = 410
    await both.queue(["treasury"])
    async with both.worker():
        await subscriber.until(lambda: pauses(logged, "warning") == 1)
        await both.queue(["treasury"], to="pager")
        await pager.until(lambda: bool(pager.taken))
    assert [line["affected"] for line in lines_of(logged, "bug")] == ["alert"]


async def test_a_queue_goes_on_though_redis_failed_after_a_delivery_was_settled(
    both: Backlogs, subscriber: StagedSubscriber, logged: list[Any], away: Callable[..., None]
) -> None:
    await fail(both.breakers, "ops", "status 500")
    await both.queue(["treasury"], [1, 2, 3])
    away(Breakers, "probed", 2)
    async with both.worker():
        await subscriber.until(lambda: len(subscriber.taken) == 3, within_s=5)
    assert is_closed((await both.breakers.read())["ops"]), "its recovery is not lost either"
    assert not lines_of(logged, "lease.lost")


async def test_a_failure_counts_though_redis_failed_after_its_retry_was_settled(
    both: Backlogs, subscriber: StagedSubscriber, away: Callable[..., None]
) -> None:
    subscriber.status, subscriber.headers = 503, {"Retry-After": "3600"}
    await fail(both.breakers, "ops", "status 500")
    await both.queue(["treasury"])
    away(Breakers, "probed", 2)
    async with both.worker():
        await both.until_nothing_is_due()
    assert len(subscriber.arrivals) == 1
    assert (await both.breakers.read())["ops"].probes == "0"
