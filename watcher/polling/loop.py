"""The polling loop of one provider: claim what is due, take turns at the rate limit, poll side by side.

Refuses to talk to the delivering loop: they meet in Redis.
"""

import asyncio
import math
import time
from collections.abc import Mapping

from watcher.logs.lines import log
from watcher.pause import pause
from watcher.polling.poll import Poller
from watcher.settings import AccountSettings
from watcher.store.connect import StoreError, StoreUnreachable
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS, shard_of
from watcher.store.polls import Polls
from watcher.store.schedule import Lease

CONCURRENCY = 64
"""Polls of one provider at the same time: the throughput of one process levels off there."""

LOOK_MS = 100
"""Longest time between two looks at a shard: another worker may have died, or a file been edited."""

_BREATH_S = 0.005
"""Between two claims: what falls due or becomes free meanwhile is claimed together, which costs no more."""

_PER_CLAIM = 16
"""Accounts for which it is worth to look at one more shard: those of one shard are also settled together."""

_AHEAD_S = 1.0
"""How many seconds of a provider's rate one claim may take: more would keep it from other workers."""

_UNKNOWN_MS = 10_000
"""An account that this worker's configuration does not know is left to those who know it."""

DAMAGED_S = 30.0
"""What cannot be read in Redis is looked at again after so long: somebody may have mended it."""

_AGAIN_S = 0.5
"""Between two tries to give a lease back, while the store is away."""


class PollLoop:
    """Polls the accounts of one provider until asked to stop. `turned_at`: when it last began a turn."""

    def __init__(
        self, poller: Poller, polls: Polls, accounts: Mapping[str, AccountSettings], health: StoreHealth
    ) -> None:
        self._poller = poller
        self._polls = polls
        self._accounts = accounts
        self._health = health
        self._provider = poller.settings.name
        self.name = f"poll {self._provider}"
        self.turned_at: float | None = None
        self._spacing_s = poller.spacing_s
        self._lease_ms = poller.lease_ms
        self._look_at = [0.0] * SHARDS
        self._in_flight = 0
        self._unpolled = set(accounts)
        self.all_polled = asyncio.Event()
        self._stopped = asyncio.Event()
        self._wake = asyncio.Event()

    def stop(self) -> None:
        """Claim nothing more; polls in flight go on to their end."""
        self._stopped.set()
        self._wake.set()

    async def run(self) -> None:
        """Tick until stopped, then wait for the polls in flight."""
        async with asyncio.TaskGroup() as group:
            while not self._stopped.is_set():
                self.turned_at = time.monotonic()
                self._wake.clear()
                try:
                    pause_s = await self.tick(group)
                    self._health.answered()
                except StoreError as trouble:
                    pause_s = await self._health.failed(trouble)
                except Exception:
                    log.exception("bug", affected=self.name)
                    pause_s = DAMAGED_S
                self._poller.silence.tell()
                await asyncio.sleep(_BREATH_S)
                await pause(self._wake, pause_s - _BREATH_S)
        self._poller.silence.tell(at_once=True)

    async def tick(self, group: asyncio.TaskGroup) -> float:
        """Claim once and start the polls; returns in how many seconds the next tick is due."""
        leases = await self._claim()
        if leases:
            costs = [self._poller.cost(self._accounts.get(lease.member)) for lease in leases]
            turn_s = await self._take_turns(sum(costs))
            for lease, cost in zip(leases, costs, strict=True):
                self._in_flight += 1
                group.create_task(self._one(lease, turn_s), name=f"poll {lease.member}")
                turn_s += cost * self._spacing_s
        now = time.monotonic()
        if self._in_flight >= CONCURRENCY:
            return LOOK_MS / 1000
        return max(0.0, min(self._look_at) - now)

    @property
    def in_flight(self) -> int:
        return self._in_flight

    async def _claim(self) -> list[Lease]:
        """Claim at every shard that is due, fairly, no more than can start soon."""
        now = time.monotonic()
        shards = [shard for shard in range(SHARDS) if self._look_at[shard] <= now]
        room = min(CONCURRENCY - self._in_flight, math.ceil(_AHEAD_S / self._spacing_s))
        if not shards or room <= 0:
            return []
        # The longest overdue look comes first; a shard that gets no room now is looked at next time.
        shards = sorted(shards, key=self._look_at.__getitem__)[: max(1, room // _PER_CLAIM)]
        at_most = room // len(shards)
        found = await asyncio.gather(*(self._claim_shard(shard, at_most) for shard in shards))
        return [lease for leases in found for lease in leases]

    async def _claim_shard(self, shard: int, at_most: int) -> tuple[Lease, ...]:
        """Claim at one shard. One whose keys are damaged is left alone for a while, the others go on."""
        self._look_at[shard] = time.monotonic() + DAMAGED_S
        try:
            claimed = await self._polls.claim(self._provider, shard, lease_ms=self._lease_ms, at_most=at_most)
        except StoreError:
            self._look_at[shard] = 0.0
            raise
        except Exception:
            log.exception("bug", affected=f"polls of shard {shard}")
            return ()
        wait_ms = LOOK_MS if claimed.next_due_ms is None else min(LOOK_MS, claimed.next_due_ms)
        self._look_at[shard] = time.monotonic() + wait_ms / 1000
        return claimed.leases

    def _look_again(self, member: str) -> None:
        """Look at an account's shard in time for its next poll, where that is sooner than usual."""
        if account := self._accounts.get(member):
            soonest = min(account.interval, account.pending_interval).total_seconds()
            shard = shard_of(member)
            self._look_at[shard] = min(self._look_at[shard], time.monotonic() + soonest)

    async def _take_turns(self, turns: int) -> float:
        """Reserve turns at the provider; returns the loop time of the first one."""
        wait_ms = await self._polls.take_turns(self._provider, turns, spacing_ms=1000 * self._spacing_s)
        return time.monotonic() + wait_ms / 1000

    async def _one(self, lease: Lease, turn_s: float) -> None:
        """Poll one account at its turn. Whatever happens, it holds up no other account."""
        try:
            account = self._accounts.get(lease.member)
            if account is None:
                await self._polls.release(self._provider, lease, due_in_ms=_UNKNOWN_MS)
            elif await self._stops_before(turn_s):
                await self._polls.release(self._provider, lease)
            else:
                await self._poller.poll(account, lease)
        except StoreError as trouble:
            # The next poll finds the same change again.
            log.debug("poll.discarded", account=lease.member, provider=self._provider, reason=str(trouble))
            await self._give_back(lease)
        except Exception:
            log.exception("bug", affected="poll", account=lease.member)
        finally:
            self._in_flight -= 1
            self._look_again(lease.member)
            self._unpolled.discard(lease.member)
            if not self._unpolled:
                self.all_polled.set()
            self._wake.set()

    async def _stops_before(self, turn_s: float) -> bool:
        """Wait for a poll's turn; says whether the loop was stopped before it came."""
        wait_s = turn_s - time.monotonic()
        return await pause(self._stopped, wait_s) if wait_s > 0 else self._stopped.is_set()

    async def _give_back(self, lease: Lease) -> None:
        """Let an account be polled again once the store is back, and not only when the lease ends."""
        give_up_at = time.monotonic() + self._lease_ms / 1000
        while time.monotonic() < give_up_at:
            try:
                await self._polls.release(self._provider, lease)
            except StoreUnreachable:
                await asyncio.sleep(_AGAIN_S)
            else:
                return
