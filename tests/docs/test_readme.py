"""README.md is short, and leads to every other text for people."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import FILES, ROOT

MOST_LINES = 200


def test_the_readme_is_short_enough_to_read_to_the_end() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


def links_of(file: str) -> list[tuple[Path, str]]:
    """The files of ours that a text leads to, each with the anchor in it, if any."""
    found = re.findall(r"(?:\]\(|\bsrc(?:set)?=\")([^)\"\s]+)", (ROOT / file).read_text())
    parts = [link.partition("#") for link in found if not link.startswith("https:")]
    return [((ROOT / file).parent / path if path else ROOT / file, anchor) for path, _, anchor in parts]


@pytest.mark.parametrize("file", FILES)
def test_every_link_has_a_target(file: str) -> None:
    for target, anchor in links_of(file):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """What the headings are called in a link."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_text_is_linked_from_the_readme() -> None:
    found: set[Path] = set()
    todo = {ROOT / "README.md"}
    while todo:
        found |= todo
        links = {path.resolve() for file in todo for path, _ in links_of(str(file.relative_to(ROOT)))}
        todo = {path for path in links if path.suffix == ".md"} - found
    assert found == {ROOT / file for file in FILES}
