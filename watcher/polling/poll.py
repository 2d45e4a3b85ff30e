"""One poll of one account: ask, read, step, commit; and the wait after a rejected poll."""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from watcher.engine.breaker import ProviderBreaker, State
from watcher.engine.dispatch import Key
from watcher.engine.loop import Loop, Places
from watcher.journal.account import AccountState, Rules
from watcher.journal.events import Delivery, Origin
from watcher.journal.interest import Interest
from watcher.journal.notices import Watch
from watcher.journal.step import Reading, Step, diff, go_stale
from watcher.pause import keep
from watcher.polling.cadence import patience_ms, spread_ms, stale_since_ms, wait_s, waits_ms
from watcher.polling.report import NotAsked, PollReport
from watcher.providers.contract import USABLE, Rejected, check_height
from watcher.providers.http import ProviderClient
from watcher.providers.kept import Memo
from watcher.settings import AccountSettings, ProviderSettings
from watcher.store.exceptions import StoreError
from watcher.store.keys import SHARDS, shard_of
from watcher.store.polls import Commit, Failing, Polls
from watcher.store.queues import LEASE_MS
from watcher.store.schedule import DONE, Lease, Reply
from watcher.store.state import BadState, Within

_QUARANTINE_MS = (300_000,)
"""How often a damaged state is read again: an operator may have fixed it."""

_LOOK_AGAIN_MS = 5_000
"""How soon a stale account is checked again: another worker may have polled it."""

_AT_ONCE_MS = 1_000

_LEASE_MARGIN_S = 15
"""A lease outlasts the longest poll by the longest wait for a turn, and by a margin."""

_OUTAGE_FROM = 2
"""After so many rejected polls of the probe account in a row, by any workers, the other accounts may be
waiting for its return: their waits after one are as short as its own."""

MEMO_BYTES = 7_000_000
"""Memory for the last answers of the accounts that changed last: a thousand with ten assets."""

_KEPT_AT_ONCE = 5_000
"""Accounts of which something stays in memory. To look for garbage among what stays of so many, and what is
made meanwhile, takes 30 ms."""


@dataclass(slots=True)
class Settled:
    """The last successful answer of an account, if the same answer would change nothing."""

    account: AccountSettings
    """The account as it was polled: a reload may have changed it since, even during the poll."""
    watches: tuple[Watch, ...]
    interest: int
    """The version of the `Interest` that the watches are from."""
    source: str
    """What is polled for the account (`ProviderClient.source`)."""
    hash: int = 0
    """Of its bodies: it has 64 bits, and another key in each process, as in `Memo`."""
    version: str = ""
    wait_ms: int = 0
    """Until the next poll, spread once: an account whose answers stay the same keeps its own rhythm."""


def _new_version() -> str:
    """Name a commit. It need not be secret, only new: entropy of the system costs ten times that."""
    return f"{random.getrandbits(64):016x}"


_rules = lru_cache(maxsize=64)(Rules)
"""One object for all providers with the same rules."""


class Poller:
    """Polls the accounts of one provider.

    `deliver(name, leased)` begins the queues that a poll fills at once in `loop`, as far as there is
    capacity; for the others, which are due, the loop is woken. `let_go(name, lease)` makes one due that may
    be leased: the answer to the commit was lost. `memos`, of the last answers by account, are shared by the
    pollers of a worker. `most_requests` bounds the requests of a poll; `needed_per_second` is what all
    accounts take at their intervals. The account `probe_account`, the same one at all workers, is
    polled whenever it is due; while its polls are rejected, the others are hardly polled.
    """

    def __init__(
        self,
        settings: ProviderSettings,
        client: ProviderClient,
        polls: Polls,
        interest: Interest,
        report: PollReport,
        *,
        now_ms: Callable[[], int],
        loop: Loop,
        deliver: Callable[[str, Lease, Sequence[Delivery]], Coroutine[Any, Any, bool]],
        let_go: Callable[[str, Lease], Coroutine[Any, Any, bool]],
        memos: Within[Memo] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.most_requests = 1
        self.needed_per_second = 0.0
        self.probe_account = ""
        self.spacing_s = client.spacing_s
        """How far apart two requests to the provider are."""
        self._client = client
        self._polls = polls
        self._interest = interest
        self._report = report
        self._now_ms = now_ms
        self._loop = loop
        self._deliver = deliver
        self._let_go = let_go
        self._clock = clock
        self._rules = _rules(settings.withdrawals, settings.settle_polls)
        self._breaker = ProviderBreaker()
        self._was_open = self._is_back = False
        self._settled: dict[str, Settled] = {}
        self._keeps_at = _KEPT_AT_ONCE
        self._memos = Within(MEMO_BYTES) if memos is None else memos

    def forget(self, account: str) -> None:
        """Forget what is known of an account that is no longer configured."""
        self._settled.pop(account, None)
        self._polls.drop_state(account)
        self._report.forget(self.settings.name, account)

    @property
    def lease_ms(self) -> int:
        """How long a poll may take at most: its turns, its requests, and a margin."""
        rounds = self._client.most_rounds
        turns_s = (self.most_requests + rounds - 1) * self.spacing_s
        return int(1000 * (turns_s + rounds * self.settings.timeout.total_seconds() + _LEASE_MARGIN_S))

    def cost(self, account: AccountSettings | None) -> int:
        """Return how many requests a poll of this account takes: none for an account that is not ours."""
        return self._client.cost(account) if account else 0

    async def may_poll(
        self, account: AccountSettings, may_poll: Callable[[str, str, str | None], bool]
    ) -> bool:
        """Say whether this worker may poll an account whose name another worker has elsewhere: otherwise each
        would make a new baseline of what the other polled. `may_poll` is that of `Neighbours`."""
        try:
            state = await self._polls.read_state(self.settings.name, account.name)
        except BadState:
            return True  # the poll then reports it
        return may_poll(account.name, self._client.source(account), state.source if state else None)

    async def poll(self, account: AccountSettings, lease: Lease) -> bool:
        """Make one poll and log its result. Returns whether its answer was accepted. Raises
        StoreUnreachable."""
        is_taken = False
        started = self._report.began()
        try:
            try:
                bodies = await self.ask(account)
                is_taken = await self._take(account, lease, bodies, started)
            except Rejected as rejected:
                await self._reject(account, lease, rejected, started)
                if isinstance(rejected, NotAsked) and not await self._is_probe_failing():
                    # The outage ended, and a worker made all accounts due before this one was postponed.
                    await self.make_due(shard_of(account.name))
            if self._is_back:
                self._is_back = False
                await self.make_due(*range(SHARDS))
        except BadState as damage:  # an operator may fix it
            await self._polls.postpone(
                self.settings.name, lease, why=f"quarantined {damage}", at_least_ms=0, waits_ms=_QUARANTINE_MS
            )
            self._report.quarantined(account, damage, started)
        return is_taken

    @property
    def stale_accounts(self) -> Collection[str]:
        """The stale accounts, as far as this worker knows."""
        return self._report.stale_accounts(self.settings.name)

    def patience_ms(self, account: AccountSettings) -> int:
        """Return how long an account may go without a successful poll before it is stale."""
        return patience_ms(account, self.settings.timeout)

    async def look_stale(self, account: AccountSettings, *, first_seen_ms: int, watched_since_ms: int) -> int:
        """Emit that an account had no successful poll for too long, unless a worker did so already. No lease
        is needed: a poll that is under way goes on from the state that this leaves.

        Returns when to check again (Unix ms). Raises StoreError, and BadState.
        """
        name, now_ms, patience = account.name, self._now_ms(), self.patience_ms(account)
        state = await self._polls.read_state(self.settings.name, name)
        failing = await self._polls.failing(self.settings.name, name)
        polled_at_ms, reported_ms = (state.polled_at_ms, state.stale_since_ms) if state else (0, 0)
        counts_from_ms = polled_at_ms or (failing.since_ms if failing else first_seen_ms)
        since_ms = stale_since_ms(
            counts_from_ms,
            reported_ms,
            watched_since_ms=watched_since_ms,
            patience_ms=patience,
            now_ms=now_ms,
        )
        if since_ms is None:
            self._report.is_fresh(self.settings.name, name)
            return max(counts_from_ms, watched_since_ms) + patience
        failures, stale_ms = self._report.failures(self.settings.name), now_ms - since_ms
        error_class, reason = self._why_late(failing)
        if reported_ms:
            # It is news to a worker that started after it was emitted.
            failures.stale(name, reason, stale_ms, is_news=reported_ms + patience < first_seen_ms)
            return now_ms + _LOOK_AGAIN_MS
        step = go_stale(
            state,
            Origin(name, self.settings.name, state.sequence if state else 0, since_ms, now_ms),
            error_class,
            reason,
            interest=self._interest,
            version=_new_version(),
            now_ms=now_ms,
        )
        try:
            reply = await self._write(account, None, state, step, now_ms=self._now_ms())
        except StoreError:  # on a full server, for example: then it is logged at least
            failures.stale(name, reason, stale_ms)
            raise
        if reply not in DONE:
            return now_ms + _AT_ONCE_MS
        failures.stale(name, reason, stale_ms)
        return now_ms + _LOOK_AGAIN_MS

    def _why_late(self, failing: Failing | None) -> tuple[str, str]:
        """Return why an account is stale: an error_class, or late, and a reason."""
        if failing:
            return failing.error_class, failing.reason
        made = USABLE * self.settings.requests_per_second
        if self.needed_per_second > made:
            needed = f"take {self.needed_per_second:.3g} requests/s, {made:.3g} can be made"
            return "late", f"its poll comes late: the intervals of all accounts {needed}"
        return "late", "its poll comes late: the workers are behind"

    async def _came_late(self, account: AccountSettings, state: AccountState, observed_ms: int) -> bool:
        """Say whether a stale account stays so in spite of a successful poll, because the first poll after
        the last successful one came late, as when the rate limit cannot bear so many accounts."""
        failing = await self._polls.failing(self.settings.name, account.name)
        asked_ms = failing.since_ms if failing else observed_ms
        counts_from_ms = max(state.polled_at_ms or state.stale_since_ms, self._polls.watched_since_ms)
        # An interval before it would be stale: otherwise it would change to and fro.
        in_time_ms = self.patience_ms(account) - 1000 * account.interval.total_seconds()
        return asked_ms - counts_from_ms > in_time_ms

    async def make_due(self, *shards: int) -> None:
        """Make accounts due that wait after rejected polls. The rate limit spreads the polls."""
        for shard in shards:
            await self._polls.make_due(self.settings.name, shard, lease_ms=self.lease_ms)

    async def ask(self, account: AccountSettings) -> tuple[bytes, ...]:
        """Send the requests of one poll. Raises Rejected, NotAsked if nothing was sent, and StoreError."""
        is_probe, breaker = account.name == self.probe_account, self._breaker
        may_ask = is_probe or not breaker.failures or breaker.may_ask(self._clock())
        # The breaker is open here; another worker may know that the provider is back.
        if not may_ask and await self._is_probe_failing():
            if cause := breaker.cause:
                raise NotAsked(cause.error_class, cause.reason)
            raise NotAsked("gone", "the provider is unavailable; one account at a time asks it")
        try:
            bodies = await self._client.ask(account)
        except Rejected as rejected:
            now = self._clock()
            breaker.rejected(account.name, rejected, now)
            is_open = breaker.state(now) is not State.CLOSED
            self._was_open |= is_open
            if is_open and not breaker.cause:  # that one is reported, and is the one to look at
                self._report.failures(self.settings.name).unavailable(rejected)
            raise
        if breaker.failures:
            breaker.answered()
            self._is_back |= self._was_open
            self._was_open = False
        if is_probe and not self._is_back:
            # This worker may have seen little of the outage: others polled, or it started during it.
            self._is_back = await self._is_probe_failing(times=_OUTAGE_FROM)
        self._report.answered(self.settings.name)
        return bodies

    async def _is_probe_failing(self, *, times: int = 1) -> bool:
        """Say whether so many polls of the probe account in a row were rejected, by any worker."""
        return await self._polls.is_failing(self.settings.name, self.probe_account, times=times)

    async def _take(
        self, account: AccountSettings, lease: Lease, bodies: tuple[bytes, ...], started: float
    ) -> bool:
        """Take in an answer. Returns whether that was in time. Raises Rejected if it is not a successful one,
        and BadState."""
        observed_ms = self._now_ms()
        hash_ = hash(bodies)
        settled = self._settled.pop(account.name, None)
        if settled and (settled.account is not account or settled.interest != self._interest.version):
            is_alike = settled.account == account and settled.watches == self._interest.watches(account.name)
            settled.account, settled.interest = account, self._interest.version
            settled = settled if is_alike else None
        if settled and settled.hash == hash_:
            reply = await self._polls.touch(
                self.settings.name,
                lease,
                version=settled.version,
                polled_at_ms=observed_ms,
                due_ms=observed_ms + settled.wait_ms,
            )
            if reply is not Reply.MOVED_ON:
                self._settled[account.name] = settled
                await self._report.finished(account, reply, started, None)
                return reply in DONE
        if settled is None:
            watches, source = self._interest.watches(account.name), self._client.source(account)
            settled = Settled(account, watches, self._interest.version, source)
        settled.hash = hash_
        return await self._advance(account, lease, bodies, settled, observed_ms, started)

    async def _advance(
        self,
        account: AccountSettings,
        lease: Lease,
        bodies: tuple[bytes, ...],
        settled: Settled,
        observed_ms: int,
        started: float,
    ) -> bool:
        """Read an answer, and move the state on to it. If another worker was faster, start again from the
        state that it left.

        It gives way after each stage: all answers of a turn of the event loop are read, then all compared,
        then all written. A processor runs again in half the time what it has just run, and this takes a tenth
        off a poll that finds a change.
        """
        source = settled.source
        memo = self._memos.take(account.name) or Memo()
        for is_last in (False, False, True):  # being slower than another worker three times is no accident
            state = await self._polls.state_of(self.settings.name, account.name)
            accepted = state if state and state.source == source else None
            known = accepted.assets if accepted else dict
            snapshot = await self._client.read(account, bodies, known=known, memo=memo)
            if accepted and snapshot.height is not None:
                check_height(accepted.height, snapshot.height)
            differing = memo.differing_from(accepted.entry_by_asset) if accepted else None
            if settled.watches:
                named = {watch.threshold.asset for watch in settled.watches}
                snapshot = await self._client.add_zeros(snapshot, named)
            reported_ms = state.stale_since_ms if state else 0
            stays_stale = bool(state and reported_ms and await self._came_late(account, state, observed_ms))
            await asyncio.sleep(0)
            now_ms = self._now_ms()
            step = diff(
                state,
                Reading(account.name, self.settings.name, source, snapshot, observed_ms, differing),
                stays_stale=stays_stale,
                rules=self._rules,
                interest=self._interest,
                version=_new_version(),
                now_ms=now_ms,
            )
            assert step or state, "without a state, a reading is a baseline"
            after: AccountState = step.state if step else state  # type: ignore[assignment]  # asserted above
            # Three waits after an empty listing make up the minute that it needs: they are not shortened.
            chance = 0 if after.emptiness else random.random()
            wait = wait_s(account, after, among=differing)
            wait_ms = spread_ms(wait, chance)
            settled.version, settled.wait_ms = after.version, wait_ms
            await asyncio.sleep(0)
            if step:
                reply = await self._write(account, lease, state, step, now_ms=now_ms, wait_ms=wait_ms)
                if reported_ms and not after.stale_since_ms and reply is Reply.DONE:
                    stale_ms = self._now_ms() - reported_ms
                    self._report.failures(self.settings.name).recovered(account.name, stale_ms)
            else:
                reply = await self._polls.touch(
                    self.settings.name,
                    lease,
                    version=after.version,
                    polled_at_ms=observed_ms,
                    due_ms=now_ms + wait_ms,
                    height=snapshot.height,
                )
            if is_last or reply is not Reply.MOVED_ON:
                break
        is_taken = reply in DONE
        needs_decimals = self._client.lists_assets
        # Would the same answer change nothing, not even with a newer list of assets?
        if (
            is_taken
            and not snapshot.is_open
            and after.is_at_rest(needs_decimals=needs_decimals, among=differing)
        ):
            self._settled[account.name] = settled
            if len(self._settled) >= self._keeps_at:
                self._keeps_at += _KEPT_AT_ONCE
                keep()
            if wait == account.interval.total_seconds():  # otherwise something is pending, perhaps elsewhere
                memo.rests_at(after.entry_by_asset)
            self._memos.keep(account.name, memo)
        else:
            self._polls.drop_state(account.name)
        await self._report.finished(account, reply, started, step)
        return is_taken

    async def _write(
        self,
        account: AccountSettings,
        lease: Lease | None,
        state: AccountState | None,
        step: Step,
        *,
        now_ms: int,
        wait_ms: float = 0,
    ) -> Reply:
        """Commit a step, report it, and deliver what it queued, or have it claimed."""
        keys, shard = [Key("delivery", name) for name in step.queued], shard_of(account.name)
        until = now_ms + LEASE_MS
        ours = Lease(account.name, until)
        with Places(self._loop, keys) as places:
            commit = Commit(
                account=account.name,
                provider=self.settings.name,
                lease=lease,
                expected_version=state.version if state else "",
                step=step,
                due_ms=now_ms + wait_ms,
                to_lease={key.name for key in places.kept},
                leased_until=until,
            )
            try:
                reply, leased = await self._polls.commit(commit)
            except StoreError:  # it may be written all the same, and no worker would begin these
                for key in [*places.kept]:
                    places.begin(key, shard, ours, self._let_go(key.name, ours))
                raise
            if reply in DONE:
                self._report.committed(account, step)
                for key in keys:
                    if deliveries := leased.get(key.name):
                        places.begin(key, shard, ours, self._deliver(key.name, ours, deliveries))
                    else:
                        self._loop.wake(key, shard)
        return reply

    async def _reject(
        self, account: AccountSettings, lease: Lease, rejected: Rejected, started: float
    ) -> None:
        """Let an account wait after a rejected poll, and all accounts if the provider asks for it."""
        self._report.failures(self.settings.name).refused(account.name, rejected)
        if rejected.error_class == "rate" and rejected.retry_after_s:
            await self._polls.take_turns(
                self.settings.name, 0, spacing_ms=0, not_before_ms=1000 * rejected.retry_after_s
            )
        postponed = await self._polls.postpone(
            self.settings.name,
            lease,
            why=f"{rejected.error_class} {rejected.reason}",
            at_least_ms=int(1000 * (rejected.retry_after_s or 0)),
            waits_ms=waits_ms(
                account,
                rejected.error_class,
                is_probe_account=account.name == self.probe_account,
                chance=random.random(),
            ),
        )
        self._report.rejected(account, rejected, postponed, started)
