"""One poll of one account: ask, read, step, commit; and how long an account waits whose poll was rejected."""

import random
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import blake2b
from typing import NamedTuple, Protocol

from watcher.engine.breaker import ProviderBreaker, State
from watcher.journal.account import AccountState, Rules
from watcher.journal.events import Origin
from watcher.journal.interest import Interest
from watcher.journal.notices import Watch
from watcher.journal.step import Reading, Step, diff, go_stale
from watcher.observe.counters import Counters
from watcher.observe.log import Throttle, log
from watcher.polling.cadence import spread_ms, wait_s, waits_ms
from watcher.polling.report import Causes, NotAsked, PollNotes, Silence
from watcher.providers.contract import Rejected
from watcher.providers.http import ProviderClient
from watcher.settings import AccountSettings, ProviderSettings
from watcher.snapshot import Snapshot
from watcher.store.keys import SHARDS, shard_of
from watcher.store.polls import Commit, Polls
from watcher.store.schedule import Lease, Reply
from watcher.store.state import BadState


class Neighbours(Protocol):
    """Says which accounts are left to other workers."""

    def is_left(self, account: str) -> bool:
        """Say whether an account is not to be polled here."""
        ...

    def is_contested(self, account: str) -> bool:
        """Say whether another worker has an account of that name elsewhere, or had of late."""
        ...

    def may_poll(self, account: str, source: str, state_source: str | None) -> bool:
        """Say whether this worker, which polls `source`, may go on from a state that `state_source` made."""
        ...


class _Alone:
    """No other configuration is known."""

    def is_left(self, account: str) -> bool:
        return False

    def is_contested(self, account: str) -> bool:
        return False

    def may_poll(self, account: str, source: str, state_source: str | None) -> bool:
        return True


ALONE: Neighbours = _Alone()


class Asker:
    """The way to one provider. The account `probe_account`, the same one for all workers, asks whenever it
    is due; as long as `is_probe_failing`, others hardly do.
    """

    def __init__(
        self,
        provider: str,
        client: ProviderClient,
        *,
        is_failing: Callable[[str], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider = provider
        self._client = client
        self.probe_account = ""
        self._is_failing = is_failing
        self._clock = clock
        self._breaker = ProviderBreaker()
        self._throttle = Throttle()
        self._was_on = self._is_back = False

    async def ask(self, account: AccountSettings) -> tuple[bytes, ...]:
        """Send the requests of one poll. Raises Rejected, NotAsked where nothing was sent, and StoreError."""
        if not await self._may_ask(account):
            if cause := self._breaker.cause:
                raise NotAsked(cause.error_class, cause.reason)
            raise NotAsked("gone", "the provider is unavailable; one account at a time asks it")
        try:
            bodies = await self._client.ask(account)
        except Rejected as refused:
            self._note(account, refused)
            raise
        self._breaker.answered()
        if self._was_on:
            self._was_on, self._is_back = False, True
        if streak := self._throttle.over(self._provider, self._clock()):
            log.info("provider.recovered", provider=self._provider, **streak._asdict())
        return bodies

    async def is_probe_failing(self) -> bool:
        """Say whether the last poll of the probe account was rejected, whichever worker made it."""
        return await self._is_failing(self.probe_account)

    def is_back(self) -> bool:
        """Say, once, that the provider is back after an outage."""
        is_back, self._is_back = self._is_back, False
        return is_back

    async def _may_ask(self, account: AccountSettings) -> bool:
        """Whoever is not the probe_account asks the store, too: another worker may know that it is over."""
        if account.name == self.probe_account or self._breaker.may_ask(self._clock()):
            return True
        return not await self.is_probe_failing()

    def _note(self, account: AccountSettings, refused: Rejected) -> None:
        now = self._clock()
        self._breaker.rejected(account.name, refused, now)
        is_closed = self._breaker.state(now) is State.CLOSED
        self._was_on |= not is_closed
        if is_closed or self._breaker.cause:  # which was said, and is what to look at
            return
        if streak := self._throttle.struck(self._provider, now):
            log.warning(
                "provider.unavailable",
                provider=self._provider,
                error_class=refused.error_class,
                reason=refused.reason,
                status=refused.status,
                **streak._asdict(),
            )


_QUARANTINE_MS = (300_000,)
"""How often a damaged state is looked at again, in case that somebody fixed it."""

_LEASE_MARGIN_S = 15
"""A lease outlasts the longest poll by the longest wait for a turn, and some."""


class Settled(NamedTuple):
    """The last good answer of an account, where its repetition would change nothing."""

    digest: bytes
    version: str
    wait_s: float
    watches: tuple[Watch, ...]


class Poller:
    """Polls the accounts of one provider. `wake(shard, subscription)` is called for every queue made due.

    `most_requests`: no account's poll takes more.
    """

    def __init__(
        self,
        settings: ProviderSettings,
        client: ProviderClient,
        polls: Polls,
        interest: Interest,
        counters: Counters,
        *,
        now_ms: Callable[[], int],
        wake: Callable[[int, str], None],
        neighbours: Neighbours = ALONE,
    ) -> None:
        self._neighbours = neighbours
        self.settings = settings
        self.most_requests = 1
        self._client = client
        self._polls = polls
        self._interest = interest
        self._notes = PollNotes(settings.name, counters)
        self._now_ms = now_ms
        self._wake = wake
        self._rules = Rules(settings.withdrawals, settings.settle_polls)
        self._settled: dict[str, Settled] = {}
        is_failing = partial(polls.is_failing, settings.name)
        self.causes = Causes(settings.name, is_refused=is_failing)
        self.silence = Silence(settings.name)
        self._asker = Asker(settings.name, client, is_failing=is_failing)

    def follow(self, *, most_requests: int, probe_account: str) -> None:
        """Go by other accounts from now on: of which none takes more requests, and one probes for all."""
        self.most_requests = most_requests
        self._asker.probe_account = probe_account

    def forget(self, account: str) -> None:
        """Take the next answer of an account for a new one: what it is configured to be has changed."""
        self._settled.pop(account, None)

    @property
    def lease_ms(self) -> int:
        """How long a poll may take at most: its turns, its requests, and some."""
        timeout_s = self._client.most_rounds * self.settings.timeout.total_seconds()
        return int(1000 * (self.most_requests * self.spacing_s + timeout_s + _LEASE_MARGIN_S))

    @property
    def spacing_s(self) -> float:
        """How far apart two requests to the provider are."""
        return self._client.spacing_s

    def cost(self, account: AccountSettings | None) -> int:
        """Say how many requests a poll of this account is; of one that is not ours, none is made."""
        return self._client.cost(account) if account else 0

    async def may_poll(self, account: AccountSettings) -> bool:
        """Say whether an account is this worker's, where another one has the name elsewhere: else each would
        make a new baseline of what the other one polled."""
        if not self._neighbours.is_contested(account.name):
            return True
        try:
            state = await self._polls.read_state(account.name)
        except BadState:
            return True  # which is then said
        source = self._client.source(account)
        return self._neighbours.may_poll(account.name, source, state.source if state else None)

    async def poll(self, account: AccountSettings, lease: Lease) -> bool:
        """Make one poll and say in one line what became of it; returns whether its answer was taken in.

        Raises StoreUnreachable.
        """
        is_taken = False
        started = self._notes.began()
        try:
            try:
                bodies = await self._asker.ask(account)
                is_taken = await self._take(account, lease, bodies, started)
            except Rejected as rejected:
                await self._reject(account, lease, rejected, started)
                if isinstance(rejected, NotAsked) and not await self._asker.is_probe_failing():
                    # It ended meanwhile, and the worker that made all due came before this one was postponed.
                    await self.make_due(shard_of(account.name))
            if self._asker.is_back():
                await self.make_due(*range(SHARDS))
        except BadState as damage:
            await self._quarantine(account, lease, damage, started)
        return is_taken

    async def make_due(self, *shards: int) -> None:
        """Let accounts wait no longer whose polls were rejected. The rate limit spreads the polls."""
        for shard in shards:
            await self._polls.make_due(self.settings.name, shard, lease_ms=self.lease_ms)

    async def _take(
        self, account: AccountSettings, lease: Lease, bodies: tuple[bytes, ...], started: float
    ) -> bool:
        """Take in a good answer, and say whether that was in time. Raises Rejected if it is none,
        BadState."""
        observed_ms = self._now_ms()
        digest = blake2b(b"\0".join(bodies), digest_size=16).digest()
        settled = self._settled.pop(account.name, None)
        watches = self._interest.watches(account.name)
        if settled and settled.digest == digest and settled.watches == watches:
            reply = await self._touch(account, lease, settled, observed_ms)
            if reply is not Reply.MOVED_ON:
                self._settled[account.name] = settled
                return await self._finish(account, reply, started)
        state = await self._polls.read_state(account.name)
        source = self._client.source(account)
        known = state.entry_by_asset.values() if state and state.source == source else ()
        assets = {entry.asset.id: entry.asset for entry in known}
        snapshot = await self._client.read(account, bodies, known=assets)
        watched = {watch.threshold.asset for watch in watches}
        snapshot = await self._client.add_zeros(snapshot, watched)
        reading = Reading(account.name, self.settings.name, source, snapshot, observed_ms)
        return await self._advance(account, lease, state, reading, digest, watches, started)

    async def _advance(
        self,
        account: AccountSettings,
        lease: Lease,
        state: AccountState | None,
        reading: Reading,
        digest: bytes,
        watches: tuple[Watch, ...],
        started: float,
    ) -> bool:
        """Move the state on to a reading; where another worker was faster, from what it left."""
        for is_last in (False, False, True):  # losing to another worker three times is no accident
            step = diff(
                state,
                reading,
                rules=self._rules,
                interest=self._interest,
                version=secrets.token_hex(8),
                now_ms=self._now_ms(),
            )
            assert step or state, "without a state, a reading is a baseline"
            after: AccountState = step.state if step else state  # type: ignore[assignment]  # asserted above
            settled = Settled(digest, after.version, wait_s(account, after), watches)
            if step:
                wait_ms = spread_ms(wait_s(account, after), random.random())
                reply = await self._write(account, lease, state, step, due_ms=self._now_ms() + wait_ms)
                if state and state.stale_since_ms and reply is Reply.DONE:
                    self.silence.recovered(account, self._now_ms() - state.stale_since_ms)
            else:
                reply = await self._touch(account, lease, settled, reading.observed_ms)
            if is_last or reply is not Reply.MOVED_ON:
                break
            state = await self._polls.read_state(account.name)
        if reply in (Reply.DONE, Reply.DONE_BEFORE) and self._is_settled(after, reading.snapshot):
            self._settled[account.name] = settled
        return await self._finish(account, reply, started, step)

    def _is_settled(self, state: AccountState, snapshot: Snapshot) -> bool:
        """Say whether the same answer again would change nothing: not even by a newer list of assets."""
        return not snapshot.is_open and not any(
            entry.held_polls or entry.suspect or (self._client.lists_assets and entry.asset.decimals is None)
            for entry in state.entry_by_asset.values()
        )

    async def _touch(
        self, account: AccountSettings, lease: Lease, settled: Settled, observed_ms: int
    ) -> Reply:
        return await self._polls.touch(
            self.settings.name,
            lease,
            version=settled.version,
            polled_at_ms=observed_ms,
            due_ms=self._now_ms() + spread_ms(settled.wait_s, random.random()),
        )

    async def _finish(
        self, account: AccountSettings, reply: Reply, started: float, step: Step | None = None
    ) -> bool:
        self.silence.ended(account)
        self._notes.finished(account, reply, started, step)
        await self.causes.good(account.name)
        return reply in (Reply.DONE, Reply.DONE_BEFORE)

    async def _write(
        self,
        account: AccountSettings,
        lease: Lease,
        state: AccountState | None,
        step: Step,
        *,
        due_ms: float,
        is_good: bool = True,
    ) -> Reply:
        """Commit a step; report it, and wake the queues that it fills."""
        reply, pushed_out = await self._polls.commit(
            Commit(
                account=account.name,
                provider=self.settings.name,
                lease=lease,
                expected_version=state.version if state else "",
                state=step.state,
                due_ms=due_ms,
                is_good=is_good,
                log=step.log,
                deliveries=step.deliveries,
            )
        )
        if reply in (Reply.DONE, Reply.DONE_BEFORE):
            self._notes.committed(account, step, pushed_out)
            for subscription in step.deliveries:
                self._wake(shard_of(account.name), subscription)
        return reply

    async def _reject(
        self, account: AccountSettings, lease: Lease, rejected: Rejected, started: float
    ) -> None:
        """Let an account wait whose poll was rejected, and all of them where the provider asks for it."""
        self.causes.struck(account.name, rejected)
        await self._notice_silence(account, lease, rejected)
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
                is_probe_account=account.name == self._asker.probe_account,
                chance=random.random(),
            ),
        )
        self._notes.refused(account, rejected, postponed, started)

    async def _notice_silence(self, account: AccountSettings, lease: Lease, rejected: Rejected) -> None:
        """Report once that an account has had no successful poll for too long. Its lease stays meanwhile."""
        state = await self._polls.read_state(account.name)
        now_ms = self._now_ms()
        since_ms = self.silence.since_ms(account, state.polled_at_ms if state else 0, now_ms)
        if since_ms is None:
            return
        if state and state.stale_since_ms:
            self.silence.still_stale(account, rejected.reason, now_ms - state.stale_since_ms)
            return
        step = go_stale(
            state,
            Origin(account.name, self.settings.name, state.sequence if state else 0, since_ms, now_ms),
            rejected.error_class,
            rejected.reason,
            interest=self._interest,
            version=secrets.token_hex(8),
            now_ms=now_ms,
        )
        reply = await self._write(account, lease, state, step, due_ms=lease.deadline, is_good=False)
        if reply is Reply.DONE:
            self.silence.went_stale(account, rejected.reason)

    async def _quarantine(
        self, account: AccountSettings, lease: Lease, damage: BadState, started: float
    ) -> None:
        """Leave an account alone whose state cannot be read."""
        await self._polls.postpone(
            self.settings.name, lease, why=f"quarantined {damage}", at_least_ms=0, waits_ms=_QUARANTINE_MS
        )
        self._notes.quarantined(account, damage, started)
