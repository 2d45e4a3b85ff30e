"""A reader at a shell of their own: an empty folder, `watcher` on the PATH, and few other programs.

Refuses what a text has no business to start here: a program that is not named below is not found.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.docs.blocks import ROOT

_PROGRAMS = (
    "bash",
    "sh",
    "cat",
    "cp",
    "cut",
    "chmod",
    "curl",
    "env",
    "mkdir",
    "od",
    "redis-cli",
    "sed",
    "sha256sum",
    "sleep",
    "tr",
)
_PATIENCE_S = 60
"""Nothing here says how long a thing may take: on a busy machine a dozen processes start slowly."""


class Reader:
    """Runs lines as `sh -eu` does in `folder`, with nothing else in the environment than what is given."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        for name in _PROGRAMS:
            found = shutil.which(name)
            if found:
                (programs / name).symlink_to(found)
        (programs / "watcher").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m watcher "$@"\n')
        (programs / "watcher").chmod(0o755)
        self._environ = {"PATH": str(programs), "PYTHONPATH": str(ROOT), "HOME": str(folder), **environ}

    def run(self, text: str, *, shell: str = "sh") -> "subprocess.CompletedProcess[str]":
        """Run commands that end."""
        return subprocess.run(
            [shutil.which(shell) or shell, "-euc", text],
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )

    @contextmanager
    def running(self, text: str, *, until: str) -> Iterator[Path]:
        """Run commands in the background until they print something; yields the file of their output."""
        said = self.folder / f"said-{len(list(self.folder.glob('said-*')))}"
        with said.open("wb") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-euc", text],
                cwd=self.folder,
                env=self._environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_for(said, until, process)
            yield said
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End whatever the shell has started, and see that it is gone: a worker drains first."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_PATIENCE_S)
        give_up_at = time.monotonic() + _PATIENCE_S
        while time.monotonic() < give_up_at:
            os.killpg(process.pid, 0)
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError("what the commands have started does not end")


def wait_for(said: Path, words: str, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait until a file contains words; fails at once if the process that writes it has ended."""
    give_up_at = time.monotonic() + _PATIENCE_S
    while words not in said.read_text():
        has_ended = process is not None and process.poll() is not None
        assert not has_ended, said.read_text()
        assert time.monotonic() < give_up_at, said.read_text()
        time.sleep(0.02)
