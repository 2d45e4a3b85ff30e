"""How much a subscription may be asked now: how it stands, what it allows, what this process can bear.

What all workers must agree on is in Redis (`store.standings`), read once a second and noted at once.
Refuses to claim and to send.
"""

import math
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from watcher.delivery.damage import survived
from watcher.delivery.outcomes import Outcome, Verdict
from watcher.observe.log import log
from watcher.observe.throttle import Throttle
from watcher.settings import SubscriptionSettings
from watcher.store.connect import StoreError, StoreUnreachable
from watcher.store.standings import PATIENCE, Standing, Standings

LONGEST_REST_MS = 60_000
"""Even a paused subscription is looked at after so long: whoever saw that it was resumed may have died."""

PROBE_FROM = 3
"""After so many failures in a row, or after it was left alone, one queue at a time goes out, over all
workers, until one is delivered: no stampede."""

_READ_EVERY_S = 1.0
_DAMAGED_S = 30.0
_SHARED = 0.8
"""The last fifth of what this process can bear is for subscriptions that stand well and have nothing in
flight: a thousand that hang must leave room for the one that does not."""


class Restraint:
    """Knows how all subscriptions stand. `most` bounds the attempts of this process at the same time.

    `alert(name, standing)` tells whoever is to hear that a subscription is paused. It is called until it
    has succeeded, and may be called once more: for the same pause it must say the same.
    """

    def __init__(
        self,
        standings: Standings,
        *,
        now_ms: Callable[[], int],
        alert: Callable[[str, Standing], Awaitable[None]],
        most: int,
    ) -> None:
        self._standings = standings
        self._now_ms = now_ms
        self._alert = alert
        self._most = most
        self._read_at = 0.0
        self._known: dict[str, Standing] = {}
        self._turn_at_ms: dict[str, int] = {}
        self._throttle = Throttle()
        self._earned: Counter[str] = Counter()
        self._who = secrets.token_hex(8)
        self._probed: set[str] = set()

    async def refresh(self) -> list[str]:
        """Learn once a second what other workers, and commands, have noted.

        Names the subscriptions that may be delivered to sooner than was known until now.
        """
        if time.monotonic() < self._read_at:
            return []
        say = log.debug if self._read_at else log.warning  # at the start it is news; then one worker says it
        before, self._known = self._known, await self._read()
        sooner = [name for name, old in before.items() if _is_better(self._known.get(name), old)]
        for name in sooner:
            self._throttle.over(name, time.monotonic())
            if before[name].paused_at_ms:
                log.info("subscription.resumed", subscription=name)
        for name, standing in [*self._known.items()]:
            is_news = standing.paused_at_ms and not (name in before and before[name].paused_at_ms)
            if not await self._has_told_of(name, standing) and is_news:
                say("subscription.paused", subscription=name, reason=standing.reason)
        return sooner

    async def _has_told_of(self, name: str, standing: Standing) -> bool:
        """Tell of what was paused by hand, or by a worker that could not tell, unless another one does."""
        if 0 < standing.tell_from_ms <= self._now_ms():
            with suppress(StoreError):  # then at another look
                if await self._standings.take_telling(name, standing):
                    await self._tell_of(name, standing)
                    return True
        return False

    async def _tell_of(self, name: str, standing: Standing) -> None:
        """Tell of a pause, and only then note that it was told: rather twice than never."""
        with survived("alert", subscription=name):  # it is not tried for ever
            await self._alert(name, standing)
        log.warning("subscription.paused", subscription=name, reason=standing.reason)
        await self._standings.told(name, standing)
        self._known[name] = standing._replace(tell_from_ms=0)

    async def _read(self) -> dict[str, Standing]:
        """Read all standings. Where they are damaged, all subscriptions stand well; where they are away, as
        they stood: whoever claims queues meanwhile says so."""
        self._read_at = time.monotonic() + _READ_EVERY_S
        with survived("standings"):
            try:
                return await self._standings.read()
            except StoreUnreachable:
                return self._known
        self._read_at = time.monotonic() + _DAMAGED_S
        return {}

    def rest_ms(self, name: str) -> int:
        """Say for how many ms a subscription is to be left alone, as far as that is foreseen."""
        until_ms = max(_until_ms(self._known.get(name)), self._turn_at_ms.get(name, 0))
        return int(min(LONGEST_REST_MS, max(0, until_ms - self._now_ms())))

    def rest(self, name: str, for_ms: float) -> None:
        """Leave a subscription alone, in this process: so far off is its next turn."""
        self._turn_at_ms[name] = self._now_ms() + math.ceil(for_ms)

    def room(self, subscription: SubscriptionSettings, in_flight: int, in_flight_of_all: int) -> int:
        """Say how many more queues of a subscription may be worked on.

        It starts with one, and each delivery earns it one more: of those that are dead nobody knows that at
        first, and of those that come back nobody knows how much they can bear.
        """
        is_failing = _is_failing(self._known.get(subscription.name))
        allowed = 1 if is_failing else min(1 + self._earned[subscription.name], subscription.max_in_flight)
        if subscription.requests_per_second:
            allowed = min(allowed, max(1, int(subscription.requests_per_second)))
        bearable = int(self._most * _SHARED) if is_failing or in_flight else self._most
        return max(0, min(allowed - in_flight, bearable - in_flight_of_all))

    async def may_ask(self, name: str, *, lease_ms: int) -> bool:
        """Say whether this worker may ask a subscription: a failing one is asked by one at a time.

        Whoever may has to call `leave_probe` when it has asked. Raises StoreError.
        """
        if not _is_failing(self._known.get(name)):
            return True
        with survived("probe", subscription=name):
            is_ours = await self._standings.take_probe(name, self._who, lease_ms=lease_ms)
            if is_ours:
                self._probed.add(name)
            return is_ours
        return True  # a damaged key must not silence its subscription for ever

    async def leave_probe(self, name: str) -> None:
        """Let another worker ask, if it was this one. Where the store is away, the lease ends by itself."""
        if name in self._probed:
            self._probed.discard(name)
            with suppress(StoreError):
                await self._standings.leave_probe(name, self._who)

    async def note(self, subscription: SubscriptionSettings, verdict: Verdict) -> None:
        """Note what an attempt said of its subscription. Raises StoreError, and is then called again."""
        with survived("standings", subscription=subscription.name):
            if verdict.outcome is Outcome.DELIVERED:
                await self._succeeded(subscription.name)
                self._earned[subscription.name] += 1
            else:
                if verdict.rests_ms[0]:
                    del self._earned[subscription.name]
                await self._failed(subscription, verdict)

    async def _succeeded(self, name: str) -> None:
        failed = self._known.get(name)
        self._throttle.over(name, time.monotonic())
        if failed is None or failed.paused_at_ms:
            return
        failures = await self._standings.succeeded(name)  # as all workers counted them
        if failed.held_until_ms > self._now_ms():  # this attempt began before: the rest stays as it is
            self._known[name] = failed._replace(failures=0)
        else:
            self._known.pop(name, None)
        if failures >= PROBE_FROM:
            log.info(
                "subscription.recovered", subscription=name, duration_ms=self._now_ms() - failed.since_ms
            )

    async def _failed(self, subscription: SubscriptionSettings, verdict: Verdict) -> None:
        name = subscription.name
        standing, is_paused, has_counted = await self._standings.failed(
            name, verdict.reason, pause=verdict.pause, wish_ms=verdict.wish_ms, holds_ms=verdict.rests_ms
        )
        self._known[name] = standing
        if is_paused:
            await self._tell_of(name, standing)
        elif has_counted and standing.failures >= PROBE_FROM:
            self._warn(standing, name, verdict)

    def _warn(self, standing: Standing, name: str, verdict: Verdict) -> None:
        """Say that a subscription fails, when it is tried again, and when it is paused if it goes on so."""
        if self._throttle.struck(name, time.monotonic()):
            now_ms = self._now_ms()
            failing_ms = now_ms - standing.since_ms
            log.warning(
                "subscription.failing",
                subscription=name,
                reason=standing.reason,
                next_ms=max(verdict.wait_ms, standing.held_until_ms - now_ms),
                pause_in_ms=max(0, int(1000 * PATIENCE.total_seconds()) - failing_ms),
                duration_ms=failing_ms,
                times=standing.failures,
            )


def _is_failing(standing: Standing | None) -> bool:
    return standing is not None and (standing.failures >= PROBE_FROM or standing.held_until_ms > 0)


def _is_better(new: Standing | None, old: Standing) -> bool:
    """Say whether more may be sent to a subscription than before, or sooner."""
    return _until_ms(new) < _until_ms(old) or (_is_failing(old) and not _is_failing(new))


def _until_ms(standing: Standing | None) -> float:
    """Say until when a subscription that stands so is left alone (server ms)."""
    if standing is None:
        return 0
    return math.inf if standing.paused_at_ms else standing.held_until_ms
