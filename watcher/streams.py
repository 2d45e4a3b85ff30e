"""Makes the standard streams of this process safe to use, whatever its parent has done to them.

A closed one must not leave its number to the first socket that is opened. A full disk behind stdout is no
bug, behind stderr no reason to end. No locale makes a text unprintable.
"""

import errno
import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any

_ASCII = ("ascii", "us-ascii", "ansi_x3.4-1968", "646")


class CannotWrite(Exception):
    """The output of a command cannot be written to stdout. Not an OSError: commands expect those from their
    work."""

    exit_code = 1


class ReaderLeft(CannotWrite):
    """The reader of stdout has left, as in `watcher tail | head`: no failure of ours."""

    exit_code = 141
    """The exit code of a program that SIGPIPE ended."""


def fix() -> None:
    """Open /dev/null where a stream is closed, and let writing fail in our own words."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError as error:
            if error.errno != errno.EBADF:
                continue
            # What is said on a closed stdout must fail, as with coreutils, so it is opened for reading.
            opened = os.open(os.devnull, os.O_RDWR if descriptor == 2 else os.O_RDONLY)
            os.set_inheritable(opened, True)  # it is the lowest that was free: this descriptor
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115 - open as long as the process is
    sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.stderr)


def silence_stdout() -> None:
    """Throw away what is left to write, so that the interpreter does not fail at it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class _Stdout(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return _patiently(super().write, data, self.fileno())
        except BrokenPipeError:
            raise ReaderLeft("the reader of stdout has left") from None
        except OSError as error:
            raise CannotWrite(f"cannot write to stdout: {error.strerror}") from None


class _Stderr(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return _patiently(super().write, data, self.fileno())
        except OSError:  # there is nowhere left to say so but in the exit code
            return len(data)


def _patiently(write: Callable[[Any], int | None], data: Any, descriptor: int) -> int:
    """Write some of `data`, also to a pipe that another process made non-blocking."""
    while (written := write(data)) is None:
        select.select([], [descriptor], [], 1.0)
    return written


def _text(raw: io.FileIO, before: Any) -> io.TextIOWrapper:
    """Encode as `before` does, but never fail at a character. ASCII is what is left of a missing locale."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding="utf-8" if encoding.lower() in _ASCII else encoding,
        errors="backslashreplace",
        line_buffering=raw.fileno() == 2 or raw.isatty(),
    )
