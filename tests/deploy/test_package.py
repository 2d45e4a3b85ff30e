"""The package has a name of its own, and every text says to install that one.

What is in the two packages, and that each runs in an empty environment, `.ci/run` tries: it needs an index.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLS = re.compile(r"\b(?:pip[3x]? install|uvx --from) (?:-\S+ )*(?P<what>'[^']+'|[\w./-]+)")


def installed_by_name(text: str) -> list[Requirement]:
    """What a text has its reader install; not what lies in a file or a folder."""
    stated = [found["what"].strip("'") for found in INSTALLS.finditer(text)]
    return [Requirement(what) for what in stated if "/" not in what and not what.startswith(".")]


def texts_for_users() -> Iterator[str]:
    for place in ("watcher", "deploy", ".ci", "README.md", "CHANGELOG.md"):
        for path in (ROOT / place, *(ROOT / place).rglob("*")):
            if path.is_file() and path.suffix not in (".pyc", ".webp", ".png"):
                yield path.read_text()


def test_the_package_is_not_the_one_that_is_called_watcher_on_pypi() -> None:
    assert PROJECT["name"] == "balance-watcher"
    assert PROJECT["scripts"] == {"watcher": "watcher.__main__:main"}


def test_every_install_command_of_a_text_is_found() -> None:
    text = "pip install -q --upgrade watcher, pip install 'watcher[ed25519]', pip install . or ../it.whl"
    assert [str(found) for found in installed_by_name(text)] == ["watcher", "watcher[ed25519]"]
    others = "pipx install watcher; uvx --from watcher watcher demo"
    assert [str(found) for found in installed_by_name(others)] == ["watcher", "watcher"]


def test_no_text_installs_the_other_project_of_that_name() -> None:
    stated = [requirement for text in texts_for_users() for requirement in installed_by_name(text)]
    assert {requirement.name for requirement in stated} == {"balance-watcher", "cryptography"}
    for requirement in stated:
        assert requirement.extras <= PROJECT["optional-dependencies"].keys()
    assert [text for text in texts_for_users() if re.search(r"(?<!balance-)\bwatcher\[[a-z]", text)] == []


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_the_package_names_its_python_versions(minor: int) -> None:
    assert f"Programming Language :: Python :: 3.{minor}" in PROJECT["classifiers"]
