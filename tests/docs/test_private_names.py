"""No private name of a dependency is used."""

import ast
import importlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import watcher

PACKAGE = Path(watcher.__file__).parent
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}


@cache
def sources() -> list[tuple[str, ast.Module]]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return [(str(path.relative_to(PACKAGE.parent)), ast.parse(path.read_text())) for path in paths]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLE


def own_names(tree: ast.Module) -> set[str]:
    """What a module defines by itself, as a method, a slot or an attribute."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                found.add(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def foreign_names() -> set[tuple[str, str]]:
    """Every private name that is used and is not ours, by the file."""
    found = set()
    ours = {name for _, tree in sources() for name in own_names(tree)}
    for file, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in ours:
                found.add((file, node.attr))
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("watcher"):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                found |= {(file, name) for name in names if is_private(name)}
        found |= {(file, name) for name in overridden(file, tree)}
    return found


def overridden(file: str, tree: ast.Module) -> Iterator[str]:
    """The private methods of other packages' classes that a class of ours takes the place of."""
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    if not names:
        return
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for kind in (getattr(module, name) for name in names):
        for base in kind.__mro__[1:]:
            if base.__module__.partition(".")[0] in {"watcher", "typing", *sys.stdlib_module_names}:
                continue
            methods = (name for name, value in vars(kind).items() if callable(value) and is_private(name))
            yield from (name for name in methods if name in vars(base))


def test_no_private_name_of_a_dependency_is_used() -> None:
    assert foreign_names() == set()
