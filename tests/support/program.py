"""Runs the program, or a script that uses it, as a user's shell would."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "watcher")


def environment(**more: str) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def watcher(*args: str, stdin: str | bytes = b"", **env: str) -> subprocess.CompletedProcess[str]:
    """Run `watcher args…` to its end; its output is text, however odd."""
    return _run([*COMMAND, *args], stdin, env)


def script(source: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python source that may import watcher."""
    return _run([sys.executable, "-c", source, *args], b"", {})


def _run(command: list[str], stdin: str | bytes, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        env=environment(**env),
        check=False,
        timeout=30,
    )
    out, err = (text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(command, done.returncode, out, err)
