"""Shows log lines to people, and finds them in what platforms make of them."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from fnmatch import fnmatchcase
from typing import IO, Any, NamedTuple, NoReturn

from watcher.observe.catalogue import EVENTS
from watcher.printable import TEXT_LIMIT, printable

LogLine = Mapping[str, Any]

_OURS = '{"timestamp":'
"""What each of our lines begins with; platforms put their own prefix before it."""
_ALWAYS = ("timestamp", "level", "event")
_MOST_BRACKETS = 800
"""More than any line of ours has. What is nested as deep as Python can just read, it could not write."""
_MOST_LINES = 2000
"""Of one object; a traceback of ours is one string, on one of them."""
_DEPTH = 4
"""Envelopes in envelopes: docker's around journald's, say."""
_SGR = re.compile(r"\x1b\[[0-9;]*m")


def parse(text: str) -> LogLine | None:
    """Return one of our lines, whatever stands before it or around it, or None for a foreign line.

    Envelopes are known by what is in them, not by name: journald's MESSAGE, docker's log, Loki's line,
    Google Cloud's jsonPayload and textPayload, and others. A prefix of our fields is taken off.
    """
    return _in_text(text, _DEPTH)


def joined(texts: Iterable[str]) -> Iterator[str]:
    """Put on one line what gcloud and jq write on several, where it holds a line of ours."""
    held: list[str] = []
    indent = 0
    for text in texts:
        if held:
            held.append(text)
            if text[indent : indent + 1] not in (" ", "\t") or len(held) == _MOST_LINES:
                yield from _on_one(held)
                held = []
        elif text.strip() == "{":
            held, indent = [text], text.index("{")
        else:
            yield text
    yield from held


def _on_one(lines: list[str]) -> list[str]:
    one = "".join(line.strip() for line in lines).removesuffix(",")
    is_whole = lines[-1].strip().removesuffix(",") == "}"
    return [one] if is_whole and parse(one) else lines


def _in_text(text: str, depth: int) -> LogLine | None:
    if text.count("[") + text.count("{") > _MOST_BRACKETS:
        return None
    text = _SGR.sub("", text)  # compose colours its prefix; ours has none but escaped ones
    for begin in dict.fromkeys((text.find(_OURS), text.find("{"))):
        with suppress(ValueError, RecursionError):
            if begin >= 0 and (line := _in_value(_read(text[begin:]), depth)):
                return line
    return None


def _in_value(value: Any, depth: int) -> LogLine | None:
    """Find our line in a part of an envelope: an object, or a text with an object in it."""
    if isinstance(value, str):
        return _in_text(value, depth - 1) if depth and "event" in value else None
    if isinstance(value, list):  # journald's way with bytes
        is_text = value and all(type(byte) is int and 0 <= byte < 256 for byte in value)
        return _in_value(bytes(value).decode(errors="backslashreplace"), depth) if is_text else None
    if not isinstance(value, dict):
        return None
    if line := _ours(value):
        return line
    payload = value.get("jsonPayload")
    if isinstance(payload, dict) and isinstance(value.get("timestamp"), str):
        value = {"jsonPayload": {"timestamp": value["timestamp"], **payload}}  # it keeps the time outside
    return next(filter(None, (_in_value(part, depth - 1) for part in value.values() if depth)), None)


def _ours(line: dict[str, Any]) -> LogLine | None:
    if all(isinstance(line.get(name), str) for name in _ALWAYS):
        return line
    if not all(isinstance(line.get(name), str) for name in _ALWAYS[:2]):
        return None
    for name, value in line.items():
        if name.endswith("event") and isinstance(value, str) and value in EVENTS:
            prefix = name.removesuffix("event")
            return {name if name in _ALWAYS else name.removeprefix(prefix): line[name] for name in line}
    return None


def _read(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits)


LEVELS = ("debug", "info", "warning", "error")

_LINE_LIMIT = 1 << 20
"""Bytes of a line that are read at once: a file without any newline must not fill the memory."""
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
