"""Finds the log lines in source code, and compares them with the catalogue."""

import ast
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from watcher.observe.catalogue import FIELD_MEANINGS, Line
from watcher.observe.log import Streak
from watcher.service.serve import Change

_LEVEL_BY_METHOD = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
}
_LOGGERS = ("log", "_log", "logger")
_NOT_FIELDS = {"exc_info"}
_FIELDS_BY_NAME = {"streak": Streak._fields, "change": Change._fields}
"""What a `**name._asdict()` holds, by the one name that it is given everywhere."""


class LoggedLine(NamedTuple):
    """One call such as `log.info("poll.finished", account=…)`; no names where they cannot be read."""

    where: str
    level: str
    names: frozenset[str]
    fields: frozenset[str]


def logged_in(source: str, path: str) -> Iterator[LoggedLine]:
    for call, room in _calls(ast.parse(source)).items():
        if not isinstance(call.func, ast.Attribute):
            continue
        if call.func.attr in _LEVEL_BY_METHOD and _is_logger(call.func.value):
            level = _LEVEL_BY_METHOD[call.func.attr]
            names = _texts(call.args[0], room) if call.args else frozenset()
            fields = _keywords(call, room) | _bound(call.func.value, room)
            yield LoggedLine(f"{path}:{call.lineno}", level, names, fields)


def problems(spoken: LoggedLine, line_by_name: Mapping[str, Line]) -> Iterator[str]:
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


def _calls(module: ast.Module) -> Mapping[ast.Call, ast.AST]:
    """Every call, with the innermost function around it."""
    rooms = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {call: room for room in (module, *rooms) for call in ast.walk(room) if isinstance(call, ast.Call)}


def _bound(node: ast.expr, room: ast.AST) -> frozenset[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _keywords(node, room) | _bound(node.func.value, room)
    return frozenset()


def _keywords(call: ast.Call, room: ast.AST) -> frozenset[str]:
    return frozenset().union(
        *({keyword.arg} if keyword.arg else _keys(keyword.value, room) for keyword in call.keywords)
    )


def _keys(node: ast.expr, room: ast.AST) -> frozenset[str]:
    """The keys of a `**fields` whose dict is written out in the same function."""
    match node:
        case ast.Dict(keys=keys):
            return frozenset(
                key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            )
        case ast.Name(id=name):
            return frozenset().union(*(_keys(value, room) for value in _assigned(name, room)))
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="_asdict")):
            return frozenset(_FIELDS_BY_NAME[name])
    return frozenset()


def _texts(node: ast.expr, room: ast.AST) -> frozenset[str]:
    match node:
        case ast.Constant(value=str(text)):
            return frozenset({text})
        case ast.IfExp(body=body, orelse=orelse):
            return _texts(body, room) | _texts(orelse, room)
        case ast.Name(id=name):
            return frozenset().union(*(_texts(value, room) for value in _assigned(name, room)))
    return frozenset()


def _assigned(name: str, room: ast.AST) -> Iterator[ast.expr]:
    """What a name is given in a function, and each key that it is given as a dict."""
    for node in ast.walk(room):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and target.id == name:
                yield node.value
            elif isinstance(target, ast.Subscript) and ast.unparse(target.value) == name:
                yield ast.Dict([target.slice], [node.value])
