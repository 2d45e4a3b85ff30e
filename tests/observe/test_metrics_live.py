"""The counters of a worker match what happened, and its metrics of Redis match what is there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

import watcher.run.worker
from tests.support.builders import seconds
from tests.support.rig import ALICE, MK, TREASURY, Rig, a_rig
from tests.support.scraped import Scrape, a_listener_of, get, parsed, scrape
from tests.support.servers import real_server
from tests.support.stores import fail, pause
from watcher.engine.dispatch import Claim
from watcher.engine.loop import Claimed
from watcher.observe import views
from watcher.observe.catalogue import EVENTS
from watcher.observe.metrics import Metrics
from watcher.polling.work import PollWork
from watcher.receiver import Fail
from watcher.run.worker import Worker
from watcher.sandbox.answers import Answer
from watcher.settings import Settings
from watcher.store.keys import Keys
from watcher.store.members import Roster
from watcher.store.queues import Breakers

LOOPRING = "/api/v3/user/balances"
SHOP = "/v2/app/coin/balance"


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


@pytest.fixture(autouse=True)
def _always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_FRESH_S", 0.0)


async def until(read: Callable[[], Awaitable[Scrape]], is_so: Callable[[Scrape], bool]) -> Scrape:
    """Scrape until the metrics are as expected."""
    async with asyncio.timeout(10):
        while not is_so(seen := await read()):  # noqa: ASYNC110 - a worker sends no signal
            await asyncio.sleep(0.02)
    return seen


async def polled(rig: Rig, more: int = 2) -> None:
    """Wait until both accounts were polled so often again."""
    enough = {path: rig.sandbox.traffic.count(path) + more for path in (LOOPRING, SHOP)}
    async with asyncio.timeout(10):
        while any(rig.sandbox.traffic.count(path) < count for path, count in enough.items()):  # noqa: ASYNC110 - the simulator only counts
            await asyncio.sleep(0.005)


def slow_to_retry(settings: Settings, *retries: float) -> Settings:
    ops = settings.subscription_by_name["ops"].model_copy(update={"retries": seconds(*retries)})
    return settings.model_copy(update={"subscription_by_name": {"ops": ops}})


async def test_the_counts_of_a_worker_under_load_match_what_happened(rig: Rig) -> None:
    changes = 20
    rig.receiver.fail = Fail(500, 1)
    async with rig.worker() as worker:
        await polled(rig)
        for number in range(1, changes + 1):
            account, asset = (TREASURY, "ETH") if number % 2 else (ALICE, MK)
            rig.sandbox.world.credit(account, asset, number)
            await rig.events(number)
    shown = parsed((await Metrics(worker).text()).decode())
    for provider, path in (("loopring", LOOPRING), ("shop", SHOP)):
        polls = rig.sandbox.traffic.count(path)
        assert shown.sum("watcher_polls_total", provider=provider) == polls
        assert shown.value("watcher_poll_duration_seconds_count", provider=provider) == polls
        assert shown.value("watcher_polls_total", provider=provider, outcome="committed") == 1 + changes / 2
        assert shown.value("watcher_changes_total", provider=provider, type="total.increased") == changes / 2
    assert shown.sum("watcher_polls_rejected_total") == 0
    assert shown.sum("watcher_changes_total") == changes + 2  # the baselines
    assert shown.value("watcher_attempts_total", subscription="ops", outcome="delivered") == changes
    assert shown.value("watcher_attempts_total", subscription="ops", outcome="retry") == changes
    assert shown.value("watcher_delivery_lag_seconds_count") == changes
    assert shown.value("watcher_delivery_lag_seconds_bucket", le="30.0") == changes
    assert shown.value("watcher_requests_in_flight") == 0
    assert shown.value("watcher_store_up") == 0  # it is closed: the metrics are what the worker counted


async def test_rejected_polls_are_counted_by_error_class(rig: Rig) -> None:
    async with rig.worker(rig.with_short_timeouts()) as worker:
        await polled(rig)
        rig.sandbox.metakeep.every_answer = Answer(500, b"no")
        rig.sandbox.loopring.every_answer = Answer(200, b"{}")
        async with asyncio.timeout(10):
            seen = worker.counters.by_error_class
            while not {("loopring", "malformed"), ("shop", "transient")} <= seen.keys():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with a_listener_of(worker) as port:
            shown = await until(lambda: scrape(port), lambda seen: seen.sum("watcher_accounts_stale") == 2)
    assert shown.value("watcher_accounts_failing", provider="shop") == 1
    refused = shown.sum("watcher_polls_rejected_total", provider="shop")
    assert refused == shown.value("watcher_polls_total", provider="shop", outcome="rejected") > 0


async def test_the_backlog_of_a_subscriber_that_is_down_is_exported(rig: Rig) -> None:
    rig.receiver.fail = Fail(503, 100)
    async with (
        rig.worker(slow_to_retry(rig.settings, 0, *[0.05] * 8, 3600)) as worker,
        a_listener_of(worker) as port,
    ):
        await polled(rig)
        healthy = await scrape(port)
        rig.sandbox.world.credit(TREASURY, "ETH", 1)
        rig.sandbox.world.credit(ALICE, MK, 1)
        shown = await until(
            lambda: scrape(port), lambda seen: seen.value("watcher_queues_waiting", subscription="ops") == 2
        )
        assert 0 <= shown.value("watcher_oldest_undelivered_seconds", subscription="ops") < 60
        assert shown.value("watcher_subscription_paused", subscription="ops") == 0
        assert worker.opened
        shared = Breakers(worker.opened.schedule.pipe, Keys(rig.settings.redis.namespace))
        await fail(shared, "ops", "status 503", open_ms=60_000)
        older = await until(
            lambda: scrape(port),
            lambda seen: seen.value("watcher_subscription_failing", subscription="ops") == 1,
        )
        assert older.value("watcher_subscription_breaker", subscription="ops") == 2
        assert 40 < older.value("watcher_subscription_rest_seconds", subscription="ops") <= 60
        await pause(shared, "ops", "enough")
        paused = await scrape(port)
    assert paused.value("watcher_subscription_paused", subscription="ops") == 1
    for name in (
        "watcher_queues_waiting",
        "watcher_oldest_undelivered_seconds",
        "watcher_subscription_failing",
    ):
        assert healthy.value(name, subscription="ops") == 0
    ages = [seen.value("watcher_oldest_undelivered_seconds", subscription="ops") for seen in (older, paused)]
    assert ages == sorted(ages)


async def test_dead_letters_are_exported(rig: Rig) -> None:
    rig.receiver.fail = Fail(400, 100)
    async with rig.worker(slow_to_retry(rig.settings, 0)) as worker, a_listener_of(worker) as port:
        await polled(rig)
        for number in (1, 2, 3):
            rig.sandbox.world.credit(TREASURY, "ETH", number)
            shown = await until(
                lambda: scrape(port),
                lambda seen: seen.value("watcher_dead_letters", subscription="ops") == number,  # noqa: B023
            )
    assert shown.value("watcher_attempts_total", subscription="ops", outcome="refused") == 3


async def test_a_hanging_redis_leaves_its_metrics_out_and_the_worker_lives(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "TIMEOUT_S", 0.2)
    with real_server("valkey") as server:
        async with a_rig(server.url, namespace) as rig, rig.worker() as worker, a_listener_of(worker) as port:
            await polled(rig)
            assert (await get(port, "/readyz")).status == 200
            with server.paused():
                shown = await scrape(port)
                lives, ready = await asyncio.gather(get(port, "/livez"), get(port, "/readyz"))
            again = await until(lambda: scrape(port), lambda seen: seen.value("watcher_store_up") == 1)
    assert shown.value("watcher_store_up") == 0
    assert not any(shown.has(name) for name in ("watcher_queues_waiting", "watcher_accounts_stale"))
    assert shown.value("watcher_polls_total", provider="shop", outcome="committed") == 1
    assert (lives.status, ready.status) == (200, 503)
    assert ready.body.startswith("Redis cannot be used now")
    assert again.has("watcher_queues_waiting")


async def test_labels_are_configured_names_and_fixed_words_only(rig: Rig) -> None:
    async with rig.worker() as worker:
        await polled(rig)
        rig.sandbox.world.credit(TREASURY, "ETH", 1)
        await rig.events(1)
        ops = rig.settings.subscription_by_name["ops"]
        others = ops.model_copy(update={"name": "others"})
        worker.reload(rig.settings.model_copy(update={"subscription_by_name": {"others": others}}))
        rig.sandbox.world.credit(ALICE, MK, 1)
        await rig.events(2)
        async with a_listener_of(worker) as port:
            shown = await scrape(port)
    named = {(name, value) for _, labels in shown.samples for name, value in labels}
    assert {value for name, value in named if name == "subscription"} == {"others"}
    assert {value for name, value in named if name == "provider"} == {"loopring", "shop"}
    assert {name for name, _ in named} == {
        "subscription",
        "provider",
        "outcome",
        "error_class",
        "type",
        "le",
        "version",
        "persistence",
        "eviction",
        "kind",
    }
    assert {value for name, value in named if name == "kind"} == {"account", "subscription"}
    assert not {"treasury", "alice", ALICE, MK, str(TREASURY)} & {value for _, value in named}


async def test_no_metric_shows_secrets_or_texts_from_outside(rig: Rig) -> None:
    ops = rig.settings.subscription_by_name["ops"]
    url = ops.url.get_secret_value()
    settings = rig.settings.model_copy(
        update={
            "subscription_by_name": {
                "ops": ops.model_copy(
                    update={"url": type(ops.url)(f"{url}canary?key=canary"), "headers": {"x-key": "canary"}}
                )
            },
        }
    )
    async with rig.worker(settings) as worker, a_listener_of(worker) as port:
        await polled(rig)
        rig.sandbox.world.credit(TREASURY, "ETH", 1)
        await rig.events(1)
        rig.receiver.fail = Fail(500, 100)
        rig.sandbox.metakeep.every_answer = Answer(200, b'{"status": "canary"}')
        rig.sandbox.world.credit(TREASURY, "ETH", 1)
        await until(lambda: scrape(port), lambda seen: seen.sum("watcher_polls_rejected_total") > 0)
        answers = [await get(port, path) for path in ("/metrics", "/livez", "/readyz", "/canary")]
    assert [answer.status for answer in answers] == [200, 200, 200, 404]
    assert not [answer for answer in answers if "canary" in answer.body or "127.0.0.1" in answer.body]


async def test_a_loop_that_is_stuck_turns_livez_to_503_and_is_named(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = asyncio.Event()

    claim_at = PollWork.claim

    async def never(work: PollWork, name: str, claim: Claim) -> Claimed:
        if name == "shop":
            stuck.set()
            await asyncio.Event().wait()
        return await claim_at(work, name, claim)

    async with rig.worker() as worker, a_listener_of(worker) as port:
        await polled(rig)
        assert (await get(port, "/livez")).status == 200
        worker.liveness.stuck_after_s = 0.5
        with monkeypatch.context() as patched:
            patched.setattr(PollWork, "claim", never)
            await stuck.wait()
            async with asyncio.timeout(10):
                while (seen := await get(port, "/livez")).status == 200:  # noqa: ASYNC110 - nor does it here
                    await asyncio.sleep(0.02)
            assert seen.body.startswith("poll shop has not turned for ")
            (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "claim poll shop")
        task.cancel()  # else it could not drain


async def test_before_redis_is_open_a_worker_is_live_and_not_ready(rig: Rig) -> None:
    worker = Worker(rig.settings, name="new")
    async with a_listener_of(worker) as port:
        lives, ready, shown = await asyncio.gather(get(port, "/livez"), get(port, "/readyz"), scrape(port))
        assert (lives.status, ready.status) == (200, 503)
        assert shown.value("watcher_store_up") == 0
        worker.stop()
        assert (await get(port, "/readyz")).body == "the worker drains\n"


async def test_an_unclaimed_poll_is_exported_as_overdue(rig: Rig) -> None:
    often = {
        name: a.model_copy(update={"interval": timedelta(hours=1)})
        for name, a in rig.settings.account_by_name.items()
    }
    async with rig.worker(rig.settings.model_copy(update={"account_by_name": often})) as worker:
        await polled(rig, 1)
        async with a_listener_of(worker) as port:
            assert worker.opened
            assert worker.loop
            worker.loop.stop()
            schedule, keys = worker.opened.schedule, Keys(rig.settings.redis.namespace)
            roster, overdue_ms = Roster(schedule.pipe, keys), schedule.now_ms() - 90_000
            while await roster.make_due(  # noqa: ASYNC110 - its last poll may be in hand
                "shop", ["alice"], now_ms=overdue_ms
            ):
                await asyncio.sleep(0.01)
            shown = await scrape(port)
    assert shown.value("watcher_poll_overdue_seconds", provider="shop") >= 90
    assert shown.value("watcher_poll_overdue_seconds", provider="loopring") == 0


async def test_a_heartbeat_line_shows_the_health_of_the_process(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher.run.worker, "HEARTBEAT_S", 0.05)
    with capture_logs() as lines:
        async with rig.worker() as worker:
            worker.liveness.dropped_lines = lambda: 7
            await polled(rig)
            async with asyncio.timeout(10):
                while sum(line["event"] == "worker.heartbeat" for line in lines) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    beats = [line for line in lines if line["event"] == "worker.heartbeat"]
    assert {*beats[0]} == {*EVENTS["worker.heartbeat"].fields, "event", "log_level"}
    assert sum(beat["polls"] for beat in beats) > 0
    assert all(beat["dropped_lines"] == 7 and beat["rss_mb"] > 10 for beat in beats)
    assert all(beat["due"] in range(3) and beat["lag_ms"] >= 0 for beat in beats)


async def test_a_heartbeat_is_logged_though_redis_hangs(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher.run.worker, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(watcher.run.worker, "_COUNT_S", 0.05)
    with real_server("valkey") as server, capture_logs() as lines:
        async with a_rig(server.url, namespace) as rig, rig.worker():
            await polled(rig)
            with server.paused():
                async with asyncio.timeout(10):
                    while not any(  # noqa: ASYNC110
                        line["event"] == "worker.heartbeat" and line["due"] is None for line in lines
                    ):
                        await asyncio.sleep(0.01)
    assert not any(line["event"] == "bug" for line in lines)
