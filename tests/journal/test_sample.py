"""Samples for receivers: one of each type, valid, and never to be taken for real."""

import json

import pytest

from tests.support.events_schema import assert_valid
from watcher.amounts import to_atoms
from watcher.journal.notices import SAMPLE, sample
from watcher.schema import MODEL_BY_TYPE
from watcher.settings import CHANGE_EVENTS, SERVICE_EVENTS

NOW_MS = 1_795_175_095_846


def test_the_catalogue_has_every_type_that_a_subscription_may_ask_for() -> None:
    assert [*MODEL_BY_TYPE] == [*CHANGE_EVENTS, *SERVICE_EVENTS]


@pytest.mark.parametrize("type_", MODEL_BY_TYPE)
def test_a_sample_of_each_type_matches_the_catalogue_and_is_marked_as_a_sample(type_: str) -> None:
    event = sample(type_, "ops", nonce="1", now_ms=NOW_MS)
    body = event.to("ops").body
    assert_valid(body)
    emitted = json.loads(body)
    assert (emitted["type"], emitted["id"]) == (type_, event.id)
    assert (emitted["data"]["account"] or {"name": SAMPLE})["name"] == SAMPLE
    assert emitted["data"].get("sample", type_ == "subscription.ping")
    assert event.id != sample(type_, "ops", nonce="2", now_ms=NOW_MS).id


@pytest.mark.parametrize("type_", CHANGE_EVENTS)
def test_a_sample_of_a_change_adds_up_and_moves_what_its_type_says(type_: str) -> None:
    data = json.loads(sample(type_, "ops", nonce="1", now_ms=NOW_MS).to("ops").body)["data"]
    effect, before, after = data["effect"], data["before"], data["after"]
    assert all(to_atoms(before[field]) + int_of(effect[field]) == to_atoms(after[field]) for field in effect)
    field = {"deposit": "pending_deposit", "withdrawal": "pending_withdrawal"}.get(*[type_.split(".")[0]] * 2)
    is_more = type_.endswith(("pending", "increased"))
    assert effect[field] == (data["amount"] if is_more else f"-{data['amount']}")


def int_of(amount: str) -> int:
    return -to_atoms(amount[1:]) if amount.startswith("-") else to_atoms(amount)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="no type of the catalogue"):
        sample("deposit.lost", "ops", nonce="1", now_ms=NOW_MS)
