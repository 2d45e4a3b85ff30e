"""The polling loop of one provider: claim what is due, take turns at the rate limit, poll side by side.

Refuses to talk to the delivering loop: they meet in Redis.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import islice
from typing import NamedTuple

from watcher.observe.log import log
from watcher.pause import pause
from watcher.polling.causes import Causes
from watcher.polling.neighbours import ALONE, Neighbours
from watcher.polling.poll import Poller
from watcher.settings import AccountSettings
from watcher.store.connect import StoreError
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS, shard_of
from watcher.store.polls import Polls
from watcher.store.schedule import Lease

CONCURRENCY = 64
"""Polls of one provider at the same time: the throughput of one process levels off there."""

LOOK_MS = 100
"""A turn that is further off is scarce: then turns are for the accounts that have waited longest."""

_TURN_S = 1.0
"""A loop that has nothing to do still turns so often: it shows that it lives."""

_BREATH_S = 0.005
"""Between two claims: what falls due or becomes free meanwhile is claimed together, which costs no more."""

_PER_CLAIM = 16
"""Accounts for which it is worth to look at one more shard: those of one shard are also settled together."""

_AHEAD_S = 0.5
"""How far ahead of its turn a poll is claimed: more would keep it from other workers."""

_AT_ONCE_S = 0.1
"""How many seconds of a provider's rate one claim takes: many workers may claim at the same moment."""

LONGEST_TURN_S = 5.0
"""Longest wait for a turn with a lease in hand, which would end meanwhile: beyond it, as when many workers
claim at the same moment, the lease is given back."""

_LATE_S = 0.04
"""A turn that was missed by more is taken anew: together, those who come late would exceed the limit. Turns
are 5 % further apart than it asks: missed by less, no more of them fall into a second than may."""

_LATE_TURNS = 3
"""Turns missed in a row before a poll goes out late: a machine that is always late must poll, too."""

_UNKNOWN_MS = 10_000
"""An account that this worker's configuration does not know is left to those who know it."""

_LEFT_S = 60.0
"""An account that is left to other workers is not claimed for so long."""

_OTHERS_S = 1.0
"""A shard where only others' accounts are due is not looked at for so long."""

_MOST_LEFT = 500
"""Named with a claim: beyond it they are claimed, and given back at once."""

DAMAGED_S = 30.0
"""What cannot be read in Redis is looked at again after so long: somebody may have mended it."""

_AGAIN_S = 0.5
"""Between two tries to give a lease back, while the store is away."""


class Turn(NamedTuple):
    """When a poll may start, in loop time. Later than `until` is too late for the limit to hold."""

    at: float
    until: float

    def after(self, spacing_s: float) -> "Turn":
        return Turn(self.at + spacing_s, self.until + spacing_s)


class PollLoop:
    """Polls the accounts of one provider until asked to stop.

    `turned_at`: when it last began a turn. `unread`: accounts of which it has not taken in any answer yet.
    """

    def __init__(
        self,
        poller: Poller,
        polls: Polls,
        accounts: Mapping[str, AccountSettings],
        health: StoreHealth,
        neighbours: Neighbours = ALONE,
    ) -> None:
        self._neighbours = neighbours
        self._left: defaultdict[int, dict[str, float]] = defaultdict(dict)
        self._poller = poller
        self._polls = polls
        self._accounts = accounts
        self._health = health
        self.provider = poller.settings.name
        self.name = f"poll {self.provider}"
        self.turned_at: float | None = None
        self._spacing_s = poller.spacing_s
        self._lease_ms = poller.lease_ms
        self._look_at = [0.0] * SHARDS
        self._damaged_until: dict[int, float] = {}
        self._others_until: dict[int, float] = {}
        self._shards = {shard_of(name) for name in accounts}
        self._has_lost = False
        self._claim_at = 0.0
        self._is_scarce = False
        self._in_flight = 0
        self._unpolled = set(accounts)
        self.unread = set(accounts)
        self._is_finishing = False
        self._stopped = asyncio.Event()
        self._wake = asyncio.Event()

    @property
    def causes(self) -> Causes:
        return self._poller.causes

    def stop(self) -> None:
        """Claim nothing more; polls in flight go on to their end."""
        self._stopped.set()
        self._wake.set()

    def finish(self, in_hand: Collection[str]) -> None:
        """Poll each account once, and stop; those that another worker has in hand are left to it."""
        self._is_finishing = True
        self._end_poll(*in_hand)

    async def make_due(self) -> None:
        """Poll now what waits after a refused poll. Raises StoreError."""
        await self._poller.make_due(*range(SHARDS))

    def due(self, shard: int, for_s: float) -> None:
        """Claim at a shard: a poll may have been due there for so many seconds."""
        now = time.monotonic()
        if now < max(self._damaged_until.get(shard, 0), self._others_until.get(shard, 0)):
            return
        if self._look_at[shard] > now:
            self._wake.set()
        self._look_at[shard] = min(self._look_at[shard], now - for_s)

    def has_lost(self) -> bool:
        """Say whether a schedule of its accounts was gone since this was last asked: somebody deleted it."""
        lost, self._has_lost = self._has_lost, False
        return lost

    async def run(self) -> None:
        """Tick until stopped, then wait for the polls in flight."""
        async with asyncio.TaskGroup() as group:
            while not self._stopped.is_set():
                self.turned_at = time.monotonic()
                self._wake.clear()
                try:
                    pause_s = await self.tick(group)
                except StoreError as error:
                    pause_s = await self._health.failed(error)
                except Exception:
                    log.exception("bug", affected=self.name)
                    pause_s = DAMAGED_S
                self._poller.silence.tell()
                self.causes.tell()
                await asyncio.sleep(_BREATH_S)
                await pause(self._wake, min(pause_s, _TURN_S) - _BREATH_S)
        self.turned_at = None
        self._poller.silence.tell(at_once=True)

    async def tick(self, group: asyncio.TaskGroup) -> float:
        """Claim once and start the polls; returns in how many seconds the next tick is due."""
        leases = await self._claim()
        if leases:
            costs = [self._poller.cost(self._accounts.get(lease.member)) for lease in leases]
            try:
                turn = await self._take_turns(sum(costs))
            except StoreError:
                for lease in leases:
                    group.create_task(self._give_back(lease), name=f"give back {lease.member}")
                raise
            for lease, cost in zip(leases, costs, strict=True):
                self._in_flight += 1
                group.create_task(self._one(lease, turn), name=f"poll {lease.member}")
                turn = turn and turn.after(cost * self._spacing_s)
        if self._in_flight >= CONCURRENCY:
            return LOOK_MS / 1000
        return max(0.0, self._claim_at - time.monotonic(), min(self._look_at) - time.monotonic())

    @property
    def in_flight(self) -> int:
        return self._in_flight

    async def _claim(self) -> list[Lease]:
        """Claim where accounts have waited longest, no more than can start soon."""
        now = time.monotonic()
        shards = [shard for shard in range(SHARDS) if self._look_at[shard] <= now]
        if not shards or now < self._claim_at or self._in_flight >= CONCURRENCY:
            return []
        room = min(CONCURRENCY - self._in_flight, await self._soon())
        if not room:
            return []
        shards.sort(key=self._look_at.__getitem__)
        waited_ms = 0
        if self._is_scarce:  # turns are for those who have waited longest
            waited_ms = max(0, int(1000 * (now - self._look_at[shards[0]])) - LOOK_MS)
            shards = shards[:room]
        elif self._in_flight:
            shards = shards[: max(1, room // _PER_CLAIM)]
        # Where there is no room, it is only looked at when the next poll is due.
        shares = [room // len(shards) or int(place < room) for place in range(len(shards))]
        found = await self._health.of_parts(
            *(self._claim_shard(shard, share, waited_ms) for shard, share in zip(shards, shares, strict=True))
        )
        return [lease for leases in found for lease in leases or ()]

    async def _soon(self) -> int:
        """Say how many polls could start soon; where hardly any, the next look waits for their turns."""
        wait_s = 0.0
        if self._is_scarce:
            wait_s = await self._polls.next_turn_ms(self.provider) / 1000
        self._claim_at = time.monotonic() + min(wait_s - _AHEAD_S, LONGEST_TURN_S)
        if wait_s > _AHEAD_S:
            return 0
        return math.ceil(_AT_ONCE_S / (self._poller.most_requests * self._spacing_s))

    async def _claim_shard(self, shard: int, at_most: int, waited_ms: int) -> tuple[Lease, ...]:
        """Claim at one shard, nothing that waits for much less than others do at another one.

        One whose keys are damaged is left alone for a while, the others go on.
        """
        left = self._still_left(shard)
        try:
            claimed = await self._polls.claim(
                self.provider,
                shard,
                lease_ms=self._lease_ms,
                at_most=at_most,
                waited_ms=waited_ms,
                left=left,
            )
        except StoreError:
            self._look_at[shard] = time.monotonic() + LOOK_MS / 1000
            raise
        except Exception:
            log.exception("bug", affected=f"polls of shard {shard}")
            self._look_at[shard] = self._damaged_until[shard] = time.monotonic() + DAMAGED_S
            return ()
        self._has_lost |= claimed.next_due_ms is None and shard in self._shards
        wait_s = math.inf if claimed.next_due_ms is None else claimed.next_due_ms / 1000
        self._look_at[shard] = time.monotonic() + wait_s
        if left and not claimed.leases:  # what the index names is others': it is not to be asked all the time
            self._others_until[shard] = time.monotonic() + min(wait_s, _OTHERS_S)
        return claimed.leases

    def _still_left(self, shard: int) -> list[str]:
        """Name the accounts of a shard that are left to other workers: their turn is not to be taken away."""
        now, left = time.monotonic(), self._left[shard]
        for name in [name for name, until in left.items() if until <= now]:
            del left[name]
        return [*islice(left, _MOST_LEFT)]

    def _look_again(self, member: str) -> None:
        """Look at an account's shard in time for its next poll, where that is sooner than usual."""
        if account := self._accounts.get(member):
            soonest = min(account.interval, account.pending_interval).total_seconds()
            shard = shard_of(member)
            self._look_at[shard] = min(self._look_at[shard], time.monotonic() + soonest)

    async def _take_turns(self, turns: int) -> Turn | None:
        """Reserve turns at the provider; returns the first one, or None if it is far off."""
        asked_at = time.monotonic()
        spacing_ms, within_ms = 1000 * self._spacing_s, 1000 * LONGEST_TURN_S
        wait_ms = await self._polls.take_turns(
            self.provider, turns, spacing_ms=spacing_ms, within_ms=within_ms
        )
        turn = Turn(time.monotonic() + wait_ms / 1000, asked_at + wait_ms / 1000 + _LATE_S)
        self._is_scarce = wait_ms > LOOK_MS
        return turn if wait_ms <= within_ms else None

    async def _one(self, lease: Lease, turn: Turn | None) -> None:
        """Poll one account at its turn. Whatever happens, it holds up no other account."""
        is_over = True
        try:
            account = self._accounts.get(lease.member)
            if self._neighbours.is_left(lease.member) or (
                account and not await self._poller.may_poll(account)
            ):
                self._left[shard_of(lease.member)][lease.member] = time.monotonic() + _LEFT_S
                await self._polls.release(self.provider, lease)
            elif account is None:
                await self._polls.release(self.provider, lease, due_in_ms=_UNKNOWN_MS)
            elif await self._has_turn(account, turn):
                if await self._poller.poll(account, lease):
                    self.unread.discard(lease.member)
            else:
                is_over = False
                await self._polls.release(self.provider, lease)
        except StoreError as error:
            # The next poll finds the same change again.
            log.debug("poll.discarded", account=lease.member, provider=self.provider, reason=str(error))
            await self._give_back(lease, pause_s=await self._health.failed(error))
        except Exception:
            log.exception("bug", affected="poll", account=lease.member)
        finally:
            self._in_flight -= 1
            self._look_again(lease.member)
            if is_over:
                self._end_poll(lease.member)
            self._wake.set()

    def _end_poll(self, *accounts: str) -> None:
        self._unpolled.difference_update(accounts)
        if self._is_finishing and not self._unpolled:
            self.stop()

    async def _has_turn(self, account: AccountSettings, turn: Turn | None) -> bool:
        """Wait for a poll's turn, and for another one if it was missed; says whether there is one."""
        for missed in range(_LATE_TURNS):
            if turn is None or await self._stops_before(turn.at):
                return False
            if time.monotonic() <= turn.until or missed == _LATE_TURNS - 1:
                break
            turn = await self._take_turns(self._poller.cost(account))
        return True

    async def _stops_before(self, turn_s: float) -> bool:
        """Wait for a poll's turn; says whether the loop was stopped before it came."""
        wait_s = turn_s - time.monotonic()
        return await pause(self._stopped, wait_s) if wait_s > 0 else self._stopped.is_set()

    async def _give_back(self, lease: Lease, *, pause_s: float = 0.0) -> None:
        """Let an account be polled again once the store is back, and not only when the lease ends.

        After `pause_s` where the store takes that at once: then it refused the poll alone, and would again.
        """
        give_up_at = time.monotonic() + self._lease_ms / 1000
        while time.monotonic() < give_up_at:
            try:
                await self._polls.release(self.provider, lease, due_in_ms=int(1000 * pause_s))
            except StoreError:
                pause_s = 0.0
                await asyncio.sleep(_AGAIN_S)
            else:
                return
