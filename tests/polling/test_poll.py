"""One poll of one account, on a real store: what it takes from others, and what it tells them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.provider_staging import (
    TOKENS_PATH,
    Stage,
    a_balance,
    a_token_list,
    answer,
    loopring_account,
    loopring_settings,
)
from tests.support.stores import ACCOUNT, PROVIDER, Store, a_store
from watcher.journal.interest import Interest
from watcher.observe.counters import Counters
from watcher.polling.poll import Poller
from watcher.polling.report import PollReport
from watcher.providers.assets import RENEW_S
from watcher.providers.http import ProviderClient
from watcher.providers.loopring import Loopring
from watcher.snapshot import Snapshot
from watcher.store.polls import Commit, Polls
from watcher.store.schedule import Reply


class Contested(Polls):
    """A faster worker: it commits the same account right before this one does, so many times."""

    rivals = 0

    async def commit(self, step: Commit) -> tuple[Reply, dict[str, int]]:
        if self.rivals:
            self.rivals -= 1
            assert await self._overtake(step)
        return await super().commit(step)

    async def _overtake(self, step: Commit) -> bool:
        state = await self.read_state(step.account)
        assert state
        faster = replace(state, version=f"{state.version}+", sequence=state.sequence + 1)
        ahead = replace(step, state=faster, expected_version=state.version, log=(), deliveries={})
        ahead = replace(ahead, due_ms=step.lease.deadline)  # its lease, which stays
        reply, _ = await super().commit(ahead)
        return reply is Reply.DONE


class Counted(ProviderClient):
    """Counts the answers that are read."""

    reads = 0

    async def read(self, *arguments: Any, **options: Any) -> Snapshot:
        self.reads += 1
        return await super().read(*arguments, **options)


class Polled:
    """A worker's polls of one account at a staged Loopring."""

    def __init__(self, store: Store, stage: Stage) -> None:
        self.store = store
        self.stage = stage
        self.now_s = 1000.0
        settings = loopring_settings(stage.url)
        self.client = Counted(Loopring(settings), settings, clock=lambda: self.now_s)
        self.polls = Contested(store.schedule, store.keys)
        self.account = loopring_account()
        self.poller = Poller(
            settings,
            self.client,
            self.polls,
            Interest({}),
            PollReport(Counters(), is_rejected=self.polls.is_failing),
            now_ms=store.schedule.now_ms,
            wake=lambda *_: None,
        )
        self.poller.probe_account = ACCOUNT

    async def poll(self, *rows: Any) -> list[Any]:
        """Poll once, answered by these rows; returns what was logged."""
        if rows:
            self.stage.reply = answer([*rows])
        with capture_logs() as lines:
            await self.poller.poll(self.account, await self.store.lease(ACCOUNT))
        return lines


@pytest.fixture
async def polled(redis_client: Redis, namespace: str) -> AsyncIterator[Polled]:
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    async with Stage() as stage:
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0))
        polled = Polled(store, stage)
        async with polled.client:
            yield polled


FINISHED, DISCARDED = "poll.finished", "poll.discarded"


@pytest.mark.parametrize(("rivals", "outcome"), [(0, FINISHED), (2, FINISHED), (3, DISCARDED)])
async def test_a_poll_that_another_worker_overtakes_is_computed_anew_from_what_that_one_left(
    polled: Polled, rivals: int, outcome: str
) -> None:
    await polled.poll(a_balance(0, "10"))
    polled.polls.rivals = rivals
    lines = await polled.poll(a_balance(0, "12"))
    (line,) = [line for line in lines if line["event"].startswith("poll.")]
    assert line["event"] == outcome
    state = await polled.store.polls.read_state(ACCOUNT)
    assert state
    assert state.entry_by_asset["0"].published.total == ("12" if outcome == FINISHED else "10")


async def test_a_wish_for_a_pause_holds_all_accounts_of_the_provider(polled: Polled) -> None:
    polled.stage.reply = answer({"error": "slow down"}, 429, headers={"Retry-After": "60"})
    await polled.poll()
    assert await polled.store.polls.next_turn_ms(PROVIDER) > 55_000


async def test_an_error_without_a_wish_holds_its_own_account_only(polled: Polled) -> None:
    polled.stage.reply = answer({"error": "down"}, 503, headers={"Retry-After": "60"})
    await polled.poll()
    assert await polled.store.polls.next_turn_ms(PROVIDER) < 1000


async def test_an_answer_that_repeats_is_read_again_while_an_asset_has_no_decimals_yet(
    polled: Polled,
) -> None:
    await polled.poll(a_balance(99, "1000"))  # a token that no list names
    state = await polled.store.polls.read_state(ACCOUNT)
    assert state
    assert state.entry_by_asset["99"].asset.decimals is None
    polled.stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0, 99, decimals=3))
    polled.now_s += RENEW_S
    await polled.poll()  # the same bytes
    state = await polled.store.polls.read_state(ACCOUNT)
    assert state
    assert state.entry_by_asset["99"].asset.decimals == 3
    assert state.entry_by_asset["99"].published.total == "1"


async def test_an_answer_that_repeats_is_not_read_at_all_once_all_is_known(polled: Polled) -> None:
    await polled.poll(a_balance(0, "1000"))
    assert polled.client.reads == 1
    await polled.poll()
    assert polled.client.reads == 1
    await polled.poll(a_balance(0, "1001"))
    assert polled.client.reads == 2
