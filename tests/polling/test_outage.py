"""A provider that is down, on a real store: which account probes it, and that all are polled afterwards."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.loops import StillLoop
from tests.support.provider_staging import (
    TOKENS_PATH,
    Stage,
    a_balance,
    a_token_list,
    answer,
    loopring_account,
    loopring_settings,
)
from tests.support.stores import MINUTE_MS, PROVIDER, Store, a_store
from watcher.engine.breaker import OPEN_AFTER, PROBES_S
from watcher.journal.interest import Interest
from watcher.observe.counters import Counters
from watcher.polling.poll import Poller
from watcher.polling.report import PollReport
from watcher.providers.http import ProviderClient
from watcher.providers.loopring import Loopring
from watcher.store.keys import SHARDS, shard_of
from watcher.store.polls import Polls

PROBE = "probe"
OTHERS = [f"account-{number}" for number in range(OPEN_AFTER)]


class Watched(Polls):
    """Says of the probe account what a test wants another worker to have seen, one answer after the other;
    then what is so."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.is_failing_next: list[bool] = []

    async def is_failing(self, provider: str, account: str, *, times: int = 1) -> bool:
        if self.is_failing_next:
            return self.is_failing_next.pop(0)
        return await super().is_failing(provider, account, times=times)


class Outage:
    """One worker's polls at a staged Loopring that is down."""

    def __init__(self, store: Store, stage: Stage) -> None:
        self.store = store
        self.stage = stage
        self.now_s = 1000.0
        self.settings = loopring_settings(stage.url)
        self.client = ProviderClient(Loopring(self.settings), self.settings)
        self.polls = Watched(store.schedule, store.keys)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Be another worker, or the same one restarted."""
        self.poller = Poller(
            self.settings,
            self.client,
            self.polls,
            Interest({}),
            PollReport(Counters(), is_rejected=self.polls.is_failing, clock=lambda: self.now_s),
            now_ms=self.store.schedule.now_ms,
            loop=(loop := StillLoop()),
            deliver=loop.deliver,
            let_go=loop.let_go,
            clock=lambda: self.now_s,
        )
        self.poller.probe_account = PROBE

    async def poll(self, *accounts: str) -> list[Any]:
        """Poll these accounts one by one; returns what was logged."""
        with capture_logs() as lines:
            for name in accounts:
                account = loopring_account().model_copy(update={"name": name})
                await self.poller.poll(account, await self.store.lease(name))
        return lines

    async def begin(self, status: int = 503) -> list[Any]:
        """Let it be down, and as many polls be refused as it takes."""
        self.stage.reply = answer({"error": "down"}, status)
        return await self.poll(PROBE, *OTHERS[1:])

    def end(self) -> None:
        self.stage.reply = answer([a_balance(0, "10")])

    async def waiting(self) -> set[str]:
        """The accounts whose next poll is not due yet."""
        now_ms, waiting = await self.store.now_ms(), set[str]()
        for shard in range(SHARDS):
            due_ms = await self.store.scores(self.store.keys.polls(shard, PROVIDER))
            waiting |= {name for name, at_ms in due_ms.items() if now_ms < at_ms < now_ms + MINUTE_MS}
        return waiting


@pytest.fixture
async def outage(redis_client: Redis, namespace: str) -> AsyncIterator[Outage]:
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    async with Stage() as stage:
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0))
        outage = Outage(store, stage)
        async with outage.client:
            yield outage


def names(lines: list[Any]) -> list[str]:
    return [line["event"] for line in lines if line["event"].startswith("provider.")]


async def test_during_an_outage_the_probe_account_is_polled_when_due_and_the_others_are_not(
    outage: Outage,
) -> None:
    await outage.begin()
    asked = len(outage.stage.seen)
    await outage.poll(*OTHERS)
    assert len(outage.stage.seen) == asked
    await outage.poll(PROBE)
    assert len(outage.stage.seen) == asked + 1


async def test_an_account_that_is_not_polled_during_an_outage_is_logged_at_debug_only(outage: Outage) -> None:
    await outage.begin()
    (line,) = [line for line in await outage.poll(OTHERS[0]) if line["event"] == "poll.rejected"]
    assert (line["log_level"], line["error_class"]) == ("debug", "gone")
    assert OTHERS[0] in await outage.waiting()


async def test_with_a_wrong_key_polls_are_skipped_as_auth_and_not_as_an_outage(
    outage: Outage,
) -> None:
    assert names(await outage.begin(401)) == ["provider.refusing"]
    lines = await outage.poll(OTHERS[0])
    (line,) = [line for line in lines if line["event"] == "poll.rejected"]
    assert line["error_class"] == "auth"
    assert names(lines) == []


async def test_once_a_provider_is_back_all_waiting_accounts_are_due(outage: Outage) -> None:
    assert names(await outage.begin()) == ["provider.unavailable"]
    assert await outage.waiting() >= {*OTHERS[1:]}
    outage.end()
    assert names(await outage.poll(PROBE)) == ["provider.recovered"]
    assert await outage.waiting() <= {PROBE}


async def test_a_worker_that_did_not_see_the_outage_makes_waiting_accounts_due_too(outage: Outage) -> None:
    await outage.begin()
    await outage.poll(PROBE)
    assert await outage.waiting() >= {*OTHERS[1:]}
    outage.end()
    outage.begin_anew()
    await outage.poll(PROBE)
    assert await outage.waiting() <= {PROBE}


async def test_one_rejection_of_the_probe_account_is_no_outage(outage: Outage) -> None:
    outage.stage.reply = answer({"error": "down"}, 503)
    await outage.poll(PROBE, OTHERS[1])
    outage.end()
    await outage.poll(PROBE)
    assert OTHERS[1] in await outage.waiting()


async def test_after_an_outage_errors_of_single_accounts_keep_their_own_waits(outage: Outage) -> None:
    """Later errors of single accounts keep their own waits, whatever the others are answered."""
    await outage.begin()
    outage.end()
    await outage.poll(PROBE)
    outage.stage.reply = answer({"error": "down"}, 503)
    await outage.poll(OTHERS[1])
    outage.end()
    await outage.poll(PROBE, PROBE)
    assert OTHERS[1] in await outage.waiting()


async def test_an_account_skipped_as_the_outage_ended_is_due_at_once(
    outage: Outage,
) -> None:
    await outage.begin()
    outage.polls.is_failing_next = [True, False]  # as it asks, and after it was postponed
    asked = len(outage.stage.seen)
    await outage.poll(OTHERS[1])
    assert len(outage.stage.seen) == asked
    assert OTHERS[1] not in await outage.waiting()
    others = {name for name in OTHERS[2:] if shard_of(name) != shard_of(OTHERS[1])}
    assert await outage.waiting() >= others, "the worker that saw the end makes them due"


async def test_now_and_then_another_account_is_polled_too(outage: Outage) -> None:
    """The probe account may fail for a reason of its own."""
    await outage.begin()
    outage.now_s += PROBES_S[0]
    asked = len(outage.stage.seen)
    await outage.poll(*OTHERS)
    assert len(outage.stage.seen) == asked + 1
