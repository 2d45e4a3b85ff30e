"""Deliveries as the engine runs them: how much a subscription can bear, claims, one probe at a time."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from watcher.delivery.breakers import SubscriptionBreakers
from watcher.delivery.queue import CLAIM_MS, LONGEST_LEASE_MS, QueueWorker
from watcher.delivery.webhook import WebhookTarget
from watcher.engine.dispatch import Claim, Room
from watcher.engine.loop import Claimed
from watcher.observe.log import log
from watcher.store.exceptions import StoreError
from watcher.store.queues import Queues
from watcher.store.schedule import Lease

_FULL_S = 1.0
"""A subscription without room is not looked at for so long, unless a queue of it ends."""

_UNKNOWN_S = 60.0
"""A subscription that the configuration does not know keeps its queues, and is not looked at for so long."""


class DeliveryWork:
    """The deliveries to all subscriptions. What is not this worker's to deliver (`may_deliver` says so) is
    neither claimed nor held back."""

    breath_s = 0.0

    def __init__(
        self,
        queues: Queues,
        worker: QueueWorker[WebhookTarget],
        targets: Mapping[str, WebhookTarget],
        breakers: SubscriptionBreakers,
        may_deliver: Callable[[str], bool],
    ) -> None:
        self.takes = may_deliver
        self._queues = queues
        self._worker = worker
        self._targets = targets
        self._breakers = breakers

    async def room(self, name: str, in_flight: int, in_flight_of_all: int) -> Room:
        """Say how many queues more may be worked on; a failing subscription is asked by one at a time."""
        target = self._targets.get(name)
        if target is None:
            return Room(0, _UNKNOWN_S)
        if rest_ms := self._breakers.rest_ms(name):
            return Room(0, rest_ms / 1000)
        room = self._breakers.room(target.settings, in_flight, in_flight_of_all)
        if not room or not await self._breakers.may_ask(name, lease_ms=LONGEST_LEASE_MS):
            return Room(0, _FULL_S, is_full=True)
        return Room(room)

    async def claim(self, name: str, claim: Claim) -> Claimed:
        claimed = await self._queues.claim(name, claim.shard, lease_ms=CLAIM_MS, at_most=claim.at_most)
        is_more = len(claimed.leases) == claim.at_most  # else the index tells when there is
        return Claimed(claimed.leases, 0.0 if is_more else None)

    async def begin(self, name: str, leases: Sequence[Lease]) -> Sequence[Coroutine[Any, Any, bool]]:
        if not leases:
            await self._breakers.leave_probe(name)
        return [self._deliver(name, lease) for lease in leases]

    async def hold(self, shard: int, for_s: Mapping[str, float]) -> None:
        await self._queues.hold(shard, {name: int(1000 * wait_s) for name, wait_s in for_s.items()})

    async def _deliver(self, name: str, lease: Lease) -> bool:
        """Work off one queue; says whether more of it is due."""
        is_more, target = False, self._targets.get(name)
        if target is None:  # a reload has taken it away
            await self._queues.release(name, lease)
            return False
        try:
            is_more = await self._worker.work(target, lease)
        except StoreError as error:
            # What was sent but not settled is sent again when the lease has run out: same id, same bytes.
            log.debug("lease.lost", account=lease.member, subscription=name, reason=str(error))
        await self._breakers.leave_probe(name)
        return is_more
