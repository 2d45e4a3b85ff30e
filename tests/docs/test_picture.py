"""The picture of the demo shows what the demo prints, is small, and loads nothing."""

import re
from xml.etree import ElementTree

import pytest

from tests.docs.picture import COMMAND, PICTURE, demonstration, plain, until_the_verdict

TREE = ElementTree.parse(PICTURE)
TAGS = {element.tag.rpartition("}")[2] for element in TREE.iter()}


def shown() -> list[str]:
    """Its lines, without those that are empty."""
    return ["".join(text.itertext()) for text in TREE.iter() if text.tag.endswith("}text")]


def without_figures(lines: list[str]) -> list[str]:
    return [re.sub(r" *[\d.]+ m?s\b", " TIME", line) for line in lines]


def test_the_picture_is_small_and_loads_nothing() -> None:
    assert PICTURE.stat().st_size < 8_000
    assert {"svg", "title", "style", "rect", "text", "tspan"} == TAGS
    assert not re.search(r"url\(|href|@import", PICTURE.read_text())


@pytest.mark.slow
def test_the_picture_shows_what_the_demo_prints_today() -> None:
    lines = [plain(line.text) for line in until_the_verdict([*demonstration("--fast")])]
    said = [f"$ {COMMAND}", *filter(None, lines)]
    assert without_figures(shown()) == without_figures(said), "draw it anew: python -m tests.docs.picture"
