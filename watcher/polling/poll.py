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

from watcher.journal.diff import Reading, Step, diff, go_stale
from watcher.journal.events import Origin
from watcher.journal.interest import Interest
from watcher.journal.ledger import AccountState, Rules
from watcher.polling.asker import Asker, NotAsked
from watcher.polling.cadence import spread_ms, wait_s, waits_ms
from watcher.polling.notes import PollNotes
from watcher.polling.silence import Silence
from watcher.providers.client import ProviderClient
from watcher.providers.contract import Refused
from watcher.settings import AccountSettings, ProviderSettings
from watcher.store.keys import SHARDS, shard_of
from watcher.store.polls import Commit, Polls
from watcher.store.schedule import Lease, Reply
from watcher.store.state import BadState
from watcher.vitals.tally import Tally

_LEASE_MARGIN_S = 15
"""A lease outlasts the longest poll by the longest wait for a turn, and some."""

_QUARANTINE_MS = (300_000,)
"""How often a damaged state is looked at again, in case that somebody mended it."""


class Settled(NamedTuple):
    """The last good answer of an account, where its repetition would change nothing."""

    digest: bytes
    version: str
    wait_s: float


class Poller:
    """Polls the accounts of one provider. `wake(shard, subscription)` is called for every lane made due.

    `most_requests`: no account's poll takes more. `canary`: the account that finds out for all of them that
    the provider is back.
    """

    def __init__(
        self,
        settings: ProviderSettings,
        client: ProviderClient,
        polls: Polls,
        interest: Interest,
        tally: Tally,
        *,
        most_requests: int,
        canary: str,
        now_ms: Callable[[], int],
        wake: Callable[[int, str], None],
    ) -> None:
        self.settings = settings
        self.most_requests = most_requests
        self._client = client
        self._polls = polls
        self._interest = interest
        self._notes = PollNotes(settings.name, tally)
        self._now_ms = now_ms
        self._wake = wake
        self._rules = Rules(settings.withdrawals, settings.settle_polls)
        self._settled: dict[str, Settled] = {}
        self.silence = Silence(settings.name)
        longest_s = most_requests * client.spacing_s + settings.timeout.total_seconds()
        self.lease_ms = int(1000 * (longest_s + _LEASE_MARGIN_S))
        self._canary = canary
        self._asker = Asker(
            settings.name,
            client,
            canary=canary,
            is_canary_failing=partial(polls.is_failing, settings.name, canary),
        )

    @property
    def spacing_s(self) -> float:
        """How far apart two requests to the provider are."""
        return self._client.spacing_s

    def cost(self, account: AccountSettings | None) -> int:
        """Say how many requests a poll of this account is; of one that is not ours, none is made."""
        return self._client.cost(account) if account else 0

    async def poll(self, account: AccountSettings, lease: Lease) -> None:
        """Make one poll and say in one line what became of it. Raises StoreUnreachable."""
        started = self._notes.began()
        try:
            try:
                bodies = await self._asker.ask(account)
                await self._take(account, lease, bodies, started)
            except Refused as refused:
                await self._postpone(account, lease, refused, started)
            if self._asker.is_back():
                await self._hasten(*range(SHARDS))
        except BadState as damage:
            await self._quarantine(account, lease, damage, started)

    async def _hasten(self, *shards: int) -> None:
        """The provider is back: nobody needs to wait any longer. The rate limit spreads the polls."""
        for shard in shards:
            await self._polls.hasten(self.settings.name, shard, lease_ms=self.lease_ms)

    async def _take(
        self, account: AccountSettings, lease: Lease, bodies: tuple[bytes, ...], started: float
    ) -> None:
        """Take in a good answer. Raises Refused where it turns out to be none, and BadState."""
        observed_ms = self._now_ms()
        digest = blake2b(b"\0".join(bodies), digest_size=16).digest()
        settled = self._settled.pop(account.name, None)
        if settled and settled.digest == digest:
            reply = await self._touch(account, lease, settled, observed_ms)
            if reply is not Reply.MOVED_ON:
                self._settled[account.name] = settled
                self._finish(account, reply, started)
                return
        state = await self._polls.read_state(account.name)
        source = self._client.source(account)
        known = state.entry_by_asset.values() if state and state.source == source else ()
        assets = {entry.asset.id: entry.asset for entry in known}
        snapshot = await self._client.read(account, bodies, known=assets)
        reading = Reading(account.name, self.settings.name, source, snapshot, observed_ms)
        await self._advance(account, lease, state, reading, digest, started)

    async def _advance(
        self,
        account: AccountSettings,
        lease: Lease,
        state: AccountState | None,
        reading: Reading,
        digest: bytes,
        started: float,
    ) -> None:
        """Move the state on to a reading; where another worker was faster, from what it left."""
        for is_last in (False, False, True):  # losing to another worker three times is no accident
            step = self._step(state, reading)
            after = step.state if step else state or _never()
            settled = Settled(digest, after.version, wait_s(account, after))
            if step:
                reply = await self._commit(account, lease, state, step)
            else:
                reply = await self._touch(account, lease, settled, reading.observed_ms)
            if is_last or reply is not Reply.MOVED_ON:
                break
            state = await self._polls.read_state(account.name)
        if reply in (Reply.DONE, Reply.DONE_BEFORE) and self._is_settled(after):
            self._settled[account.name] = settled
        self._finish(account, reply, started, step)

    def _is_settled(self, state: AccountState) -> bool:
        """Say whether the same answer again would change nothing: not even by a newer list of assets."""
        return not any(
            entry.held_polls or entry.doubted or (self._client.lists_assets and entry.asset.decimals is None)
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
        reply = await self._write(account, lease, state, step, due_ms=self._now_ms() + wait_ms)
        if state and state.stale_since_ms and reply is Reply.DONE:
            self.silence.recovered(account, self._now_ms() - state.stale_since_ms)
        return reply

    async def _write(
        self,
        account: AccountSettings,
        lease: Lease,
        state: AccountState | None,
        step: Step,
        *,
        due_ms: int,
        is_good: bool = True,
    ) -> Reply:
        """Commit a step, and say and deliver what it tells."""
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

    async def _postpone(
        self, account: AccountSettings, lease: Lease, refused: Refused, started: float
    ) -> None:
        await self._notice_silence(account, lease, refused)
        if refused.trouble == "rate" and refused.retry_after_s:
            await self._polls.take_turns(
                self.settings.name, 0, spacing_ms=0, not_before_ms=1000 * refused.retry_after_s
            )
        postponed = await self._polls.postpone(
            self.settings.name,
            lease,
            why=f"{refused.trouble} {refused.reason}",
            at_least_ms=int(1000 * (refused.retry_after_s or 0)),
            waits_ms=waits_ms(
                account,
                refused.trouble,
                is_canary=account.name == self._canary,
                chance=random.random(),
            ),
        )
        self._notes.refused(account, refused, postponed, started)
        if isinstance(refused, NotAsked) and not await self._asker.is_canary_failing():
            # It ended meanwhile, and whoever made everybody due came before this one was postponed.
            await self._hasten(shard_of(account.name))

    async def _notice_silence(self, account: AccountSettings, lease: Lease, refused: Refused) -> None:
        """Tell once that an account has had no good poll for too long. Its lease stays for what follows."""
        state = await self._polls.read_state(account.name)
        now_ms = self._now_ms()
        since_ms = self.silence.since_ms(account, state.polled_at_ms if state else 0, now_ms)
        if since_ms is None:
            return
        if state and state.stale_since_ms:
            self.silence.still_stale(account, refused.reason, now_ms - state.stale_since_ms)
            return
        step = go_stale(
            state,
            Origin(account.name, self.settings.name, state.sequence if state else 0, since_ms, now_ms),
            refused.trouble,
            refused.reason,
            interest=self._interest,
            version=secrets.token_hex(8),
            now_ms=now_ms,
        )
        reply = await self._write(account, lease, state, step, due_ms=lease.deadline, is_good=False)
        if reply is Reply.DONE:
            self.silence.went_stale(account, refused.reason)

    async def _quarantine(
        self, account: AccountSettings, lease: Lease, damage: BadState, started: float
    ) -> None:
        await self._polls.postpone(
            self.settings.name, lease, why=f"quarantined {damage}", at_least_ms=0, waits_ms=_QUARANTINE_MS
        )
        self._notes.quarantined(account, damage, started)

    def _finish(
        self, account: AccountSettings, reply: Reply, started: float, step: Step | None = None
    ) -> None:
        self.silence.ended(account)
        self._notes.finished(account, reply, started, step)


def _never() -> AccountState:
    raise AssertionError("without a state, a reading is a baseline")
