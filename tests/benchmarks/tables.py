"""A table of figures, and what they were measured on."""

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

_LIBRARIES = ("aiohttp", "redis", "hiredis", "uvloop", "orjson", "structlog", "pydantic")


class Row(NamedTuple):
    """A line of the table; `raw` is the same figure of the raw loop."""

    what: str
    ours: str
    raw: str = ""
    ratio: str = ""
    at_least: str = ""
    aim: str = ""


HEAD = Row("", "worker", "raw loop", "ratio", "at least", "aim")


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> Iterator[str]:
    """Yield the lines of the table, as markdown."""
    cells = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_line(row, widths) for row in cells]
    yield from (lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
    return f"| {' | '.join(cells)} |"


def piece_ms() -> float:
    """Do a fixed piece of work, and return the ms of processor time that it took. Where it takes longer than
    at other times, somebody else is busy on the same hardware, and every figure is worse."""
    made: dict[int, tuple[int, str]] = {}
    before = time.process_time()
    for number in range(200_000):
        made[number % 5_000] = number, str(number)
    for _ in range(10):
        json.loads(json.dumps([*made.values()]))
    return 1000 * (time.process_time() - before)


def facts(server: str = "") -> Iterator[str]:
    """Say on what was measured: the machine and how busy it is, Python, the libraries, the `server`."""
    try:
        found = Path("/proc/cpuinfo").read_text().split("model name", 1)[1]
        model = found.partition(":")[2].partition("\n")[0].strip()
    except (OSError, IndexError):
        model = platform.processor()
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    yield f"{model or platform.machine()}, {os.cpu_count()} cores, load {load}; {platform.platform()}"
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    yield f"{platform.python_implementation()} {platform.python_version()}, {libraries}"
    if server:
        yield server
