"""Logging: one line per fact, JSON or pretty, written by a thread; throttled where a failure lasts."""

import atexit
import logging
import os
import select
import sys
import time
import traceback
from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from functools import lru_cache, partial, partialmethod
from itertools import accumulate
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import Any, Literal, NamedTuple, TextIO

import orjson
import structlog

from watcher.observe.catalogue import EVENTS as EVENTS
from watcher.observe.tail import LEVELS as LEVELS
from watcher.observe.tail import pretty
from watcher.printable import TEXT_LIMIT, plain, printable, traceback_text, without_secrets

_QUEUED_LINES = 10_000
"""Lines: some 3 MB, or a second of the busiest worker; a reader may pause for that long."""
_LINES_AT_ONCE = 500
_WRITE_BYTES = select.PIPE_BUF
"""Bytes that no other process writing to the same pipe can tear apart."""
_NAP_S = 0.02
"""Lines of this span leave together: a thread that wakes takes the interpreter from the loop."""
_PATIENCE = 4
"""A slow reader gets so many times the wait of one that has stopped: no line reports what is lost here."""
_END = b""


class LineWriter:
    """Takes lines, and writes them in a thread. `write` may block and may fail.

    `on_drop` is called with the number of lost lines once a line gets out again, `on_bug` with any other
    error: the lines of that moment are lost, and the log goes on.
    """

    def __init__(
        self,
        write: Callable[[bytes], int],
        *,
        on_drop: Callable[[int], object],
        on_bug: Callable[[Exception], object] = lambda _: None,
        capacity: int = _QUEUED_LINES,
    ) -> None:
        self._write = write
        self._on_drop = on_drop
        self._on_bug = on_bug
        self._capacity = capacity
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._overflowed = 0  # counted by callers only
        self._unwritten = 0  # counted by the thread only
        self._reported = 0  # of the dropped lines
        self._written = 0  # bytes; counted by the thread only
        self._thread = Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def dropped(self) -> int:
        """How many lines were lost so far."""
        return self._overflowed + self._unwritten

    def put(self, line: bytes) -> None:
        """Take one line, its newline included. Never waits, never raises."""
        if self._lines.qsize() < self._capacity or current_thread() is self._thread:
            self._lines.put(line)
        else:
            self._overflowed += 1

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what was taken. Waits for `timeout_s`, and a few times longer if some of it gets out
        meanwhile. Runs by itself at exit; safe to call twice."""
        self._lines.put(_END)
        before = -1
        for _ in range(_PATIENCE):
            if self._written == before:
                break
            before = self._written
            self._thread.join(timeout_s)
        atexit.unregister(self.close)

    def _run(self) -> None:
        is_open = True
        while is_open or not self._lines.empty():
            lines = [self._lines.get()]
            lines += [self._lines.get() for _ in range(min(self._lines.qsize(), _LINES_AT_ONCE))]
            is_open = is_open and _END not in lines
            bugs: list[Exception] = []
            for act in (partial(self._send_and_count, lines), partial(self._report, bugs)):
                try:
                    act()
                except Exception as error:  # a thread that ends would end the log without a word
                    bugs.append(error)
            if is_open and self._lines.empty():
                time.sleep(_NAP_S)

    def _send_and_count(self, lines: list[bytes]) -> None:
        if self._send([*filter(None, lines)]) and (lost := self.dropped - self._reported):
            self._reported += lost
            self._on_drop(lost)

    def _report(self, bugs: list[Exception]) -> None:
        for bug in bugs:
            self._on_bug(bug)

    def _send(self, lines: list[bytes]) -> bool:
        """Write `lines`, as many at once as are never torn, and return whether the last of them got out."""
        is_written, at, starts = False, 0, [0, *accumulate(map(len, lines))]
        while at < len(lines):
            first, at = at, max(at + 1, bisect_right(starts, starts[at] + _WRITE_BYTES) - 1)
            is_written, left = False, b"".join(lines[first:at])
            try:
                while left:
                    written = self._write(left)
                    left = left[written:]
                    self._written += written
                is_written = True
            except (OSError, ValueError):  # the reader has gone, the disk is full: the next line may get out
                pass
            finally:
                self._unwritten += 0 if is_written else at - first
        return is_written


def write_to(stream: TextIO) -> Callable[[bytes], int]:
    """Return a function that writes to the descriptor itself.

    The thread would hold the lock of a buffer, and the exit of the process would wait for it.
    """
    stream.flush()
    try:
        descriptor = stream.fileno()
    except OSError:
        return lambda data: stream.write(data.decode()) and len(data)

    def write(data: bytes) -> int:
        try:
            return os.write(descriptor, data)
        except BlockingIOError:  # another process that shares the pipe made it non-blocking
            select.select([], [descriptor], [], 1.0)
            return 0

    return write


FIRST_S = 3600.0
AGAIN_S = 86_400.0


class Streak(NamedTuple):
    """For how long something has been failing, and how many times it has failed."""

    duration_ms: int
    times: int


class Throttle:
    """Decides when a lasting failure is logged: when it begins, an hour later, then once a day, and at its
    end.

    There is one for each kind of failure; each failure has a name of its own. Times are seconds of a
    monotonic clock.
    """

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}
        self._times: dict[Hashable, int] = {}
        self._next_at: dict[Hashable, float] = {}

    def struck(self, what: Hashable, now: float) -> Streak | None:
        """Note a failure. Returns its streak if it is to be logged now."""
        self._since.setdefault(what, now)
        self._times[what] = self._times.get(what, 0) + 1
        if now < self._next_at.get(what, now):
            return None
        self._next_at[what] = now + (AGAIN_S if self._times[what] > 1 else FIRST_S)
        return self.lasting(what, now)

    def lasting(self, what: Hashable, now: float) -> Streak:
        """Return the streak of a failure that was noted, whether or not it is to be logged now."""
        return Streak(round(1000 * (now - self._since[what])), self._times[what])

    def over(self, what: Hashable, now: float) -> Streak | None:
        """Forget a failure that has ended. Returns its streak, or None if there was none."""
        if what not in self._since:
            return None
        streak = self.lasting(what, now)
        for memory in (self._since, self._times, self._next_at):
            del memory[what]
        return streak

    def clear(self) -> None:
        """Forget all failures."""
        for memory in (self._since, self._times, self._next_at):
            memory.clear()


FORMATS = ("auto", "json", "pretty")
_Render = Callable[[Mapping[str, Any]], bytes]

log = structlog.get_logger()
"""The one logger of this program."""


def configure(
    level: str = "info",
    format: Literal["auto", "json", "pretty"] = "auto",  # noqa: A002 - as in LOG_FORMAT
    stream: TextIO | None = None,
    *,
    color: bool = True,
    prefix: str = "",
) -> LineWriter:
    """Send log lines of `level` and above to `stream` (stdout), and the warnings of libraries with them.

    Call it before the first line; what is bound earlier keeps its level and stream. `auto` is pretty on a
    terminal and JSON elsewhere; `color` says whether a terminal may get colours. In JSON, `prefix` is put
    before the names of all fields but the time and the level. Raises ValueError for another level or format.
    """
    if level.lower() not in LEVELS or format not in FORMATS:
        raise ValueError(f"log levels are {', '.join(LEVELS)}; formats are {', '.join(FORMATS)}")
    out = stream or sys.stdout
    is_pretty = format == "pretty" or (format == "auto" and out.isatty())
    if is_pretty:
        is_colored = color and out.isatty()
        render: _Render = lambda line: f"{pretty(line, color=is_colored)}\n".encode()  # noqa: E731
    elif prefix:
        render = lambda line: _as_json(  # noqa: E731
            {name if name in _UNPREFIXED else prefix + name: value for name, value in line.items()}
        )
    else:
        render = _as_json
    writer = LineWriter(
        write_to(out),
        on_drop=lambda lines: log.warning("log.dropped", lines=lines),
        on_bug=lambda error: log.error("bug", affected="log", exc_info=error),
    )
    _processors[:] = [_tidy]
    structlog.configure(
        processors=_processors,
        wrapper_class=_logger_from(level, render),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=True,
    )
    _bugs.clear()
    unbind()
    bound = log.bind()
    vars(log).update((name, getattr(bound, name)) for name in LEVELS)  # else each line looks it up anew
    logging.getLogger().addHandler(_bridge)
    logging.captureWarnings(True)
    return writer


def unbind() -> None:
    """Forget what the logger cached under an earlier configuration."""
    for name in ("bind", *LEVELS):
        vars(log).pop(name, None)


class _Logger:
    """Hands each line to structlog's processors. Its own loggers do more for each: they fill texts in, copy
    what is bound, which nothing here is, and look at what the processors return."""

    _render: _Render

    def __init__(
        self, writer: LineWriter, processors: Sequence[Callable[..., Any]], context: Mapping[str, Any]
    ) -> None:
        self._writer = writer
        self._processors = processors
        self._context = context

    def bind(self, **fields: Any) -> "_Logger":
        return type(self)(self._writer, self._processors, {**self._context, **fields})

    def _take(self, level: str, event: str, /, **fields: Any) -> None:
        fields["event"] = event
        line: Any = {**self._context, **fields} if self._context else fields
        try:
            for process in self._processors:
                line = process(self._writer, level, line)
        except structlog.DropEvent:
            return
        self._writer.put(self._render(line))

    debug = partialmethod(_take, "debug")
    info = partialmethod(_take, "info")
    warning = partialmethod(_take, "warning")
    error = partialmethod(_take, "error")
    exception = partialmethod(_take, "error", exc_info=True)


def _pass(_: object, _event: str, **_fields: Any) -> None:
    """Take no line of this level."""


def _logger_from(level: str, render: _Render) -> Any:
    """Make the class of a logger of a level and above. It can do as much of what structlog's can as is used
    here."""
    below = LEVELS[: LEVELS.index(level.lower())]
    return type("Logger", (_Logger,), {"_render": staticmethod(render), **dict.fromkeys(below, _pass)})


_MOST = 2**63 - 1
"""The largest integer that every reader of JSON lines takes."""

_OUR_WORDS = ("reason", "guarantee")
_LONGEST = 600
"""Characters of texts of our own, whose ends say what to do."""

_UNPREFIXED = ("timestamp", "level")
"""Fields that every pipeline looks for under these names."""

_bugs = Throttle()
_processors: list[Any] = []  # one list for all times: loggers that are cached keep a reference to it


class _Bridge(logging.Handler):
    """Takes the lines of libraries from the standard library's logging, warnings and above."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
        ):  # a mistake in a format string must not end the caller
            message = str(record.msg)
        fields = {"library": record.name, "message": without_secrets(message), "exc_info": record.exc_info}
        if record.levelno >= logging.ERROR:
            log.error("library.failed", **fields)
        else:
            log.warning("library.warned", **fields)


_bridge = _Bridge(logging.WARNING)


def _tidy(_logger: object, level: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Order the fields, and make every value plain data whose texts are printable.

    Raises DropEvent for a bug that was logged recently. It is the same bug if the same thing is affected at
    the same place in the code, whatever the account.
    """
    event = fields.pop("event")
    error = None
    if "exc_info" in fields:  # in any of the forms that logging calls take it in
        found = fields.pop("exc_info")
        found = sys.exc_info()[1] if found is True else found[1] if isinstance(found, tuple) else found
        error = found if isinstance(found, BaseException) else None
    if error and event == "bug":
        frames = traceback.extract_tb(error.__traceback__)
        place = (frames[-1].filename, frames[-1].lineno) if frames else None
        streak = _bugs.struck((fields.get("affected"), type(error), place), time.monotonic())
        if streak is None:
            raise structlog.DropEvent
        if streak.times > 1:
            fields["times"] = streak.times
    timestamp = _utc(int(1000 * time.time()))
    line = {"timestamp": timestamp, "level": level, "event": event, **fields}
    for name, value in fields.items():
        kind = type(value)
        if kind is str:
            if len(value) > TEXT_LIMIT or not value.isprintable():
                line[name] = printable(value, _LONGEST) if name in _OUR_WORDS else plain(value)
        elif not (-_MOST <= value <= _MOST if kind is int else value is None or kind is bool):
            line[name] = plain(value)
    if error:
        line["exception"] = traceback_text(error)
    return line


@lru_cache(maxsize=2)
def _utc(unix_ms: int) -> str:
    """Write a time. A busy worker logs several lines in each millisecond."""
    second, ms = divmod(unix_ms, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{ms:03d}Z"


_as_json = partial(orjson.dumps, option=orjson.OPT_APPEND_NEWLINE)
