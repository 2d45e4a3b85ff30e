"""Commits a step, and says and wakes what it tells. Refuses to decide what it is."""

from collections.abc import Callable

from watcher.journal.diff import Step
from watcher.journal.ledger import AccountState
from watcher.polling.notes import PollNotes
from watcher.settings import AccountSettings
from watcher.store.keys import shard_of
from watcher.store.polls import Commit, Polls
from watcher.store.schedule import Lease, Reply


class Commits:
    """The commits of one provider. `wake(shard, subscription)` is called for every queue made due."""

    def __init__(
        self, provider: str, polls: Polls, notes: PollNotes, *, wake: Callable[[int, str], None]
    ) -> None:
        self.provider = provider
        self._polls = polls
        self._notes = notes
        self._wake = wake

    async def write(
        self,
        account: AccountSettings,
        lease: Lease,
        state: AccountState | None,
        step: Step,
        *,
        due_ms: float,
        is_good: bool = True,
    ) -> Reply:
        """Commit a step, and say and deliver what it tells."""
        reply, pushed_out = await self._polls.commit(
            Commit(
                account=account.name,
                provider=self.provider,
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
