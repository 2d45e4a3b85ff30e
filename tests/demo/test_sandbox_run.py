"""`watcher sandbox --run`: providers, a worker and a receiver in one command and one output."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.demo.test_demo_command import ROOT, ended, here, leftovers, line_with

__all__ = ["here"]

SCRIPT = """
{"at": 0, "account": 10110, "asset": "LRC", "do": "deposit.seen", "amount": "12.5"}
{"at": 0, "account": "alice@example.com", "asset": "MK", "do": "credit", "amount": "3.25"}
{"at": 0, "account": "acme", "asset": "EUR", "do": "lock", "amount": "100.5"}
"""


@contextmanager
def a_run(here: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """In a folder of its own, where nothing may be left either."""
    folder = here / "folder"
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "watcher", "sandbox", "--run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(here), "REDIS_URL": "redis://127.0.0.1:1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
    assert [*folder.iterdir()] == []


def shown_and_ended_by(here: Path, stop: signal.Signals) -> None:
    script = here / "script.jsonl"
    script.write_text(SCRIPT)
    with a_run(here, "--script", str(script)) as process:
        assert re.search(r"http://127\.0\.0\.1:[0-9]+/", line_with(process, "In a browser:"))
        for moved in ("LRC: pending_deposit +12.5", "MK: total +3.25", "EUR: locked +100.5"):
            line_with(process, moved)
        webhooks = {line_with(process, "  ->  ").strip() for _ in range(3)}
        about = {"treasury  ->  deposit.pending  12.5 LRC", "alice     ->  total.increased  3.25 MK"}
        assert webhooks == about | {"acme      ->  locked.increased  100.5 EUR"}
        process.send_signal(stop)
        assert ended(process) == (0, "", "")
    script.unlink()
    (here / "folder").rmdir()
    assert leftovers(here) == []


def test_the_first_change_becomes_the_first_webhook_and_a_signal_ends_everything(here: Path) -> None:
    shown_and_ended_by(here, signal.SIGTERM)


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_begins_as_the_first_did(here: Path) -> None:
    shown_and_ended_by(here, signal.SIGINT)
    shown_and_ended_by(here, signal.SIGINT)


@pytest.mark.slow
def test_another_shell_can_use_the_status_command_that_it_prints(here: Path) -> None:
    with a_run(here) as process:
        arguments = line_with(process, "In another shell:").split("watcher ")[1].split()
        line_with(process, "  treasury  ->  deposit.pending  12.5 LRC")
        code = f"from watcher.cli import main\nmain({arguments})"
        environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        looked = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            check=False,
        )
        assert (looked.returncode, "3 of 3 healthy" in looked.stdout) == (0, True), looked
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0


@pytest.mark.slow
def test_a_closed_pipe_fails_nothing(here: Path) -> None:
    with a_run(here) as process:
        line_with(process, "->  deposit.pending")
        assert process.stdout
        process.stdout.close()
        process.stdout = None
        assert process.stderr
        assert (process.wait(30), process.stderr.read()) == (141, "")
    (here / "folder").rmdir()
    assert leftovers(here) == []
