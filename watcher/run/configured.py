"""What a worker polls and delivers by the configuration in force: a reload is a difference."""

import asyncio
import resource
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple

from watcher.delivery.breakers import SubscriptionBreakers
from watcher.delivery.egress import Policy
from watcher.delivery.queue import LONGEST_LEASE_MS, DeliveryWork
from watcher.delivery.webhook import WebhookSink, WebhookTarget
from watcher.engine.dispatch import Key
from watcher.engine.loop import InUse, Loop
from watcher.http.dial import CurrentResolver
from watcher.journal.interest import Interest
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
from watcher.settings import AccountSettings, ProviderSettings, Settings
from watcher.store.client import CONNECTIONS as OF_THE_STORE
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS, Keys, shard_of
from watcher.store.polls import Polls
from watcher.store.queues import BOUNDS, Bounds, Breaker, Breakers, Queues
from watcher.store.schedule import DueIndex, Schedule
from watcher.store.state import Within

MOST_ATTEMPTS = 10_000
"""A thousand subscriptions that hang, with ten attempts each."""

_OF_THE_REST = 64
"""Descriptors for the log, the listener and its clients, DNS, files that are read again."""

_FEWEST = 8


class Shares(NamedTuple):
    """How many attempts may be under way, how many connections kept for the next ones, and what one provider
    may have."""

    attempts: int
    kept: int
    of_a_provider: int


def share_out(providers: int) -> Shares:
    """Share out as many as this process may have.

    The soft limit is often 1,024 for the sake of programs that call select(); this one does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OF_THE_REST + OF_THE_STORE + providers * MOST_OF_A_PROVIDER + MOST_ATTEMPTS * 3 // 2
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        with suppress(ValueError, OSError):  # then it stays as it was
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return shares(soft, providers)


def shares(limit: int, providers: int) -> Shares:
    """Share out `limit`: providers get a quarter of what the store leaves at most, subscribers the rest."""
    left = limit - _OF_THE_REST - OF_THE_STORE
    of_a_provider = max(1, min(MOST_OF_A_PROVIDER, left // 4 // max(1, providers)))
    kept = min(MOST_ATTEMPTS // 2, (left - providers * of_a_provider) // 3)
    kept = max(_FEWEST // 2, kept)
    return Shares(2 * kept, kept, of_a_provider)


_LAST_S = 0.5
"""An attempt that is answered within this time is settled though its subscription is gone, or its URL."""


class Configured:
    """Use as `async with`; first `drop` what another configuration does not have, then `add` what it has."""

    def __init__(
        self,
        settings: Settings,
        schedule: Schedule,
        health: StoreHealth,
        counters: Counters,
        agreement: Agreement,
        bounds: Bounds = BOUNDS,
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
        self._interest = Interest({})
        self._memos = Within[Memo](MEMO_BYTES)
        self._open: set[AsyncExitStack] = set()
        self._policy: Policy | None = None
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
        self._delivery_work: DeliveryWork[WebhookTarget] = DeliveryWork(
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

    async def drop(self, settings: Settings) -> None:
        """Drop what another configuration does not have, or has elsewhere, and take over its other settings
        of subscriptions."""
        for name, polls in [*self.poll_work.by_provider.items()]:
            if settings.provider_by_name.get(name) != polls.poller.settings:
                del self.poll_work.by_provider[name]
                self.report.forget(name)
                self.poll_work.watch.forget_all(name)
                await polls.retire()
        policy = _policy(settings)
        for name, target in [*self.targets.items()]:
            subscription = settings.subscription_by_name.get(name)
            is_moved = subscription is None or subscription.url != target.settings.url
            if is_moved:
                self.loop.cut_off(Key("delivery", name), _LAST_S)
            if subscription is None or is_moved or policy != self._policy:
                del self.targets[name]
            elif subscription != target.settings:
                self.targets[name] = WebhookTarget(subscription, policy)

    async def add(self, settings: Settings) -> None:
        """Poll and deliver what another configuration has. In slices: there may be 100,000 accounts."""
        self.settings = settings
        policy, is_first = _policy(settings), self._policy is None
        if policy != self._policy:  # no connection of the time before is used any more
            self._policy = policy
            stack = AsyncExitStack()
            self._open.add(stack)
            keep = share_out(len(settings.provider_by_name)).kept
            sink = WebhookSink(policy, resolver=self.resolver, keep=keep)
            await stack.enter_async_context(sink)
            await self._delivery_work.send_by(sink, InUse(stack, self._open))
        for name, subscription in settings.subscription_by_name.items():
            if name not in self.targets:
                self.targets[name] = WebhookTarget(subscription, policy)
                if not is_first:  # the index may not name it for a while
                    self.loop.wake_all(Key("delivery", name))
        self._interest.follow(settings.subscription_by_name)
        self._provider_pool.limit = share_out(len(settings.provider_by_name)).of_a_provider
        accounts_by_provider: dict[str, dict[str, AccountSettings]] = {
            name: {} for name in settings.provider_by_name
        }
        async for account in slowly(settings.account_by_name.values()):
            accounts_by_provider[account.provider][account.name] = account
        for name, provider in settings.provider_by_name.items():
            if name not in self.poll_work.by_provider:
                self.poll_work.by_provider[name] = await self._open_provider(provider)
            await self._follow(self.poll_work.by_provider[name], accounts_by_provider[name])
        async for key in slowly(self.loop.dispatch.keys):  # what is in hand yet: at the next reload
            if key.name not in (self.targets if key.kind == "delivery" else self.poll_work.by_provider):
                self.loop.forget(key)

    async def _follow(self, polls: ProviderPolls, accounts: Mapping[str, AccountSettings]) -> None:
        """Poll these accounts of a provider from now on; the last answers of unchanged ones stay known."""
        poller, before = polls.poller, polls.accounts
        most_requests, shards, probe, needed = 1, set[int](), None, 0.0
        now_ms, watch = self._schedule.now_ms(), self.poll_work.watch
        async for account in slowly(accounts.values()):
            cost = poller.cost(account)
            most_requests, needed = max(most_requests, cost), needed + cost / account.interval.total_seconds()
            shards.add(shard_of(account.name))
            place = account.interval, account.name
            probe = place if probe is None else min(probe, place)
        async for name in slowly(before):
            if name not in accounts:
                poller.forget(name)
                watch.forget(polls.provider, name)
            elif accounts[name].interval != before[name].interval:
                watch.forget(polls.provider, name)  # it is looked at anew
        async for account in slowly(accounts.values()):
            # What a reload brings is polled first: its state may be old, as of an account that was put back.
            in_ms = poller.patience_ms(account) if before else 0
            watch.follow(polls.provider, account.name, now_ms, in_ms=in_ms)
        poller.needed_per_second = needed
        poller.most_requests, poller.probe_account = most_requests, probe[1] if probe else ""
        polls.follow(accounts, shards)

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
            self._interest,
            self.report,
            now_ms=self._schedule.now_ms,
            loop=self.loop,
            deliver=self._delivery_work.deliver,
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
        """Report to the subscription's `alerts_to` that it was paused: the same pause with the same bytes."""
        configured = self.settings.subscription_by_name
        alerts_to = configured[name].alerts_to if name in configured else None
        if alerts_to in configured:
            event = paused(name, breaker.reason, breaker.since_ms, now_ms=breaker.paused_at_ms)
            await self.queues.enqueue(alerts_to, name, [event.to(alerts_to)])

    async def make_due(self, subscription: str) -> None:
        """Make due what waits for a retry, as when its URL was changed."""
        for shard in range(SHARDS):
            await self.queues.make_due(subscription, shard, lease_ms=LONGEST_LEASE_MS)
        self.loop.wake_all(Key("delivery", subscription))


def _policy(settings: Settings) -> Policy:
    egress = settings.egress
    return Policy(allow=egress.allow, allow_http=egress.allow_http, nat64=egress.nat64)
