"""What CI does is what README.md says, in an environment of its own and out of the packed source, and it says
what failed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.observe.browser import AXE_PACKAGE
from tests.support.nodes import ANVIL

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "run"

STAND_IN = """\
#!/bin/sh
# Stands for every program that is installed: records its call, and exits as configured.
call="${{0##*/}} $*"
echo "$call" >> {notes}/calls
IFS= read -r fails < {notes}/fails
[ "$call" = "$fails" ] && exit 42
case "$call" in
*sdist*) mkdir ../dist && tar -czf ../dist/packed.tar.gz --transform 's,^\\.,packed,' . ;;
*'install -q ../dist/'*) mkdir -p ../empty/lib/python3.11/site-packages/balance_watcher-1.dist-info/licenses
    cp -r watcher ../empty/lib/python3.11/site-packages
    cp LICENSE ../empty/lib/python3.11/site-packages/balance_watcher-1.dist-info/licenses ;;
"mypy ") pwd > {notes}/where; env > {notes}/environ ;;
*wheel*) touch ../dist/balance_watcher-1.whl ;;
esac
exit 0
"""
PYTHON = """\
#!/bin/sh
# Stands for python3: makes a virtual environment.
echo "python3 $*" >> {notes}/calls
mkdir -p "$3/bin"
for name in pip watcher python ruff mypy hadolint zizmor twine cyclonedx-py; do
    cp {notes}/stand-in "$3/bin/$name"
done
"""
APT_GET = """\
#!/bin/sh
# Stands for apt-get: what it is asked to install is there afterwards.
echo "apt-get $*" >> {notes}/calls
[ "$1" = install ] || exit 0
for program in {tools}; do ln -sf /bin/true {bin}/$program; done
"""
ANVIL_CALL = f"npm install --silent --no-audit --no-fund --prefix ../anvil {ANVIL}"
AXE_CALL = f"npm install --silent --no-audit --no-fund --prefix ../axe {AXE_PACKAGE}"
CALLS = [
    ANVIL_CALL,
    AXE_CALL,
    "python3 -m venv ../pack",
    "pip install -q --require-hashes -r deploy/requirements-build.txt",
    "pip install -q --require-hashes -r deploy/requirements-release.txt",
    "python -m build --no-isolation --sdist --outdir ../dist .",
    "python3 -m venv .venv",
    "pip install -q .",
    "watcher demo",
    "pip install -q .[dev]",
    "python -m pytest",
    "pip install -q .[exchange]",
    "python -m pytest -n 3 -m (fault or slow) and not long",
    "ruff check",
    "ruff format --check",
    "mypy ",
    "hadolint deploy/Dockerfile",
    "zizmor --quiet --offline .github/workflows",
    "python -m build --no-isolation --wheel --outdir ../dist .",
    "twine check --strict ../dist/balance_watcher-1.whl ../dist/packed.tar.gz",
    "python3 -m venv ../empty",
    "pip install -q ../dist/balance_watcher-1.whl",
    "watcher demo --fast",
    "cyclonedx-py environment -o ../sbom.json ../empty/bin/python",
    "pip install -q balance-watcher[ed25519]",
    "watcher secret new --ed25519",
]
FAILING = [call for call in CALLS if not call.startswith("python3")]
FAILING_BY_DEFAULT = (FAILING[0], "python -m pytest", FAILING[-1])
THEIRS = (
    *(
        "REDIS_URL",
        "REDIS_URL_FILE",
        "LOG_LEVEL_FILE",
        "WATCHER_CONFIG",
        "WATCHER_HTTP_TOKEN",
        "NOTIFY_SOCKET",
    ),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "PYTEST_ADDOPTS", "VIRTUAL_ENV", "MYPYPATH"),
    *("LANG", "LC_ALL", "COLUMNS", "TERM", "NO_COLOR"),
)
NEEDED = (
    *(
        "bash",
        "cmp",
        "cp",
        "diff",
        "dirname",
        "env",
        "git",
        "gzip",
        "id",
        "ln",
        "mkdir",
        "mktemp",
        "rm",
        "sh",
    ),
    *("tar", "touch"),
)


def steps() -> list[str]:
    found = re.findall(r"^step (?:'([^\n]*)'|\"([^\"]*)\")$", SCRIPT.read_text(), re.MULTILINE)
    return [single or double for single, double in found]


def setting_up() -> list[str]:
    """The two steps that README.md shows."""
    return [step for step in steps() if step.startswith(("python3 -m venv .venv", ".venv/bin/pip"))][:2]


def packages_by_tool() -> dict[str, str]:
    (listed,) = re.findall(r"^tools=\(\n(.*?)\n\)$", SCRIPT.read_text(), re.MULTILINE | re.DOTALL)
    return dict(pair.split("=") for pair in listed.split())


def test_the_commands_of_the_readme_are_the_ones_that_ci_runs() -> None:
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    demo, tests = setting_up()
    assert ["watcher demo" in demo, "pytest" in tests] == [True, True]
    for command in (demo, tests):
        assert command in lines, f"README.md does not say: {command}"


def test_every_program_that_a_test_looks_for_is_installed_by_ci() -> None:
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    looked_for = {name for text in texts for name in re.findall(r'shutil\.which\("([\w-]+)"\)', text)}
    assert {"redis-server", "chromium", "promtool"} < looked_for
    another_name = {"chromium-browser"}
    of_npm = {"anvil"}
    assert looked_for - another_name - of_npm | {"npm"} == packages_by_tool().keys()


class Checkout:
    """A repository of its own with the script in it, and stand-ins for the programs that it calls."""

    def __init__(self, folder: Path) -> None:
        self.root, self.notes, self._bin = folder / "checkout", folder / "notes", folder / "bin"
        for made in (self.root / ".ci", self.root / "watcher", self.notes, self._bin):
            made.mkdir(parents=True)
        (self.root / ".ci" / "run").write_bytes(SCRIPT.read_bytes())
        (self.root / ".gitignore").write_text(".venv/\n")
        for name in ("gone.py", "LICENSE", "watcher/code.py"):
            (self.root / name).write_text("")
        self.git("init", "--quiet")
        self.git("add", "--all")
        (self.root / "gone.py").unlink()
        (self.root / "new.py").write_text("")
        self.program("python3", PYTHON.format(notes=self.notes))
        self.program("stand-in", STAND_IN.format(notes=self.notes), self.notes)
        for name in NEEDED:
            (self._bin / name).symlink_to(shutil.which(name) or name)
        for name in packages_by_tool():
            self.program(name, "")
        self.program("npm", STAND_IN.format(notes=self.notes))

    def program(self, name: str, text: str, folder: Path | None = None) -> None:
        path = (folder or self._bin) / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def without(self, *tools: str, root: bool = True) -> None:
        """Let these be missing, on a Debian where apt-get would bring them."""
        for tool in tools:
            (self._bin / tool).unlink()
        self.program("apt-get", APT_GET.format(notes=self.notes, bin=self._bin, tools=" ".join(tools)))
        self.program("id", f"#!/bin/sh\necho {0 if root else 1000}\n")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout

    def ci(self, *, fails: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        (self.notes / "fails").write_text(f"{fails}\n")
        return subprocess.run(
            ["bash", ".ci/run"],
            cwd=self.root,
            env={"PATH": str(self._bin), **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )

    def calls(self) -> list[str]:
        return self.noted("calls")

    def noted(self, what: str) -> list[str]:
        return (self.notes / what).read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_every_step_runs_in_order_and_prints_its_time(checkout: Checkout) -> None:
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
    (where,) = checkout.noted("where")
    assert Path(where).name == "source"
    assert not Path(where).parent.exists()


@pytest.mark.parametrize(
    "fails",
    [pytest.param(call, marks=() if call in FAILING_BY_DEFAULT else pytest.mark.slow) for call in FAILING],
)
def test_the_first_step_that_fails_ends_it_with_its_exit_code(checkout: Checkout, fails: str) -> None:
    done = checkout.ci(fails=fails)
    assert done.returncode == 42
    assert checkout.calls() == CALLS[: CALLS.index(fails) + 1]
    announced = re.findall(r"^== (?!good)(.*)$", done.stdout, re.MULTILINE)
    assert re.fullmatch(rf"exit code 42 after \d+ s: {re.escape(announced[-2])}", announced[-1])


def test_no_variable_of_the_caller_changes_what_is_tested(checkout: Checkout) -> None:
    theirs = dict.fromkeys(THEIRS, "theirs")
    checkout.ci(PIP_INDEX_URL="an index", https_proxy="a proxy", **theirs)
    seen = dict(line.split("=", 1) for line in checkout.noted("environ"))
    assert seen.keys() & theirs.keys() == {"LANG"}
    assert (seen["LANG"], seen["CI_ALL_TOOLS"]) == ("C.UTF-8", "1")
    assert (seen["PIP_INDEX_URL"], seen["https_proxy"]) == ("an index", "a proxy")


def test_only_missing_packages_are_installed(checkout: Checkout) -> None:
    checkout.without("chromium", "cc")
    assert checkout.ci().returncode == 0
    assert checkout.calls() == [
        "apt-get update -qq",
        "apt-get install -qq --yes --no-install-recommends gcc libc6-dev chromium",
        *CALLS,
    ]


def test_a_user_who_may_not_install_sees_what_to_install(checkout: Checkout) -> None:
    checkout.without("redis-server", "lnav", root=False)
    done = checkout.ci()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "The tests need more programs. As root, on Debian: apt-get install lnav redis-server\n"
    )
    assert not (checkout.notes / "calls").exists()


def test_with_a_docker_daemon_the_image_is_built_and_tried(checkout: Checkout) -> None:
    assert "The image is not built: no Docker daemon answers here." in checkout.ci().stdout
    checkout.program("docker", STAND_IN.format(notes=checkout.notes))
    (checkout.notes / "calls").unlink()
    assert checkout.ci().returncode == 0
    assert [call for call in checkout.calls() if call.startswith("docker")] == [
        "docker info",
        "docker build --quiet --file deploy/Dockerfile --tag balance-watcher:ci .",
        "docker run --rm --init balance-watcher:ci demo --fast",
    ]
    (checkout.notes / "calls").unlink()
    assert checkout.ci(fails="docker info").returncode == 0
    assert [call for call in checkout.calls() if call.startswith("docker")] == ["docker info"]


def test_a_slow_demo_is_tried_once_more_and_then_fails(checkout: Checkout) -> None:
    script = checkout.root / ".ci" / "run"
    script.write_text(script.read_text().replace("most_s=30", "most_s=-1"))
    done = checkout.ci()
    assert (done.returncode, checkout.calls().count("watcher demo")) == (1, 2)
    assert re.search(r"^The demo came to its verdict after \d s, which is more than -1\.$", done.stdout, re.M)


def test_a_file_that_the_packed_source_lacks_is_named(checkout: Checkout) -> None:
    stand_in = STAND_IN.replace("--transform", "--exclude LICENSE --transform")
    checkout.program("stand-in", stand_in.format(notes=checkout.notes), checkout.notes)
    done = checkout.ci()
    assert done.returncode == 1
    assert "Only in .: LICENSE" in done.stdout


TESTS = """\
import pytest

def test_that_skips():
    pytest.skip("no such program")

@pytest.mark.skipif(True, reason="no such program")
def test_that_is_skipped(): ...

@pytest.mark.may_skip
def test_that_may_skip():
    pytest.skip("newer than what is pinned")

@pytest.mark.xfail
def test_that_is_known_to_fail():
    assert False
"""


@pytest.mark.parametrize(
    ("environ", "said"),
    [({}, "3 skipped, 1 xfailed"), ({"CI_ALL_TOOLS": "1"}, "1 failed, 1 skipped, 1 xfailed, 1 error")],
)
def test_a_test_that_skips_fails_where_every_tool_has_been_installed(
    tmp_path: Path, environ: dict[str, str], said: str
) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-n",
        "0",
        "-p",
        "tests.conftest",
    ]
    done = subprocess.run(
        [*command, f"--rootdir={tmp_path}", str(tmp_path / "test_it.py")],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "CI_ALL_TOOLS"} | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert said in done.stdout, done.stdout
