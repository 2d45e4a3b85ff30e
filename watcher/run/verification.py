"""Pings new URLs of subscriptions until they answer with 2xx: only then are events sent to them.

One worker at a time pings for all. Refuses to ping a host more than ten times a minute in all.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from watcher.delivery.sink import Attempt
from watcher.engine.breaker import BACKOFF_MS, Answer
from watcher.fields import as_written
from watcher.journal.events import Event
from watcher.journal.notices import sample
from watcher.observe.log import Throttle, log
from watcher.settings import SubscriptionSettings
from watcher.store.keys import Keys
from watcher.store.pipe import in_parts
from watcher.store.queues import take_lease
from watcher.store.schedule import Schedule

VERIFY_S = 1.0
"""How often a worker looks for URLs to ping."""

PATIENCE_MS = 24 * 3_600_000
"""How long a URL is pinged. After that, a client has to ask for a ping."""

SPACING_MS = 6_000
"""Between two pings of one host, over all workers."""

_LEASE_MS = 45_000
"""How long one worker is the one that pings: longer than an attempt takes."""

_TOGETHER = 50
"""Pings under way at the same time: hosts that hang hold up no more than these."""


class Unverified(NamedTuple):
    """A subscription whose URL has not answered yet: the `version` of its record, and since when (Unix
    ms)."""

    settings: SubscriptionSettings
    version: int
    since_ms: int


class TooMany(Exception):
    """The host has had its ten pings of this minute; the next one may be sent in `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("a host is pinged at most ten times a minute")


class _Tried(NamedTuple):
    """How often this worker pinged a version of a record, and when the next ping is due (Unix ms)."""

    version: int
    times: int
    next_ms: int


class Verification:
    """One worker's part in it.

    `send` makes one attempt, as a delivery is sent; `note` writes down that a URL has answered, and says
    whether that is news; `tell` shows why one has not ("": it has).
    """

    def __init__(
        self,
        schedule: Schedule,
        keys: Keys,
        *,
        send: Callable[[SubscriptionSettings, Event], Awaitable[Attempt]],
        note: Callable[[str, str], Awaitable[bool]],
        tell: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._schedule = schedule
        self._keys = keys
        self._holder = secrets.token_hex(8)
        self._send = send
        self._note = note
        self._tell = tell
        self._tried: dict[str, _Tried] = {}
        self._failing = Throttle()

    async def look(self, waiting: Collection[Unverified]) -> None:
        """Ping those of the `waiting` that are due, if no other worker does. Raises StoreError."""
        for name in self._tried.keys() - {one.settings.name for one in waiting}:
            del self._tried[name]
            self._failing.over(name, time.monotonic())
        now_ms = self._schedule.now_ms()
        due = [one for one in waiting if self._is_due(one, now_ms)]
        if not due or not await take_lease(
            self._schedule.pipe, self._keys.verifier(), self._holder, lease_ms=_LEASE_MS
        ):
            return
        for part in in_parts(due, _TOGETHER):
            await asyncio.gather(*map(self._try, part))

    async def ping(self, settings: SubscriptionSettings) -> Attempt:
        """Send a signed ping now. A URL that answers it with 2xx is verified. Raises TooMany and
        StoreError."""
        wait_ms = await self._schedule.take_turns(
            self._keys.ping_rate(_host(settings)), 1, spacing_ms=SPACING_MS, within_ms=0
        )
        if wait_ms > 0:
            raise TooMany(wait_ms / 1000)
        name = settings.name
        event = sample("subscription.ping", name, nonce=secrets.token_hex(8), now_ms=self._schedule.now_ms())
        attempt = await self._send(settings, event)
        if attempt.answer is Answer.DELIVERED and await self._note(name, settings.url.get_secret_value()):
            log.info("subscription.verified", subscription=name, duration_ms=attempt.duration_ms)
        await self._tell(name, "" if attempt.answer is Answer.DELIVERED else attempt.reason)
        return attempt

    def _is_due(self, one: Unverified, now_ms: int) -> bool:
        if now_ms >= one.since_ms + PATIENCE_MS:
            return False
        tried = self._tried.get(one.settings.name)
        # If the clock was set back, nothing waits for longer than the longest backoff.
        return (
            tried is None
            or tried.version != one.version
            or not now_ms < tried.next_ms <= now_ms + BACKOFF_MS[-1]
        )

    async def _try(self, one: Unverified) -> None:
        name = one.settings.name
        try:
            attempt = await self.ping(one.settings)
        except TooMany:
            return  # at one of the next looks
        if attempt.answer is Answer.DELIVERED:
            return
        tried = self._tried.get(name)
        times = tried.times + 1 if tried and tried.version == one.version else 1
        now_ms = self._schedule.now_ms()
        next_ms = now_ms + BACKOFF_MS[min(times, len(BACKOFF_MS)) - 1]
        self._tried[name] = _Tried(one.version, times, next_ms)
        is_last = next_ms >= one.since_ms + PATIENCE_MS
        streak = self._failing.struck(name, time.monotonic())
        if streak or is_last:
            log.warning(
                "subscription.unverified",
                subscription=name,
                reason=attempt.reason,
                attempt=times,
                next_ms=None if is_last else next_ms - now_ms,
            )


def _host(settings: SubscriptionSettings) -> str:
    return as_written(settings.url.get_secret_value()).raw_host or ""
