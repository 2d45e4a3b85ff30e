"""Keeps a provider's list of assets: fetched when an asset is not in it, and not too often.

Refuses to let an asset change its unit by accident: what a list once held stays known. An asset counts as
unlisted only if a list that was fetched after it turned up lacks it, and every row of that list names its
asset.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Set

from watcher.providers.contract import PERMANENT, AssetList, Catalogue, Rejected
from watcher.snapshot import Asset, asset_id

RENEW_S = 600.0
"""Between two fetches for assets that were unlisted the last time: a delisted token may stay for ever."""
RETRY_S = 10.0
"""Between any two fetches."""

_MOST_UNLISTED = 10_000


class KeptCatalogue:
    """The last list that was read, and what it is known not to hold. `refused`: why the last fetch failed."""

    def __init__(self, fetch: Callable[[], Awaitable[AssetList]], *, clock: Callable[[], float]) -> None:
        self.asset_by_id: Catalogue = {}
        self.unlisted: Set[str] = frozenset()
        self.refused: Rejected | None = None
        self._odd: Mapping[str, str] = {}
        self._is_whole = True
        self._fetch = fetch
        self._clock = clock
        self._turn = asyncio.Lock()
        self._fetched_at = float("-inf")

    async def look_up(self, ids: Set[str]) -> None:
        """Fetch the list if it lacks some of `ids` and its time has come. A failure keeps the last list."""
        async with self._turn:
            missing = ids - self.asset_by_id.keys()
            pause_s = RETRY_S if missing - self.unlisted else RENEW_S
            if not missing or self._clock() < self._fetched_at + pause_s:
                return
            try:
                listed = await self._fetch()
            except Rejected as refused:
                self.refused = refused
            else:
                self.refused = None
                self.asset_by_id = {**self.asset_by_id, **listed.asset_by_id}
                self._odd, self._is_whole = listed.odd, listed.is_whole
                remembered = self.unlisted if len(self.unlisted) < _MOST_UNLISTED else frozenset()
                absent = missing - listed.odd.keys() if listed.is_whole else frozenset[str]()
                self.unlisted = (remembered | absent) - self.asset_by_id.keys() - listed.odd.keys()
            self._fetched_at = self._clock()

    def find(self, text: str) -> Asset | None:
        """Find an asset by its id or its symbol; if several share the symbol, the first."""
        if found := self.asset_by_id.get(asset_id(text)):
            return found
        return next((asset for asset in self.asset_by_id.values() if asset.symbol == text), None)

    def refusal(self, unknown: Set[str]) -> Rejected:
        """Say why the unit of these assets is not known."""
        for asset in sorted(unknown & self._odd.keys()):
            return Rejected("malformed", f"the list of assets is odd for asset {asset}: {self._odd[asset]}")
        if self.refused is None and not self._is_whole:
            why = "the list of assets has rows that cannot be read, and an asset is missing from it"
            return Rejected("malformed", why)
        refused = self.refused or Rejected("transient", "it was fetched a moment ago")
        is_permanent = refused.error_class in PERMANENT
        reason = f"an asset that is not in the list of assets yet: {refused}"
        return Rejected(refused.error_class if is_permanent else "transient", reason, status=refused.status)
