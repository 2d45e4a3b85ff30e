"""Reads JSON from outside, exactly or not at all.

Refuses any encoding but UTF-8. An ambiguity that the standard parser lets through rejects what needs that
part, not the document: an object that gives a name twice becomes `Ambiguous`, no dict. No number can become
an amount: an integer stays an int, which `watcher.amounts` does not take, and any other number (NaN and
Infinity, too) stays the text that it was.
"""

import json
from typing import Any, NoReturn

from watcher.amounts import from_number

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = " \t\n\r"
_NOT_JSON = "not JSON in UTF-8"


class NotJson(ValueError):
    """Bytes that are not one unambiguous JSON document. The message never holds any of them."""


class Number:
    """A number with a fraction or an exponent, NaN or Infinity, unread: neither text nor a float.

    Equals the numbers that are exactly the same, however they are written. To compare one that has no such
    value, or too many digits, with a number raises NotAnAmount.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Number):
            return from_number(self.text, signed=True) == from_number(other.text, signed=True)
        return type(other) is int and from_number(self.text, signed=True) == str(other)

    def __hash__(self) -> int:
        return hash(from_number(self.text, signed=True))


class GivenTwice(ValueError):
    """An object gives a name twice. `name` is that name."""

    def __init__(self, name: str) -> None:
        super().__init__("a name is given twice")
        self.name = name


class Ambiguous:
    """An object that gives a name twice, so that either may be meant: it cannot be looked into."""

    __slots__ = ()

    def get(self, name: str) -> NoReturn:
        """Raise GivenTwice: what goes through any object would find nothing here, and take it for absent."""
        raise GivenTwice(name)

    def values(self) -> NoReturn:
        """Raise GivenTwice."""
        raise GivenTwice("")


def parse(body: bytes) -> Any:
    """Read `body` as JSON. Raises NotJson."""
    try:
        text = body.removeprefix(_BYTE_ORDER_MARK).decode().strip(_BLANKS)
        value, end = _DECODER.raw_decode(text)
    except RecursionError:  # no ValueError, and its traceback is as deep as the document
        raise NotJson("nested too deeply") from None
    except ValueError:  # its own text and attributes quote the document
        is_markup = body.lstrip()[:1] == b"<"
        raise NotJson("HTML or XML, not JSON" if is_markup else _NOT_JSON) from None
    if end < len(text):
        raise NotJson(_NOT_JSON) from None
    return value


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs, as `object_pairs_hook`. Raises GivenTwice, which is a ValueError."""
    value_by_name = dict(pairs)
    if len(value_by_name) != len(pairs):
        names = [name for name, _ in pairs]
        raise GivenTwice(next(name for name in names if names.count(name) > 1))
    return value_by_name


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Ambiguous:
    value_by_name = dict(pairs)
    return value_by_name if len(value_by_name) == len(pairs) else Ambiguous()


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=Number, parse_constant=Number)
