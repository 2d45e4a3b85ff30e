"""Finds our lines in what platforms make of them: behind a prefix, inside of their JSON, over several lines.

Refuses to take a line for ours that does not say when, how grave and what.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from watcher.observe.catalogue import EVENTS

LogLine = Mapping[str, Any]

_OURS = '{"timestamp":'
"""What each of our lines begins with; platforms put their own prefix before it."""
_ALWAYS = ("timestamp", "level", "event")
_MOST_BRACKETS = 800
"""More than any line of ours has. What is nested as deep as Python can just read, it could not write."""
_MOST_LINES = 2000
"""Of one object; a traceback of ours is one string, on one of them."""
_DEPTH = 4
"""Envelopes in envelopes: docker's around journald's, say."""
_SGR = re.compile(r"\x1b\[[0-9;]*m")


def parse(text: str) -> LogLine | None:
    """Return one of our lines, whatever stands before it or around it, or None for a foreign line.

    Envelopes are known by what is in them, not by name: journald's MESSAGE, docker's log, Loki's line,
    Google Cloud's jsonPayload and textPayload, and others. A prefix of our fields is taken off.
    """
    return _in_text(text, _DEPTH)


def joined(texts: Iterable[str]) -> Iterator[str]:
    """Put on one line what gcloud and jq write on several, where it holds a line of ours."""
    held: list[str] = []
    indent = 0
    for text in texts:
        if held:
            held.append(text)
            if text[indent : indent + 1] not in (" ", "\t") or len(held) == _MOST_LINES:
                yield from _on_one(held)
                held = []
        elif text.strip() == "{":
            held, indent = [text], text.index("{")
        else:
            yield text
    yield from held


def _on_one(lines: list[str]) -> list[str]:
    one = "".join(line.strip() for line in lines).removesuffix(",")
    is_whole = lines[-1].strip().removesuffix(",") == "}"
    return [one] if is_whole and parse(one) else lines


def _in_text(text: str, depth: int) -> LogLine | None:
    if text.count("[") + text.count("{") > _MOST_BRACKETS:
        return None
    text = _SGR.sub("", text)  # compose colours its prefix; ours has none but escaped ones
    for begin in dict.fromkeys((text.find(_OURS), text.find("{"))):
        with suppress(ValueError, RecursionError):
            if begin >= 0 and (line := _in_value(_read(text[begin:]), depth)):
                return line
    return None


def _in_value(value: Any, depth: int) -> LogLine | None:
    """Find our line in a part of an envelope: an object, or a text with an object in it."""
    if isinstance(value, str):
        return _in_text(value, depth - 1) if depth and "event" in value else None
    if isinstance(value, list):  # journald's way with bytes
        is_text = value and all(type(byte) is int and 0 <= byte < 256 for byte in value)
        return _in_value(bytes(value).decode(errors="backslashreplace"), depth) if is_text else None
    if not isinstance(value, dict):
        return None
    if line := _ours(value):
        return line
    payload = value.get("jsonPayload")
    if isinstance(payload, dict) and isinstance(value.get("timestamp"), str):
        value = {"jsonPayload": {"timestamp": value["timestamp"], **payload}}  # it keeps the time outside
    return next(filter(None, (_in_value(part, depth - 1) for part in value.values() if depth)), None)


def _ours(line: dict[str, Any]) -> LogLine | None:
    if all(isinstance(line.get(name), str) for name in _ALWAYS):
        return line
    if not all(isinstance(line.get(name), str) for name in _ALWAYS[:2]):
        return None
    for name, value in line.items():
        if name.endswith("event") and isinstance(value, str) and value in EVENTS:
            prefix = name.removesuffix("event")
            return {name if name in _ALWAYS else name.removeprefix(prefix): line[name] for name in line}
    return None


def _read(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits)
