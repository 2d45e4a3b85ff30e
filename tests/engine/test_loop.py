"""What the loop claims, starts, holds back and ends: with an index and both kinds of work in memory."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from watcher.engine import loop
from watcher.engine.dispatch import AT_ONCE, Capacity, Claim, Key, Kind
from watcher.engine.loop import Claimed, InUse, Loop, Places
from watcher.store.exceptions import StoreUnreachable
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS
from watcher.store.schedule import Due, Lease

OPS, SHOP = Key("delivery", "ops"), Key("poll", "shop")


class Index:
    """Returns what is due, once each time that a test says so."""

    def __init__(self) -> None:
        self.named: list[Due] = []
        self.gone: list[BaseException] = []
        self.looked = 0
        self.fixed: Counter[int] = Counter()
        self.clock_read = 0

    async def look(self) -> list[list[Due] | BaseException]:
        self.looked += 1
        named, self.named = self.named, []
        return [*self.gone, named]

    async def fix(self, shard: int, _providers: Sequence[str]) -> None:
        self.fixed[shard] += 1

    async def read_clock(self) -> None:
        self.clock_read += 1


class Work:
    """Work of one kind: a claim, once it `may_answer`, brings one piece, which lasts until it `may_end`."""

    breath_s = 0.0

    def __init__(self) -> None:
        self.room_of: Callable[[], Capacity] = lambda: Capacity(10)
        self.claimed: list[int] = []
        self.begun = 0
        self.ended: list[str] = []
        self.held: list[tuple[int, Mapping[str, float]]] = []
        self.trouble_by_shard: dict[int, Exception] = {}
        self.bug: Exception | None = None
        self.is_more = False
        self.may_answer, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_answer.set()
        self.may_end.set()

    def takes(self, _name: str) -> bool:
        return True

    async def capacity(self, _name: str, _in_flight: int, _in_flight_of_all: int) -> Capacity:
        return self.room_of()

    def spare(self, _name: str, in_flight: int, _in_flight_of_all: int) -> int:
        return self.room_of().most - in_flight

    async def claim(self, _name: str, claim: Claim) -> Claimed:
        await self.may_answer.wait()
        self.claimed.append(claim.shard)
        if trouble := self.trouble_by_shard.get(claim.shard):
            raise trouble
        return Claimed((Lease(f"{claim.shard}", 0),))

    async def begin(self, _name: str, leases: Sequence[Lease]) -> Sequence[Coroutine[Any, Any, bool]]:
        return [self.do(lease) for lease in leases]

    async def hold(self, shard: int, for_s: Mapping[str, float]) -> None:
        self.held.append((shard, for_s))

    async def do(self, lease: Lease) -> bool:
        self.begun += 1
        try:
            await self.may_end.wait()
            if self.bug:
                raise self.bug
            self.ended.append(f"{lease.member} done")
        except asyncio.CancelledError:
            self.ended.append(f"{lease.member} cut off")
            raise
        is_more, self.is_more = self.is_more, False
        return is_more


class World:
    def __init__(self) -> None:
        self.index = Index()
        self.polls, self.deliveries = Work(), Work()
        works: dict[Kind, Any] = {"poll": self.polls, "delivery": self.deliveries}
        self.loop = Loop(cast(Any, self.index), StoreHealth(), works, lambda: ["shop"])

    def name(self, key: Key, *shards: int) -> None:
        self.index.named += [Due(key.kind, shard, key.name, 0.0) for shard in shards]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(self.loop.run())
            try:
                yield
            finally:
                self.loop.stop()

    async def until(self, is_so: Callable[[], object]) -> None:
        while not is_so():  # noqa: ASYNC110 - the loop sends no signal
            await asyncio.sleep(0.001)

    async def looked(self, times: int) -> None:
        """Wait until the loop has looked so many times more."""
        before = self.index.looked
        await self.until(lambda: self.index.looked >= before + times)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(loop, "_TURN_S", 60.0)  # so a loop that is not woken when it must be ends no test
    return World()


@pytest.fixture
def lines() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as found:
        yield found


async def test_work_that_the_index_names_is_claimed_and_done(world: World) -> None:
    world.name(OPS, 1, 2)
    world.name(SHOP, 3)
    async with world.running():
        await world.until(lambda: len(world.deliveries.ended) == 2 and world.polls.ended)
    assert sorted(world.deliveries.ended) == ["1 done", "2 done"]
    assert world.polls.ended == ["3 done"]


async def test_work_in_hand_is_finished_when_the_loop_stops(world: World) -> None:
    world.deliveries.may_end.clear()
    async with world.running():
        world.loop.wake(OPS, 1)
        await world.until(lambda: world.deliveries.begun)
        world.loop.stop()
        assert world.loop.in_flight == 1
        world.deliveries.may_end.set()
    assert world.deliveries.ended == ["1 done"]
    assert world.loop.in_flight == 0


async def test_a_loop_stopped_while_it_asks_for_capacity_claims_nothing(world: World) -> None:
    def stopping() -> Capacity:
        world.loop.stop()
        return Capacity(10)

    world.deliveries.room_of = stopping
    async with world.running():
        world.loop.wake(OPS, 1)
        await world.until(lambda: world.loop.stopped.is_set())
    assert world.deliveries.claimed == []


async def test_an_unreachable_index_holds_up_no_other(
    world: World, lines: list[MutableMapping[str, Any]]
) -> None:
    world.index.gone = [StoreUnreachable("a node is gone")]
    world.name(OPS, 1)
    async with world.running():
        await world.until(lambda: world.deliveries.ended)
    assert [line["event"] for line in lines] == ["store.unreachable"]


async def test_work_that_says_that_more_is_due_is_claimed_again_without_a_look(world: World) -> None:
    world.deliveries.is_more = True
    async with world.running():
        world.loop.wake(OPS, 1)
        await world.until(lambda: len(world.deliveries.ended) == 2)
    assert world.deliveries.claimed == [1, 1]


async def test_a_key_that_was_full_is_claimed_for_as_soon_as_something_of_it_ends(world: World) -> None:
    world.deliveries.may_end.clear()
    async with world.running():
        world.loop.wake(OPS, 1)
        await world.until(lambda: world.deliveries.begun)
        world.deliveries.room_of = lambda: Capacity(0, 60, is_full=True)
        world.loop.wake(OPS, 2)
        await world.until(lambda: world.deliveries.held)
        world.deliveries.room_of = lambda: Capacity(10)
        world.deliveries.may_end.set()
        await world.until(lambda: len(world.deliveries.ended) == 2)
    assert world.deliveries.claimed == [1, 2]


async def test_a_key_without_capacity_is_put_on_hold_in_the_index(world: World) -> None:
    world.deliveries.room_of = lambda: Capacity(0, 60)
    async with world.running():
        world.loop.wake(OPS, 1)
        await world.until(lambda: world.deliveries.held)
        assert world.deliveries.held == [(1, {"ops": 60})]
        world.name(OPS, 2)
        await world.until(lambda: len(world.deliveries.held) == 2)
    shard, for_s = world.deliveries.held[1]
    assert shard == 2
    assert 55 < for_s["ops"] <= 60
    assert world.deliveries.claimed == []


async def test_a_key_woken_at_all_shards_is_asked_anew_for_its_capacity(world: World) -> None:
    world.deliveries.room_of = lambda: Capacity(0, 60)
    async with world.running():
        world.loop.wake(OPS, 1)
        await world.until(lambda: world.deliveries.held)
        world.deliveries.room_of = lambda: Capacity(16)
        world.loop.wake_all(OPS)
        assert world.loop.dispatch.ahead(OPS, time.monotonic()) is None, "as many as may wait there"
        await world.until(lambda: len(world.deliveries.ended) == SHARDS)
    assert sorted(world.deliveries.claimed) == [*range(SHARDS)]


async def test_a_damaged_shard_is_logged_as_one_bug_and_holds_up_no_other(
    world: World, lines: list[MutableMapping[str, Any]]
) -> None:
    world.deliveries.trouble_by_shard[1] = ValueError("WRONGTYPE")
    async with world.running():
        for count in range(1, 4):
            world.name(OPS, 1, 2)
            await world.until(lambda count=count: len(world.deliveries.ended) == count)  # type: ignore[misc]
            await world.looked(1)
    assert [line["affected"] for line in lines if line["event"] == "bug"] == ["delivery ops, shard 1"]
    assert world.deliveries.claimed.count(1) == 1


async def test_a_bug_in_one_piece_of_work_stops_no_other(
    world: World, lines: list[MutableMapping[str, Any]]
) -> None:
    world.deliveries.bug = RuntimeError("a bug")
    async with world.running():
        world.loop.wake(OPS, 1)
        world.loop.wake(SHOP, 2)
        await world.until(lambda: world.deliveries.begun and world.polls.ended)
        await world.until(lambda: not world.loop.in_flight)
        world.deliveries.bug = None
        world.loop.wake(OPS, 3)
        await world.until(lambda: world.deliveries.ended == ["3 done"])
    (bug,) = (line for line in lines if line["event"] == "bug")
    assert (bug["affected"], bug["account"], bug["subscription"]) == ("delivery", "1", "ops")


async def test_while_redis_is_unreachable_it_is_not_asked_all_the_time(world: World) -> None:
    world.deliveries.trouble_by_shard[1] = StoreUnreachable("Redis is away")
    async with world.running():
        world.loop.wake(OPS, 1)
        await world.looked(2)
        del world.deliveries.trouble_by_shard[1]
        await world.until(lambda: world.deliveries.ended)
    assert len(world.deliveries.claimed) < 10


async def test_an_idle_loop_stops_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_TURN_S", 60.0)
    async with world.running():
        await world.looked(1)


async def test_claims_for_a_key_are_spaced_so_that_more_falls_due(world: World) -> None:
    world.polls.breath_s = 60.0
    async with world.running():
        world.loop.wake(SHOP, 1)
        await world.until(lambda: world.polls.ended)
        world.loop.wake(SHOP, 2)
        world.loop.wake(OPS, 2)
        await world.until(lambda: world.deliveries.ended)
    assert world.polls.claimed == [1]


async def test_repeated_tasks_wait_while_redis_is_unreachable(world: World) -> None:
    done_at: list[float] = []

    async def act() -> None:
        done_at.append(time.monotonic())
        raise StoreUnreachable("Redis is away")

    async with asyncio.TaskGroup() as group:
        group.create_task(world.loop.every(0.001, "a chore", act))
        await world.until(lambda: len(done_at) == 3)
        world.loop.stop()
    assert done_at[2] - done_at[0] > 0.25, "a tenth of a second, then longer"


async def test_a_repeated_task_with_damaged_keys_is_logged_as_one_bug(
    world: World, lines: list[MutableMapping[str, Any]]
) -> None:
    async def damaged() -> None:
        raise ValueError("WRONGTYPE")

    done: list[bool] = []

    async def act() -> None:
        done.append(True)

    async with asyncio.TaskGroup() as group:
        group.create_task(world.loop.every(0.001, "damaged", damaged))
        group.create_task(world.loop.every(0.001, "well", act))
        await world.until(lambda: len(done) == 10)
        world.loop.stop()
    assert [line["affected"] for line in lines if line["event"] == "bug"] == ["damaged"]


async def test_the_index_is_compared_with_the_schedules_now_and_then_only(
    world: World,
) -> None:
    async with world.running():
        await world.looked(3)
    assert world.index.fixed == Counter(range(SHARDS))
    assert world.index.clock_read == 1


async def test_cancelled_work_gets_a_moment_and_other_work_is_not_cancelled(world: World) -> None:
    for work in (world.polls, world.deliveries):
        work.may_end.clear()
    async with world.running():
        for key in (OPS, SHOP):
            world.loop.wake(key, 1)
        await world.until(lambda: world.polls.begun and world.deliveries.begun)
        world.loop.cut_off(SHOP, 60)
        world.loop.cut_off(OPS, 0.01)
        await world.until(lambda: world.deliveries.ended)
        world.polls.may_end.set()
        await world.until(lambda: world.polls.ended)
    assert (world.deliveries.ended, world.polls.ended) == (["1 cut off"], ["1 done"])


async def test_a_cancelled_loop_cancels_its_work_and_waits_for_it(world: World) -> None:
    world.deliveries.may_end.clear()
    running = asyncio.create_task(world.loop.run())
    world.loop.wake(OPS, 1)
    await world.until(lambda: world.deliveries.begun)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert world.deliveries.ended == ["1 cut off"]
    assert world.loop.in_flight == 0


async def test_a_cancelled_loop_leaves_no_task_even_if_its_work_goes_on_and_begins_more(world: World) -> None:
    async def do(lease: Lease) -> bool:
        with Places(world.loop, [OPS]) as places:
            world.polls.begun += 1
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            begin(world, places)
        return False

    world.polls.do = do  # type: ignore[method-assign]
    world.deliveries.may_end.clear()
    running = asyncio.create_task(world.loop.run())
    await world.looked(1)
    world.loop.wake(SHOP, 1)
    await world.until(lambda: world.polls.begun)
    running.cancel()
    async with asyncio.timeout(5):
        with suppress(asyncio.CancelledError):
            await running
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_finishing_loop_ends_when_nothing_is_due_or_in_hand(world: World) -> None:
    world.deliveries.may_end.clear()
    async with world.running():
        world.loop.wake(OPS, 1)
        await world.until(lambda: world.deliveries.begun)
        await world.looked(2)
        world.loop.finish()
        await world.looked(3)
        assert not world.loop.stopped.is_set()
        world.deliveries.may_end.set()
        await world.until(lambda: world.loop.stopped.is_set())
    assert world.deliveries.ended == ["1 done"]


def begin(world: World, places: Places, member: str = "leased") -> None:
    """Begin a piece of work at the place of OPS."""
    lease = Lease(member, 0)
    places.begin(OPS, 1, lease, world.deliveries.do(lease))


async def test_work_leased_for_a_reserved_place_begins_without_a_claim(world: World) -> None:
    async with world.running():
        await world.looked(1)
        with Places(world.loop, [OPS]) as places:
            assert places.kept == {OPS}
            begin(world, places)
        await world.until(lambda: world.deliveries.ended)
    assert (world.deliveries.ended, world.deliveries.claimed) == (["leased done"], [])
    assert world.loop.in_flight == 0


async def test_reserved_places_are_within_capacity_and_count_as_work_in_hand(world: World) -> None:
    world.deliveries.room_of = lambda: Capacity(2)
    async with world.running():
        await world.looked(1)
        with Places(world.loop, [OPS]), Places(world.loop, [OPS]) as second:
            with Places(world.loop, [OPS]) as third:
                assert (second.kept, third.kept) == ({OPS}, set())
            assert world.loop.in_flight == 2
        assert world.loop.in_flight == 0
        with Places(world.loop, [OPS, Key("delivery", "audit")]) as places:
            assert len(places.kept) == 2, "each name has a capacity of its own"


async def test_a_thousand_keys_reserve_no_more_places_than_a_claim_would_take(world: World) -> None:
    async with world.running():
        await world.looked(1)
        with Places(world.loop, [Key("delivery", f"s{number}") for number in range(1000)]) as places:
            assert len(places.kept) == world.loop.in_flight == AT_ONCE
        assert world.loop.in_flight == 0


async def test_pending_claims_leave_no_place_to_reserve(world: World) -> None:
    world.deliveries.room_of = lambda: Capacity(2)
    world.deliveries.may_answer.clear()
    async with world.running():
        world.loop.wake(OPS, 1)
        await world.until(lambda: "delivery ops" in world.loop.turned_at_by_name)
        await world.until(lambda: world.loop.in_flight)
        with Places(world.loop, [OPS]) as places:
            assert places.kept == set()
        world.deliveries.may_answer.set()
        await world.until(lambda: world.deliveries.ended)


async def test_waiting_work_comes_before_new_reservations(world: World) -> None:
    world.deliveries.room_of = lambda: Capacity(2)
    async with world.running():
        await world.looked(1)
        world.loop.wake(OPS, 1)
        with Places(world.loop, [OPS]) as first, Places(world.loop, [OPS]) as second:
            assert (first.kept, second.kept) == ({OPS}, set())
        world.loop.dispatch.due(OPS, 2, time.monotonic(), time.monotonic())
        with Places(world.loop, [OPS]) as places:
            assert places.kept == set(), "as many as a shard has may wait there"


async def test_a_loop_that_is_not_running_reserves_no_place(world: World) -> None:
    with Places(world.loop, [OPS]) as places:
        assert places.kept == set()
    async with world.running():
        await world.looked(1)
        world.loop.stop()
        with Places(world.loop, [OPS]) as places:
            assert places.kept == set()
    with Places(world.loop, [OPS]) as places:
        assert places.kept == set()


async def test_a_place_that_was_given_back_goes_to_waiting_work(world: World) -> None:
    world.deliveries.room_of = lambda: Capacity(1 - world.loop.dispatch.in_flight(OPS), 60, is_full=True)
    async with world.running():
        await world.looked(1)
        with Places(world.loop, [OPS]) as places:
            assert places.kept == {OPS}
            world.loop.wake(OPS, 1)
            await world.until(lambda: world.deliveries.held)
        await world.until(lambda: world.deliveries.ended)
    assert world.deliveries.claimed == [1]


async def test_a_place_is_given_back_if_making_its_work_due_failed(world: World) -> None:
    async with world.running():
        await world.looked(1)
        with pytest.raises(StoreUnreachable), Places(world.loop, [OPS]):
            raise StoreUnreachable("Redis is away")
        assert world.loop.in_flight == 0


async def test_a_stopped_loop_waits_for_its_reserved_places_and_finishes_their_work(world: World) -> None:
    async with world.running():
        await world.looked(1)
        with Places(world.loop, [OPS]) as places:
            world.loop.stop()
            for _ in range(10):  # turns of the event loop in which it could end
                await asyncio.sleep(0)
            begin(world, places)
    assert world.deliveries.ended == ["leased done"]


async def test_leased_work_is_cancelled_with_its_key(world: World) -> None:
    world.deliveries.may_end.clear()
    async with world.running():
        await world.looked(1)
        with Places(world.loop, [OPS]) as places:
            begin(world, places)
        await world.until(lambda: world.deliveries.begun)
        world.loop.cut_off(OPS, 0.0)
        await world.until(lambda: world.deliveries.ended)
    assert world.deliveries.ended == ["leased cut off"]


async def test_a_task_that_ended_a_piece_of_work_does_the_next_and_ends_with_the_loop(world: World) -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def do(lease: Lease) -> bool:
        tasks.append(asyncio.current_task())
        world.deliveries.bug = RuntimeError("a bug") if lease.member == "2" else None
        return await work(lease)

    work, world.deliveries.do = world.deliveries.do, do  # type: ignore[method-assign]
    async with world.running():
        for shard in (1, 2, 3):
            world.loop.wake(OPS, shard)
            await world.until(lambda shard=shard: len(tasks) == shard and not world.loop.in_flight)  # type: ignore[misc]
    assert world.deliveries.ended == ["1 done", "3 done"]
    assert tasks[0]
    assert tasks == [tasks[0]] * 3, "also after a bug"
    assert tasks[0].done()


async def test_a_key_that_is_cut_off_loses_only_what_was_in_hand_then(world: World) -> None:
    async with world.running():
        world.deliveries.may_end.clear()
        world.loop.wake(OPS, 1)
        await world.until(lambda: world.deliveries.begun)
        world.loop.cut_off(OPS, 0.02)
        world.deliveries.may_end.set()
        await world.until(lambda: world.deliveries.ended)
        world.deliveries.may_end.clear()
        world.loop.wake(OPS, 2)  # the same task does it
        await world.until(lambda: world.deliveries.begun == 2)
        await asyncio.sleep(0.05)  # until then it would be cancelled
        world.deliveries.may_end.set()
    assert world.deliveries.ended == ["1 done", "2 done"]


async def test_a_loop_shows_its_turns_and_since_when_a_claim_is_under_way(world: World) -> None:
    world.deliveries.may_answer.clear()
    assert world.loop.turned_at_by_name == {}
    async with world.running():
        world.loop.wake(OPS, 1)
        await world.until(lambda: "delivery ops" in world.loop.turned_at_by_name)
        world.deliveries.may_answer.set()
        await world.until(lambda: [*world.loop.turned_at_by_name] == ["loop"])
    assert world.loop.turned_at_by_name == {}


async def test_a_resource_is_closed_once_after_its_last_use() -> None:
    stack, closed = AsyncExitStack(), list[bool]()
    stack.callback(closed.append, True)
    still_open = {stack}
    in_use = InUse(stack, still_open)
    async with in_use:
        async with in_use:
            await in_use.retire()
        assert (closed, still_open) == ([], {stack})
    assert (closed, still_open) == ([True], set())
    async with in_use:
        pass
    assert closed == [True]
