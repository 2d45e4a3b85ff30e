"""Reads as much YAML as the files of deploy/ need: nested tables and lists, lists in one line, comments.

Refuses anything else by failing: texts over several lines, anchors, tables in one line.
"""

import re
from typing import Any

_LIST = re.compile(r'"[^"]*"|[^\s,\[\]"]+')


def read(text: str) -> Any:
    lines = [re.sub(r"(^| )#.*", "", line).rstrip() for line in text.splitlines()]
    return _block([line for line in lines if line])


def _block(lines: list[str]) -> Any:
    """Read lines of one indentation, each with the deeper ones below it."""
    if not lines:
        return None
    depth = _depth(lines[0])
    starts = [index for index, line in enumerate(lines) if _depth(line) == depth]
    parts = [lines[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    if lines[0].lstrip().startswith("- "):
        return [_item(part) for part in parts]
    return {part[0].split(":")[0].strip(): _value(part) for part in parts}


def _item(lines: list[str]) -> Any:
    first = lines[0].replace("- ", "  ", 1)
    return _block([first, *lines[1:]]) if re.search(r":( |$)", first) else first.strip().strip('"')


def _value(lines: list[str]) -> Any:
    text = lines[0].partition(":")[2].strip()
    if not text:
        return _block(lines[1:])
    assert len(lines) == 1, lines[1]
    assert text[0] not in "{|>&*'", text
    if text.startswith("["):
        return [word.strip('"') for word in _LIST.findall(text)]
    return text.strip('"')


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())
