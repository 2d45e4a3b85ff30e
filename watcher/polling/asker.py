"""Asks a provider, unless it is known to fail for everybody and it is another account's turn to try.

Refuses to read what comes back.
"""

import time
from collections.abc import Awaitable, Callable

from watcher.engine.breaker import ProviderBreaker, State
from watcher.observe.log import log
from watcher.observe.throttle import Throttle
from watcher.providers.client import ProviderClient
from watcher.providers.contract import Rejected
from watcher.settings import AccountSettings


class NotAsked(Rejected):
    """Nothing was sent: the provider fails for everybody, and it is another account's turn to ask it.

    Where it fails for a reason that only a person can mend, that is the reason for all of them.
    """


class Asker:
    """The way to one provider. The account `probe_account`, the same one for all workers, asks whenever it
    is due; as long as `is_probe_failing`, others hardly do.
    """

    def __init__(
        self,
        provider: str,
        client: ProviderClient,
        *,
        is_failing: Callable[[str], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider = provider
        self._client = client
        self.probe_account = ""
        self._is_failing = is_failing
        self._clock = clock
        self._breaker = ProviderBreaker()
        self._throttle = Throttle()
        self._was_on = self._is_back = False

    async def ask(self, account: AccountSettings) -> tuple[bytes, ...]:
        """Send the requests of one poll. Raises Rejected, NotAsked where nothing was sent, and StoreError."""
        if not await self._may_ask(account):
            if cause := self._breaker.cause:
                raise NotAsked(cause.error_class, cause.reason)
            raise NotAsked("gone", "the provider is unavailable; one account at a time asks it")
        try:
            bodies = await self._client.ask(account)
        except Rejected as refused:
            self._note(account, refused)
            raise
        self._breaker.answered()
        if self._was_on:
            self._was_on, self._is_back = False, True
        if streak := self._throttle.over(self._provider, self._clock()):
            log.info("provider.recovered", provider=self._provider, **streak._asdict())
        return bodies

    async def is_probe_failing(self) -> bool:
        """Say whether the last poll of the probe account was rejected, whichever worker made it."""
        return await self._is_failing(self.probe_account)

    def is_back(self) -> bool:
        """Say, once, that the provider is back after an outage."""
        is_back, self._is_back = self._is_back, False
        return is_back

    async def _may_ask(self, account: AccountSettings) -> bool:
        """Whoever is not the probe_account asks the store, too: another worker may know that it is over."""
        if account.name == self.probe_account or self._breaker.may_ask(self._clock()):
            return True
        return not await self.is_probe_failing()

    def _note(self, account: AccountSettings, refused: Rejected) -> None:
        now = self._clock()
        self._breaker.rejected(account.name, refused, now)
        is_closed = self._breaker.state(now) is State.CLOSED
        self._was_on |= not is_closed
        if is_closed or self._breaker.cause:  # which was said, and is what to look at
            return
        if streak := self._throttle.struck(self._provider, now):
            log.warning(
                "provider.unavailable",
                provider=self._provider,
                error_class=refused.error_class,
                reason=refused.reason,
                status=refused.status,
                **streak._asdict(),
            )
