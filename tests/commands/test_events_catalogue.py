"""The published catalogue of events matches what is sent exactly, and is open for additions."""

import json
import re
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema

from tests.support.builders import a_balance, a_snapshot
from tests.support.events_schema import assert_valid
from tests.support.stories import MINUTE_MS, NOW_MS, STORY, WARNED, deliveries_of, ended, steps
from watcher.amounts import to_text
from watcher.journal.events import Origin
from watcher.journal.interest import Interest
from watcher.journal.notices import paused
from watcher.journal.step import go_stale
from watcher.providers.contract import ErrorClass
from watcher.schema import MODEL_BY_TYPE, Stale, openapi
from watcher.settings import CHANGE_EVENTS, SERVICE_EVENTS
from watcher.snapshot import Balance, Snapshot

EVERYTHING = WARNED.model_copy(update={"events": ("*",)})


def bodies(snapshots: tuple[Snapshot, ...]) -> list[bytes]:
    """The bodies that a subscription to everything gets."""
    made = steps(snapshots, subscriptions=(EVERYTHING,))
    origin = Origin("treasury", "loopring", made[-1].state.sequence, NOW_MS, NOW_MS + MINUTE_MS)
    interest, later = Interest({"ops": EVERYTHING}), NOW_MS + 100 * MINUTE_MS
    gone = go_stale(made[-1].state, origin, "gone", "no answer", interest=interest, version="v", now_ms=later)
    back = steps(snapshots[-1:], state=gone.state, at_ms=later + MINUTE_MS, subscriptions=(EVERYTHING,))
    queued = [delivery for step in (*made, gone, *back) for delivery in deliveries_of(step)]
    alert = paused("ops", "410 Gone", NOW_MS, now_ms=later).to("alerts").body
    return [*(delivery.body for delivery in queued), alert]


BODIES = bodies(STORY)


def edited(body: bytes, *path: str, to: Any) -> bytes:
    event = part = json.loads(body)
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = to
    return json.dumps(event).encode()


def a_body(type_: str) -> bytes:
    return next(body for body in BODIES if json.loads(body)["type"] == type_)


def test_the_catalogue_names_every_event() -> None:
    assert tuple(MODEL_BY_TYPE) == CHANGE_EVENTS + SERVICE_EVENTS
    assert tuple(openapi()["webhooks"]) == CHANGE_EVENTS + SERVICE_EVENTS


def test_events_that_are_sent_match_the_published_schema() -> None:
    assert {
        "account.baseline",
        "account.stale",
        "account.recovered",
        "threshold.crossed",
        "deposit.cleared",
    } <= {json.loads(body)["type"] for body in BODIES}
    for body in BODIES:
        assert_valid(body)


BALANCES = st.builds(
    lambda total, locked, deposit, withdrawal: a_balance(
        to_text(total),
        to_text(min(total, locked)),
        *((None, None) if not deposit else map(to_text, (deposit, withdrawal))),
    ),
    *[st.integers(0, 2**256 * 10**78)] * 4,
)


@settings(max_examples=50)
@given(st.lists(BALANCES, min_size=2, max_size=4))
def test_every_possible_change_matches_the_schema(balances: list[Balance]) -> None:
    for body in bodies(tuple(a_snapshot(ETH=balance) for balance in balances)):
        assert_valid(body)


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("id",), "evt.1"),
        (("id",), None),
        (("type",), "deposit.found"),
        (("timestamp",), "2026-11-20T14:03:05Z"),
        (("timestamp",), 1795175095846),
        (("data", "amount"), "1e3"),
        (("data", "amount"), "01"),
        (("data", "amount"), "1.0"),
        (("data", "amount"), "-0"),
        (("data", "amount"), "1\n"),
        (("data", "amount"), 1),
        (("data", "amount"), None),
        (("data", "sequence"), "1"),
        (("data", "sequence"), 1.5),
        (("data", "asset"), None),
        (("data", "asset", "decimals"), "18"),
        (("data", "account", "name"), None),
        (("data", "before", "available"), None),
        (("data", "effect", "total"), "+1"),
        (("data", "observed", "from"), None),
        (("subscription", "previous_sequence"), "7"),
        (("subscription",), None),
    ],
)
def test_any_other_spelling_is_refused_by_the_schema(path: tuple[str, ...], to: Any) -> None:
    with pytest.raises((ValidationError, AssertionError)):
        assert_valid(edited(a_body("total.increased"), *path, to=to))


@pytest.mark.parametrize("part", ["id", "type", "timestamp", "data", "subscription"])
def test_no_part_of_an_event_may_be_missing(part: str) -> None:
    event = json.loads(a_body("total.increased"))
    del event[part]
    with pytest.raises((ValidationError, KeyError)):
        assert_valid(json.dumps(event).encode())


def test_added_fields_are_no_mistake() -> None:
    for body in BODIES:
        assert_valid(edited(body, "new", to={"more": 1}))
        assert_valid(edited(body, "data", "new", to=None))
        assert_valid(edited(body, "subscription", "new", to=[1.5]))


def test_pending_fields_that_a_provider_lacks_are_null() -> None:
    before, after = (a_snapshot(MK=a_balance(total, "0", None, None)) for total in ("1", "2"))
    for body in bodies((before, after)):
        assert_valid(body)
    moved = next(body for body in bodies((before, after)) if b"total.increased" in body)
    assert json.loads(moved)["data"]["effect"]["pending_deposit"] is None


def test_the_document_is_the_schema_of_the_models() -> None:
    document = openapi()
    assert document["openapi"] == "3.1.0"
    _, theirs = models_json_schema(
        [(model, "validation") for model in MODEL_BY_TYPE.values()],
        ref_template="#/components/schemas/{model}",
    )
    assert without_titles(document["components"]["schemas"]) == without_titles(theirs["$defs"])


def without_titles(schema: Any) -> Any:
    if isinstance(schema, list):
        return [without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: without_titles(part) for name, part in schema.items() if name != "title"}


def test_every_schema_is_open_for_additions_and_every_reference_leads_somewhere() -> None:
    document = openapi()
    for name, schema in document["components"]["schemas"].items():
        assert schema["additionalProperties"] is True, name
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        found: Any = document
        for step in reference.split("/"):
            found = found[step]
        assert found


def test_each_webhook_says_what_it_means_and_what_an_answer_means() -> None:
    for operation in (webhook["post"] for webhook in openapi()["webhooks"].values()):
        assert operation["summary"].endswith(".")
        assert {"2XX", "410", "429", "default"} == set(operation["responses"])
        assert [header["$ref"].rpartition("/")[2] for header in operation["parameters"]] == [
            *("webhook-id", "webhook-timestamp", "webhook-signature", "watcher-attempt")
        ]


def test_every_error_class_of_a_stale_account_is_documented() -> None:
    said = Stale.model_fields["trouble"].description or ""
    assert all(trouble in said for trouble in get_args(ErrorClass))


def test_the_command_prints_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    done = ended(capsys, "schema", "events")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == openapi()
    assert ended(capsys, "schema", "all").code == 2
