"""Works off one queue: its deliveries in order, one attempt in flight, until it is empty, fails or is lost.

Refuses to go past a delivery that is not settled: order within a queue is the promise.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple, TypeVar

import orjson

from watcher.delivery.hold import Hold
from watcher.delivery.outcomes import Attempt, Outcome, Verdict, judge
from watcher.delivery.post import ATTEMPT_TIMEOUT_S, Target
from watcher.delivery.restraint import Restraint
from watcher.journal.delivery import Delivery, load_delivery
from watcher.observe.counters import Counters
from watcher.observe.log import log
from watcher.store.connect import StoreError
from watcher.store.queues import Begun, Queues
from watcher.store.schedule import Lease, Reply

TURN_MS = 2_000
"""Longest wait for a turn with a queue in hand; where the next one is further off, the queue is given
back."""

EMPTY_MS = 60_000
"""A queue that is due but has no deliveries is looked at again after so long."""

AT_ONCE = 20
"""Deliveries read with one claim: few enough that a queue does not keep a worker from the others."""

CLAIM_MS = 3_000
"""A claim holds for a moment: the worker that takes the queue in hand has it for longer. Where the
answer to a claim is lost nobody does, and so soon it is free again."""

LEASE_MS = 15_000
"""So long a dead worker is missed. Set anew with each delivery; an attempt that is not quick gets more."""

LONGEST_LEASE_MS = 1000 * (ATTEMPT_TIMEOUT_S + 10)
"""For an attempt that takes its time. As with the shorter one, 10 s of it are left to write down what became
of it: so long the store may be away and nothing is posted twice."""

_LEAST_MS = 12_000
"""What a lease must still have when an attempt begins: a quick one, and those 10 s."""

_AGAIN_S = 0.5
"""Between two tries to write down what became of an attempt, while the store is away."""

T = TypeVar("T")


class QueueWorker:
    """Delivers queues of any subscription. What a target answers that is not current any
    more says nothing of its subscription."""

    def __init__(
        self,
        queues: Queues,
        post: Callable[[Target, Delivery, int], Awaitable[Attempt]],
        restraint: Restraint,
        counters: Counters,
        *,
        is_stopped: Callable[[], bool],
        is_current: Callable[[Target], bool],
        may_deliver: Callable[[str], bool],
        now_ms: Callable[[], int],
        failed: Callable[[StoreError], Awaitable[float]],
    ) -> None:
        self._may_deliver = may_deliver
        self._queues = queues
        self._post = post
        self._restraint = restraint
        self._counters = counters
        self._is_stopped = is_stopped
        self._is_current = is_current
        self._now_ms = now_ms
        self._failed = failed

    async def work(self, target: Target, lease: Lease) -> bool:
        """Deliver what waits in a claimed queue; says whether more of it is due. Raises StoreError."""
        until = self._queues.until(lease, LEASE_MS)
        begun = await self._ask(
            lease, lambda: self._queues.begin(target.name, lease, until=until, at_most=AT_ONCE)
        )
        if begun.reply is not Reply.DONE:
            self._tell_of_loss(target, lease)
            return False
        lease = lease._replace(deadline=until)
        if not begun.entries:  # taken away from outside: there is nothing to deliver, nor a hurry
            await self._queues.release(target.name, lease, due_in_ms=EMPTY_MS)
            return False
        hold = Hold(lease, stretch=partial(self._stretch, target.name))
        try:
            for entry in begun.entries:
                if not await self._may_attempt(target, hold.lease):
                    break
                deadline = await self._deliver(target, hold, entry, begun)
                if not deadline:
                    return False
                hold.lease = Lease(lease.member, deadline)
        except asyncio.CancelledError:
            if not self._is_current(target):  # where it has only moved, somebody else goes on at once
                await self._queues.release(target.name, hold.lease)
            raise
        await self._ask(hold.lease, lambda: self._queues.release(target.name, hold.lease))
        return True

    async def _stretch(self, subscription: str, lease: Lease) -> Lease:
        """Keep a queue for an attempt that takes its time."""
        until = self._queues.until(lease, LONGEST_LEASE_MS)
        reply = await self._ask(lease, lambda: self._queues.extend(subscription, lease, until=until))
        return lease._replace(deadline=until) if reply is Reply.DONE else lease

    async def _may_attempt(self, target: Target, lease: Lease) -> bool:
        """Say whether the next delivery is to be attempted now; waits for its turn."""
        if lease.deadline - self._now_ms() < _LEAST_MS:
            return False  # it took long to come here
        if not self._may_deliver(target.name) or not self._is_current(target):
            return False
        if self._is_stopped() or self._restraint.rest_ms(target.name) or not await self._has_turn(target):
            return False
        return not self._is_stopped()  # while it waited for its turn

    async def _deliver(self, target: Target, hold: Hold, entry: bytes, begun: Begun) -> int:
        """Attempt the head of a queue; returns the lease's new deadline, 0 where it ends."""
        try:
            delivery = load_delivery(entry)
        except ValueError:
            return await self._bury(target, hold.lease, entry)
        failed_before = begun.tries if delivery.head == begun.tried else 0
        attempt = await hold.during(self._post(target, delivery, failed_before + 1))
        lease = hold.lease
        verdict = judge(attempt, failed_before, target.settings.retries, chance=random.random())
        one = Tried(lease.member, delivery, failed_before + 1, attempt, verdict)
        reply, deadline = await self._settle(target, lease, one)
        self._tell(target, one)
        # Who was away for longer than a lease missed the answer, if there was one.
        if reply is not Reply.LEASE_LOST and self._is_current(target):
            await self._ask(lease, lambda: self._restraint.note(target.settings, verdict))
        return deadline

    async def _ask(self, lease: Lease, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the store, and again while it is away. Raises StoreError.

        Given up, what was posted would be posted again. So a lease that has run out is no reason: until
        somebody else claims the queue the store still takes the answer, and refuses it afterwards. Only who
        is to end does not wait for longer than the lease.
        """
        while True:
            try:
                return await ask()
            except StoreError as trouble:
                if self._is_stopped() and self._now_ms() >= lease.deadline:
                    raise
                await self._failed(trouble)
            await asyncio.sleep(_AGAIN_S)

    async def _has_turn(self, target: Target) -> bool:
        """Wait for the subscription's next turn, where it set a rate; over all workers together.

        One that is far off is not waited for: the lease would not last.
        """
        per_second = target.settings.requests_per_second
        if not per_second:
            return True
        wait_ms = await self._queues.take_turn(target.name, per_second=per_second, within_ms=TURN_MS)
        if wait_ms > TURN_MS:
            self._restraint.rest(target.name, wait_ms)
            return False
        await asyncio.sleep(wait_ms / 1000)
        return True

    async def _settle(self, target: Target, lease: Lease, one: "Tried") -> tuple[Reply, int]:
        """Write down what became of an attempt; returns the reply and the deadline, as `_deliver` does."""
        name, head, verdict = target.name, one.delivery.head, one.verdict
        record = b"" if one.is_smooth else one.record(self._now_ms())
        until = self._queues.until(lease, LEASE_MS)

        async def settle() -> tuple[Reply, int]:
            match verdict.outcome:
                case Outcome.DELIVERED:
                    return await self._queues.delivered(name, lease, head, until=until, record=record)
                case Outcome.REFUSED:
                    return await self._queues.dead(
                        name, lease, head, until=until, reason=verdict.reason, record=record
                    )
                case Outcome.RETRY:
                    reply = await self._queues.retry(
                        name, lease, head, wait_ms=verdict.wait_ms, record=record
                    )
                    return reply, 0

        reply, deadline = await self._ask(lease, settle)
        await self._part(target, lease, reply, wait_ms=verdict.wait_ms)
        return reply, deadline

    async def _bury(self, target: Target, lease: Lease, entry: bytes) -> int:
        """Take a damaged head away, else it holds up its queue for ever. Returns as `_deliver` does."""
        name, reason = target.name, "what is stored of it cannot be read"
        until = self._queues.until(lease, LEASE_MS)
        reply, deadline = await self._ask(
            lease, lambda: self._queues.dead(name, lease, entry, until=until, reason=reason)
        )
        log.warning("delivery.dead", subscription=name, account=lease.member, reason=reason)
        await self._part(target, lease, reply)
        return deadline

    async def _part(self, target: Target, lease: Lease, reply: Reply, *, wait_ms: int = 0) -> None:
        """Leave a queue that did not take what became of its head.

        Where it was full and gave that head up meanwhile, it is still ours to give back: its next one waits
        as long as this one would have, and not until the lease ends.
        """
        if reply is Reply.LEASE_LOST:
            self._tell_of_loss(target, lease)
        elif reply is Reply.MOVED_ON:
            await self._ask(lease, lambda: self._queues.release(target.name, lease, due_in_ms=wait_ms))

    @staticmethod
    def _tell_of_loss(target: Target, lease: Lease) -> None:
        log.info("lease.lost", account=lease.member, subscription=target.name)

    def _tell(self, target: Target, one: "Tried") -> None:
        fields = {
            "subscription": target.name,
            "account": one.account,
            "event_id": one.delivery.event_id,
            "event_type": one.delivery.type,
            "sequence": one.delivery.sequence,
            "attempt": one.number,
            "status": one.attempt.status,
            "duration_ms": one.attempt.duration_ms,
        }
        self._counters.by_attempt[target.name, one.verdict.outcome.value] += 1
        if one.verdict.outcome is Outcome.DELIVERED:
            lag_ms = max(0, self._now_ms() - one.delivery.sequence)
            self._counters.deliveries += 1
            self._counters.lag_s.add(lag_ms / 1000)
            log.info("delivery.delivered", **fields, lag_ms=lag_ms)
        elif one.verdict.outcome is Outcome.REFUSED:
            log.warning(
                "delivery.dead", **fields, reason=one.verdict.reason, answer=one.attempt.excerpt or None
            )
        else:
            self._counters.retried += 1
            log.info(
                "delivery.retried",
                **fields,
                reason=one.verdict.reason,
                next_ms=one.verdict.wait_ms,
                answer=one.attempt.excerpt or None,  # of which a line shows no more than 200 characters
            )


class Tried(NamedTuple):
    """One attempt of one delivery, and what it was worth. `number` counts from 1."""

    account: str
    delivery: Delivery
    number: int
    attempt: Attempt
    verdict: Verdict

    @property
    def is_smooth(self) -> bool:
        """Delivered at once: the log says so, and there is nothing to remember."""
        return self.verdict.outcome is Outcome.DELIVERED and self.number == 1

    def record(self, now_ms: int) -> bytes:
        """Write the attempt down as `watcher deliveries` shows it."""
        attempt = self.attempt
        return orjson.dumps(
            {
                "at_ms": now_ms,
                "account": self.account,
                "event_id": self.delivery.event_id,
                "event_type": self.delivery.type,
                "attempt": self.number,
                "outcome": self.verdict.outcome.value,
                "status": attempt.status,
                "error": attempt.reason if attempt.error else None,
                "duration_ms": attempt.duration_ms,
                "answer": attempt.excerpt,
            }
        )
