"""Shares out the file descriptors of this process: to the store, to providers, to subscribers.

A connection takes one. Where none is left, whoever asks next fails, and blames the other side. Refuses to
count what is in use: shares are bounds, and whoever has one keeps to it.
"""

import resource
from contextlib import suppress
from typing import NamedTuple

from watcher.providers.client import CONNECTIONS as MOST_OF_A_PROVIDER
from watcher.store.client import CONNECTIONS as OF_THE_STORE

MOST_ATTEMPTS = 10_000
"""A thousand subscriptions that hang, with ten attempts each."""

_OF_THE_REST = 64
"""The log, the listener and who asks there, DNS, files that are read again."""

_FEWEST = 8


class Shares(NamedTuple):
    """How many attempts may be under way, how many connections kept for the next ones, and what one provider
    may have."""

    attempts: int
    kept: int
    of_a_provider: int


def share_out(providers: int) -> Shares:
    """Share out as many as this process may have.

    The soft limit is often 1,024 for the sake of programs that call select(); this one does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OF_THE_REST + OF_THE_STORE + providers * MOST_OF_A_PROVIDER + MOST_ATTEMPTS * 3 // 2
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        with suppress(ValueError, OSError):  # then it stays as it was
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return shares(soft, providers)


def shares(limit: int, providers: int) -> Shares:
    """Share out `limit`: providers get a quarter of what the store leaves at most, subscribers the rest."""
    left = limit - _OF_THE_REST - OF_THE_STORE
    of_a_provider = max(1, min(MOST_OF_A_PROVIDER, left // 4 // max(1, providers)))
    kept = min(MOST_ATTEMPTS // 2, (left - providers * of_a_provider) // 3)
    kept = max(_FEWEST // 2, kept)
    return Shares(2 * kept, kept, of_a_provider)
