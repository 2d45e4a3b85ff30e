"""README.md is read to its end, and leads on to every text there is for people."""

import re

from tests.docs.blocks import FILES, ROOT

README = (ROOT / "README.md").read_text()
MOST_LINES = 200


def test_it_is_short_enough_to_be_read_to_its_end() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def links_of(file: str) -> set[str]:
    """The texts that one leads to, from the root of the repository."""
    text, folder = (ROOT / file).read_text(), (ROOT / file).parent
    paths = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    return {str((folder / path).resolve().relative_to(ROOT)) for path in paths if path} & {*FILES}


def test_every_text_is_found_from_it() -> None:
    found: set[str] = set()
    todo = {"README.md"}
    while todo:
        found |= todo
        todo = {link for file in todo for link in links_of(file)} - found
    assert found == {*FILES}
