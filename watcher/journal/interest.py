"""Which subscriptions want an event of an account.

Pure. Refuses to know what an event says beyond its account, type and asset.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from fnmatch import translate
from functools import lru_cache
from typing import Protocol

from watcher.journal.events import Event
from watcher.journal.notices import Watch
from watcher.settings import CHANGE_EVENTS, ThresholdSettings
from watcher.snapshot import Asset, asset_id

_MOST_CACHED = 100_000
"""Accounts whose listeners, and what these watch there, are remembered."""

_SPECIAL = re.compile(r"[*?\[]")
"""What makes a text a glob."""


class Filters(Protocol):
    """What a subscription wants: the settings of one, or the readable part of a record in the directory."""

    @property
    def name(self) -> str: ...
    @property
    def accounts(self) -> tuple[str, ...]: ...
    @property
    def events(self) -> tuple[str, ...]: ...
    @property
    def assets(self) -> tuple[str, ...]: ...
    @property
    def thresholds(self) -> tuple[ThresholdSettings, ...]: ...


class Interest:
    """The filters of all subscriptions, found by the names of accounts, and by the beginnings of their globs:
    an event costs no more if there are more subscriptions for other accounts."""

    def __init__(self, subscriptions: Mapping[str, Filters]) -> None:
        self.version = 0
        """Changes with each change of the filters: what was derived before may be out of date."""
        self.follow(subscriptions)

    def follow(self, subscriptions: Mapping[str, Filters]) -> None:
        """Use the filters of these subscriptions alone from now on, in this order."""
        self._filter_by_name: dict[str, _Filter] = {}
        self._by_account: defaultdict[str, set[str]] = defaultdict(set)
        self._by_beginning: defaultdict[str, set[str]] = defaultdict(set)
        self._next_place = 0
        self.change(subscriptions)

    def change(self, difference: Mapping[str, Filters | None]) -> None:
        """Apply what has changed; None is a subscription that is gone. A subscription that changed keeps its
        place, a new one comes last."""
        for name, filters in difference.items():
            place = self._next_place
            if (
                before := self._filter_by_name.pop(name, None)
                if filters is None
                else self._filter_by_name.get(name)
            ):
                place = before.place
                self._leave(name, before)
            if filters is not None:
                self._next_place = max(self._next_place, place + 1)
                self._filter_by_name[name] = filter_ = _Filter(filters, place)
                for account in filter_.accounts.exact:
                    self._by_account[account].add(name)
                for beginning in filter_.accounts.beginnings:
                    self._by_beginning[beginning].add(name)
        self._lengths = sorted({len(beginning) for beginning in self._by_beginning})
        self._cached: dict[str, tuple[tuple[str, ...], tuple[Watch, ...]]] = {}
        self.version += 1

    @property
    def names(self) -> Set[str]:
        return self._filter_by_name.keys()

    def listeners(self, account: str) -> tuple[str, ...]:
        """Return the subscriptions that want any events of an account."""
        return self._found(account)[0]

    def wants(self, subscription: str, event: Event) -> bool:
        """Say whether a listener of the event's account wants this event."""
        filter_ = self._filter_by_name[subscription]
        if event.only_for not in (None, subscription) or not filter_.types.match(event.type):
            return False
        return event.asset is None or event.only_for is not None or filter_.is_for(event.asset)

    def holds(self, subscription: str, asset: Asset | None = None) -> bool:
        """Say whether a subscription wants an asset; or, without one, whether it wants all. None: there is no
        such subscription."""
        filter_ = self._filter_by_name.get(subscription)
        return filter_ is not None and filter_.is_for(asset)

    def watches(self, account: str) -> tuple[Watch, ...]:
        """Return the thresholds that are watched at an account."""
        return self._found(account)[1]

    def _found(self, account: str) -> tuple[tuple[str, ...], tuple[Watch, ...]]:
        if (found := self._cached.get(account)) is None:
            if len(self._cached) >= _MOST_CACHED:
                self._cached.clear()
            listeners = self._find(account)
            watches = tuple(watch for name in listeners for watch in self._filter_by_name[name].watches)
            found = self._cached[account] = listeners, watches
        return found

    def _find(self, account: str) -> tuple[str, ...]:
        filters = self._filter_by_name
        found = {*self._by_account.get(account, ())}
        for length in self._lengths:
            if length > len(account):
                break
            found |= {
                name
                for name in self._by_beginning.get(account[:length], ())
                if name not in found and filters[name].accounts.match(account)
            }
        return tuple(sorted(found, key=lambda name: filters[name].place))

    def _leave(self, name: str, filter_: "_Filter") -> None:
        for index, keys in (
            (self._by_account, filter_.accounts.exact),
            (self._by_beginning, filter_.accounts.beginnings),
        ):
            for key in keys:
                index[key].discard(name)
                if not index[key]:
                    del index[key]


class _Filter:
    def __init__(self, filters: Filters, place: int) -> None:
        self.place = place
        self.accounts = _Globs(filters.accounts)
        # The default is every change, and what a subscription with a threshold asks for by setting it.
        by_default = (*CHANGE_EVENTS, "threshold.crossed") if filters.thresholds else CHANGE_EVENTS
        self.types = _globs(filters.events or by_default)
        self.watches = tuple(Watch(filters.name, threshold) for threshold in filters.thresholds)
        self._assets = None if "*" in filters.assets else _globs(tuple(map(asset_id, filters.assets)))

    def is_for(self, asset: Asset | None) -> bool:
        if self._assets is None or asset is None:
            return self._assets is None
        if self._assets.match(asset.id):
            return True
        return bool(asset.symbol and self._assets.match(asset.symbol))


class _Globs:
    """Texts and globs. `beginnings` are the beginnings of what the globs match."""

    def __init__(self, globs: Iterable[str]) -> None:
        self.exact = frozenset(glob for glob in globs if not _SPECIAL.search(glob))
        self._globs = [glob for glob in globs if glob not in self.exact]
        self.beginnings = frozenset(_SPECIAL.split(glob, maxsplit=1)[0] for glob in self._globs)
        self._pattern: re.Pattern[str] | None = None

    def match(self, text: str) -> bool:
        """Say whether a text is one of these, or matches one."""
        if text in self.exact or not self._globs:
            return text in self.exact
        if self._pattern is None:  # at first use: for 10,000 subscriptions it takes a second
            self._pattern = re.compile("|".join(map(translate, self._globs)))
        return self._pattern.match(text) is not None


@lru_cache(maxsize=1024)
def _globs(globs: tuple[str, ...]) -> _Globs:
    """Cached, because many subscriptions name the same types and assets."""
    return _Globs(globs)
