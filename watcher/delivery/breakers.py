"""The breakers of all subscriptions, as one worker sees and applies them.

What all workers must agree on is in Redis (`store.queues`), read once a second and noted at once; what it
means is `engine.breaker`'s to say.
"""

import math
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from watcher.delivery.sink import Outcome, Verdict
from watcher.engine import breaker as decide
from watcher.engine.breaker import HALF_OPEN_FROM, PATIENCE, Concurrency
from watcher.engine.loop import survived
from watcher.observe.log import Throttle, log
from watcher.settings import SubscriptionSettings
from watcher.store.exceptions import StoreError, StoreUnreachable
from watcher.store.queues import Breaker, Breakers

LONGEST_REST_MS = 60_000
"""Even a paused subscription is looked at after so long: the worker that noticed its resumption may have
died."""

_READ_EVERY_S = 1.0
_DAMAGED_S = 30.0


class SubscriptionBreakers:
    """Knows the state of all breakers. `most` bounds the attempts of this process at the same time.

    `alert(name, breaker)` sends the alert that a subscription is paused. It is called until it has
    succeeded, and may be called once more: for the same pause it must send the same.
    """

    def __init__(
        self,
        shared: Breakers,
        *,
        now_ms: Callable[[], int],
        alert: Callable[[str, Breaker], Awaitable[None]],
        most: int,
    ) -> None:
        self._shared = shared
        self._now_ms = now_ms
        self._alert = alert
        self._concurrency = Concurrency(most)
        self._read_at = 0.0
        self._known: dict[str, Breaker] = {}
        self._turn_at_ms: dict[str, int] = {}
        self._throttle = Throttle()
        self._worker = secrets.token_hex(8)
        self._probed: set[str] = set()

    async def refresh(self) -> list[str]:
        """Learn once a second what other workers, and commands, have noted.

        Names the subscriptions that may be delivered to sooner than was known until now.
        """
        if time.monotonic() < self._read_at:
            return []
        say = log.debug if self._read_at else log.warning  # at the start it is news; then one worker says it
        self._read_at = time.monotonic() + _READ_EVERY_S
        found: dict[str, Breaker] | None = None
        with survived("breakers", but=StoreError):
            try:
                found = await self._shared.read()
            except StoreUnreachable:  # they stand as they did; the loop says so when it claims
                found = self._known
        if found is None:  # damaged: all are closed
            self._read_at = time.monotonic() + _DAMAGED_S
        before, self._known = self._known, found or {}
        sooner = [name for name, old in before.items() if decide.is_better(self._known.get(name), old)]
        for name in sooner:
            self._throttle.over(name, time.monotonic())
            if before[name].paused_at_ms:
                log.info("subscription.resumed", subscription=name)
        for name, breaker in [*self._known.items()]:
            is_news = breaker.paused_at_ms and not (name in before and before[name].paused_at_ms)
            is_ours = False
            # What was paused by hand, or by a worker that could not report it, unless another one does.
            if 0 < breaker.report_from_ms <= self._now_ms():
                take = partial(decide.report_taken, paused_at_ms=breaker.paused_at_ms)
                with suppress(StoreError):  # then at another look
                    there, taken = await self._shared.change(name, take)
                    if there != taken:
                        await self._report(name, breaker)
                        is_ours = True
            if is_news and not is_ours:
                say("subscription.paused", subscription=name, reason=breaker.reason)
        return sooner

    async def _report(self, name: str, breaker: Breaker) -> None:
        """Report a pause, and only then note that it was reported: rather twice than never."""
        with survived("alert", but=StoreError, subscription=name):  # it is not tried for ever
            await self._alert(name, breaker)
        log.warning("subscription.paused", subscription=name, reason=breaker.reason)
        await self._shared.change(name, partial(decide.reported, paused_at_ms=breaker.paused_at_ms))
        self._known[name] = breaker._replace(report_from_ms=0)

    def rest_ms(self, name: str) -> int:
        """Say for how many ms a subscription is backing off, as far as is known."""
        until_ms = max(decide.closed_at_ms(self._known.get(name)), self._turn_at_ms.get(name, 0))
        return int(min(LONGEST_REST_MS, max(0, until_ms - self._now_ms())))

    def rest(self, name: str, for_ms: float) -> None:
        """Send nothing to a subscription from this process until its next turn."""
        self._turn_at_ms[name] = self._now_ms() + math.ceil(for_ms)

    def room(self, subscription: SubscriptionSettings, in_flight: int, in_flight_of_all: int) -> int:
        """Say how many more queues of a subscription may be worked on."""
        return self._concurrency.room(
            subscription.name,
            is_failing=decide.is_failing(self._known.get(subscription.name)),
            limit=subscription.max_in_flight,
            per_second=subscription.requests_per_second,
            in_flight=in_flight,
            in_flight_of_all=in_flight_of_all,
        )

    async def may_ask(self, name: str, *, lease_ms: int) -> bool:
        """Say whether this worker may send to a subscription: to a failing one only one worker at a time may.

        If it may, the caller has to call `leave_probe` afterwards. Raises StoreError.
        """
        if not decide.is_failing(self._known.get(name)):
            return True
        with survived("probe", but=StoreError, subscription=name):
            is_ours = await self._shared.take_probe(name, self._worker, lease_ms=lease_ms)
            if is_ours:
                self._probed.add(name)
            return is_ours
        return True  # a damaged key must not silence its subscription for ever

    async def leave_probe(self, name: str) -> None:
        """Give the probe to other workers, if this one has it. While Redis is away, its lease ends by
        itself."""
        if name in self._probed:
            self._probed.discard(name)
            with suppress(StoreError):
                await self._shared.leave_probe(name, self._worker)

    async def try_again(self, name: str, *reasons: str) -> bool:
        """Send to a subscription again at once if it failed for one of these reasons (how they begin); says
        whether it did, and is not paused. Raises StoreError."""
        _, after = await self._shared.change(name, partial(decide.tried_again, reasons=reasons))
        return after is not None and not after.paused_at_ms and after.reason.startswith(reasons)

    async def resume(self, name: str) -> None:
        """Forget that a subscription failed or was paused. Raises StoreError."""
        await self._shared.resume(name)

    async def note(self, subscription: SubscriptionSettings, verdict: Verdict) -> None:
        """Note what an attempt said of its subscription. Raises StoreError, and is then called again."""
        name = subscription.name
        if verdict.outcome is not Outcome.DELIVERED:
            if verdict.failure.rule.waits_ms[0]:
                self._concurrency.opened(name)
            with survived("breakers", but=StoreError, subscription=name):
                await self._failed(name, verdict)
            return
        known = self._known.get(name)
        if known is None or known.paused_at_ms:
            self._concurrency.delivered(name)
            return
        self._throttle.over(name, time.monotonic())
        with survived("breakers", but=StoreError, subscription=name):
            before, _ = await self._shared.change(name, decide.succeeded)
            if known.open_until_ms > self._now_ms():  # this attempt began before: it stays open
                self._known[name] = known._replace(failures=0)
            else:
                self._known.pop(name, None)
            if before and not before.paused_at_ms and before.failures >= HALF_OPEN_FROM:
                duration_ms = self._now_ms() - known.since_ms
                log.info("subscription.recovered", subscription=name, duration_ms=duration_ms)
        self._concurrency.delivered(name)

    async def _failed(self, name: str, verdict: Verdict) -> None:
        """Note a failure, and log that the subscription fails, when it is tried again, and when it would be
        paused."""
        before, after = await self._shared.change(name, partial(decide.failed, failure=verdict.failure))
        assert after
        self._known[name] = after
        if after.paused_at_ms:
            if not (before and before.paused_at_ms):
                await self._report(name, after)
            return
        has_counted = after.failures > (before.failures if before else 0)
        if (
            after.failures < HALF_OPEN_FROM
            or not has_counted
            or not self._throttle.struck(name, time.monotonic())
        ):
            return
        now_ms = self._now_ms()
        failing_ms = now_ms - after.since_ms
        log.warning(
            "subscription.failing",
            subscription=name,
            reason=after.reason,
            next_ms=max(verdict.wait_ms, after.open_until_ms - now_ms),
            pause_in_ms=max(0, int(1000 * PATIENCE.total_seconds()) - failing_ms),
            duration_ms=failing_ms,
            times=after.failures,
        )
