"""Commands that need root, a container engine or a cluster: read as far as that goes without one.

Refuses a program that it has no reason not to run, and a file that is neither in the repository nor made by
the reader nor known to the unit, the image or the configuration as the place where something belongs.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.docs.blocks import ROOT, commands
from watcher.environment import Environment

DEPLOY = ROOT / "deploy"
WHY_NOT_RUN = {
    "sudo": "needs root and the user that useradd makes; what it runs is run as part of `by hand`",
    "docker": "needs a container engine",
    "kubectl": "needs a cluster; what it would apply is built by tests/deploy/test_kubernetes.py",
    "systemctl": "needs systemd as process 1; the unit is verified by tests/deploy/test_service.py",
    "useradd": "needs root, and changes the machine",
    "install": "needs root and the group that useradd makes",
    "python3": "makes a virtual environment that the next line fills",
    "/opt/watcher/bin/pip": "needs a package index",
    "uv": "needs a package index; what it made is looked at by tests/deploy/test_requirements.py",
    "watcher": "needs accounts of the API; tests/commands/test_commands_on_api_entries.py exports them",
    "echo": "writes for the program behind it",
}

_NAMES_BEFORE_HELP = {"docker": 1, "kubectl": 3, "useradd": 0}
_CHECKOUT = "/srv/watcher"
_ELSEWHERE = {
    "/etc/watcher/credentials.env",
    "/usr/sbin/nologin",
    "/opt/watcher",
    "/etc/watcher/credentials",
    "/etc/systemd/system/watcher.service",
}
_PATH = re.compile(r"^/?[\w.$-]+(/[\w.$-]*)+$|^[\w-]+\.(toml|env|yaml|txt|service)$")


def assert_a_platform_takes_it(text: str) -> None:
    for words in commands(text):
        assert words[0] in WHY_NOT_RUN, f"neither run nor known: {words}"
        for path in paths(words):
            assert is_known(path), f"no such file, and nothing makes it: {path}"
        _assert_its_own_help_knows(words)


def paths(words: list[str]) -> Iterator[str]:
    """What looks like a path among the arguments of a command, mounted ones included."""
    for word in words[1:]:
        for part in word.rpartition("=")[2].split(":"):
            if _PATH.match(part):
                yield part


def is_known(path: str) -> bool:
    if path.startswith(_CHECKOUT):
        return Path(path.replace(_CHECKOUT, str(ROOT), 1)).exists()
    if path.startswith("/"):
        places = {str(place) for place in Environment.PLACES} | _ELSEWHERE | {"/tmp", "/var/lib/watcher"}
        return path in places
    kind, _, name = path.partition("/")
    if kind == "deployment":
        return f"\n  name: {name}\n" in (DEPLOY / "kubernetes" / "deployment.yaml").read_text()
    own = path.removeprefix("$PWD/")
    ignored = (DEPLOY / ".gitignore").read_text().split()
    return (DEPLOY / own).exists() or (ROOT / own).exists() or own in ignored or f"{own}/" in ignored


def _assert_its_own_help_knows(words: list[str]) -> None:
    """Where the program is there, compare the options with what it says that it has."""
    program, *rest = words
    if program not in _NAMES_BEFORE_HELP or not shutil.which(program) or rest[0] == "compose":
        return
    names = [word for word in rest if not word.startswith("-")][: _NAMES_BEFORE_HELP[program]]
    asked = [program, *names, "--help"]
    stated = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30).stdout
    for option in (word.partition("=")[0] for word in rest if word.startswith("--")):
        assert re.search(rf"{option}\b", stated), f"{asked} does not know {option}"
