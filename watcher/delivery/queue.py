"""Deliveries as the engine runs them: claims as many queues as subscriptions can bear, and works them off.

Refuses to skip a delivery that is not settled: the order within a queue is the promise.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice, takewhile
from typing import Any, Generic, NamedTuple, TypeVar

import orjson

from watcher.delivery.breakers import SubscriptionBreakers
from watcher.delivery.sink import ATTEMPT_TIMEOUT_S, DELIVERED, Attempt, Outcome, Sink, Target, Verdict, judge
from watcher.engine.breaker import BY_HAND, RESULTS, Answer, paused
from watcher.engine.dispatch import Capacity, Claim
from watcher.engine.loop import Claimed, InUse, Neighbours, survived
from watcher.http.pool import Deadlines
from watcher.journal.events import Delivery
from watcher.observe.counters import Attempted, Counters
from watcher.observe.log import log
from watcher.store.exceptions import StoreError
from watcher.store.keys import SHARDS
from watcher.store.queues import CLAIM_MS, LEASE_MS, Breakers, Queues
from watcher.store.schedule import Lease, Reply

AT_ONCE = 20
"""Deliveries read with one claim: few, so that a queue does not keep a worker from the others."""

LONGEST_LEASE_MS = 1000 * (ATTEMPT_TIMEOUT_S + 10)
"""The lease of a slow attempt. 10 s of it remain to settle the attempt, as with the shorter lease: Redis may
be away for so long without anything being sent twice."""

_LEAST_MS = 12_000
"""What a lease must have left when an attempt begins: a quick attempt, and those 10 s."""

_PER_CLAIM = 16
"""How many queues make it worth claiming at one more shard: queues of the same shard are settled together."""

_AGAIN_S = 0.5
"""Between two tries to settle an attempt while Redis is away."""

QUICK_S = 2.0
"""Most attempts take no longer."""

_FULL_S = 1.0
"""A subscription without capacity is not looked at for so long, unless one of its queues ends."""

LATE_MS = 500
"""Since its commit: an older event goes out together with those behind it, if a message holds several. It is
less than the second between two messages that a chat takes, so that the second event of a storm is
gathered."""

_UNKNOWN_S = 2.0
"""The queues of an unknown subscription stay, and it is not looked at for so long: it may be new, and known
to other workers already."""

T = TypeVar("T")
T_target = TypeVar("T_target", bound=Target)


class Hold:
    """Keeps a queue leased while it is worked on: an attempt that is not quick keeps it until its deadline.

    `lease` is the one in force: short at first, so that the queue of a worker that dies is soon free.
    `stretch(lease)` makes it longer and returns the new one; it begins when `slow`, which calls
    `Hold.is_slow`, says that the attempt is not quick, runs beside the attempt, and is awaited.
    """

    def __init__(
        self, lease: Lease, *, stretch: Callable[[Lease], Awaitable[Lease]], slow: "Deadlines[Hold]"
    ) -> None:
        self.lease = lease
        self._stretch = stretch
        self._slow = slow
        self._stretching: asyncio.Future[Lease] | None = None

    def is_slow(self) -> None:
        """Begin to make the lease longer: the attempt is not quick."""
        self._stretching = asyncio.ensure_future(self._stretch(self.lease))

    async def during(self, attempt: Awaitable[T]) -> T:
        """Await an attempt. When it is over, however it ends, `lease` is the one in force."""
        self._slow.set(self, self._slow.loop.time() + QUICK_S)
        try:
            return await attempt
        finally:
            self._slow.drop(self)
            if self._stretching:
                longer, self._stretching = self._stretching, None
                with survived("queue", but=StoreError, account=self.lease.member), suppress(StoreError):
                    self.lease = await longer


class DeliveryWork(Generic[T_target]):
    """The deliveries to all subscriptions, by name in `targets`.

    Subscriptions that are backing off, or that only other workers know, are neither claimed nor taken out of
    the index. An attempt does not count for its subscription if its target was removed from `targets`
    meanwhile.
    """

    breath_s = 0.0

    def __init__(
        self,
        queues: Queues,
        breakers: SubscriptionBreakers,
        counters: Counters,
        *,
        stopped: asyncio.Event,
        neighbours: Neighbours,
        now_ms: Callable[[], int],
        failed: Callable[[StoreError], Awaitable[float]],
    ) -> None:
        self.targets: dict[str, T_target] = {}
        self._sink: Sink[T_target] | None = None
        self._sink_in_use: InUse | None = None
        self._queues = queues
        self._breakers = breakers
        self._counters = counters
        self._stopped = stopped
        self._neighbours = neighbours
        self._now_ms = now_ms
        self._failed = failed
        self._slow = Deadlines(Hold.is_slow)

    async def send_by(self, sink: Sink[T_target], in_use: InUse) -> None:
        """Use another sink from now on. The previous one is closed when its last attempt ends."""
        before, self._sink, self._sink_in_use = self._sink_in_use, sink, in_use
        if before:
            await before.retire()

    async def send(self, target: T_target, delivery: Delivery) -> Attempt:
        """Make one attempt, without a queue and whatever the breaker says."""
        assert self._sink
        assert self._sink_in_use
        async with self._sink_in_use:
            return await self._sink.send(target, [delivery], 1)

    def takes(self, name: str) -> bool:
        if name in self.targets:
            return name not in self._neighbours.inactive
        return self._neighbours.is_alone and name not in self._neighbours.locked_subscriptions

    async def capacity(self, name: str, in_flight: int, in_flight_of_all: int) -> Capacity:
        """Return how many more queues may be worked on; of a half-open subscription, one for each free
        probe."""
        target = self.targets.get(name)
        if target is None:
            return Capacity(0, _UNKNOWN_S)
        if backoff_ms := self._breakers.backoff_ms(name):
            return Capacity(0, backoff_ms / 1000)
        capacity = self._breakers.capacity(target.settings, in_flight, in_flight_of_all)
        if capacity:
            capacity = await self._breakers.take_probes(name, capacity, lease_ms=LONGEST_LEASE_MS)
        return Capacity(capacity, per_claim=_PER_CLAIM) if capacity else Capacity(0, _FULL_S, is_full=True)

    def spare(self, name: str, in_flight: int, in_flight_of_all: int) -> int:
        """Return how many more queues may be worked on without a probe: none unless the breaker is closed,
        and no more than have their turn soon."""
        target = self.targets.get(name)
        return self._breakers.spare(target.settings, in_flight, in_flight_of_all) if target else 0

    async def claim(self, name: str, claim: Claim) -> Claimed:
        claimed = await self._queues.claim(name, claim.shard, lease_ms=CLAIM_MS, at_most=claim.at_most)
        is_more = len(claimed.leases) == claim.at_most  # otherwise the index says when it is due
        return Claimed(claimed.leases, 0.0 if is_more else None)

    async def begin(self, name: str, leases: Sequence[Lease]) -> Sequence[Coroutine[Any, Any, bool]]:
        await self._breakers.probe(name, [lease.member for lease in leases])
        return [self.deliver(name, lease) for lease in leases]

    async def hold(self, shard: int, for_s: Mapping[str, float]) -> None:
        await self._queues.hold(shard, {name: int(1000 * wait_s) for name, wait_s in for_s.items()})

    async def let_go(self, name: str, lease: Lease) -> bool:
        """Make a queue due that a commit may have leased whose answer was lost. Returns whether it is."""
        try:
            return await self._ask(lease, lambda: self._queues.release(name, lease)) is Reply.DONE
        except StoreError:  # this worker drains, and does not wait until Redis is back
            return False

    async def deliver(self, name: str, lease: Lease, deliveries: Sequence[Delivery] = ()) -> bool:
        """Work off one queue; of one that a commit leased, these `deliveries`. Returns whether more of it is
        due."""
        is_more, target = False, self.targets.get(name)
        try:
            if target is None:  # a reload has taken it away
                await self._queues.release(name, lease)
                return False
            is_more = await self.work(target, lease, deliveries)
        except StoreError as error:
            # What was sent and not settled is sent again when the lease has run out: same id, same bytes.
            log.debug("lease.lost", account=lease.member, subscription=name, reason=str(error))
        finally:
            if self._breakers.is_probe(name, lease.member):
                await self._breakers.leave_probe(name, lease.member)
        return is_more

    async def work(self, target: T_target, lease: Lease, deliveries: Sequence[Delivery] = ()) -> bool:
        """Deliver what waits in a queue. Returns whether more of it is due.

        A queue that was claimed is read first; for one that a commit leased, the `deliveries` are given.
        Raises StoreError.
        """
        name = target.name
        waiting: Sequence[tuple[bytes, Delivery | None]]
        if deliveries:
            waiting, failed, head = [(one.entry, one) for one in deliveries[:AT_ONCE]], 0, b""
        else:
            until = self._queues.until(lease, LEASE_MS)
            reply, waiting, failed, head = await self._ask(
                lease, lambda: self._queues.begin(name, lease, until=until, at_most=AT_ONCE)
            )
            if reply is not Reply.DONE:
                log.info("lease.lost", account=lease.member, subscription=name)
                return False
            if not waiting:  # given up by hand
                return False
            lease = Lease(lease.member, until)
        hold = Hold(lease, stretch=partial(self._stretch, name), slow=self._slow)
        is_probe = self._breakers.is_probe(name, lease.member)
        try:
            place, count = 0, len(waiting)
            while place < count:
                if is_probe and place > 0:  # the next probe is for another queue
                    break
                if hold.lease.deadline - self._now_ms() < _LEAST_MS:  # too late after the claim
                    break
                if not self._may_send(target, is_probe=is_probe):
                    break
                if self._breakers.spacing_ms(target.settings) and not (
                    await self._has_turn(target) and self._may_send(target, is_probe=is_probe)
                ):
                    break
                entry, delivery = waiting[place]
                taken = 1
                if delivery:
                    tries = failed if entry == head else 0
                    together: Sequence[Delivery] = [delivery]
                    heads: Sequence[bytes] = [entry]
                    if target.most_together > 1 and not tries and self._is_late(delivery):
                        together = gathered(target, islice(waiting, place, None))
                        heads = [each for each, _ in waiting[place : place + len(together)]]
                    taken, deadline = await self._deliver(
                        target, hold, together, heads, tries, is_probe=is_probe
                    )
                else:
                    deadline = await self._bury(target, hold.lease, entry)
                if not deadline:
                    return False
                hold.lease = Lease(lease.member, deadline)
                place += taken
        except asyncio.CancelledError:
            if self.targets.get(name) is not target:  # if it only moved, another worker goes on at once
                await self._queues.release(name, hold.lease)
            raise
        await self._ask(hold.lease, lambda: self._queues.release(name, hold.lease))
        return True

    async def _ask(self, lease: Lease, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask Redis, and try again while it is away. Raises StoreError.

        Giving up would mean that what was sent is sent again. So this goes on after the lease has run out:
        Redis takes the result until another worker claims the queue, and refuses it afterwards. Only a worker
        that drains waits no longer than the lease.
        """
        while True:
            try:
                return await ask()
            except StoreError as error:
                if self._stopped.is_set() and self._now_ms() >= lease.deadline:
                    raise
                await self._failed(error)
            await asyncio.sleep(_AGAIN_S)

    async def _stretch(self, subscription: str, lease: Lease) -> Lease:
        """Keep a queue for an attempt that takes long."""
        until = self._queues.until(lease, LONGEST_LEASE_MS)
        reply = await self._ask(lease, lambda: self._queues.extend(subscription, lease, until=until))
        return lease._replace(deadline=until) if reply is Reply.DONE else lease

    async def _has_turn(self, target: T_target) -> bool:
        """Wait for the turn of a subscription that has a rate or a pace, over all workers. Returns False if
        the turn is far off."""
        wait_ms = await self._breakers.turn_ms(target.settings)
        if wait_ms:
            await asyncio.sleep(wait_ms / 1000)
        return wait_ms is not None

    def _may_send(self, target: T_target, *, is_probe: bool) -> bool:
        name = target.name
        return not (
            name in self._neighbours.inactive
            or self.targets.get(name) is not target
            or self._stopped.is_set()
            or not self._breakers.may_send(name, is_probe=is_probe)
        )

    def _is_late(self, delivery: Delivery) -> bool:
        return self._now_ms() - delivery.sequence >= LATE_MS

    async def _bury(self, target: T_target, lease: Lease, entry: bytes) -> int:
        """Remove a head that cannot be read, which would hold up its queue for ever. Returns the deadline as
        `_deliver` does."""
        name, queues, why = target.name, self._queues, "its stored event cannot be read"
        until = queues.until(lease, LEASE_MS)
        reply, deadline = await self._ask(
            lease, lambda: queues.dead(name, lease, entry, until=until, reason=why)
        )
        if reply is not Reply.DONE:
            await self._not_settled(target, lease, reply)
        log.warning("delivery.dead", subscription=name, account=lease.member, reason=why)
        return deadline

    async def _deliver(
        self,
        target: T_target,
        hold: Hold,
        together: Sequence[Delivery],
        heads: Sequence[bytes],
        failed_before: int,
        *,
        is_probe: bool,
    ) -> tuple[int, int]:
        """Attempt the head of a queue, together with what fits into the same message; `heads` are the entries
        of these deliveries. Returns how many of them left the queue, and the lease's new deadline, 0 if it
        ended.

        A failure counts for the head only, which is then tried alone: if a message of several is refused, the
        others use up nothing of their schedules.
        """
        name, account, breakers = target.name, hold.lease.member, self._breakers
        sink, in_use = self._sink, self._sink_in_use
        assert sink
        assert in_use
        was_closed = not is_probe or breakers.is_closed(name)
        async with in_use:
            attempt = await hold.during(sink.send(target, together, failed_before + 1))
        lease = hold.lease
        is_delivered = attempt.answer is Answer.DELIVERED
        if is_delivered:
            verdict = DELIVERED
        else:
            verdict = judge(
                attempt,
                failed_before,
                target.settings.retries,
                chance=random.random(),
                is_closed=was_closed and breakers.is_closed(name),
                is_alone=breakers.is_probed_alone(name, account),
            )
        one = Tried(account, together, heads, failed_before + 1, attempt, verdict)
        reply, deadline = await self._ask(lease, self._settling(name, lease, one))
        if reply is not Reply.DONE:
            await self._not_settled(target, lease, reply, verdict.wait_ms)
        now_ms = self._now_ms()
        self._report(target, one, now_ms)
        # A worker that was away for longer than a lease missed the answer, if there was one.
        if reply is not Reply.LEASE_LOST and self.targets.get(name) is target:
            if is_delivered and not is_probe:
                breakers.note_delivered(target.settings, now_ms)
            else:
                await self._ask(lease, lambda: breakers.note(target.settings, account, attempt))
        return len(together) if is_delivered else 1, deadline

    def _settling(self, name: str, lease: Lease, one: "Tried") -> Callable[[], Awaitable[tuple[Reply, int]]]:
        """Return what settles an attempt. It returns the reply, and the deadline as `_deliver` does."""
        queues, verdict = self._queues, one.verdict
        # What was delivered at once is logged, and there is nothing to remember.
        record = b"" if verdict is DELIVERED and one.number == 1 else one.record(self._now_ms())
        until, attempt = queues.until(lease, LEASE_MS), one.attempt
        if verdict is DELIVERED:
            return partial(queues.delivered, name, lease, *one.heads, until=until, record=record)
        head, result = one.heads[0], RESULTS.get(attempt.answer, "")
        if verdict.outcome is Outcome.REFUSED:
            reason = attempt.reason
            dead = partial(queues.dead, name, lease, head, until=until, reason=reason, record=record)
            return partial(dead, result=result)

        async def retry() -> tuple[Reply, int]:
            wait_ms, is_used = verdict.wait_ms, verdict.is_used
            reply = await queues.retry(
                name, lease, head, wait_ms=wait_ms, record=record, result=result, is_used=is_used
            )
            return reply, 0

        return retry

    async def _not_settled(self, target: T_target, lease: Lease, reply: Reply, wait_ms: int = 0) -> None:
        """Give up the lease of a queue that refused the result of its head.

        If the head was given up meanwhile, by hand or because the queue was full, the lease is still ours to
        release: the next delivery waits as long as after one failure, and not until the lease ends.
        """
        name, retries = target.name, target.settings.retries
        if reply is Reply.LEASE_LOST:
            log.info("lease.lost", account=lease.member, subscription=name)
            return
        due_in_ms = min(wait_ms, int(1000 * retries[1].total_seconds()) if len(retries) > 1 else 0)
        await self._ask(lease, lambda: self._queues.release(name, lease, due_in_ms=due_in_ms))

    def _report(self, target: T_target, one: "Tried", now_ms: int) -> None:
        """Count an attempt, and log it."""
        name, attempt, verdict = target.name, one.attempt, one.verdict
        outcome, counters = verdict.outcome, self._counters
        attempted = Attempted(now_ms, one.number, outcome, attempt.status, attempt.duration_ms)
        counters.attempted[name] = attempted
        counters.by_attempt[name, outcome] += 1
        head, many = one.deliveries[0], len(one.deliveries)
        fields: dict[str, Any] = {
            "subscription": name,
            "account": one.account,
            "event_id": head.event_id,
            "event_type": head.type,
            "sequence": head.sequence,
            "attempt": one.number,
            "status": attempt.status,
            "duration_ms": attempt.duration_ms,
        }
        together: dict[str, Any] = {}
        if many > 1:
            together = {"deliveries": many, "last_event_id": one.deliveries[-1].event_id}
        if verdict is DELIVERED:
            for each in one.deliveries:
                counters.deliver(name, each.event_id, attempted, max(0, now_ms - each.sequence) / 1000)
            log.info("delivery.delivered", **fields, **together, lag_ms=max(0, now_ms - head.sequence))
            return
        excerpt = attempt.excerpt or None  # a line shows no more than 200 characters of it
        if outcome is Outcome.REFUSED:
            log.warning("delivery.dead", **fields, reason=attempt.reason, answer=excerpt)
        else:
            counters.retried += 1
            log.info(
                "delivery.retried",
                **fields,
                **together,
                reason=attempt.reason,
                next_ms=verdict.wait_ms,
                answer=excerpt,
            )


def gathered(target: Target, waiting: Iterable[tuple[bytes, Delivery | None]]) -> Sequence[Delivery]:
    """Return the deliveries that go out in one message, from the head of the queue on; it ends before one
    that cannot be read."""
    some = [one for _, one in takewhile(lambda pair: pair[1], islice(waiting, target.most_together)) if one]
    return some[: target.together(some)]


class Tried(NamedTuple):
    """An attempt of a queue's head and of what went with it, and its verdict. `heads` are the entries of
    these; `number` counts from 1."""

    account: str
    deliveries: Sequence[Delivery]
    heads: Sequence[bytes]
    number: int
    attempt: Attempt
    verdict: Verdict

    @property
    def head(self) -> Delivery:
        return self.deliveries[0]

    def record(self, now_ms: int) -> bytes:
        """Write the attempt as `watcher deliveries --attempts` shows it."""
        attempt = self.attempt
        return orjson.dumps(
            {
                "at_ms": now_ms,
                "account": self.account,
                "event_id": self.head.event_id,
                "event_type": self.head.type,
                "attempt": self.number,
                "outcome": self.verdict.outcome,
                "status": attempt.status,
                "error": attempt.reason if attempt.error else None,
                "duration_ms": attempt.duration_ms,
                "answer": attempt.excerpt,
                **({"deliveries": len(self.deliveries)} if len(self.deliveries) > 1 else {}),
            }
        )


async def pause_by_hand(breakers: Breakers, subscription: str) -> bool:
    """Send a subscription nothing until it is resumed. Returns whether this is new. Raises StoreError."""
    before, _ = await breakers.change(subscription, partial(paused, reason=BY_HAND))
    return before is None or not before.paused_at_ms


async def resume_by_hand(breakers: Breakers, queues: Queues, subscription: str) -> bool:
    """Forget what failed, and let what waits be sent at once. Returns whether the subscription was paused or
    failing. Raises StoreError."""
    was_known = await breakers.resume(subscription)
    for shard in range(SHARDS):
        await queues.make_due(subscription, shard, lease_ms=LONGEST_LEASE_MS)
    return was_known
