"""What is reported of polls: a log line for each, stale accounts, permanent rejections, and the counts."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from watcher.journal.step import Step
from watcher.observe.counters import Counters
from watcher.observe.log import Streak, Throttle, log
from watcher.providers.contract import PERMANENT, Rejected, todo
from watcher.settings import AccountSettings
from watcher.store.exceptions import StoreError
from watcher.store.polls import Postponed
from watcher.store.reader import Failing
from watcher.store.schedule import Reply
from watcher.store.state import BadState


class NotAsked(Rejected):
    """Nothing was sent: the provider fails for everybody, and it is another account's turn to ask it.

    Where it fails for a reason that only a person can fix, that is the reason for all of them.
    """


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


STALE_INTERVALS = 3
"""An account is stale when so many of its intervals passed without a good poll."""

_GATHER_S = 2.0
"""Accounts that go stale or recover together are told together."""

_AGAIN_S = 60.0
"""Those that follow are told so much later: a provider that fails takes its accounts with it one by one."""


@dataclass(slots=True)
class _Gathered:
    """What one line is to tell: which accounts, why, and for how long it has been so at most."""

    names: set[str] = field(default_factory=set)
    reason: str = ""
    duration_ms: int = 0


class Silence:
    """The refused polls of one worker at one provider. Times are Unix ms of the server."""

    def __init__(self, provider: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._provider = provider
        self._clock = clock
        self._refused_since_ms: dict[str, int] = {}
        self._stale: set[str] = set()
        self._throttle = Throttle()
        self._went_stale, self._recovered = _Gathered(), _Gathered()
        self._tell_at, self._told_at = 0.0, -_AGAIN_S

    def since_ms(self, account: AccountSettings, last_good_ms: int, now_ms: int) -> int | None:
        """Note a refused poll; says since when the account is stale, or None if it is not yet."""
        first_refused_ms = self._refused_since_ms.setdefault(account.name, now_ms)
        silent_since_ms = last_good_ms or first_refused_ms
        limit_ms = 1000 * STALE_INTERVALS * account.interval.total_seconds()
        return silent_since_ms if now_ms - silent_since_ms >= limit_ms else None

    def ended(self, account: AccountSettings) -> None:
        """Note a good poll."""
        self._refused_since_ms.pop(account.name, None)
        self._stale.discard(account.name)
        if not self._stale:
            self._throttle.over("stale", self._clock())

    def went_stale(self, account: AccountSettings, why: str) -> None:
        """Note an account that has just gone stale."""
        self._stale.add(account.name)
        self._throttle.struck("stale", self._clock())
        self._gather(self._went_stale, {account.name}, 0)
        self._went_stale.reason = why

    def still_stale(self, account: AccountSettings, why: str, stale_ms: int) -> None:
        """Note another refused poll of an account that is stale."""
        self._stale.add(account.name)
        if self._throttle.struck("stale", self._clock()):
            self._gather(self._went_stale, self._stale, stale_ms)
            self._went_stale.reason = why

    def recovered(self, account: AccountSettings, stale_ms: int) -> None:
        """Note an account that is no longer stale."""
        self._gather(self._recovered, {account.name}, stale_ms)

    def _gather(self, into: _Gathered, names: set[str], duration_ms: int) -> None:
        into.names |= names
        into.duration_ms = max(into.duration_ms, duration_ms)
        self._tell_at = self._tell_at or max(self._clock() + _GATHER_S, self._told_at + _AGAIN_S)

    def tell(self, *, at_once: bool = False) -> None:
        """Write what has gathered: a line per account if it is one, else a line for all of them."""
        if not self._tell_at or (self._clock() < self._tell_at and not at_once):
            return
        self._tell_at, self._told_at = 0.0, self._clock()
        stale, recovered = self._went_stale, self._recovered
        self._went_stale, self._recovered = _Gathered(), _Gathered()
        if stale.names:
            log.warning("account.stale", provider=self._provider, reason=stale.reason, **_who(stale))
        if recovered.names:
            log.info("account.recovered", provider=self._provider, **_who(recovered))


def _who(gathered: _Gathered) -> dict[str, object]:
    """Name the account if it is one."""
    names = gathered.names
    who = {"account": next(iter(names))} if len(names) == 1 else {"accounts": len(names)}
    return {**who, "duration_ms": gathered.duration_ms}


_CAUSE_AGAIN_S = 60.0
"""Accounts that meet a known cause later are told together, so seldom."""

_LOOK_S = 5.0
"""Between two looks whether an account that this worker saw refused was polled well by another one."""


class Cause(NamedTuple):
    """What a provider says, and means for good."""

    error_class: str
    reason: str


class Causes:
    """The causes at one provider, each with the accounts that it keeps from being polled.

    `is_refused(account)` says whether its last poll was refused, whichever worker made it.
    """

    def __init__(
        self,
        provider: str,
        *,
        is_refused: Callable[[str], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider = provider
        self._is_refused = is_refused
        self._clock = clock
        self._accounts: dict[Cause, set[str]] = {}
        self._unsaid: set[Cause] = set()
        self._said_at: dict[Cause, float] = {}
        self._before: dict[Cause, tuple[float, int]] = {}
        self._throttle = Throttle()
        self._look_at = 0.0

    def remember(self, failing: Mapping[str, Failing], *, now_ms: int) -> list[str]:
        """Take over what was so before this worker, or this configuration: it is said when that is over.

        Names the accounts, which are worth to be polled at once: somebody may have fixed the cause.
        """
        found = [name for name, one in failing.items() if one.error_class in PERMANENT]
        for name in found:
            one = failing[name]
            cause, since = Cause(one.error_class, one.reason), self._clock() - (now_ms - one.since_ms) / 1000
            known_since, known_times = self._before.get(cause, (since, 0))
            self._before[cause] = min(since, known_since), max(one.refusals, known_times)
            self._accounts_of(cause).add(name)
        return found

    def struck(self, account: str, refused: Rejected) -> None:
        """Note a refused poll; where only a person can fix it, that is said."""
        cause = Cause(refused.error_class, refused.reason)
        if cause.error_class not in PERMANENT:
            return
        for other in self._accounts.keys() - {cause}:
            self._accounts[other].discard(account)
        accounts = self._accounts_of(cause)
        if account not in accounts:
            accounts.add(account)
            self._unsaid.add(cause)
        if isinstance(refused, NotAsked):
            return
        if streak := self._throttle.struck(cause, self._clock()):
            self._say(cause, account, streak, status=refused.status)

    def tell(self) -> None:
        """Say, from time to time, of how many accounts a known cause has become the error_class since."""
        for cause in [*self._unsaid]:
            now = self._clock()
            if cause in self._said_at and now >= self._said_at[cause] + _CAUSE_AGAIN_S:
                self._say(cause, next(iter(self._accounts[cause]), ""), self._throttle.lasting(cause, now))

    async def good(self, account: str) -> None:
        """Note a good poll. A key is right when one of those that it was refused for is polled well, anything
        else is fixed when all of them are; then that is said."""
        for cause, accounts in self._accounts.items():
            if account in accounts and cause.error_class == "auth":
                accounts.clear()
            accounts.discard(account)
        for cause in [*self._accounts]:
            if await self._is_over(cause) and self._accounts.pop(cause, None) is not None:
                self._unsaid.discard(cause)
                self._said_at.pop(cause, None)
                now = self._clock()
                since, times = self._before.pop(cause, (now, 0))
                streak = self._throttle.over(cause, now) or Streak(round(1000 * (now - since)), times)
                log.info(
                    "provider.recovered", provider=self._provider, reason=cause.reason, **streak._asdict()
                )

    async def _is_over(self, cause: Cause) -> bool:
        """Look one by one whether other workers polled its accounts well; at most every few seconds."""
        accounts = self._accounts[cause]
        while accounts:
            if self._clock() < self._look_at:
                return False
            account = next(iter(accounts))
            with suppress(StoreError):
                if not await self._is_refused(account):
                    accounts.discard(account)
                    continue
            self._look_at = self._clock() + _LOOK_S
        return True

    def _accounts_of(self, cause: Cause) -> set[str]:
        return self._accounts.setdefault(cause, set())

    def _say(self, cause: Cause, account: str, streak: Streak, *, status: int | None = None) -> None:
        many = len(self._accounts[cause])
        log.error(
            "provider.refusing",
            provider=self._provider,
            error_class=cause.error_class,
            reason=f"{cause.reason}: {todo(cause.error_class, self._provider)}",
            status=status,
            account=account if many == 1 else None,
            accounts=many,
            **streak._asdict(),
        )
        self._unsaid.discard(cause)
        self._said_at[cause] = self._clock()
