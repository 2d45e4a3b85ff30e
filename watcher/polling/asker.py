"""Asks a provider, unless it is known to fail for everybody and it is another account's turn to try.

Refuses to read what comes back.
"""

import time
from collections.abc import Awaitable, Callable

from watcher.logs.lines import log
from watcher.logs.spells import Spells
from watcher.polling.outage import Outage
from watcher.providers.client import ProviderClient
from watcher.providers.contract import Refused
from watcher.settings import AccountSettings


class NotAsked(Refused):
    """Nothing was sent: the provider fails for everybody, and it is another account's turn to ask it.

    Where it fails for a reason that only a person can mend, that is the reason for all of them.
    """


class Asker:
    """The way to one provider. The account `canary`, the same one for all workers, asks whenever it is due;
    as long as `is_canary_failing`, others hardly do.
    """

    def __init__(
        self,
        provider: str,
        client: ProviderClient,
        *,
        canary: str,
        is_canary_failing: Callable[[], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider = provider
        self._client = client
        self._canary = canary
        self.is_canary_failing = is_canary_failing
        self._clock = clock
        self._outage = Outage()
        self._spells = Spells()
        self._was_on = self._is_back = False

    async def ask(self, account: AccountSettings) -> tuple[bytes, ...]:
        """Send the requests of one poll. Raises Refused, NotAsked where nothing was sent, and StoreError."""
        if not await self._may_ask(account):
            if cause := self._outage.cause:
                raise NotAsked(cause.trouble, cause.reason)
            raise NotAsked("gone", "the provider is unavailable; one account at a time asks it")
        try:
            bodies = await self._client.ask(account)
        except Refused as refused:
            self._note(account, refused)
            raise
        self._outage.good()
        if self._was_on:
            self._was_on, self._is_back = False, True
        if spell := self._spells.over(self._provider, self._clock()):
            log.info("provider.recovered", provider=self._provider, **spell._asdict())
        return bodies

    def is_back(self) -> bool:
        """Say, once, that the provider is back after an outage."""
        is_back, self._is_back = self._is_back, False
        return is_back

    async def _may_ask(self, account: AccountSettings) -> bool:
        """Whoever is not the canary asks the store, too: another worker may know that it is over."""
        if account.name == self._canary or self._outage.may_ask(self._clock()):
            return True
        return not await self.is_canary_failing()

    def _note(self, account: AccountSettings, refused: Refused) -> None:
        now = self._clock()
        self._outage.refused(account.name, refused, now)
        self._was_on |= self._outage.is_on
        if not self._outage.is_on or self._outage.cause:  # which was said, and is what to look at
            return
        if spell := self._spells.struck(self._provider, now):
            log.warning(
                "provider.unavailable",
                provider=self._provider,
                trouble=refused.trouble,
                reason=refused.reason,
                status=refused.status,
                **spell._asdict(),
            )
