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
    for call, scope in _calls(ast.parse(source)).items():
        if not isinstance(call.func, ast.Attribute):
            continue
        if call.func.attr in _LEVEL_BY_METHOD and _is_logger(call.func.value):
            level = _LEVEL_BY_METHOD[call.func.attr]
            names = _texts(call.args[0], scope) if call.args else frozenset()
            fields = _keywords(call, scope) | _bound(call.func.value, scope)
            yield LoggedLine(f"{path}:{call.lineno}", level, names, fields)


def problems(logged: LoggedLine, line_by_name: Mapping[str, Line]) -> Iterator[str]:
    if not logged.names:
        yield f"{logged.where}: the event name cannot be read from the source"
    for name in sorted(logged.names):
        line = line_by_name.get(name)
        if line is None:
            yield f"{logged.where}: {name} is not in the catalogue"
            continue
        if logged.level not in (line.level, "debug"):
            yield f"{logged.where}: {name} is {line.level}, not {logged.level}"
        for field in sorted(logged.fields - set(line.fields) - _NOT_FIELDS):
            known = "does not list" if field in FIELD_MEANINGS else "does not know"
            yield f"{logged.where}: {name} carries {field}, which the catalogue {known}"


def _is_logger(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return (
            isinstance(node.func, ast.Attribute) and node.func.attr == "bind" and _is_logger(node.func.value)
        )
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in _LOGGERS


def _calls(module: ast.Module) -> Mapping[ast.Call, ast.AST]:
    """Every call, with the innermost function around it."""
    scopes = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {
        call: scope for scope in (module, *scopes) for call in ast.walk(scope) if isinstance(call, ast.Call)
    }


def _bound(node: ast.expr, scope: ast.AST) -> frozenset[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _keywords(node, scope) | _bound(node.func.value, scope)
    return frozenset()


def _keywords(call: ast.Call, scope: ast.AST) -> frozenset[str]:
    return frozenset().union(
        *({keyword.arg} if keyword.arg else _keys(keyword.value, scope) for keyword in call.keywords)
    )


def _keys(node: ast.expr, scope: ast.AST) -> frozenset[str]:
    """The keys of a `**fields` whose dict is written out in the same function."""
    match node:
        case ast.Dict(keys=keys):
            return frozenset(
                key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            )
        case ast.Name(id=name):
            return frozenset().union(*(_keys(value, scope) for value in _assigned(name, scope)))
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="_asdict")):
            return frozenset(_FIELDS_BY_NAME[name])
    return frozenset()


def _texts(node: ast.expr, scope: ast.AST) -> frozenset[str]:
    match node:
        case ast.Constant(value=str(text)):
            return frozenset({text})
        case ast.IfExp(body=body, orelse=orelse):
            return _texts(body, scope) | _texts(orelse, scope)
        case ast.Name(id=name):
            return frozenset().union(*(_texts(value, scope) for value in _assigned(name, scope)))
    return frozenset()


def _assigned(name: str, scope: ast.AST) -> Iterator[ast.expr]:
    """What a name is given in a function, and each key that it is given as a dict."""
    for node in ast.walk(scope):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and target.id == name:
                yield node.value
            elif isinstance(target, ast.Subscript) and ast.unparse(target.value) == name:
                yield ast.Dict([target.slice], [node.value])
