"""Finds the log lines that source code can write, and compares them with the catalogue."""

import ast
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from watcher.log_events import FIELD_MEANINGS, Line

_LEVEL_BY_METHOD = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
}
_LOGGERS = ("log", "_log", "logger")
_NOT_FIELDS = {"exc_info"}


class Spoken(NamedTuple):
    """One call such as `log.info("poll.finished", account=…)`; no names where they cannot be read."""

    where: str
    level: str
    names: frozenset[str]
    fields: frozenset[str]


def spoken_in(source: str, path: str) -> Iterator[Spoken]:
    tree = ast.parse(source)
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        if call.func.attr in _LEVEL_BY_METHOD and _is_logger(call.func.value):
            level = _LEVEL_BY_METHOD[call.func.attr]
            names = _texts(call.args[0], tree) if call.args else frozenset()
            yield Spoken(f"{path}:{call.lineno}", level, names, _keywords(call) | _bound(call.func.value))


def problems(spoken: Spoken, line_by_name: Mapping[str, Line]) -> Iterator[str]:
    if not spoken.names:
        yield f"{spoken.where}: the event name cannot be read from the source"
    for name in sorted(spoken.names):
        line = line_by_name.get(name)
        if line is None:
            yield f"{spoken.where}: {name} is not in the catalogue"
            continue
        if spoken.level not in (line.level, "debug"):
            yield f"{spoken.where}: {name} is {line.level}, not {spoken.level}"
        for field in sorted(spoken.fields - set(line.fields) - _NOT_FIELDS):
            known = "does not list" if field in FIELD_MEANINGS else "does not know"
            yield f"{spoken.where}: {name} carries {field}, which the catalogue {known}"


def _is_logger(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return (
            isinstance(node.func, ast.Attribute) and node.func.attr == "bind" and _is_logger(node.func.value)
        )
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in _LOGGERS


def _bound(node: ast.expr) -> frozenset[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _keywords(node) | _bound(node.func.value)
    return frozenset()


def _keywords(call: ast.Call) -> frozenset[str]:
    return frozenset(keyword.arg for keyword in call.keywords if keyword.arg)


def _texts(node: ast.expr, tree: ast.Module) -> frozenset[str]:
    match node:
        case ast.Constant(value=str(text)):
            return frozenset({text})
        case ast.IfExp(body=body, orelse=orelse):
            return _texts(body, tree) | _texts(orelse, tree)
        case ast.Name(id=name):
            return frozenset().union(*(_texts(value, tree) for value in _assigned(name, tree)))
    return frozenset()


def _assigned(name: str, tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            yield node.value
