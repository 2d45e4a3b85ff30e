"""A real terminal for a process to write to, with a file at its other side."""

import os
import pty
import re
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from unicodedata import category

_OURS = re.compile(r"\x1b\[(0|1|2|31|32|33)m|\r?\x1b\[\?25[lh]|\r(?=(trying|auditing|counting|queuing) )")
"""The colours of log lines for people, and what draws the progress of long work. Nothing else."""


@contextmanager
def a_terminal(file: Path) -> Iterator[int]:
    """Yield a terminal's descriptor. What is written to it is in `file`, all of it when the block is left."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)  # as it was written: a terminal would make two characters of a line's end
    reader = Thread(target=_copy, args=(ours, file), daemon=True)
    reader.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        reader.join(10)
        os.close(ours)


def obeyed(shown: bytes) -> set[str]:
    """Control and unprintable characters in an output, but for line ends: what a terminal would obey."""
    rest = _OURS.sub("", shown.decode())
    return {char for char in rest if char != "\n" and category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


def _copy(ours: int, file: Path) -> None:
    with file.open("ab", buffering=0) as out:
        while True:
            try:
                out.write(os.read(ours, 65536))
            except OSError:  # what Linux says when the other side is closed
                return
