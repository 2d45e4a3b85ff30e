"""Whether a worker lives: its loops, its clock, the lag of its event loop; and its heartbeat file."""

import asyncio
import os
import resource
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from watcher.engine.loop import survived
from watcher.observe.log import Throttle, log

STUCK_AFTER_S = 120.0
"""A loop that has begun no turn for so long waits for something that does not come. While Redis hangs, a turn
takes a minute at most: 41 s until a command fails that is behind another one (four timeouts of 5 s each), 10
s to start an embedded server again, and pauses."""

LAGGED_MS = 1000
"""From this lag on, the event loop is worth a warning: leases become shorter by it."""

SKEWED_MS = 60_000
"""Receivers refuse signatures that are five minutes off: this leaves time to act."""

_LAG_LOOK_S = 0.25


class Liveness:
    """What one worker knows of its own life.

    `turned_at_by_loop()`: when each running loop last turned (monotonic). `dropped_lines()`: how many log
    lines were lost so far. `is_reload_refused`: the newest configuration has mistakes, and an earlier one is
    in force. `skew_ms`: how far this machine's clock is ahead of the server's.
    """

    def __init__(
        self,
        worker: str,
        turned_at_by_loop: Callable[[], Mapping[str, float]],
        *,
        dropped_lines: Callable[[], int] = lambda: 0,
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        self.worker = worker
        self.dropped_lines = dropped_lines
        self.stuck_after_s = stuck_after_s
        self._turned_at_by_loop = turned_at_by_loop
        self.is_reload_refused = False
        self.skew_ms = 0
        self._throttle = Throttle()
        self._worst_lag_s = 0.0
        self._worst_lag_before_s = 0.0

    def stuck(self, now: float) -> dict[str, float]:
        """Return the loops that no longer turn, each with the seconds since its last turn."""
        waits = {name: now - turned_at for name, turned_at in self._turned_at_by_loop().items()}
        return {name: wait_s for name, wait_s in waits.items() if wait_s > self.stuck_after_s}

    @property
    def lag_s(self) -> float:
        """The worst lag of the event loop since the heartbeat before the last one."""
        return max(self._worst_lag_s, self._worst_lag_before_s)

    def end_of_minute(self) -> float:
        """Start a new minute of measuring. Returns the worst lag since the last call, in seconds."""
        self._worst_lag_before_s, self._worst_lag_s = self._worst_lag_s, 0.0
        if 1000 * self.lag_s <= LAGGED_MS and (streak := self._throttle.over("lag", time.monotonic())):
            log.info("loop.recovered", worker=self.worker, **streak._asdict())
        return self._worst_lag_before_s

    async def measure_lag(self) -> None:
        """Sleep again and again, and see how late each sleep ends, until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(_LAG_LOOK_S)
            self.note_lag(time.monotonic() - before - _LAG_LOOK_S)

    def note_lag(self, lag_s: float) -> None:
        self._worst_lag_s = max(self._worst_lag_s, lag_s)
        if 1000 * lag_s > LAGGED_MS and (streak := self._throttle.struck("lag", time.monotonic())):
            lag_ms = round(1000 * lag_s)
            log.warning("loop.lagged", worker=self.worker, lag_ms=lag_ms, **streak._asdict())

    def note_clock(self, here_ms: float, server_ms: float) -> None:
        """Compare this machine's time with the server's, and warn of one that is off."""
        self.skew_ms, now = round(here_ms - server_ms), time.monotonic()
        if abs(self.skew_ms) >= SKEWED_MS:
            if streak := self._throttle.struck("clock", now):
                log.warning("clock.skewed", worker=self.worker, skew_ms=self.skew_ms, **streak._asdict())
        elif streak := self._throttle.over("clock", now):
            log.info("clock.recovered", worker=self.worker, skew_ms=self.skew_ms, **streak._asdict())


def rss_mb() -> float:
    """Return the memory of this process; where the system does not show it, the most it ever had."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_000_000  # bytes, on macOS
    return pages * os.sysconf("SC_PAGE_SIZE") / 1_000_000


EVERY_S = 5.0


class HeartbeatRefused(Exception):
    """The heartbeat file cannot be written: name another."""

    exit_code = 78


class HeartbeatFile:
    """The heartbeat of one worker. `stuck()` names the loops that no longer turn."""

    def __init__(self, path: Path, stuck: Callable[[], Collection[str]]) -> None:
        self._path = path
        self._stuck = stuck

    def begin(self) -> None:
        """Touch the file for the first time. Raises HeartbeatRefused."""
        try:
            if self._path.exists() and (not self._path.is_file() or self._path.stat().st_size):
                raise HeartbeatRefused(
                    f"the heartbeat file {self._path} is something else already, and would be removed at the "
                    "end: name a new file"
                )
            self._touch()
        except OSError as error:
            raise HeartbeatRefused(
                f"the heartbeat file {self._path} cannot be written: {error.strerror}"
            ) from error

    async def run(self) -> None:
        """Beat until cancelled. A disk that fails or hangs stops the heartbeat, and nothing else."""
        while True:
            await asyncio.sleep(EVERY_S)
            with survived("heartbeat file"), suppress(OSError):  # then the file is too old, or gone
                if not self._stuck():
                    await asyncio.to_thread(self._touch)

    def end(self) -> None:
        """Remove the file: a worker that has ended does not live."""
        with suppress(OSError):
            self._path.unlink()

    def _touch(self) -> None:
        self._path.touch(mode=0o644)
