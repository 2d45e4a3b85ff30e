"""Workers as users start them: processes of their own, killed, stopped and asked to end by their pid."""

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.builders import SECRET
from tests.support.processes import start, whole_lines

FAULTY = Path(__file__).with_name("faulty_watcher.py")

TOKEN = "the-token-of-the-operator"
"""Of the API, where a worker serves it."""

_TICK_S = 0.02
_OFTEN, _LAST = 100, 20
"""Of a worker's log: an event that is too frequent to be shown, and how many lines are."""
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1_000_000


class Size(NamedTuple):
    """What one process holds."""

    rss_mb: float
    descriptors: float
    tasks: float
    blocks: float
    """Of memory, as Python's allocator counts them: one for each object, and some have more."""

    def __str__(self) -> str:
        held = f"{self.descriptors:.0f} descriptors, {self.tasks:.0f} tasks, {self.blocks:.0f} blocks"
        return f"{self.rss_mb:.2f} MB, {held}"


@dataclass(eq=False)
class WorkerProcess:
    """One `watcher run`, its log in a file, where `output` is no other place for it.

    With `faults` it is run by `faulty_watcher`. `python` is that of another version's environment. With an
    `api_port` it serves the API there, to clients with TOKEN.
    """

    directory: Path
    name: str
    faults: Mapping[str, Any] = field(default_factory=dict)
    output: int | None = None
    python: str | None = None
    api_port: int | None = None
    process: asyncio.subprocess.Process = field(init=False)

    async def start(self) -> None:
        program = [str(FAULTY)] if self.faults else ["-m", "watcher"]
        settings = {"LOG_FORMAT": "json", "LOG_LEVEL": "info", "SECRET": SECRET, "WORKER": self.name}
        settings |= {"FAULTS": json.dumps(self.faults), **({"PYTHONPATH": ""} if self.python else {})}
        settings |= {"WATCHER_HTTP_TOKEN": TOKEN} if self.api_port else {}
        served = ("--http", f"127.0.0.1:{self.api_port}", "--api") if self.api_port else ()
        with self.log.open("ab") as log, self._errors.open("ab") as errors:
            self.process = await start(
                self.directory,
                settings,
                "run",
                *served,
                out=log if self.output is None else self.output,
                errors=errors,
                program=(self.python or sys.executable, *program),
            )

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return self._errors.read_text()

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """What it logged so far, all of it or one event. A line that a SIGKILL cut short is left out."""
        lines = [json.loads(line) for line in whole_lines(self.log)]
        return [line for line in lines if event in (None, line["event"])]

    def summary(self) -> str:
        """How often it logged each event, and the last lines that are not of every day: for a test that
        fails."""
        lines = self.lines()
        counts = Counter(line["event"] for line in lines)
        last = [str(line) for line in lines if counts[line["event"]] < _OFTEN][-_LAST:]
        return "\n  ".join([f"{self.name} logged {dict(counts)}; at last:", *last, str(lines[-1:])])

    async def logged(self, event: str, times: int = 1, *, within_s: float = 20) -> None:
        """Wait until it has logged an event, so many times."""
        async with asyncio.timeout(within_s):
            while len(self.lines(event)) < times:
                assert self.is_running, f"{self.name} ended before {event}: {self.errors}"
                await asyncio.sleep(_TICK_S)

    async def until_frozen(self, *, within_s: float = 20) -> None:
        """Wait until it is stopped, by whatever signal."""
        async with asyncio.timeout(within_s):
            while self._stat()[0] != "T":  # noqa: ASYNC110 - another process stops it
                await asyncio.sleep(_TICK_S)

    def cpu_s(self) -> float:
        """How much time of a processor it has had."""
        fields = self._stat()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND

    def _stat(self) -> list[str]:
        """What the system says of the process, from its state on."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()

    def size(self) -> Size:
        """How much it holds now. Its tasks and blocks only it can count, started with `reports_tasks`."""
        process = Path(f"/proc/{self.process.pid}")
        pages = int((process / "statm").read_text().split()[1])
        tasks, blocks = map(int, (self.directory / f"{self.name}.tasks").read_text().split())
        return Size(pages * _PAGE_MB, self.descriptors(), tasks, blocks)

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def send(self, number: signal.Signals) -> None:
        if self.is_running:
            self.process.send_signal(number)

    async def kill(self) -> None:
        """End it at once, wherever it is, and wait until it is gone."""
        self.send(signal.SIGKILL)
        await self.process.wait()

    async def terminate(self, within_s: float = 30) -> int:
        """Ask it to end, once it handles that signal; returns its exit code."""
        await self._until_it_handles(signal.SIGTERM)
        self.send(signal.SIGTERM)
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    async def _until_it_handles(self, number: signal.Signals, *, within_s: float = 20) -> None:
        """Wait until it handles a signal that would have ended it before, or has ended."""
        async with asyncio.timeout(within_s):
            while self.is_running and not self.handles(number):  # noqa: ASYNC110
                await asyncio.sleep(_TICK_S)

    def handles(self, number: signal.Signals) -> bool:
        """Return whether it handles a signal now."""
        return bool(self._handled() >> (number - 1) & 1)

    def _handled(self) -> int:
        """Which signals the process handles, as the system has it: the lowest bit is signal 1."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except FileNotFoundError:  # it has just ended
            return 0
        (handled,) = re.findall(r"SigCgt:\s+(\w+)", status)
        return int(handled, 16)

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def _errors(self) -> Path:
        return self.directory / f"{self.name}.errors"
