"""Users read the words of the field, which can be searched for, and none of our own."""

import ast
import json
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.commands.test_help import EVERY, helped
from tests.docs.blocks import FILES, ROOT
from watcher.api.openapi import openapi
from watcher.observe.catalogue import EVENTS, FIELD_MEANINGS
from watcher.observe.metrics import METRICS

SAY_BY_WORD = {
    "lanes?": "queue",
    "restraints?|standings?|stands? well|spells?": "circuit breaker, healthy, throttle",
    "told|tells?|heard|hears?": "emitted, sent, reported",
    "(?:good|void|refused) polls?": "successful, discarded, rejected",
    "held|doubt(?:s|ed|ful)?": "pending confirmation, suspect, backing off",
    "setbacks?|silences?|silenced|canary|hasten(?:s|ed)?": "rejections, stale, probe account, made due",
    "tally|tallies|vitals": "counters, liveness",
    "(?<!dead )letters?": "dead letters",
    "retold|rehears(?:e|ed|al)|glances?|surveys?|outlook": "sent again, preview, view",
    "generations?|farewell|forsaken?": "configuration, drop",
    "rooms?": "package, capacity",
    "(?:the|a|this|our|its) stores?": "Redis",
    "mend(?:s|ed|ing)?|troubles?|left alone": "fix, error class or problem, backing off",
    "seal(?:s|ed)?": "encrypt",
    "heed(?:s|ed)?|hearken|whoever|nobody|anybody|somebody": "obey; name the actor",
    "half well": "takes some of its requests",
}
"""Of the table of words: what users are not to read, and what they read instead."""

ALLOWED = {
    "silence this alert": "Alertmanager's word",
    "no room for": "what a narrow table leaves out",
    "make room": "on a disk",
    "letters, digits": "characters",
    "letters and digits": "characters",
    "a letter": "a character",
    "standing by": "a worker that waits for its layout",
}
"""Uses that the field has, too."""

WORD = re.compile(rf"(?<![\w`.\"/{{-])(?:{'|'.join(SAY_BY_WORD)})(?![\w`\"(/-])", re.IGNORECASE)
PLACES = (*FILES, *(f"deploy/{name}" for name in ("*.yaml", "**/*.yaml", "*.json", "*.toml", "*.service")))
NOT_FOR_USERS = (
    "CHANGELOG.md",
    "tests/",
    *(f"watcher/{one}/" for one in ("engine", "store", "journal", "http")),
)
"""The changelog has old words beside new ones; notes of the design are for people who read the code."""


def read_texts() -> Iterator[tuple[str, str]]:
    """All that users read, each with where it is from."""
    for pattern in PLACES:
        for path in ROOT.glob(pattern):
            if not (place := str(path.relative_to(ROOT))).startswith(NOT_FOR_USERS):
                yield place, path.read_text()
    for name, command in EVERY.items():
        yield f"watcher {name} --help", helped(command)
        for option in command.params:
            yield f"watcher {name} --help", getattr(option, "help", None) or ""
    for event, line in EVENTS.items():
        yield f"log event {event}", line.fact
    for field, meaning in FIELD_MEANINGS.items():
        yield f"log field {field}", meaning
    for metric, known in METRICS.items():
        yield f"metric {metric}", known.text
    yield "openapi.json", json.dumps(openapi(), indent=1)
    yield "page.html", (ROOT / "watcher/observe/page/page.html").read_text()
    yield from messages()


def messages() -> Iterator[tuple[str, str]]:
    """The texts in the code that are neither docstrings nor single words."""
    for path in (ROOT / "watcher").rglob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            match node:
                case ast.Constant(value=str(text)) if " " in text and id(node) not in docstrings:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text


@cache
def texts() -> list[tuple[str, str]]:
    return [(place, " ".join(text.split())) for place, text in read_texts()]


def private_words(text: str) -> list[str]:
    if not (found := [*WORD.finditer(text)]):
        return []
    spans = [use.span() for allowed in ALLOWED for use in re.finditer(re.escape(allowed), text)]
    return [
        f"…{text[max(0, word.start() - 30) : word.end() + 30]}…"
        for word in found
        if not any(start <= word.start() < end for start, end in spans)
    ]


def test_users_read_the_words_of_the_field() -> None:
    found = {place: words for place, text in texts() if (words := private_words(text))}
    assert found == {}, SAY_BY_WORD


@pytest.mark.parametrize(
    "text",
    [
        "the lane is full",
        "receivers are told",
        "the next good poll",
        "this change is held",
        "it is mended by a restart",
        "The store cannot be reached",
        "whoever reads this",
        "twelve letters were given up",
    ],
)
def test_a_word_of_our_own_is_found(text: str) -> None:
    assert private_words(text)


@pytest.mark.parametrize(
    "text",
    [
        "`watcher store layout --to 1`",
        "three dead letters",
        '"trouble": "timeout"',
        "1 to 64 letters, digits and dashes",
        "the log field `held`",
    ],
)
def test_a_word_that_the_field_has_too_is_not(text: str) -> None:
    assert not private_words(text)


def test_names_of_tests_use_the_words_of_the_field() -> None:
    """They may name the package `store`."""
    found = [
        (path.name, name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def test_(\w+)\(", path.read_text())
        if private_words(re.sub(r"\bstores?\b", "Redis", name.replace("_", " ")))
    ]
    assert found == [], SAY_BY_WORD


def test_every_allowed_use_is_in_use() -> None:
    everything = "\n".join(text for _, text in texts())
    assert [use for use in ALLOWED if use not in everything] == []
