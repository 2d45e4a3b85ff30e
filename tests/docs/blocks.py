"""The fenced blocks of the texts for people, each with its place."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FILES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "deploy/**/*.md", "tests/*.md", "watcher/**/*.md")
    for path in ROOT.glob(pattern)
)
"""All texts for people; none is named in a test, so that a section may move."""

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """`language` is what stands behind the fence."""

    file: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def folder(self) -> Path:
        """Where a reader of its file stands."""
        return (ROOT / self.file).parent


def blocks_of(file: str, text: str) -> Iterator[Block]:
    for found in _FENCED.finditer(text):
        yield Block(file, text.count("\n", 0, found.start()) + 1, found[2], dedent(found[3]))


def texts_in(folder: str = "") -> str:
    """All texts in a folder and below it, one after the other."""
    return "\n".join((ROOT / file).read_text() for file in FILES if file.startswith(folder))


BLOCKS = [block for file in FILES for block in blocks_of(file, (ROOT / file).read_text())]


def inline_code(file: str) -> list[str]:
    """What stands between single backticks, outside the blocks; a line's end in it is a blank."""
    return [
        " ".join(code.split())
        for code in re.findall(r"`([^`]+)`", _FENCED.sub("", (ROOT / file).read_text()))
    ]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell block, in order, however they are joined; without assignments."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in lexer:
            if set(word) <= set(";|&"):
                found.append(words)
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)
        found.append(words)
    return [words for words in found if words]
