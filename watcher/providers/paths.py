"""Paths into an answer, in JMESPath: they find values, and neither calculate nor compare sizes.

Refuses whatever could make a float of a number, or judge its size by a text or by a part of the numbers: no
path rounds or leaves out an amount.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import jmespath
from jmespath.exceptions import JMESPathError, ParseError
from jmespath.lexer import Lexer

from watcher.providers.contract import Rejected
from watcher.providers.strict_json import Ambiguous

LONGEST = 500
"""Characters of a path: this bounds its depth and its cost per value."""

_LONGEST_NUMBER = 4096
"""Bits. Python writes no longer one than 4,300 digits."""

MOST_VALUES = 50_000
"""Of answers that a path is applied to which is not plain: up to ten microseconds for each of them."""

_FLOATS = ("avg", "ceil", "floor", "to_number")
_SIZES = ("lt", "lte", "gt", "gte")
_FUNCTIONS = frozenset(
    (
        *("abs", "contains", "ends_with", "join", "keys", "length", "map", "max", "max_by", "merge", "min"),
        *("min_by", "not_null", "reverse", "sort", "sort_by", "starts_with", "sum", "to_array"),
        *("to_string", "type", "values"),
    )
)


class _Nothing:
    """What a plain path finds if an object lacks the name: neither null nor another type."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING: Final = _Nothing()

_Step = str | int


@dataclass(frozen=True, slots=True)
class Path:
    """A path of the configuration. Two of the same text are the same. `steps` are the names and places that a
    plain one goes by; None: it is more than that, and is never NOTHING but null.
    """

    text: str
    steps: tuple[_Step, ...] | None

    @property
    def goes_by_names(self) -> bool:
        """Whether it goes by names alone, and so into no list."""
        return self.steps is not None and all(isinstance(step, str) for step in self.steps)

    def __str__(self) -> str:
        return self.text


def read_path(text: object, *, column: int = 1) -> Path:
    """Read a path, unless it is one. Raises ValueError, whose message says what is wrong at which column, if
    the path begins at `column`.
    """
    if isinstance(text, Path):
        return text
    if not isinstance(text, str):
        raise ValueError("must be text: a path (JMESPath)")  # noqa: TRY004  # pydantic
    if len(text) > LONGEST:
        raise ValueError(f"not a path: longer than {LONGEST} characters")
    try:
        with warnings.catch_warnings(action="error"):  # what is no JSON in backticks is taken for text
            tokens = [*Lexer().tokenize(text)] if text else []
            parsed = jmespath.compile(text).parsed
    except ParseError as error:
        raise ValueError(
            f"not a path (JMESPath): a mistake at column {error.lex_position + column}"
        ) from None
    except (JMESPathError, RecursionError, Warning):
        what = "nested too deeply" if text else "empty"
        raise ValueError(f"not a path (JMESPath): {what}") from None
    for token, following in pairwise(tokens):
        kind, value, flaw = token["type"], token["value"], None
        if kind in _SIZES:
            flaw = f"{value} cannot compare amounts exactly: a path only finds"
        elif kind == "literal" and _has_float(value):
            flaw = "a number with a point or an exponent is no exact one: write it as text"
        elif kind == "unquoted_identifier" and following["type"] == "lparen" and value not in _FUNCTIONS:
            flaw = (
                f"{value}() makes a float, which is not exact"
                if value in _FLOATS
                else f"no function {value}()"
            )
        if flaw:
            raise ValueError(f"not a path: {flaw}, at column {token['start'] + column}")
    if _sums_what_is_there(parsed):
        raise ValueError(
            "not a path: sum() of what a list is projected to leaves out what is missing or null: "
            "write sum(map(&name, list))"
        )
    return Path(text, _steps(parsed))


_PROJECTIONS = ("projection", "filter_projection", "value_projection")


def _sums_what_is_there(node: dict[str, Any], *, is_summed: bool = False) -> bool:
    """Say whether a sum is made of a projection, or of one into its items: that passes over null."""
    children: list[Any] = node.get("children", [])
    if is_summed and node["type"] in _PROJECTIONS and children[1]["type"] != "identity":
        return True
    if node["type"] == "function_expression" and node["value"] == "sum":
        is_summed = True
        last = children[0] if children else node
        while last["type"] in ("pipe", "subexpression", "index_expression"):
            last = last["children"][-1]
        if last["type"] in _PROJECTIONS:
            return True
    return any(
        _sums_what_is_there(child, is_summed=is_summed) for child in children if isinstance(child, dict)
    )


def _has_float(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, float) or any(map(_has_float, inner))


def _steps(node: dict[str, Any]) -> tuple[_Step, ...] | None:
    """Take a parsed path for names and places, one after the other; None where it is more than that."""
    match node["type"]:
        case "field" | "index":
            return (node["value"],)
        case "current" | "identity":
            return ()
        case "subexpression" | "index_expression":
            steps: tuple[_Step, ...] = ()
            for child in node["children"]:
                if (more := _steps(child)) is None:
                    return None
                steps += more
            return steps
    return None


Find = Callable[[Any], Any]
"""Gives what a path finds in a value: NOTHING, or None, where it finds none. Raises Rejected."""


def finder(path: Path) -> Find:
    """Make what follows a path."""
    steps = path.steps
    if steps is None:
        search = jmespath.compile(path.text).search

        def find(value: Any) -> Any:
            try:
                return search(value)
            except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
                raise Rejected("malformed", f"'{path}' cannot be applied to the answer") from None

    elif len(steps) == 1 and isinstance(name := steps[0], str):

        def find(value: Any) -> Any:
            return value.get(name, NOTHING) if type(value) is dict else _beside(value)

    else:

        def find(value: Any) -> Any:
            for step in steps:
                if type(step) is str and type(value) is dict:
                    value = value.get(step, NOTHING)
                elif type(step) is int and type(value) is list:
                    value = value[step] if -len(value) <= step < len(value) else None
                else:
                    return _beside(value)
            return value

    return find


def _beside(value: Any) -> Any:
    """Return what is found if the value cannot be followed any further."""
    if isinstance(value, Ambiguous):
        raise Rejected("malformed", "a name is given twice in an object")
    return NOTHING if value is NOTHING else None


def is_said(found: Any) -> bool:
    """Say whether what a path found says something: not nothing, null, false, "", [], {} or 0."""
    return found is not NOTHING and found not in (None, False, "", [], {})


def refuse_too_many(answer: Any) -> None:
    """Refuse an answer that holds more values than a path should look at. Raises Rejected."""
    count, open_ = 0, [answer]
    while open_:
        value = open_.pop()
        inner = value if type(value) is list else value.values() if type(value) is dict else ()
        count += len(inner)
        if count > MOST_VALUES:
            raise Rejected("malformed", f"more than {MOST_VALUES:,} values in the answer")
        open_ += [one for one in inner if type(one) is list or type(one) is dict]


def texts_in(found: Any) -> Iterator[str]:
    """Give the texts of what an error path found: its own, or those of a list."""
    for one in found if isinstance(found, list) else [found]:
        if isinstance(one, str):
            yield one
        elif isinstance(one, int):
            yield str(one).lower() if isinstance(one, bool) else text_of(one)


def text_of(number: int) -> str:
    """Write a whole number that a path found, which a sum may have made too long. Raises Rejected."""
    if number.bit_length() > _LONGEST_NUMBER:
        raise Rejected("malformed", "a number that is far too large")
    return str(number)
