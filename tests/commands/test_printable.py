"""Text from outside is made safe to show, and no traceback shows a secret."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from unicodedata import category

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from watcher import printable as printable_module
from watcher.printable import hide, plain, printable, traceback_text, without_secrets

any_text = st.text(st.characters(codec=None, exclude_categories=()))
any_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.binary() | st.decimals(),
    lambda inner: st.lists(inner) | st.dictionaries(any_text | st.integers(), inner) | st.sets(st.integers()),
)


def texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from texts_in(key)
            yield from texts_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_in(each)


@given(any_text, st.integers(2, 300))
def test_no_control_character_passes_and_no_length_beyond_the_limit(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert {category(character) for character in shown} <= set(map(category, "aA1 .")) | {
        *("Lm", "Lo", "Lt", "Mc", "Me", "Mn", "Nl", "No"),
        *("Pc", "Pd", "Pe", "Pf", "Pi", "Ps", "Sc", "Sk", "Sm", "So"),
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ethereum — 100 %", "Ethereum — 100 %"),
        ("日本　円\u00a0", "日本　円\u00a0"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("user\u202egnp.exe\u2066", "user\\u202egnp.exe\\u2066"),
        ("\ud800", "\\ud800"),
        ("a\u2028b", "a\\u2028b"),
        ("x" * 201, "x" * 199 + "…"),
        ("\x00" * 200, ("\\x00" * 50)[:199] + "…"),
    ],
)
def test_harmful_characters_are_escaped_and_all_others_stay(text: str, shown: str) -> None:
    assert printable(text) == shown


@settings(max_examples=50)
@given(any_value)
def test_any_logged_value_becomes_json_with_printable_text(value: object) -> None:
    written = json.loads(orjson.dumps(plain(value)))
    assert all(text == printable(text) for text in texts_in(written))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2**64, "18446744073709551616"),
        pytest.param(10**5000, "<int>", id="more digits than Python writes"),
        (Decimal("0.10"), "0.10"),
        (Path("/etc/watcher.toml"), "/etc/watcher.toml"),
        (timedelta(seconds=90), "0:01:30"),
        (datetime(2026, 11, 20, 14, 3, 5, 120_000, UTC), "2026-11-20T14:03:05.120Z"),
        (datetime(2026, 11, 20, 15, 3, 5, tzinfo=timezone(timedelta(hours=1))), "2026-11-20T14:03:05.000Z"),
        (SecretStr("whsec_0123456789"), "<SecretStr>"),
        (ValueError("https://user:password@example.com"), "ValueError"),
        ([[[[["deep"]]]]], [[[["…"]]]]),
        (range(1000), list(range(50))),
    ],
)
def test_values_that_are_no_plain_data_become_their_name_or_text(value: object, shown: object) -> None:
    assert plain(value) == shown


def test_a_traceback_shows_cause_and_code_but_no_local_variable() -> None:
    def fetch(api_key: str) -> None:
        raise ConnectionError("reset")

    try:
        try:
            fetch("sk-" + "live-1234567890")
        except ConnectionError as error:
            raise RuntimeError("the poll failed") from error
    except RuntimeError as error:
        text = traceback_text(error)
    assert "ConnectionError: reset" in text
    assert text.endswith("RuntimeError: the poll failed")
    assert "fetch(" in text
    assert "sk-live" not in text


def test_a_traceback_is_bounded_and_keeps_its_end() -> None:
    def dive(depth: int) -> None:
        dive(depth + 1)

    with pytest.raises(RecursionError) as dived:
        dive(0)
    causes: Exception = dived.value
    for number in range(100):
        error = ValueError(f"cause {number} " + "\x1b" * 10_000)
        error.__cause__ = causes
        causes = error
    text = traceback_text(causes)
    assert len(text) <= 8_000
    assert "cause 99" in text
    assert "\x1b" not in text


def test_no_traceback_shows_a_hidden_secret() -> None:
    hide(["correct-horse", "correct-horse-battery-staple", "short", ""])
    text = traceback_text(ValueError("no redis://:correct-horse-battery-staple@host, a short one"))
    assert text.endswith("ValueError: no redis://:[secret]@host, a short one")
    assert without_secrets("correct-horse!") == "[secret]!"


def test_hiding_many_similar_secrets_compares_few_of_them() -> None:
    urls = [f"https://hooks.example.com/{number:05}/sendMessage" for number in range(2_000)]
    for _ in range(2):  # as often as its record changes
        hide(urls)
    assert sum(map(len, printable_module._secrets_by_part.values())) == len(urls)
    assert max(map(len, printable_module._secrets_by_part.values())) <= 20, "each answer of a receiver asks"
    for url in urls[::100]:
        assert without_secrets(f"no answer from {url}, https://hooks.example.com/") == (
            "no answer from [secret], https://hooks.example.com/"
        )
