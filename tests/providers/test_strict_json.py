import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.amounts import NotAnAmount, from_decimal, from_integer
from watcher.providers.strict_json import Ambiguous, NotJson, Number, parse

DEEP = 100_000
PLAIN_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(PLAIN_JSON)
def test_valid_json_is_read_exactly(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value


@given(st.binary())
def test_any_bytes_are_json_or_not_json(body: bytes) -> None:
    with suppress(NotJson):
        parse(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1,]",
        b"[1] [2]",
        b"[01]",
        b"['a']",
        b'"a\nb"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        "[]".encode("utf-16"),
        "[]".encode("utf-16-le"),
        "[]".encode("utf-32"),
        b"\xef\xbb\xbf\xef\xbb\xbf[]",
        b"9" * 5_000,
        b"[" * DEEP,
        b"[" * DEEP + b"]" * DEEP,
        b'{"a":' * DEEP,
    ],
    ids=lambda body: repr(body[:16]),
)
def test_ambiguous_or_broken_json_is_refused(body: bytes) -> None:
    with pytest.raises(NotJson) as raised:
        parse(body)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_one_byte_order_mark_is_skipped() -> None:
    assert parse(b"\xef\xbb\xbf[1]") == [1]


@pytest.mark.parametrize(
    "text",
    [
        *(b"1", b"0", b"1.0", b"1e2", b"100.5", b"1E400000", b"18446744073709551616"),
        *(b"NaN", b"Infinity", b"-Infinity"),
    ],
)
def test_no_number_can_become_an_amount(text: bytes) -> None:
    number = parse(text)
    for read in (from_integer, from_decimal):
        with pytest.raises(NotAnAmount):
            read(number)


def test_a_number_that_is_no_integer_keeps_its_text_and_is_never_a_float() -> None:
    (number,) = parse(b"[1.10]")
    assert isinstance(number, Number)
    assert number.text == "1.10"


@pytest.mark.parametrize("odd", [b'{"a": 1, "a": 1}', b'{"a": 1, "\\u0061": 1}', b'{"a": {}, "a": {}}'])
def test_an_object_with_a_repeated_name_invalidates_itself_and_not_the_document(odd: bytes) -> None:
    whole, ambiguous = parse(b'[{"a": 1}, ' + odd + b"]")
    assert (whole, type(ambiguous)) == ({"a": 1}, Ambiguous)
