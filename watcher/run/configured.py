"""What a worker polls and delivers by the configuration in force. A reload applies the difference."""

import asyncio
import resource
from collections import defaultdict
from collections.abc import Mapping, Set
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple

from watcher.delivery.breakers import SubscriptionBreakers
from watcher.delivery.chat import target_of
from watcher.delivery.egress import Policy
from watcher.delivery.queue import LONGEST_LEASE_MS, DeliveryWork
from watcher.delivery.sink import Attempt
from watcher.delivery.webhook import HttpTarget, WebhookSink
from watcher.engine.dispatch import Key
from watcher.engine.loop import InUse, Loop
from watcher.http.dial import CurrentResolver
from watcher.journal.events import Event
from watcher.journal.interest import Filters, Interest
from watcher.journal.notices import paused
from watcher.observe.counters import Counters
from watcher.pause import slowly
from watcher.polling.poll import MEMO_BYTES, Poller
from watcher.polling.report import PollReport
from watcher.polling.work import PollWork, ProviderPolls
from watcher.providers.contract import provider_class
from watcher.providers.http import CONNECTIONS as MOST_OF_A_PROVIDER
from watcher.providers.http import ProviderClient, provider_pool
from watcher.providers.kept import Memo
from watcher.run.agreement import Agreement
from watcher.settings import AccountSettings, ProviderSettings, Settings, SubscriptionSettings
from watcher.store.client import CONNECTIONS as OF_THE_STORE
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import in_parts
from watcher.store.polls import Polls
from watcher.store.queues import BOUNDS, Bounds, Breaker, Breakers, Queues
from watcher.store.schedule import DueIndex, Schedule
from watcher.store.state import Within

MOST_ATTEMPTS = 10_000
"""Enough for a thousand subscriptions that hang, with ten attempts each."""

_OF_THE_REST = 112
"""Descriptors for the log, clients of the API (64), DNS, and files that are read again."""

_FEWEST = 8


class Shares(NamedTuple):
    """How many attempts may be under way, how many connections are kept for the next ones, and how many one
    provider may have."""

    attempts: int
    kept: int
    of_a_provider: int


def share_out(providers: int) -> Shares:
    """Raise the limit of open files of this process, and share it out. The soft limit is often 1,024 for the
    sake of programs that call select(); this one does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OF_THE_REST + OF_THE_STORE + providers * MOST_OF_A_PROVIDER + MOST_ATTEMPTS * 3 // 2
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        with suppress(ValueError, OSError):  # then the limit stays as it was
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return shares(soft, providers)


def shares(limit: int, providers: int) -> Shares:
    """Share out `limit`: providers get at most a quarter of what Redis leaves, and subscribers the rest."""
    left = limit - _OF_THE_REST - OF_THE_STORE
    of_a_provider = max(1, min(MOST_OF_A_PROVIDER, left // 4 // max(1, providers)))
    kept = min(MOST_ATTEMPTS // 2, (left - providers * of_a_provider) // 3)
    kept = max(_FEWEST // 2, kept)
    return Shares(2 * kept, kept, of_a_provider)


_LAST_S = 0.5
"""An attempt that is answered within this time is settled even if its subscription or its URL is gone."""


_TARGETS_AT_ONCE = 100
"""Subscriptions taken over in one turn of the event loop: some milliseconds."""


class Inactive(NamedTuple):
    """Subscriptions of the directory that get events queued and are not delivered to by this worker: their
    URLs are `unverified`, or their records are `locked`, so that it knows only their filters."""

    unverified: Set[str] = frozenset()
    locked: Mapping[str, Filters] = {}


class Difference(NamedTuple):
    """What has changed in the directory: the new settings by name, or None for what was deleted."""

    accounts: Mapping[str, AccountSettings | None]
    subscriptions: Mapping[str, SubscriptionSettings | Filters | None]


class Configured:
    """Use as `async with`. First `drop` what another configuration does not have, then `add` what it has.

    What the directory changes meanwhile is a `change`. The caller lets one of these end before the next one
    begins, and updates `inactive` in place.
    """

    def __init__(
        self,
        settings: Settings,
        schedule: Schedule,
        health: StoreHealth,
        counters: Counters,
        agreement: Agreement,
        bounds: Bounds = BOUNDS,
        inactive: Inactive = Inactive(),  # noqa: B008  # empty, and only read
    ) -> None:
        keys = Keys(settings.redis.namespace)
        none: dict[str, object] = {"provider_by_name": {}, "account_by_name": {}, "subscription_by_name": {}}
        self.settings = settings.model_copy(update=none)
        self.polls, self.queues = Polls(schedule, keys, bounds), Queues(schedule, keys, bounds)
        self.resolver = CurrentResolver()
        self._provider_pool = provider_pool(self.resolver)
        self._schedule = schedule
        self._health = health
        self.counters = counters
        self._agreement = agreement
        self.interest = Interest({})
        self._memos = Within[Memo](MEMO_BYTES)
        self._open: set[AsyncExitStack] = set()
        self._policy: Policy | None = None
        self.inactive = inactive
        self.moved = set[str]()
        """Subscriptions that a change led to another URL. The caller removes those that it has dealt with."""
        self._left_url: dict[str, str] = {}
        self._leaving = set[Key]()
        self.breakers = SubscriptionBreakers(
            Breakers(schedule.pipe, keys),
            now_ms=schedule.now_ms,
            alert=self._alert,
            most=share_out(len(settings.provider_by_name)).attempts,
            workers=lambda: agreement.neighbours.workers,
            openings=counters.openings,
        )
        self.report = PollReport(counters, is_rejected=self.polls.is_failing)
        self.poll_work = PollWork(self.polls)
        stopped = asyncio.Event()
        self._delivery_work: DeliveryWork[HttpTarget] = DeliveryWork(
            self.queues,
            self.breakers,
            counters,
            stopped=stopped,
            neighbours=agreement.neighbours,
            now_ms=schedule.now_ms,
            failed=health.failed,
        )
        self.targets = self._delivery_work.targets
        self.loop = Loop(
            DueIndex(schedule, keys),
            health,
            {"poll": self.poll_work, "delivery": self._delivery_work},
            providers=lambda: [*self.poll_work.by_provider],
            stopped=stopped,
        )

    async def __aenter__(self) -> "Configured":
        return self

    async def __aexit__(self, *_: object) -> None:
        for stack in [*self._open]:
            await stack.aclose()
        await self._provider_pool.close()
        await self.resolver.close()

    @property
    def is_begun(self) -> bool:
        """Whether a configuration is in force."""
        return self._policy is not None

    async def drop(self, settings: Settings) -> None:
        """Drop what another configuration does not have or has elsewhere, and take over its other settings of
        subscriptions."""
        for name, polls in [*self.poll_work.by_provider.items()]:
            if settings.provider_by_name.get(name) != polls.poller.settings:
                del self.poll_work.by_provider[name]
                self.report.forget(name)
                self.poll_work.watch.forget_all(name)
                await polls.retire()
        policy = _policy(settings)
        for name in [*self.targets]:
            self._leave(name, self._wanted(settings.subscription_by_name, name), policy)

    async def add(self, settings: Settings) -> None:
        """Poll and deliver what another configuration has. In slices: there may be 100,000 accounts."""
        self.settings = settings
        policy, is_first = _policy(settings), self._policy is None
        if policy != self._policy:  # no connection made under the old policy is used again
            self._policy = policy
            stack = AsyncExitStack()
            self._open.add(stack)
            keep = share_out(len(settings.provider_by_name)).kept
            sink = WebhookSink(policy, resolver=self.resolver, keep=keep)
            await stack.enter_async_context(sink)
            await self._delivery_work.send_by(sink, InUse(stack, self._open))
        filters: Mapping[str, Filters] = {**settings.subscription_by_name, **self.inactive.locked}
        self.interest.change(dict.fromkeys(self.interest.names - filters.keys()))
        for part in in_parts([*filters], _TARGETS_AT_ONCE):
            for name in part:
                subscription = self._wanted(settings.subscription_by_name, name)
                if subscription and name not in self.targets:
                    self.targets[name] = target_of(subscription, policy)
                    if not is_first:  # the index may not name it for a while
                        self.loop.wake_all(Key("delivery", name))
            self.interest.change({name: filters[name] for name in part})
            await asyncio.sleep(0)
        self._provider_pool.limit = share_out(len(settings.provider_by_name)).of_a_provider
        accounts_by_provider: dict[str, dict[str, AccountSettings]] = {
            name: {} for name in settings.provider_by_name
        }
        async for account in slowly(settings.account_by_name.values()):
            accounts_by_provider[account.provider][account.name] = account
        for name, provider in settings.provider_by_name.items():
            if name not in self.poll_work.by_provider:
                self.poll_work.by_provider[name] = await self._open_provider(provider)
            polls, accounts = self.poll_work.by_provider[name], accounts_by_provider[name]
            changed: dict[str, AccountSettings | None] = {}
            async for account in slowly(accounts.values()):
                if polls.accounts.get(account.name) != account:
                    changed[account.name] = account
            async for gone in slowly(polls.accounts):
                if gone not in accounts:
                    changed[gone] = None
            await self._follow(polls, changed)
            polls.reconsider()
        async for key in slowly(self.loop.dispatch.keys):  # what is still in hand: at the next reload
            if key.name not in (self.targets if key.kind == "delivery" else self.poll_work.by_provider):
                self.loop.forget(key)

    async def send(self, subscription: SubscriptionSettings, event: Event) -> Attempt:
        """Send an event now, once, without a queue: signed, and within the limits of a delivery."""
        assert self._policy  # it comes after `add`
        delivery = event.to(subscription.name)
        return await self._delivery_work.send(target_of(subscription, self._policy), delivery)

    async def change(self, difference: Difference) -> None:
        """Apply what changed in the directory, and nothing else. In slices: there may be much of it."""
        policy, before = self._policy, self.settings
        assert policy  # it comes after `add`
        accounts, subscriptions = {**before.account_by_name}, {**before.subscription_by_name}
        for part in in_parts([*difference.subscriptions], _TARGETS_AT_ONCE):
            filters = {name: difference.subscriptions[name] for name in part}
            for name, found in filters.items():
                subscriptions.pop(name, None)
                if isinstance(found, SubscriptionSettings):
                    subscriptions[name] = found
                if target := self.targets.get(name):
                    self._left_url[name] = target.settings.leads_to
                wanted = self._wanted(subscriptions, name)
                self._leave(name, wanted, policy)
                if wanted and name not in self.targets:
                    self.targets[name] = target_of(wanted, policy)
                    if self._left_url.get(name, wanted.leads_to) != wanted.leads_to:
                        self.moved.add(name)
                    elif name in before.subscription_by_name:  # its events have waited
                        self.loop.wake_all(Key("delivery", name))
                if name in self.targets or found is None:
                    self._left_url.pop(name, None)
                if found is None:
                    self._leaving.add(Key("delivery", name))
            self.interest.change(filters)
            await asyncio.sleep(0)
        by_provider = defaultdict[str, dict[str, AccountSettings | None]](dict)
        async for name, account in slowly(difference.accounts.items()):
            if old := accounts.get(name):
                by_provider[old.provider][name] = None
            if account:
                by_provider[account.provider][name] = accounts[name] = account
            else:
                accounts.pop(name, None)
        self.settings = before.model_copy(
            update={"account_by_name": accounts, "subscription_by_name": subscriptions}
        )
        for provider, changed in by_provider.items():
            await self._follow(self.poll_work.by_provider[provider], changed)
        for key in [*self._leaving]:  # what is still in hand: at the next change
            if key.name in self.targets or self.loop.forget(key):
                self._leaving.discard(key)

    def _wanted(
        self, subscriptions: Mapping[str, SubscriptionSettings], name: str
    ) -> SubscriptionSettings | None:
        """Return the settings of a subscription that is to be delivered to."""
        return None if name in self.inactive.unverified else subscriptions.get(name)

    def _leave(self, name: str, wanted: SubscriptionSettings | None, policy: Policy) -> None:
        """Drop a target that is gone or elsewhere, and take over other settings of one that stays."""
        if (target := self.targets.get(name)) is None:
            return
        is_moved = wanted is None or wanted.leads_to != target.settings.leads_to
        if is_moved:
            self.loop.cut_off(Key("delivery", name), _LAST_S)
        if wanted is None or is_moved or policy != self._policy:
            del self.targets[name]
        elif wanted != target.settings:
            self.targets[name] = target_of(wanted, policy)

    async def _follow(self, polls: ProviderPolls, changed: Mapping[str, AccountSettings | None]) -> None:
        """Poll these accounts of a provider from now on, or no longer. What is known of other accounts
        stays."""
        poller, watch, now_ms = polls.poller, self.poll_work.watch, self._schedule.now_ms()
        is_start = not polls.accounts
        async for name, account in slowly(changed.items()):
            before = polls.accounts.get(name)
            if account is None:
                poller.forget(name)
            if account is None or (before and before.interval != account.interval):
                watch.forget(polls.provider, name)  # it is looked at again
            polls.follow(name, account)
            if account:
                # An account that comes later is polled first: if it was put back, its state may be old.
                in_ms = 0 if is_start else poller.patience_ms(account)
                watch.follow(polls.provider, name, now_ms, in_ms=in_ms)
        await polls.choose_probe()

    async def _open_provider(self, settings: ProviderSettings) -> ProviderPolls:
        stack = AsyncExitStack()
        self._open.add(stack)

        async def wait_turn() -> None:
            spacing_ms = 1000 * client.spacing_s
            await asyncio.sleep(await self.polls.take_turns(settings.name, 1, spacing_ms=spacing_ms) / 1000)

        client = ProviderClient(
            provider_class(settings.kind)(settings),
            settings,
            wait_turn=wait_turn,
            requests=self.counters.by_request,
            pool=self._provider_pool,
        )
        poller = Poller(
            settings,
            await stack.enter_async_context(client),
            self.polls,
            self.interest,
            self.report,
            now_ms=self._schedule.now_ms,
            loop=self.loop,
            deliver=self._delivery_work.deliver,
            let_go=self._delivery_work.let_go,
            memos=self._memos,
        )
        return ProviderPolls(
            poller,
            self.polls,
            self._health,
            self.loop.stopped,
            self._agreement.neighbours,
            stack,
            self._open,
        )

    async def _alert(self, name: str, breaker: Breaker) -> None:
        """Report to the subscription's `alerts_to` that it was paused: for the same pause with the same
        bytes."""
        configured = self.settings.subscription_by_name
        alerts_to = configured[name].alerts_to if name in configured else None
        if alerts_to in configured:
            event = paused(name, breaker.reason, breaker.since_ms, now_ms=breaker.paused_at_ms)
            await self.queues.enqueue(alerts_to, name, [event.to(alerts_to)])

    async def make_due(self, subscription: str) -> None:
        """Make deliveries due that wait for a retry, as after a change of the URL."""
        for shard in range(SHARDS):
            await self.queues.make_due(subscription, shard, lease_ms=LONGEST_LEASE_MS)
        self.loop.wake_all(Key("delivery", subscription))


def _policy(settings: Settings) -> Policy:
    egress = settings.egress
    return Policy(allow=egress.allow, allow_http=egress.allow_http, nat64=egress.nat64)
