"""What a configuration becomes, and what a reload does with it: without a running loop, on a real store."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.builders import a_subscription, seconds
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
from tests.support.stores import MINUTE_MS, OPS, SHARD, Store, a_store, some_deliveries
from watcher.engine.dispatch import Claim, Key
from watcher.engine.loop import Neighbours
from watcher.observe.counters import Counters
from watcher.polling.poll import Poller
from watcher.polling.work import ProviderPolls
from watcher.providers.contract import Rejected
from watcher.run.configured import Configured, Difference, Inactive
from watcher.run.upkeep import Upkeep
from watcher.settings import MAX_BACKLOG, AccountSettings, EgressSettings, RedisSettings, Settings
from watcher.store.exceptions import StoreUnreachable
from watcher.store.health import StoreHealth
from watcher.store.keeper import Keeper, Kept
from watcher.store.keys import SHARDS

KEY = Rejected("auth", "the API key is refused (401)", status=401)


def some(*accounts: AccountSettings, subscriptions: tuple[str, ...] = (OPS,), **loopring: Any) -> Settings:
    providers = [loopring_settings(**loopring), metakeep_settings()]
    return Settings(
        redis=RedisSettings(url=SecretStr("redis://127.0.0.1:1/0"), namespace="watcher"),
        provider_by_name={provider.name: provider for provider in providers},
        account_by_name={account.name: account for account in accounts},
        subscription_by_name={name: a_subscription(name) for name in subscriptions},
    )


def an_account(name: str, interval_s: float = 60) -> AccountSettings:
    return loopring_account().model_copy(update={"name": name, "interval": seconds(interval_s)[0]})


class Bench:
    def __init__(self, store: Store) -> None:
        self.store = store
        redis = RedisSettings(url=SecretStr("redis://127.0.0.1:1/0"), namespace=store.keys.namespace)
        self.neighbours = Neighbours()
        agreement: Any = SimpleNamespace(neighbours=self.neighbours)
        self.configured = Configured(
            some().model_copy(update={"redis": redis}), store.schedule, StoreHealth(), Counters(), agreement
        )

    async def follow(self, settings: Settings) -> None:
        await self.configured.drop(settings)
        await self.configured.add(settings)

    def poller(self, provider: str = "loopring") -> Poller:
        return self.configured.poll_work.by_provider[provider].poller

    def woken(self, subscription: str) -> int:
        """At how many shards a subscription is claimed next."""
        dispatch, key = self.configured.loop.dispatch, Key("delivery", subscription)
        now = time.monotonic()
        return len(dispatch.due_shards(key, now)) if key in dispatch.take(now) else 0


@pytest.fixture
async def bench(redis_client: Redis, namespace: str) -> AsyncIterator[Bench]:
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    bench = Bench(store)
    async with bench.configured:
        yield bench


def loud(lines: list[Any]) -> list[str]:
    return [line["event"] for line in lines if line["log_level"] in ("warning", "error")]


async def test_all_workers_choose_the_same_probe_account_of_a_provider(bench: Bench) -> None:
    await bench.follow(some(an_account("c", 30), an_account("a"), an_account("b", 30)))
    assert bench.poller().probe_account == "b", "the most frequent one, the first of them by name"
    await bench.follow(some(an_account("c", 30), an_account("a")))
    assert bench.poller().probe_account == "c"
    await bench.follow(some())
    assert bench.poller().probe_account == ""


async def test_a_new_account_is_checked_for_staleness_once_it_had_time_to_be_polled(
    bench: Bench,
) -> None:
    """Its state may be old: an account may be put back after minutes, or polled more often from now on."""
    whole = [an_account("a"), an_account("b")]
    await bench.follow(some(*whole))
    watch, patience_ms = bench.configured.poll_work.watch, 3 * MINUTE_MS
    now_ms = await bench.store.now_ms()
    for one in watch.due(now_ms, 9):  # both, as their workers may have been away for long
        watch.again(one, now_ms + 60 * MINUTE_MS)
    await bench.follow(some(whole[0]))
    await bench.follow(some(*whole))
    assert watch.due(now_ms + patience_ms, 9) == []
    (later,) = watch.due(now_ms + patience_ms + MINUTE_MS, 9)
    assert later.account == "b"


async def test_a_lease_is_as_long_as_the_longest_poll_of_a_provider(bench: Bench) -> None:
    long = metakeep_account(*(f"0x{number:040x}" for number in range(1000)))
    short = long.model_copy(update={"name": "bob", "currencies": long.currencies[:1]})
    await bench.follow(some(short, long, an_account("a")))
    poller = bench.poller("shop")
    assert poller.most_requests == poller.cost(long) > poller.cost(short)
    assert bench.poller().most_requests == 1
    await bench.follow(some(short))
    assert poller.most_requests == poller.cost(short)


async def test_a_reconfigured_provider_forgets_its_failures(bench: Bench) -> None:
    await bench.follow(some(an_account("a")))
    with capture_logs() as lines:
        for requests_per_second in (3, 3, 2):
            await bench.follow(some(an_account("a"), requests_per_second=requests_per_second))
            bench.configured.report.failures("loopring").refused("a", KEY)
    assert loud(lines) == ["provider.refusing"] * 2, "once for each configuration of it"


async def test_a_removed_account_does_not_suppress_stale_lines_of_others(bench: Bench) -> None:
    await bench.follow(some(an_account("a"), an_account("b")))
    failures = bench.configured.report.failures("loopring")
    with capture_logs() as lines:
        failures.stale("a", "no answer", 5000)
        bench.configured.report.gathered(at_once=True)
        await bench.follow(some(an_account("b")))
        failures.stale("b", "no answer", 5000)
        bench.configured.report.gathered(at_once=True)
    assert loud(lines) == ["account.stale"] * 2


async def test_a_subscription_added_by_a_reload_is_claimed_for_at_once(bench: Bench) -> None:
    await bench.follow(some(subscriptions=(OPS,)))
    assert bench.woken(OPS) == 0, "at the start the index says what is due"
    await bench.follow(some(subscriptions=(OPS, "more")))
    assert bench.woken("more") == SHARDS
    assert bench.woken(OPS) == 0


async def test_work_that_is_made_due_is_claimed_at_once(bench: Bench) -> None:
    await bench.follow(some())
    await bench.store.queues.enqueue(OPS, "treasury", some_deliveries(1))
    (lease,) = (await bench.store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases
    await bench.store.queues.release(OPS, lease, due_in_ms=10 * MINUTE_MS)
    await bench.configured.make_due(OPS)
    assert bench.woken(OPS) == SHARDS
    assert len((await bench.store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases) == 1


async def test_only_attempts_at_a_removed_url_are_cancelled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off: list[Key] = []
    monkeypatch.setattr(bench.configured.loop, "cut_off", lambda key, _: cut_off.append(key))
    before = some(subscriptions=("kept", "changed", "moved", "removed"))
    await bench.follow(before)
    changes: dict[str, dict[str, Any]] = {
        "kept": {},
        "changed": {"max_in_flight": 3},
        "moved": {"url": SecretStr("https://elsewhere.example.com/in")},
    }
    after = {name: before.subscription_by_name[name].model_copy(update=to) for name, to in changes.items()}
    targets = {**bench.configured.targets}
    await bench.follow(before.model_copy(update={"subscription_by_name": after}))
    assert sorted(cut_off) == [Key("delivery", "moved"), Key("delivery", "removed")]
    assert {name: target.settings for name, target in bench.configured.targets.items()} == after
    assert bench.configured.targets["kept"] is targets["kept"]


async def test_a_changed_egress_policy_applies_to_every_subscription(bench: Bench) -> None:
    before = some()
    await bench.follow(before)
    target = bench.configured.targets[OPS]
    await bench.follow(before.model_copy(update={"egress": EgressSettings(allow_http=True)}))
    assert bench.configured.targets[OPS] is not target


async def test_a_change_affects_only_what_changed(bench: Bench) -> None:
    """No connection is opened anew, what is known of other accounts stays known, the same account probes."""
    await bench.follow(some(an_account("b"), an_account("c"), subscriptions=(OPS, "old")))
    configured, polls = bench.configured, bench.configured.poll_work.by_provider["loopring"]
    poller, target, kept = polls.poller, bench.configured.targets[OPS], polls.accounts["b"]
    await configured.change(
        Difference({"a": an_account("a"), "c": None}, {"more": a_subscription("more"), "old": None})
    )
    assert bench.poller() is poller
    assert [*polls.accounts] == ["b", "a"]
    assert polls.accounts["b"] is kept
    assert poller.probe_account == "a"
    assert poller.needed_per_second == pytest.approx(2 / 60)
    assert configured.targets[OPS] is target
    assert [*configured.targets] == [OPS, "more"] == [*configured.interest.listeners("a")]
    assert [*configured.settings.account_by_name] == ["b", "a"]
    assert [*configured.settings.subscription_by_name] == [OPS, "more"]


@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), st.none() | st.integers(1, 3), max_size=3), max_size=5)
)
def test_the_load_of_a_provider_is_the_same_after_changes_as_after_a_start(changes: list[Any]) -> None:
    def a_poller() -> Any:
        cost = lambda account: int(account.interval.total_seconds()) % 3 + 1  # noqa: E731
        settings = SimpleNamespace(name="loopring")
        return SimpleNamespace(
            settings=settings, cost=cost, needed_per_second=0.0, most_requests=1, probe_account=""
        )

    def some_polls() -> ProviderPolls:
        none: Any = None
        return ProviderPolls(a_poller(), none, none, none, none, AsyncExitStack())

    async def follow(polls: ProviderPolls, change: dict[str, Any]) -> None:
        for name, interval_s in change.items():
            polls.follow(name, interval_s and an_account(name, interval_s))
        await polls.choose_probe()

    def load_of(polls: ProviderPolls) -> tuple[Any, ...]:
        poller = polls.poller
        return poller.most_requests, poller.probe_account, pytest.approx(poller.needed_per_second)

    async def both() -> None:
        polls, left = some_polls(), dict[str, Any]()
        for change in changes:
            await follow(polls, change)
            left |= change
            anew = some_polls()
            await follow(anew, {name: interval_s for name, interval_s in left.items() if interval_s})
            assert load_of(polls) == load_of(anew)
            assert {*polls.accounts} == {*anew.accounts}

    asyncio.run(both())


async def test_events_of_an_unverified_subscription_wait(bench: Bench) -> None:
    unverified = set[str]()
    bench.configured.inactive = Inactive(unverified)
    await bench.follow(some(subscriptions=(OPS,)))
    unverified.add("new")
    await bench.configured.change(Difference({}, {"new": a_subscription("new")}))
    assert bench.configured.interest.listeners("treasury") == (OPS, "new"), "its events are queued"
    assert [*bench.configured.targets] == [OPS]
    unverified.clear()
    await bench.configured.change(Difference({}, {"new": a_subscription("new")}))
    assert [*bench.configured.targets] == [OPS, "new"]
    assert bench.woken("new") == SHARDS, "at once, because the index may lack it for a while"


async def test_a_new_subscription_is_not_claimed_for_before_anything_is_due(bench: Bench) -> None:
    """Else 10,000 that are added together would make 160,000 claims."""
    await bench.follow(some(subscriptions=(OPS,)))
    await bench.configured.change(Difference({}, {"new": a_subscription("new")}))
    assert bench.woken("new") == 0


async def test_events_for_a_record_that_cannot_be_decrypted_are_queued_for_other_workers(
    bench: Bench,
) -> None:
    await bench.follow(some(subscriptions=(OPS,)))
    locked = a_subscription("locked", accounts=("a",))
    filters: Any = SimpleNamespace(
        name="locked", events=(), **locked.model_dump(include={"accounts", "assets"})
    )
    filters.thresholds = ()
    await bench.configured.change(Difference({}, {"locked": filters}))
    assert bench.configured.interest.listeners("a") == (OPS, "locked")
    assert [*bench.configured.targets] == [*bench.configured.settings.subscription_by_name] == [OPS]


async def test_a_changed_url_cancels_attempts_at_the_old_one_and_is_made_due(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off: list[Key] = []
    monkeypatch.setattr(bench.configured.loop, "cut_off", lambda key, _: cut_off.append(key))
    unverified = set[str]()
    bench.configured.inactive = Inactive(unverified)
    await bench.follow(some(subscriptions=(OPS,)))
    await bench.configured.change(
        Difference({}, {"new": a_subscription("new"), "same": a_subscription("same")})
    )
    elsewhere = a_subscription("new", url="https://elsewhere.example.com/in")
    unverified.add("new")
    changed = a_subscription("same", max_in_flight=3)
    await bench.configured.change(Difference({}, {"new": elsewhere, "same": changed}))
    assert cut_off == [Key("delivery", "new")]
    assert not bench.configured.moved, "not before it is verified"
    unverified.clear()
    await bench.configured.change(Difference({}, {"new": elsewhere}))
    assert bench.configured.moved == {"new"}
    assert bench.configured.targets["new"].settings is elsewhere


async def test_a_request_for_the_list_of_assets_takes_a_turn_of_its_provider(bench: Bench) -> None:
    async with Stage() as stage:
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0))
        stage.reply = answer([a_balance(0, "10")])
        account = an_account("treasury")
        await bench.follow(some(account, base_url=stage.url))
        assert await bench.poller().poll(account, await bench.store.lease(account.name))
    assert len(stage.seen) == 2
    assert await bench.configured.polls.next_turn_ms("loopring") > 0


async def test_a_missing_schedule_of_configured_accounts_is_noticed(bench: Bench) -> None:
    account = an_account("treasury")
    await bench.follow(some(account))
    polls = bench.configured.poll_work.by_provider["loopring"]
    for shard, has_lost in (((SHARD + 1) % SHARDS, False), (SHARD, True)):
        await polls.claim(Claim(shard, 9))
        assert polls.has_lost is has_lost


async def test_a_reload_while_redis_is_unreachable_is_done_once_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.follow(some())
    asked: list[Settings] = []

    async def begin(settings: Settings) -> None:
        asked.append(settings)
        if len(asked) < 3:
            raise StoreUnreachable("Redis is away")

    async def nothing(_: Settings) -> None:
        pass

    agreement: Any = SimpleNamespace(neighbours=bench.neighbours, moved=set(), begin=begin)
    present: Any = None
    keeper = Keeper(bench.store.pipe, bench.store.keys, "w")
    upkeep = Upkeep(bench.configured, bench.store.schedule, StoreHealth(), present, agreement, keeper)
    monkeypatch.setattr(upkeep, "_enrol", nothing)
    after = some(an_account("a"), subscriptions=(OPS, "more"))
    await upkeep.reload(after, asyncio.Event())
    assert asked == [after] * 3
    assert [*bench.configured.targets] == [OPS, "more"]


async def test_the_backlog_of_a_subscription_with_a_changed_url_is_made_due(bench: Bench) -> None:
    """How the old URL failed says nothing of the new one."""
    await bench.follow(some(subscriptions=(OPS,)))
    await bench.store.queues.enqueue(OPS, "treasury", some_deliveries(1))
    (lease,) = (await bench.store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases
    await bench.store.queues.release(OPS, lease, due_in_ms=10 * MINUTE_MS)
    await bench.configured.change(
        Difference({}, {OPS: a_subscription(OPS, url="https://elsewhere.example.com/")})
    )

    async def look() -> None:
        pass

    agreement: Any = SimpleNamespace(neighbours=bench.neighbours, moved=set(), look=look)
    present: Any = None
    keeper = Keeper(bench.store.pipe, bench.store.keys, "w")
    upkeep = Upkeep(bench.configured, bench.store.schedule, StoreHealth(), present, agreement, keeper)
    (look_around,) = (act for _, affected, act in upkeep.chores if affected == "other workers")
    await look_around()
    assert bench.woken(OPS) == SHARDS
    assert bench.configured.moved == set()
    assert len((await bench.store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases) == 1


async def test_the_backlog_of_a_subscription_that_cannot_be_decrypted_is_bounded(bench: Bench) -> None:
    """This worker queues its events, and may be the one that keeps all backlogs."""
    asked: list[dict[str, int]] = []

    async def look(most: dict[str, int]) -> Kept:
        asked.append(most)
        return Kept((), ())

    await bench.follow(some(subscriptions=(OPS,)))
    keeper: Any = SimpleNamespace(look=look)
    agreement: Any = SimpleNamespace(neighbours=bench.neighbours)
    present: Any = None
    upkeep = Upkeep(bench.configured, bench.store.schedule, StoreHealth(), present, agreement, keeper)
    bench.configured.inactive = Inactive(locked={"locked": a_subscription("locked")})
    await upkeep.keep_backlogs()
    assert asked == [{"locked": MAX_BACKLOG, OPS: MAX_BACKLOG}]


async def test_deliveries_left_to_a_missing_worker_are_made_at_once(bench: Bench) -> None:
    await bench.follow(some(subscriptions=(OPS, "theirs")))
    await bench.store.queues.enqueue(OPS, "treasury", some_deliveries(1))
    (lease,) = (await bench.store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases
    await bench.store.queues.release(OPS, lease, due_in_ms=10 * MINUTE_MS)
    neighbours = bench.neighbours
    neighbours.inactive = frozenset((OPS, "theirs"))

    async def look() -> None:
        neighbours.inactive = frozenset(("theirs",))

    agreement: Any = SimpleNamespace(neighbours=neighbours, moved=set(), look=look)
    present: Any = None
    keeper = Keeper(bench.store.pipe, bench.store.keys, "w")
    upkeep = Upkeep(bench.configured, bench.store.schedule, StoreHealth(), present, agreement, keeper)
    (look_around,) = (act for _, affected, act in upkeep.chores if affected == "other workers")
    await look_around()
    assert (bench.woken(OPS), bench.woken("theirs")) == (SHARDS, 0)
    assert len((await bench.store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases) == 1
