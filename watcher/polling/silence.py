"""Which accounts of a provider have been silent for too long, said in one line instead of thousands.

Refuses to decide what a poll was worth, and to tell subscribers (`notices` does): this is for the log.
"""

import time

from watcher.logs.lines import log
from watcher.settings import AccountSettings

STALE_INTERVALS = 3
"""An account is stale when so many of its intervals passed without a good poll."""

_GATHER_S = 2.0
"""Accounts that go stale or recover together are told together."""


class Silence:
    """The refused polls of one worker at one provider."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._refused_since_ms: dict[str, int] = {}
        self._went: dict[str, list[str]] = {"account.stale": [], "account.recovered": []}
        self._why = ""
        self._tell_at = 0.0

    def since_ms(self, account: AccountSettings, last_good_ms: int, now_ms: int) -> int | None:
        """Note a refused poll; says since when the account is stale, or None if it is not yet."""
        first_refused_ms = self._refused_since_ms.setdefault(account.name, now_ms)
        silent_since_ms = last_good_ms or first_refused_ms
        limit_ms = 1000 * STALE_INTERVALS * account.interval.total_seconds()
        return silent_since_ms if now_ms - silent_since_ms >= limit_ms else None

    def ended(self, account: AccountSettings) -> None:
        """Note a good poll."""
        self._refused_since_ms.pop(account.name, None)

    def went(self, event: str, account: AccountSettings, why: str = "") -> None:
        """Note an account that went stale (`account.stale`) or is back (`account.recovered`)."""
        self._went[event].append(account.name)
        self._why = why or self._why
        self._tell_at = self._tell_at or time.monotonic() + _GATHER_S

    def tell(self, *, at_once: bool = False) -> None:
        """Write what has gathered: a line per account if it is one, else a line for all of them."""
        if not self._tell_at or (time.monotonic() < self._tell_at and not at_once):
            return
        self._tell_at = 0.0
        for event, names in self._went.items():
            if not names:
                continue
            who = {"account": names[0]} if len(names) == 1 else {"accounts": len(names)}
            if event == "account.stale":
                log.warning("account.stale", provider=self._provider, reason=self._why, **who)
            else:
                log.info("account.recovered", provider=self._provider, **who)
            names.clear()
