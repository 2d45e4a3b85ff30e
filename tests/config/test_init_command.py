import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from watcher.commands.check import command as check_command
from watcher.commands.init import command, example


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def init(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_it_writes_the_example_and_prints_the_next_commands() -> None:
    result = init()
    assert result.exit_code == 0
    assert Path("watcher.toml").read_text() == example()
    exports, check, run = result.stdout.splitlines()
    assert exports.startswith("export LOOPRING_API_KEY='your-key' OPS_SECRET=whsec_")
    assert (check, run) == ("watcher check", "watcher run")
    assert "watcher.toml" in result.stderr
    assert "For what needs no key: watcher init --provider ethereum" in result.stderr
    assert "no key" not in init("other.toml", "--provider", "ethereum").stderr


def test_the_commands_that_it_prints_work() -> None:
    """As a new user would: paste the first line into a shell, then check."""
    exports = init().stdout.splitlines()[0]
    program = f"{exports}; exec {sys.executable} -m watcher check"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("watcher.toml is good\n")


def test_each_run_makes_its_own_secret_and_writes_it_nowhere() -> None:
    secrets = {init("--force").stdout.splitlines()[0].rpartition("=whsec_")[2] for _ in range(5)}
    assert len(secrets) == 5
    assert "whsec_" not in "".join(
        line.split("#")[0] for line in Path("watcher.toml").read_text().splitlines()
    )


def test_it_refuses_to_overwrite_and_says_how() -> None:
    Path("watcher.toml").write_text("mine")
    result = init()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: watcher.toml is there already; --force replaces it\n"
    assert Path("watcher.toml").read_text() == "mine"
    assert init("--force").exit_code == 0
    assert Path("watcher.toml").read_text() == example()


def test_another_path_stands_in_the_commands_that_follow() -> None:
    result = init("my watcher.toml")
    assert result.stdout.splitlines()[1:] == [
        "watcher check --config 'my watcher.toml'",
        "watcher run --config 'my watcher.toml'",
    ]
    environ = {"LOOPRING_API_KEY": "k", "OPS_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    assert CliRunner(env=environ).invoke(check_command, ["--config", "my watcher.toml"]).exit_code == 0


def test_a_place_that_cannot_be_written_is_an_answer_and_no_traceback() -> None:
    result = init("nowhere/watcher.toml")
    assert result.exit_code == 1
    assert result.stderr == "Error: nowhere/watcher.toml cannot be written: No such file or directory\n"


def test_a_link_to_nowhere_is_not_followed() -> None:
    Path("watcher.toml").symlink_to("elsewhere.toml")
    assert init().exit_code == 1
    assert not Path("elsewhere.toml").exists()


def test_the_file_is_an_ordinary_one() -> None:
    init()
    assert stat.S_ISREG(Path("watcher.toml").stat().st_mode)
