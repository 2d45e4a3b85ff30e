"""When a trouble that lasts is spoken of: as it begins, an hour later, then once a day, and when it is over.

Pure but for its memory: time comes in, in seconds of any clock that never steps. Refuses to speak.
"""

from collections.abc import Hashable
from typing import NamedTuple

FIRST_S = 3600.0
AGAIN_S = 86_400.0


class Streak(NamedTuple):
    """How long a trouble has lasted by now, and how often it struck."""

    duration_ms: int
    times: int


class Throttle:
    """The troubles of one kind, each under a name of its own."""

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}
        self._times: dict[Hashable, int] = {}
        self._speak_at: dict[Hashable, float] = {}

    def struck(self, what: Hashable, now: float) -> Streak | None:
        """Note that a trouble is there; returns what to say of it if it is time to speak."""
        since = self._since.setdefault(what, now)
        self._times[what] = self._times.get(what, 0) + 1
        if now < self._speak_at.get(what, now):
            return None
        self._speak_at[what] = now + (AGAIN_S if self._times[what] > 1 else FIRST_S)
        return self._streak(what, since, now)

    def lasting(self, what: Hashable, now: float) -> Streak:
        """Say of a trouble that is there how long it has lasted, whether or not it is time to speak."""
        return self._streak(what, self._since[what], now)

    def over(self, what: Hashable, now: float) -> Streak | None:
        """Note that a trouble is gone; returns what to say of it, or None if there was none."""
        since = self._since.pop(what, None)
        if since is None:
            return None
        streak = self._streak(what, since, now)
        del self._times[what], self._speak_at[what]
        return streak

    def clear(self) -> None:
        """Forget all troubles."""
        for memory in (self._since, self._times, self._speak_at):
            memory.clear()

    def _streak(self, what: Hashable, since: float, now: float) -> Streak:
        return Streak(round(1000 * (now - since)), self._times[what])
