"""Reads what can be read of a text that is no TOML as a whole, table by table: to look, never to run by it.

Refuses to give anything where [redis] is there and cannot be read: the state would be looked for elsewhere.
"""

import re
import tomllib
from typing import Any

# Where a table begins that is not part of the [[account]] or [[subscription]] above it.
_TABLE = re.compile(
    r"""^(?=[ \t]*\[{1,2}(?![ \t]*(?:accounts|subscriptions)[ \t]*\.)[\w"'.\- \t]+\]{1,2}[ \t]*(?:\#.*)?$)""",
    re.MULTILINE,
)
_REDIS = re.compile(r"[ \t]*\[[ \t]*redis[ \t]*\]")
_ANY_REDIS = re.compile(r"""^[ \t\["']*redis\b""", re.MULTILINE)
_VITAL = re.compile(r"[ \t]*(?:redis\b|url\b|namespace\b|data_dir\b)")


def salvaged(text: str) -> dict[str, Any] | None:
    """Read every table that is TOML by itself; None where [redis] is there and cannot be read."""
    found: dict[str, Any] = {}
    top, *tables = _TABLE.split(text)
    for part in (top, *tables):
        try:
            _add(found, tomllib.loads(part))
        except (ValueError, RecursionError):
            is_redis = bool(_REDIS.match(part))
            if part is not top and not is_redis:
                continue
            lines = _lines(part)
            if lines is None:
                return None
            _add(found, {"redis": lines} if is_redis else lines)
    is_lost = "redis" not in found and _ANY_REDIS.search(text)
    return None if is_lost else found


def _lines(part: str) -> dict[str, Any] | None:
    """Read the lines of a part one by one; None where one that says where the state lies is broken."""
    found: dict[str, Any] = {}
    for line in part.splitlines():
        if _REDIS.match(line):
            continue
        try:
            _add(found, tomllib.loads(line))
        except (ValueError, RecursionError):
            if _VITAL.match(line):
                return None
    return found


def _add(found: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        known = found.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            known.update(value)
        elif isinstance(known, list) and isinstance(value, list):
            known.extend(value)
        else:
            found[name] = value
