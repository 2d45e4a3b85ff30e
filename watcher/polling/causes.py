"""Says at once what a provider refuses for good: a wrong key, an account that is not there, another chain.

Only a person can mend that, so it is an error, once per cause, and outranks what follows from it (accounts
that go stale, a provider that counts as unavailable). Refuses to judge a poll: providers say what it was.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from watcher.observe.log import log
from watcher.observe.throttle import Streak, Throttle
from watcher.polling.asker import NotAsked
from watcher.providers.contract import PERMANENT, Rejected, todo
from watcher.store.exceptions import StoreError
from watcher.store.reader import Failing

_AGAIN_S = 60.0
"""Accounts that meet a known cause later are told together, so seldom."""

_LOOK_S = 5.0
"""Between two looks whether an account that this worker saw refused was polled well by another one."""


class Cause(NamedTuple):
    """What a provider says, and means for good."""

    error_class: str
    reason: str


class Causes:
    """The causes at one provider, each with the accounts that it keeps from being polled.

    `is_refused(account)` says whether its last poll was refused, whichever worker made it.
    """

    def __init__(
        self,
        provider: str,
        *,
        is_refused: Callable[[str], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider = provider
        self._is_refused = is_refused
        self._clock = clock
        self._accounts: dict[Cause, set[str]] = {}
        self._unsaid: set[Cause] = set()
        self._said_at: dict[Cause, float] = {}
        self._before: dict[Cause, tuple[float, int]] = {}
        self._throttle = Throttle()
        self._look_at = 0.0

    def remember(self, failing: Mapping[str, Failing], *, now_ms: int) -> list[str]:
        """Take over what was so before this worker, or this configuration: it is said when that is over.

        Names the accounts, which are worth to be polled at once: somebody may have mended the cause.
        """
        found = [name for name, one in failing.items() if one.error_class in PERMANENT]
        for name in found:
            one = failing[name]
            cause, since = Cause(one.error_class, one.reason), self._clock() - (now_ms - one.since_ms) / 1000
            known_since, known_times = self._before.get(cause, (since, 0))
            self._before[cause] = min(since, known_since), max(one.refusals, known_times)
            self._accounts_of(cause).add(name)
        return found

    def struck(self, account: str, refused: Rejected) -> None:
        """Note a refused poll; where only a person can mend it, that is said."""
        cause = Cause(refused.error_class, refused.reason)
        if cause.error_class not in PERMANENT:
            return
        for other in self._accounts.keys() - {cause}:
            self._accounts[other].discard(account)
        accounts = self._accounts_of(cause)
        if account not in accounts:
            accounts.add(account)
            self._unsaid.add(cause)
        if isinstance(refused, NotAsked):
            return
        if streak := self._throttle.struck(cause, self._clock()):
            self._say(cause, account, streak, status=refused.status)

    def tell(self) -> None:
        """Say, from time to time, of how many accounts a known cause has become the error_class since."""
        for cause in [*self._unsaid]:
            now = self._clock()
            if cause in self._said_at and now >= self._said_at[cause] + _AGAIN_S:
                self._say(cause, next(iter(self._accounts[cause]), ""), self._throttle.lasting(cause, now))

    async def good(self, account: str) -> None:
        """Note a good poll. A key is right when one of those that it was refused for is polled well, anything
        else is mended when all of them are; then that is said."""
        for cause, accounts in self._accounts.items():
            if account in accounts and cause.error_class == "auth":
                accounts.clear()
            accounts.discard(account)
        for cause in [*self._accounts]:
            if await self._is_over(cause) and self._accounts.pop(cause, None) is not None:
                self._unsaid.discard(cause)
                self._said_at.pop(cause, None)
                now = self._clock()
                since, times = self._before.pop(cause, (now, 0))
                streak = self._throttle.over(cause, now) or Streak(round(1000 * (now - since)), times)
                log.info(
                    "provider.recovered", provider=self._provider, reason=cause.reason, **streak._asdict()
                )

    async def _is_over(self, cause: Cause) -> bool:
        """Look one by one whether other workers polled its accounts well; at most every few seconds."""
        accounts = self._accounts[cause]
        while accounts:
            if self._clock() < self._look_at:
                return False
            account = next(iter(accounts))
            with suppress(StoreError):
                if not await self._is_refused(account):
                    accounts.discard(account)
                    continue
            self._look_at = self._clock() + _LOOK_S
        return True

    def _accounts_of(self, cause: Cause) -> set[str]:
        return self._accounts.setdefault(cause, set())

    def _say(self, cause: Cause, account: str, streak: Streak, *, status: int | None = None) -> None:
        many = len(self._accounts[cause])
        log.error(
            "provider.refusing",
            provider=self._provider,
            error_class=cause.error_class,
            reason=f"{cause.reason}: {todo(cause.error_class, self._provider)}",
            status=status,
            account=account if many == 1 else None,
            accounts=many,
            **streak._asdict(),
        )
        self._unsaid.discard(cause)
        self._said_at[cause] = self._clock()
