"""What a provider whose servers lag behind the truth says about an account.

Refuses to change the truth: it only remembers what was true at earlier polls.
"""

from collections import defaultdict, deque
from collections.abc import Mapping

from watcher.sandbox.book import AccountKey
from watcher.sandbox.holdings import Holding
from watcher.sandbox.world import World

LONGEST_LAG = 63
"""Polls that are remembered, at most: enough for a lag of a minute at a poll a second."""


class Replicas:
    """The holdings that each poll of an account found, latest last."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._past_by_account: dict[AccountKey, deque[Mapping[str, Holding]]] = defaultdict(
            lambda: deque(maxlen=LONGEST_LAG)
        )
        self._polls_by_account: dict[AccountKey, int] = defaultdict(int)

    def view(self, account: AccountKey, *, stale_polls: int, flapping: bool) -> Mapping[str, Holding]:
        """Say what the replica that answers the next poll believes."""
        states = [*self._past_by_account[account], self._world.holdings(account)]
        if flapping:
            stale_polls = max(1, stale_polls) if self.polls(account) % 2 else 0
        return states[max(0, len(states) - 1 - stale_polls)]

    def polls(self, account: AccountKey) -> int:
        """Say how many polls of this account were answered."""
        return self._polls_by_account[account]

    def polled(self, account: AccountKey) -> None:
        """Note that a poll was answered, and let the world go on."""
        past, state = self._past_by_account[account], self._world.holdings(account)
        # Equal states share one copy: a sandbox of many quiet accounts stays small.
        past.append(past[-1] if past and past[-1] == state else state)
        self._polls_by_account[account] += 1
        self._world.polled(account)
