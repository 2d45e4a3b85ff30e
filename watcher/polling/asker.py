"""Asks a provider, unless it is known to fail for everybody and it is another account's turn to try.

Refuses to read what comes back.
"""

import time
from collections.abc import Awaitable, Callable

from watcher.logs.lines import log
from watcher.polling.outage import Outage
from watcher.providers.client import ProviderClient
from watcher.providers.contract import Refused
from watcher.settings import AccountSettings


class Asker:
    """The way to one provider. `hasten` is awaited when it is back after an outage."""

    def __init__(self, provider: str, client: ProviderClient, hasten: Callable[[], Awaitable[None]]) -> None:
        self._provider = provider
        self._client = client
        self._hasten = hasten
        self._outage = Outage()

    async def ask(self, account: AccountSettings) -> tuple[bytes, ...]:
        """Send the requests of one poll. Raises Refused."""
        if not self._outage.may_ask(time.monotonic()):
            raise Refused("gone", "the provider is unavailable; one account at a time asks it")
        try:
            bodies = await self._client.ask(account)
        except Refused as refused:
            self._note(account, refused)
            raise
        lasted_s = self._outage.good(time.monotonic())
        if lasted_s is not None:
            log.info("provider.recovered", provider=self._provider, duration_ms=int(1000 * lasted_s))
            await self._hasten()
        return bodies

    def _note(self, account: AccountSettings, refused: Refused) -> None:
        if self._outage.refused(account.name, refused.trouble, time.monotonic()):
            log.warning(
                "provider.unavailable",
                provider=self._provider,
                trouble=refused.trouble,
                reason=refused.reason,
                status=refused.status,
            )
