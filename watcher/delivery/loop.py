"""The delivering loop: finds queues that are due, claims them per subscription, works them off side by side.

A queue made due by this worker is claimed at once, the rest is found by looking at the schedule. Refuses
to talk to the polling loops: they meet in Redis.
"""

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from watcher.delivery.damage import survived
from watcher.delivery.post import Poster, Target
from watcher.delivery.queue import CLAIM_MS, LONGEST_LEASE_MS, QueueWorker
from watcher.delivery.restraint import Restraint
from watcher.observe.counters import Counters
from watcher.observe.log import log
from watcher.pause import pause
from watcher.store.connect import StoreError
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS
from watcher.store.queues import Queues
from watcher.store.schedule import Lease, Schedule

_TURN_S = 0.5
"""A loop that has nothing to do still turns so often: it learns how subscriptions stand."""

_AT_ONCE = 32
"""Subscriptions that are claimed for at the same time: a thousand that are due do not hold up the next."""

_FULL_MS = 1000
"""A shard that found no room is not looked at for so long, unless a queue of its subscription ends."""

_FAREWELL_S = 0.5
"""An attempt that is answered within this time is settled though its subscription is gone, or its URL."""

_LOOK_S = 0.05
"""Between two looks of a loop that is to end once nothing is due."""

_UNKNOWN_MS = 60_000
"""A subscription that the configuration does not know keeps its queues, and is not looked at for so long."""

_Due = dict[str, set[int]]
"""Shards by the subscription that may have a queue due there."""

DAMAGED_S = 30.0
"""What cannot be read in Redis is looked at again after so long: somebody may have mended it."""


class DeliverLoop:
    """Delivers to all subscriptions until asked to stop. `turned_at`: when it last began a turn.

    What it may not deliver (`may_deliver` says so) is another worker's: it is neither claimed nor held back.
    """

    name = "deliver"

    def __init__(
        self,
        queues: Queues,
        schedule: Schedule,
        poster: Poster,
        targets: Mapping[str, Target],
        restraint: Restraint,
        health: StoreHealth,
        counters: Counters,
        *,
        may_deliver: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._may_deliver = may_deliver
        self._queues = queues
        self._targets = targets
        self._restraint = restraint
        self._health = health
        self._in_flight: Counter[str] = Counter()
        self._tasks: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)
        self._forsaken: set[str] = set()
        self._woken: _Due = {}
        self._found: _Due = {}
        self._full: defaultdict[str, set[int]] = defaultdict(set)
        self._held: defaultdict[int, dict[str, int]] = defaultdict(dict)
        self._damaged_until: dict[int, float] = {}
        self._is_finishing = False
        self.turned_at: float | None = None
        self._wake = asyncio.Event()
        self._stopped = asyncio.Event()
        self._worker = QueueWorker(
            queues,
            poster,
            restraint,
            counters,
            is_stopped=self._stopped.is_set,
            forsaken=self._forsaken,
            may_deliver=may_deliver,
            now_ms=schedule.now_ms,
            failed=health.failed,
        )

    def due(self, shard: int, subscription: str) -> None:
        """Claim queues of this subscription in its turn: one may be due."""
        if time.monotonic() >= self._damaged_until.get(shard, 0) and self._may_deliver(subscription):
            self._found.setdefault(subscription, set()).add(shard)
            self._wake.set()

    def wake(self, shard: int, subscription: str) -> None:
        """Claim a queue of this subscription at once: one was just made due."""
        if self._may_deliver(subscription):
            self._woken.setdefault(subscription, set()).add(shard)
            self._wake.set()

    async def make_due(self, subscription: str) -> None:
        """Try now what waits for a retry, as when its URL was changed."""
        for shard in range(SHARDS):
            await self._queues.make_due(subscription, shard, lease_ms=LONGEST_LEASE_MS)
            self.wake(shard, subscription)

    def stop(self) -> None:
        """Claim nothing more; attempts in flight go on to their end."""
        self._stopped.set()
        self._wake.set()

    def forsake(self, subscription: str) -> None:
        """Cut off what is still under way in a moment: it is gone from the configuration, or has moved.

        Once: a second time would interrupt it while it gives its queue back.
        """
        if subscription in self._forsaken:
            return
        self._forsaken.add(subscription)
        for task in self._tasks[subscription]:
            asyncio.get_running_loop().call_later(_FAREWELL_S, task.cancel)

    def finish(self) -> None:
        """Deliver what is due, and stop when nothing is."""
        self._is_finishing = True
        self._wake.set()

    async def run(self) -> None:
        """Tick until stopped, then wait for the attempts in flight."""
        async with asyncio.TaskGroup() as group:
            while not self._stopped.is_set():
                self.turned_at = time.monotonic()
                self._wake.clear()
                try:
                    is_finishing = self._is_finishing  # as it was when this look began
                    has_found = await self.tick(group)
                    is_more = self._woken or self._found
                    if is_finishing and not has_found and not is_more and not self.in_flight:
                        self.stop()
                    pause_s = 0 if is_more else _LOOK_S if is_finishing else _TURN_S
                except StoreError as trouble:
                    pause_s = await self._health.failed(trouble)
                except Exception:
                    log.exception("bug", affected=self.name)
                    pause_s = DAMAGED_S
                await pause(self._wake, pause_s)

    @property
    def in_flight(self) -> int:
        return self._in_flight.total()

    async def tick(self, group: asyncio.TaskGroup) -> bool:
        """Look for what is due, claim what there is room for, start working it off; says if there was any.

        No more than a part of what was found by looking: what was woken meanwhile comes first.
        """
        for name in filter(self._may_deliver, await self._restraint.refresh()):
            self._found[name] = set(range(SHARDS))
        if self._is_finishing:
            await self._look()
        due = _taken(self._found)
        for name, shards in _taken(self._woken).items():
            due.setdefault(name, set()).update(shards)
        await self._health.of_parts(*(self._claim(group, name, list(due[name])) for name in due))
        await self._hold_back()
        return bool(due)

    async def _look(self) -> None:
        """Look for what is due at this moment, so that nothing is left when the loop ends."""
        names_by_shard = await self._health.of_parts(*map(self._look_at_shard, range(SHARDS)))
        for shard, names in enumerate(names_by_shard):
            for name in filter(self._may_deliver, names or ()):
                self._found.setdefault(name, set()).add(shard)

    async def _look_at_shard(self, shard: int) -> list[str]:
        """Look at one shard. One whose keys are damaged is left alone for a while, the others go on."""
        if time.monotonic() < self._damaged_until.get(shard, 0):
            return []
        with survived(f"queues of shard {shard}"):
            return await self._queues.due_subscriptions(shard)
        self._leave_alone(shard)
        return []

    def _leave_alone(self, shard: int) -> None:
        self._damaged_until[shard] = time.monotonic() + DAMAGED_S

    async def _claim(self, group: asyncio.TaskGroup, name: str, shards: list[int]) -> None:
        """Claim queues of one subscription, spread over its shards, as many as there is room for."""
        target = self._targets.get(name)
        rest_ms = self._restraint.rest_ms(name)
        if target is None or rest_ms:
            self._hold(name, shards, rest_ms or _UNKNOWN_MS)
            return
        room = self._restraint.room(target.settings, self._in_flight[name], self.in_flight)
        if room and not await self._restraint.may_ask(name, lease_ms=LONGEST_LEASE_MS):
            room = 0
        share = max(1, room // len(shards))
        self._full[name].update(shards[room:])
        self._hold(name, shards[room:], _FULL_MS)
        await self._health.of_parts(
            *(self._claim_shard(group, target, shard, share) for shard in shards[:room])
        )
        if not self._in_flight[name]:
            await self._restraint.leave_probe(name)
            for shard in self._full.pop(name, ()) if room else ():  # nothing is under way that would do so
                self.wake(shard, name)

    async def _claim_shard(self, group: asyncio.TaskGroup, target: Target, shard: int, at_most: int) -> None:
        claimed = None
        with survived(f"queues of shard {shard}", subscription=target.name):
            claimed = await self._queues.claim(target.name, shard, lease_ms=CLAIM_MS, at_most=at_most)
        if claimed is None:
            self._hold(target.name, [shard], int(1000 * DAMAGED_S))
            return
        if len(claimed.leases) == at_most:
            self._full[target.name].add(shard)  # more may be due there
        for lease in claimed.leases:
            self._in_flight[target.name] += 1
            task = group.create_task(
                self._one(target, shard, lease), name=f"queue {target.name} {lease.member}"
            )
            self._tasks[target.name].add(task)
            task.add_done_callback(self._tasks[target.name].discard)

    def _hold(self, name: str, shards: list[int], for_ms: int) -> None:
        for shard in shards:
            self._held[shard][name] = for_ms

    async def _hold_back(self) -> None:
        """Do not look for a while at what had no room: one command for all that is held in a shard."""
        held, self._held = self._held, defaultdict(dict)
        await self._health.of_parts(*(self._hold_shard(shard, for_ms) for shard, for_ms in held.items()))

    async def _hold_shard(self, shard: int, for_ms: Mapping[str, int]) -> None:
        with survived(f"queues of shard {shard}"):
            await self._queues.hold(shard, for_ms)
            return
        self._leave_alone(shard)

    async def _one(self, target: Target, shard: int, lease: Lease) -> None:
        """Work off one queue, then look for what had no room beside it."""
        try:
            is_more = await self._work(target, lease)
            await self._restraint.leave_probe(target.name)
        finally:
            self._in_flight[target.name] -= 1
        for waiting in self._full.pop(target.name, set()) | ({shard} if is_more else set()):
            self.wake(waiting, target.name)

    async def _work(self, target: Target, lease: Lease) -> bool:
        """Work off one queue; says whether more of it is due. Whatever happens, it holds up no other
        queue."""
        try:
            return await self._worker.work(target, lease)
        except StoreError as trouble:
            # What was posted but not settled is posted again when the lease has run out: same id, same bytes.
            log.debug("lease.lost", account=lease.member, subscription=target.name, reason=str(trouble))
        except Exception:
            log.exception("bug", affected="queue", account=lease.member, subscription=target.name)
        return False


def _taken(due: _Due) -> _Due:
    """Take the next few subscriptions, oldest first."""
    return {name: due.pop(name) for name in list(itertools.islice(due, _AT_ONCE))}
