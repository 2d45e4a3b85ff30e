"""Makes text from outside safe to show: no control characters, no secret that is known, bounded.

Refuses to guess: an object that is not plain data is shown as the name of its type, because a repr may
hold anything.
"""

import errno
import os
import traceback
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice
from pathlib import PurePath
from unicodedata import category
from uuid import UUID

TEXT_LIMIT = 200
TRACEBACK_LIMIT = 8_000
"""Characters of a traceback: room for some thirty frames."""

_FRAMES = 40
_ITEMS = 50
_DEPTH = 4
_SHORTEST_SECRET = 8
"""Characters. A shorter text is no secret of ours, and hiding it would blank out ordinary words."""

_WRITTEN_OUT = (PurePath, Decimal, UUID, timedelta, IPv4Address, IPv4Network, IPv6Address, IPv6Network)
_secrets_by_part: dict[str, set[str]] = {}
"""By some letters of each: a worker may know thousands, and a text holds few of these."""

_ALIKE = 16
"""Secrets that share a part, such as how URLs begin: another part is looked for then."""


def why_not_listening(error: OSError) -> str:
    """Say why an address cannot be listened at, without the address, which the event loop puts before it."""
    if error.errno and error.errno > 0:
        is_only_this = error.errno in (errno.EADDRINUSE, errno.EACCES)
        advice = "; choose another port" if is_only_this else ""
        return f"{os.strerror(error.errno).lower()}{advice}"
    return error.strerror or type(error).__name__  # a name that is not found has a number of its own


def printable(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return `text` as one line of at most `limit` characters.

    What is not printable (C0 and C1 controls, bidirectional marks, lone surrogates, line separators) is
    escaped as Python would write it, `\\x1b`.
    """
    if len(text) <= limit and text.isprintable():
        return text
    shown = "".join(
        character
        if character.isprintable() or category(character) == "Zs"
        else character.encode("unicode_escape").decode()
        for character in text[:limit]
    )
    return shown if len(text) <= limit and len(shown) <= limit else shown[: limit - 1] + "…"


def plain(value: object, depth: int = _DEPTH) -> object:
    """Return `value` as JSON data that orjson takes, with every text in it printable."""
    match value:
        case Enum():
            return plain(value.value, depth)
        case str():
            return printable(value)
        case bool() | None | float():
            return value
        case int() if -(2**63) <= value < 2**64:
            return value
        case int():  # Python refuses to write out one of more than 4,300 digits
            return printable(str(value)) if value.bit_length() < 10_000 else "<int>"
        case bytes():
            return printable(value[:TEXT_LIMIT].decode(errors="backslashreplace"))
        case datetime():
            aware = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
            return aware.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case BaseException():
            return type(value).__name__
        case Mapping() | Sequence() | set() | frozenset() if depth == 0:
            return "…"
        case Mapping():
            return {
                printable(key) if isinstance(key, str) else str(plain(key, 0)): plain(each, depth - 1)
                for key, each in islice(value.items(), _ITEMS)
            }
        case Sequence() | set() | frozenset():
            return [plain(each, depth - 1) for each in islice(value, _ITEMS)]
        case _:
            return printable(str(value) if isinstance(value, _WRITTEN_OUT) else f"<{type(value).__name__}>")


def traceback_text(error: BaseException, limit: int = TRACEBACK_LIMIT) -> str:
    """Return the traceback of `error`, causes included, several lines, no local variables.

    Too long a traceback loses its middle: where it began and what happened at last say most.
    """
    raw = "".join(traceback.format_exception(error, limit=-_FRAMES))
    text = "\n".join(printable(line) for line in without_secrets(raw).splitlines())
    if len(text) <= limit:
        return text
    head, tail = limit // 4, limit - limit // 4 - 3
    return f"{text[:head]}\n…\n{text[-tail:]}"


def hide(secrets: Iterable[str]) -> None:
    """Remember these texts; from now on no traceback and no foreign log record of this process shows them."""
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            fewest: set[str] | None = None
            for start in (*range(0, len(secret) - _SHORTEST_SECRET, 4), len(secret) - _SHORTEST_SECRET):
                alike = _secrets_by_part.setdefault(secret[start : start + _SHORTEST_SECRET], set())
                if fewest is None or len(alike) < len(fewest) or secret in alike:
                    fewest = alike
                if len(fewest) < _ALIKE or secret in fewest:
                    break
            assert fewest is not None
            fewest.add(secret)


def without_secrets(text: str) -> str:
    parts = {text[start : start + _SHORTEST_SECRET] for start in range(len(text))} & _secrets_by_part.keys()
    secrets = {secret for part in parts for secret in _secrets_by_part[part]}
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, "[secret]")
    return text


def many(count: int, noun: str, plural: str | None = None) -> str:
    """Write `1 queue`, `2 queues`, `1,234 deliveries`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
