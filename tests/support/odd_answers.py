"""A valid answer, damaged in one place: all that a provider may send on a bad day.

`oddities` takes the text of an answer and says how it may be spoilt. Each value in it is replaced by what no
amount can be, each member and row taken out, each row given twice, the text cut at each tenth; the whole is
replaced by what is no answer. Refuses to know what an answer means: `complaint` says whether it was taken for
something that it does not say.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from watcher.providers.contract import Rejected
from watcher.snapshot import Balance, Row, Snapshot, asset_id

_RAW = "\0"
"""Begins the text of what is written as it is: a number in its own spelling, what is hardly JSON."""
_WRITTEN_RAW = re.compile(r'"\\u0000((?:[^"\\]|\\.)*)"')

_DIGITS = "9" * 79
_NO_AMOUNTS: tuple[Any, ...] = (
    *(None, True, False, "", " ", "abc", [], {}),
    *(
        "NaN",
        "Infinity",
        "1e400000",
        "1e3",
        "-",
        "+12",
        " 12",
        "12 ",
        "12.",
        ".5",
        "012",
        "1_2",
        "1,2",
        "0x12",
    ),
    *("１２", "12\n", "12\0", "twelve", _DIGITS, f"0.{_DIGITS}"),
    *(f"{_RAW}{text}" for text in ("NaN", "Infinity", "-Infinity", "1e400000", "-1e400000", "1e-79")),
    *(f"{_RAW}{text}" for text in (_DIGITS, f"0.{_DIGITS}", '{"a": "12", "a": "12"}', '{"a": "12", "a": 0}')),
)
_NO_ANSWERS = (
    *(
        "",
        " ",
        "null",
        "true",
        "0",
        "12",
        '""',
        '"12"',
        "[]",
        "{}",
        "[null]",
        "[[]]",
        "[{}]",
        '{"": {}}',
        "NaN",
    ),
    *('{"error": "busy"}', '{"error": {"code": 7, "message": "busy"}}', '{"message": "Too Many Requests"}'),
    *('{"status": "error", "errors": ["busy"]}', '{"jsonrpc": "2.0", "id": 1, "result": null}', "\ufeff"),
    *("<html><body><h1>Just a moment...</h1></body></html>", "502 Bad Gateway", "[" * 100_000),
)

Kind = Literal["value", "respelled", "missing", "row missing", "row twice", "cut", "whole"]


class Odd(NamedTuple):
    """One way to spoil an answer. `place` names what is spoilt, places in lists left out; `value` is what
    stands there now."""

    kind: Kind
    place: str
    value: Any
    body: bytes

    def __str__(self) -> str:
        return f"{self.place or 'all'}: {self.kind} {str(self.value)[:60]!r}"


def oddities(good: bytes) -> Iterator[Odd]:
    """Spoil an answer in every way, once each."""
    answer = json.loads(good, parse_float=_raw, parse_int=_raw)
    for place, holder, key in _places(answer):
        whole = holder[key]
        for value in _NO_AMOUNTS:
            holder[key] = value
            yield Odd("value", place, value, _written(answer))
        if isinstance(whole, str):
            holder[key] = whole.removeprefix(_RAW) if whole.startswith(_RAW) else f"{_RAW}{whole}"
            if _is_number(whole.removeprefix(_RAW)):
                yield Odd("respelled", place, whole, _written(answer))
        holder[key] = [whole]
        yield Odd("value", place, "[it]", _written(answer))
        holder[key] = {"value": whole}
        yield Odd("value", place, "{it}", _written(answer))
        holder[key] = whole
    for place, holder, key in _places(answer):
        if isinstance(holder, dict):
            fewer = {name: inner for name, inner in holder.items() if name != key}
            yield Odd("missing", place, None, _with(answer, holder, fewer))
        else:
            yield Odd("row missing", place, None, _with(answer, holder, [*holder[:key], *holder[key + 1 :]]))
            yield Odd("row twice", place, None, _with(answer, holder, [*holder, holder[key]]))
    for tenth in range(1, 10):
        yield Odd("cut", "", tenth, good[: len(good) * tenth // 10])
    for text in _NO_ANSWERS:
        yield Odd("whole", "", text, text.encode())


def complaint(odd: Odd, said: Snapshot | Rejected, good: Snapshot) -> str | None:
    """Say what is wrong with what was made of a spoilt answer: an amount that it does not say, a zero above
    all; a rejection with a wrong error class. None: it was rejected, or what it says is what was read."""
    if isinstance(said, Rejected):
        return None if said.error_class == "malformed" else f"rejected as {said.error_class}: {said.reason}"
    missing = good.row_by_asset.keys() - said.row_by_asset.keys()
    for asset, row in said.row_by_asset.items():
        one = good.row_by_asset.get(asset)
        if one is None and odd.kind in ("value", "respelled") and asset == asset_id(str(odd.value)):
            renamed = [gone for gone in missing if _is_same(row, good.row_by_asset[gone])]
            missing -= {*renamed[:1]}
        elif one is None or not _is_same(row, one):
            return f"{asset} is read as {row.balance}"
    if missing and said.absent_is_zero and odd.kind != "row missing":
        return f"{', '.join(sorted(missing))}: read as zero"
    return None if said.height == good.height else f"read at the height {said.height}"


def _is_same(row: Row, good: Row) -> bool:
    """A lock that is not spoken of is one that the journal asks about again."""
    locked = good.balance.locked if row.locked_absent else row.balance.locked
    return Balance(row.balance.total, locked, *row.balance[2:]) == good.balance


def _raw(text: str) -> str:
    return _RAW + text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]+)?", text, re.ASCII) is not None


def _written(answer: Any) -> bytes:
    return _WRITTEN_RAW.sub(lambda raw: json.loads(f'"{raw[1]}"'), json.dumps(answer)).encode()


def _with(answer: Any, holder: Any, other: Any) -> bytes:
    """Write an answer with another one of its parts, which is known by its identity."""

    def copied(value: Any) -> Any:
        if value is holder:
            return other
        if isinstance(value, dict):
            return {name: copied(inner) for name, inner in value.items()}
        return [copied(inner) for inner in value] if isinstance(value, list) else value

    return _written(copied(answer))


def _places(value: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where the parts of a document lie: their name, what holds them, and under which key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in [*items]:
        name = f"{place}[]" if isinstance(value, list) else f"{place}.{key}".lstrip(".")
        yield name, value, key
        yield from _places(inner, name)
