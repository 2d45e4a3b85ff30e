"""A poll that is void: how long its account waits, and what is told of one that was silent for too long.

Refuses to move any balance: an error, a partial or a malformed answer is never zero.
"""

import random
import secrets
from collections.abc import Callable
from functools import partial

from watcher.journal.diff import go_stale
from watcher.journal.events import Origin
from watcher.journal.interest import Interest
from watcher.polling.cadence import waits_ms
from watcher.polling.causes import Causes
from watcher.polling.commits import Commits
from watcher.polling.notes import PollNotes
from watcher.polling.silence import Silence
from watcher.providers.contract import Rejected
from watcher.settings import AccountSettings
from watcher.store.polls import Polls
from watcher.store.schedule import Lease, Reply
from watcher.store.state import BadState

_QUARANTINE_MS = (300_000,)
"""How often a damaged state is looked at again, in case that somebody mended it."""


class Setbacks:
    """The void polls of one provider. `probe_account`: the account that asks for all of them whether it is
    back."""

    def __init__(
        self,
        polls: Polls,
        commits: Commits,
        interest: Interest,
        notes: PollNotes,
        *,
        now_ms: Callable[[], int],
    ) -> None:
        self.causes = Causes(commits.provider, is_refused=partial(polls.is_failing, commits.provider))
        self._provider = commits.provider
        self._polls = polls
        self._commits = commits
        self._interest = interest
        self._notes = notes
        self.probe_account = ""
        self._now_ms = now_ms
        self.silence = Silence(self._provider)

    async def refused(
        self, account: AccountSettings, lease: Lease, refused: Rejected, started: float
    ) -> None:
        """Let a refused account wait, and all of them where the provider asks for it."""
        self.causes.struck(account.name, refused)
        await self._notice_silence(account, lease, refused)
        if refused.error_class == "rate" and refused.retry_after_s:
            await self._polls.take_turns(
                self._provider, 0, spacing_ms=0, not_before_ms=1000 * refused.retry_after_s
            )
        postponed = await self._polls.postpone(
            self._provider,
            lease,
            why=f"{refused.error_class} {refused.reason}",
            at_least_ms=int(1000 * (refused.retry_after_s or 0)),
            waits_ms=waits_ms(
                account,
                refused.error_class,
                is_probe_account=account.name == self.probe_account,
                chance=random.random(),
            ),
        )
        self._notes.refused(account, refused, postponed, started)

    async def quarantined(
        self, account: AccountSettings, lease: Lease, damage: BadState, started: float
    ) -> None:
        """Leave an account alone whose state cannot be read."""
        await self._polls.postpone(
            self._provider, lease, why=f"quarantined {damage}", at_least_ms=0, waits_ms=_QUARANTINE_MS
        )
        self._notes.quarantined(account, damage, started)

    async def _notice_silence(self, account: AccountSettings, lease: Lease, refused: Rejected) -> None:
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
            Origin(account.name, self._provider, state.sequence if state else 0, since_ms, now_ms),
            refused.error_class,
            refused.reason,
            interest=self._interest,
            version=secrets.token_hex(8),
            now_ms=now_ms,
        )
        reply = await self._commits.write(account, lease, state, step, due_ms=lease.deadline, is_good=False)
        if reply is Reply.DONE:
            self.silence.went_stale(account, refused.reason)
