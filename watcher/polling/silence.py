"""Which accounts of a provider have been silent for too long, said in one line instead of thousands.

Refuses to decide what a poll was worth, and to tell subscribers (`notices` does): this is for the log.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from watcher.observe.log import log
from watcher.observe.throttle import Throttle
from watcher.settings import AccountSettings

STALE_INTERVALS = 3
"""An account is stale when so many of its intervals passed without a good poll."""

_GATHER_S = 2.0
"""Accounts that go stale or recover together are told together."""

_AGAIN_S = 60.0
"""Those that follow are told so much later: a provider that fails takes its accounts with it one by one."""


@dataclass(slots=True)
class _Gathered:
    """What one line is to tell: which accounts, why, and for how long it has been so at most."""

    names: set[str] = field(default_factory=set)
    reason: str = ""
    duration_ms: int = 0


class Silence:
    """The refused polls of one worker at one provider. Times are Unix ms of the server."""

    def __init__(self, provider: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._provider = provider
        self._clock = clock
        self._refused_since_ms: dict[str, int] = {}
        self._stale: set[str] = set()
        self._throttle = Throttle()
        self._went_stale, self._recovered = _Gathered(), _Gathered()
        self._tell_at, self._told_at = 0.0, -_AGAIN_S

    def since_ms(self, account: AccountSettings, last_good_ms: int, now_ms: int) -> int | None:
        """Note a refused poll; says since when the account is stale, or None if it is not yet."""
        first_refused_ms = self._refused_since_ms.setdefault(account.name, now_ms)
        silent_since_ms = last_good_ms or first_refused_ms
        limit_ms = 1000 * STALE_INTERVALS * account.interval.total_seconds()
        return silent_since_ms if now_ms - silent_since_ms >= limit_ms else None

    def ended(self, account: AccountSettings) -> None:
        """Note a good poll."""
        self._refused_since_ms.pop(account.name, None)
        self._stale.discard(account.name)
        if not self._stale:
            self._throttle.over("stale", self._clock())

    def went_stale(self, account: AccountSettings, why: str) -> None:
        """Note an account that has just gone stale."""
        self._stale.add(account.name)
        self._throttle.struck("stale", self._clock())
        self._gather(self._went_stale, {account.name}, 0)
        self._went_stale.reason = why

    def still_stale(self, account: AccountSettings, why: str, stale_ms: int) -> None:
        """Note another refused poll of an account that is stale."""
        self._stale.add(account.name)
        if self._throttle.struck("stale", self._clock()):
            self._gather(self._went_stale, self._stale, stale_ms)
            self._went_stale.reason = why

    def recovered(self, account: AccountSettings, stale_ms: int) -> None:
        """Note an account that is no longer stale."""
        self._gather(self._recovered, {account.name}, stale_ms)

    def _gather(self, into: _Gathered, names: set[str], duration_ms: int) -> None:
        into.names |= names
        into.duration_ms = max(into.duration_ms, duration_ms)
        self._tell_at = self._tell_at or max(self._clock() + _GATHER_S, self._told_at + _AGAIN_S)

    def tell(self, *, at_once: bool = False) -> None:
        """Write what has gathered: a line per account if it is one, else a line for all of them."""
        if not self._tell_at or (self._clock() < self._tell_at and not at_once):
            return
        self._tell_at, self._told_at = 0.0, self._clock()
        stale, recovered = self._went_stale, self._recovered
        self._went_stale, self._recovered = _Gathered(), _Gathered()
        if stale.names:
            log.warning("account.stale", provider=self._provider, reason=stale.reason, **_who(stale))
        if recovered.names:
            log.info("account.recovered", provider=self._provider, **_who(recovered))


def _who(gathered: _Gathered) -> dict[str, object]:
    """Name the account if it is one."""
    names = gathered.names
    who = {"account": next(iter(names))} if len(names) == 1 else {"accounts": len(names)}
    return {**who, "duration_ms": gathered.duration_ms}
