"""Event, log line, metric, `watcher status` and the page agree on what is stale."""

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.builders import a_subscription, seconds
from tests.support.provider_staging import loopring_account, loopring_settings
from tests.support.scraped import parsed
from tests.support.stores import MINUTE_MS, OPS, PROVIDER, Store, a_commit, a_store
from watcher.commands.status import read_lines
from watcher.config.loading import Look as Configuration
from watcher.engine.loop import Neighbours
from watcher.observe.metrics import Metrics
from watcher.observe.page import look
from watcher.observe.page.look import Look
from watcher.polling import poll, work
from watcher.run.configured import Configured
from watcher.run.worker import Opened, Worker
from watcher.settings import RedisSettings, Settings
from watcher.store.exceptions import StoreRefuses
from watcher.store.health import StoreHealth
from watcher.store.keys import shard_of
from watcher.store.polls import Commit, Committed, Polls
from watcher.store.reader import Reader

POLLED_MS = {"good": 1_000, "waiting": 3 * MINUTE_MS, "late": 4 * MINUTE_MS, "refused": 60 * MINUTE_MS}
"""How long ago each was polled, an interval of a minute and a time-out of five seconds given."""

REFUSED_MS = {"refused": 59 * MINUTE_MS, "unread": 4 * MINUTE_MS}
"""How long ago the polls of these were rejected for the first time since."""

STALE = {"late", "refused", "unread"}


class Bench:
    """A worker whose loop does not run, and everything that shows what it knows."""

    def __init__(self, store: Store, url: str) -> None:
        names = (*POLLED_MS, "unread", "added")
        account = loopring_account().model_copy(update={"interval": seconds(60)[0]})
        self.store = store
        self.settings = Settings(
            redis=RedisSettings(url=SecretStr(url), namespace=store.keys.namespace),
            provider_by_name={PROVIDER: loopring_settings()},
            account_by_name={name: account.model_copy(update={"name": name}) for name in names},
            subscription_by_name={OPS: a_subscription(OPS, events=("account.stale",))},
        )
        self.worker = Worker(self.settings, name="w")
        health = StoreHealth()
        agreement: Any = SimpleNamespace(neighbours=Neighbours())
        self.worker.opened = Opened(store.schedule, health)
        self.worker.configured = self.configured = Configured(
            self.settings, store.schedule, health, self.worker.counters, agreement
        )

    async def begin(self) -> None:
        """Write what workers leave that ran until now."""
        await self.configured.add(self.settings)
        now_ms = await self.store.now_ms()
        await self.store.roster.enroll({PROVIDER: [*self.settings.account_by_name]}, now_ms=now_ms)
        for account, ago_ms in POLLED_MS.items():
            await self.polled(account, ago_ms)
        for account, ago_ms in REFUSED_MS.items():
            key = self.store.keys.failing(shard_of(account), PROVIDER)
            await self.store.pipe.command("HSET", key, account, f"5 {now_ms - ago_ms} gone no answer")

    async def polled(self, account: str, ago_ms: int) -> None:
        """Let another worker poll an account successfully."""
        before = await self.store.polls.read_state(PROVIDER, account)
        commit = a_commit(
            await self.store.lease(account),
            expected=before.version if before else "",
            version=f"v{ago_ms}",
            sequence=before.sequence if before else 1,
            LRC="1",
        )
        state = commit.step.state._replace(polled_at_ms=await self.store.now_ms() - ago_ms)
        await self.store.polls.commit(commit._replace(step=commit.step._replace(state=state)))

    async def workers_are_there_for(self, since_ms: int) -> None:
        now_ms = await self.store.now_ms()
        await self.store.pipe.command("SET", self.store.keys.watch(), f"{now_ms - since_ms} {now_ms}")

    async def agreed(self) -> set[str]:
        """Check as a worker does every second; returns the stale accounts, once all sources agree."""
        await self.configured.poll_work.look_stale()
        status = await read_lines(Configuration(self.settings))
        by_status = {
            line["account"] for line in status if line["kind"] == "account" and "stale" in line["problems"]
        }
        page = json.loads(await Look(self.worker).json())["seen"]["accounts"]
        by_page = {one["account"] for one in page["shown"] if "stale" in one["problems"]}
        metrics = parsed((await Metrics(self.worker).text()).decode())
        count = metrics.value("watcher_accounts_stale", provider=PROVIDER)
        assert by_status == by_page == {*self.worker.stale_accounts(PROVIDER)}
        assert count == page["stale"] == len(by_status)
        return by_status

    async def emitted(self) -> set[str]:
        """The accounts of which an event is queued."""
        reader = Reader(self.store.pipe, self.store.keys)
        return {
            queue.account
            for queue in await reader.queues(OPS)
            async for delivery in reader.deliveries(OPS, queue.account)
            if delivery and delivery.type == "account.stale"
        }


@pytest.fixture
async def bench(
    redis_client: Redis, redis_server_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(poll, "_LOOK_AGAIN_MS", 0)
    monkeypatch.setattr(look, "FRESH_S", 0)
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    bench = Bench(store, redis_server_url)
    async with bench.configured:
        await bench.begin()
        yield bench


def lines_of(lines: list[Any], event: str) -> set[str]:
    return {line["account"] for line in lines if line["event"] == event}


async def test_event_log_metric_status_and_page_agree_on_what_is_stale(bench: Bench) -> None:
    with capture_logs() as lines:
        await bench.workers_are_there_for(MINUTE_MS)
        assert await bench.agreed() == set(), "the workers have just come back: it counts from then"
        assert await bench.emitted() == set()
        await bench.workers_are_there_for(60 * MINUTE_MS)
        watch = bench.configured.poll_work.watch
        for name in bench.settings.account_by_name:  # else it looks when that may be so
            watch.forget(PROVIDER, name)
            watch.follow(PROVIDER, name, await bench.store.now_ms() - 1)
        assert await bench.agreed() == STALE
        bench.configured.report.gathered(at_once=True)
    assert await bench.emitted() == lines_of(lines, "account.stale") == STALE


async def test_an_account_that_another_worker_polls_successfully_is_stale_nowhere(bench: Bench) -> None:
    await bench.workers_are_there_for(60 * MINUTE_MS)
    assert await bench.agreed() == STALE
    await bench.polled("refused", 0)
    assert await bench.agreed() == STALE - {"refused"}


async def test_a_stale_event_refused_by_a_full_server_is_logged_delays_no_other_and_comes_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_UNKNOWN_MS", 0)
    commit, refused = Polls.commit, {"late"}

    async def unless_refused(polls: Polls, step: Commit) -> Committed:
        if step.account in refused:
            raise StoreRefuses("full")
        return await commit(polls, step)

    monkeypatch.setattr(Polls, "commit", unless_refused)
    await bench.workers_are_there_for(60 * MINUTE_MS)
    with capture_logs() as lines:
        with pytest.raises(StoreRefuses):
            await bench.configured.poll_work.look_stale()
        bench.configured.report.gathered(at_once=True)
        assert await bench.emitted() == STALE - refused
        assert lines_of(lines, "account.stale") == STALE
        refused.clear()
        assert await bench.agreed() == STALE
        bench.configured.report.gathered(at_once=True)
    assert await bench.emitted() == STALE
    assert len([line for line in lines if line["event"] == "account.stale"]) == len(STALE)
