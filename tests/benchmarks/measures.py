"""The measures: each one lets the worker's own parts do one job on the stage, and says how fast it went."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from tests.benchmarks.raw_loop import Speed, Watch, latencies_ms, receipts
from tests.benchmarks.stage import Stage, some_settings
from tests.benchmarks.waiting import write_backlog
from watcher.observe.counters import Counters
from watcher.run.agreement import Agreement
from watcher.run.configured import Configured
from watcher.run.members import Present
from watcher.run.upkeep import Upkeep
from watcher.settings import Settings
from watcher.store.keeper import Keeper
from watcher.store.keys import Keys
from watcher.store.members import Configurations, Workers
from watcher.store.polls import Commit, Committed, Polls

_TICK_S = 0.002


class Measured(NamedTuple):
    """A job's speed, and what each item cost the server."""

    speed: Speed
    server_us: float


def present(stage: Stage) -> Present:
    """A worker that nobody sees: it never notes itself while it is measured."""
    workers = Workers(stage.schedule.pipe, Keys(some_settings(stage.url, 1).redis.namespace))
    return Present("bench", workers, Counters(), since_ms=0)


async def unchanged(stage: Stage, accounts: int, seconds: float) -> Measured:
    """Poll accounts of which nothing moves."""
    settings = some_settings(f"{stage.url}/still", accounts)
    before = Counters()
    async with running(stage, settings, before):
        await _until(lambda: _committed(before) >= accounts)  # each has its baseline
    counters = Counters()
    async with running(stage, settings, counters):
        await _until(lambda: counters.polls >= 2 * accounts)
        measured = await _watch(stage, seconds, lambda: counters.polls)
    assert not counters.rejected + counters.changes, "nothing was to change"
    return measured


async def changed(stage: Stage, accounts: int, seconds: float) -> Measured:
    """Poll accounts of which one asset moved each time, and deliver each event to one subscription."""
    settings = some_settings(f"{stage.url}/restless", accounts, subscriber=stage.url)
    counters = Counters()
    async with running(stage, settings, counters):
        await _until(lambda: counters.deliveries >= accounts)
        measured = await _watch(stage, seconds, lambda: counters.deliveries)
    assert not counters.rejected + counters.retried, "everything was to be taken"
    return measured


async def backlog(stage: Stage, queues: int, per_queue: int) -> Measured:
    """Deliver what waits, `per_queue` events in each queue of one subscription."""
    settings = some_settings(stage.url, 0, subscriber=stage.url)
    counters = Counters()
    await write_backlog(stage, Keys(settings.redis.namespace), queues, per_queue)
    await stage.forget_commands()
    watch = Watch()
    async with running(stage, settings, counters):
        await _until(lambda: counters.deliveries >= queues * per_queue)
        speed = watch.speed(counters.deliveries)
    return Measured(speed, await stage.server_us() / counters.deliveries)


async def latencies(stage: Stage, accounts: int, count: int, *, per_second: float) -> list[float]:
    """How many ms events take from the sending of their commit to their arrival, at an even pace."""
    settings = some_settings(
        f"{stage.url}/restless",
        accounts,
        subscriber=f"{stage.url}/timed",
        polls_per_second=1.05 * per_second,  # the loop stays that far below its limit
    )
    counters = Counters()
    polls = TimedPolls(stage.schedule, Keys(settings.redis.namespace))
    async with running(stage, settings, counters, polls):
        await _until(lambda: counters.deliveries >= count)
    return latencies_ms(polls.sent_at, await receipts(stage.url))


class TimedPolls(Polls):
    """Notes when the commit of each event is sent."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)  # type: ignore[arg-type]
        self.sent_at: dict[str, float] = {}

    async def commit(self, commit: Commit) -> Committed:
        now, step = time.monotonic(), commit.step
        for places in step.queued.values():
            self.sent_at.update((step.events[place].id, now) for place in places)
        return await super().commit(commit)


@asynccontextmanager
async def running(
    stage: Stage, settings: Settings, counters: Counters, polls: Polls | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """A worker's loop inside the block, as a task, and what it learns of breakers; what is in flight at its
    end is finished."""
    async with AsyncExitStack() as stack:
        upkeep = await stack.enter_async_context(_kept_up(stage, settings, counters, polls))
        await upkeep.begin(lambda: settings, asyncio.Event())
        (learn,) = (chore for chore in upkeep.chores if chore[1] == "breakers")
        async with asyncio.TaskGroup() as group:
            group.create_task(upkeep.loop.every(*learn))
            yield group.create_task(upkeep.loop.run())
            upkeep.loop.stop()


@asynccontextmanager
async def _kept_up(
    stage: Stage, settings: Settings, counters: Counters, polls: Polls | None = None
) -> AsyncIterator[Upkeep]:
    seen, keys = present(stage), Keys(settings.redis.namespace)
    agreement = Agreement(seen, Configurations(stage.schedule.pipe, keys), now_ms=stage.schedule.now_ms)
    async with Configured(settings, stage.schedule, stage.health, counters, agreement) as configured:
        configured.polls = polls or configured.polls
        keeper = Keeper(stage.schedule.pipe, Keys(settings.redis.namespace), "bench")
        yield Upkeep(configured, stage.schedule, stage.health, seen, agreement, keeper)


async def _watch(stage: Stage, seconds: float, count: Callable[[], int]) -> Measured:
    await stage.forget_commands()
    before, watch = count(), Watch()
    await asyncio.sleep(seconds)
    done = count() - before
    return Measured(watch.speed(done), await stage.server_us() / done)


def _committed(counters: Counters) -> int:
    return sum(count for (_, outcome), count in counters.by_poll.items() if outcome == "committed")


async def _until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - the loops only count
        await asyncio.sleep(_TICK_S)
