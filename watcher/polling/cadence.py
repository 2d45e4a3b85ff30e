"""When an account is polled next, and when it is stale. Pure: time and chance come in.

Refuses to know more of a rejected poll than its error_class.
"""

import heapq
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import NamedTuple

from watcher.journal.account import AccountState
from watcher.providers.contract import PERMANENT, ErrorClass
from watcher.settings import AccountSettings

SECOND_OPINION = timedelta(seconds=2)
"""A suspect asset is polled again within seconds, but not at once."""

_EMPTY_AGAIN = timedelta(seconds=20)
"""How often an account is polled whose listing suddenly names nothing, if its interval is longer."""

STALE_INTERVALS = 3
"""An account is stale when so many of its intervals, and the time-out, passed without a successful poll."""

_FIRST_WAIT_S = 5.0
_LONGEST_WAIT_S = 300.0
"""The wait doubles with each rejected poll in a row, up to this: a provider that is down is asked every five
minutes."""

_LONGEST_WAIT_OF_PROBE_S = 30.0
"""One account of each provider, the probe account, is polled this often for all of them, so that the
provider's return is noticed within an interval or two and not after five minutes."""

_WAITS_FOR_A_PERSON_S = (60, 300)
"""A wrong key or account does not fix itself: it is polled seldom from the start."""

_SPREAD = 0.1
"""Each wait is shortened by up to this part, so that accounts do not stay in step."""


def wait_s(account: AccountSettings, state: AccountState, *, among: Collection[str] | None = None) -> float:
    """Return how long after a successful poll the next one is due. `among`: because of no other asset is it
    due before the account's interval ends."""
    wait = account.interval
    if state.emptiness:
        return min(wait, _EMPTY_AGAIN).total_seconds()
    entries = state.entry_by_asset
    looked_at = entries.values() if among is None else [entries[asset_id] for asset_id in among]
    for _, _, (_, _, deposit, withdrawal), confirmation_polls, suspect in looked_at:
        if suspect:
            return SECOND_OPINION.total_seconds()
        if confirmation_polls or (deposit or "0") != "0" or (withdrawal or "0") != "0":
            wait = min(account.interval, account.pending_interval)
    return wait.total_seconds()


def waits_ms(
    account: AccountSettings, error_class: ErrorClass, *, is_probe_account: bool = False, chance: float
) -> Sequence[int]:
    """Return how long to wait after the first rejected poll in a row, the second, and so on; the last one
    repeats."""
    if error_class in PERMANENT:
        return [spread_ms(wait, chance) for wait in _WAITS_FOR_A_PERSON_S]
    longest_s = _LONGEST_WAIT_OF_PROBE_S if is_probe_account else _LONGEST_WAIT_S
    waits = [min(_FIRST_WAIT_S, account.interval.total_seconds())]
    while waits[-1] < longest_s:
        waits.append(min(2 * waits[-1], longest_s))
    return [spread_ms(wait, chance) for wait in waits]


def spread_ms(seconds: float, chance: float) -> int:
    """Turn a wait into milliseconds; `chance` in [0, 1) spreads accounts that would wait equally long."""
    return int(1000 * seconds * (1 - _SPREAD * chance))


def patience_ms(account: AccountSettings, timeout: timedelta) -> int:
    """Return how long an account may go without a successful poll before it is stale."""
    return int(1000 * (STALE_INTERVALS * account.interval + timeout).total_seconds())


def stale_since_ms(
    polled_at_ms: int,
    reported_ms: int,
    *,
    watched_since_ms: int,
    patience_ms: int,
    now_ms: int,
) -> int | None:
    """Return since when an account is stale (Unix ms), or None. The event, the log line, the metric, `status`
    and the page all go by this.

    `reported_ms` is not 0 from `account.stale` until `account.recovered`, and then it is the answer.
    Otherwise the time counts from the last successful poll; if there was none, from when the account was
    first to be polled (0: not known). It never counts from before workers were there to poll
    (`watched_since_ms`).
    """
    if reported_ms:
        return reported_ms
    if not polled_at_ms:
        return None
    silent_since_ms = max(polled_at_ms, watched_since_ms)
    return silent_since_ms if now_ms - silent_since_ms >= patience_ms else None


class Watched(NamedTuple):
    """One account of a provider: when to check it next, and since when it is polled here (Unix ms)."""

    look_at_ms: int
    first_seen_ms: int
    provider: str
    account: str


class Watch:
    """When to check which accounts are stale: each when it may have become stale, and no sooner."""

    def __init__(self) -> None:
        self._heap: list[Watched] = []
        self._first_seen_ms: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def follow(self, provider: str, account: str, now_ms: int, *, in_ms: int = 0) -> None:
        """Check an account from then on, if it is a new one."""
        if account not in self._first_seen_ms[provider]:
            self._first_seen_ms[provider][account] = now_ms
            self.again(Watched(now_ms + in_ms, now_ms, provider, account))

    def forget(self, provider: str, account: str) -> None:
        self._first_seen_ms[provider].pop(account, None)

    def forget_all(self, provider: str) -> None:
        self._heap = [one for one in self._heap if one.provider != provider]
        heapq.heapify(self._heap)
        self._first_seen_ms.pop(provider, None)

    def due(self, now_ms: int, at_most: int) -> list[Watched]:
        """Take the accounts that are to be checked now. Each must be given back (`again`)."""
        found: list[Watched] = []
        while self._heap and self._heap[0].look_at_ms <= now_ms and len(found) < at_most:
            one = heapq.heappop(self._heap)
            # otherwise it was forgotten meanwhile
            if self._first_seen_ms[one.provider].get(one.account) == one.first_seen_ms:
                found.append(one)
        return found

    def again(self, one: Watched, look_at_ms: int | None = None) -> None:
        """Check an account again at that time, or else when it was to be checked before."""
        heapq.heappush(self._heap, one if look_at_ms is None else one._replace(look_at_ms=look_at_ms))
