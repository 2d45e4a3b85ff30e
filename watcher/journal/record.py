"""What the event log keeps of one commit, line by line: enough for a replay to arrive at the state.

A record is an event as it was sent (but for its subscription), or `baseline` (`assets`: balances that
start anew; `whole`: of an account with nothing before) or `forgotten` (`assets`: ids no longer watched).
Refuses to know where it is kept.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the log. `follows` is the account's sequence before the commit that wrote it."""

    account: str
    follows: int
    content: dict[str, Any]
    id: str = ""


def dump_record(follows: int, content: bytes) -> bytes:
    """Write down a record whose content is JSON."""
    return b"%d %b" % (follows, content)
