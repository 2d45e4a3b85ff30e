"""Polls as the engine runs them: how much a provider can bear, claims, and turns at its rate limit."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from itertools import islice
from typing import Any, NamedTuple

from watcher.engine.dispatch import Capacity, Claim
from watcher.engine.loop import Claimed, InUse, Neighbours
from watcher.observe.log import log
from watcher.pause import pause, slowly
from watcher.polling.cadence import Watch, Watched
from watcher.polling.poll import Poller
from watcher.settings import AccountSettings
from watcher.store.exceptions import ConfigurationRefused, StoreError
from watcher.store.health import StoreHealth
from watcher.store.keys import shard_of
from watcher.store.pipe import in_parts
from watcher.store.polls import Polls
from watcher.store.schedule import Lease
from watcher.store.state import BadState

CONCURRENCY = 64
"""Polls of one provider at the same time: more would not raise the throughput of a process."""

_SCARCE_MS = 100
"""Turns that are further off are scarce: they go to the accounts that have waited longest."""

_PER_CLAIM = 16
"""How many accounts make it worth claiming at one more shard: accounts of one shard are also settled
together."""

_AHEAD_S = 0.5
"""How far ahead of its turn a poll is claimed: more would keep it from other workers."""

_AT_ONCE_S = 0.1
"""How many seconds of a provider's rate one claim takes: many workers may claim at the same moment."""

LONGEST_TURN_S = 5.0
"""The longest wait for a turn with a lease in hand. Beyond it, as when many workers claim at the same moment,
the lease is given back, because it would end meanwhile."""

_LATE_S = 0.04
"""A turn that was missed by more than this is taken again: late polls together would exceed the limit. Turns
are 5 % further apart than the limit asks, so that turns missed by less do not exceed it."""

_LATE_TURNS = 3
"""After so many missed turns in a row a poll is sent late: a machine that is always late must poll, too."""

_UNKNOWN_MS = 10_000
"""For so long, an account that this worker's configuration lacks is left to workers that have it."""

_LEFT_S = 60.0
"""For so long, an account that is left to other workers is not claimed."""

_OTHERS_S = 1.0
"""For so long, a shard where only others' accounts are due is not claimed at."""

_MOST_LEFT = 500
"""How many accounts a claim may name as not ours. Further ones are claimed, and given back at once."""

_SOON_MS = 1_000
"""For so long, such a further account is given back; and one that will be known soon."""

_REFUSED_S = 1.0
"""While nothing may be committed, no poll is claimed for so long before the next check."""

_AGAIN_S = 0.5
"""Between two tries to give a lease back while Redis is away."""


_LOOKED_AT = 2_000
"""Accounts of a provider whose last poll is read in a second: 200,000, if their intervals are 30 s."""

_JUDGED = 500
"""Accounts of a provider whose state is read in a second because they may be stale."""


class Turn(NamedTuple):
    """When a poll may start, in loop time. After `until` it is too late for the limit to hold."""

    at: float
    until: float


class ProviderPolls(InUse):
    """The polls of one provider. `stack` closes what `poller` uses, after its last poll.

    `unread` and `unpolled` are the accounts whose answer `run --once` has not accepted yet, or that it has
    not polled; otherwise they are None. `has_lost`: a schedule of its accounts is gone since the last check,
    because an operator deleted it.
    """

    def __init__(
        self,
        poller: Poller,
        polls: Polls,
        health: StoreHealth,
        stopped: asyncio.Event,
        neighbours: Neighbours,
        stack: AsyncExitStack,
        still_open: set[AsyncExitStack] | None = None,
    ) -> None:
        super().__init__(stack, still_open)
        self.poller = poller
        self.accounts: dict[str, AccountSettings] = {}
        self.provider: str = poller.settings.name
        self.unread: set[str] | None = None
        self.unpolled: set[str] | None = None
        self.has_lost = False
        self._polls = polls
        self._health = health
        self._stopped = stopped
        self._neighbours = neighbours
        self._by_cost, self._by_shard = Counter[int](), Counter[int]()
        self._added: list[tuple[timedelta, str]] = []
        self._is_probe_left = False
        self._left: dict[int, dict[str, float]] = {}
        self._is_scarce = False

    def follow(self, name: str, account: AccountSettings | None) -> None:
        """Poll an account from now on, or differently than before; or no longer. Call `choose_probe` once all
        changes are followed."""
        before = self.accounts.pop(name, None)
        for one, sign in ((before, -1), (account, 1)):
            if one:
                cost = self.poller.cost(one)
                self._by_cost[cost] += sign
                self._by_shard[shard_of(name)] += sign
                self.poller.needed_per_second += sign * cost / one.interval.total_seconds()
        if account:
            self.accounts[name] = account
            self._added.append((account.interval, name))
        self._is_probe_left |= name == self.poller.probe_account
        self._left.get(shard_of(name), {}).pop(name, None)  # what was unknown is known now

    async def choose_probe(self) -> None:
        """Choose the provider's probe account, the same one at all workers: the one with the shortest
        interval, and of those the first by name."""
        poller, places, self._added = self.poller, self._added, []
        if self._is_probe_left:
            places = [(one.interval, one.name) async for one in slowly(self.accounts.values())]
        elif probe := self.accounts.get(poller.probe_account):
            places.append((probe.interval, probe.name))
        self._is_probe_left = False
        poller.probe_account = min(places)[1] if places else ""
        self._by_cost = +self._by_cost
        poller.most_requests = max(self._by_cost, default=1)

    def reconsider(self) -> None:
        """Claim again what was left to other workers: it may be for other workers now."""
        self._left.clear()

    async def look_stale(self, due: Sequence[Watched], now_ms: int, again_ms: dict[str, int]) -> None:
        """Emit which of these accounts had no successful poll for too long, whatever the reason, and note
        when to check each again. Raises StoreError."""
        polled_at_ms = await self._polls.polled_at_ms(one.account for one in due)
        known_stale = self.poller.stale_accounts
        suspects: list[Watched] = []
        for one in due:
            account = self.accounts.get(one.account)
            if account is None:
                again_ms[one.account] = now_ms + _UNKNOWN_MS
                continue
            late_ms = polled_at_ms[one.account] + self.poller.patience_ms(account)
            if late_ms > now_ms and one.account not in known_stale:
                again_ms[one.account] = late_ms
            else:
                suspects.append(one)  # perhaps it was never polled
        errors: list[BaseException] = []
        for part in in_parts(suspects[:_JUDGED], CONCURRENCY):
            looking = (
                self._look_at(one.account, one.first_seen_ms, self._polls.watched_since_ms) for one in part
            )
            looked = await asyncio.gather(*looking, return_exceptions=True)
            for one, found in zip(part, looked, strict=True):
                if isinstance(found, BaseException):
                    errors.append(found)
                    found = now_ms + _UNKNOWN_MS
                again_ms[one.account] = found
        if errors:  # on a full server, for example: the others were checked all the same
            raise errors[0]

    async def look_stale_once(self, unread: Iterable[str]) -> None:
        """Emit which accounts that `run --once` could not read were not read for too long, by any run. Raises
        StoreError."""
        for part in in_parts(sorted(unread), CONCURRENCY):
            await asyncio.gather(*(self._look_at(name, 0, 0) for name in part))

    async def _look_at(self, name: str, first_seen_ms: int, watched_since_ms: int) -> int:
        """Check whether an account is stale. Returns when to check again."""
        account = self.accounts.get(name)
        if account and await self._is_ours(name, account):
            with suppress(BadState):  # its poll reports that
                return await self.poller.look_stale(
                    account, first_seen_ms=first_seen_ms, watched_since_ms=watched_since_ms
                )
        return self._polls.now_ms() + _UNKNOWN_MS

    async def capacity(self, in_flight: int) -> Capacity:
        """Return how many polls could start soon; if hardly any, the next claim waits for their turns."""
        if self._health.refusal:
            return Capacity(0, _REFUSED_S)
        free = CONCURRENCY - in_flight
        if free <= 0:
            return Capacity(0, _SCARCE_MS / 1000, is_full=True)
        if self._is_scarce:
            wait_s = await self._polls.next_turn_ms(self.provider) / 1000
            if wait_s > _AHEAD_S:
                return Capacity(0, min(wait_s - _AHEAD_S, LONGEST_TURN_S))
        soon = math.ceil(_AT_ONCE_S / (self.poller.most_requests * self.poller.spacing_s))
        return Capacity(min(free, soon), is_scarce=self._is_scarce, per_claim=_PER_CLAIM)

    async def claim(self, claim: Claim) -> Claimed:
        """Claim the accounts at a shard that are not left to other workers, which would lose their turn."""
        now, left = time.monotonic(), self._left.setdefault(claim.shard, {})
        for name in [name for name, until in left.items() if until <= now]:
            del left[name]
        claimed = await self._polls.claim(
            self.provider,
            claim.shard,
            lease_ms=self.poller.lease_ms,
            at_most=claim.at_most,
            waited_ms=int(1000 * claim.waited_s),
            left=[*islice(left, _MOST_LEFT)],
        )
        if claimed.next_due_ms is None:
            self.has_lost |= self._by_shard[claim.shard] > 0
            return Claimed(claimed.leases)
        wait_s = claimed.next_due_ms / 1000
        # If the index names only others' accounts, it is not asked all the time.
        block_s = min(wait_s, _OTHERS_S) if left and not claimed.leases else 0.0
        return Claimed(claimed.leases, wait_s, block_s)

    async def begin(self, leases: Sequence[Lease]) -> Sequence[Coroutine[Any, Any, bool]]:
        """Take turns for what was claimed. If Redis gives none, give the leases back."""
        poller, are_alike = self.poller, len(self._by_cost) == 1  # as with nearly every provider
        accounts = (self.accounts.get(lease.member) for lease in leases)
        costs = [poller.most_requests if one and are_alike else poller.cost(one) for one in accounts]
        try:
            turn = await self._take_turns(sum(costs)) if leases else None
        except StoreError as error:
            pause_s = await self._health.failed(error)
            return [self._give_back(lease, pause_s) for lease in leases]
        begun, after_s = [], 0.0
        for lease, cost in zip(leases, costs, strict=True):
            begun.append(self._poll(lease, turn, after_s))
            after_s += cost * poller.spacing_s
        return begun

    async def _poll(self, lease: Lease, turn: Turn | None, after_s: float) -> bool:
        """Poll one account at its turn, which is so long after the one given, or give it back."""
        name, account = lease.member, self.accounts.get(lease.member)
        is_over, is_more = True, False
        async with self:
            try:
                if account is None and await self._is_ours(name, None):
                    has_looked = await self._neighbours.look_again()
                    is_more = name in self.accounts  # it was just added, and takes a turn of its own
                    due_in_ms = 0 if is_more else _UNKNOWN_MS if has_looked else _SOON_MS
                    await self._polls.release(self.provider, lease, due_in_ms=due_in_ms)
                elif account is None or not await self._is_ours(name, account):
                    left = self._left.setdefault(shard_of(name), {})
                    left[name] = time.monotonic() + _LEFT_S
                    # Accounts that a claim cannot name must not stay in front of ours.
                    due_in_ms = _SOON_MS if len(left) > _MOST_LEFT else 0
                    await self._polls.release(self.provider, lease, due_in_ms=due_in_ms)
                elif not await self._has_turn(account, turn, after_s):
                    is_over = False
                    await self._polls.release(self.provider, lease)
                elif await self.poller.poll(self.accounts[name], lease) and self.unread is not None:
                    self.unread.discard(name)
            except StoreError as error:
                # The next poll finds the same change again.
                log.debug("poll.discarded", account=name, provider=self.provider, reason=str(error))
                await self._give_back(lease, await self._health.failed(error))
            finally:
                if is_over and self.unpolled is not None:
                    self.unpolled.discard(name)
        return is_more

    async def _is_ours(self, name: str, account: AccountSettings | None) -> bool:
        """Say whether an account is polled here. Other workers may have one that is not configured here."""
        others = self._neighbours
        if account is None:
            return others.is_alone and name not in others.locked_accounts
        if name in others.left:
            return False
        return name not in others.contested or await self.poller.may_poll(account, others.may_poll)

    async def _has_turn(self, account: AccountSettings, turn: Turn | None, after_s: float) -> bool:
        """Wait for a poll's turn, and for another one if it was missed. Returns whether there is one."""
        for missed in range(_LATE_TURNS):
            if turn is None or self._stopped.is_set():
                return False
            wait_s = turn.at + after_s - time.monotonic()
            if wait_s > 0 and await pause(self._stopped, wait_s):
                return False
            if self.is_retired or account.name not in self.accounts:
                return False  # a reload has replaced this, or removed the account
            if time.monotonic() <= turn.until + after_s or missed == _LATE_TURNS - 1:
                break
            turn, after_s = await self._take_turns(self.poller.cost(account)), 0.0
        return True

    async def _take_turns(self, turns: int) -> Turn | None:
        """Reserve turns at the provider. Returns the first one, or None if it is far off."""
        asked_at = time.monotonic()
        spacing_ms, within_ms = 1000 * self.poller.spacing_s, 1000 * LONGEST_TURN_S
        wait_ms = await self._polls.take_turns(
            self.provider, turns, spacing_ms=spacing_ms, within_ms=within_ms
        )
        turn = Turn(time.monotonic() + wait_ms / 1000, asked_at + wait_ms / 1000 + _LATE_S)
        self._is_scarce = wait_ms > _SCARCE_MS
        return turn if wait_ms <= within_ms else None

    async def _give_back(self, lease: Lease, pause_s: float) -> bool:
        """Make an account due again once Redis is back, and not only when the lease ends. If Redis accepts
        that at once, it is due after `pause_s`, because Redis refused only the poll, and would again."""
        give_up_at = time.monotonic() + self.poller.lease_ms / 1000
        while time.monotonic() < give_up_at:
            try:
                await self._polls.release(self.provider, lease, due_in_ms=int(1000 * pause_s))
                break
            except StoreError:
                pause_s = 0.0
                await asyncio.sleep(_AGAIN_S)
        return False


class PollWork:
    """The polls of all providers, as the engine runs them."""

    breath_s = 0.001
    """Between two claims: what falls due or becomes free meanwhile is claimed together."""

    def __init__(self, polls: Polls) -> None:
        self.by_provider: dict[str, ProviderPolls] = {}
        self.watch = Watch()
        self._polls = polls

    async def look_stale(self) -> None:
        """Note that this worker checks, and check which accounts are stale. Every second. Raises
        StoreError."""
        with suppress(ConfigurationRefused):  # no right to note itself
            await self._polls.note_watch()
        now_ms = self._polls.now_ms()
        due = self.watch.due(now_ms, _LOOKED_AT)
        again_ms: dict[str, int] = {}
        try:
            for provider, polls in [*self.by_provider.items()]:
                if found := [one for one in due if one.provider == provider]:
                    await polls.look_stale(found, now_ms, again_ms)
        finally:
            for one in due:
                self.watch.again(one, again_ms.get(one.account))

    def takes(self, name: str) -> bool:
        polls = self.by_provider.get(name)
        return polls is not None and (polls.unpolled is None or bool(polls.unpolled))

    async def capacity(self, name: str, in_flight: int, _: int) -> Capacity:
        polls = self.by_provider.get(name)  # a reload may have removed it, here and below
        return await polls.capacity(in_flight) if polls else Capacity(0)

    def spare(self, name: str, _: int, __: int) -> int:
        """Return 0: a poll is leased only by a claim."""
        return 0

    async def claim(self, name: str, claim: Claim) -> Claimed:
        polls = self.by_provider.get(name)
        return await polls.claim(claim) if polls else Claimed(())

    async def begin(self, name: str, leases: Sequence[Lease]) -> Sequence[Coroutine[Any, Any, bool]]:
        if polls := self.by_provider.get(name):
            return await polls.begin(leases)
        return [self._release(name, lease) for lease in leases]

    async def hold(self, _: int, __: Mapping[str, float]) -> None:
        """Do nothing: few providers lack capacity at a time, so the index may go on naming them."""

    async def _release(self, provider: str, lease: Lease) -> bool:
        await self._polls.release(provider, lease)
        return False
