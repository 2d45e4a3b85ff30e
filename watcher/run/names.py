"""Lets what failed on a host name go out again once names are looked up by other files than before.

Without it, once the resolver is mended, a subscriber whose name did not resolve is left alone for minutes,
and its deliveries wait for hours.
"""

from collections.abc import Mapping

from watcher.delivery.egress import Policy, check_url
from watcher.delivery.loop import DeliverLoop
from watcher.delivery.post import REFUSED, UNRESOLVED
from watcher.observe.log import log
from watcher.polling.loop import PollLoop
from watcher.resolver import CurrentResolver
from watcher.settings import Settings
from watcher.store.standings import Standings
from watcher.urls import as_written


class Names:
    """The names of one configuration, its resolver, and the loops that ask it."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        resolver: CurrentResolver,
        standings: Standings,
        deliver_loop: DeliverLoop,
        poll_loops: Mapping[str, PollLoop],
    ) -> None:
        self._host_by_provider = {
            name: as_written(provider.base_url).raw_host
            for name, provider in settings.provider_by_name.items()
        }
        self._host_by_subscription = {
            name: check_url(subscription.url.get_secret_value(), policy).raw_host
            for name, subscription in settings.subscription_by_name.items()
        }
        self._resolver = resolver
        self._standings = standings
        self._deliver_loop = deliver_loop
        self._poll_loops = poll_loops
        self._changed: set[str] | None = None

    async def look(self) -> None:
        """Look whether the files have changed. Raises StoreError, and is then called again.

        What a change helps is made_due one look later: what failed just before it has to be written down.
        """
        if self._changed is not None:
            await self._try_again(self._changed)
            self._changed = None
        await self._resolver.follow()
        self._changed = self._resolver.take_change()

    async def _try_again(self, hosts: set[str]) -> None:
        providers = [name for name, host in self._host_by_provider.items() if host in hosts]
        for name in providers:
            await self._poll_loops[name].make_due()
        subscriptions = 0
        for name, host in self._host_by_subscription.items():
            was_held = await self._standings.unhold(name, UNRESOLVED, REFUSED)
            if was_held or host in hosts:
                await self._deliver_loop.make_due(name)
                subscriptions += 1
        log.info("resolver.changed", providers=len(providers), subscriptions=subscriptions)
