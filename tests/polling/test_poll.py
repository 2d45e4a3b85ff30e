"""One poll of one account, on a real store: what it reads, commits and logs."""

import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.builders import a_subscription, seconds
from tests.support.loops import StillLoop
from tests.support.provider_staging import (
    TOKENS_PATH,
    Stage,
    a_balance,
    a_token_list,
    answer,
    loopring_account,
    loopring_settings,
    metakeep_account,
    metakeep_settings,
)
from tests.support.stores import ACCOUNT, OPS, PROVIDER, SHARD, Store, a_store
from tests.support.stories import Books
from watcher.engine.dispatch import Key
from watcher.journal.account import AccountState
from watcher.journal.interest import Interest
from watcher.observe.counters import Counters
from watcher.polling.poll import MEMO_BYTES, Poller
from watcher.polling.report import PollReport
from watcher.providers.contract import provider_class
from watcher.providers.http import ProviderClient
from watcher.providers.kept import RENEW_S, Memo
from watcher.settings import AccountSettings, ProviderSettings, ThresholdSettings
from watcher.snapshot import Snapshot
from watcher.store.exceptions import StoreUnreachable
from watcher.store.polls import Commit, Committed, Polls
from watcher.store.reader import Reader
from watcher.store.schedule import Lease, Reply
from watcher.store.state import Within


class Contested(Polls):
    """A faster worker, which commits the same account right before this one, so many times."""

    rivals = 0
    is_repeated = False
    """Whether a commit is made again, as where the answer to the first one was lost."""
    is_unanswered = False

    async def commit(self, step: Commit) -> Committed:
        if self.is_repeated:
            await super().commit(step)
        if self.is_unanswered:
            await super().commit(step)
            raise StoreUnreachable("the answer was lost, and that to the repeat")
        if self.rivals:
            self.rivals -= 1
            assert await self._overtake(step)
        return await super().commit(step)

    async def _overtake(self, step: Commit) -> bool:
        state = await self.read_state(step.provider, step.account)
        assert state
        faster = state._replace(version=secrets.token_hex(8), sequence=state.sequence + 1)
        made = step.step._replace(state=faster, events=(), queued={}, notes=())
        ahead = step._replace(step=made, expected_version=state.version, lease=None)  # the lease stays
        reply, _ = await super().commit(ahead)
        return reply is Reply.DONE


class Counted(ProviderClient):
    """Counts the answers that are read."""

    reads = 0

    async def read(self, *arguments: Any, **options: Any) -> Snapshot:
        self.reads += 1
        return await super().read(*arguments, **options)


class Polled:
    """A worker's polls of one account at a staged provider: Loopring, where a test names no other."""

    def __init__(
        self,
        store: Store,
        stage: Stage,
        settings: ProviderSettings | None = None,
        account: AccountSettings | None = None,
    ) -> None:
        self.store = store
        self.stage = stage
        self.now_s = 1000.0
        self.ahead_ms = 0
        """How far this worker's time is ahead of the server's."""
        self.loop = StillLoop()
        self.is_taken = False
        settings = settings or loopring_settings(stage.url)
        provider = provider_class(settings.kind)(settings)
        self.client = Counted(provider, settings, clock=lambda: self.now_s)
        self.polls = Contested(store.schedule, store.keys)
        self.account: AccountSettings = account or loopring_account()
        self.interest = Interest({})
        self.memos = Within[Memo](MEMO_BYTES)
        self.counters = Counters()
        self.report = PollReport(self.counters, is_rejected=self.polls.is_failing)
        self.poller = Poller(
            settings,
            self.client,
            self.polls,
            self.interest,
            self.report,
            now_ms=lambda: store.schedule.now_ms() + self.ahead_ms,
            loop=self.loop,
            deliver=self.loop.deliver,
            let_go=self.loop.let_go,
            memos=self.memos,
        )
        self.poller.probe_account = ACCOUNT

    def watch(self, *, interval_s: float) -> None:
        """Poll so often, and send everything about it to one subscription."""
        (interval,) = seconds(interval_s)
        self.account = self.account.model_copy(update={"interval": interval})
        types = ("account.stale", "account.recovered", "total.*")
        self.interest.follow({OPS: a_subscription(OPS, events=types)})

    @property
    def now_ms(self) -> int:
        return self.store.schedule.now_ms() + self.ahead_ms

    async def look_stale(self, *, first_seen_ms: int = 0, watched_since_ms: int = 0) -> list[Any]:
        """Check whether the account is stale; returns what was logged."""
        with capture_logs() as lines:
            await self.poller.look_stale(
                self.account, first_seen_ms=first_seen_ms, watched_since_ms=watched_since_ms
            )
            self.report.gathered(at_once=True)
        return lines

    async def emitted(self) -> list[str]:
        """The types of what waits for the subscription, oldest first."""
        found = Reader(self.store.pipe, self.store.keys).deliveries(OPS, ACCOUNT)
        return [delivery.type async for delivery in found if delivery]

    async def poll(self, *rows: Any) -> list[Any]:
        """Poll once, answered by these rows; returns what was logged."""
        if rows:
            self.stage.reply = answer([*rows])
        with capture_logs() as lines:
            self.is_taken = await self.poller.poll(
                self.account, await self.store.lease(self.account.name, self.account.provider)
            )
            self.report.gathered(at_once=True)
        return lines

    async def refused(self, status: int = 503, *, retry_after_s: int | None = None) -> list[Any]:
        """Poll once, which the provider refuses; returns what was logged."""
        headers = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s}"}
        self.stage.reply = answer({"error": "no"}, status, headers=headers)
        return await self.poll()

    async def state(self) -> AccountState:
        state = await self.polls.read_state(PROVIDER, ACCOUNT)
        assert state
        return state

    async def damage_state(self) -> None:
        await Books(self.store.pipe, self.store.keys.namespace).damage_state(ACCOUNT)

    async def waits_ms(self) -> float:
        """In how many ms the account is polled next."""
        due_ms = (await self.store.scores(self.store.keys.polls(SHARD, PROVIDER)))[ACCOUNT]
        return due_ms - await self.store.now_ms()


@pytest.fixture
async def polled(redis_client: Redis, namespace: str) -> AsyncIterator[Polled]:
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    async with Stage() as stage:
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0, 1))
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
    (line,) = poll_lines(lines)
    assert line["event"] == outcome
    assert polled.is_taken is (outcome == FINISHED)
    state = await polled.store.polls.read_state(PROVIDER, ACCOUNT)
    assert state
    assert state.entry_by_asset["0"].published.total == ("12" if outcome == FINISHED else "10")


async def test_a_429_with_retry_after_holds_all_accounts_of_the_provider(polled: Polled) -> None:
    polled.stage.reply = answer({"error": "slow down"}, 429, headers={"Retry-After": "60"})
    await polled.poll()
    assert await polled.store.polls.next_turn_ms(PROVIDER) > 55_000


async def test_an_error_without_retry_after_delays_its_own_account_only(polled: Polled) -> None:
    polled.stage.reply = answer({"error": "down"}, 503, headers={"Retry-After": "60"})
    await polled.poll()
    assert await polled.store.polls.next_turn_ms(PROVIDER) < 1000


async def test_a_repeated_answer_is_read_again_while_an_asset_has_no_decimals_yet(
    polled: Polled,
) -> None:
    await polled.poll(a_balance(99, "1000"))  # a token that no list names
    state = await polled.store.polls.read_state(PROVIDER, ACCOUNT)
    assert state
    assert state.entry_by_asset["99"].asset.decimals is None
    polled.stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0, 99, decimals=3))
    polled.now_s += RENEW_S
    await polled.poll()  # the same bytes
    state = await polled.store.polls.read_state(PROVIDER, ACCOUNT)
    assert state
    assert state.entry_by_asset["99"].asset.decimals == 3
    assert state.entry_by_asset["99"].published.total == "1"


async def test_a_repeated_answer_is_not_read_once_all_is_known(polled: Polled) -> None:
    await polled.poll(a_balance(0, "1000"))
    assert polled.client.reads == 1
    await polled.poll()
    assert polled.client.reads == 1
    await polled.poll(a_balance(0, "1001"))
    assert polled.client.reads == 2


async def test_a_repeated_answer_is_compared_with_the_state_of_another_worker(
    polled: Polled,
) -> None:
    other = Polled(polled.store, polled.stage)
    async with other.client:
        await polled.poll(a_balance(0, "10"))
        await other.poll(a_balance(0, "12"))
    await polled.poll(a_balance(0, "10"))
    assert (await polled.state()).entry_by_asset["0"].published.total == "10"


async def test_a_repeated_answer_confirms_a_suspect_reading(polled: Polled) -> None:
    for total in ("10", "0", "0"):
        await polled.poll(a_balance(0, total))
    assert (await polled.state()).entry_by_asset["0"].published.total == "0"


async def test_all_answers_of_a_poll_are_compared(polled: Polled) -> None:
    first, second = (f"0x{number:040x}" for number in (1, 2))

    def answers(*balances: str) -> list[Any]:
        rows = zip((first, second), balances, strict=True)
        return [
            answer({"status": "SUCCESS", "balances": [{"currency": currency, "balance": balance}]})
            for currency, balance in rows
        ]

    settings = metakeep_settings(polled.stage.url, currencies_per_request=1)
    shop = Polled(polled.store, polled.stage, settings, metakeep_account(first, second))
    async with shop.client:
        for balances, reads in ((("1", "2"), 1), (("1", "2"), 1), (("1", "3"), 2)):
            shop.stage.replies = answers(*balances)
            await shop.poll()
            assert shop.client.reads == reads
    state = await shop.polls.read_state(PROVIDER, "alice")
    assert state
    assert state.entry_by_asset[second].published.total == "3"


async def test_a_repeated_answer_is_read_again_for_a_changed_account(
    polled: Polled,
) -> None:
    """Also where its last poll was under way when that was changed: it ends after the reload."""
    await polled.poll(a_balance(0, "10"))
    polled.account = loopring_account()
    await polled.poll()
    assert polled.client.reads == 1, "nothing was changed"
    polled.account = loopring_account(interval="5m")
    await polled.poll()
    assert polled.client.reads == 2
    await polled.poll()
    assert polled.client.reads == 2
    assert await polled.waits_ms() > 200_000


async def test_a_repeated_answer_is_read_again_for_an_account_added_again(
    polled: Polled,
) -> None:
    await polled.poll(a_balance(0, "10"))
    polled.poller.forget(ACCOUNT)
    await polled.poll()
    assert polled.client.reads == 2


async def test_a_repeated_answer_is_read_again_while_a_threshold_names_an_unlisted_asset(
    polled: Polled,
) -> None:
    threshold = ThresholdSettings(asset="T7", field="total", below="5")
    polled.interest.follow({OPS: a_subscription(OPS, thresholds=(threshold,))})
    polled.stage.reply_by_path[TOKENS_PATH] = answer({"error": "down"}, 503)
    await polled.poll()
    polled.stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0, 7))
    polled.now_s += RENEW_S
    await polled.poll()
    assert (await polled.state()).crossed, "0 is below 5"


async def test_decimals_of_an_asset_at_another_source_do_not_count_here(polled: Polled) -> None:
    await polled.poll(a_balance(0, "1000"))
    polled.stage.reply_by_path[TOKENS_PATH] = answer({"error": "down"}, 503)
    moved = Polled(polled.store, polled.stage)
    moved.account = moved.account.model_copy(update={"account_id": 7})
    async with moved.client:
        (line,) = poll_lines(await moved.poll(a_balance(0, "1000") | {"accountId": 7}))
        assert line["event"] == "poll.rejected"
    again = Polled(polled.store, polled.stage)
    async with again.client:
        (line,) = poll_lines(await again.poll(a_balance(0, "1001")))
        assert line["event"] == FINISHED, "here it is known"


async def test_a_change_wakes_the_queue_that_it_fills(polled: Polled) -> None:
    polled.interest.follow({OPS: a_subscription(OPS)})
    await polled.poll(a_balance(0, "10"))
    assert polled.loop.woken == []
    await polled.poll(a_balance(0, "12"))
    assert polled.loop.woken == [(Key("delivery", OPS), SHARD)]


async def test_a_change_is_delivered_at_once_with_capacity_and_wakes_its_queue_without(
    polled: Polled,
) -> None:
    polled.interest.follow({OPS: a_subscription(OPS), "audit": a_subscription("audit")})
    await polled.poll(a_balance(0, "10"))
    polled.loop.capacity = 1
    await polled.poll(a_balance(0, "12"))
    ((key, shard, lease),) = polled.loop.begun
    other = "audit" if key.name == OPS else OPS
    assert polled.loop.woken == [(Key("delivery", other), SHARD)]
    assert (key.kind, shard) == ("delivery", SHARD)
    queues = await polled.store.scores(polled.store.keys.queues(SHARD, key.name))
    assert queues == {ACCOUNT: lease.deadline}
    ((name, of_the_work, deliveries),) = polled.loop.delivered
    assert (name, of_the_work) == (key.name, lease)
    assert [one.entry for one in deliveries] == await polled.store.queue(subscription=name)


async def test_a_change_whose_commit_was_repeated_is_still_delivered_at_once(polled: Polled) -> None:
    polled.interest.follow({OPS: a_subscription(OPS)})
    await polled.poll(a_balance(0, "10"))
    now_ms = await polled.store.now_ms()
    polled.store.schedule.now_ms = lambda: now_ms  # it sends the same bytes again
    polled.polls.is_repeated, polled.loop.capacity = True, 1
    await polled.poll(a_balance(0, "12"))
    assert (len(polled.loop.begun), polled.loop.woken) == (1, [])


async def test_a_queue_that_a_commit_without_an_answer_leased_is_let_go(polled: Polled) -> None:
    polled.interest.follow({OPS: a_subscription(OPS)})
    await polled.poll(a_balance(0, "10"))
    polled.polls.is_unanswered, polled.loop.capacity = True, 1
    with pytest.raises(StoreUnreachable):
        await polled.poll(a_balance(0, "12"))
    queues = await polled.store.scores(polled.store.keys.queues(SHARD, OPS))
    assert queues == {ACCOUNT: polled.loop.let_go_of[0][1].deadline}
    assert polled.loop.begun == [(Key("delivery", OPS), SHARD, Lease(ACCOUNT, int(queues[ACCOUNT])))]
    assert polled.loop.delivered == []


@pytest.mark.parametrize("rivals", [1, 3])
async def test_the_place_of_a_discarded_commit_is_given_back(polled: Polled, rivals: int) -> None:
    polled.interest.follow({OPS: a_subscription(OPS)})
    await polled.poll(a_balance(0, "10"))
    polled.polls.rivals, polled.loop.capacity = rivals, 1
    await polled.poll(a_balance(0, "12"))
    assert (len(polled.loop.begun), polled.loop.capacity) == ((1, 0) if rivals == 1 else (0, 1))


async def test_a_change_is_counted_by_provider_and_type_and_logged_with_its_subscriptions(
    polled: Polled,
) -> None:
    polled.interest.follow({OPS: a_subscription(OPS), "some": a_subscription("some", events=("total.*",))})
    lines = await polled.poll(a_balance(0, "10"))
    lines += await polled.poll(a_balance(0, "12", locked="1"))
    found = {line["event_type"]: line["subscriptions"] for line in lines if line["event"] == "event.created"}
    assert found == {"account.baseline": 0, "total.increased": 2, "locked.increased": 1}
    assert polled.counters.changes == 3
    assert polled.counters.by_change == {(PROVIDER, event_type): 1 for event_type in found}


async def test_a_baseline_and_a_suspicion_are_logged(polled: Polled) -> None:
    baseline, *_ = await polled.poll(a_balance(0, "10"), a_balance(1, "5"))
    assert (baseline["event"], baseline["assets"]) == ("account.baseline", 2)
    doubt, *_ = await polled.poll(a_balance(0, "0"), a_balance(1, "5"))
    assert (doubt["event"], doubt["asset"], doubt["reason"]) == ("asset.suspect", "0", "total fell to zero")


async def test_a_suddenly_empty_listing_is_polled_every_20_s_and_counts_after_a_minute(
    polled: Polled,
) -> None:
    await polled.poll(a_balance(0, "10"), a_balance(1, "5"))
    polled.stage.reply = answer([])
    said = []
    for _ in range(4):
        said.append([line["event"] for line in await polled.poll()])
        polled.ahead_ms += 20_000
        if len(said) == 3:
            assert 59_000 < await polled.waits_ms() <= 60_000, "by a clock that is 40 s ahead"
    assert said == [["account.suspect", FINISHED], [FINISHED], [FINISHED], ["event.created"] * 2 + [FINISHED]]
    assert [line["event"] for line in await polled.poll()] == [FINISHED]


async def test_another_worker_continues_the_suspicion_of_an_empty_listing(polled: Polled) -> None:
    await polled.poll(a_balance(0, "10"))
    polled.stage.reply = answer([])
    await polled.poll()
    other = Polled(polled.store, polled.stage)
    async with other.client:
        for other.ahead_ms in (20_000, 40_000):
            await other.poll()
            await other.refused()
            other.stage.reply = answer([])
        assert (await other.state()).entry_by_asset["0"].seen.total == "10"
        other.ahead_ms = 60_000
        first, *_ = await other.poll()
        assert first["event"] == "event.created"


async def test_a_change_whose_commit_was_repeated_still_wakes_the_queue(polled: Polled) -> None:
    polled.interest.follow({OPS: a_subscription(OPS)})
    await polled.poll(a_balance(0, "10"))
    polled.polls.is_repeated = True
    lines = await polled.poll(a_balance(0, "12"))
    assert [line["event"] for line in lines] == ["event.created", FINISHED]
    assert polled.loop.woken == [(Key("delivery", OPS), SHARD)]
    assert polled.is_taken


@pytest.mark.parametrize("settle_polls", [1, 3])
async def test_half_of_a_movement_waits_for_the_other_half_for_settle_polls(
    polled: Polled, settle_polls: int
) -> None:
    settings = loopring_settings(polled.stage.url, settle_polls=settle_polls)
    patient = Polled(polled.store, polled.stage, settings)
    polls = 0
    async with patient.client:
        await patient.poll(a_balance(0, "10", deposit="5"))
        while (await patient.state()).entry_by_asset["0"].published.pending_deposit == "5":
            await patient.poll(a_balance(0, "10"))
            polls += 1
            assert polls < 10
    assert polls == settle_polls + 1


async def test_an_error_with_retry_after_delays_its_own_account_for_as_long(polled: Polled) -> None:
    await polled.refused(retry_after_s=60)
    assert 55_000 < await polled.waits_ms() <= 60_001


@pytest.mark.parametrize(("probe_account", "longest_s"), [(ACCOUNT, 30), ("another", 300)])
async def test_during_a_long_outage_one_account_is_polled_and_the_others_hardly(
    polled: Polled, probe_account: str, longest_s: int
) -> None:
    polled.poller.probe_account = probe_account
    for _ in range(8):
        await polled.refused()
    assert 0.85 * longest_s < await polled.waits_ms() / 1000 <= longest_s


async def test_an_account_rejected_for_three_intervals_is_stale_once_until_a_successful_poll(
    polled: Polled,
) -> None:
    polled.watch(interval_s=60)
    await polled.poll(a_balance(0, "10"))
    before = await polled.state()
    polled.ahead_ms = 181_000
    await polled.refused()
    assert await polled.look_stale() == [], "three intervals of a minute, and the time-out of five seconds"
    polled.ahead_ms = 191_000
    assert stale(await polled.refused()) == []
    (line,) = stale(await polled.look_stale())
    assert (line["event"], line["account"], line["log_level"]) == ("account.stale", ACCOUNT, "warning")
    assert line["duration_ms"] > 190_000
    after = await polled.state()
    assert (after.polled_at_ms, after.stale_since_ms) == (before.polled_at_ms, before.polled_at_ms)
    assert stale(await polled.look_stale()) == []
    assert (await polled.state()).version == after.version
    (line,) = stale(await polled.poll(a_balance(0, "10")))
    assert (line["event"], line["account"]) == ("account.recovered", ACCOUNT)
    assert line["duration_ms"] > 190_000
    assert not (await polled.state()).stale_since_ms
    assert await polled.emitted() == ["account.stale", "account.recovered"]
    assert not await polled.polls.is_failing(PROVIDER, ACCOUNT)


async def test_late_successful_polls_leave_an_account_stale_until_they_come_in_time(
    polled: Polled,
) -> None:
    polled.watch(interval_s=60)
    await polled.poll(a_balance(0, "10"))
    polled.ahead_ms = 191_000
    (line,) = stale(await polled.look_stale())
    assert line["reason"] == "its poll comes late: the workers are behind"
    for amount in ("10", "10", "12"):
        assert stale(await polled.poll(a_balance(0, amount))) == []
        assert (await polled.state()).stale_since_ms
        polled.ahead_ms += 180_000
        await polled.look_stale()
        assert [*polled.poller.stale_accounts] == [ACCOUNT]
    assert stale(await polled.poll(a_balance(0, "12"))) == []
    polled.ahead_ms += 60_000
    (line,) = stale(await polled.poll(a_balance(0, "12")))
    assert line["event"] == "account.recovered"
    assert not polled.poller.stale_accounts
    assert await polled.emitted() == ["account.stale", "total.increased", "account.recovered"]


async def test_a_rate_limit_that_is_too_low_is_named_as_the_reason(polled: Polled) -> None:
    polled.watch(interval_s=60)
    polled.poller.needed_per_second = 20_000
    await polled.poll(a_balance(0, "10"))
    polled.ahead_ms = 191_000
    (line,) = stale(await polled.look_stale())
    assert "the intervals of all accounts take 2e+04 requests/s" in line["reason"]


async def test_staleness_counts_from_when_workers_came_back(polled: Polled) -> None:
    polled.watch(interval_s=60)
    await polled.poll(a_balance(0, "10"))
    polled.ahead_ms = 3_600_000
    back_ms = polled.now_ms
    assert stale(await polled.look_stale(watched_since_ms=back_ms)) == []
    polled.ahead_ms += 191_000
    (line,) = stale(await polled.look_stale(watched_since_ms=back_ms))
    assert 190_000 < line["duration_ms"] < 195_000
    assert (await polled.state()).stale_since_ms == back_ms
    polled.polls.watched_since_ms = back_ms
    assert stale(await polled.poll(a_balance(0, "10"))) == [], "its first poll since comes late"
    polled.polls.watched_since_ms = polled.now_ms
    (line,) = stale(await polled.poll(a_balance(0, "10")))
    assert line["event"] == "account.recovered", "the workers were away, and it is the first one since"


async def test_staleness_of_an_unread_account_counts_from_when_it_was_added(polled: Polled) -> None:
    polled.watch(interval_s=60)
    added_ms = polled.now_ms
    await polled.store.lease(ACCOUNT, PROVIDER)
    assert await polled.look_stale() == [], "the time of that is unknown"
    polled.ahead_ms = 191_000
    assert stale(await polled.look_stale(first_seen_ms=polled.now_ms - 180_000)) == []
    assert stale(await polled.look_stale(first_seen_ms=added_ms))
    assert stale(await polled.poll(a_balance(0, "10"))) == [], "its baseline comes late"
    polled.ahead_ms += 60_000
    assert stale(await polled.poll(a_balance(0, "10")))
    assert await polled.emitted() == ["account.stale", "account.recovered"]


async def test_staleness_of_an_unread_account_counts_from_its_first_rejection(polled: Polled) -> None:
    polled.watch(interval_s=60)
    await polled.refused()
    polled.ahead_ms = 181_000
    assert await polled.look_stale() == []
    polled.ahead_ms = 191_000
    assert stale(await polled.look_stale())
    assert stale(await polled.poll(a_balance(0, "10"))), "its polls were made in time all along"
    assert await polled.emitted() == ["account.stale", "account.recovered"]


async def test_a_poll_in_flight_is_committed_though_its_account_goes_stale_meanwhile(
    polled: Polled,
) -> None:
    polled.watch(interval_s=60)
    await polled.poll(a_balance(0, "10"))
    polled.ahead_ms = 191_000
    lease = await polled.store.lease(polled.account.name, polled.account.provider)
    await polled.look_stale()
    polled.ahead_ms = 0
    assert await polled.poller.poll(polled.account, lease)
    assert not (await polled.state()).stale_since_ms


def poll_lines(lines: list[Any]) -> list[Any]:
    return [line for line in lines if line["event"].startswith("poll.")]


def stale(lines: list[Any]) -> list[Any]:
    return [line for line in lines if line["event"] in ("account.stale", "account.recovered")]


async def test_a_discarded_poll_logs_no_event_and_wakes_no_queue(polled: Polled) -> None:
    polled.interest.follow({OPS: a_subscription(OPS)})
    await polled.poll(a_balance(0, "10"))
    polled.polls.rivals = 3
    lines = await polled.poll(a_balance(0, "12"))
    assert [line["event"] for line in lines if line["log_level"] != "debug"] == ["poll.discarded"]
    assert polled.loop.woken == []


async def test_an_account_with_a_damaged_state_is_polled_every_five_minutes(polled: Polled) -> None:
    await polled.poll(a_balance(0, "10"))
    await polled.damage_state()
    lines = await polled.poll(a_balance(0, "12"))
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["account.quarantined"]
    assert 295_000 < await polled.waits_ms() <= 300_001


@pytest.mark.parametrize(
    ("is_damaged", "expected"), [(False, False), (True, True)], ids=["another's", "damaged"]
)
async def test_an_account_configured_differently_is_polled_if_its_state_cannot_be_read(
    polled: Polled, is_damaged: bool, expected: bool
) -> None:
    """Else no worker reports the damage."""
    asked: list[tuple[str, str, str | None]] = []

    def never(*what: Any) -> bool:
        asked.append(what)
        return False

    await polled.poll(a_balance(0, "10"))
    if is_damaged:
        await polled.damage_state()
    assert await polled.poller.may_poll(polled.account, never) is expected
    source = polled.client.source(polled.account)
    assert asked == ([] if is_damaged else [(ACCOUNT, source, source)])


def test_a_lease_outlasts_all_rounds_of_a_poll_and_their_turns(polled: Polled) -> None:
    class Rounds(Counted):
        most_rounds = 3

    before_ms = polled.poller.lease_ms
    polled.client.__class__ = Rounds
    two_more_ms = 2 * (5000 + 1000 * polled.poller.spacing_s)
    assert polled.poller.lease_ms - before_ms == pytest.approx(two_more_ms, abs=1), "time-outs and turns"
    polled.poller.most_requests += 8
    eight_ms = 8000 * polled.poller.spacing_s
    assert polled.poller.lease_ms - before_ms == pytest.approx(two_more_ms + eight_ms, abs=1)
