"""What came of one trial: well, well but, or not; in one line, with what to do.

Refuses to hold a secret: texts are ours, and of a URL they show scheme, host and port.
"""

from typing import Literal, NamedTuple

Verdict = Literal["ok", "warning", "failed"]
Kind = Literal["redis", "rights", "provider", "clock", "subscription"]


class Tried(NamedTuple):
    """One line of `check --connect`. `todo` is for a human to act on, where the verdict is not ok."""

    kind: Kind
    name: str
    verdict: Verdict
    text: str
    todo: str | None = None
