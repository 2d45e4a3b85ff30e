"""When an account is polled next. Pure: chance comes in.

Refuses to know why a poll was rejected beyond its error_class.
"""

from collections.abc import Sequence
from datetime import timedelta

from watcher.journal.account import AccountState
from watcher.providers.contract import PERMANENT, ErrorClass
from watcher.settings import AccountSettings

SECOND_OPINION = timedelta(seconds=2)
"""A suspect reading is polled again within seconds, but not at once."""

_EMPTY_AGAIN = timedelta(seconds=20)
"""So often is an account read again whose listing suddenly names nothing, if its interval is longer."""

_FIRST_WAIT_S = 5.0
_LONGEST_WAIT_S = 300.0
"""Waits double with each rejected poll in a row: a provider that is down is asked every five minutes."""

_LONGEST_WAIT_OF_PROBE_S = 30.0
"""One account of each provider, the probe account, is polled this often for all of them: so its return is
known within an interval or two, and not after five minutes."""

_WAITS_FOR_A_PERSON_S = (60, 300)
"""A wrong key or a wrong account does not fix itself: it is polled seldom from the start."""

_NO_PENDING = frozenset((None, "0"))

_SPREAD = 0.1
"""Each wait is up to this much shorter, so that accounts do not stay in step with each other."""


def wait_s(account: AccountSettings, state: AccountState) -> float:
    """Say how long after a successful poll the next one is due."""
    wait = account.interval
    if state.emptiness:
        return min(wait, _EMPTY_AGAIN).total_seconds()
    for entry in state.entry_by_asset.values():
        if entry.suspect:
            return SECOND_OPINION.total_seconds()
        if entry.confirmation_polls or not _NO_PENDING.issuperset(entry.seen[2:]):
            wait = min(account.interval, account.pending_interval)
    return wait.total_seconds()


def waits_ms(
    account: AccountSettings, error_class: ErrorClass, *, is_probe_account: bool = False, chance: float
) -> Sequence[int]:
    """Say how long to wait after the first rejected poll in a row, the second, ...; the last one stays."""
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
