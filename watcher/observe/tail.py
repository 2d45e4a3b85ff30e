"""Reads log lines from pipes, files and platforms' log streams, and shows them to people.

Refuses to lose a line that is not ours: it passes on unchanged but for what could harm a terminal.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from fnmatch import fnmatchcase
from typing import IO, NamedTuple

from watcher.observe.envelopes import LogLine
from watcher.observe.envelopes import joined as joined
from watcher.observe.envelopes import parse as parse
from watcher.printable import TEXT_LIMIT, printable

LEVELS = ("debug", "info", "warning", "error")

_LINE_LIMIT = 1 << 20
"""Bytes of a line that are read at once: a file without any newline must not fill the memory."""
_SGR = re.compile(r"\x1b\[[0-9;]*m")
_BARE = re.compile(r'[^\s"=]+\Z')

_DIM, _BOLD, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_COLORS = {
    "debug": _DIM,
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[31m",
}


class Filter(NamedTuple):
    """Which lines to show: of a level and above, and matching one glob of each kind that is given."""

    level: str = "debug"
    events: Sequence[str] = ()
    accounts: Sequence[str] = ()
    subscriptions: Sequence[str] = ()

    def wants(self, line: LogLine) -> bool:
        return _rank(line["level"]) >= _rank(self.level) and all(
            not globs or any(fnmatchcase(str(line.get(name, "")), glob) for glob in globs)
            for name, globs in self._globs_by_field().items()
        )

    def wants_foreign(self) -> bool:
        """A foreign line has no fields to match, but may well be the crash that is looked for."""
        return not any(self._globs_by_field().values())

    def _globs_by_field(self) -> Mapping[str, Sequence[str]]:
        return {"event": self.events, "account": self.accounts, "subscription": self.subscriptions}


def pretty(line: LogLine, *, color: bool) -> str:
    """Show one line to people; a traceback follows on lines of its own, indented."""
    timestamp, level, event = (printable(str(line[name])) for name in ("timestamp", "level", "event"))
    fields = " ".join(
        f"{_paint(_DIM, printable(name) + '=', color)}{_shown(value)}"
        for name, value in line.items()
        if name not in ("timestamp", "level", "event", "exception")
    )
    head = (
        _paint(_DIM, timestamp, color),
        _paint(_COLORS.get(level, ""), f"{level:<7}", color),
        _paint(_BOLD, f"{event:<20}", color),
    )
    return "\n".join([" ".join((*head, fields)).rstrip(), *_indented(line.get("exception"))])


def as_json(line: LogLine) -> str:
    """Write one line as JSON of visible ASCII only: no value is changed, and none can harm a terminal."""
    return json.dumps(line, separators=(",", ":")).replace("\x7f", "\\u007f")


def harmless(text: str) -> str:
    """Return a foreign line as it is, but without colours and with control characters escaped."""
    return "\t".join(printable(part, 10 * _LINE_LIMIT) for part in _SGR.sub("", text).split("\t"))


def lines_of(stream: IO[bytes]) -> Iterator[str]:
    """Yield the lines of `stream` as they come, without their ends."""
    while raw := stream.readline(_LINE_LIMIT):
        yield _decoded(raw)


def follow(paths: Sequence[str], wait: Callable[[], object]) -> Iterator[str]:
    """Yield the lines of files for ever, by name: through rotation, truncation and absence.

    Calls `wait` whenever there is nothing new to read.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(closing(_Followed(path))) for path in paths]
        while True:
            is_idle = True
            for file in files:
                for raw in file.new_lines():
                    is_idle = False
                    yield _decoded(raw)
            if is_idle:
                wait()


class _Followed:
    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._begun = b""

    def new_lines(self) -> Iterator[bytes]:
        yield from self._complete_lines()
        if self._is_replaced():
            yield from self._complete_lines()  # what was written between the last look and the rename
            if self._begun:
                yield self._begun
            self._reopen()
            yield from self._complete_lines()

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _complete_lines(self) -> Iterator[bytes]:
        while self._file and (raw := self._file.readline(_LINE_LIMIT)):
            self._begun += raw
            if raw.endswith(b"\n") or len(self._begun) >= _LINE_LIMIT:
                yield self._begun
                self._begun = b""

    def _is_replaced(self) -> bool:
        try:
            there = os.stat(self._path)
        except OSError:
            return False  # between two names, for now
        if not self._file:
            return True
        here = os.fstat(self._file.fileno())
        is_other = (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
        return is_other or there.st_size < self._file.tell()

    def _reopen(self) -> None:
        self.close()
        self._begun = b""
        try:
            self._file = open(self._path, "rb")  # noqa: SIM115 - stays open between looks
        except OSError:
            self._file = None


def _rank(level: str) -> int:
    """A level that is not ours ranks highest: hiding what is not understood would be a guess."""
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)


def _decoded(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace").rstrip("\r\n")


def _shown(value: object) -> str:
    if isinstance(value, str) and _BARE.match(value):
        return printable(value)
    return printable(json.dumps(value, ensure_ascii=False), 5 * TEXT_LIMIT)


def _indented(exception: object) -> Iterator[str]:
    if isinstance(exception, str):
        yield from (f"    {printable(line, 5 * TEXT_LIMIT)}" for line in exception.splitlines())


def _paint(code: str, text: str, color: bool) -> str:
    return f"{code}{text}{_RESET}" if color and code else text
