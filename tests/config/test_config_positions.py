"""The position finder against tomllib: the same keys, with the lines on which they are written."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from tests.support.fuzzing import tried
from watcher.config.files import read_toml
from watcher.config.findings import Findings, Key, lines_by_key
from watcher.environment import Environment

EVERYTHING = (Path(__file__).parent / "everything.toml").read_text()


def keys_of(value: Any, above: Key = ()) -> Iterator[Key]:
    parts: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value))
    for part, below in parts:
        yield (*above, part)
        yield from keys_of(below, (*above, part))


def test_the_same_keys_are_found_as_by_tomllib() -> None:
    assert set(lines_by_key(EVERYTHING)) == set(keys_of(tomllib.loads(EVERYTHING)))


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("title",), 2),
        (("quoted = key",), 3),
        (('escaped"',), 4),
        (("a", "b", "c.d"), 5),
        (("float",), 7),
        (("table",), 9),
        (("table", "literal"), 14),
        (("table", "list", 0), 17),
        (("table", "list", 1, 1), 18),
        (("table", "list", 2, "deep", "er"), 20),
        (("table", "after"), 22),
        (("table", "sub", "x"), 25),
        (("array", 0), 27),
        (("array", 0, "inner", "y"), 30),
        (("array", 0, "nested", 1, "z"), 33),
        (("array", 1, "name"), 35),
        (("array", 1, "inline", "b.c", 1), 36),
        (("array", 1, "nested", 0, "empty"), 38),
    ],
)
def test_the_line_of_a_key_is_found(key: Key, line: int) -> None:
    assert lines_by_key(EVERYTHING)[key] == line
    assert lines_by_key(EVERYTHING.replace("\n", "\r\n"))[key] == line


names = st.sampled_from(["a", "b-c", '"d.e"', "'[f]'", '"g\\"h"', "1"])
texts = ['"x"', "'[y]'", '""', '"""a\nb"""', "'''\n#\n'''"]
scalars = st.sampled_from(["1", "-1.5", "true", "1979-05-27", "1979-05-27 07:32:00Z", *texts])


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)


values = st.recursive(scalars, containers)
headers = st.tuples(st.booleans(), st.lists(names, min_size=1, max_size=3))
documents = st.lists(st.tuples(headers, st.dictionaries(names, values, max_size=3)), max_size=5)


def written(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + "".join(f"  {written(item)}, # ]\n" for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {written(item)}" for name, item in value.items()) + " }"
    return str(value)


@tried(50)
@given(documents)
def test_any_valid_text_has_a_line_for_each_of_its_keys(document: list[Any]) -> None:
    text = ""
    for (is_list, path), pairs in document:
        header = ".".join(path)
        text += f"[[{header}]]\n" if is_list else f"[{header}]\n"
        text += "".join(f"{name} = {written(value)}\n" for name, value in pairs.items())
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        reject()
    found = lines_by_key(text)
    assert set(found) == set(keys_of(tree))
    lines = text.split("\n")
    for key, line in found.items():
        *_, name = [part for part in key if isinstance(part, str)]
        if not isinstance(key[-1], int):
            assert name.replace('"', '\\"') in lines[line - 1] or name in lines[line - 1]


def test_a_missing_key_is_reported_at_the_line_of_its_table(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text(EVERYTHING)
    document = read_toml(path, Environment({}), Findings())
    assert document.line_of(("array", 1, "absent", "deeper")) == 34
    assert document.line_of(("absent",)) == 1
