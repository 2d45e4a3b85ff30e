"""watcher/store/README.md lists every key and every script, as the catalogue and the scripts' headers do."""

import inspect
import re
from itertools import takewhile
from pathlib import Path

import pytest

import watcher.store
from watcher.store.keys import Keys, shard_of

ROOM = Path(watcher.store.__file__).parent
README = (ROOM / "README.md").read_text("utf-8")


def rows_of(header: str) -> list[str]:
    """The rows of the table with this head."""
    lines = README.splitlines()
    start = lines.index(header)
    return [*takewhile(lambda line: line.startswith("|"), lines[start + 2 :])]


def key_row(name: str) -> str:
    """A key as it is spelled, its type and lifetime, and what it holds, as the docstring says."""
    method = getattr(Keys, name)
    places = {place: place.upper() for place in inspect.signature(method).parameters if place != "self"}
    key = method(Keys("watcher"), **places).replace(f"{{{shard_of('ACCOUNT')}}}", "{SHARD}")
    kind, _, holds = " ".join(inspect.cleandoc(method.__doc__).split()).partition(": ")
    return f"| `{key}` | {kind} | {holds} |"


def script_row(path: Path) -> str:
    """A script, the modules that call it, and the first sentence of its header."""
    lines = takewhile(lambda line: line.startswith("--"), path.read_text("utf-8").splitlines())
    sentence = re.split(r"(?<=\.)\s", " ".join(line[2:].strip() for line in lines))[0]
    call = f'load_script("{path.stem}")'
    callers = sorted(each.stem for each in ROOM.glob("*.py") if call in each.read_text("utf-8"))
    return f"| `{path.stem}` | {', '.join(callers)} | {sentence} |"


KEYS = [
    key_row(name)
    for name, method in vars(Keys).items()
    if inspect.isfunction(method) and not name.startswith("_")
]
SCRIPTS = [script_row(path) for path in sorted((ROOM / "scripts").glob("*.lua"))]


@pytest.mark.parametrize(
    ("header", "rows"),
    [("| key | type, lifetime | what it holds |", KEYS), ("| script | called by | what it does |", SCRIPTS)],
    ids=["keys", "scripts"],
)
def test_every_table_of_the_stores_notes_matches_the_code(header: str, rows: list[str]) -> None:
    assert len(rows) > 20
    assert rows_of(header) == rows, "\n".join(["write into watcher/store/README.md:", header, *rows])
