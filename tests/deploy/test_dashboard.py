"""The dashboard shows metrics that exist, each somewhere, and fits on its grid."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from watcher.observe.metrics import ATTEMPT_OUTCOMES, METRICS, POLL_OUTCOMES

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json").read_text()
)
PANELS = DASHBOARD["panels"]
SHOWING = [panel for panel in PANELS if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in SHOWING for target in panel["targets"]]
OF_THE_PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
"""The metrics that prometheus-client exports for any process."""


def metrics_in(expression: str) -> set[str]:
    names = re.findall(r"\b(?:watcher|process)_[a-z_]+", expression)
    return {re.sub(r"_bucket$", "", name) for name in names}


def test_every_metric_that_is_shown_exists() -> None:
    shown = {name for expression in EXPRESSIONS for name in metrics_in(expression)}
    assert shown - OF_THE_PROCESS <= METRICS.keys()


def test_every_metric_is_shown() -> None:
    shown = {name for expression in EXPRESSIONS for name in metrics_in(expression)}
    assert METRICS.keys() - shown == set()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_uses_labels_that_exist_and_asks_about_the_job_that_was_chosen(expression: str) -> None:
    metrics = metrics_in(expression)
    known = {label for metric in metrics & METRICS.keys() for label in METRICS[metric].labels} | {"le"}
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert {*group.split(", ")} <= known
    for label, word in re.findall(r'(\w+)!?="([^"]*)"', expression):
        assert (label, word) == ("job", "$job") or word in {*POLL_OUTCOMES, *ATTEMPT_OUTCOMES}
    assert expression.count('job="$job"') == len(re.findall(r"\{", expression))
    assert expression.count("(") == expression.count(")")


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_counters_are_shown_as_rates_and_shared_values_are_not_summed(expression: str) -> None:
    for metric in metrics_in(expression) & METRICS.keys():
        if METRICS[metric].kind == "counter":
            assert re.search(rf"(?:rate|increase)\({metric}\{{", expression)
        if METRICS[metric].is_shared:
            assert re.search(rf"max(?: by \(\w+\))? ?\({metric}\{{", expression)


def test_panels_have_a_title_a_description_and_a_place_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert all(panel["title"] for panel in PANELS)
    assert all(panel["description"] and panel["datasource"]["uid"] == "${datasource}" for panel in SHOWING)
    for panel in PANELS:
        assert 0 <= panel["gridPos"]["x"] <= 24 - panel["gridPos"]["w"]
    assert [pair for pair in combinations(PANELS, 2) if _overlap(*(panel["gridPos"] for panel in pair))] == []


def test_it_asks_for_a_data_source_and_a_job_and_names_no_host() -> None:
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "job"]
    assert not re.findall(r"https?://", json.dumps(DASHBOARD))


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
        for at, size in (("x", "w"), ("y", "h"))
    )
