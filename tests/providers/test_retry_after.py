from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.durations import retry_after_s

NOW = datetime(2026, 11, 20, 14, 3, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("7.5", 7.5),
        ("900", 900),
        ("99999999999", 900),
        ("Fri, 20 Nov 2026 14:03:35 GMT", 30),
        ("Friday, 20-Nov-26 14:03:35 GMT", 30),
        ("Fri Nov 20 14:03:35 2026", 30),
        ("Fri, 20 Nov 2026 15:03:35 +0100", 30),
        ("Fri, 20 Nov 2026 14:00:00 GMT", 0),
        ("Fri, 20 Nov 2099 14:00:00 GMT", 900),
    ],
)
def test_retry_after_is_honoured_up_to_a_limit(header: str, seconds: float) -> None:
    assert retry_after_s(header, NOW, most_s=900) == seconds


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "-1",
        "+7",
        "7.5.1",
        " 7",
        "7\n",
        "7s",
        "٧",
        "soon",
        "9" * 400,
        "Fri, 99 Nov 2026 14:03:35 GMT",
        "0 0",
    ],
)
def test_garbage_is_no_retry_after(header: str | None) -> None:
    assert retry_after_s(header, NOW, most_s=900) is None


@given(
    st.text()
    | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,6} [0-9:]{1,9} [-+A-Z0-9]{1,9}")
)
def test_any_header_is_a_bounded_wait_or_none(header: str) -> None:
    wish_s = retry_after_s(header, NOW, most_s=900)
    assert wish_s is None or 0 <= wish_s <= 900
