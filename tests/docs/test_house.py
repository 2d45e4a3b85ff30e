"""The map of the code is true: data flows one way, and so do imports."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import watcher
from watcher.providers.contract import PLACE_BY_KIND

HOUSE = Path(watcher.__file__).parent


def modules_by_package() -> Iterator[tuple[str, Path]]:
    """Name each module after its package, or itself at the top; in `observe`, where all log and some look,
    too."""
    for path in HOUSE.rglob("*.py"):
        room = _package_of(path.relative_to(HOUSE).with_suffix("").parts)
        if not room.startswith("__"):
            yield room, path


def _package_of(parts: Sequence[str]) -> str:
    return "/".join(parts[:2]) if parts[0] == "observe" else parts[0]


@cache
def imports_by_package() -> Mapping[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for room, path in modules_by_package():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("watcher."):
                imported = _package_of(str(node.module).split(".")[1:])
                found[room] |= {imported} - {room}
    return found


def test_polling_and_delivering_meet_in_redis_and_nowhere_else() -> None:
    imports = imports_by_package()
    assert "delivery" not in imports["polling"]
    assert "polling" not in imports["delivery"]


def test_packages_import_one_another_in_one_direction_only() -> None:
    try:
        TopologicalSorter(imports_by_package()).prepare()
    except CycleError as cycle:
        raise AssertionError(" -> ".join(cycle.args[1])) from None


def test_the_journal_knows_neither_redis_nor_the_network() -> None:
    assert imports_by_package()["journal"] <= {"amounts", "snapshot", "providers", "settings"}
    for path in (HOUSE / "journal").glob("*.py"):
        assert not {"redis", "aiohttp", "asyncio", "time"} & set(_imported(path)), path


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_the_journal_names_no_provider() -> None:
    kinds = [*PLACE_BY_KIND]
    for path in (HOUSE / "journal").glob("*.py"):
        text = path.read_text().lower()
        assert not [kind for kind in kinds if kind in text], path
