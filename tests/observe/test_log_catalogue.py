"""The code logs what the catalogue says, and the other way round."""

import re
from functools import cache
from pathlib import Path

import pytest

import watcher
from tests.observe.logged_lines import LoggedLine, logged_in, problems
from watcher.observe.catalogue import EVENTS, FIELD_MEANINGS, Line
from watcher.observe.counters import Counters

PACKAGE = Path(watcher.__file__).parent

NOT_IN_THE_CALL = {
    "account.recovered": {"account", "accounts", "duration_ms"},
    "account.stale": {"account", "accounts", "duration_ms"},
    "bug": {"exception", "times"},
    "library.failed": {"exception"},
    "worker.heartbeat": set(Counters().since(Counters())),
}
"""Fields that a function puts together, and what `lines` adds."""


@cache
def every_logged_line() -> list[LoggedLine]:
    return [
        logged
        for path in sorted(PACKAGE.rglob("*.py"))
        for logged in logged_in(path.read_text(), str(path.relative_to(PACKAGE.parent)))
    ]


def test_every_line_that_the_code_logs_is_in_the_catalogue() -> None:
    assert [problem for logged in every_logged_line() for problem in problems(logged, EVENTS)] == []


def test_every_name_in_the_catalogue_is_logged_somewhere() -> None:
    logged = {name for logged in every_logged_line() for name in logged.names}
    assert set(EVENTS) - logged == set()


def test_every_field_in_the_catalogue_is_in_some_line_of_its_event() -> None:
    carried = {name: set(NOT_IN_THE_CALL.get(name, ())) for name in EVENTS}
    for logged in every_logged_line():
        for name in logged.names:
            carried[name] |= logged.fields - {"exc_info"}
    assert carried == {name: set(line.fields) for name, line in EVENTS.items()}


def test_exactly_the_fields_in_use_are_explained() -> None:
    assert {field for line in EVENTS.values() for field in line.fields} == set(FIELD_MEANINGS)


def test_names_are_facts_and_no_field_shadows_a_common_one() -> None:
    for name, line in EVENTS.items():
        assert re.fullmatch(r"[a-z]+\.[a-z_]+|bug", name)
        assert len(set(line.fields)) == len(line.fields)
        assert not {"timestamp", "level", "event"} & set(line.fields)


CATALOGUE = {"poll.finished": Line("info", "", ("account",)), "poll.rejected": Line("warning", "", ())}


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('log.info("poll.ended")', "poll.ended is not in the catalogue"),
        ('log.error("poll.finished")', "poll.finished is info, not error"),
        ('log.exception("poll.rejected")', "poll.rejected is warning, not error"),
        (
            'log.info("poll.finished", account=1, subscription=2)',
            "carries subscription, which the catalogue does not list",
        ),
        ('log.info("poll.finished", colour=2)', "carries colour, which the catalogue does not know"),
        ('self._log.bind(colour=1).info("poll.finished")', "carries colour"),
        ('names = {"colour": 1, "account": 2}\nlog.info("poll.finished", **names)', "carries colour"),
        ("log.info(name_of(poll))", "the event name cannot be read from the source"),
        ('name = "a.b" if x else "poll.finished"\nlog.info(name)', "a.b is not in the catalogue"),
    ],
)
def test_a_line_that_differs_from_the_catalogue_is_found(source: str, problem: str) -> None:
    (logged,) = logged_in(source, "room.py")
    (found,) = problems(logged, CATALOGUE)
    assert problem in found


def test_lines_as_the_catalogue_has_them_pass() -> None:
    source = """
log.info("poll.finished", account=account)
log.debug("poll.finished", **names)
log.bind(account=1).warning("poll.rejected" if x else "poll.rejected", exc_info=True)
math.log(2), logging.info("not ours")
"""
    found = list(logged_in(source, "room.py"))
    assert [logged.level for logged in found] == ["info", "debug", "warning"]
    assert list(problems(found[0], CATALOGUE)) == list(problems(found[1], CATALOGUE)) == []
    assert list(problems(found[2], CATALOGUE)) == [
        "room.py:4: poll.rejected carries account, which the catalogue does not list"
    ]
