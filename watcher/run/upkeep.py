"""Brings a worker in line with a configuration, beside workers that may have another one, and keeps it so."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from watcher.delivery.webhook import REFUSED, UNRESOLVED
from watcher.engine.dispatch import Key
from watcher.engine.loop import survived
from watcher.fields import as_written
from watcher.observe.log import Throttle, log
from watcher.pause import compute
from watcher.polling.work import ProviderPolls
from watcher.run.agreement import LOOK_S as AGREE_S
from watcher.run.agreement import Agreement
from watcher.run.configured import Configured
from watcher.run.directory import FOLLOW_S, Followed
from watcher.run.edits import Editor, EditRefused
from watcher.run.members import Accounts, Enrolment, Present
from watcher.run.verification import VERIFY_S, Verification
from watcher.settings import MAX_BACKLOG, Settings
from watcher.store.directory import Directory
from watcher.store.exceptions import StoreError, StoreUnreachable
from watcher.store.health import StoreHealth
from watcher.store.keeper import Keeper
from watcher.store.keys import SHARDS, Keys
from watcher.store.members import Roster
from watcher.store.reader import Reader
from watcher.store.schedule import Schedule


class Names:
    """The host names of what is configured."""

    def __init__(self, configured: Configured) -> None:
        self._configured = configured
        self._changed: set[str] | None = None

    async def look(self) -> None:
        """Check whether the files have changed. Raises StoreError, and must then be called again.

        What a change may fix is made due one look later: a failure just before it must be settled first.
        """
        if self._changed is not None:
            await self._try_again(self._changed)
            self._changed = None
        resolver = self._configured.resolver
        await resolver.follow()
        self._changed = resolver.take_change()

    async def _try_again(self, hosts: set[str]) -> None:
        settings = self._configured.settings
        providers = [
            name
            for name, provider in settings.provider_by_name.items()
            if as_written(provider.base_url).raw_host in hosts
        ]
        for name in providers:
            if polls := self._configured.poll_work.by_provider.get(name):
                await polls.poller.make_due(*range(SHARDS))
        subscriptions = 0
        for name, target in [*self._configured.targets.items()]:
            was_open = await self._configured.breakers.try_again(name, UNRESOLVED, REFUSED)
            if was_open or target.url.raw_host in hosts:
                await self._configured.make_due(name)
                subscriptions += 1
        log.info("resolver.changed", providers=len(providers), subscriptions=subscriptions)


_LOOK_S = 1.0
"""How often a worker checks whether Redis still has the accounts. If not, they start again after this time at
most."""

_KEEP_NAMES_S = 60.0
"""Between two checks whether Redis still has the names of assets."""

_FINISHED_S = 0.02
"""Between two checks whether `run --once` has polled all accounts."""

_PATIENCE_S = 30.0
"""How long `run --once` waits for a Redis that was there when it started."""

_OVERFLOWS_S = 300.0
"""Between two log lines about what a subscription gave up: as often as an open breaker has a line."""

_LOST = (
    "Redis has none of the state that was there: it was restarted without its data, failed over to an empty "
    "server, or was flushed; what waited for receivers is gone, and they can compare the new baselines"
)


class Overflows:
    """Deliveries that were given up and are not logged yet. For each subscription and reason the first are
    logged at once, then those that have gathered. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._unsaid = Counter[tuple[str, str]]()
        self._next_at: dict[tuple[str, str], float] = {}

    def add(self, subscription: str, reason: str, deliveries: int) -> None:
        self._unsaid[subscription, reason] += deliveries

    def say(self, now: float, *, at_once: bool = False) -> None:
        """Log what is due, or everything."""
        for one, deliveries in [*self._unsaid.items()]:
            if at_once or now >= self._next_at.get(one, now):
                subscription, reason = one
                log.warning(
                    "subscription.overflowed", subscription=subscription, deliveries=deliveries, reason=reason
                )
                self._next_at[one] = now + _OVERFLOWS_S
                del self._unsaid[one]


class Upkeep:
    """One worker's configuration in force.

    `has_read_all`: whether a run of all accounts read at least one account, and all but those that another
    worker had in hand.
    """

    def __init__(
        self,
        configured: Configured,
        schedule: Schedule,
        health: StoreHealth,
        present: Present,
        agreement: Agreement,
        keeper: Keeper,
        on_enrolling: Callable[[int, int], object] = lambda part, parts: None,
    ) -> None:
        self._file: Settings | None = None
        self.loop = configured.loop
        self._keeper = keeper
        self._overflows = Overflows()
        self._shortage = Throttle()
        self._configured = configured
        self._schedule = schedule
        self._health = health
        self._present = present
        self._agreement = agreement
        keys = Keys(configured.settings.redis.namespace)
        directory = Directory(schedule.pipe, keys)
        self.followed = Followed(
            directory, configured, agreement.neighbours, now_ms=schedule.now_ms, keeper=keeper
        )
        self.verification = Verification(
            schedule, keys, send=configured.send, note=self._note_verified, tell=self._tell_ping
        )
        self._directory = directory
        self._roster = Roster(schedule.pipe, keys)
        self._reader = Reader(schedule.pipe, keys)
        self._names = Names(configured)
        self._enrolment: Enrolment | None = None
        self._in_hand: set[str] = set()
        self._on_enrolling = on_enrolling

    @property
    def chores(self) -> Sequence[tuple[float, str, Callable[[], Awaitable[None]]]]:
        """The periodic jobs beside the work: interval, name, function."""
        return [
            (FOLLOW_S, "directory", self._follow),
            (FOLLOW_S, "older keys", self.followed.encrypt_again),
            (VERIFY_S, "verification", self._verify),
            (_LOOK_S, "enrolled accounts", self._keep_enrolled),
            (AGREE_S, "other workers", self._keep_agreed),
            (_LOOK_S, "names", self._names.look),
            (_LOOK_S, "breakers", self._refresh),
            (_LOOK_S, "backlogs", self.keep_backlogs),
            (_KEEP_NAMES_S, "asset names", self._configured.polls.names.keep),
            (_LOOK_S, "stale accounts", self._look_stale),
            (_LOOK_S, "reports", self._configured.report.look),
        ]

    async def begin(self, settings: Callable[[], Settings], stopped: asyncio.Event) -> None:
        """Start with the first configuration, however long Redis takes. Raises what is wrong with it."""
        while not stopped.is_set():
            given = settings()
            try:
                in_force = await self._join(given)
            except StoreUnreachable as error:
                await asyncio.sleep(await self._health.failed(error))
            else:
                await self._configured.add(in_force)
                await self._learn_pauses()
                await self._follow_moved()
                await self.loop.survive(self._ask_again(), None, "rejected polls")
                return

    async def reload(self, settings: Settings, stopped: asyncio.Event) -> None:
        """Apply another file. What did not change goes on meanwhile."""
        if settings is self._file:
            return
        async with self.followed.reloading():
            in_force = await self.followed.lay_beside(settings)
            await self._configured.drop(in_force)
            await self._persist(self._agreement.begin, settings, "other workers", stopped)
            await self._configured.add(in_force)  # before enrolment: an unknown account is not polled
            await self._persist(self._enrol, settings, "enrolled accounts", stopped)
            self._file = settings
        await self._follow_moved()
        await self.loop.survive(self._ask_again(), None, "rejected polls")

    async def _persist(
        self,
        act: Callable[[Settings], Awaitable[None]],
        settings: Settings,
        affected: str,
        stopped: asyncio.Event,
    ) -> None:
        """Do one part of a reload, and again while Redis is away. What Redis refuses stays undone: the
        accounts on the schedule are polled all the same."""
        while not stopped.is_set():
            try:
                await self.loop.survive(act(settings), None, affected)
            except StoreUnreachable as error:
                await asyncio.sleep(await self._health.failed(error))
                continue
            except StoreError as error:
                await self._health.failed(error)
            return

    async def begin_once(self, settings: Settings) -> None:
        """Make all accounts due, except those that another worker has in hand. Raises StoreError."""
        in_force = await self._join(settings)
        await self._configured.add(in_force)
        await self._learn_pauses()
        await self._follow_moved()
        now_ms = self._schedule.now_ms()
        self._configured.polls.watched_since_ms = now_ms  # while no worker ran, no poll was late
        for polls in self._providers:
            in_hand = await self._roster.make_due(polls.provider, [*polls.accounts], now_ms=now_ms)
            for name in sorted(in_hand):
                log.info("poll.left", account=name, provider=polls.provider)
            self._in_hand |= in_hand
            polls.unread, polls.unpolled = {*polls.accounts}, {*polls.accounts} - in_hand

    async def _learn_pauses(self) -> None:
        """Read the breakers before anything is delivered, and report a pause that no worker has reported, to
        the `alerts_to` of the configuration in force."""
        with suppress(StoreError):  # then at the next look
            await self._configured.breakers.refresh()

    async def finish(self) -> None:
        """Once all accounts are polled, let the loop end as soon as nothing is due."""
        while any(polls.unpolled for polls in self._providers):  # noqa: ASYNC110 - of many
            await asyncio.sleep(_FINISHED_S)
        with suppress(StoreError):  # the next run looks again
            for polls in self._providers:
                await polls.look_stale_once((polls.unread or set()) - self._in_hand)
        self.loop.finish()

    async def keep_backlogs(self) -> None:
        """Keep backlogs and memory within their bounds, if no other worker does."""
        subscriptions = self._configured.settings.subscription_by_name
        most = {name: each.max_backlog for name, each in subscriptions.items()}
        kept = await self._keeper.look(dict.fromkeys(self._configured.inactive.locked, MAX_BACKLOG) | most)
        given_up = [
            (one.subscription, one.deliveries, f"more than max_backlog wait ({one.max_backlog:,})")
            for one in kept.overflows
        ]
        for relief in kept.reliefs:
            if relief.entries.total() or relief.deliveries.total():
                log.warning(
                    "store.relieved",
                    used_bytes=relief.used,
                    limit_bytes=relief.limit,
                    records=relief.entries["log"],
                    attempts=relief.entries["attempts"],
                    dead_letters=relief.entries["dead"],
                    deliveries=relief.deliveries.total(),
                )
            given_up += [(*one, "Redis is nearly full") for one in (+relief.deliveries).items()]
        for name, deliveries, reason in given_up:
            self._configured.counters.pushed_out[name] += deliveries
            self._overflows.add(name, reason, deliveries)
        now = time.monotonic()
        self._overflows.say(now)
        short = [relief for relief in kept.reliefs if relief.ours is not None]
        for relief in short:
            if streak := self._shortage.struck("memory", now):
                log.error(
                    "store.full",
                    used_bytes=relief.used,
                    limit_bytes=relief.limit,
                    our_bytes=relief.ours,
                    **streak._asdict(),
                )
        if not short:
            self._shortage.over("memory", now)

    async def give_up_on_redis(self) -> None:
        """Stop waiting for Redis: a job that runs every minute must not pile up."""
        while self._health.down_s < _PATIENCE_S:
            if self._health.refusal:
                raise self._health.refusal
            await asyncio.sleep(_LOOK_S)
        raise self._health.error or StoreUnreachable("Redis cannot be used now")

    @property
    def has_read_all(self) -> bool:
        unread = {name for polls in self._providers for name in polls.unread or ()}
        has_read = len(unread) < len(self._configured.settings.account_by_name)
        return not unread or (has_read and unread <= self._in_hand)

    def report_at_once(self) -> None:
        """Log what is still being gathered, because the worker ends."""
        self._configured.report.gathered(at_once=True)
        self._overflows.say(time.monotonic(), at_once=True)

    @property
    def _providers(self) -> Sequence[ProviderPolls]:
        return [*self._configured.poll_work.by_provider.values()]

    async def _join(self, file: Settings) -> Settings:
        """Compare the file with those of other workers, read the directory, and put the accounts of both on
        the schedules. Returns the settings in force."""
        await self._agreement.begin(file)
        await self.followed.begin(file)
        in_force = await self.followed.lay_beside(file)
        await self._enrol(file)
        self._file = file
        return in_force

    async def _enrol(self, settings: Settings) -> None:
        self._enrolment = Enrolment(
            await compute(Accounts.of, settings),
            self._schedule,
            self._roster,
            self._present,
            has_neighbours=lambda: self._agreement.has_neighbours,
            beside=self.followed.accounts_by_provider,
            done=self._on_enrolling,
        )
        await self._enrolment.begin()

    async def _ask_again(self) -> None:
        """Poll at once what failed for a reason that only a person can fix: the reload may have fixed it."""
        now_ms = self._schedule.now_ms()
        for polls in self._providers:
            try:
                failing = await self._reader.failing(polls.provider)
                if failing:
                    failures = self._configured.report.failures(polls.provider)
                    rejected = failures.remember(failing, now_ms=now_ms)
                    await self._roster.make_due(polls.provider, rejected, now_ms=now_ms)
            except StoreError:
                return  # then it is polled when it is due

    async def _follow_moved(self) -> None:
        """Make due what waits for subscribers with a new URL: why the old URL failed or was paused does not
        apply to the new one. What Redis does not do now is done at a later look."""
        for moved in (self._agreement.moved, self._configured.moved):
            for name in [*moved]:
                with suppress(StoreError), survived("make due", but=StoreError, subscription=name):
                    await self._configured.breakers.resume(name)
                    await self._configured.make_due(name)
                    moved.discard(name)

    async def _follow(self) -> None:
        """Take over what has changed in the directory."""
        await self.followed.follow()
        await self._follow_moved()
        await self.followed.take_away()

    async def _verify(self) -> None:
        """Ping the URLs that have not answered yet."""
        await self.verification.look(self.followed.unverified())

    async def _note_verified(self, name: str, url: str) -> bool:
        """Note that a URL has answered, unless its subscription is gone or has another URL by now."""
        if (keyring := self.followed.keyring) is None:
            return False
        editor = Editor(self._directory, keyring, self.followed, now_ms=self._schedule.now_ms)
        with suppress(EditRefused):
            return await editor.note_verified(name, url, by="verification")
        return False

    async def _tell_ping(self, name: str, error: str) -> None:
        """Let `watcher subscriptions` and the API say why a URL is not verified."""
        known = self.followed.get("subscription", name)
        is_unverified = known is not None and known.state == "unverified"
        await self._configured.breakers.note_ping(name, error if is_unverified else "")

    async def _keep_enrolled(self) -> None:
        """If Redis has lost its state, let every account start again: baselines, and no events."""
        assert self._enrolment
        has_lost = False
        for polls in self._providers:
            has_lost, polls.has_lost = has_lost or polls.has_lost, False
        # The worker that misses a schedule may be the first to notice that everything is gone.
        if await self._enrolment.keep() or (has_lost and await self._enrolment.begin()):
            log.error("state.lost", accounts=len(self._configured.settings.account_by_name), reason=_LOST)

    async def _keep_agreed(self) -> None:
        """Read what other workers run, and deliver what was left to them once they are gone."""
        inactive = self._agreement.neighbours.inactive
        await self._agreement.look()
        await self._follow_moved()
        for name in inactive - self._agreement.neighbours.inactive:
            await self._configured.make_due(name)

    async def _look_stale(self) -> None:
        """Check which accounts are stale; not while nothing may be committed, because nothing is polled
        then."""
        if not self._health.refusal:
            await self._configured.poll_work.look_stale()

    async def _refresh(self) -> None:
        for name in await self._configured.breakers.refresh():
            self.loop.wake_all(Key("delivery", name))
