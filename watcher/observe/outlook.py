"""How all stands in the store, as a worker's metrics tell it: read when asked, within a time limit.

Refuses to pass on what is old: a store that does not answer now is not known.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import NamedTuple

from watcher.run.worker import Opened, Worker
from watcher.settings import Settings
from watcher.store.breakers import Breaker, Breakers
from watcher.store.exceptions import StoreError
from watcher.store.keys import Keys
from watcher.store.reader import Backlog, Failing, Overdue, Reader

TIMEOUT_S = 2.0
"""Far less than Prometheus waits for a whole scrape (10 s)."""

_FRESH_S = 5.0
"""Several that scrape at the same time cost Redis no more than one."""


class Seen(NamedTuple):
    """How all stands at one time (Unix ms of the server)."""

    now_ms: int
    failing: Mapping[str, Mapping[str, Failing]]  # by provider and account
    overdue: Mapping[str, Overdue]  # by provider
    waiting: Mapping[str, Backlog]  # by subscription
    breakers: Mapping[str, Breaker]  # by subscription


class Outlook:
    """What one worker sees of its store: the names of the configuration in force alone."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._seen: Seen | None = None
        self._seen_for: Settings | None = None
        self._fresh_until = 0.0

    async def look(self) -> Seen | None:
        """Read the store, unless that was done just now; None where it does not do its part."""
        settings, opened = self._worker.settings, self._worker.opened
        if opened is None or not opened.health.is_up:
            return None
        is_fresh = self._seen_for is settings and time.monotonic() < self._fresh_until
        if self._seen is None or not is_fresh:
            self._seen, self._seen_for = await _read(settings, opened), settings
            self._fresh_until = time.monotonic() + _FRESH_S
        return self._seen


async def _read(settings: Settings, opened: Opened) -> Seen | None:
    pipe, keys = opened.schedule.pipe, Keys(settings.redis.namespace)
    reader = Reader(pipe, keys)
    providers = [*settings.provider_by_name]
    try:
        async with asyncio.timeout(TIMEOUT_S):
            now_ms, breakers, waiting, failing, overdue = await asyncio.gather(
                reader.now_ms(),
                Breakers(pipe, keys).read(),
                reader.waiting(settings.subscription_by_name),
                asyncio.gather(*map(reader.failing, providers)),
                asyncio.gather(*map(reader.overdue, providers)),
            )
    except (StoreError, TimeoutError):
        return None
    return Seen(
        now_ms,
        dict(zip(providers, failing, strict=True)),
        dict(zip(providers, overdue, strict=True)),
        waiting,
        breakers,
    )
