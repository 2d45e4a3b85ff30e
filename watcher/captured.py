"""A request as it arrived, in a file: what `watcher listen --save` writes and `watcher verify` reads.

The file is the request as HTTP writes it, with one more header that says when it arrived.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

RECEIVED_AT = "watcher-received-at"
"""Unix seconds. What is sent under this name is not written down: the time is ours to say."""

_FIRST = re.compile(rb"[A-Z]{1,16} [^\r\n]{1,8192} HTTP/1\.[01]\r?\n")
_END = re.compile(rb"\r?\n\r?\n")
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?", re.ASCII)


class Captured(NamedTuple):
    """One request. `headers` are in their order; `received_at` is None if the file does not say."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    received_at: float | None


def save(captured: Captured, folder: Path) -> Path:
    """Write a request into a file of its own, for its owner alone. Raises OSError."""
    at = datetime.fromtimestamp(captured.received_at or 0, UTC)
    event_id = next((value for name, value in captured.headers if name.lower() == "webhook-id"), "")
    lines = [
        f"{captured.method} {captured.target} HTTP/1.1",
        *(f"{name}: {value}" for name, value in _without_time(captured.headers)),
        f"{RECEIVED_AT}: {captured.received_at:.6f}",
        "\r\n",
    ]
    written = "\r\n".join(lines).encode("latin-1", "backslashreplace") + captured.body
    name = f"{at:%Y%m%dT%H%M%S.%fZ}-{re.sub(r'[^A-Za-z0-9_-]', '_', event_id)[:64] or 'no-id'}"
    for number in range(1, 1000):
        path = folder / (f"{name}.http" if number == 1 else f"{name}-{number}.http")
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(written)
            return path
    raise FileExistsError(f"{name}.http and many like it are there")


def read(data: bytes) -> Captured | None:
    """Read what `save` wrote, or any request in the same form; None if it is no request."""
    end = _END.search(data)
    if not _FIRST.match(data) or not end:
        return None
    first, *lines = (line.removesuffix("\r") for line in data[: end.start()].decode("latin-1").split("\n"))
    method, _, target = first.rpartition(" ")[0].partition(" ")
    headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    at = next((value for name, value in headers if name.lower() == RECEIVED_AT), None)
    received_at = float(at) if at and _SECONDS.fullmatch(at) else None
    return Captured(method, target, _without_time(headers), data[end.end() :], received_at)


def _without_time(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() != RECEIVED_AT]
