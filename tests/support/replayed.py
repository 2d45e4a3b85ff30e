"""A whole replay of one account's records, as tests ask for it."""

from collections.abc import Iterable

from watcher.journal.account import AccountState
from watcher.journal.log import Audit, Record, Verdict


def audit(records: Iterable[Record], state: AccountState | None) -> Verdict:
    """Replay the records of one account, oldest first, and compare where they end with its state."""
    replay = Audit()
    for record in records:
        replay.take(record)
    replay.compare(state)
    return replay.verdict
