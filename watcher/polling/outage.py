"""Notices that a provider fails for everybody, and lets one account at a time ask it until it is back.

Pure but for its memory: time comes in. Refuses to poll, to log and to judge a single account.
"""

from dataclasses import dataclass, field

from watcher.providers.contract import PERMANENT, Rejected

OPEN_AFTER = 5
"""Rejected polls in a row, of two accounts at least, before the provider counts as unavailable."""

_PROBES_S = (5.0, 10.0, 20.0, 40.0, 60.0)
"""How long after each probe in a row the next one goes out; then level."""


@dataclass(slots=True)
class Outage:
    """What one worker knows of one provider's availability. `cause`: why it fails, if only a person can mend
    that: whatever else it answers since is a consequence, or beside the point."""

    cause: Rejected | None = None
    _in_a_row: int = 0
    _besides: int = 0
    _accounts: set[str] = field(default_factory=set)
    _probes: int = 0
    _probe_at: float = 0.0

    @property
    def is_on(self) -> bool:
        return self._in_a_row >= OPEN_AFTER and len(self._accounts) > 1

    def may_ask(self, now: float) -> bool:
        """Say whether a poll may go out: always, or, while the provider is unavailable, as its next probe."""
        if not self.is_on:
            return True
        if now < self._probe_at:
            return False
        self._probe_at = now + _PROBES_S[min(self._probes, len(_PROBES_S) - 1)]
        self._probes += 1
        return True

    def refused(self, account: str, refused: Rejected, now: float) -> None:
        """Note a refused answer. A mistake in one account's configuration says nothing of the provider."""
        if refused.error_class == "configuration":
            return
        if refused.error_class in PERMANENT:
            self.cause, self._besides = refused, 0
        elif refused.error_class != "rate":
            self._besides += 1
            if self._besides >= OPEN_AFTER:
                self.cause = None  # it fails in another way by now
        was_on = self.is_on
        self._in_a_row += 1
        if len(self._accounts) < 2:
            self._accounts.add(account)
        if self.is_on and not was_on:
            self._probe_at = now + _PROBES_S[0]

    def good(self) -> None:
        """Note a good answer."""
        self.cause = None
        self._in_a_row = 0
        self._accounts.clear()
        self._probes = 0
