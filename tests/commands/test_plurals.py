"""Counts as people write them."""

import re
from pathlib import Path

import pytest

import watcher
from watcher.printable import many


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 queues"), (1, "1 queue"), (2, "2 queues"), (1234, "1,234 queues")]
)
def test_one_is_singular_and_any_other_number_is_plural(count: int, said: str) -> None:
    assert many(count, "queue") == said


def test_an_irregular_plural_can_be_given() -> None:
    assert [many(count, "delivery", "deliveries") for count in (1, 2)] == ["1 delivery", "2 deliveries"]


COUNTED = re.compile(
    r"\{[^{}]*\} (?:more )?(?:queues|runs|events|accounts|dead letters|deliveries|polls|assets|changes|"
    r"records|gaps|repeats|restarts)\b"
)


def test_no_code_writes_a_plural_without_the_helper() -> None:
    """Of a number that may be one; `of many` is another sentence."""
    for path in Path(watcher.__file__).parent.rglob("*.py"):
        found = [match[0] for match in COUNTED.finditer(path.read_text())]
        assert found == [], path
