"""The worked sequences: exact events, order, amounts, effects, before and after."""

import json
from pathlib import Path
from typing import Any

import pytest

from watcher.journal.explain import Vector, explain

SCENARIOS = json.loads((Path(__file__).parents[1] / "data" / "journal_scenarios.json").read_bytes())
SETTLE_POLLS = 2


def name_of(scenario: dict[str, Any]) -> str:
    return f"{scenario['name']} ({scenario['withdrawals']})"


def emitted_by_the_journal(scenario: dict[str, Any]) -> list[list[dict[str, Any]]]:
    baseline, *later = (Vector(*snapshot) for snapshot in scenario["snapshots"])
    published, confirmation_polls, emitted = baseline, 0, []
    for seen in later:
        explanation = explain(
            published,
            seen,
            confirmation_polls=confirmation_polls,
            settle_polls=SETTLE_POLLS,
            withdrawals=scenario["withdrawals"],
        )
        published, confirmation_polls = explanation.published, explanation.confirmation_polls
        emitted.append([as_in_the_file(change._asdict()) for change in explanation.changes])
    return emitted


def as_in_the_file(change: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in change.items()}


@pytest.mark.parametrize("scenario", SCENARIOS["cases"], ids=name_of)
def test_the_journal_emits_exactly_what_the_scenario_says(scenario: dict[str, Any]) -> None:
    assert emitted_by_the_journal(scenario) == scenario["emitted"]


def test_all_scenarios_are_here_with_our_fields_in_our_order() -> None:
    assert len(SCENARIOS["cases"]) == len(set(map(name_of, SCENARIOS["cases"]))) == 224
    assert tuple(SCENARIOS["fields"]) == Vector._fields
