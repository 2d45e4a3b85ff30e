"""Polls as the engine runs them: turns at a provider's rate limit, and leases given back."""

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from tests.support.builders import an_account, seconds
from tests.support.stores import ACCOUNT, NEIGHBOURS, SHARD, Store, a_store
from watcher.engine.dispatch import Capacity, Claim
from watcher.engine.loop import Neighbours
from watcher.polling import work
from watcher.polling.work import PollWork, ProviderPolls
from watcher.settings import AccountSettings
from watcher.store.exceptions import ServerRefused, StoreError, StoreUnreachable
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS, shard_of
from watcher.store.polls import Polls
from watcher.store.schedule import Lease, Reply

PROVIDER = "loopring"
MINUTE_MS = 60_000


class Asked(Polls):
    """Counts how often turns were taken, and says which leases were given back."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.taken = 0
        self.given_back: list[str] = []
        self.due_in_ms: list[int] = []
        self.is_away = False

    async def take_turns(self, provider: str, turns: int, **limits: Any) -> float:
        self.taken += 1
        if self.is_away:
            raise StoreUnreachable("Redis is away")
        return await super().take_turns(provider, turns, **limits)

    async def release(self, provider: str, lease: Lease, *, due_in_ms: int = 0) -> Reply:
        if self.is_away:
            raise StoreUnreachable("Redis is away")
        self.given_back.append(lease.member)
        self.due_in_ms.append(due_in_ms)
        return Reply.DONE


class Poller:
    """A poller that notes when each account was polled. A poll is two requests."""

    most_requests = 2
    needed_per_second = 0.0
    probe_account = ""
    lease_ms = MINUTE_MS

    def __init__(self, spacing_s: float) -> None:
        self.spacing_s = spacing_s
        self.settings = SimpleNamespace(name=PROVIDER)
        self.polled_at: dict[str, float] = {}
        self.accounts: dict[str, AccountSettings] = {}
        self.is_taken = True
        self.trouble: Exception | None = None

    def cost(self, account: AccountSettings | None) -> int:
        return 2 if account else 0

    async def poll(self, account: AccountSettings, _: Lease) -> bool:
        self.polled_at[account.name], self.accounts[account.name] = time.monotonic(), account
        if self.trouble:
            raise self.trouble
        return self.is_taken

    async def may_poll(
        self, account: AccountSettings, may_poll: Callable[[str, str, str | None], bool]
    ) -> bool:
        return may_poll(account.name, "here", "there")


class Bench:
    """The polls of one provider, whose turns are so far apart."""

    def __init__(self, store: Store, spacing_s: float) -> None:
        self.store = store
        self.polls = Asked(store.schedule, store.keys)
        self.poller = Poller(spacing_s)
        self.stopped = asyncio.Event()
        self.neighbours, self.stack = Neighbours(), AsyncExitStack()
        self.health = StoreHealth()
        self.of_provider = ProviderPolls(
            cast(Any, self.poller), self.polls, self.health, self.stopped, self.neighbours, self.stack
        )
        self.names = [ACCOUNT, *NEIGHBOURS]
        self.follow(*map(an_account, self.names))

    def follow(self, *accounts: AccountSettings) -> None:
        """Poll these accounts, and no others, from now on."""
        by_name = {account.name: account for account in accounts}
        for name in {**self.of_provider.accounts, **by_name}:
            self.of_provider.follow(name, by_name.get(name))

    async def begin(self, count: int) -> Sequence[Coroutine[Any, Any, bool]]:
        return await self.of_provider.begin([Lease(name, 0) for name in self.names[:count]])


@pytest.fixture
async def bench(redis_client: Redis, namespace: str) -> Bench:
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    return Bench(store, 0.02)


async def test_polls_start_at_turns_spaced_by_the_requests_of_the_poll_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_LATE_S", 60.0)
    began_at = time.monotonic()
    await asyncio.gather(*await bench.begin(4))
    at = sorted(bench.poller.polled_at.values())
    assert all(moment >= began_at + 0.04 * number for number, moment in enumerate(at))
    assert bench.polls.taken == 1, "turns are taken for all of them together"


async def test_the_lateness_of_a_poll_counts_from_its_own_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[tuple[float, float]] = []

    def poll(_: Lease, turn: work.Turn, after_s: float) -> None:
        turns.append((turn.at + after_s, turn.until + after_s))

    monkeypatch.setattr(bench.of_provider, "_poll", poll)
    await bench.begin(4)
    (first_at, first_until), *_ = turns
    later_s = [(at - first_at, until - first_until) for at, until in turns]
    assert later_s == [pytest.approx((0.04 * number,) * 2) for number in range(4)]
    assert first_until - first_at <= work._LATE_S


async def test_a_missed_turn_is_taken_anew(bench: Bench) -> None:
    """Together, polls that come late would exceed the limit."""
    bench.poller.spacing_s = 0.05
    begun = await bench.begin(4)
    time.sleep(0.3)  # noqa: ASYNC251 - what holds the loop up makes all of them late
    await asyncio.gather(*begun)
    at = sorted(bench.poller.polled_at.values())
    assert bench.polls.taken > 1
    assert min(later - before for before, later in itertools.pairwise(at)) > 0.05


async def test_a_reload_applies_to_polls_that_wait_for_their_turn(bench: Bench) -> None:
    begun = [asyncio.ensure_future(each) for each in await bench.begin(4)]
    await asyncio.sleep(0)
    first, gone, *others = bench.names[:4]
    changed = an_account(others[0], interval=seconds(300)[0])
    bench.follow(an_account(first), changed)
    await asyncio.gather(*begun)
    assert gone not in bench.poller.polled_at
    assert gone in bench.polls.given_back
    assert bench.poller.accounts[changed.name] is changed


async def test_a_machine_that_misses_every_turn_still_polls(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_LATE_S", -10.0)
    await asyncio.gather(*await bench.begin(1))
    assert (bench.polls.taken, len(bench.poller.polled_at)) == (3, 1)


async def test_the_next_claim_waits_for_distant_turns_and_takes_the_longest_wait(
    bench: Bench,
) -> None:
    assert await bench.of_provider.capacity(0) == Capacity(3, per_claim=16)
    for doing in await bench.begin(1):
        doing.close()
    await bench.polls.take_turns(PROVIDER, 20, spacing_ms=20)
    for doing in await bench.begin(1):
        doing.close()
    capacity = await bench.of_provider.capacity(1)
    assert (capacity.most, capacity.is_scarce) == (3, True)
    await bench.polls.take_turns(PROVIDER, 100, spacing_ms=20)
    capacity = await bench.of_provider.capacity(1)
    assert capacity.most == 0
    assert 1 < capacity.wait_s < 2.5


async def test_a_lease_whose_turn_is_too_distant_is_given_back(bench: Bench) -> None:
    await bench.polls.take_turns(PROVIDER, 1000, spacing_ms=20)
    await asyncio.gather(*await bench.begin(2))
    assert not bench.poller.polled_at
    assert sorted(bench.polls.given_back) == sorted(bench.names[:2])


async def test_a_poll_stopped_before_its_turn_gives_its_lease_back(bench: Bench) -> None:
    await bench.polls.take_turns(PROVIDER, 100, spacing_ms=20)
    begun = asyncio.gather(*await bench.begin(2))
    bench.stopped.set()
    await begun
    assert not bench.poller.polled_at
    assert len(bench.polls.given_back) == 2


async def test_a_poll_stopped_at_its_turn_asks_nothing_either(bench: Bench) -> None:
    begun = await bench.begin(1)
    bench.stopped.set()
    await asyncio.gather(*begun)
    assert not bench.poller.polled_at
    assert bench.polls.given_back == [ACCOUNT]


async def test_concurrent_polls_of_a_process_are_bounded(bench: Bench) -> None:
    capacity = await bench.of_provider.capacity(work.CONCURRENCY)
    assert (capacity.most, capacity.is_full) == (0, True)
    assert (await bench.of_provider.capacity(work.CONCURRENCY - 1)).most == 1


async def test_run_once_claims_nothing_more_of_a_provider_that_is_finished(bench: Bench) -> None:
    all_of_them = PollWork(bench.polls)
    all_of_them.by_provider[PROVIDER] = bench.of_provider
    bench.of_provider.unpolled = {bench.names[0]}
    bench.of_provider.unread = {bench.names[0]}
    assert all_of_them.takes(PROVIDER)
    await asyncio.gather(*await all_of_them.begin(PROVIDER, [Lease(bench.names[0], 0)]))
    assert not all_of_them.takes(PROVIDER)
    assert bench.of_provider.unread == set()


async def test_run_once_does_not_count_a_late_answer_as_read(bench: Bench) -> None:
    bench.of_provider.unpolled, bench.of_provider.unread = {ACCOUNT}, {ACCOUNT}
    bench.poller.is_taken = False
    await asyncio.gather(*await bench.begin(1))
    assert (bench.of_provider.unpolled, bench.of_provider.unread) == (set(), {ACCOUNT})


async def test_run_once_retries_an_account_that_found_no_turn(bench: Bench) -> None:
    await bench.polls.take_turns(PROVIDER, 1000, spacing_ms=20)
    bench.of_provider.unpolled = {ACCOUNT}
    await asyncio.gather(*await bench.begin(1))
    assert bench.of_provider.unpolled == {ACCOUNT}


async def test_polls_that_wait_for_their_turn_are_left_to_the_replacing_provider(
    bench: Bench,
) -> None:
    begun = await bench.begin(2)
    await bench.of_provider.retire()
    await asyncio.gather(*begun)
    assert not bench.poller.polled_at
    assert sorted(bench.polls.given_back) == sorted(bench.names[:2])


async def test_a_client_is_closed_after_its_last_poll(bench: Bench) -> None:
    closed = asyncio.Event()
    bench.stack.callback(closed.set)
    async with bench.of_provider:
        await bench.of_provider.retire()
        assert not closed.is_set()
    assert closed.is_set()


async def test_an_account_left_to_others_is_given_back_at_once_and_not_claimed_again_soon(
    bench: Bench,
) -> None:
    left, kept = bench.names[:2]
    bench.neighbours.left = frozenset((left,))
    await asyncio.gather(*await bench.begin(2))
    assert [*bench.poller.polled_at] == [kept]
    assert (bench.polls.given_back, bench.polls.due_in_ms) == ([left], [0])
    await bench.store.due(bench.store.keys.polls(SHARD, PROVIDER), **{left: -1000, kept: -1000})
    claimed = await bench.of_provider.claim(Claim(SHARD, 10))
    assert [lease.member for lease in claimed.leases] == [kept]


async def test_an_account_left_to_others_is_claimed_again_after_a_minute(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_LEFT_S", 0.0)
    bench.neighbours.left = frozenset((ACCOUNT,))
    await asyncio.gather(*await bench.begin(1))
    await bench.store.due(bench.store.keys.polls(SHARD, PROVIDER), **{ACCOUNT: -1000})
    claimed = await bench.of_provider.claim(Claim(SHARD, 10))
    assert [lease.member for lease in claimed.leases] == [ACCOUNT]


async def test_while_turns_are_scarce_only_the_longest_waits_are_claimed(bench: Bench) -> None:
    first, later = bench.names[:2]
    await bench.store.due(bench.store.keys.polls(SHARD, PROVIDER), **{first: -10_000, later: -1000})
    claimed = await bench.of_provider.claim(Claim(SHARD, 10, waited_s=5.0))
    assert [lease.member for lease in claimed.leases] == [first]
    assert claimed.next_due_s
    assert claimed.next_due_s < 0, "the other one is due, and is claimed next"


async def test_an_account_left_to_others_is_claimed_again_after_a_reload(bench: Bench) -> None:
    bench.neighbours.left = frozenset((ACCOUNT,))
    await asyncio.gather(*await bench.begin(1))
    bench.of_provider.reconsider()
    await bench.store.due(bench.store.keys.polls(SHARD, PROVIDER), **{ACCOUNT: -1000})
    claimed = await bench.of_provider.claim(Claim(SHARD, 10))
    assert [lease.member for lease in claimed.leases] == [ACCOUNT]


async def test_a_claim_says_when_the_next_account_is_due(bench: Bench) -> None:
    await bench.store.due(bench.store.keys.polls(SHARD, PROVIDER), **{ACCOUNT: 60_000})
    claimed = await bench.of_provider.claim(Claim(SHARD, 10))
    assert claimed.next_due_s == pytest.approx(60, abs=5)


async def test_a_shard_where_only_others_accounts_are_due_is_not_claimed_at_all_the_time(
    bench: Bench,
) -> None:
    bench.neighbours.left = frozenset((ACCOUNT,))
    await asyncio.gather(*await bench.begin(1))
    polls = bench.store.keys.polls(SHARD, PROVIDER)
    await bench.store.due(polls, **{ACCOUNT: -1000, bench.names[1]: 60_000})
    assert (await bench.of_provider.claim(Claim(SHARD, 10))).block_s == 1.0


@pytest.mark.parametrize("may_poll", [True, False])
async def test_an_account_configured_differently_is_polled_where_its_state_allows(
    bench: Bench, may_poll: bool
) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def answered(*what: Any) -> bool:
        asked.append(what)
        return may_poll

    bench.neighbours.contested, bench.neighbours.may_poll = {ACCOUNT}, answered
    await asyncio.gather(*await bench.begin(2))
    assert asked == [(ACCOUNT, "here", "there")], "the other one does not matter"
    assert (ACCOUNT in bench.poller.polled_at) is may_poll
    assert bench.names[1] in bench.poller.polled_at


@pytest.mark.parametrize(("is_alone", "due_in_ms"), [(True, 10_000), (False, 0)])
async def test_an_unconfigured_account_is_left_to_workers_that_may_know_it(
    bench: Bench, is_alone: bool, due_in_ms: int
) -> None:
    bench.neighbours.is_alone = is_alone
    await asyncio.gather(*await bench.of_provider.begin([Lease("stranger", 0)]))
    assert (bench.polls.given_back, bench.polls.due_in_ms) == (["stranger"], [due_in_ms])


async def test_an_unconfigured_account_takes_no_turn_from_the_others(bench: Bench) -> None:
    strangers = [Lease(f"stranger-{number}", 0) for number in range(50)]
    await asyncio.gather(*await bench.of_provider.begin([*strangers, Lease(ACCOUNT, 0)]))
    assert await bench.polls.next_turn_ms(PROVIDER) < 1000
    assert ACCOUNT in bench.poller.polled_at


@pytest.mark.parametrize(
    ("trouble", "due_in_ms"), [(StoreUnreachable("Redis is away"), 0), (StoreError("quota"), 1)]
)
async def test_a_poll_that_could_not_be_committed_is_repeated_before_its_lease_ends(
    bench: Bench, trouble: StoreError, due_in_ms: int
) -> None:
    bench.poller.trouble = trouble
    await asyncio.gather(*await bench.begin(1))
    assert bench.polls.given_back == [ACCOUNT]
    assert bench.polls.due_in_ms[0] >= due_in_ms


async def test_leases_are_given_back_once_redis_is_reachable_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_AGAIN_S", 0.01)
    bench.polls.is_away = True
    begun = asyncio.gather(*await bench.begin(2))
    await asyncio.sleep(0)
    bench.polls.is_away = False
    await begun
    assert not bench.poller.polled_at
    assert sorted(bench.polls.given_back) == sorted(bench.names[:2])
    assert bench.polls.due_in_ms == [0, 0]


async def test_an_account_that_was_added_just_now_is_polled_at_its_next_claim(bench: Bench) -> None:
    """A worker that claims it before it knows it takes in what was added, and gives it back at once."""
    added = an_account("added")

    async def look_again() -> bool:
        bench.follow(*map(an_account, bench.names), added)
        return True

    bench.neighbours.look_again = look_again
    (is_more,) = await asyncio.gather(*await bench.of_provider.begin([Lease("added", 0)]))
    assert is_more
    assert (bench.polls.given_back, bench.polls.due_in_ms) == (["added"], [0])
    assert not bench.poller.polled_at, "its turn was not taken"
    await asyncio.gather(*await bench.of_provider.begin([Lease("added", 0)]))
    assert "added" in bench.poller.polled_at


@pytest.mark.parametrize(("has_looked", "due_in_ms"), [(True, 10_000), (False, 1000)])
async def test_an_unknown_account_waits_and_shorter_while_it_is_looked_up(
    bench: Bench, has_looked: bool, due_in_ms: int
) -> None:
    async def look_again() -> bool:
        return has_looked

    bench.neighbours.look_again = look_again
    assert await asyncio.gather(*await bench.of_provider.begin([Lease("unknown", 0)])) == [False]
    assert bench.polls.due_in_ms == [due_in_ms]


async def test_an_account_that_cannot_be_decrypted_is_left_to_other_workers(bench: Bench) -> None:
    bench.neighbours.locked_accounts = {"locked"}
    await asyncio.gather(*await bench.of_provider.begin([Lease("locked", 0)]))
    assert (bench.polls.given_back, bench.polls.due_in_ms) == (["locked"], [0])
    await bench.store.due(bench.store.keys.polls(shard_of("locked"), PROVIDER), locked=-1000)
    claimed = await bench.of_provider.claim(Claim(shard_of("locked"), 10))
    assert claimed.leases == ()


async def test_a_missing_schedule_is_noticed(bench: Bench) -> None:
    empty = next(shard for shard in range(SHARDS) if shard != SHARD)
    bench.follow(an_account(ACCOUNT))
    await bench.of_provider.claim(Claim(empty, 10))
    assert not bench.of_provider.has_lost
    await bench.of_provider.claim(Claim(SHARD, 10))
    assert bench.of_provider.has_lost


async def test_a_lease_of_an_account_that_a_reload_removed_is_given_back(bench: Bench) -> None:
    none_left = PollWork(bench.polls)
    assert await none_left.capacity(PROVIDER, 0, 0) == Capacity(0), "nor is that a bug"
    await asyncio.gather(*await none_left.begin(PROVIDER, [Lease(bench.names[0], 0)]))
    assert bench.polls.given_back == [bench.names[0]]


async def test_no_poll_is_claimed_while_nothing_may_be_committed(bench: Bench) -> None:
    assert (await bench.of_provider.capacity(0)).most > 0
    bench.health.refusal = ServerRefused("Redis at db evicts keys")
    assert (await bench.of_provider.capacity(0)).most == 0
    bench.health.refusal = None
    assert (await bench.of_provider.capacity(0)).most > 0
