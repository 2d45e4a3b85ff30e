"""`watcher demo` judges itself, ends by itself, ends on Ctrl-C, and leaves nothing behind."""

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALIGNED = re.compile(r"  (treasury|alice   )  [a-z.]+ +->  [a-z]+\.[a-z]+ +[0-9]+ ms  [0-9.]+ [A-Z]+\n")
PASSED = re.compile(
    r"PASSED  12 changes made, 12 events verified: .*usually, [0-9]+ ms at most\. ([0-9.]+) s in all", re.S
)


@pytest.fixture
def here() -> Iterator[Path]:
    """The system's temporary directory as the demonstration sees it, with a name short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        yield Path(directory)


@contextmanager
def a_demo(
    here: Path, *arguments: str, code: str = "", stdout: int = subprocess.PIPE, **env: str
) -> Iterator[subprocess.Popen[str]]:
    """Run `watcher demo`, after some code that spoils it."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    begun = f"import sys\nsys.argv[1:] = {['demo', *arguments]}\nfrom watcher.__main__ import main\nmain()"
    run = f"{code}\n{begun}"
    process = subprocess.Popen(
        [sys.executable, "-c", run],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, "PYTHONPATH": str(ROOT), "TMPDIR": str(here), **env},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def on_a_terminal(here: Path, **env: str) -> Iterator[int]:
    """Run it with a terminal as its stdout, and yield the other side of that."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0), a_demo(here, "--fast", stdout=theirs, **env):
        os.close(theirs)
        yield ours


def shown_at(terminal: int) -> bytes:
    shown = b""
    with suppress(OSError):  # how Linux says that the other side has closed the terminal
        while chunk := os.read(terminal, 4096):
            shown += chunk
    return shown


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def line_with(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout
    return next(line for line in process.stdout if text in line)


def leftovers(here: Path) -> list[str]:
    """Files left in the temporary directory, and processes that still use it."""
    lives = []
    for process in Path("/proc").glob("[0-9]*/cwd"):
        try:
            lives.append(str(process.readlink()))
        except OSError:  # it has just ended, or is not ours to look at
            continue
    return [*map(str, here.iterdir()), *(place for place in lives if place.startswith(str(here)))]


def test_two_demos_at_the_same_time_both_pass_and_leave_nothing(here: Path) -> None:
    with a_demo(here, "--fast") as one, a_demo(here, "--fast") as other:
        for process in (one, other):
            code, out, err = ended(process)
            assert (code, err) == (0, "")
            passed = PASSED.search(out)
            assert passed
            assert float(passed[1]) < 10
            assert len(ALIGNED.findall(out)) == 12
            assert re.search(r"loopring  unavailable +->  nothing\n", out)
            assert "123456789012.345678901234567891 POL\n" in out
            assert [line.split()[1] for line in out.partition("Next:\n")[2].splitlines()] == [
                "recipes",
                "init",
                "check",
                "run",
            ]
    assert leftovers(here) == []


def test_signals_end_it_in_the_middle_and_nothing_is_left(here: Path) -> None:
    code_by_signal = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
    with ExitStack() as demos:
        processes = {number: demos.enter_context(a_demo(here)) for number in code_by_signal}
        for number, process in processes.items():
            line_with(process, "deposit.pending")
            assert leftovers(here)
            process.send_signal(number)
            process.send_signal(number)  # pressing it twice loses nothing
        for number, process in processes.items():
            code, out, err = ended(process)
            assert (code, err) == (code_by_signal[number], "")
            assert "PASSED" not in out
    assert leftovers(here) == []


@pytest.mark.long
def test_with_keep_it_runs_on_after_the_verdict_until_a_signal_and_exits_with_0(here: Path) -> None:
    with a_demo(here, "--fast", "--keep", "--verbose") as process:
        line_with(process, "PASSED")
        with urllib.request.urlopen(line_with(process, "  http://127.0.0.1:").strip()) as page:
            assert b"<title>watcher</title>" in page.read()
        assert "accountId=10110" in line_with(process, "curl -H 'X-API-KEY: sandbox' 'http://127.0.0.1:")
        assert "LRC: pending_deposit +12.5" in line_with(process, "deposit.seen")
        assert line_with(process, "->") == "  treasury  ->  deposit.pending  12.5 LRC\n"
        process.send_signal(signal.SIGINT)
        code, _, err = ended(process)
    assert code == 0
    assert '"event":"poll.rejected"' in err
    assert '"event":"worker.stopped"' in err
    assert leftovers(here) == []


def test_a_worker_that_sends_everything_twice_fails_the_demo(here: Path) -> None:
    twice = """
from watcher.delivery.webhook import WebhookSink
once = WebhookSink.send
async def twice(self, *arguments):
    await once(self, *arguments)
    return await once(self, *arguments)
WebhookSink.send = twice
"""
    with a_demo(here, "--fast", code=twice) as process:
        code, out, _ = ended(process)
    assert code == 1
    assert "FAILED  12 changes made, 12 events verified; these promises were not kept:" in out
    assert out.count("reported more than once: ") == 12
    assert leftovers(here) == []


def test_a_machine_without_a_redis_server_gets_a_clear_message(here: Path) -> None:
    nowhere = """
from watcher.store import embedded
embedded.find_engine.__defaults__ = (None, "no_such_package")
"""
    with a_demo(here, "--fast", code=nowhere, PATH=str(here)) as process:
        code, _, err = ended(process)
    assert code == 78
    assert "needs a server program" in err
    assert leftovers(here) == []


@pytest.mark.long
def test_a_closed_pipe_ends_the_demo_quietly(here: Path) -> None:
    with a_demo(here, "--fast") as process:
        line_with(process, "account")
        assert process.stdout
        process.stdout.close()
        process.stdout = None
        code, _, err = ended(process)
    assert (code, err) == (141, "")
    assert leftovers(here) == []


@pytest.mark.long
def test_a_terminal_gets_colours_unless_no_color_is_set(here: Path) -> None:
    with on_a_terminal(here) as colourful, on_a_terminal(here, NO_COLOR="1") as plain:
        assert b"\x1b[32mdeposit.cleared\x1b[0m" in shown_at(colourful)
        shown = shown_at(plain)
        assert b"deposit.cleared" in shown
        assert b"\x1b" not in shown


def test_the_command_imports_nothing_heavy() -> None:
    code = "import sys; import watcher.commands.demo; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
