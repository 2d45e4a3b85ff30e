"""What is wrong with a configuration, and where: `file:line: key: what is wrong -- did you mean 'x'?`.

Refuses to carry a value: a text from the file may be a secret that stands in the wrong place.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

Key = tuple[str | int, ...]
"""The way to a value: names of keys, and numbers (from 0) of the elements of a list."""

_BARE = re.compile(r"[A-Za-z0-9_-]{1,64}\Z", re.ASCII)
_KEY_LIMIT = 64
UNKNOWN = "unknown key"
_MOST_CANDIDATES = 2000
"""Words that a misspelled one is compared with: a hundred thousand names would take seconds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake or warning. `line` is None where there is no line: a missing file, the environment."""

    file: str
    line: int | None
    key: str
    text: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.key, self.text) if part)


class ConfigRefused(ValueError):
    """The configuration cannot be used: show the mistakes to the operator, keep the old one if any.

    `warnings` were found besides; `files` are those that were read, or tried.
    """

    def __init__(
        self, mistakes: Iterable[Finding], warnings: Iterable[Finding] = (), files: Iterable[Path] = ()
    ) -> None:
        self.mistakes = tuple(mistakes)
        self.warnings = tuple(warnings)
        self.files = tuple(files)
        super().__init__("\n".join(map(str, self.mistakes)))


@dataclass(frozen=True, slots=True)
class Entry:
    """One table of the configuration, and where it was written.

    `key` leads to it from the top of its file; `line_of` says on which line a key (from there) stands.
    `variable_by_key` names the values that came from an environment variable instead.
    """

    table: Mapping[str, Any]
    file: str
    key: Key
    line_of: Callable[[Key], int | None]
    variable_by_key: Mapping[str, str] = field(default_factory=dict)

    def finding(self, key: Key, text: str) -> Finding:
        """Say something of a value below this table."""
        if key and key[0] in self.variable_by_key:
            return Finding("environment", None, self.variable_by_key[str(key[0])], text)
        whole = (*self.key, *key)
        return Finding(self.file, self.line_of(whole), written(whole), text)

    def below(self, *key: str | int, table: Mapping[str, Any]) -> "Entry":
        """Go down to a table inside this one."""
        return Entry(table, self.file, (*self.key, *key), self.line_of)

    def place(self) -> str:
        """Say where this table begins, as `file:line`."""
        return f"{self.file}:{self.line_of(self.key)}"


class Findings:
    """All that was found so far. Each value gets one mistake, the first: the others follow from it."""

    def __init__(self) -> None:
        self._mistakes: dict[tuple[str, int | None, str], Finding] = {}
        self._warnings: list[Finding] = []

    @property
    def mistakes(self) -> list[Finding]:
        """The mistakes, file by file, from the top to the bottom of each."""
        files = dict.fromkeys(found.file for found in self._mistakes.values())
        rank_by_file = {file: rank for rank, file in enumerate(files)}
        return sorted(self._mistakes.values(), key=lambda found: (rank_by_file[found.file], found.line or 0))

    @property
    def warnings(self) -> list[Finding]:
        """What is doubtful and no mistake already."""
        return [found for found in self._warnings if _place(found) not in self._mistakes]

    def mistake(self, found: Finding) -> None:
        """Record a mistake: nothing runs with it."""
        self._mistakes.setdefault(_place(found), found)

    def warn(self, found: Finding) -> None:
        """Record something that works, but hardly as it was meant."""
        self._warnings.append(found)


def _place(found: Finding) -> tuple[str, int | None, str]:
    return found.file, found.line, found.key


def written(key: Key) -> str:
    """Write a key as in `accounts[0].of.email`; what is not a bare key is quoted, escaped and cut."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE.match(part) else json.dumps(part[:_KEY_LIMIT]))
    return text


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """End a sentence about an unknown word with the known one that comes closest, or with nothing."""
    if not isinstance(word, str):
        return ""
    close = get_close_matches(word[:_KEY_LIMIT].lower(), islice(known, _MOST_CANDIDATES), n=1)
    return f" -- did you mean '{close[0]}'?" if close else ""
