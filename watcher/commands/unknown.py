"""What every command says of a name that nothing has: one line, the name that may be meant, exit code 2.

Refuses to guess: a name that is nearly right is told, not taken.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import islice

import click

from watcher.printable import printable

_MOST_CANDIDATES = 10_000
"""Names that are compared; of 100,000 it would take seconds."""


def refuse_unknown(kind: str, globs: Iterable[str], known: Iterable[str]) -> None:
    """Raise Unknown for the first glob that matches none of the names that there are."""
    names = [*known]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise Unknown(kind, glob, names)


class Unknown(click.ClickException):
    """Nothing of this kind has this name, or one that matches this glob."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        close = get_close_matches(name[:200], islice(known, _MOST_CANDIDATES), n=1)
        hint = f"; did you mean '{printable(close[0])}'?" if close else ""
        super().__init__(f"no {kind} is called '{printable(name, 200)}'{hint}")
