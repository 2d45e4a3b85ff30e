"""On which line each key of a TOML text stands: `tomllib` reads values and forgets where they were.

Refuses to judge: the text must have passed `tomllib`, and what a value says is none of its business.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from watcher.config.findings import Key
from watcher.config.variables import DEEPEST

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
            if self._peek() == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._line_by_key

    def _header(self) -> Key:
        """Read `[a.b]` or `[[a.b]]`; a name that is a list of tables means its last one."""
        line = self._take().line
        is_list = self._peek() == "["
        if is_list:
            self._take()
        *above, last = self._key()
        for _ in range(1 + is_list):
            self._take()
        table: Key = ()
        for name in above:
            table = self._last_of((*table, name), line)
        table = (*table, last)
        if is_list:
            self._size_by_list[table] = self._size_by_list.get(table, 0) + 1
        return self._last_of(table, line)

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
        return names[: DEEPEST + 1]  # whoever asks where something stands has refused what is deeper

    def _value(self, key: Key) -> None:
        opening = self._peek()
        if opening == "[":
            self._list(key)
        elif opening == "{":
            self._inline_table(key)
        else:
            # A date and a number with a point are several tokens.
            while self._peek() not in ("", "\n", ",", "]", "}"):
                self._take()

    def _list(self, key: Key) -> None:
        self._take()
        index = 0
        while self._skip_newlines() and self._peek() != "]":
            if self._peek() == ",":
                self._take()
                continue
            self._note((*key, index), self._tokens[self._at].line)
            self._value((*key, index))
            index += 1
        self._take()

    def _inline_table(self, key: Key) -> None:
        self._take()
        while self._skip_newlines() and self._peek() != "}":
            if self._peek() == ",":
                self._take()
            else:
                self._pair(key)
        self._take()

    def _note(self, key: Key, line: int) -> None:
        self._line_by_key.setdefault(key, line)

    def _skip_newlines(self) -> bool:
        """Go to the next token of substance; say whether there is one."""
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
    """Read a key as it was meant: without its quotes and escapes."""
    if token.text[:1] == "'":
        return token.text[1:-1]
    if token.text[:1] == '"':
        return _ESCAPE.sub(_unescape, token.text[1:-1])
    return token.text


def _unescape(match: re.Match[str]) -> str:
    if match[3]:
        return _ESCAPED.get(match[3], match[3])
    return chr(int(match[1] or match[2], 16))
