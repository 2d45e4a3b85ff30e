"""The circuit breakers of all subscriptions, as one worker knows and applies them.

What all workers must agree on is in Redis (`store.queues`): it is read once a second, and each change is
written at once. What a change means is decided by `engine.breaker`.
"""

import asyncio
import itertools
import math
import random
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

from watcher.delivery.sink import Attempt
from watcher.engine import breaker as decide
from watcher.engine.breaker import (
    PATIENCE,
    RESULTS,
    SAID_FROM_MS,
    START_PER_S,
    TURN_MS,
    Answer,
    Concurrency,
    Failure,
    Recent,
    State,
)
from watcher.engine.loop import survived
from watcher.observe.log import Throttle, log
from watcher.settings import PER_SECOND_BY_FORMAT, SubscriptionSettings
from watcher.store.exceptions import StoreError, StoreUnreachable
from watcher.store.queues import Breaker, Breakers, Change, Decide

LONGEST_BACKOFF_MS = 60_000
"""Even a paused subscription is looked at after so long: the worker that noticed that it was resumed may have
died."""

_READ_EVERY_S = 1.0
_DAMAGED_S = 30.0
_TIDIED_AT_ONCE = 50
_IDLE_AT_ONCE = 5  # half-open subscriptions that a worker checks for a backlog at each reading


class SubscriptionBreakers:
    """Knows the state of all breakers.

    `most` bounds the attempts of this process at the same time; `workers` says how many workers there are;
    `openings` counts the openings that this worker decided, by subscription. `alert(name, breaker)` sends the
    alert that a subscription is paused. It is called until it succeeds, and perhaps once more: for the same
    pause it must send the same alert.
    """

    def __init__(
        self,
        shared: Breakers,
        *,
        now_ms: Callable[[], int],
        alert: Callable[[str, Breaker], Awaitable[None]],
        most: int,
        workers: Callable[[], int] = lambda: 1,
        openings: Counter[str] | None = None,
    ) -> None:
        self._openings = Counter[str]() if openings is None else openings
        self._shared = shared
        self._now_ms = now_ms
        self._alert = alert
        self._workers = workers
        self._concurrency = Concurrency(most)
        self._read_at = 0.0
        self._changed: set[str] = set()
        self._known: dict[str, Breaker] = {}
        self._turn_at_ms: dict[str, int] = {}
        self._delivered: defaultdict[str, Recent] = defaultdict(Recent)
        self._unreported: Counter[str] = Counter()
        self._throttle = Throttle()
        self._worker = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._free_probes: defaultdict[str, list[str]] = defaultdict(list)
        self._probes: dict[tuple[str, str], str] = {}
        self._counting: dict[str, Failure | None] = {}
        self._uncounted: dict[str, Failure] = {}

    async def refresh(self) -> list[str]:
        """Read once a second what other workers and commands have changed. Returns the subscriptions that may
        be sent to sooner than was known."""
        if time.monotonic() < self._read_at:
            return []
        say = log.debug if self._read_at else log.warning  # later, the worker that paused it has logged it
        self._read_at = time.monotonic() + _READ_EVERY_S
        found: dict[str, Breaker] | None = None
        self._changed.clear()
        with survived("breakers", but=StoreError):
            try:
                found = await self._shared.read()
            except StoreUnreachable:  # they stay as they are; the loop reports it when it claims
                found = {**self._known}
        if found is None:  # damaged: all breakers count as closed
            self._read_at = time.monotonic() + _DAMAGED_S
        found = found or {}
        for name in self._changed:  # changed while they were read: what was read may be older
            found.pop(name, None)
            if name in self._known:
                found[name] = self._known[name]
        before, self._known = self._known, found
        for name, breaker in [*self._known.items()]:
            is_news = breaker.paused_at_ms and not (name in before and before[name].paused_at_ms)
            is_ours = False
            # A pause by hand, or of a worker that could not report it, unless another one reports it.
            if 0 < breaker.report_from_ms <= self._now_ms():
                take = partial(decide.report_taken, paused_at_ms=breaker.paused_at_ms)
                with suppress(StoreError):  # then at another look
                    there, taken = await self._shared.change(name, take)
                    if there != taken:
                        await self._report(name, breaker)
                        is_ours = True
            if is_news and not is_ours:
                say("subscription.paused", subscription=name, reason=breaker.reason)
        with suppress(StoreError):  # then at another look
            await self._tidy()
        sooner = [name for name, old in before.items() if decide.is_better(self._known.get(name), old)]
        for name in sooner:
            self._turn_at_ms.pop(name, None)
            is_forgotten = name not in self._known and not decide.is_closed(before[name])
            if before[name].paused_at_ms or is_forgotten:
                log.info("subscription.resumed", subscription=name)
        return sooner

    async def _tidy(self) -> None:
        """Open breakers if the shards of a Cluster say so, close those of subscriptions without a backlog,
        and forget what is over."""
        failures, self._uncounted = self._uncounted, {}
        for name, failure in failures.items():
            await self._count(name, failure)
        now_ms = self._now_ms()
        over = [name for name, breaker in self._known.items() if decide.tidied(breaker, now_ms) is None]
        await asyncio.gather(*(self._change(name, decide.tidied) for name in over[:_TIDIED_AT_ONCE]))
        half_open = [
            name for name, breaker in self._known.items() if decide.state(breaker, now_ms) is State.HALF_OPEN
        ]
        some = random.sample(half_open, min(_IDLE_AT_ONCE, len(half_open)))
        are_idle = await asyncio.gather(*map(self._shared.is_idle, some))
        for name in itertools.compress(some, are_idle):
            await self._change(name, decide.idle)

    async def _report(self, name: str, breaker: Breaker) -> None:
        """Report a pause, and only then note that it was reported: rather twice than never."""
        with survived("alert", but=StoreError, subscription=name):  # this is not retried for ever
            await self._alert(name, breaker)
        log.warning("subscription.paused", subscription=name, reason=breaker.reason)
        await self._shared.change(name, partial(decide.reported, paused_at_ms=breaker.paused_at_ms))
        self._known[name] = breaker._replace(report_from_ms=0)

    def is_closed(self, name: str) -> bool:
        """Say whether a subscription's breaker is closed, as far as this worker knows."""
        return decide.is_closed(self._known.get(name))

    def may_send(self, name: str, *, is_probe: bool) -> bool:
        """Say whether an attempt may begin now, as far as this worker knows: its subscription does not back
        off, and the breaker is closed or this is its probe."""
        known = self._known.get(name)
        if known is None:
            return True
        return (is_probe or decide.is_closed(known)) and decide.backs_off_until_ms(known) <= self._now_ms()

    def backoff_ms(self, name: str) -> int:
        """Return for how many ms a subscription may be sent nothing, as far as this worker knows."""
        until_ms = max(decide.backs_off_until_ms(self._known.get(name)), self._turn_at_ms.get(name, 0))
        if not until_ms:
            return 0
        return int(min(LONGEST_BACKOFF_MS, max(0, until_ms - self._now_ms())))

    def capacity(self, subscription: SubscriptionSettings, in_flight: int, in_flight_of_all: int) -> int:
        """Return how many more queues of a subscription may be worked on."""
        return self._capacity(subscription, self.spacing_ms(subscription), in_flight, in_flight_of_all)

    def _capacity(
        self, subscription: SubscriptionSettings, spacing_ms: float, in_flight: int, in_flight_of_all: int
    ) -> int:
        known = self._known.get(subscription.name)
        return self._concurrency.capacity(
            subscription.name,
            probes=None if known is None or decide.is_closed(known) else known.allowed,
            limit=subscription.max_in_flight,
            per_second=1000 / spacing_ms if spacing_ms else 0,
            in_flight=in_flight,
            in_flight_of_all=in_flight_of_all,
        )

    def spare(self, subscription: SubscriptionSettings, in_flight: int, in_flight_of_all: int) -> int:
        """Return how many more queues may be worked on without a probe: none unless the breaker is closed,
        and no more than have their turn soon."""
        name, turn_at_ms = subscription.name, self._turn_at_ms.get(subscription.name)
        if not self.may_send(name, is_probe=False) or (turn_at_ms and turn_at_ms > self._now_ms()):
            return 0
        spacing_ms = self.spacing_ms(subscription)
        capacity = self._capacity(subscription, spacing_ms, in_flight, in_flight_of_all)
        return capacity - in_flight if spacing_ms else capacity

    def spacing_ms(self, subscription: SubscriptionSettings) -> float:
        """Return the ms between two attempts, over all workers: by the subscription's own rate or that of its
        format, or by the pace of its receiver, if that is slower. 0 is no limit."""
        known = self._known.get(subscription.name)
        slowest = subscription.requests_per_second or PER_SECOND_BY_FORMAT[subscription.format] or math.inf
        if known:
            slowest = min(slowest, decide.pace_per_s(known, self._now_ms()) or math.inf)
        return 1000 / slowest

    async def turn_ms(self, subscription: SubscriptionSettings) -> float | None:
        """Take a turn. Returns in how many ms it is; None if it is too far off, and then nothing is sent
        until it is near. Raises StoreError."""
        name = subscription.name
        spacing_ms = self.spacing_ms(subscription)
        if not spacing_ms:
            return 0.0
        wait_ms = await self._shared.take_turn(
            name, spacing_ms=spacing_ms, within_ms=TURN_MS, delivered=self._unreported.pop(name, 0)
        )
        if wait_ms <= TURN_MS:
            return wait_ms
        self._turn_at_ms[name] = self._now_ms() + math.ceil(wait_ms - TURN_MS / 2)
        return None

    async def take_probes(self, name: str, wanted: int, *, lease_ms: int) -> int:
        """Return to how many queues of a subscription this worker may send; of a half-open one, as many as
        there are free probes over all workers. The caller hands these on with `probe`. Raises StoreError."""
        known = self._known.get(name)
        if known is None or decide.is_closed(known):
            return wanted
        free = self._free_probes[name]
        free += (f"{self._worker} {next(self._numbers)}" for _ in range(wanted - len(free)))
        with survived("probe", but=StoreError, subscription=name):
            free[:] = await self._shared.take_probes(name, free, at_most=known.allowed, lease_ms=lease_ms)
            return len(free)
        return 1  # a damaged key must not silence its subscription for ever

    async def probe(self, name: str, accounts: Sequence[str]) -> None:
        """Give the probes that were taken to claimed queues, and return the rest."""
        free = self._free_probes.pop(name, [])
        for account in accounts[: len(free)]:
            self._probes[name, account] = free.pop()
        if free:
            await self._leave(name, free)

    def is_probe(self, name: str, account: str) -> bool:
        """Say whether a queue has a probe: it may send once although the breaker is half-open."""
        return (name, account) in self._probes

    def is_probed_alone(self, name: str, account: str) -> bool:
        """Say whether the previous probe came from the same queue: no other queue seems to wait."""
        known = self._known.get(name)
        return known is not None and known.prober == account

    async def leave_probe(self, name: str, account: str) -> None:
        """Return a queue's probe, if it has one."""
        if probe := self._probes.pop((name, account), None):
            await self._leave(name, [probe])

    async def _leave(self, name: str, probes: Sequence[str]) -> None:
        """Return probes. While Redis is away, their leases run out by themselves."""
        with suppress(StoreError), survived("probe", but=StoreError, subscription=name):
            await self._shared.leave_probes(name, probes)

    async def try_again(self, name: str, *reasons: str) -> bool:
        """Send to a subscription again at once if it failed for one of these reasons (how they begin).
        Returns whether that was so, and it is not paused. Raises StoreError."""
        _, after = await self._shared.change(name, partial(decide.tried_again, reasons=reasons))
        return after is not None and not after.paused_at_ms and after.reason.startswith(reasons)

    async def note_ping(self, name: str, error: str) -> None:
        """Note why a URL is not verified; "" once it is. Raises StoreError."""
        await self._change(name, partial(decide.pinged, error=error))

    async def resume(self, name: str) -> None:
        """Forget that a subscription failed or was paused. Raises StoreError."""
        await self._shared.resume(name)

    def note_delivered(self, subscription: SubscriptionSettings, now_ms: int) -> None:
        """Note a delivery that was no probe."""
        name = subscription.name
        self._concurrency.delivered(name, limit=subscription.max_in_flight)
        self._delivered[name].add(now_ms)
        if self.spacing_ms(subscription):
            self._unreported[name] += 1

    async def note(self, subscription: SubscriptionSettings, account: str, attempt: Attempt) -> None:
        """Note what an attempt says of its subscription. Raises StoreError, and must then be called again."""
        name, answer, now_ms = subscription.name, attempt.answer, self._now_ms()
        is_probe = self.is_probe(name, account)
        with survived("breakers", but=StoreError, subscription=name):
            if answer is Answer.DELIVERED:
                self.note_delivered(subscription, now_ms)
                if is_probe:
                    await self._change(name, partial(decide.probed, account=account))
                return
            failure = Failure(attempt.reason, int(1000 * (attempt.retry_after_s or 0)))
            match answer:
                case Answer.SLOW_DOWN:
                    await self._limited(subscription, failure)
                case Answer.FORBIDDEN:
                    await self._change(name, partial(decide.forbidden, failure=failure))
                case Answer.GONE:
                    await self._change(name, partial(decide.gone, failure=failure))
                case _ if answer in RESULTS:
                    if RESULTS[answer] == "unavailable":
                        self._concurrency.failed(name)
                    if answer is Answer.OVERLOADED:
                        self._concurrency.overloaded(name, now_ms)
                    if is_probe:
                        failed = partial(decide.probed, account=account, failure=failure)
                        await self._change(name, failed)
                    elif self._shared.is_apart:
                        self._uncounted[name] = failure
                    else:
                        await self._count(name, failure)

    async def _count(self, name: str, failure: Failure) -> None:
        """Count the results that all shards noted, and open the breaker if they call for it.

        One count runs at a time: what fails meanwhile is part of the next one. On a Cluster it is made at the
        next reading.
        """
        if name in self._counting:
            self._counting[name] = failure
            return
        next_: Failure | None = failure
        self._counting[name] = None
        try:
            while next_ and self.is_closed(name):
                self._counting[name] = None
                known = self._known.get(name, Breaker())
                results = await self._shared.count_results(name, closed_at_ms=known.closed_at_ms)
                if decide.opens(results):
                    await self._change(name, partial(decide.counted, results=results, failure=next_))
                next_ = self._counting[name]
        finally:
            del self._counting[name]

    async def _limited(self, subscription: SubscriptionSettings, failure: Failure) -> None:
        """Send nothing to a subscription whose receiver asked for fewer requests, and set its pace."""
        name = subscription.name
        own = subscription.requests_per_second or PER_SECOND_BY_FORMAT[subscription.format] or START_PER_S
        start_per_s = min(own, float(subscription.max_in_flight))
        known, now_ms = self._known.get(name), self._now_ms()
        delivered = await self._shared.hold_turns(
            name,
            for_ms=failure.asked_ms,
            delivered=self._unreported.pop(name, 0),
        )
        if delivered is None or not decide.pace_per_s(known, now_ms):
            delivered = max(delivered or 0.0, self._delivered[name].per_s(now_ms) * max(1, self._workers()))
        limited = partial(decide.limited, failure=failure, delivered_per_s=delivered, start_per_s=start_per_s)
        await self._change(name, limited)

    async def _change(self, name: str, decision: Decide) -> Change:
        """Change a subscription's breaker, and log what is new."""
        before, after = change = await self._shared.change(name, decision)
        self._changed.add(name)
        if after is None:
            self._known.pop(name, None)
            self._throttle.over(name, time.monotonic())
        else:
            known, self._known[name] = self._known.get(name), after
            if before and before.paused_at_ms and not (known and known.paused_at_ms):
                log.debug("subscription.paused", subscription=name, reason=after.reason)
            await self._said(name, before or Breaker(), after)
        return change

    async def _said(self, name: str, before: Breaker, after: Breaker) -> None:
        """Log an opening, a closing, a long wait, a pause, and a pace."""
        now_ms = self._now_ms()
        if after.paused_at_ms:
            if not before.paused_at_ms:
                await self._report(name, after)
            return
        is_opening = decide.is_closed(before) and not decide.is_closed(after)
        backoff_ms = after.open_until_ms - now_ms
        if is_opening:
            self._openings[name] += 1
        if is_opening or (after.open_until_ms > before.open_until_ms and backoff_ms > SAID_FROM_MS):
            failing_ms = now_ms - after.since_ms
            log.warning(
                "subscription.failing",
                subscription=name,
                reason=after.reason,
                next_ms=max(0, backoff_ms),
                pause_in_ms=max(0, int(1000 * PATIENCE.total_seconds()) - failing_ms),
                duration_ms=max(0, failing_ms),
                times=after.rests,
            )
        if decide.is_closed(after) and not decide.is_closed(before):
            log.info("subscription.recovered", subscription=name, duration_ms=now_ms - before.since_ms)
        held_ms = after.held_until_ms - max(now_ms, before.held_until_ms)
        is_paced = after.pace_at_ms != before.pace_at_ms
        # A receiver at its limit refuses a request every few seconds: a short wait is logged seldom.
        if held_ms > SAID_FROM_MS or (is_paced and self._throttle.struck(name, time.monotonic())):
            log.warning(
                "subscription.rate_limited",
                subscription=name,
                reason=after.reason,
                per_second=after.pace_per_s,
                next_ms=max(0, after.held_until_ms - now_ms),
            )
