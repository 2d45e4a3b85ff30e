"""The mistakes in a configuration, and their places: `file:line: key: what is wrong -- did you mean 'x'?`."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from watcher.printable import printable

Key = tuple[str | int, ...]
"""The way to a value: names of keys, and numbers (from 0) of the elements of a list."""

DEEPEST = 50
"""Tables within tables: each is read by a nested call, and Python limits those."""

_BARE = re.compile(r"[A-Za-z0-9_-]{1,64}\Z", re.ASCII)
_KEY_LIMIT = 64
_TEXT_LIMIT = 2000
UNKNOWN = "unknown key"
_MOST_CANDIDATES = 2000
"""Words that a misspelled one is compared with: a hundred thousand would take seconds."""


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
    """The configuration cannot be used: show the mistakes to the operator, and keep the old one if there is
    one. `warnings` were found as well; `files` are those that were read, or tried."""

    def __init__(
        self, mistakes: Iterable[Finding], warnings: Iterable[Finding] = (), files: Iterable[Path] = ()
    ) -> None:
        self.mistakes = tuple(mistakes)
        self.warnings = tuple(warnings)
        self.files = tuple(files)
        super().__init__("\n".join(map(str, self.mistakes)))


def written(key: Key) -> str:
    """Write a key as in `accounts[0].of.email`; a key that is not bare is quoted, escaped and cut."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE.match(part) else json.dumps(part[:_KEY_LIMIT]))
    return text


def pointer(key: Key) -> str:
    """Write a key as a JSON pointer (RFC 6901), as in `/accounts/0`; long parts are cut."""
    parts = (str(part)[:_KEY_LIMIT].replace("~", "~0").replace("/", "~1") for part in key)
    return "".join(f"/{part}" for part in parts)


@dataclass(frozen=True, slots=True)
class Entry:
    """One table of the configuration, and where it was written.

    `key` leads to it from the top of its file; `line_of` says which line holds a key (from there).
    `variable_by_key` names the values that came from an environment variable instead. `write` is how a key is
    shown.
    """

    table: Mapping[str, Any]
    file: str
    key: Key
    line_of: Callable[[Key], int | None]
    variable_by_key: Mapping[str, str] = field(default_factory=dict)
    write: Callable[[Key], str] = written

    def finding(self, key: Key, text: str) -> Finding:
        """Make a finding about a value below this table. The text may repeat a name from the file."""
        text = printable(text, _TEXT_LIMIT)
        if key and key[0] in self.variable_by_key:
            return Finding("environment", None, self.variable_by_key[str(key[0])], text)
        whole = (*self.key, *key)
        return Finding(self.file, self.line_of(whole), self.write(whole), text)

    def below(self, *key: str | int, table: Mapping[str, Any]) -> "Entry":
        """Go down to a table inside this one."""
        return Entry(table, self.file, (*self.key, *key), self.line_of, write=self.write)

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
        """The warnings about values without a mistake."""
        return [found for found in self._warnings if _place(found) not in self._mistakes]

    @property
    def count(self) -> int:
        """How many mistakes there are."""
        return len(self._mistakes)

    def mistake(self, found: Finding) -> None:
        """Record a mistake: nothing runs with it."""
        self._mistakes.setdefault(_place(found), found)

    def warn(self, found: Finding) -> None:
        """Record something that works, but is probably not meant."""
        self._warnings.append(found)


def _place(found: Finding) -> tuple[str, int | None, str]:
    return found.file, found.line, found.key


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """End a sentence about an unknown word with the known word that comes closest, or with nothing."""
    if not isinstance(word, str):
        return ""
    close = get_close_matches(word[:_KEY_LIMIT].lower(), islice(known, _MOST_CANDIDATES), n=1)
    return f" -- did you mean '{close[0]}'?" if close else ""


_TOKEN = re.compile(
    r"""
      (?P<skip>[ \t\r]+|\#[^\n]*)
    | (?P<newline>\n)
    | (?P<text>\"{3}(?:\\.|[^\\])*?\"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\])*"|'[^']*')
    | (?P<mark>[\[\]{}=.,])
    | (?P<bare>[^\s\[\]{}=.,"'\#]+)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}


class Token(NamedTuple):
    kind: str
    text: str
    line: int


def lines_by_key(text: str) -> dict[Key, int]:
    """Find the line (from 1) of each table, key and list element of a valid TOML text."""
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0
        self._line_by_key: dict[Key, int] = {}
        self._size_by_list: dict[Key, int] = {}

    def read(self) -> dict[Key, int]:
        table: Key = ()
        while self._skip_newlines():
            if self._peek() != "[":
                self._pair(table)
                continue
            # [a.b] or [[a.b]]; a name that is a list of tables means its last one.
            line = self._take().line
            is_list = self._peek() == "["
            if is_list:
                self._take()
            *above, last = self._key()
            for _ in range(1 + is_list):
                self._take()
            table = ()
            for name in above:
                table = self._last_of((*table, name), line)
            table = (*table, last)
            if is_list:
                self._size_by_list[table] = self._size_by_list.get(table, 0) + 1
            table = self._last_of(table, line)
        return self._line_by_key

    def _last_of(self, table: Key, line: int) -> Key:
        self._note(table, line)
        if table in self._size_by_list:
            table = (*table, self._size_by_list[table] - 1)
            self._note(table, line)
        return table

    def _pair(self, table: Key) -> None:
        line = self._tokens[self._at].line
        for name in self._key():
            table = (*table, name)
            self._note(table, line)
        self._take()
        self._value(table)

    def _key(self) -> list[str]:
        names = [_plain(self._take())]
        while self._peek() == ".":
            self._take()
            names.append(_plain(self._take()))
        return names[: DEEPEST + 1]  # what is deeper was refused when the file was read

    def _value(self, key: Key) -> None:
        closing = {"[": "]", "{": "}"}.get(self._peek())
        if not closing:
            # A date and a number with a point are several tokens.
            while self._peek() not in ("", "\n", ",", "]", "}"):
                self._take()
            return
        self._take()
        index = 0
        while self._skip_newlines() and self._peek() != closing:
            if self._peek() == ",":
                self._take()
            elif closing == "}":
                self._pair(key)
            else:
                self._note((*key, index), self._tokens[self._at].line)
                self._value((*key, index))
                index += 1
        self._take()

    def _note(self, key: Key, line: int) -> None:
        self._line_by_key.setdefault(key, line)

    def _skip_newlines(self) -> bool:
        """Go to the next token that is not a newline. Returns whether there is one."""
        while self._peek() == "\n":
            self._at += 1
        return self._at < len(self._tokens)

    def _peek(self) -> str:
        """The mark that comes next; "?" for a key or value, empty at the end."""
        if self._at >= len(self._tokens):
            return ""
        token = self._tokens[self._at]
        return token.text if token.kind in ("mark", "newline") else "?"

    def _take(self) -> Token:
        token = self._tokens[self._at]
        self._at += 1
        return token


def _tokens(text: str) -> Iterator[Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind != "skip":
            yield Token(kind, match.group(), line)
        line += match.group().count("\n")


def _plain(token: Token) -> str:
    """Read a key without its quotes and escapes."""
    if token.text[:1] == "'":
        return token.text[1:-1]
    if token.text[:1] == '"':
        return _ESCAPE.sub(
            lambda found: (
                _ESCAPED.get(found[3], found[3]) if found[3] else chr(int(found[1] or found[2], 16))
            ),
            token.text[1:-1],
        )
    return token.text
