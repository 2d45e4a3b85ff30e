"""Sets up logging: one line per fact, JSON for machines or pretty for people, written by a thread of its own.

Refuses to hold up the worker: where nobody reads the lines they are dropped and counted. Refuses to pass
on what could harm a reader: values from outside are made printable, tracebacks carry no local variables.
"""

import logging
import sys
import time
import traceback
from collections.abc import Mapping, MutableMapping
from functools import lru_cache, partial
from typing import Any, Literal, TextIO

import orjson
import structlog

from watcher.observe.catalogue import EVENTS as EVENTS
from watcher.observe.tail import LEVELS as LEVELS
from watcher.observe.tail import pretty
from watcher.observe.throttle import Throttle
from watcher.observe.writer import LineWriter, write_to
from watcher.printable import TEXT_LIMIT, plain, traceback_text, without_secrets

FORMATS = ("auto", "json", "pretty")

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
    """Send log lines of `level` and above to `stream` (stdout), and what libraries warn of with them.

    Call it before the first line; what is bound earlier keeps its level and stream. `auto` is pretty on
    a terminal and JSON elsewhere; `color` says whether a terminal may get colours. In JSON, `prefix` stands
    before the names of all fields but the time and the level. Raises ValueError for another level or format.
    """
    if level.lower() not in LEVELS or format not in FORMATS:
        raise ValueError(f"log levels are {', '.join(LEVELS)}; formats are {', '.join(FORMATS)}")
    out = stream or sys.stdout
    is_pretty = format == "pretty" or (format == "auto" and out.isatty())
    if is_pretty:
        render: Any = partial(_as_text, color=color and out.isatty())
    else:
        render = partial(_as_json, prefix=prefix) if prefix else _as_json
    writer = LineWriter(
        write_to(out),
        on_drop=lambda lines: log.warning("log.dropped", lines=lines),
        on_bug=lambda error: log.error("bug", affected="log", exc_info=error),
    )
    _processors[:] = [_tidy, render]
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=True,
    )
    _bugs.clear()
    vars(log).pop("bind", None)  # the logger that was cached under an earlier configuration
    logging.getLogger().addHandler(_bridge)
    logging.captureWarnings(True)
    return writer


_MOST = 2**63 - 1
"""The largest integer that every reader of JSON lines takes."""

_UNPREFIXED = ("timestamp", "level")
"""What every pipeline looks for under these names."""

_bugs = Throttle()
_processors: list[Any] = []  # one list for all times: loggers that are cached keep a reference to it


class _Bridge(logging.Handler):
    """Takes what libraries say through the standard library's logging, warnings and above."""

    def emit(self, record: logging.LogRecord) -> None:
        said = {"library": record.name, "message": _message(record), "exc_info": record.exc_info}
        if record.levelno >= logging.ERROR:
            log.error("library.failed", **said)
        else:
            log.warning("library.warned", **said)


_bridge = _Bridge(logging.WARNING)


def _message(record: logging.LogRecord) -> str:
    try:
        return without_secrets(record.getMessage())
    except Exception:  # a library's own mistake in its format string must not end its caller
        return without_secrets(str(record.msg))


def _tidy(_logger: object, level: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Order the fields and make every value plain data whose texts are printable."""
    line = {"timestamp": _utc_text(time.time()), "level": level, "event": fields.pop("event")}
    error = _error(fields.pop("exc_info", None))
    if line["event"] == "bug" and error:
        fields.update(_repetition(error, fields.get("affected")))
    for name, value in fields.items():
        kind = type(value)
        if kind is str:
            is_plain = len(value) <= TEXT_LIMIT and value.isprintable()
        else:
            is_plain = -_MOST <= value <= _MOST if kind is int else value is None
        line[name] = value if is_plain else plain(value)
    if error:
        line["exception"] = traceback_text(error)
    return line


def _repetition(error: BaseException, affected: object) -> Mapping[str, int]:
    """Say how often the same bug has shown itself. Raises DropEvent where that is not to be said again yet.

    It is the same where the same thing is affected at the same place in the code, whoever the account is.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = (frames[-1].filename, frames[-1].lineno) if frames else None
    streak = _bugs.struck((affected, type(error), place), time.monotonic())
    if streak is None:
        raise structlog.DropEvent
    return {"times": streak.times} if streak.times > 1 else {}


def _error(exc_info: object) -> BaseException | None:
    """Find the exception in any of the forms that logging calls take it in."""
    if exc_info is True:
        return sys.exc_info()[1]
    found = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    return found if isinstance(found, BaseException) else None


def _as_json(_logger: object, _level: str, line: Mapping[str, Any], *, prefix: str = "") -> bytes:
    if prefix:
        line = {name if name in _UNPREFIXED else prefix + name: value for name, value in line.items()}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _as_text(_logger: object, _level: str, line: Mapping[str, Any], *, color: bool) -> bytes:
    return f"{pretty(line, color=color)}\n".encode()


def _utc_text(now: float) -> str:
    milliseconds = int(now * 1000)
    return f"{_utc_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=2)
def _utc_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
