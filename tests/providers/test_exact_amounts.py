"""Amounts as they come from outside: every spelling is read exactly, or not at all."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.amounts import (
    MAX_FRACTION_DIGITS,
    MAX_INTEGER,
    NotAnAmount,
    check_canonical,
    from_decimal,
    from_integer,
    from_number,
    negated,
    sum_of,
)

NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,90})(\.[0-9]{1,90})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)


@given(NUMBERS)
def test_a_number_of_json_is_read_exactly_or_not_at_all(text: str) -> None:
    exact = Fraction(text)
    is_bounded = abs(exact) < MAX_INTEGER + 1 and (exact * 10**MAX_FRACTION_DIGITS).denominator == 1
    if not is_bounded:
        with pytest.raises(NotAnAmount):
            from_number(text, signed=True)
        return
    read = from_number(text, signed=True)
    assert Fraction(read) == exact
    assert check_canonical(read) == read
    if exact < 0:
        with pytest.raises(NotAnAmount):
            from_number(text)
    else:
        assert from_number(text) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("1e-8", "0.00000001"),
        ("12.34567891", "12.34567891"),
        ("1E2", "100"),
        ("1.50e+1", "15"),
        ("0e999", "0"),
        ("-0.0", "0"),
        ("100000000000000000000000000001e-29", "1.00000000000000000000000000001"),
    ],
)
def test_an_exponent_moves_the_point(text: str, read: str) -> None:
    assert from_number(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "Infinity",
        "1e400000",
        "1e999",
        "1e-999",
        ".5",
        "1.",
        "01",
        "+1",
        " 1",
        "1_0",
        "1e",
        "",
        1,
        None,
    ],
)
def test_an_unbounded_or_invalid_number_is_no_amount(text: object) -> None:
    with pytest.raises(NotAnAmount):
        from_number(text, signed=True)


@given(st.integers(-MAX_INTEGER, MAX_INTEGER), st.integers(0, MAX_FRACTION_DIGITS))
def test_a_signed_integer_is_read_in_whole_units(count: int, decimals: int) -> None:
    read = from_integer(str(count), decimals, signed=True)
    assert Fraction(read) == Fraction(count, 10**decimals)
    assert from_decimal(read, signed=True) == check_canonical(read) == read


@pytest.mark.parametrize("text", ["-1", "--1", "- 1", "-", "-+1", "-1e2", "-٣"])
def test_a_minus_is_refused_where_none_is_expected_and_wherever_it_is_odd(text: str) -> None:
    for read in (from_integer, from_decimal):
        with pytest.raises(NotAnAmount):
            read(text)
        if text != "-1":
            with pytest.raises(NotAnAmount):
                read(text, signed=True)
    assert from_integer("-0", signed=True) == from_decimal("-0.00", signed=True) == "0"


def written(places: int, digits: int) -> str:
    """A count of 10^-places as canonical text."""
    return from_integer(str(digits), places, signed=True)


@given(st.lists(st.builds(written, st.integers(0, 78), st.integers(-(10**76), 10**76)), max_size=5))
def test_a_sum_of_amounts_is_exact(texts: list[str]) -> None:
    total = sum_of(texts)
    assert Fraction(total) == sum(map(Fraction, texts))
    assert check_canonical(total) == total
    assert sum_of([total, *map(negated, texts)]) == "0"


def test_a_sum_that_is_too_large_is_no_amount() -> None:
    assert sum_of([str(MAX_INTEGER), "0"]) == str(MAX_INTEGER)
    for texts in ([str(MAX_INTEGER), "1"], [f"-{MAX_INTEGER}", "-1"], [str(MAX_INTEGER)] * 9):
        with pytest.raises(NotAnAmount):
            sum_of(texts)
