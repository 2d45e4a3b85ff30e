"""The fields that deploy/JSON.md names, and whether what a command printed with --json is just that."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_TEXT = (Path(__file__).parents[2] / "deploy" / "JSON.md").read_text("utf-8")
_NAME = re.compile(r"`([a-z][a-z _-]*)`")
_FIELD = re.compile(r"`([a-z_]+(?:\[\])?(?:\.[a-z_]+)?)`(\??)")


class Row(NamedTuple):
    """One row of a table. `kind` is None for any, "" for lines without one. `fields` says by name whether it
    is always there, and is None where another text names them."""

    commands: list[str]
    kind: str | None
    fields: dict[str, bool] | None

    def fits(self, line: dict[str, Any]) -> bool:
        if self.kind is not None and line.get("kind", "") != self.kind:
            return False
        if self.fields is None:
            return True
        found = {*self._paths(line, self.fields)} - {"kind"}
        return {name for name, is_there in self.fields.items() if is_there} <= found <= self.fields.keys()

    def _paths(self, line: dict[str, Any], fields: dict[str, bool]) -> Iterator[str]:
        for name, value in line.items():
            if not any(field.startswith((f"{name}.", f"{name}[].")) for field in fields):
                yield name
            elif isinstance(value, list):
                yield from (f"{name}[].{key}" for one in value for key in one)
            else:
                yield from (f"{name}.{key}" for key in value or ())


def _rows() -> Iterator[Row]:
    for line in _TEXT.partition("<!-- fields")[2].splitlines():
        if line.startswith("| `"):
            commands, about, text = line.strip("|").split("|")
            kind = next(iter(_NAME.findall(about)), None if "kind" in about else "")
            fields = {name: not may_miss for name, may_miss in _FIELD.findall(text)}
            yield Row(_NAME.findall(commands), kind, None if text.startswith(" the ") else fields)


ROWS = [*_rows()]
COMMANDS = {command for row in ROWS for command in row.commands}


def assert_documented(arguments: Sequence[object], out: str) -> None:
    """Assert that what a command printed with --json are lines of JSON with the fields of a row."""
    words = [str(argument) for argument in arguments if not str(argument).startswith("-")]
    if "--json" not in map(str, arguments):
        return
    command = next(name for name in (" ".join(words[:2]), words[0], f"{words[0]} list") if name in COMMANDS)
    for line in map(json.loads, out.splitlines()):
        rows = [row for row in ROWS if command in row.commands]
        assert any(row.fits(line) for row in rows), f"not in deploy/JSON.md: {command} {line}"
