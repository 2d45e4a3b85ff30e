"""What CI does is what README.md says, in an environment of its own, and it says what failed."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "run"

STAND_IN = """\
#!/bin/sh
# Stands for every program of the virtual environment: notes its call and ends as it is told.
echo "$(basename "$0") $*" >> "$NOTES"
pwd > "$NOTES.where"
[ "$(basename "$0") $*" = "$FAILS" ] && exit 42
exit 0
"""
PYTHON = """\
#!/bin/sh
# Stands for python3: makes the virtual environment.
echo "python3 $*" >> "$NOTES"
mkdir -p .venv/bin
for name in pip watcher python ruff mypy; do cp "$STAND_IN" ".venv/bin/$name"; done
"""
CALLS = [
    "python3 -m venv .venv",
    "pip install -q .",
    "watcher demo",
    "pip install -q .[dev]",
    "python -m pytest",
    "python -m pytest -n 2 -m (fault or slow) and not long",
    "ruff check",
    "ruff format --check",
    "mypy ",
]


def steps() -> list[str]:
    found = re.findall(r"^step (?:'([^']*)'|\"([^\"]*)\")$", SCRIPT.read_text(), re.MULTILINE)
    return [single or double for single, double in found]


def unquoted(command: str) -> str:
    return command.replace("'", "").replace('"', "")


def test_the_commands_of_the_readme_are_the_ones_that_ci_runs() -> None:
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    setting_up = steps()[:2]
    assert ["watcher demo" in setting_up[0], "pytest" in setting_up[1]] == [True, True]
    for command in setting_up:
        assert command in lines, f"README.md does not say: {command}"


class Checkout:
    """A repository of its own with the script in it, and stand-ins for the programs that it calls."""

    def __init__(self, folder: Path) -> None:
        self.root, self.notes, self._bin = folder / "checkout", folder / "notes", folder / "bin"
        (self.root / ".ci").mkdir(parents=True)
        (self.root / ".ci" / "run").write_bytes(SCRIPT.read_bytes())
        (self.root / ".gitignore").write_text(".venv/\n")
        (self.root / "gone.py").write_text("")
        self.git("init", "--quiet")
        self.git("add", "--all")
        (self.root / "gone.py").unlink()
        (self.root / "new.py").write_text("")
        self._bin.mkdir()
        (self._bin / "python3").write_text(PYTHON)
        (folder / "stand-in").write_text(STAND_IN)
        for program in (self._bin / "python3", folder / "stand-in"):
            program.chmod(0o755)

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout

    def ci(self, *, fails: str = "") -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "NOTES": str(self.notes),
            "STAND_IN": str(self.notes.parent / "stand-in"),
            "FAILS": fails,
        }
        command = ["bash", ".ci/run"]
        return subprocess.run(
            command, cwd=self.root, env=environ, capture_output=True, text=True, check=False, timeout=20
        )

    def calls(self) -> list[str]:
        return self.notes.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_every_step_runs_in_order_and_is_announced_with_its_time(checkout: Checkout) -> None:
    done = checkout.ci()
    assert (done.returncode, done.stderr) == (0, "")
    assert checkout.calls() == CALLS
    assert re.findall(r"^== (?!good|all good)(.*)$", done.stdout, re.MULTILINE) == steps()
    assert len(re.findall(r"^== good, \d+ s$", done.stdout, re.MULTILINE)) == len(steps())
    assert re.search(r"^== all good, \d+ s\n\Z", done.stdout, re.MULTILINE)


def test_nothing_is_left_in_the_checkout_or_beside_it(checkout: Checkout) -> None:
    before = checkout.git("status", "--short", "--ignored")
    checkout.ci()
    assert checkout.git("status", "--short", "--ignored") == before
    copy = Path(Path(f"{checkout.notes}.where").read_text().strip())
    assert copy.name != checkout.root.name
    assert not copy.exists()


@pytest.mark.parametrize("fails", [call for call in CALLS if not call.startswith("python3")])
def test_the_first_step_that_fails_ends_it_with_its_exit_code(checkout: Checkout, fails: str) -> None:
    done = checkout.ci(fails=fails)
    assert done.returncode == 42
    assert checkout.calls() == CALLS[: CALLS.index(fails) + 1]
    step = next(step for step in steps() if f".venv/bin/{fails.strip()}" in unquoted(step).split(" && "))
    assert re.search(rf"^== exit code 42 after \d+ s: {re.escape(step)}$", done.stdout, re.MULTILINE)
    assert "all good" not in done.stdout
