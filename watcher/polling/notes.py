"""What is said of polls: one line in the log for each, a line for each event, and the counts.

Refuses to decide anything.
"""

import time
from collections import Counter
from collections.abc import Mapping

from watcher.journal.diff import Step
from watcher.observe.counters import Counters
from watcher.observe.log import log
from watcher.observe.throttle import Throttle
from watcher.polling.asker import NotAsked
from watcher.providers.contract import Rejected
from watcher.settings import AccountSettings
from watcher.store.polls import Postponed
from watcher.store.schedule import Reply
from watcher.store.state import BadState


class PollNotes:
    """Notes on the polls of one provider. `started` is when a poll began, on the monotonic clock."""

    def __init__(self, provider: str, counters: Counters) -> None:
        self._provider = provider
        self._counters = counters
        self._refused = Throttle()
        self._quarantined = Throttle()

    def began(self) -> float:
        """Count a poll; returns when it began."""
        self._counters.polls += 1
        return time.monotonic()

    def finished(self, account: AccountSettings, reply: Reply, started: float, step: Step | None) -> None:
        """A good answer was taken in, or came too late."""
        now = time.monotonic()
        duration_s = now - started
        self._counters.polled(self._provider, _outcome(reply, step), duration_s)
        if streak := self._quarantined.over(account.name, now):
            log.info("account.recovered", account=account.name, provider=self._provider, **streak._asdict())
        names: dict[str, object] = {
            "account": account.name,
            "provider": self._provider,
            "duration_ms": round(1000 * duration_s),
        }
        if refused := self._refused.over(account.name, now):
            names["times"] = refused.times
        if reply is Reply.LEASE_LOST:
            log.info("poll.discarded", **names, reason="the lease ran out before the answer came")
        elif reply is Reply.MOVED_ON:
            log.info("poll.discarded", **names, reason="another worker was faster")
        elif step is None and refused:
            log.info("poll.finished", **names, unchanged=True)
        elif step is None:
            log.debug("poll.finished", **names, unchanged=True)
        else:
            changes, held = len(step.events), len(step.advance.held)
            log.info("poll.finished", **names, unchanged=False, changes=changes, held=held)

    def refused(
        self, account: AccountSettings, refused: Rejected, postponed: Postponed | None, started: float
    ) -> None:
        """A poll was void: said aloud as it begins, and again where that lasts."""
        now = time.monotonic()
        duration_s = now - started
        self._counters.rejected += 1
        self._counters.by_error_class[self._provider, refused.error_class] += 1
        self._counters.polled(self._provider, "rejected", duration_s)
        line = {
            "account": account.name,
            "provider": self._provider,
            "error_class": refused.error_class,
            "reason": refused.reason,
            "status": refused.status,
            "next_ms": postponed.wait_ms if postponed else None,
            "duration_ms": round(1000 * duration_s),
            "times": postponed.refusals if postponed else None,
        }
        if not isinstance(refused, NotAsked) and self._refused.struck(account.name, now):
            log.info("poll.rejected", **line)
        else:
            log.debug("poll.rejected", **line)

    def quarantined(self, account: AccountSettings, damage: BadState, started: float) -> None:
        """An account's state cannot be read."""
        now = time.monotonic()
        self._counters.polled(self._provider, "quarantined", now - started)
        if streak := self._quarantined.struck(account.name, now):
            log.error("account.quarantined", account=account.name, reason=str(damage), **streak._asdict())

    def committed(self, account: AccountSettings, step: Step, pushed_out: Mapping[str, int]) -> None:
        """A step was written: say what it tells."""
        if step.advance.is_baseline:
            assets = len(step.state.entry_by_asset)
            log.info("account.baseline", account=account.name, provider=self._provider, assets=assets)
        for asset_id, reason in step.advance.suspect.items():
            log.info("asset.suspect", account=account.name, asset=asset_id, reason=reason)
        for name, count in pushed_out.items():
            self._counters.pushed_out[name] += count
            log.warning("queue.overflowed", account=account.name, subscription=name, deliveries=count)
        self._counters.changes += len(step.events)
        heard_by = Counter(one.event_id for queued in step.deliveries.values() for one in queued)
        for event in step.events:
            self._counters.by_change[self._provider, event.type] += 1
            log.info(
                "event.created",
                account=account.name,
                provider=self._provider,
                asset=event.asset.id if event.asset else None,
                event_id=event.id,
                event_type=event.type,
                sequence=event.sequence,
                subscriptions=heard_by[event.id],
            )


def _outcome(reply: Reply, step: Step | None) -> str:
    if reply not in (Reply.DONE, Reply.DONE_BEFORE):
        return "discarded"
    return "committed" if step else "unchanged"
