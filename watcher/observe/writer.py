"""Writes finished log lines by a thread of its own, so that no caller ever waits for a reader.

Refuses to keep what nobody reads: beyond a bound, lines are dropped and counted.
"""

import atexit
import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import TextIO

_QUEUED_LINES = 10_000
"""Some 3 MB, and a second of the busiest worker's lines: a reader may hesitate that long."""
_LINES_AT_ONCE = 500
_WRITE_BYTES = select.PIPE_BUF
"""What is no larger is never torn by another process that writes to the same pipe."""
_NAP_S = 0.005
"""Lines of this span leave together: waking the thread for each would cost more than writing it."""
_PATIENCE = 4
"""A slow reader gets so many times the wait for one that has stopped: what is lost here nobody tells."""
_END = b""


class LineWriter:
    """Takes lines as one of structlog's loggers does.

    `write` may block and may fail; `on_drop` is told how many lines were lost once one gets out again, and
    `on_bug` what else went wrong: the lines of that moment are lost, and the log goes on.
    """

    def __init__(
        self,
        write: Callable[[bytes], int],
        *,
        on_drop: Callable[[int], object],
        on_bug: Callable[[Exception], object] = lambda _: None,
        room: int = _QUEUED_LINES,
    ) -> None:
        self._write = write
        self._on_drop = on_drop
        self._on_bug = on_bug
        self._room = room
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._overflowed = 0  # counted by callers only
        self._unwritten = 0  # counted by the thread only
        self._told = 0
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
        if self._lines.qsize() < self._room or current_thread() is self._thread:
            self._lines.put(line)
        else:
            self._overflowed += 1

    debug = info = warning = error = critical = put

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what was taken. Waits for `timeout_s`, and a few times more if meanwhile some of it gets out.

        Runs by itself at exit; safe to call twice.
        """
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
            lines = self._take()
            is_open = is_open and _END not in lines
            try:
                if self._send(lines) and self._told < self.dropped:
                    self._tell()
            except Exception as error:  # a thread that ends would end the log without a word
                self._failed(error)
            if is_open and self._lines.empty():
                time.sleep(_NAP_S)

    def _take(self) -> list[bytes]:
        lines = [self._lines.get()]
        while len(lines) < _LINES_AT_ONCE and not self._lines.empty():
            lines.append(self._lines.get())
        return lines

    def _send(self, lines: list[bytes]) -> bool:
        """Write `lines` and say whether the last of them got out."""
        is_written = False
        for together in _small_groups(lines):
            left = b"".join(together)
            try:
                while left:
                    written = self._write(left)
                    left = left[written:]
                    self._written += written
                is_written = True
            except (OSError, ValueError):  # nobody reads, the disk is full: the next line may have more luck
                self._unwritten += len(together)
                is_written = False
            except Exception as error:
                self._unwritten += len(together)
                is_written = False
                self._failed(error)
        return is_written

    def _failed(self, error: Exception) -> None:
        with suppress(Exception):  # it is written by this thread, which has just failed
            self._on_bug(error)

    def _tell(self) -> None:
        lost = self.dropped - self._told
        self._told += lost
        self._on_drop(lost)


def write_to(stream: TextIO) -> Callable[[bytes], int]:
    """Write to the descriptor itself: a buffer's lock, held by the thread, would hold up everybody's exit."""
    stream.flush()
    try:
        return partial(_write_descriptor, stream.fileno())
    except OSError:
        return lambda data: stream.write(data.decode()) and len(data)


def _small_groups(lines: list[bytes]) -> list[list[bytes]]:
    groups: list[list[bytes]] = []
    room = 0
    for line in filter(None, lines):
        room -= len(line)
        if room < 0:
            groups.append([])
            room = _WRITE_BYTES - len(line)
        groups[-1].append(line)
    return groups


def _write_descriptor(descriptor: int, data: bytes) -> int:
    try:
        return os.write(descriptor, data)
    except BlockingIOError:  # somebody who shares the pipe made it non-blocking
        select.select([], [descriptor], [], 1.0)
        return 0
