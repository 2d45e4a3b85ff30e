"""The loops of one configuration. A reload starts a new generation and stops the one before it.

Refuses to outlive its configuration: connections, limits and the egress policy belong to it, so that a
stricter policy never meets an open connection of the time before.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

from watcher.delivery.egress import Policy
from watcher.delivery.loop import DeliverLoop
from watcher.delivery.post import Poster, Target
from watcher.delivery.restraint import Restraint
from watcher.engine.look import Look
from watcher.journal.delivery import Delivery
from watcher.journal.interest import Interest
from watcher.journal.notices import paused
from watcher.observe.counters import Counters
from watcher.observe.log import log
from watcher.pause import pause
from watcher.polling.loop import DAMAGED_S, PollLoop
from watcher.polling.poll import Poller
from watcher.providers.client import ProviderClient
from watcher.providers.registry import provider_class
from watcher.resolver import CurrentResolver
from watcher.run.agreement import LOOK_S as AGREE_S
from watcher.run.agreement import Agreement
from watcher.run.descriptors import share_out
from watcher.run.enrolment import Enrolment
from watcher.run.names import Names
from watcher.run.presence import Present
from watcher.settings import AccountSettings, Settings
from watcher.store.configurations import Configurations
from watcher.store.due import Due, DueIndex
from watcher.store.exceptions import StoreError, StoreUnreachable
from watcher.store.health import StoreHealth
from watcher.store.keys import Keys
from watcher.store.polls import Polls
from watcher.store.queues import Queues
from watcher.store.roster import Roster
from watcher.store.schedule import Schedule
from watcher.store.standings import Standing, Standings
from watcher.store.survey import Survey

_LOOK_S = 1.0
"""How often it is looked whether the server still knows of the accounts: so late they start anew."""

_PATIENCE_S = 30.0
"""How long a run of all accounts waits for a server that was there when it began."""


class Generation:
    """Polls and delivers by one configuration, from `run` until `stop`.

    `has_read_all`: whether `run_once` has read every account but those that another worker had in hand, and
    one of them at least.
    """

    def __init__(
        self,
        settings: Settings,
        schedule: Schedule,
        health: StoreHealth,
        counters: Counters,
        present: Present,
        *,
        agreement: Agreement | None = None,
        before: Settings | None = None,
    ) -> None:
        self._keys = keys = Keys(settings.redis.namespace)
        self.settings = settings
        self._schedule = schedule
        self._health = health
        self._counters = counters
        self._before = before
        self._polls = Polls(schedule, keys)
        self._queues = Queues(schedule, keys)
        self._index = DueIndex(schedule, keys)
        self._roster = Roster(schedule.pipe, keys)
        self._agreement = agreement or Agreement(
            present, Configurations(schedule.pipe, keys), now_ms=schedule.now_ms
        )
        self._enrolment = Enrolment(
            settings,
            schedule,
            self._roster,
            present,
            has_neighbours=lambda: self._agreement.has_neighbours,
        )
        self._standings = Standings(schedule.pipe, keys)
        self._policy = Policy(
            allow=settings.egress.allow, allow_http=settings.egress.allow_http, nat64=settings.egress.nat64
        )
        self._shares = share_out(len(settings.provider_by_name))
        self._loops: list[PollLoop | DeliverLoop] = []
        self._stopped = asyncio.Event()
        self._in_hand: set[str] = set()
        self.has_read_all = False

    async def run(self) -> None:
        """Run the loops until `stop`, and the work in flight to its end."""
        async with AsyncExitStack() as stack:
            deliver_loop, poll_loops = await self._make_loops(stack)
            self._loops = [deliver_loop, *poll_loops]
            await self._until_enrolled()
            await self._ask_again(poll_loops)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_names(), name="names")
                group.create_task(self._make_moved_due(deliver_loop), name="make_retries_due")
                group.create_task(self._keep_enrolled(), name="enroll")
                group.create_task(self._look(deliver_loop, poll_loops).run(self._stopped), name="look")
                group.create_task(self._keep_agreed(deliver_loop), name="agree")
                for loop in self._loops:
                    group.create_task(loop.run(), name=loop.name)

    async def run_once(self) -> None:
        """Poll every account once, deliver what is due, and end. Raises StoreError."""
        async with AsyncExitStack() as stack:
            deliver_loop, poll_loops = await self._make_loops(stack)
            self._loops = [deliver_loop, *poll_loops]
            await self._agreement.begin(self.settings)
            await self._enrolment.begin()
            for loop in poll_loops:
                loop.finish(await self._make_due(loop.provider))
            if self._stopped.is_set():
                self.stop()  # the loops were made meanwhile
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(self._give_up_on_the_store(), name="store")
                delivering = group.create_task(deliver_loop.run(), name="deliver")
                async with asyncio.TaskGroup() as polling:
                    polling.create_task(self._look(deliver_loop, poll_loops).run(self._stopped), name="look")
                    polls = [polling.create_task(loop.run(), name=loop.name) for loop in poll_loops]
                    await asyncio.gather(*polls)
                    self._stopped.set()
                deliver_loop.finish()
                await delivering
                waiting.cancel()
        unread = {name for loop in poll_loops for name in loop.unread}
        has_read = len(unread) < len(self.settings.account_by_name)
        self.has_read_all = not unread or (has_read and unread <= self._in_hand)

    async def _make_due(self, provider: str) -> set[str]:
        """Let all accounts be polled now but those that another worker has in hand, and name these."""
        accounts = self._enrolment.names_by_provider[provider]
        in_hand = await self._roster.make_due(provider, accounts, now_ms=self._schedule.now_ms())
        for name in sorted(in_hand):
            log.info("poll.left", account=name, provider=provider)
        self._in_hand |= in_hand
        return in_hand

    async def _give_up_on_the_store(self) -> None:
        """Whoever runs this every minute must not have a hundred of it wait for the same server."""
        while self._health.down_s < _PATIENCE_S:  # noqa: ASYNC110 - how long it has been down
            await asyncio.sleep(_LOOK_S)
        raise self._health.trouble or StoreUnreachable("the store does not do its part")

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopped.set()
        for loop in self._loops:
            loop.stop()

    def forsake(self, subscriptions: Iterable[str]) -> None:
        """Deliver nothing more to these: they are gone from the configuration, or from their URL."""
        for loop in self._loops:
            if isinstance(loop, DeliverLoop):
                for name in subscriptions:
                    loop.forsake(name)

    @property
    def in_flight(self) -> int:
        return sum(loop.in_flight for loop in self._loops)

    @property
    def turned_at_by_loop(self) -> dict[str, float]:
        """When each loop that runs last began a turn, on the monotonic clock."""
        return {loop.name: loop.turned_at for loop in self._loops if loop.turned_at is not None}

    async def _until_enrolled(self) -> None:
        while not self._stopped.is_set():
            try:
                await self._agreement.begin(self.settings)
                await self._enrolment.begin()
            except StoreUnreachable as trouble:
                await asyncio.sleep(await self._health.failed(trouble))
            except Exception as error:
                if self._before is None:
                    raise  # at the start of a worker somebody is looking
                if isinstance(error, StoreError):
                    await self._health.failed(error)
                else:
                    log.exception("bug", affected="enrolled accounts")
                return  # who is on the roster is polled all the same
            else:
                return
        self.stop()  # the loops were made meanwhile, and must not start

    async def _ask_again(self, poll_loops: Sequence[PollLoop]) -> None:
        """What only a person can mend may have been mended: it is asked for at once, and not in minutes."""
        survey, now_ms = Survey(self._schedule.pipe, self._keys), self._schedule.now_ms()
        for loop in poll_loops:
            try:
                refused = loop.causes.remember(await survey.failing(loop.provider), now_ms=now_ms)
                await self._roster.make_due(loop.provider, refused, now_ms=now_ms)
            except StoreError:
                return  # then it is asked for when it is due
            except Exception:  # a damaged key, say
                log.exception("bug", affected="refused polls")

    async def _keep_enrolled(self) -> None:
        """Let every account start anew when the server has lost its state: baselines, and no events."""
        while not await pause(self._stopped, _LOOK_S):
            try:
                lost = sum(loop.has_lost() for loop in self._loops if isinstance(loop, PollLoop))  # asks all
                # Whoever misses a schedule may be the first to see that everything is gone.
                if await self._enrolment.keep() or (lost and await self._enrolment.begin()):
                    log.error("state.lost", accounts=len(self.settings.account_by_name))
            except StoreError as trouble:
                await self._health.failed(trouble)
            except Exception:  # a damaged key, say: no reason to end the worker
                log.exception("bug", affected="enrolled accounts")
                await pause(self._stopped, DAMAGED_S)

    async def _keep_agreed(self, deliver_loop: DeliverLoop) -> None:
        """Look now and then what other workers run, and deliver what was left to them when they are gone."""
        while not await pause(self._stopped, AGREE_S):
            try:
                rests = self._agreement.rests
                await self._agreement.look()
                for name in rests - self._agreement.rests:
                    await deliver_loop.make_due(name)
            except StoreUnreachable:
                continue  # the loops say so
            except Exception:  # a damaged key, say: it goes on as before
                log.exception("bug", affected="other workers")
                await pause(self._stopped, DAMAGED_S)

    async def _follow_names(self) -> None:
        """Look now and then whether names are looked up otherwise than before."""
        while not await pause(self._stopped, _LOOK_S):
            try:
                await self._names.look()
            except StoreError:
                continue  # the loops say so
            except Exception:
                log.exception("bug", affected="names")
                await pause(self._stopped, DAMAGED_S)

    async def _make_moved_due(self, deliver_loop: DeliverLoop) -> None:
        """What waits for a subscriber that has moved need not wait any longer."""
        old = self._before.subscription_by_name if self._before else {}
        for name, subscription in self.settings.subscription_by_name.items():
            if name in old and old[name].url != subscription.url:
                try:
                    await self._standings.resume(name)
                    await deliver_loop.make_due(name)
                except StoreError:
                    return  # then it is tried when its retry is due
                except Exception:  # damaged standings, say: deliveries go on by their retries
                    log.exception("bug", affected="make_due", subscription=name)

    async def _make_loops(self, stack: AsyncExitStack) -> tuple[DeliverLoop, list[PollLoop]]:
        resolver = CurrentResolver()
        stack.push_async_callback(resolver.close)
        poster = Poster(self._policy, resolver=resolver, keep=self._shares.kept)
        deliver_loop = self._deliver_loop(await stack.enter_async_context(poster))
        poll_loops = {
            name: await self._poll_loop(stack, name, deliver_loop, resolver)
            for name in self.settings.provider_by_name
        }
        self._names = Names(self.settings, self._policy, resolver, self._standings, deliver_loop, poll_loops)
        return deliver_loop, [*poll_loops.values()]

    def _look(self, deliver_loop: DeliverLoop, poll_loops: Iterable[PollLoop]) -> Look:
        loop_by_provider = {loop.provider: loop for loop in poll_loops}

        def tell(due: Due) -> None:
            if due.kind == "delivery":
                deliver_loop.due(due.shard, due.name)
            elif loop := loop_by_provider.get(due.name):
                loop.due(due.shard, due.for_s)

        return Look(self._index, [*loop_by_provider], self._health, tell)

    def _deliver_loop(self, poster: Poster) -> DeliverLoop:
        targets = {
            name: Target(subscription, self._policy)
            for name, subscription in self.settings.subscription_by_name.items()
        }
        restraint = Restraint(
            self._standings,
            now_ms=self._schedule.now_ms,
            alert=self._alert,
            most=self._shares.attempts,
        )
        return DeliverLoop(
            self._queues,
            self._schedule,
            poster,
            targets,
            restraint,
            self._health,
            self._counters,
            may_deliver=self._agreement.is_ours,
        )

    async def _alert(self, name: str, standing: Standing) -> None:
        """Tell the subscription's `alerts_to` that it was paused: for the same pause with the same bytes."""
        told = self.settings.subscription_by_name
        alerts_to = told[name].alerts_to if name in told else None
        if alerts_to in told:
            event = paused(name, standing.reason, standing.since_ms, now_ms=standing.paused_at_ms)
            delivery = Delivery(event.id, event.type, event.sequence, event.body(alerts_to, None))
            await self._queues.enqueue(alerts_to, name, [delivery])

    async def _poll_loop(
        self, stack: AsyncExitStack, name: str, deliver_loop: DeliverLoop, resolver: CurrentResolver
    ) -> PollLoop:
        settings = self.settings.provider_by_name[name]

        async def wait_turn() -> None:
            spacing_ms = 1000 * client.spacing_s
            wait_ms = await self._polls.take_turns(name, 1, spacing_ms=spacing_ms)
            await asyncio.sleep(wait_ms / 1000)

        def count() -> None:
            self._counters.by_request[name] += 1

        provider = provider_class(settings.kind)(settings)
        connections = self._shares.of_a_provider
        client = ProviderClient(
            provider,
            settings,
            wait_turn=wait_turn,
            on_request=count,
            connections=connections,
            resolver=resolver,
        )
        accounts: dict[str, AccountSettings] = {
            account.name: account
            for account in self.settings.account_by_name.values()
            if account.provider == name
        }
        poller = Poller(
            settings,
            await stack.enter_async_context(client),
            self._polls,
            Interest(self.settings.subscription_by_name),
            self._counters,
            most_requests=max(map(client.cost, accounts.values()), default=1),
            probe_account=min(accounts, key=lambda name: (accounts[name].interval, name), default=""),
            now_ms=self._schedule.now_ms,
            wake=deliver_loop.wake,
            neighbours=self._agreement,
        )
        return PollLoop(poller, self._polls, accounts, self._health, self._agreement)
