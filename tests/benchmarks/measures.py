"""The measures: each one lets the worker's own parts do one job on the stage, and says how fast it went."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.benchmarks.raw_loop import Speed, Watch, latencies_ms, receipts
from tests.benchmarks.stage import PROVIDER, Stage, account_names, some_settings
from tests.benchmarks.waiting import SUBSCRIPTION, write_backlog
from tests.faults.worker_processes import WorkerProcess
from tests.support.memory import peak_mib
from watcher.observe.counters import Counters
from watcher.run.agreement import Agreement
from watcher.run.configured import Configured
from watcher.run.members import Present
from watcher.run.upkeep import Upkeep
from watcher.settings import Settings
from watcher.store.keeper import Keeper
from watcher.store.keys import SHARDS, Keys
from watcher.store.members import Configurations, Workers
from watcher.store.polls import Commit, Committed, Polls

_TICK_S = 0.002

_LOOK_S = 0.2
_ON_S = 3.0
_PATIENCE_S = 60.0


class Measured(NamedTuple):
    """A job's speed, and what each item cost the server."""

    speed: Speed
    server_us: float


def present(stage: Stage) -> Present:
    """A worker that is not listed: it does not register itself while it is measured."""
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
    assert not counters.rejected + counters.changes, "no poll should have found a change"
    return measured


async def changed(stage: Stage, accounts: int, seconds: float) -> Measured:
    """Poll accounts of which one asset moved each time, and deliver each event to one subscription."""
    settings = some_settings(f"{stage.url}/restless", accounts, subscriber=stage.url)
    counters = Counters()
    async with running(stage, settings, counters):
        await _until(lambda: counters.deliveries >= accounts)
        measured = await _watch(stage, seconds, lambda: counters.deliveries)
    assert not counters.rejected + counters.retried, "every delivery should have been accepted"
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


_CONFIGURATION = """
accounts_file = "accounts.jsonl"

[redis]
url = "{redis}"
namespace = "{namespace}"

[egress]
allow = ["127.0.0.0/8"]
allow_http = true

[providers.loopring]
base_url = "{url}/each"
api_key = "key"
requests_per_second = 10000

[[subscriptions]]
name = "{subscription}"
url = "{url}"
secrets = ["${{SECRET}}"]
max_in_flight = 64
"""


async def held_mib(stage: Stage, accounts: int, queues: int, per_queue: int) -> float:
    """How many MiB a `watcher run` holds at most that polls accounts every second, each of them changed, and
    delivers that beside a backlog."""
    keys = Keys(some_settings(stage.url, 0).redis.namespace)
    await write_backlog(stage, keys, queues, per_queue)
    names = {"redis": stage.redis_url, "namespace": keys.namespace}
    with TemporaryDirectory() as directory:
        folder = Path(directory)
        text = _CONFIGURATION.format(**names, url=stage.url, subscription=SUBSCRIPTION)
        (folder / "watcher.toml").write_text(text)
        rows = (
            {"name": name, "provider": PROVIDER, "account_id": 1 + number, "interval": "1s"}
            for number, name in enumerate(account_names(accounts))
        )
        (folder / "accounts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        worker = WorkerProcess(folder, "worker")
        await worker.start()
        try:
            await worker.logged("worker.started")
            async with asyncio.timeout(_PATIENCE_S):
                while await _waiting(stage, keys) > accounts:
                    assert worker.is_running, worker.errors
                    await asyncio.sleep(_LOOK_S)
            await asyncio.sleep(_ON_S)
            return peak_mib(worker.process.pid)
        finally:
            await worker.kill()


async def _waiting(stage: Stage, keys: Keys) -> int:
    counts = [await stage.client.hget(keys.backlogs(shard), SUBSCRIPTION) for shard in range(SHARDS)]
    return sum(int(count or 0) for count in counts)


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
    del upkeep, learn
    gc.unfreeze()  # a worker freezes what it has read, and with it what the one before it left
    gc.collect()


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
