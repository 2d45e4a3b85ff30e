"""Knows whether the server does its part, and says so once when it stops and once when it is back.

Refuses to decide what to do meanwhile: whoever failed waits as long as it is told, and tries again.
"""

import time
from collections.abc import Awaitable, Callable

from watcher.logs import log
from watcher.store.connect import StoreError

_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""A restarted server is found within two seconds, and a dead one costs next to nothing."""

_REMIND_S = 60.0
"""How often a trouble that lasts is said again."""


class StoreHealth:
    """Shared by the loops of one worker. `mend` starts an embedded server again that is gone."""

    def __init__(self, mend: Callable[[], Awaitable[object]] | None = None) -> None:
        self._mend = mend
        self._down_since: float | None = None
        self._said_at = 0.0
        self._failures = 0

    async def failed(self, trouble: StoreError) -> float:
        """Note a failure; returns how many seconds to wait before the next try."""
        now = time.monotonic()
        pause_s = _PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)]
        self._failures += 1
        if self._down_since is None or now - self._said_at >= _REMIND_S:
            event = "store.refusing" if "refuses writes" in str(trouble) else "store.unreachable"
            log.error(event, reason=str(trouble), next_ms=int(1000 * pause_s))
            self._said_at = now
        self._down_since = self._down_since or now
        if self._mend:
            try:
                await self._mend()
            except StoreError as still:
                log.debug("store.unreachable", reason=str(still))
        return pause_s

    def answered(self) -> None:
        """Note that the server did what it was asked."""
        if self._down_since is None:
            return
        log.info("store.recovered", duration_ms=int(1000 * (time.monotonic() - self._down_since)))
        self._down_since = None
        self._failures = 0
