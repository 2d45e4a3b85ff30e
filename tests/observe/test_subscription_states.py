"""A subscription's state has one word, the same in status, subscriptions, metrics and on the page."""

import json
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.support.builders import a_subscription
from tests.support.scraped import parsed
from tests.support.stores import MINUTE_MS, Store, a_delivery, a_store, fail, pause
from watcher.commands.status import as_text, read_lines
from watcher.config.loading import Look as Configuration
from watcher.engine.breaker import BY_HAND
from watcher.observe.metrics import Metrics
from watcher.observe.page.look import Look
from watcher.observe.views import remedy_of
from watcher.run.worker import Opened, Worker
from watcher.settings import RedisSettings, Settings
from watcher.store.health import StoreHealth
from watcher.store.queues import Breaker, Breakers
from watcher.store.schedule import Reply

STATES = {
    "young": "healthy",
    "idle": "healthy",
    "old": "delayed",
    "held": "backing off",
    "briefly": "delayed",
    "open": "failing",
    "off": "paused",
}
FORMATS = {"idle": "slack", "held": "discord"}
"""Of those that are sent messages for people."""

AGE_MS = {"young": 29_000, "old": 32_000, "held": 99_000, "briefly": 99_000, "open": 99_000, "off": 99_000}
"""How old the delivery is that waits for each."""


async def staged(store: Store) -> None:
    now_ms = await store.now_ms()
    for name, age_ms in AGE_MS.items():
        await store.fill(a_delivery(now_ms - age_ms, previous=None, subscription=name), subscription=name)
    breakers = Breakers(store.pipe, store.keys)
    for name, backoff_ms in (("held", 60_000), ("briefly", 3_000)):
        paced = Breaker(reason="status 429", pace_per_s=30.0, pace_at_ms=now_ms + MINUTE_MS)
        held = paced._replace(held_until_ms=now_ms + backoff_ms)
        await breakers.change(name, lambda _, __, held=held: held)  # type: ignore[misc]  # one of each
    await fail(breakers, "open", "status 503", open_ms=60_000)
    await pause(breakers, "off", "by hand")


@pytest.fixture
async def worker(redis_client: Redis, redis_server_url: str, namespace: str) -> Worker:
    """A worker that does not run, and sees what was staged."""
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    await staged(store)
    settings = Settings(
        redis=RedisSettings(url=SecretStr(redis_server_url), namespace=namespace),
        provider_by_name={},
        account_by_name={},
        subscription_by_name={
            name: a_subscription(name, format=FORMATS.get(name, "standard")) for name in STATES
        },
    )
    worker = Worker(settings, name="w")
    worker.opened = Opened(store.schedule, StoreHealth())
    return worker


async def test_status_metrics_and_page_agree_on_what_a_subscription_is_and_why(worker: Worker) -> None:
    status = await read_lines(Configuration(worker.settings))
    rates = {line["subscription"]: line["per_second"] for line in status if "per_second" in line}
    assert (rates["held"], rates["briefly"]) == (2, 30), "Discord takes two a second at most"
    lines = {line["subscription"]: line for line in status if line["kind"] == "subscription"}
    page = json.loads(await Look(worker).json())["seen"]["subscriptions"]["shown"]
    by_page = {one["subscription"]: one for one in page}
    assert {name: line["state"] for name, line in lines.items()} == STATES
    assert {name: one["state"] for name, one in by_page.items()} == STATES
    for shown in (lines, by_page):
        assert {name: one["format"] for name, one in shown.items() if one["format"] != "standard"} == FORMATS
    for name in ("open", "held", "off"):
        assert by_page[name]["reason"] == lines[name]["reason"] != ""
    for name in ("open", "held"):
        assert 55 <= lines[name]["backing_off_s"] <= 60
        assert abs(by_page[name]["backing_off_s"] - lines[name]["backing_off_s"]) <= 1
    metrics = parsed((await Metrics(worker).text()).decode())
    is_old = {name: float(age_ms > 30_000) for name, age_ms in AGE_MS.items()} | {"idle": 0.0}
    for name, is_so in is_old.items():
        assert metrics.value("watcher_subscription_delayed", subscription=name) == is_so
        assert metrics.value("watcher_subscription_paused", subscription=name) == (name == "off")
        assert metrics.value("watcher_subscription_failing", subscription=name) == (name in ("open", "off"))


async def test_a_delayed_subscription_says_how_its_latest_attempt_failed(
    worker: Worker, redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    (head,) = await store.queue(subscription="old")
    lease = await store.lease_queue(subscription="old")
    said = b'{"outcome":"retry","status":422,"error":null}'
    assert await store.queues.retry("old", lease, head, wait_ms=60_000, record=said) is Reply.DONE
    lines = await read_lines(Configuration(worker.settings))
    reasons = {line["subscription"]: line["reason"] for line in lines if line["kind"] == "subscription"}
    assert (reasons["old"], reasons["idle"]) == ("status 422", None)
    assert "    failed last: status 422" in "\n".join(as_text(lines))
    page = json.loads(await Look(worker).json())["seen"]["subscriptions"]["shown"]
    said_by = {one["subscription"]: (one["reason"], one["todo"]) for one in page}
    (todo,) = (line["todo"] for line in lines if line.get("subscription") == "old")
    assert said_by["old"] == ("status 422", todo)
    assert todo.startswith("look ")


async def test_status_shows_the_last_answer_and_for_how_long_nothing_is_sent(worker: Worker) -> None:
    screen = "\n".join(as_text(await read_lines(Configuration(worker.settings))))
    assert "2 of 7 healthy" in screen
    assert "circuit breaker open, backing off for" in screen
    rests = [f"backing off for {rest}, 2 attempts a second at most: status 429" for rest in ("59s", "1m 0s")]
    assert any(rest in screen for rest in rests)
    assert "old: delayed: 1 delivery in 1 queue, the oldest for 32s" in screen


@pytest.mark.parametrize(
    ("found", "well", "says"),
    [({"retrying": 1}, 2, "young: 1 delivery"), ({"dead": 1}, 1, "young: 1 delivery"), ({}, 2, "")],
)
async def test_a_retrying_queue_is_listed_as_healthy_and_a_dead_letter_is_not(
    worker: Worker, found: dict[str, int], well: int, says: str
) -> None:
    lines = await read_lines(Configuration(worker.settings))
    (young,) = (line for line in lines if line.get("subscription") == "young")
    young |= {"state": "healthy", **found}
    screen = "\n".join(as_text(lines))
    assert f"{well} of 7 healthy" in screen
    assert says in screen
    assert ("young" in screen) == bool(says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"state": "paused", "reason": BY_HAND}, "`watcher subscriptions resume ops` sends what waits"),
        ({"state": "paused", "reason": "status 410"}, "it says that this URL is gone for good: set the new"),
        ({"state": "paused", "reason": "channel_not_found; invite it"}, "then `watcher subscriptions resume"),
        ({"state": "failing", "reason": "status 401"}, "compare the secret on both sides; `watcher verify` "),
        ({"state": "failing", "reason": "cannot connect: refused"}, "check whether the receiver listens at"),
        ({"state": "failing", "reason": "something new"}, "look at the receiver, and at what is in front"),
        ({"state": "backing off", "reason": "status 429"}, "it asks for fewer requests: set requests_per_"),
        ({"state": "delayed", "reason": "status 503"}, "look into the receiver's log: it failed while"),
        ({"record": "unverified", "ping_error": "status 404"}, "look at the path of the subscription's url"),
        ({"record": "unverified"}, "`watcher ping ops` shows what it answers; workers ping it for a day"),
    ],
)
def test_every_reason_that_holds_back_events_says_what_to_do(changes: dict[str, Any], says: str) -> None:
    line = {"subscription": "ops", "state": "healthy", "format": "standard", "reason": None}
    assert (remedy_of({**line, "record": None, "ping_error": None, **changes}) or "").startswith(says)


@pytest.mark.parametrize("changes", [{}, {"state": "delayed"}, {"reason": "status 503"}])
def test_without_a_known_problem_no_advice_is_given(changes: dict[str, Any]) -> None:
    line = {"subscription": "ops", "state": "healthy", "format": None, "reason": None, "record": None}
    assert remedy_of({**line, "ping_error": None, **changes}) is None
