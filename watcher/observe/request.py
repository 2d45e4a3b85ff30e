"""Reads the head of one HTTP/1 request from a connection, as strictly as probes and load balancers allow.

Refuses whatever could mean two things: two Hosts, two tokens, folded lines, control characters.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import NamedTuple

HEAD_BYTES = 16 * 1024
"""A company's cookies fit in; nginx and Node take as much."""

_REQUEST = re.compile(r"([A-Z]{1,16}) (\*|(?:https?://([!-.0-~]{1,256}))?(/[!-~]{0,1024})?) HTTP/1\.[01]\Z")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):([ -~\t\x80-\xff]*)\Z")
_ONCE = ("host", "authorization")
_TLS = b"\x16"
_NO_REQUEST = (
    (b"\x16", "it speaks TLS, and there is none here: use http://, or end TLS in a proxy"),
    (b"PROXY ", "it speaks the PROXY protocol: switch that off for this backend (HAProxy: no send-proxy)"),
    (b"\r\n", "it begins with an empty line, as version 2 of the PROXY protocol does: switch that off"),
    (b"PRI * HTTP/2", "it speaks HTTP/2: have it use HTTP/1.1 for this backend"),
)


class HeadTooLong(Exception):
    """A head of more than HEAD_BYTES."""


class Request(NamedTuple):
    """`path` is without query and final slash; `headers` are by lower-case name."""

    method: str
    path: str
    headers: Mapping[str, str]


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """Read up to the empty line, or as far as shows that it is no request. Raises HeadTooLong."""
    head = await reader.readexactly(1)
    while head not in (b"\n", b"\r\n", _TLS) and not head.endswith((b"\n\r\n", b"\n\n")):
        try:
            head += await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            raise HeadTooLong from None
        if len(head) > HEAD_BYTES:
            raise HeadTooLong
    return head


def parse(head: bytes) -> Request | None:
    """Read a head; None where it is none, or says twice where it goes or who sends it."""
    lines = [line.removesuffix("\r") for line in head.decode("latin-1").split("\n")[:-2]]
    request = _REQUEST.match(lines[0]) if lines else None
    headers = [
        (header[1].lower(), header[2].strip()) for line in lines[1:] if (header := _HEADER.match(line))
    ]
    names = [name for name, _ in headers]
    if not request or len(headers) < len(lines) - 1 or any(names.count(name) > 1 for name in _ONCE):
        return None
    method, target, host, path = request.groups()
    header_by_name = dict(headers)
    if host:
        # A target that names a host outranks the header, by RFC 9112.
        header_by_name["host"] = host
    path = (path or ("/" if host else target)).partition("?")[0]
    return Request(method, path.removesuffix("/") or "/", header_by_name) if target else None


def why_none(head: bytes) -> str:
    """Guess what speaks to us, from a head that is no request, and say what to do about it."""
    found = (why for begin, why in _NO_REQUEST if head.startswith(begin))
    return next(found, "it is not HTTP/1.1, or says twice where it goes or who sends it")
