"""Claims about polls as the engine runs them: turns at a provider's rate limit, and leases given back."""

import asyncio
import itertools
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from tests.support.builders import an_account, seconds
from tests.support.stores import ACCOUNT, NEIGHBOURS, Store, a_store
from watcher.engine.dispatch import Room
from watcher.engine.loop import Neighbours
from watcher.polling import work
from watcher.polling.work import PollWork, ProviderPolls
from watcher.settings import AccountSettings
from watcher.store.health import StoreHealth
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

    async def take_turns(self, provider: str, turns: int, **limits: Any) -> float:
        self.taken += 1
        return await super().take_turns(provider, turns, **limits)

    async def release(self, provider: str, lease: Lease, *, due_in_ms: int = 0) -> Reply:
        self.given_back.append(lease.member)
        return Reply.DONE


class Poller:
    """A poller that notes when each account was polled. A poll is two requests."""

    most_requests = 2
    lease_ms = MINUTE_MS

    def __init__(self, spacing_s: float) -> None:
        self.spacing_s = spacing_s
        self.settings = SimpleNamespace(name=PROVIDER)
        self.polled_at: dict[str, float] = {}
        self.accounts: dict[str, AccountSettings] = {}

    def cost(self, account: AccountSettings | None) -> int:
        return 2 if account else 0

    async def poll(self, account: AccountSettings, _: Lease) -> bool:
        self.polled_at[account.name], self.accounts[account.name] = time.monotonic(), account
        return True


class Bench:
    """The polls of one provider, whose turns are so far apart."""

    def __init__(self, store: Store, spacing_s: float) -> None:
        self.polls = Asked(store.schedule, store.keys)
        self.poller = Poller(spacing_s)
        self.stopped = asyncio.Event()
        self.of_provider = ProviderPolls(
            cast(Any, self.poller), self.polls, StoreHealth(), self.stopped, Neighbours(), AsyncExitStack()
        )
        self.names = [ACCOUNT, *NEIGHBOURS]
        self.of_provider.follow({name: an_account(name) for name in self.names}, set(range(16)))

    async def begin(self, count: int) -> Sequence[Coroutine[Any, Any, bool]]:
        return await self.of_provider.begin([Lease(name, 0) for name in self.names[:count]])


@pytest.fixture
async def bench(redis_client: Redis, namespace: str) -> Bench:
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    return Bench(store, 0.02)


async def test_polls_start_at_their_turns_each_as_far_apart_as_the_requests_of_the_one_before(
    bench: Bench,
) -> None:
    await asyncio.gather(*await bench.begin(4))
    at = sorted(bench.poller.polled_at.values())
    gaps = [later - before for before, later in itertools.pairwise(at)]
    assert min(gaps) > 0.03
    assert sum(gaps) < 0.5
    assert bench.polls.taken == 1, "turns are taken for all of them together"


async def test_a_turn_that_was_missed_is_taken_anew(bench: Bench) -> None:
    """Together, polls that come late would exceed the limit."""
    begun = await bench.begin(4)
    time.sleep(0.3)  # noqa: ASYNC251 - what holds the loop up makes all of them late
    await asyncio.gather(*begun)
    at = sorted(bench.poller.polled_at.values())
    assert bench.polls.taken > 1
    assert min(later - before for before, later in itertools.pairwise(at)) > 0.03


async def test_a_reload_counts_for_what_waits_for_its_turn(bench: Bench) -> None:
    begun = [asyncio.ensure_future(each) for each in await bench.begin(4)]
    await asyncio.sleep(0)
    first, gone, *others = bench.names[:4]
    changed = an_account(others[0], interval=seconds(300)[0])
    bench.of_provider.follow({first: an_account(first), changed.name: changed}, set(range(16)))
    await asyncio.gather(*begun)
    assert gone not in bench.poller.polled_at
    assert gone in bench.polls.given_back
    assert bench.poller.accounts[changed.name] is changed


async def test_a_machine_that_is_always_late_polls_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_LATE_S", -10.0)
    await asyncio.gather(*await bench.begin(1))
    assert (bench.polls.taken, len(bench.poller.polled_at)) == (3, 1)


async def test_where_turns_are_far_off_the_next_claim_waits_for_them_and_takes_what_waited_longest(
    bench: Bench,
) -> None:
    assert await bench.of_provider.room(0) == Room(3, per_claim=16)
    for doing in await bench.begin(1):
        doing.close()
    await bench.polls.take_turns(PROVIDER, 20, spacing_ms=20)
    for doing in await bench.begin(1):
        doing.close()
    room = await bench.of_provider.room(1)
    assert (room.most, room.is_scarce) == (3, True)
    await bench.polls.take_turns(PROVIDER, 100, spacing_ms=20)
    room = await bench.of_provider.room(1)
    assert room.most == 0
    assert 1 < room.rest_s < 2.5


async def test_a_lease_whose_turn_is_too_far_off_is_given_back(bench: Bench) -> None:
    await bench.polls.take_turns(PROVIDER, 1000, spacing_ms=20)
    await asyncio.gather(*await bench.begin(2))
    assert not bench.poller.polled_at
    assert sorted(bench.polls.given_back) == sorted(bench.names[:2])


async def test_who_is_stopped_before_a_turn_comes_gives_the_lease_back(bench: Bench) -> None:
    await bench.polls.take_turns(PROVIDER, 100, spacing_ms=20)
    begun = asyncio.gather(*await bench.begin(2))
    bench.stopped.set()
    await begun
    assert not bench.poller.polled_at
    assert len(bench.polls.given_back) == 2


async def test_no_more_polls_run_than_one_process_can_bear(bench: Bench) -> None:
    room = await bench.of_provider.room(work.CONCURRENCY)
    assert (room.most, room.is_full) == (0, True)


async def test_a_run_of_all_accounts_takes_nothing_more_of_a_provider_that_is_polled(bench: Bench) -> None:
    all_of_them = PollWork(bench.polls)
    all_of_them.by_provider[PROVIDER] = bench.of_provider
    bench.of_provider.unpolled = {bench.names[0]}
    bench.of_provider.unread = {bench.names[0]}
    assert all_of_them.takes(PROVIDER)
    await asyncio.gather(*await all_of_them.begin(PROVIDER, [Lease(bench.names[0], 0)]))
    assert not all_of_them.takes(PROVIDER)
    assert bench.of_provider.unread == set()


async def test_what_a_reload_took_away_in_the_meantime_is_given_back(bench: Bench) -> None:
    none_left = PollWork(bench.polls)
    await asyncio.gather(*await none_left.begin(PROVIDER, [Lease(bench.names[0], 0)]))
    assert bench.polls.given_back == [bench.names[0]]
