"""Which subscriptions want an event of an account.

Pure. Refuses to know what an event says beyond its account, type and asset.
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import translate
from functools import lru_cache

from watcher.journal.events import Event
from watcher.journal.notices import Watch
from watcher.settings import CHANGE_EVENTS, SubscriptionSettings
from watcher.snapshot import asset_id


class Interest:
    """The wishes of all subscriptions, compiled once per configuration."""

    def __init__(self, subscriptions: Mapping[str, SubscriptionSettings]) -> None:
        self.version = 0
        """Another one after each `follow`: what was derived before may be out of date."""
        self.follow(subscriptions)

    def follow(self, subscriptions: Mapping[str, SubscriptionSettings]) -> None:
        """Go by other subscriptions from now on."""
        self._wishes = wishes = {name: _Wish(settings) for name, settings in subscriptions.items()}
        self._listeners = lru_cache(maxsize=100_000)(
            lambda account: tuple(name for name, wish in wishes.items() if wish.accounts.match(account))
        )
        self.version += 1

    def listeners(self, account: str) -> tuple[str, ...]:
        """Name the subscriptions that want events of an account at all."""
        return self._listeners(account)

    def wants(self, subscription: str, event: Event) -> bool:
        """Say whether a listener of the event's account wants this event."""
        return event.only_for in (None, subscription) and self._wishes[subscription].wants(event)

    def watches(self, account: str) -> tuple[Watch, ...]:
        """Name the thresholds that are watched at an account."""
        return tuple(watch for name in self._listeners(account) for watch in self._wishes[name].watches)


class _Wish:
    def __init__(self, settings: SubscriptionSettings) -> None:
        self.accounts = _any_of(settings.accounts)
        # The default is every change, and what a subscription with a threshold asks for by setting it.
        by_default = (*CHANGE_EVENTS, "threshold.crossed") if settings.thresholds else CHANGE_EVENTS
        self._types = _any_of(settings.events or by_default)
        self.watches = tuple(Watch(settings.name, threshold) for threshold in settings.thresholds)
        self._assets = None if "*" in settings.assets else _any_of(map(asset_id, settings.assets))

    def wants(self, event: Event) -> bool:
        if not self._types.match(event.type):
            return False
        asset = event.asset
        if self._assets is None or asset is None or event.only_for:
            return True
        return bool(self._assets.match(asset.id) or (asset.symbol and self._assets.match(asset.symbol)))


def _any_of(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for glob in globs))
