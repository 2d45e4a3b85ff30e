"""CI on GitHub runs what runs here: .ci/run, with each supported Python."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from watcher import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CI: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
ON = CI[True]  # YAML 1.1 reads `on` as a truth value
RELEASE = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_every_supported_python_is_tested() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    promised = {found[1] for line in classifiers if (found := re.search(r":: (3\.\d+)$", line))}
    assert promised == set(CI["jobs"]["test"]["strategy"]["matrix"]["python"])


def test_one_required_job_stands_for_all_that_run_the_script() -> None:
    test, required = CI["jobs"]["test"], CI["jobs"]["required"]
    assert test["steps"][-1]["run"].endswith(" .ci/run")
    assert required["needs"] == "test"
    assert required["if"] == "always()", "a job that is skipped counts as passed"


def test_the_newest_dependencies_are_tested_every_week() -> None:
    assert ON["schedule"] == [{"cron": "17 4 * * 1"}]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_have_no_write_access(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + "0" * 40))


def commands_of(job: str) -> list[str]:
    return [step["run"] for step in RELEASE["jobs"][job]["steps"] if "run" in step]


def test_only_a_version_tag_starts_a_release() -> None:
    assert RELEASE[True] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__), "a tag can name it"


def test_nothing_is_published_before_it_is_tested_packed_and_attested() -> None:
    needs = {name: job.get("needs") for name, job in RELEASE["jobs"].items()}
    assert needs == {
        "test": None,
        "pack": "test",
        "attest": "pack",
        "publish": "attest",
        "announce": "publish",
    }
    assert commands_of("test")[-1].endswith(" .ci/run")


def test_each_release_job_has_only_its_own_rights_and_no_stored_key() -> None:
    jobs = RELEASE["jobs"]
    assert {name: job["permissions"] for name, job in jobs.items() if "permissions" in job} == {
        "attest": {"attestations": "write", "id-token": "write"},
        "publish": {"id-token": "write"},
        "announce": {"contents": "write"},
    }
    assert jobs["publish"]["environment"] == "pypi"
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()


def test_what_is_released_was_packed_and_checked_as_ci_does() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    packed = commands_of("pack")
    for line in ("build --no-isolation", "twine check --strict", "cyclonedx-py environment"):
        assert line in script
        assert any(line in command for command in packed)
    (installed,) = (command for command in packed if command.startswith("python -m pip"))
    assert "--require-hashes" in installed


@pytest.mark.parametrize(
    ("heading", "is_released"),
    [
        ("## [0.2.0] - 2026-12-01", True),
        ("## [0.2.0] - unreleased", False),
        ("## [0.2.1] - 2026-12-01", False),
    ],
)
def test_a_tag_is_refused_unless_it_is_the_version_and_the_changelog_has_its_date(
    tmp_path: Path, heading: str, *, is_released: bool
) -> None:
    (judged,) = (command for command in commands_of("pack") if "CHANGELOG.md" in command)
    (tmp_path / "CHANGELOG.md").write_text(f"{heading}\n")
    (tmp_path / "watcher.py").write_text('__version__ = "0.2.0"\n')
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nexit 0\n")
    git.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    done = {
        tag: subprocess.run(
            ["bash", "-ec", judged],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_REF_NAME": tag, "GITHUB_SHA": "0"},
            check=False,
            timeout=20,
        ).returncode
        for tag in ("v0.2.0", "v0.2.1")
    }
    assert done == {"v0.2.0": 0 if is_released else 1, "v0.2.1": 1}


def test_the_changelog_begins_with_this_version() -> None:
    heading = re.search(r"^## \[(.*)\] - (unreleased|\d{4}-\d{2}-\d{2})$", CHANGELOG, re.MULTILINE)
    assert heading
    assert heading[1] == __version__


def test_the_supported_version_is_this_one_and_older_ones_point_to_the_upgrade() -> None:
    rows = re.findall(r"^\| (\d+\.\d+) \| (.*) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    (current, says), *before = rows
    assert (current, says) == (__version__.rpartition(".")[0], "yes")
    assert all("deploy/UPGRADE.md#" in says for _, says in before)
