"""The lists of pinned packages: everything needed, each by hash, and the image installs no other."""

import re
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
RUNTIME, BUILD, RELEASE = (
    ROOT / "deploy" / f"requirements{which}.txt" for which in ("", "-build", "-release")
)
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[0-9a-z.]+)(?: ; (?P<marker>[^\\]+?))?"
    r"(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)


def locked(path: Path) -> dict[str, re.Match[str]]:
    return {found["name"]: found for found in LOCKED.finditer(path.read_text())}


def asked_for(path: Path) -> list[Requirement]:
    """What pyproject.toml asks for: to run, with ed25519, to build, or to make and check a release."""
    project = PROJECT["project"]
    texts_by_path = {
        RUNTIME: [*project["dependencies"], *project["optional-dependencies"]["ed25519"]],
        BUILD: PROJECT["build-system"]["requires"],
        RELEASE: PROJECT["dependency-groups"]["release"],
    }
    return [Requirement(text) for text in texts_by_path[path]]


every_list = pytest.mark.parametrize("path", [RUNTIME, BUILD, RELEASE], ids=lambda path: path.stem)


@every_list
def test_the_lists_hold_only_pinned_versions_with_hashes(path: Path) -> None:
    assert LOCKED.sub("", path.read_text()) == "", "no index, no host, nothing without a hash"
    assert all(found["marker"] is None or Marker(found["marker"]) for found in locked(path).values())


@every_list
def test_every_dependency_is_pinned_within_its_range(path: Path) -> None:
    pinned = locked(path)
    for wanted in asked_for(path):
        assert pinned[canonicalize_name(wanted.name)]["version"] in wanted.specifier


def needed_by(name: str) -> set[str]:
    """What a pinned package needs here; skips if this version is not installed."""
    pin = locked(RUNTIME)[name]
    if pin["marker"] and not Marker(pin["marker"]).evaluate():
        pytest.skip(f"{name} is not for this machine: {pin['marker']}")
    if version(name) != pin["version"]:
        pytest.skip(f"{name} {version(name)} is installed, and {pin['version']} is pinned")
    below = [Requirement(text) for text in requires(name) or ()]
    return {
        canonicalize_name(each.name)
        for each in below
        if not each.marker or each.marker.evaluate({"extra": ""})
    }


@pytest.mark.may_skip
@pytest.mark.parametrize("name", locked(RUNTIME))
def test_dependencies_of_pinned_packages_are_pinned_too(name: str) -> None:
    assert needed_by(name) <= locked(RUNTIME).keys()


@pytest.mark.may_skip
def test_no_unneeded_package_is_pinned() -> None:
    todo: set[str] = {canonicalize_name(wanted.name) for wanted in asked_for(RUNTIME)}
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= needed_by(name) - seen
    pinned = locked(RUNTIME).items()
    here = {name for name, pin in pinned if not pin["marker"] or Marker(pin["marker"]).evaluate()}
    assert here - seen == set(), f"nothing needs these (Python {sys.version})"


def test_release_tools_and_build_tools_can_be_installed_together() -> None:
    versions = [{name: pin["version"] for name, pin in locked(path).items()} for path in (BUILD, RELEASE)]
    both = versions[0].keys() & versions[1].keys()
    assert {name: versions[0][name] for name in both} == {name: versions[1][name] for name in both}


def test_compiled_packages_have_hashes_for_many_machines() -> None:
    # Two Pythons, two libcs, two processors: a package resolved for this machine alone has one wheel.
    for name in ("aiohttp", "hiredis", "orjson", "pydantic-core", "uvloop", "pycares", "yarl"):
        assert locked(RUNTIME)[name]["hashes"].count("sha256") > 20


def test_the_image_installs_by_hash_and_nothing_beyond() -> None:
    installs = re.findall(r"pip (?:--python \S+ )?(install|wheel) ([^&\n]*)", DOCKERFILE)
    assert len(installs) == 4
    for _, arguments in installs:
        assert "--require-hashes" in arguments or "--no-deps" in arguments
        assert "--require-hashes" in arguments or "--no-index" in arguments
    for path in (RUNTIME, BUILD):
        assert f"--require-hashes --requirement deploy/{path.name}" in re.sub(" +", " ", DOCKERFILE)


def test_the_project_supports_the_python_that_the_lists_are_for() -> None:
    assert SpecifierSet(PROJECT["project"]["requires-python"]) == SpecifierSet(">=3.11")
