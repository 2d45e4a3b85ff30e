"""A server in a process of its own: it must not share the core of what is measured."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support import ROOT


@contextmanager
def beside(module: str) -> Iterator[str]:
    """Run a module inside the block; gives the first line that it prints. It ends when its stdin does."""
    command = (sys.executable, "-m", module)
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield process.stdout.readline()
        finally:
            process.stdin.close()
            process.terminate()
