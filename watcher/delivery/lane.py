"""Works off one lane: its deliveries in order, one attempt in flight, until it is empty, fails or is lost.

Refuses to go past a delivery that is not settled: order within a lane is the promise.
"""

import asyncio
import random
from collections.abc import Callable

from watcher.delivery.outcomes import Attempt, Outcome, Verdict, judge
from watcher.delivery.post import ATTEMPT_TIMEOUT_S, Poster, Target
from watcher.logs import log
from watcher.store.lanes import Delivery, Lanes, load_delivery
from watcher.store.schedule import Lease, Reply
from watcher.tally import Tally

AT_ONCE = 20
"""Deliveries read with one claim: few enough that a lane does not keep a worker from the others."""

LEASE_MS = 1000 * (ATTEMPT_TIMEOUT_S + 10)
"""Longer than any attempt and its settling, extended with each delivery: so long a dead worker is missed."""


class LaneWorker:
    """Delivers lanes of any subscription. `hold(subscription, ms)` hears when a subscriber asks for rest."""

    def __init__(
        self,
        lanes: Lanes,
        poster: Poster,
        tally: Tally,
        *,
        hold: Callable[[str, int], None],
        is_stopped: Callable[[], bool],
        now_ms: Callable[[], int],
    ) -> None:
        self._lanes = lanes
        self._poster = poster
        self._tally = tally
        self._hold = hold
        self._is_stopped = is_stopped
        self._now_ms = now_ms

    async def work(self, target: Target, lease: Lease) -> bool:
        """Deliver what waits in a claimed lane; says whether more of it is due. Raises StoreError."""
        entries, (tries, tried) = await asyncio.gather(
            self._lanes.read(target.name, lease.member, at_most=AT_ONCE),
            self._lanes.read_tries(target.name, lease.member),
        )
        for entry in entries:
            if self._is_stopped():
                break
            delivery = load_delivery(entry)
            failed_before = tries if delivery.head == tried else 0
            attempt = await self._poster.post(target, delivery, failed_before + 1)
            verdict = judge(attempt, failed_before, target.settings.retries, chance=random.random())
            deadline = await self._settle(target, lease, delivery, verdict)
            self._tell(target, lease.member, delivery, failed_before + 1, attempt, verdict)
            if not deadline:
                return False
            lease = Lease(lease.member, deadline)
        await self._lanes.release(target.name, lease)
        return True

    async def _settle(self, target: Target, lease: Lease, delivery: Delivery, verdict: Verdict) -> int:
        """Write down what became of an attempt; returns the lease's new deadline, 0 where it ends."""
        if verdict.outcome is Outcome.DELIVERED:
            reply, deadline = await self._lanes.delivered(
                target.name, lease, delivery.head, lease_ms=LEASE_MS
            )
        elif verdict.outcome is Outcome.REFUSED:
            reply, deadline = await self._lanes.dead(
                target.name, lease, delivery.head, lease_ms=LEASE_MS, reason=verdict.reason
            )
        else:
            reply = await self._lanes.retry(target.name, lease, delivery.head, wait_ms=verdict.wait_ms)
            deadline = 0
            if verdict.hold_ms:
                self._hold(target.name, verdict.hold_ms)
        if reply is not Reply.DONE:
            log.info("lease.lost", account=lease.member, subscription=target.name)
        return deadline

    def _tell(
        self,
        target: Target,
        account: str,
        delivery: Delivery,
        number: int,
        attempt: Attempt,
        verdict: Verdict,
    ) -> None:
        fields = {
            "subscription": target.name,
            "account": account,
            "event_id": delivery.event_id,
            "event_type": delivery.type,
            "sequence": delivery.sequence,
            "attempt": number,
            "status": attempt.status,
            "duration_ms": attempt.duration_ms,
        }
        if verdict.outcome is Outcome.DELIVERED:
            self._tally.deliveries += 1
            log.info("delivery.delivered", **fields, lag_ms=max(0, self._now_ms() - delivery.sequence))
        elif verdict.outcome is Outcome.REFUSED:
            log.warning("delivery.dead", **fields, reason=verdict.reason)
        else:
            self._tally.retried += 1
            log.info("delivery.retried", **fields, reason=verdict.reason, next_ms=verdict.wait_ms)
