"""Lines from people: logs for `watcher tail`, scripts for `watcher sandbox`, captured webhooks."""

import json
import math
from contextlib import suppress
from typing import Any
from unicodedata import category

import click
from hypothesis import example
from hypothesis import strategies as st

from tests.support.fuzzing import damaged, damaged_bytes, damaged_text, fuzz, json_values, texts
from tests.support.signed_webhooks import an_event
from watcher.commands.verify import _from_file, _hint, _problem
from watcher.observe.log import _as_json, _tidy
from watcher.observe.tail import Filter, as_json, harmless, parse, pretty
from watcher.printable import plain, printable
from watcher.receive import InvalidWebhook, Step, read_body
from watcher.receiver import Sequences
from watcher.sandbox.script import ScriptError, read_script
from watcher.sandbox.world import default_world

LINE: dict[str, Any] = {
    "timestamp": "2026-11-20T14:03:05.120Z",
    "level": "info",
    "event": "poll.finished",
    "account": "treasury",
    "duration_ms": 12,
    "exception": "Traceback\n  here",
}
SECRETS = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
FILTER = Filter("warning", events=("poll.*",), accounts=("t*",))
STEPS: list[dict[str, Any]] = [
    {"at": 1, "account": 10110, "asset": "LRC", "do": "deposit.seen", "amount": "12.5"},
    {"at": 2.5, "account": 10110, "asset": "LRC", "do": "deposit.cleared", "amount": "12.5", "split": 2},
    {"at": 3, "provider": "loopring", "do": "fault", "fault": "unavailable", "answers": 2},
    {"at": 9, "do": "repeat"},
]


def as_lines(steps: list[Any]) -> str:
    return "\n".join(map(json.dumps, steps))


STEP_NAMES = (*STEPS[0], *STEPS[1], *STEPS[2], "first", "lock", "total")


@example('{"timestamp":"t","level":"info","event":"e","x":1e999}')
@example('{"timestamp":"t","level":"info","event":"e","x":' + 992 * "[" + 992 * "]" + "}")
@fuzz(damaged(LINE, *LINE).map(json.dumps) | texts | damaged_text(json.dumps(LINE)))
def test_any_line_is_shown_without_control_characters(text: str) -> None:
    line = parse(text)
    assert is_harmless(harmless(text))
    if line is None:
        return
    FILTER.wants(line)
    assert all(map(is_harmless, pretty(line, color=False).split("\n")))
    assert is_harmless(as_json(line))
    assert json.loads(as_json(line), parse_constant=refuse) == line


@fuzz(json_values(), json_values())
def test_any_values_become_one_line_of_json(reason: Any, error: Any) -> None:
    fields = {"event": "poll.finished", "reason": reason, "exc_info": error}
    written = _as_json(_tidy(None, "info", fields))
    assert written.count(b"\n") == 1
    assert json.loads(written, parse_constant=refuse)["event"] == "poll.finished"


@fuzz(json_values() | st.binary() | st.dictionaries(st.integers() | st.none(), st.binary()))
def test_anything_can_be_made_plain(value: Any) -> None:
    assert json.dumps(plain(value)).isascii()
    assert is_harmless(printable(str(value)))


@example('{"at": 1, "do": "repeat", "\\u001b[2J\\n": 1}')
@fuzz(damaged(STEPS, *STEP_NAMES).map(as_lines) | damaged_text(as_lines(STEPS)) | texts)
def test_any_script_can_be_played_or_all_its_mistakes_are_reported(text: str) -> None:
    try:
        script = read_script(text, default_world())
    except ScriptError as mistakes:
        shown = str(mistakes).splitlines()
        assert all(line.startswith("script:") and is_harmless(line) for line in shown)
    else:
        assert all(step.at >= 0 for step in script.steps)


@fuzz(damaged(an_event(), "data", "account", "name", "sequence", "subscription"))
def test_any_event_is_taken_into_account(event: dict[str, Any]) -> None:
    sequences = Sequences()
    sequences.note(an_event())
    assert sequences.note(event) in (None, "gap", "late", "restart", "rewound")


@fuzz(
    st.binary()
    | damaged_bytes(json.dumps(an_event()).encode())
    | json_values().map(json.dumps).map(str.encode)
)
def test_any_body_is_an_event_or_refused(body: bytes) -> None:
    assert _hint(InvalidWebhook(Step.NO_MATCH, "none"), {}, body, SECRETS)
    with suppress(InvalidWebhook):
        assert isinstance(read_body(body), dict)


@fuzz(
    damaged_text("POST / HTTP/1.1\nwebhook-id: evt_1\nwebhook-timestamp: 17\n")
    | texts
    | json_values().map(json.dumps),
    st.binary(),
)
def test_any_captured_webhook_is_judged(text: str, body: bytes) -> None:
    try:
        headers = _from_file([text])
    except click.UsageError:
        return
    problem = _problem(headers, body, SECRETS, now=0, tolerance_s=math.inf)
    assert problem
    assert isinstance(_hint(problem, headers, body, SECRETS), str | None)


def is_harmless(text: str) -> bool:
    return all(letter.isprintable() or letter == "\t" or category(letter) == "Zs" for letter in text)


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
