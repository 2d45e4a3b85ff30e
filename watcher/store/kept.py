"""What this process last wrote of its accounts, so that a change need not read it back.

Refuses to be trusted: a commit that starts from here is refused by the server unless the state there is
still this one, to the byte.
"""

from dataclasses import dataclass, replace

from watcher.journal.ledger import AccountState

_MOST_ENTRIES = 20_000
"""Assets of all states together: some 10 MB. Those of a few thousand accounts that are polled in turn."""


@dataclass(slots=True)
class Written:
    """A state, the bytes that were written of it, and when its account was polled last."""

    state: AccountState
    body: bytes
    polled_at_ms: int


class Kept:
    """The states that were written last; the oldest make room."""

    def __init__(self, most_entries: int = _MOST_ENTRIES) -> None:
        self._written: dict[str, Written] = {}
        self._room = most_entries

    def put(self, account: str, written: Written) -> None:
        self.forget(account)
        self._written[account] = written
        self._room -= _size(written)
        while self._room < 0:
            self.forget(next(iter(self._written)))

    def of(self, account: str, version: str | None = None) -> Written | None:
        """Find what was written of an account, if it is of this version."""
        written = self._written.get(account)
        return written if written and version in (None, written.state.version) else None

    def state_of(self, account: str) -> AccountState | None:
        written = self._written.get(account)
        return replace(written.state, polled_at_ms=written.polled_at_ms) if written else None

    def forget(self, account: str) -> None:
        if written := self._written.pop(account, None):
            self._room += _size(written)


def _size(written: Written) -> int:
    return 1 + len(written.state.entry_by_asset)
