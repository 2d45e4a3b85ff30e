"""Find the configuration and read it, environment included, keeping where everything was written.

Refuses to know what it says.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import orjson

from watcher import places
from watcher.config.findings import ConfigRefused, Entry, Finding, Findings, Key
from watcher.config.positions import lines_by_key
from watcher.config.variables import interpolate_all

_POSITION = re.compile(r"\(at line (\d+), column (\d+)\)")
# What `tomllib` says, as far as it helps, and without the piece of the file that some of it repeats.
_SYNTAX = {
    "Unescaped '\\'": "a backslash in a text needs another one, or write the text in single quotes",
    "Expected '='": "'=' is expected after a key",
    "Expected ']": "a closing bracket is missing",
    "Expected newline": "the line should end here; texts need quotes",
    "Invalid value": "this is no value: texts need quotes, or a bracket above is not closed",
    "Invalid statement": "neither a key nor a [table] begins here",
    "Invalid initial character": "no key begins here",
    "Invalid date": "no such date",
    "Cannot declare": "this table was declared before",
    "Cannot overwrite": "this key was set before",
    "Cannot mutate": "this table was written in full before",
    "Cannot redefine": "this table was written in full before",
    "Duplicate inline": "this key was set before",
    "Unterminated": "a closing quote is missing",
    "Unclosed": "a closing bracket is missing",
    "Illegal character": "a closing quote is missing, or a character has to be escaped",
}


def find(path: Path | None, environ: Mapping[str, str]) -> Path:
    """Choose the file: `path`, or WATCHER_CONFIG, or the first of PLACES. Raises ConfigRefused."""
    if place := places.place_of(path, environ):
        return place
    looked = " or ".join(map(str, places.PLACES))
    reason = f"no configuration at {looked}; `watcher init` writes one to begin with"
    raise ConfigRefused([Finding("watcher", None, "", reason)])


def read_toml(path: Path, environ: Mapping[str, str], findings: Findings) -> Entry:
    """Read a file as one table, with the environment put in. Raises ConfigRefused where it is no TOML."""
    text = _text(path)
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise ConfigRefused([Finding(str(path), None, "", "not valid TOML: nested too deeply")]) from None
    except ValueError as error:
        raise ConfigRefused([_syntax_mistake(path, text, str(error))]) from None
    return _interpolated(Entry(tree, str(path), (), _Lines(text).find), environ, findings)


def read_lines(path: Path, name: str, environ: Mapping[str, str], findings: Findings) -> Iterator[Entry]:
    """Read a file of one JSON object per line; `name` is what messages call it. Raises OSError."""
    is_empty = True
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            is_empty = False
            entry = _line(line.rstrip(), name, number, findings)
            if entry:
                yield _interpolated(entry, environ, findings) if b"${" in line else entry
    if is_empty:
        findings.mistake(Finding(name, None, "", "is empty, as a file is that is just being written"))


class _Lines:
    """Looks for positions when the first mistake asks: most files have none."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _line_by_key(self) -> dict[Key, int]:
        return lines_by_key(self._text)

    def find(self, key: Key) -> int:
        """Give the line of a key, or of the table that it is missing from."""
        while key and key not in self._line_by_key:
            key = key[:-1]
        return self._line_by_key.get(key, 1)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigRefused([Finding(str(path), None, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigRefused([Finding(str(path), line, "", "not valid TOML: not UTF-8 text")]) from None


def _syntax_mistake(path: Path, text: str, message: str) -> Finding:
    reason = next((ours for theirs, ours in _SYNTAX.items() if message.startswith(theirs)), "not understood")
    position = _POSITION.search(message)
    if not position:
        return Finding(str(path), len(text.splitlines()), "", f"not valid TOML: {reason}")
    return Finding(str(path), int(position[1]), "", f"not valid TOML at column {position[2]}: {reason}")


def _line(line: bytes, name: str, number: int, findings: Findings) -> Entry | None:
    try:
        table = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        findings.mistake(Finding(name, number, "", f"not valid JSON at column {error.colno}"))
        return None
    if isinstance(table, dict):
        return Entry(table, name, (), lambda _: number)
    findings.mistake(Finding(name, number, "", "must be one JSON object"))
    return None


def _interpolated(entry: Entry, environ: Mapping[str, str], findings: Findings) -> Entry:
    def refuse(key: Key, reason: str) -> None:
        findings.mistake(entry.finding(key, reason))

    return Entry(interpolate_all(entry.table, environ, refuse), entry.file, entry.key, entry.line_of)
