"""Lets what failed on a host name go out again once names are looked up by other files than before.

Without it, once the resolver is mended, a subscriber whose name did not resolve is left alone for minutes,
and its deliveries wait for hours.
"""

from watcher.delivery.webhook import REFUSED, UNRESOLVED
from watcher.observe.log import log
from watcher.run.configured import Configured
from watcher.store.keys import SHARDS
from watcher.urls import as_written


class Names:
    """The host names of what is configured."""

    def __init__(self, configured: Configured) -> None:
        self._configured = configured
        self._changed: set[str] | None = None

    async def look(self) -> None:
        """Look whether the files have changed. Raises StoreError, and is then called again.

        What a change helps is made due one look later: what failed just before it has to be written down.
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
