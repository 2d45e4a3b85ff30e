"""One poll of one account: fetch, normalize, diff, commit. `loop` says when.

An answer whose bytes are those of the last one says nothing new: most polls end there, unparsed.
Refuses to touch a state that it cannot read, and to tell anything of a poll that is not good.
"""

import random
import secrets
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

from watcher.journal.diff import Reading, Step, diff
from watcher.journal.interest import Interest
from watcher.journal.ledger import AccountState, Rules
from watcher.journal.notices import Watch
from watcher.observe.counters import Counters
from watcher.polling.asker import Asker, NotAsked
from watcher.polling.cadence import spread_ms, wait_s
from watcher.polling.commits import Commits
from watcher.polling.neighbours import ALONE, Neighbours
from watcher.polling.notes import PollNotes
from watcher.polling.setbacks import Setbacks
from watcher.providers.client import ProviderClient
from watcher.providers.contract import Rejected
from watcher.settings import AccountSettings, ProviderSettings
from watcher.snapshot import Snapshot
from watcher.store.keys import SHARDS, shard_of
from watcher.store.polls import Polls
from watcher.store.schedule import Lease, Reply
from watcher.store.state import BadState

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
        self._commits = Commits(settings.name, polls, self._notes, wake=wake)
        self._setbacks = Setbacks(polls, self._commits, interest, self._notes, now_ms=now_ms)
        self._now_ms = now_ms
        self._rules = Rules(settings.withdrawals, settings.settle_polls)
        self._settled: dict[str, Settled] = {}
        self.silence, self.causes = self._setbacks.silence, self._setbacks.causes
        self._asker = Asker(
            settings.name,
            client,
            is_failing=partial(polls.is_failing, settings.name),
        )

    def follow(self, *, most_requests: int, probe_account: str) -> None:
        """Go by other accounts from now on: of which none takes more requests, and one probes for all."""
        self.most_requests = most_requests
        self._asker.probe_account = self._setbacks.probe_account = probe_account

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
            except Rejected as refused:
                await self._setbacks.refused(account, lease, refused, started)
                if isinstance(refused, NotAsked) and not await self._asker.is_probe_failing():
                    # It ended meanwhile, and whoever made everybody due came before this one was postponed.
                    await self.make_due(shard_of(account.name))
            if self._asker.is_back():
                await self.make_due(*range(SHARDS))
        except BadState as damage:
            await self._setbacks.quarantined(account, lease, damage, started)
        return is_taken

    async def make_due(self, *shards: int) -> None:
        """Let accounts wait no longer whose polls were refused. The rate limit spreads the polls."""
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
        return await self._advance(account, lease, state, reading, digest, started)

    async def _advance(
        self,
        account: AccountSettings,
        lease: Lease,
        state: AccountState | None,
        reading: Reading,
        digest: bytes,
        started: float,
    ) -> bool:
        """Move the state on to a reading; where another worker was faster, from what it left."""
        for is_last in (False, False, True):  # losing to another worker three times is no accident
            step = self._step(state, reading)
            after = step.state if step else state or _never()
            settled = Settled(
                digest, after.version, wait_s(account, after), self._interest.watches(account.name)
            )
            if step:
                reply = await self._commit(account, lease, state, step)
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

    def _step(self, state: AccountState | None, reading: Reading) -> Step | None:
        return diff(
            state,
            reading,
            rules=self._rules,
            interest=self._interest,
            version=secrets.token_hex(8),
            now_ms=self._now_ms(),
        )

    async def _commit(
        self, account: AccountSettings, lease: Lease, state: AccountState | None, step: Step
    ) -> Reply:
        wait_ms = spread_ms(wait_s(account, step.state), random.random())
        reply = await self._commits.write(account, lease, state, step, due_ms=self._now_ms() + wait_ms)
        if state and state.stale_since_ms and reply is Reply.DONE:
            self.silence.recovered(account, self._now_ms() - state.stale_since_ms)
        return reply

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


def _never() -> AccountState:
    raise AssertionError("without a state, a reading is a baseline")
