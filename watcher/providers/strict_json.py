"""Reads JSON from outside, exactly or not at all.

Refuses what the standard parser lets through: NaN and Infinity, a name given twice, any encoding but
UTF-8. No number can become an amount: an integer stays an int, which `watcher.amounts` does not take,
and any other number stays the text that it was.
"""

import json
from typing import Any

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class NotJson(ValueError):
    """Bytes that are not one unambiguous JSON document. The message never holds any of them."""


class Number:
    """A JSON number with a fraction or an exponent, unread: neither text nor a float."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def parse(body: bytes) -> Any:
    """Read `body` as JSON. Raises NotJson."""
    try:
        return _DECODER.decode(body.removeprefix(_BYTE_ORDER_MARK).decode())
    except NotJson as ours:
        raise NotJson(str(ours)) from None
    except RecursionError:  # no ValueError, and its traceback is as deep as the document
        raise NotJson("nested too deeply") from None
    except ValueError:  # its own text and attributes quote the document
        raise NotJson("not JSON in UTF-8") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value_by_name = dict(pairs)
    if len(value_by_name) != len(pairs):
        raise NotJson("a name given twice")
    return value_by_name


def _constant(_: str) -> None:
    raise NotJson("NaN or Infinity")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=Number, parse_constant=_constant)
