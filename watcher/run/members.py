"""This worker among the others: it notes that it runs, stands by until Redis is in its layout, and keeps the
schedules in line with its accounts."""

import asyncio
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple

from watcher import __version__
from watcher.engine.loop import survived
from watcher.observe.counters import Counters
from watcher.observe.log import log
from watcher.pause import compute, in_order, pause
from watcher.settings import Settings
from watcher.store.exceptions import ConfigurationRefused, LayoutAwaited, StoreError, StoreUnreachable
from watcher.store.health import StoreHealth
from watcher.store.keys import Keys
from watcher.store.layout import LAYOUT, Layout, Numbers, check_numbers, in_the_way
from watcher.store.members import FORGET_ACCOUNT_AFTER, Presence, Roster, Workers
from watcher.store.move import Mover
from watcher.store.schedule import Schedule

EVERY_S = 10.0
_SHORTEST_S = 1.0
"""The shortest time over which a rate is computed."""

_LEAVE_S = 1.0
"""A worker that ends waits no longer than this for a Redis that hangs."""

LOOK_S = 1.0
"""How often a worker reads the layout, while it stands by and while it works."""

_SAY_S = 60.0
_MOST_NAMES = 8

_TO_BE_FORGOTTEN = (
    "not configured any more: not polled, and forgotten in "
    f"{FORGET_ACCOUNT_AFTER.total_seconds() / 60:.0f} minutes unless they are put back"
)

_FORGET_S = 30.0
"""Between two looks for accounts to forget, which were taken out of the configuration."""

_PATIENCE_S = 30.0
"""How long `run --once` waits while the data in Redis is moved."""


class Present:
    """What other workers see of this one, from `run` until it `leaves`."""

    def __init__(self, worker: str, workers: Workers, counters: Counters, *, since_ms: int) -> None:
        self._workers = workers
        self._counters = counters
        self._pace = Pace()
        me = Presence(worker, socket.gethostname(), os.getpid(), __version__, since_ms, {})
        self._presence = me._replace(layouts=(LAYOUT,))
        self._leaving = asyncio.Event()
        self._gone = asyncio.Event()

    async def run(self) -> None:
        """Note every few seconds that the worker lives, until it leaves."""
        while not self._leaving.is_set():
            await self._note()
            await pause(self._leaving, EVERY_S)
        with suppress(StoreError):
            await self._workers.leave(self._presence.worker)
        self._gone.set()

    async def leave(self) -> None:
        """Note that the worker ends in order, so that it does not count as lost."""
        self._leaving.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await self._gone.wait()

    @property
    def roster(self) -> str:
        return self._presence.roster

    async def has_list(self, roster: str) -> None:
        """Note at once which list of accounts the worker has from now on."""
        self._presence = self._presence._replace(roster=roster)
        await self._note()

    async def runs(self, configuration: str) -> None:
        """Note at once which configuration the worker runs from now on."""
        self._presence = self._presence._replace(configuration=configuration)
        await self._note()

    async def stands_by(self, *, is_so: bool) -> None:
        """Note whether the worker stands by until Redis is in its layout. That it works is noted on each
        call, because the worker that moves the data reads it. Raises StoreError."""
        if is_so and self._presence.stands_by:
            return
        self._presence = self._presence._replace(stands_by=is_so)  # first, because `run` notes it as well
        with suppress(ConfigurationRefused):  # no right to note itself
            await self._workers.note(self._presence)

    async def others(self, now_ms: int) -> list[Presence]:
        """The other workers that run. Raises StoreError."""
        workers = await self._workers.read()
        return [one for one in workers if one.worker != self._presence.worker and one.is_there(now_ms)]

    async def other_lists(self, now_ms: int) -> set[str]:
        """The lists of accounts of other workers, as far as they noted them. Raises StoreError."""
        try:
            return {one.roster for one in await self.others(now_ms)}
        except ConfigurationRefused:  # no right to look
            return set()

    async def _note(self) -> None:
        rates = self._pace.per_second(self._counters.by_request, time.monotonic())
        with survived("presence"), suppress(StoreError):  # the loop reports it
            await self._workers.note(self._presence._replace(requests_per_second=rates))


class StandBy:
    """One worker beside its store. Methods raise StoreError."""

    def __init__(self, worker: str, schedule: Schedule, health: StoreHealth, present: Present) -> None:
        self._worker = worker
        self._schedule = schedule
        self._health = health
        self._present = present
        self._pipe = schedule.pipe

    async def until_ready(self, settings: Callable[[], Settings], *, once: bool) -> None:
        """Wait until this worker may work. With `once`, raises LayoutAwaited if waiting would not help, and
        StoreUnreachable if other workers must end first."""
        keys = Keys(settings().redis.namespace)
        layout, workers = Layout(self._pipe, keys), Workers(self._pipe, keys)
        began_at, say_at = time.monotonic(), 0.0
        while True:
            try:
                numbers = await layout.read()
                await self._present.stands_by(is_so=not numbers.is_ready)
                if numbers.is_ready and (await layout.read()).is_ready:
                    return  # after noting that this worker works, too: a mover reads both
                waits_for = in_the_way(await workers.read(), numbers.target, self._schedule.now_ms())
                if once and not numbers.is_ready:
                    _give_up(numbers, waits_for, time.monotonic() - began_at)
                if (now := time.monotonic()) >= say_at and not numbers.is_ready:
                    say_at = now + _SAY_S
                    self._say(numbers, waits_for, now - began_at)
                if await self._move(settings(), keys, numbers, waits_for):
                    continue
                self._health.answered()
            except StoreUnreachable as error:
                if once:
                    raise
                await asyncio.sleep(await self._health.failed(error))
                continue
            await asyncio.sleep(LOOK_S)

    async def _move(
        self, settings: Settings, keys: Keys, numbers: Numbers, waits_for: Sequence[Presence]
    ) -> bool:
        """Move the data to this layout if that may be done now. Returns whether this worker finished it."""
        if numbers.rests and (numbers.at == numbers.wanted or waits_for):
            return False
        started = time.monotonic()
        mover = Mover(
            self._pipe,
            keys,
            self._worker,
            accounts=await compute(names_by_provider, settings),
            subscriptions=settings.subscription_by_name,
        )
        counts = await mover.advance()
        if counts is None:
            return False
        log.info(
            "layout.moved",
            worker=self._worker,
            layout=numbers.target,
            accounts=counts.accounts,
            records=counts.records,
            dead_letters=counts.dead_letters,
            deliveries=counts.deliveries,
            duration_ms=round(1000 * (time.monotonic() - started)),
        )
        return True

    def _say(self, numbers: Numbers, waits_for: Sequence[Presence], since_s: float) -> None:
        try:
            check_numbers(numbers)
        except LayoutAwaited as awaited:
            log.info(
                "layout.awaited",
                worker=self._worker,
                layout=numbers.at,
                reason=str(awaited),
                workers=[f"{one.worker} ({one.version})" for one in waits_for[:_MOST_NAMES]],
                duration_ms=round(1000 * since_s),
            )


def _give_up(numbers: Numbers, waits_for: Sequence[Presence], since_s: float) -> None:
    """Raise what `run --once` ends with if Redis will not be in this version's layout soon."""
    if numbers.wanted != LAYOUT:
        check_numbers(numbers)
    if numbers.rests and waits_for:
        names = ", ".join(f"{one.worker} of version {one.version}" for one in waits_for[:_MOST_NAMES])
        raise StoreUnreachable(
            f"Redis is in layout {numbers.at}, and is moved once these workers have ended: {names}; end "
            "them, and run again"
        )
    if since_s > _PATIENCE_S:
        raise StoreUnreachable("Redis is being moved to another layout: run again when that is done")


class Pace:
    """The rate at which counts rise, averaged over the last minute. The caller passes the time."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Counter[str]]] = deque(maxlen=1 + round(60 / EVERY_S))

    def per_second(self, counts: Counter[str], now: float) -> Mapping[str, float]:
        """Take the current counts. Returns by how much each rises a second; nothing at the first call."""
        self._seen.append((now, counts.copy()))
        then, before = self._seen[0]
        if now < then + _SHORTEST_S:
            return {}
        return {name: round((count - before[name]) / (now - then), 2) for name, count in counts.items()}


class Enrolment:
    """Puts the accounts of a configuration, and those `beside` it in the directory, on the schedules. Methods
    raise StoreError."""

    def __init__(
        self,
        accounts: "Accounts",
        schedule: Schedule,
        roster: Roster,
        present: Present,
        *,
        has_neighbours: Callable[[], bool] = lambda: False,
        beside: Callable[[], Mapping[str, Sequence[str]]] = dict,
        done: Callable[[int, int], object] = lambda part, parts: None,
    ) -> None:
        self._done = done
        self._has_neighbours = has_neighbours
        self._beside = beside
        self._of_file, self._list = accounts
        self._schedule = schedule
        self._roster = roster
        self._present = present
        self._owes_removal = False
        self._answered: str | None = None
        self._forget_at = 0.0

    async def begin(self) -> bool:
        """Put the accounts on the schedules. Returns whether no other worker did so before in this state."""
        await self._present.has_list(self._list)
        await self._enroll()
        return await self._roster.note_enrolled(self._list)

    async def keep(self) -> bool:
        """Check every second whether the schedules still match, and correct them. Returns whether this worker
        is the first to notice that the state was lost."""
        enrolled = await self._roster.enrolled()
        if enrolled is None:
            return await self.begin()
        if time.monotonic() >= self._forget_at:
            await self._forget()
        if enrolled not in (self._list, self._answered):  # another worker came with another list
            self._answered = enrolled
            await self._enroll()
        elif self._owes_removal and await self._is_agreed():
            await self.begin()
        return False

    async def _enroll(self) -> None:
        self._owes_removal = not await self._is_agreed()
        beside = self._beside()
        names = {
            provider: [*self._of_file.get(provider, ()), *beside.get(provider, ())]
            for provider in {**self._of_file, **beside}
        }
        enrolled = await self._roster.enroll(
            names, now_ms=self._schedule.now_ms(), remove=not self._owes_removal, done=self._done
        )
        if gone := enrolled.gone:
            log.warning(
                "accounts.removed",
                accounts=len(gone),
                names=sorted(gone)[:_MOST_NAMES],
                reason=_TO_BE_FORGOTTEN,
            )
        await self._forget()

    async def _forget(self) -> None:
        self._forget_at = time.monotonic() + _FORGET_S
        if forgotten := await self._roster.forget(self._schedule.now_ms()):
            log.info("accounts.forgotten", accounts=forgotten)

    async def _is_agreed(self) -> bool:
        """Say whether this list is the only one: a reload may have brought another one. A worker of another
        deployment may only be restarting: its accounts are not to be forgotten by this one."""
        lists = {self._present.roster, *await self._present.other_lists(self._schedule.now_ms())}
        return lists == {self._list} and not self._has_neighbours()


class Accounts(NamedTuple):
    """The names of the accounts of each provider, and a digest of this list."""

    names_by_provider: Mapping[str, Sequence[str]]
    digest: str

    @classmethod
    def of(cls, settings: Settings) -> "Accounts":
        """List the accounts of a configuration. 100,000 of them need a thread."""
        names = names_by_provider(settings)
        return cls(names, digest(names))


def names_by_provider(settings: Settings) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {name: [] for name in settings.provider_by_name}
    for account in settings.account_by_name.values():
        names.setdefault(account.provider, []).append(account.name)  # a command may know nothing but accounts
    return names


def digest(names_by_provider: Mapping[str, Sequence[str]]) -> str:
    """Make a digest of a list of accounts: the same in all workers that have the list."""
    parts = (f"{provider} {name}" for provider, names in names_by_provider.items() for name in names)
    return blake2b("\n".join(in_order(parts)).encode(), digest_size=8).hexdigest()
