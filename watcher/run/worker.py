"""One worker: opens Redis, runs the loops of the configuration in force, reloads, drains and ends.

Refuses to read the environment: `commands.run` passes what it needs.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from copy import copy
from typing import Any, NamedTuple, TypeVar

from watcher import __version__
from watcher.engine.loop import Loop, survived
from watcher.observe.counters import Counters
from watcher.observe.liveness import Liveness, rss_mb
from watcher.observe.log import log
from watcher.pause import pause
from watcher.run.agreement import Agreement, Difference
from watcher.run.configured import Configured
from watcher.run.directory import Followed
from watcher.run.members import LOOK_S, Present, StandBy
from watcher.run.upkeep import Upkeep
from watcher.run.verification import Verification
from watcher.settings import Settings
from watcher.store.exceptions import LayoutAwaited, StoreError
from watcher.store.guarantee import check_rights, guarantee_of_all
from watcher.store.health import JUDGE_S, StoreHealth
from watcher.store.keeper import Keeper
from watcher.store.keys import Keys
from watcher.store.layout import Layout
from watcher.store.members import Configurations, Workers
from watcher.store.opening import open_store
from watcher.store.pipe import Pipe
from watcher.store.queues import BOUNDS, Bounds
from watcher.store.reader import Reader
from watcher.store.schedule import Schedule

HEARTBEAT_S = 60.0

_COUNT_S = 1.0
"""The heartbeat waits no longer than this for the number of deliveries that are due."""

_CANCEL_AGAIN_S = 0.1

_JUDGED_S = 1.0
"""Connections that are made within this time are one reason to judge the server again."""

T = TypeVar("T")


class Opened(NamedTuple):
    """What a worker has once Redis is open."""

    schedule: Schedule
    health: StoreHealth
    bounds: Bounds = BOUNDS


class Worker:
    """Use once: `await Worker(settings, name=…).run()`; `stop` and `reload` may be called from outside.

    `dropped_lines` returns how many log lines were lost. `on_started` is called once the worker claims work,
    or stands by until Redis is in its layout; `on_enrolling` after each part of an enrolment, with its number
    and how many there are. `opened` is None while Redis is not open. `has_read_all`: whether a run of `once`
    read at least one account, and all but those that another worker had in hand. `file` is the configuration
    file, `followed` the directory, `verification` pings; the last two are None while Redis is not open.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        dropped_lines: Callable[[], int] = lambda: 0,
        on_started: Callable[[], object] = lambda: None,
        on_enrolling: Callable[[int, int], object] = lambda part, parts: None,
    ) -> None:
        self.file = settings
        self.name = name
        self.counters = Counters()
        self.liveness = Liveness(name, self._turned_at_by_loop, dropped_lines=dropped_lines)
        self.opened: Opened | None = None
        self.agreement: Agreement | None = None
        self.has_read_all = False
        self._is_reloading = False
        self.loop: Loop | None = None
        self.configured: Configured | None = None
        self.followed: Followed | None = None
        self.verification: Verification | None = None
        self._on_started, self._on_enrolling = on_started, on_enrolling
        self._has_begun = self._stands_by = False
        self._stopped = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def settings(self) -> Settings:
        """The settings in force: those of the file, and those that the directory adds."""
        is_begun = self.configured is not None and self.configured.is_begun
        return self.configured.settings if self.configured and is_begun else self.file

    def stop(self, signal_name: str | None = None) -> None:
        """Finish what is in hand and end. A second call changes nothing."""
        if not self._stopped.is_set():
            drain_ms = int(1000 * self.settings.worker.drain.total_seconds())
            log.info(
                "worker.draining",
                worker=self.name,
                signal=signal_name,
                in_flight=self.in_flight,
                drain_ms=drain_ms,
            )
        self._stopped.set()
        self._changed.set()

    def reload(self, settings: Settings) -> None:
        """Go on with another configuration. Redis and the log stay as they were at the start."""
        kept = {"redis": self.file.redis, "log": self.file.log}
        self.file = settings.model_copy(update=kept)
        self.liveness.is_reload_refused = False
        self._is_reloading = True
        self._changed.set()

    def stale_accounts(self, provider: str) -> Collection[str]:
        """Return the stale accounts of a provider, as far as this worker knows."""
        return [*self.configured.report.stale_accounts(provider)] if self.configured else ()

    @property
    def differences(self) -> Sequence[Difference]:
        """What other workers have different under the same name."""
        return self.agreement.differences if self.agreement else ()

    @property
    def is_reloading(self) -> bool:
        """Whether the worker was given a configuration that is not in force yet."""
        return self._is_reloading

    @property
    def stands_by(self) -> bool:
        """Whether the worker stands by until Redis is in this version's layout."""
        return self._stands_by

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    @property
    def in_flight(self) -> int:
        return self.loop.in_flight if self.loop else 0

    async def run(self, *, once: bool = False) -> None:
        """Work until `stop`, or poll everything `once`. Raises StoreError if Redis cannot be used."""
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            if opened := await self._until_open(stack):
                await self._work(opened, once=once)
        log.info("worker.stopped", worker=self.name, duration_ms=round(1000 * (time.monotonic() - started)))

    async def _work(self, opened: Opened, *, once: bool) -> None:
        """Work while Redis is in this version's layout, and stand by while it is not."""
        schedule, health, _ = opened
        self._on_started()
        workers = Workers(schedule.pipe, Keys(self.settings.redis.namespace))
        present = Present(self.name, workers, self.counters, since_ms=schedule.now_ms())
        standby = StandBy(self.name, schedule, health, present)
        async with asyncio.TaskGroup() as background:
            beside = [
                background.create_task(schedule.pipe.run(), name="pipe"),
                background.create_task(schedule.pipe.run(), name="pipe"),
                background.create_task(self.liveness.measure_lag(), name="lag"),
                background.create_task(present.run(), name="presence"),
                background.create_task(_keep_judged(schedule.pipe, health), name="judge"),
            ]
            try:
                is_over = False
                while not is_over and not self.is_stopped:
                    self._stands_by = True
                    ready = standby.until_ready(lambda: self.file, once=once)
                    try:
                        await self._unless_stopped(ready, name="layout")
                    except StoreError:
                        await present.leave()
                        raise
                    self._stands_by = False
                    if not self.is_stopped:
                        await self._serve(opened, present, once=once)
                        is_over = once
                await present.leave()
            finally:
                for task in beside:
                    task.cancel()

    async def _serve(self, opened: Opened, present: Present, *, once: bool) -> None:
        """Claim and do work, until stopped or until Redis is to leave this version's layout."""
        schedule, health, bounds = opened
        log.info(
            "worker.started",
            worker=self.name,
            version=__version__,
            accounts=len(self.file.account_by_name),
            subscriptions=len(self.file.subscription_by_name),
            providers=len(self.file.provider_by_name),
        )
        keys = Keys(self.settings.redis.namespace)
        self.agreement = Agreement(present, Configurations(schedule.pipe, keys), now_ms=schedule.now_ms)
        configured = Configured(self.file, schedule, health, self.counters, self.agreement, bounds)
        keeper = Keeper(schedule.pipe, keys, self.name, bounds)
        upkeep = Upkeep(configured, schedule, health, present, self.agreement, keeper, self._on_enrolling)
        self.configured, self.followed = configured, upkeep.followed
        self.verification = upkeep.verification
        async with configured, asyncio.TaskGroup() as background:
            self.loop = configured.loop
            beating = background.create_task(self._beat(schedule, configured.loop), name="heartbeat")
            try:
                await (self._run_once(upkeep) if once else self._run(upkeep, Layout(schedule.pipe, keys)))
                upkeep.report_at_once()
            finally:
                beating.cancel()

    async def _until_open(self, stack: AsyncExitStack) -> Opened | None:
        """Open Redis, however long that takes. Returns None if the worker is stopped before."""
        self.opened = await self._unless_stopped(self._open(stack), name="open")
        stack.callback(setattr, self, "opened", None)  # before Redis is closed: it must not be asked any more
        return self.opened

    async def _unless_stopped(self, doing: Coroutine[Any, Any, T], *, name: str) -> T | None:
        """Do something that may take long. It has ended when this returns. Returns None if the worker is
        stopped before it is done."""
        task = asyncio.create_task(doing, name=name)
        stopped = asyncio.create_task(self._stopped.wait(), name="stopped")
        try:
            await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            while not task.done():  # redis-py may swallow a cancellation
                task.cancel()
                await asyncio.wait((task,), timeout=_CANCEL_AGAIN_S)
        return None if task.cancelled() else task.result()

    async def _open(self, stack: AsyncExitStack) -> Opened:
        store = await stack.enter_async_context(open_store(self.settings.redis))
        health, found = StoreHealth(store.fix), await guarantee_of_all(store.pipe)
        health.promised(found)
        await check_rights(store.pipe, store.keys)
        schedule = Schedule(store.pipe)
        await schedule.read_clock()
        self.liveness.note_clock(1000 * time.time(), schedule.now_ms())
        await Layout(store.pipe, store.keys).read()  # refuses what another version laid out
        return Opened(schedule, health, Bounds.within(found.memory))

    async def _run(self, upkeep: Upkeep, layout: Layout) -> None:
        """Run one configuration after the other, until this is over. Then finish what is in hand."""
        loop, is_ready = upkeep.loop, True

        async def look() -> None:
            nonlocal is_ready
            is_ready = (await layout.read()).is_ready
            if not is_ready:
                self._changed.set()

        async with self._draining(loop) as group:
            try:
                await upkeep.begin(lambda: self.file, self._stopped)
            except LayoutAwaited:
                return
            if not self._stopped.is_set():
                group.create_task(loop.run(), name="loop")
                for wait_s, affected, act in (*upkeep.chores, (LOOK_S, "layout", look)):
                    group.create_task(loop.every(wait_s, affected, act), name=affected)
            while is_ready and not self._stopped.is_set():
                await upkeep.reload(self.file, self._stopped)
                self._is_reloading = False
                await self._changed.wait()
                self._changed.clear()

    async def _run_once(self, upkeep: Upkeep) -> None:
        """Poll every account once, deliver what is due, and end. Raises StoreError."""
        async with self._draining(upkeep.loop) as group:
            await upkeep.begin_once(self.file)
            waiting = group.create_task(upkeep.give_up_on_redis(), name="store")
            running = group.create_task(upkeep.loop.run(), name="loop")
            finishing = group.create_task(upkeep.finish(), name="finish")
            running.add_done_callback(lambda _: self._changed.set())
            while not running.done() and not self._stopped.is_set():
                await self._changed.wait()
                self._changed.clear()
            waiting.cancel()
            finishing.cancel()
            try:
                await upkeep.keep_backlogs()
            except StoreError as error:  # everything was polled and delivered; the next run looks again
                assert self.opened
                await self.opened.health.failed(error)
        self.has_read_all = upkeep.has_read_all

    @asynccontextmanager
    async def _draining(self, loop: Loop) -> AsyncIterator[asyncio.TaskGroup]:
        """After the block, let work that was started go on for as long as a drain may take."""
        left = 0

        def count() -> None:
            nonlocal left
            left = self.in_flight

        try:
            async with asyncio.timeout(None) as deadline, asyncio.TaskGroup() as group:
                yield group
                loop.stop()
                now = asyncio.get_running_loop()
                end_at = now.time() + self.settings.worker.drain.total_seconds()
                now.call_at(end_at, count)
                deadline.reschedule(end_at)
        except TimeoutError:
            log.warning("worker.cut_off", worker=self.name, in_flight=left)

    async def _beat(self, schedule: Schedule, loop: Loop) -> None:
        """Log one line a minute: the worker lives, and what it did since the last one."""
        reader = Reader(schedule.pipe, Keys(self.settings.redis.namespace))

        async def beat(counts: Mapping[str, int]) -> None:
            self.liveness.note_clock(1000 * time.time(), schedule.now_ms())
            due = None  # if Redis does not answer in time
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_COUNT_S):
                    due = await reader.count_due(self.settings.provider_by_name, now_ms=schedule.now_ms())
            log.info(
                "worker.heartbeat",
                worker=self.name,
                **counts,
                due=due,
                in_flight=self.in_flight,
                lag_ms=round(1000 * self.liveness.end_of_minute()),
                rss_mb=round(rss_mb(), 1),
                dropped_lines=self.liveness.dropped_lines(),
            )

        after = copy(self.counters)
        while not await pause(self._stopped, HEARTBEAT_S):
            # What happens while `due` is counted is part of the next line.
            before, after = after, copy(self.counters)
            await loop.survive(beat(after.since(before)), None, "heartbeat")

    @property
    def has_begun(self) -> bool:
        """Whether the worker's loops have begun, or it stands by. Before that, it schedules the accounts."""
        self._has_begun = self._has_begun or bool(self._turned_at_by_loop())
        return self._has_begun or self._stands_by

    def _turned_at_by_loop(self) -> Mapping[str, float]:
        """When each loop last turned. While the worker drains, no loop has to turn."""
        return self.loop.turned_at_by_name if self.loop and not self.is_stopped else {}


async def _keep_judged(pipe: Pipe, health: StoreHealth) -> None:
    """Judge the server at intervals, and as soon as there is a new connection, until cancelled."""
    wait_s = JUDGE_S
    while True:
        await pause(pipe.verdict.has_connected, wait_s)
        with survived("store"):
            wait_s = await health.judge(pipe)
        await asyncio.sleep(_JUDGED_S)
