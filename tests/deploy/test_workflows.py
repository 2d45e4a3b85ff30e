"""What runs in the forge's CI is what runs here: .ci/run, with each Python that the package promises."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CI: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
ON = CI[True]  # YAML 1.1 reads `on` as a truth value


def test_every_python_that_is_promised_is_tested() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    promised = {found[1] for line in classifiers if (found := re.search(r":: (3\.\d+)$", line))}
    assert promised == set(CI["jobs"]["test"]["strategy"]["matrix"]["python"])


def test_one_job_is_required_and_stands_for_all_that_call_the_script() -> None:
    test, required = CI["jobs"]["test"], CI["jobs"]["required"]
    assert test["steps"][-1]["run"].endswith(" .ci/run")
    assert required["needs"] == "test"
    assert required["if"] == "always()", "a job that is skipped counts as passed"


def test_the_newest_dependencies_are_tried_every_week() -> None:
    assert ON["schedule"] == [{"cron": "17 4 * * 1"}]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_action_can_change_under_us_and_none_may_write(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + "0" * 40))
