"""Shows log lines to people, and finds them in the envelopes that platforms put around them."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from fnmatch import fnmatchcase
from typing import IO, Any, NamedTuple

from watcher.observe.catalogue import EVENTS
from watcher.printable import TEXT_LIMIT, printable

LogLine = Mapping[str, Any]

_OURS = '{"timestamp":'
"""What each of our lines begins with; platforms put their own prefix before it."""
_ALWAYS = ("timestamp", "level", "event")
_MOST_BRACKETS = 800
"""More than any line of ours has. Python could read deeper nesting than it can write."""
_MOST_LINES = 2000
"""Of one object; a traceback of ours is one string, on one line."""
_DEPTH = 4
"""Envelopes in envelopes, such as docker's around journald's."""
_SGR = re.compile(r"\x1b\[[0-9;]*m")


def parse(text: str) -> LogLine | None:
    """Find our line in a prefix or an envelope; None for a foreign line.

    Envelopes are recognised by their contents, not by name: journald's MESSAGE, docker's log, Loki's line,
    Google Cloud's jsonPayload and textPayload, and others. A prefix of our fields is removed.
    """
    return _in_text(text, _DEPTH)


def joined(texts: Iterable[str]) -> Iterator[str]:
    """Put on one line what gcloud and jq write on several, if it contains a line of ours."""
    block: list[str] = []
    indent = 0
    for text in texts:
        if block:
            block.append(text)
            if text[indent : indent + 1] not in (" ", "\t") or len(block) == _MOST_LINES:
                one = "".join(line.strip() for line in block).removesuffix(",")
                is_ours = text.strip().removesuffix(",") == "}" and parse(one)
                yield from [one] if is_ours else block
                block = []
        elif text.strip() == "{":
            block, indent = [text], text.index("{")
        else:
            yield text
    yield from block


def _in_text(text: str, depth: int) -> LogLine | None:
    if text.count("[") + text.count("{") > _MOST_BRACKETS:
        return None
    text = _SGR.sub("", text)  # compose colours its prefix; ours has none but escaped ones
    for begin in dict.fromkeys((text.find(_OURS), text.find("{"))):
        with suppress(ValueError, RecursionError):
            if begin >= 0:
                value = json.loads(text[begin:], parse_constant=_finite, parse_float=_finite)
                if line := _in_value(value, depth):
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
    if all(isinstance(value.get(name), str) for name in _ALWAYS):
        return value
    if all(isinstance(value.get(name), str) for name in _ALWAYS[:2]):  # its fields may have a prefix
        for name, text in value.items():
            if name.endswith("event") and isinstance(text, str) and text in EVENTS:
                prefix = name.removesuffix("event")
                return {name if name in _ALWAYS else name.removeprefix(prefix): value[name] for name in value}
    payload = value.get("jsonPayload")
    if isinstance(payload, dict) and isinstance(value.get("timestamp"), str):
        value = {"jsonPayload": {"timestamp": value["timestamp"], **payload}}  # it keeps the time outside
    return next(filter(None, (_in_value(part, depth - 1) for part in value.values() if depth)), None)


def _finite(number: str) -> float:
    """Read a number. Raises ValueError for NaN and Infinity, which Python reads and JSON does not have."""
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is not JSON")
    return float(number)


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
    timestamp, level, event = (printable(str(line[name])) for name in _ALWAYS)
    shown = [
        _paint(_DIM, timestamp, color),
        _paint(_COLORS.get(level, ""), f"{level:<7}", color),
        _paint(_BOLD, f"{event:<20}", color),
    ]
    for name, value in line.items():
        if name not in (*_ALWAYS, "exception"):
            is_bare = isinstance(value, str) and _BARE.match(value)
            text = value if is_bare else json.dumps(value, ensure_ascii=False)
            limit = TEXT_LIMIT if is_bare else 5 * TEXT_LIMIT
            shown.append(_paint(_DIM, printable(name) + "=", color) + printable(text, limit))
    exception = line.get("exception")
    traceback = exception.splitlines() if isinstance(exception, str) else []
    return "\n".join(
        [" ".join(shown).rstrip(), *(f"    {printable(one, 5 * TEXT_LIMIT)}" for one in traceback)]
    )


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
        """Yield what is new, and go on in the file that has taken the place of the one that was read."""
        yield from self._complete_lines()
        try:
            there = os.stat(self._path)
        except OSError:
            return  # between two names, for now
        if self._file:
            here = os.fstat(self._file.fileno())
            is_same = (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
            if is_same and there.st_size >= self._file.tell():
                return
        yield from self._complete_lines()  # what was written between the last look and the rename
        if self._begun:
            yield self._begun
        self.close()
        self._begun = b""
        try:
            self._file = open(self._path, "rb")  # noqa: SIM115 - stays open between looks
        except OSError:
            self._file = None
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


def _rank(level: str) -> int:
    """A level that is not ours ranks highest: hiding what is not understood would be a guess."""
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)


def _decoded(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace").rstrip("\r\n")


def _paint(code: str, text: str, color: bool) -> str:
    return f"{code}{text}{_RESET}" if color and code else text
