"""What is said of polls: one line in the log for each, a line for each event, and the counts.

Refuses to decide anything.
"""

import time
from collections import Counter
from collections.abc import Mapping

from watcher.journal.diff import Step
from watcher.logs.lines import log
from watcher.logs.spells import Spells
from watcher.polling.asker import NotAsked
from watcher.providers.contract import Refused
from watcher.settings import AccountSettings
from watcher.store.polls import Postponed
from watcher.store.schedule import Reply
from watcher.store.state import BadState
from watcher.vitals.tally import Tally


class PollNotes:
    """Notes on the polls of one provider. `started` is when a poll began, on the monotonic clock."""

    def __init__(self, provider: str, tally: Tally) -> None:
        self._provider = provider
        self._tally = tally
        self._refused = Spells()
        self._quarantined = Spells()

    def began(self) -> float:
        """Count a poll; returns when it began."""
        self._tally.polls += 1
        return time.monotonic()

    def finished(self, account: AccountSettings, reply: Reply, started: float, step: Step | None) -> None:
        """A good answer was taken in, or came too late."""
        now = time.monotonic()
        duration_s = now - started
        self._tally.polled(self._provider, _outcome(reply, step), duration_s)
        if spell := self._quarantined.over(account.name, now):
            log.info("account.recovered", account=account.name, provider=self._provider, **spell._asdict())
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
        self, account: AccountSettings, refused: Refused, postponed: Postponed | None, started: float
    ) -> None:
        """A poll was void: said aloud as it begins, and again where that lasts."""
        now = time.monotonic()
        duration_s = now - started
        self._tally.refused += 1
        self._tally.by_refusal[self._provider, refused.trouble] += 1
        self._tally.polled(self._provider, "refused", duration_s)
        line = {
            "account": account.name,
            "provider": self._provider,
            "trouble": refused.trouble,
            "reason": refused.reason,
            "status": refused.status,
            "next_ms": postponed.wait_ms if postponed else None,
            "duration_ms": round(1000 * duration_s),
            "times": postponed.refusals if postponed else None,
        }
        if not isinstance(refused, NotAsked) and self._refused.struck(account.name, now):
            log.info("poll.refused", **line)
        else:
            log.debug("poll.refused", **line)

    def quarantined(self, account: AccountSettings, damage: BadState, started: float) -> None:
        """An account's state cannot be read."""
        now = time.monotonic()
        self._tally.polled(self._provider, "quarantined", now - started)
        if spell := self._quarantined.struck(account.name, now):
            log.error("account.quarantined", account=account.name, reason=str(damage), **spell._asdict())

    def committed(self, account: AccountSettings, step: Step, pushed_out: Mapping[str, int]) -> None:
        """A step was written: say what it tells."""
        if step.advance.is_baseline:
            assets = len(step.state.entry_by_asset)
            log.info("account.baseline", account=account.name, provider=self._provider, assets=assets)
        for asset_id, reason in step.advance.doubted.items():
            log.info("asset.doubted", account=account.name, asset=asset_id, reason=reason)
        for name, count in pushed_out.items():
            self._tally.pushed_out[name] += count
            log.warning("lane.overflowed", account=account.name, subscription=name, deliveries=count)
        self._tally.changes += len(step.events)
        heard_by = Counter(one.event_id for queued in step.deliveries.values() for one in queued)
        for event in step.events:
            self._tally.by_change[self._provider, event.type] += 1
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
