"""Log lines are found behind every platform's prefix, shown to people, and filtered."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.observe.tail import Filter, as_json, harmless, joined, lines_of, parse, pretty

LINE = '{"timestamp":"2026-11-20T14:03:05.120Z","level":"info","event":"poll.finished","account":"treasury"}'


def a_line(event: str = "poll.finished", level: str = "info", **fields: Any) -> dict[str, Any]:
    return {"timestamp": "2026-11-20T14:03:05.120Z", "level": level, "event": event, **fields}


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "2026-11-20T14:03:05.120456+00:00 app[worker.1]: ",  # heroku
        "worker-1  | ",  # docker compose
        "\x1b[36mworker-1  | \x1b[0m",  # the same, on a terminal
        "2026-11-20T14:03:05.120456789Z ",  # docker logs --timestamps, kubectl --timestamps
        "[pod/watcher-7d9f-abcde/watcher] ",  # kubectl logs --prefix
        "watcher-7d9f-abcde watcher ",  # stern
        "2026-11-20T14:03:05.120456789Z stdout F ",  # a node's container log
        "Nov 20 14:03:05 host watcher[123]: ",  # journalctl
        "14:03:05 worker.1 | ",  # foreman, honcho
        '{"a": 1} ',
    ],
)
def test_a_watcher_line_is_found_behind_the_prefix_of_a_platform(prefix: str) -> None:
    assert parse(prefix + LINE) == a_line(account="treasury")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Traceback (most recent call last):",
        "GET /livez 200",
        '{"message": "of another program"}',
        '{"timestamp":"2026-11-20T14:03:05Z","level":30,"event":"x"}',
        LINE[:-1],
        LINE + " and more",
        LINE.replace('"treasury"', "NaN"),
        '{"timestamp":' + "[" * 100_000,
        '["timestamp","level","event"]',
    ],
)
def test_every_other_line_is_foreign(text: str) -> None:
    assert parse(text) is None


ENVELOPES = {
    "journalctl -o json": {"__REALTIME_TIMESTAMP": "1795183385120", "PRIORITY": "6", "MESSAGE": LINE},
    "journalctl, as bytes": {"MESSAGE": list(LINE.encode())},
    "docker json-file": {"log": LINE + "\n", "stream": "stdout", "time": "2026-11-20T14:03:05.121Z"},
    "logcli -o jsonl": {"labels": {"app": "watcher"}, "line": LINE, "timestamp": "2026-11-20T14:03:05.121Z"},
    "gcloud textPayload": {"insertId": "1", "textPayload": LINE, "timestamp": "2026-11-20T14:03:05.121Z"},
    "gcloud jsonPayload": {"insertId": "1", "jsonPayload": a_line(account="treasury"), "severity": "INFO"},
    "gcloud jsonPayload, its time outside": {
        "timestamp": "2026-11-20T14:03:05.120Z",
        "jsonPayload": {"account": "treasury", "event": "poll.finished", "level": "info"},
    },
    "vector": {"timestamp": "2026-11-20T14:03:05.121Z", "message": LINE, "host": "a"},
    "elastic": {"_index": "logs", "_source": {"@timestamp": "x", "message": LINE}},
    "docker around CRI": {"log": f"2026-11-20T14:03:05.120456789Z stdout F {LINE}\n"},
    "docker around journald": {"log": json.dumps({"MESSAGE": LINE})},
}


@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=ENVELOPES)
@pytest.mark.parametrize("prefix", ["", "web-1  | ", "2026-11-20T14:03:05.120456789Z stderr F "])
def test_a_watcher_line_is_found_in_the_json_of_a_platform(envelope: dict[str, Any], prefix: str) -> None:
    assert parse(prefix + json.dumps(envelope)) == a_line(account="treasury")


@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=ENVELOPES)
@pytest.mark.parametrize("indent", [2, "\t"])
def test_a_multi_line_envelope_becomes_one_line(envelope: dict[str, Any], indent: int | str) -> None:
    texts = json.dumps([envelope, envelope], indent=indent).splitlines()
    assert [parse(text) for text in joined(texts)] == [
        None,
        a_line(account="treasury"),
        a_line(account="treasury"),
        None,
    ]
    (alone,) = joined(json.dumps(envelope, indent=indent).splitlines())
    assert parse(alone) == a_line(account="treasury")


@pytest.mark.parametrize(
    "texts",
    [
        ["{", '  "a": 1', "}"],
        ["{", LINE, "}"],
        ["{"],
        ["{", "{", "  {", "}"],
        ["{", *["  x"] * 5000],
        ["server {", "  listen 80;", "}"],
    ],
)
def test_foreign_lines_are_neither_merged_nor_split(texts: list[str]) -> None:
    assert [*joined(texts)] == texts


@pytest.mark.parametrize(
    "envelope",
    [
        {"log": "GET /event 200\n"},
        {"MESSAGE": None},
        {"MESSAGE": [1, 2, "event"]},
        {"log": json.dumps({"log": json.dumps({"log": json.dumps({"log": json.dumps({"log": LINE})})})})},
        {"timestamp": "x", "level": "info", "http_event": "user.login"},
        {"jsonPayload": {"event": "poll.finished", "level": "info"}},
    ],
)
def test_an_envelope_without_a_watcher_line_is_foreign(envelope: dict[str, Any]) -> None:
    assert parse(json.dumps(envelope)) is None


@pytest.mark.parametrize("prefix", ["watcher_", "watcher.", "w"])
def test_a_prefix_of_field_names_is_removed(prefix: str) -> None:
    always = {"timestamp": "2026-11-20T14:03:05.120Z", "level": "warning"}
    fields = {
        "event": "delivery.retried",
        "status": 503,
        "event_id": "evt_1",
        "event_type": "deposit.cleared",
    }
    line = {**always, **{prefix + name: value for name, value in fields.items()}}
    sorted_elsewhere = {"jsonPayload": dict(sorted(line.items())), "labels": {}}
    for text in (json.dumps(line), json.dumps(sorted_elsewhere), f"web-1  | {json.dumps(line)}"):
        assert parse(text) == {**always, **fields}


def test_the_order_of_fields_does_not_matter_in_a_plain_line() -> None:
    assert parse(json.dumps({"account": "treasury", **a_line()})) == a_line(account="treasury")


def test_pretty_shows_time_level_event_and_fields() -> None:
    line = a_line(account="treasury", reason="timed out", duration_ms=85, status=None, empty="", names=["a"])
    assert pretty(line, color=False) == (
        "2026-11-20T14:03:05.120Z info    poll.finished        "
        'account=treasury reason="timed out" duration_ms=85 status=null empty="" names=["a"]'
    )


def test_pretty_lines_are_coloured_by_level_unless_colours_are_off() -> None:
    assert "\x1b[33mwarning\x1b[0m" in pretty(a_line(level="warning"), color=True)
    assert "\x1b[31merror  \x1b[0m" in pretty(a_line(level="error"), color=True)
    assert "\x1b" not in pretty(a_line(level="error"), color=False)


def test_pretty_keeps_a_traceback_readable() -> None:
    text = pretty(
        a_line("bug", "error", exception='Traceback:\n  File "x"\nValueError: \x1b[2Jno'), color=False
    )
    assert text.splitlines()[1:] == ["    Traceback:", '      File "x"', "    ValueError: \\x1b[2Jno"]


any_text = st.text(st.characters(codec=None, exclude_categories=()))


@given(st.dictionaries(any_text, any_text | st.lists(any_text)), any_text)
def test_no_hostile_line_gets_a_control_character_onto_the_terminal(
    fields: dict[str, Any], text: str
) -> None:
    line = {**fields, "timestamp": text, "level": text, "event": text, "exception": text}
    for shown in (pretty(line, color=False), as_json(line), harmless(text)):
        assert all(character.isprintable() or character.isspace() for character in shown)
        assert not set(shown) & set("\x1b\x7f\x85\x9b\r\x0b\x0c\x1c\u2028\u202e")
    assert "\n" not in as_json(line) + harmless(text)
    assert json.loads(as_json(line)) == line


def test_a_foreign_line_is_passed_on_with_control_characters_escaped() -> None:
    assert harmless("\tat 日本  main\u00a0(x.py:1)") == "\tat 日本  main\u00a0(x.py:1)"
    assert harmless("\x1b[31mred\x1b[0m \x1b]0;title\x07") == "red \\x1b]0;title\\x07"
    assert harmless("x" * 100_000) == "x" * 100_000


def test_lines_are_read_even_if_they_are_no_text_or_never_end() -> None:
    assert list(lines_of(io.BytesIO(b"a\r\n\nb\xff\nc"))) == ["a", "", "b\\xff", "c"]
    assert max(map(len, lines_of(io.BytesIO(b"x" * 3_000_000)))) <= 1 << 20


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error", "critical", "odd"]),
        ("warning", ["warning", "error", "critical", "odd"]),
        ("error", ["error", "critical", "odd"]),
    ],
)
def test_a_level_means_that_level_and_above(level: str, shown: list[str]) -> None:
    levels = ["debug", "info", "warning", "error", "critical", "odd"]
    assert [each for each in levels if Filter(level).wants(a_line(level=each))] == shown


@pytest.mark.parametrize(
    ("wanted", "fields", "is_shown"),
    [
        (Filter(events=["delivery.*"]), {"event": "delivery.dead"}, True),
        (Filter(events=["delivery.*"]), {"event": "poll.finished"}, False),
        (Filter(events=["bug", "poll.*"]), {"event": "poll.finished"}, True),
        (Filter(accounts=["shop-*"]), {"account": "shop-1"}, True),
        (Filter(accounts=["shop-*"]), {"account": "SHOP-1"}, False),
        (Filter(accounts=["shop-*"]), {}, False),
        (Filter(subscriptions=["ops"]), {"subscription": "ops"}, True),
        (Filter(subscriptions=["ops"], accounts=["a"]), {"subscription": "ops", "account": "b"}, False),
    ],
)
def test_globs_choose_lines(wanted: Filter, fields: dict[str, Any], is_shown: bool) -> None:
    assert wanted.wants(a_line(**fields)) == is_shown


def test_foreign_lines_are_hidden_only_by_filters_that_ask_for_a_field() -> None:
    assert Filter().wants_foreign()
    assert Filter("error").wants_foreign()
    assert not Filter(events=["*"]).wants_foreign()
    assert not Filter(accounts=["treasury"]).wants_foreign()
