"""A subscription that fails everything is warned of before it is paused, and no pause goes unlogged."""

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.staged_subscriber import (
    Backlogs,
    CommandLine,
    StagedSubscriber,
    inactive,
    lines_of,
)
from tests.support.builders import seconds
from tests.support.stores import fail, pause

pytest_plugins = ("tests.delivery.subscribers",)

DAY_MS = 86_400_000


@pytest.fixture
def subscriber(subscriber: StagedSubscriber) -> StagedSubscriber:
    subscriber.status = 500
    return subscriber


async def failing_for(one: Backlogs, days: float) -> None:
    """Let the subscription have failed since then."""
    await fail(one.breakers, "ops", "status 500", days=days)


async def test_a_coming_pause_is_logged_with_the_time_left_and_not_at_each_attempt(
    one: Backlogs, subscriber: StagedSubscriber, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inactive(monkeypatch, 20, 20, 20, 6000)
    await failing_for(one, days=4)
    await one.queue(["treasury"])
    async with one.worker():
        await subscriber.until(lambda: bool(lines_of(logged, "subscription.failing")))
    assert len(subscriber.arrivals) == 3
    (warning,) = lines_of(logged, "subscription.failing")
    assert (warning["log_level"], warning["reason"]) == ("warning", "status 500")
    assert 0.99 * DAY_MS < warning["pause_in_ms"] <= DAY_MS
    assert 0 < warning["next_ms"] < 10_000, "when it is tried again"
    assert not lines_of(logged, "subscription.paused")


async def test_after_five_days_it_is_paused_and_log_status_and_commands_show_it(
    one: Backlogs,
    subscriber: StagedSubscriber,
    logged: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = CommandLine(one.settings, tmp_path / "watcher.toml", capsys)
    await failing_for(one, days=5)
    await one.queue(["treasury"], [1, 2])
    async with one.worker():
        await subscriber.until(lambda: bool(lines_of(logged, "subscription.paused")))
        await one.until_nothing_is_due()
        attempts = len(subscriber.arrivals)
        assert "paused since" in (await run("status")).out
        assert "paused since" in (await run("subscriptions")).out
        subscriber.status = 200
        await one.queue(["treasury"], [3])
        await asyncio.sleep(0.2)
        assert len(subscriber.arrivals) == attempts, "nothing is sent while it is paused"
        await run("subscriptions", "resume", "ops")
        await subscriber.until(lambda: len(subscriber.taken) == 3)
    assert [event["data"]["sequence"] for event in subscriber.taken] == [1, 2, 3]
    (paused,) = lines_of(logged, "subscription.paused")
    assert (paused["log_level"], paused["reason"]) == ("warning", "status 500")


async def test_a_pause_by_hand_is_in_the_log_of_every_worker_and_of_one_that_starts_later(
    one: Backlogs, subscriber: StagedSubscriber, logged: list[Any]
) -> None:
    async with one.worker(), one.worker():
        await pause(one.breakers, "ops", "by hand")
        await subscriber.until(lambda: len(lines_of(logged, "subscription.paused")) == 2)
        async with one.worker():
            await subscriber.until(lambda: len(lines_of(logged, "subscription.paused")) == 3)


async def test_a_schedule_of_its_own_ends_in_a_dead_letter_after_which_the_queue_goes_on(
    one: Backlogs, subscriber: StagedSubscriber, logged: list[Any]
) -> None:
    ops = one.settings.subscription_by_name["ops"].model_copy(update={"retries": seconds(0, 0.05, 0.1)})
    three = replace(one, settings=one.settings.model_copy(update={"subscription_by_name": {"ops": ops}}))
    await three.queue(["treasury"], [1, 2])
    async with three.worker():
        await subscriber.until(lambda: len(lines_of(logged, "delivery.dead")) == 1)
        subscriber.status = 200
        await subscriber.until(lambda: len(subscriber.taken) == 1)
    first = [each for each in subscriber.arrivals if each.event["data"]["sequence"] == 1]
    assert [each.attempt for each in first] == [1, 2, 3]
    waits = [later.at - earlier.at for earlier, later in itertools.pairwise(first)]
    assert waits[0] > 0.05
    assert waits[1] > 0.1
    assert subscriber.taken[0]["subscription"]["previous_sequence"] == 1, "which did not come: a visible gap"
