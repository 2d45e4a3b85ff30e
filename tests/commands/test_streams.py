"""Whatever state the standard streams are in, every command ends with the right exit code."""

import itertools
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.program import COMMAND, environment
from watcher.cli import COMMANDS

CLOSED = [
    " ".join(streams)
    for count in (1, 2, 3)
    for streams in itertools.combinations(("<&-", ">&-", "2>&-"), count)
]
FULL = (">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full")
NO_LOCALES = (
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX"},
    {"LC_ALL": "xx_YY.UTF-8"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)
GOOD = """
[redis]
data_dir = "state"
[providers.loopring]
base_url = "http://127.0.0.1:9"
api_key = "k"
[[accounts]]
name = "a"
provider = "loopring"
account_id = 1
"""
ODD = "金庫-é"
"""A name outside ASCII: of a directory, say."""
ONCE = {
    "demo": ["demo", "--fast"],
    "run": ["run", "--once"],
    "health": ["health", "--file", "nothing"],
    "sandbox": ["sandbox", "--script", "nothing"],
    "listen": ["listen", "--port", "1", "--host", "192.0.2.1"],
    "verify": ["verify", "-", "--header", "webhook-id: é"],
    "poll": ["poll", "é"],
    "ping": ["ping", "é"],
    "resend": ["resend", "é"],
    "explain": ["explain", "nothing", "nothing"],
    "schema": ["schema", "events"],
    "secret": ["secret", "new"],
}
"""What each command is called with so that it comes to its end; all others are called as they are."""


def ended(place: Path, arguments: Sequence[str], redirection: str, **env: str) -> tuple[int, str]:
    """Run a command behind a shell that closes or redirects its streams: its exit code, and what it said."""
    if not (place / "watcher.toml").exists():
        (place / "watcher.toml").write_text(GOOD)
    settings = [f"{name}={value}" for name, value in env.items()]  # not for the shell: it says what it thinks
    done = subprocess.run(
        ["/bin/bash", "-c", f'"$@" {redirection}', "bash", "env", *settings, *COMMAND, *arguments],
        cwd=place,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=40,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode(errors="surrogateescape")


@pytest.mark.parametrize("closed", [CLOSED[1], CLOSED[-1]])
def test_a_closed_stream_loses_its_own_output_and_nothing_else(tmp_path: Path, closed: str) -> None:
    code, said = ended(tmp_path, ["check"], closed)
    is_told = "2>&-" not in closed
    if ">&-" in closed.split():
        assert code == 1
        assert said.endswith("watcher: cannot write to stdout: Bad file descriptor\n" if is_told else "")
    else:
        assert code == 0
    assert "Traceback" not in said


@pytest.mark.parametrize("full", FULL)
def test_a_full_disk_is_no_bug(tmp_path: Path, full: str) -> None:
    code, said = ended(tmp_path, ["check"], full)
    assert code == (0 if full == FULL[1] else 1)
    if full == FULL[0]:
        assert said.splitlines()[-1] == "watcher: cannot write to stdout: No space left on device"


def test_a_commands_exit_code_wins_over_that_of_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "watcher.toml").write_text("[[accounts]]\nname = 1\n")
    for redirection in (">/dev/full", "2>/dev/full", ">&- 2>&-"):
        assert ended(tmp_path, ["check"], redirection)[0] == 78


def test_a_closed_stdin_is_an_empty_one(tmp_path: Path) -> None:
    assert ended(tmp_path, ["tail"], "<&-") == (0, "")


@pytest.mark.parametrize(
    "env", [*(pytest.param(env, marks=pytest.mark.slow) for env in NO_LOCALES[:-1]), NO_LOCALES[-1]], ids=str
)
def test_no_locale_makes_a_name_unprintable_or_breaks_json(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / ODD).mkdir()
    (tmp_path / ODD / "watcher.toml").write_text('"nöpe" = 1\n', "utf-8")
    for arguments in (("check", "--config", f"{ODD}/watcher.toml"), (ODD,), ("tail", f"{ODD}/watcher.toml")):
        code, said = ended(tmp_path, arguments, "", **env)
        assert code in (0, 2, 78)
        assert "Traceback" not in said
        assert said
    _, said = ended(tmp_path, ["check", "--json", "--config", f"{ODD}/watcher.toml"], "2>/dev/null", **env)
    assert {json.loads(line)["line"] for line in said.splitlines()} == {1}


def test_a_non_blocking_pipe_gets_everything(tmp_path: Path) -> None:
    program = (
        "import os; os.set_blocking(1, False)\n"
        "from watcher import streams; streams.fix()\n"
        "for _ in range(20_000): print('x' * 99)\n"
        "import sys; sys.stdout.flush()"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        ["/bin/bash", "-c", f"{COMMAND[0]} program.py | (sleep 0.3; wc -c)"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=40,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == ([b"2000000"], b"")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "redirection",
    [">&-", FULL[0], *(pytest.param(more, marks=pytest.mark.long) for more in (CLOSED[-1], FULL[1]))],
)
def test_no_broken_stream_is_a_bug_of_any_command(tmp_path: Path, redirection: str) -> None:
    for name in COMMANDS:
        code, said = ended(tmp_path, ONCE.get(name, [name]), redirection)
        assert code in (0, 1, 2, 69, 78), (name, code, said)
        assert "Traceback" not in said, (name, said)
        assert "watcher: bug" not in said, (name, said)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("env", NO_LOCALES[-3::2], ids=str)
def test_no_locale_is_a_bug_of_any_command(tmp_path: Path, env: dict[str, str]) -> None:
    for name in COMMANDS:
        code, said = ended(tmp_path, [*ONCE.get(name, [name]), f"{ODD}\udcff"], "", **env)
        assert code in (0, 1, 2, 69, 78), (name, code, said)
        assert "Traceback" not in said, (name, said)
