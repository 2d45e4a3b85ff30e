"""Reports polls: a log line for each, stale accounts, permanent rejections, and the counters.

An account or a provider that keeps failing is reported when that begins, at intervals while it lasts, and
when it is over.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from watcher.journal.step import Step
from watcher.observe.counters import POLL_BOUNDS_S, Counters
from watcher.observe.log import Streak, Throttle, log
from watcher.providers.contract import PERMANENT, Rejected, todo
from watcher.settings import AccountSettings
from watcher.store.exceptions import StoreError
from watcher.store.polls import Failing, Postponed
from watcher.store.schedule import DONE, Reply
from watcher.store.state import BadState

_ONE_LINE = 20
"""From so many on, accounts that become stale or recover together have one line; fewer have a line each."""

_GATHER_S = 2.0
"""Accounts that become stale or recover count as together within so long of one another,"""

_GATHER_AT_MOST_S = 10.0
"""and within so long of the first."""

_GATHER_AGAIN_S = 60.0
"""Later ones are reported this much later: a failing provider takes its accounts with it one by one."""

_CAUSE_AGAIN_S = 60.0
"""How seldom accounts that meet a known cause later are reported, together."""

_LOOK_S = 5.0
"""Between two checks whether another worker has polled an account successfully that was rejected here."""


class NotAsked(Rejected):
    """Nothing was sent: the provider fails for all accounts, and another account's poll is the probe. If it
    fails for a reason that only a person can fix, that is the reason for all accounts."""


class Cause(NamedTuple):
    """Why a provider rejects polls until a person fixes it."""

    error_class: str
    reason: str


class _Lasting(NamedTuple):
    """For how long an account was stale, and why."""

    duration_ms: int
    reason: str = ""


def _lines(lasting_by_account: Mapping[str, _Lasting]) -> Iterator[tuple[dict[str, object], str]]:
    """Return the fields and the reason of each line; of many accounts, the longest time and the most frequent
    reason."""
    lasting = lasting_by_account.values()
    if len(lasting) < _ONE_LINE:
        for name, one in lasting_by_account.items():
            yield {"account": name, "duration_ms": one.duration_ms}, one.reason
        return
    ((reason, _),) = Counter(one.reason for one in lasting).most_common(1)
    yield {"accounts": len(lasting), "duration_ms": max(one.duration_ms for one in lasting)}, reason


class ProviderFailures:
    """What fails at one provider, as far as one worker knows: made at its first failure.

    `is_rejected(account)` says whether its last poll, by any worker, was rejected. Times are Unix ms of the
    server, or seconds of `clock`.
    """

    def __init__(
        self,
        provider: str,
        *,
        is_rejected: Callable[[str], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider = provider
        self._is_rejected = is_rejected
        self._clock = clock
        self._throttle = Throttle()
        self._stale: dict[str, tuple[float, str]] = {}
        self._went_stale: dict[str, _Lasting] = {}
        self._recovered: dict[str, _Lasting] = {}
        self._gathered_at, self._report_at, self._report_by = -_GATHER_AGAIN_S, 0.0, 0.0
        self._accounts_by_cause: dict[Cause, set[str]] = {}
        self._unsaid: set[Cause] = set()
        self._said_at: dict[Cause, float] = {}
        self._before: dict[Cause, tuple[float, int]] = {}
        self._look_at = 0.0

    def remember(self, failing: Mapping[str, Failing], *, now_ms: int) -> list[str]:
        """Take over what failed before this worker or this configuration, so that its end is reported.
        Returns the accounts to poll at once: an operator may have fixed the cause."""
        found = [name for name, one in failing.items() if one.error_class in PERMANENT]
        for name in found:
            one = failing[name]
            cause, since = Cause(one.error_class, one.reason), self._clock() - (now_ms - one.since_ms) / 1000
            known_since, known_times = self._before.get(cause, (since, 0))
            self._before[cause] = min(since, known_since), max(one.rejections, known_times)
            self._accounts_by_cause.setdefault(cause, set()).add(name)
        return found

    def refused(self, account: str, rejected: Rejected) -> None:
        """Note why a poll was rejected, and report it if only a person can fix it."""
        cause = Cause(rejected.error_class, rejected.reason)
        if cause.error_class not in PERMANENT:
            return
        for other in self._accounts_by_cause.keys() - {cause}:
            self._accounts_by_cause[other].discard(account)
        accounts = self._accounts_by_cause.setdefault(cause, set())
        if account not in accounts:
            accounts.add(account)
            self._unsaid.add(cause)
        if isinstance(rejected, NotAsked):
            return
        if streak := self._throttle.struck(cause, self._clock()):
            self._say(cause, account, streak, status=rejected.status)

    def rejected(self, account: str) -> bool:
        """Note a rejected poll. Returns whether to log it: when the rejections of its account begin, and at
        intervals while they last."""
        return self._throttle.struck(("rejected", account), self._clock()) is not None

    def unavailable(self, rejected: Rejected) -> None:
        """Note that the provider's breaker is open; it is reported as other failures that last are."""
        if streak := self._throttle.struck("unavailable", self._clock()):
            log.warning(
                "provider.unavailable",
                provider=self._provider,
                error_class=rejected.error_class,
                reason=rejected.reason,
                status=rejected.status,
                **streak._asdict(),
            )

    def answered(self) -> None:
        """Note that the provider answers: its outage, if there was one, is over."""
        if streak := self._throttle.over("unavailable", self._clock()):
            log.info("provider.recovered", provider=self._provider, **streak._asdict())

    def quarantined(self, account: str, damage: BadState) -> None:
        """Note that an account's state cannot be read."""
        if streak := self._throttle.struck(("quarantined", account), self._clock()):
            log.error("account.quarantined", account=account, reason=str(damage), **streak._asdict())

    @property
    def stale_accounts(self) -> Collection[str]:
        return self._stale.keys()

    def stale(self, account: str, reason: str, stale_ms: int, *, is_news: bool = True) -> None:
        """Note a stale account; if that is news, it is reported together with others."""
        if account in self._stale:
            return
        now = self._clock()
        if not self._stale:
            self._throttle.struck("stale", now)
        self._stale[account] = now - stale_ms / 1000, reason
        if is_news:
            self._gather(self._went_stale, account, _Lasting(stale_ms, reason))

    def fresh(self, account: str) -> None:
        """Note an account that is not stale, or no longer."""
        if self._stale.pop(account, None) and not self._stale:
            self._throttle.over("stale", self._clock())

    def recovered(self, account: str, stale_ms: int) -> None:
        """Note and report an account that is no longer stale."""
        self.fresh(account)
        self._gather(self._recovered, account, _Lasting(stale_ms))

    def _gather(self, into: dict[str, _Lasting], account: str, one: _Lasting) -> None:
        into[account] = one
        now = self._clock()
        if not self._report_at:
            again_at = self._gathered_at + _GATHER_AGAIN_S
            self._report_by = max(now + _GATHER_AT_MOST_S, again_at)
            self._report_at = max(now + _GATHER_S, again_at)
        self._report_at = min(max(self._report_at, now + _GATHER_S), self._report_by)

    def succeeded(self, account: str) -> Streak | None:
        """Note a successful poll. Returns how long the account's polls were rejected, and how often."""
        now = self._clock()
        if streak := self._throttle.over(("quarantined", account), now):
            log.info("account.recovered", account=account, provider=self._provider, **streak._asdict())
        return self._throttle.over(("rejected", account), now)

    def forget(self, account: str) -> None:
        """Forget an account that is no longer configured: it neither recovers nor stays stale."""
        self.fresh(account)
        for what in ("rejected", "quarantined"):
            self._throttle.over((what, account), self._clock())

    async def report_fixed(self, account: str) -> None:
        """Report the causes that are fixed, after a successful poll.

        A key is right when one of its rejected accounts succeeds; any other cause is fixed when all of its
        accounts do.
        """
        for cause, accounts in self._accounts_by_cause.items():
            if account in accounts and cause.error_class == "auth":
                accounts.clear()
            accounts.discard(account)
        for cause in [*self._accounts_by_cause]:
            if await self._is_over(cause) and self._accounts_by_cause.pop(cause, None) is not None:
                self._unsaid.discard(cause)
                self._said_at.pop(cause, None)
                now = self._clock()
                since, times = self._before.pop(cause, (now, 0))
                streak = self._throttle.over(cause, now) or Streak(round(1000 * (now - since)), times)
                log.info(
                    "provider.recovered", provider=self._provider, reason=cause.reason, **streak._asdict()
                )

    async def _is_over(self, cause: Cause) -> bool:
        """Check one by one whether other workers have polled its accounts since, at most every few
        seconds."""
        accounts = self._accounts_by_cause.get(cause, set())  # none: another poll has reported its end
        while accounts:
            if self._clock() < self._look_at:
                return False
            account = next(iter(accounts))
            with suppress(StoreError):
                if not await self._is_rejected(account):
                    accounts.discard(account)
                    continue
            self._look_at = self._clock() + _LOOK_S
        return True

    def report(self, *, at_once: bool = False) -> None:
        """Log what has gathered: a line for one account or for all; and how many accounts a known cause
        concerns now."""
        now = self._clock()
        if self._stale and self._throttle.struck("stale", now):  # after an hour, and daily
            for name, (since, reason) in self._stale.items():
                self._gather(self._went_stale, name, _Lasting(round(1000 * (now - since)), reason))
        if self._report_at and (now >= self._report_at or at_once):
            self._report_at, self._gathered_at = 0.0, now
            stale, recovered = self._went_stale, self._recovered
            self._went_stale, self._recovered = {}, {}
            for fields, reason in _lines(stale):
                log.warning("account.stale", provider=self._provider, reason=reason, **fields)
            for fields, _ in _lines(recovered):
                log.info("account.recovered", provider=self._provider, **fields)
        for cause in [*self._unsaid]:
            if cause in self._said_at and now >= self._said_at[cause] + _CAUSE_AGAIN_S:
                account = next(iter(self._accounts_by_cause[cause]), "")
                self._say(cause, account, self._throttle.lasting(cause, now))

    def _say(self, cause: Cause, account: str, streak: Streak, *, status: int | None = None) -> None:
        many = len(self._accounts_by_cause[cause])
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


class PollReport:
    """Reports the polls of one worker. `started` is when a poll began, on the monotonic clock.

    `is_rejected(provider, account)` says whether an account's last poll, by any worker, was rejected.
    """

    def __init__(
        self,
        counters: Counters,
        *,
        is_rejected: Callable[[str, str], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counters = counters
        self._is_rejected = is_rejected
        self._clock = clock
        self._failures: dict[str, ProviderFailures] = {}

    def failures(self, provider: str) -> ProviderFailures:
        """Return what is known of a failing provider."""
        if (found := self._failures.get(provider)) is None:

            async def is_rejected(account: str) -> bool:
                return await self._is_rejected(provider, account)

            found = ProviderFailures(provider, is_rejected=is_rejected, clock=self._clock)
            self._failures[provider] = found
        return found

    def forget(self, provider: str, account: str | None = None) -> None:
        """Forget what failed at a provider, or for one of its accounts: it is no longer configured, or
        differently."""
        if account is None:
            self._failures.pop(provider, None)
        elif failures := self._failures.get(provider):
            failures.forget(account)

    def is_fresh(self, provider: str, account: str) -> None:
        """Note that an account is not stale, or no longer."""
        if failures := self._failures.get(provider):
            failures.fresh(account)

    def stale_accounts(self, provider: str) -> Collection[str]:
        """Return the stale accounts of a provider, as far as this worker knows."""
        failures = self._failures.get(provider)
        return failures.stale_accounts if failures else ()

    async def look(self) -> None:
        """Log what has gathered for a line of its own, if its time has come."""
        self.gathered()

    def gathered(self, *, at_once: bool = False) -> None:
        for failures in self._failures.values():
            failures.report(at_once=at_once)

    def began(self) -> float:
        """Count a poll. Returns when it began."""
        self._counters.polls += 1
        return time.monotonic()

    def answered(self, provider: str) -> None:
        """Note that a provider has answered for one account."""
        if failures := self._failures.get(provider):
            failures.answered()

    async def finished(
        self, account: AccountSettings, reply: Reply, started: float, step: Step | None
    ) -> None:
        """Report a successful poll that was accepted, or that came too late."""
        duration_s = time.monotonic() - started
        is_done = reply in DONE
        outcome = ("committed" if step else "unchanged") if is_done else "discarded"
        self._count(account.provider, outcome, duration_s)
        failures = self._failures.get(account.provider)
        rejected = failures.succeeded(account.name) if failures else None
        name, provider, duration_ms = account.name, account.provider, round(1000 * duration_s)
        if is_done and not step and not rejected:  # as most do
            log.debug(
                "poll.finished", account=name, provider=provider, duration_ms=duration_ms, unchanged=True
            )
        else:
            fields = {"account": name, "provider": provider, "duration_ms": duration_ms}
            if rejected:
                fields["times"] = rejected.times
            if reply is Reply.LEASE_LOST:
                log.info("poll.discarded", **fields, reason="the lease ran out before the answer came")
            elif reply is Reply.MOVED_ON:
                log.info("poll.discarded", **fields, reason="another worker was faster")
            elif step:
                log.info(
                    "poll.finished",
                    **fields,
                    unchanged=False,
                    changes=len(step.events),
                    pending_confirmation=len(step.advance.pending_confirmation),
                )
            else:
                log.info("poll.finished", **fields, unchanged=True)
        if failures:
            await failures.report_fixed(account.name)

    def rejected(
        self, account: AccountSettings, rejected: Rejected, postponed: Postponed | None, started: float
    ) -> None:
        """Report a rejected poll: its account waits."""
        duration_s = time.monotonic() - started
        self._counters.rejected += 1
        self._counters.by_error_class[account.provider, rejected.error_class] += 1
        self._count(account.provider, "rejected", duration_s)
        failures = self.failures(account.provider)
        is_news = not isinstance(rejected, NotAsked) and failures.rejected(account.name)
        line = {
            "account": account.name,
            "provider": account.provider,
            "error_class": rejected.error_class,
            "reason": f"{rejected.reason}{rejected.detail and f' ({rejected.detail})'}",
            "status": rejected.status,
            "next_ms": postponed.wait_ms if postponed else None,
            "duration_ms": round(1000 * duration_s),
            "times": postponed.rejections if postponed else None,
        }
        if is_news:
            log.info("poll.rejected", **line)
        else:
            log.debug("poll.rejected", **line)

    def quarantined(self, account: AccountSettings, damage: BadState, started: float) -> None:
        """Report that an account's state cannot be read."""
        self._count(account.provider, "quarantined", time.monotonic() - started)
        self.failures(account.provider).quarantined(account.name, damage)

    def _count(self, provider: str, outcome: str, duration_s: float) -> None:
        counters = self._counters
        counters.by_poll[provider, outcome] += 1
        counters.by_duration[provider][bisect_left(POLL_BOUNDS_S, duration_s)] += 1
        counters.polling_s[provider] += duration_s

    def committed(self, account: AccountSettings, step: Step) -> None:
        """Report a step that was written: its baseline, its suspect assets and its events."""
        if step.advance.is_baseline:
            assets = len(step.state.entry_by_asset)
            names = {"account": account.name, "provider": account.provider, "by": step.advance.reset_by}
            log.info("account.baseline", **names, assets=assets)
        suspect = step.advance.suspect
        if (emptiness := step.advance.emptiness) and not emptiness.repeats:
            log.info("account.suspect", account=account.name, provider=account.provider, assets=len(suspect))
        for asset_id, reason in suspect.items() if not emptiness else ():
            log.info("asset.suspect", account=account.name, asset=asset_id, reason=reason)
        self._counters.changes += len(step.events)
        subscriptions = [0] * len(step.events)
        for places in step.queued.values():
            for place in places:
                subscriptions[place] += 1
        for place, event in enumerate(step.events):
            self._counters.by_change[account.provider, event.type] += 1
            log.info(
                "event.created",
                account=account.name,
                provider=account.provider,
                asset=event.asset.id if event.asset else None,
                event_id=event.id,
                event_type=event.type,
                sequence=event.sequence,
                subscriptions=subscriptions[place],
            )
