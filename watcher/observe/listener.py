"""A small HTTP server for metrics, probes and the page, its connections bounded in size, number and time."""

import asyncio
import hmac
import re
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import NamedTuple, Self

from watcher.engine.loop import survived
from watcher.observe.log import Throttle, log
from watcher.printable import printable, why_not_listening

_SHORTEST_TOKEN = 16
_TOKEN = re.compile(r"[!-~]+\Z")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+|localhost)):([0-9]{1,5})\Z", re.ASCII)
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(?::[0-9]{1,5})?\Z", re.ASCII)


class ListenerRefused(Exception):
    """The address or token would expose the worker, or cannot be used: call it with others."""

    exit_code = 78


class Address(NamedTuple):
    """Where to listen; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return ip_address(self.host).is_loopback


def parse_address(text: str) -> Address:
    """Read `127.0.0.1:8787`, `[::1]:8787` or `localhost:8787`. Raises ValueError.

    Other names are not resolved: what a name means may change, and with it which clients can connect.
    """
    match = _ADDRESS.match(text)
    if not match or int(match[3]) > 65_535:
        raise ValueError("not an address and a port, such as 127.0.0.1:8787 or [::1]:8787")
    host = "127.0.0.1" if match[2] == "localhost" else match[1] or match[2]
    try:
        return Address(str(ip_address(host)), int(match[3]))
    except ValueError:
        raise ValueError("not an address of IPv4 or IPv6, before the port") from None


class Door:
    """Decides which requests are let in. Raises ListenerRefused for a public address without a token."""

    def __init__(self, address: Address, token: str | None) -> None:
        if token is None and not address.is_loopback:
            raise ListenerRefused(
                f"--http {address} is not a loopback address: anyone could read the metrics there; "
                "set WATCHER_HTTP_TOKEN, or listen at 127.0.0.1"
            )
        if token is not None and (len(token) < _SHORTEST_TOKEN or not _TOKEN.match(token)):
            raise ListenerRefused(
                f"the token for --http must be {_SHORTEST_TOKEN} visible ASCII characters at least"
            )
        self._token = None if token is None else token.encode()

    def refusal(self, headers: Mapping[str, str]) -> int | None:
        """Return the status that refuses a request, None for one that is let in.

        A request without a Host, or with an empty one, is let in on loopback: probes leave it out, browsers
        never do.
        """
        if self._token is None:
            # A browser that another name led here (DNS rebinding) sends that name.
            match = _HOST.match(headers.get("host") or "localhost")
            host = match[1] or match[2] if match else ""
            with suppress(ValueError):
                if host.lower().removesuffix(".") == "localhost" or ip_address(host).is_loopback:
                    return None
            return 421
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        # RFC 9110: in any case, after any number of spaces.
        scheme, token = scheme.lower(), shown.lstrip(" ").encode()
        if scheme == "basic":  # a browser shows it as a password, after any user's name
            try:
                token = b64decode(token, validate=True).partition(b":")[2]
            except ValueError:
                token = b""
        # In constant time, so that no answer shows how much of it was right.
        is_shown = hmac.compare_digest(token, self._token) and scheme in ("basic", "bearer")
        return None if is_shown else 401

    def advice(self, status: int, headers: Mapping[str, str]) -> str:
        """Explain a refusal, for the answer and the log: the reason, and what to do about it."""
        if status == 421:
            host = printable(headers.get("host", ""), 80)
            return (
                f"Host '{host}' is none of loopback's: have the proxy in front send `Host: 127.0.0.1`, "
                "or set WATCHER_HTTP_TOKEN, which decides alone"
            )
        if "authorization" in headers:
            return "what Authorization shows is not the token of --http"
        return "show the token of --http as `Authorization: Bearer ...`, or as a password"


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
    """Read a head; None for one that is malformed, or has two hosts or two tokens."""
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
    """Explain a head that is no request: what the client probably speaks, and what to do about it."""
    found = (why for begin, why in _NO_REQUEST if head.startswith(begin))
    return next(found, "it is not HTTP/1.1, or has two hosts or two tokens")


_CONNECTIONS = 16
"""At the same time. A scraper and a few probes need one each, for milliseconds."""

_CONNECTION_S = 10.0
"""For a whole request: as long as Prometheus waits."""

_LINGER_S = 1.0
_LINGER_BYTES = 64 * 1024
"""Bytes after the head that are read and discarded: left unread they would reset the connection, and the
client would lose the answer."""

_METHODS = "GET, HEAD, OPTIONS"
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_HEADERS = (
    "cache-control: no-store\r\n"
    "x-content-type-options: nosniff\r\n"
    "referrer-policy: no-referrer\r\n"
    "cross-origin-resource-policy: same-origin\r\n"
    "connection: close\r\n"
)
_ALLOW = f"allow: {_METHODS}\r\n"
_MORE = {
    # Two lines, as browsers do not find the one that they know in a list.
    401: 'www-authenticate: Basic realm="watcher", charset="UTF-8"\r\nwww-authenticate: Bearer\r\n',
    405: _ALLOW,
}


class Answer(NamedTuple):
    """What a route answers. `policy` is the content security policy: what it may do in a browser.

    `more` holds further headers, each with its line's end.
    """

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    policy: str = "default-src 'none'"
    more: str = ""


Route = Callable[[], Awaitable[Answer]]


class Listener:
    """Serves `routes` (by path) while it is entered. With a `token`, only to clients that show it.

    At the paths of `probes` a client that shows no token at all gets the status alone: load balancers cannot
    show one.
    """

    def __init__(
        self,
        address: Address,
        routes: Mapping[str, Route],
        *,
        token: str | None = None,
        probes: Collection[str] = (),
    ) -> None:
        self.address = address
        self._door = Door(address, token)
        self._routes = routes
        self._probes = probes
        self._refusals = Throttle()
        self._open: dict[asyncio.StreamWriter, None] = {}  # the oldest first

    async def __aenter__(self) -> Self:
        """Start to listen; `address` then has the port. Raises ListenerRefused."""
        try:
            self._server = await asyncio.start_server(
                self._connected, self.address.host, self.address.port, limit=HEAD_BYTES, backlog=_CONNECTIONS
            )
        except OSError as error:
            reason = why_not_listening(error)
            raise ListenerRefused(f"cannot listen at {self.address}: {reason}") from error
        self.address = self.address._replace(port=self._server.sockets[0].getsockname()[1])
        log.info("listener.started", address=str(self.address))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection. One that is too slow or too long is cut off, and of too many the oldest."""
        if len(self._open) >= _CONNECTIONS:  # at once: those that are held open must not keep a probe out
            oldest = next(iter(self._open))
            oldest.transport.abort()
            del self._open[oldest]
        self._open[writer] = None
        try:
            async with asyncio.timeout(_CONNECTION_S):
                answer = await self._answer(reader)
                writer.transport.set_write_buffer_limits(0)  # so that drain waits for the last byte
                writer.write(answer)
                await writer.drain()
                writer.write_eof()
                with suppress(TimeoutError, asyncio.IncompleteReadError):
                    async with asyncio.timeout(_LINGER_S):
                        await reader.readexactly(_LINGER_BYTES)
                writer.close()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            writer.transport.abort()
        except asyncio.CancelledError:
            # Not raised on: the task ends here, and Python 3.11 would call it a fault.
            writer.transport.abort()
        finally:
            self._open.pop(writer, None)

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await read_head(reader)
        except HeadTooLong:
            return _encode(self._refuse(431, f"its head is longer than {HEAD_BYTES} bytes: fewer cookies"))
        request = parse(head)
        if request is None:
            return _encode(self._refuse(400, why_none(head)))
        return _encode(await self._answer_to(request), has_body=request.method != "HEAD")

    async def _answer_to(self, request: Request) -> Answer:
        refusal = self._door.refusal(request.headers)
        is_probe = request.path in self._probes
        is_stranger = refusal == 401 and "authorization" not in request.headers
        if refusal and not (is_stranger and (is_probe or request.method == "OPTIONS")):
            is_asked = is_stranger and "text/html" in request.headers.get("accept", "")
            # A browser shows no token before it is asked for one: that is no mistake, and not logged.
            why = self._door.advice(refusal, request.headers)
            return _say(refusal, why) if is_asked else self._refuse(refusal, why)
        if request.method == "OPTIONS" and not is_probe:
            return Answer(200, b"", more=_ALLOW)
        route = self._routes.get(request.path)
        if route is None:
            return _say(404, f"here are {', '.join(self._routes)}")
        if request.method not in _METHODS.split(", "):
            return _say(405)
        answer = _say(500)
        with survived("listener"):
            answer = await route()
        return _say(answer.status) if is_stranger and answer.status != 200 else answer

    def _refuse(self, status: int, reason: str) -> Answer:
        """Refuse a request, and log it: at once, then seldom, however often it is sent."""
        what = status if status == 421 else (status, reason)  # a reason with a Host in it has no end of them
        if streak := self._refusals.struck(what, time.monotonic()):
            log.warning("listener.refused", status=status, reason=reason, **streak._asdict())
        return _say(status, reason)


def _say(status: int, why: str = "") -> Answer:
    body = f"{_PHRASES[status]}{': ' if why else ''}{why}\n".encode()
    return Answer(status, body, more=_MORE.get(status, ""))


def _encode(answer: Answer, *, has_body: bool = True) -> bytes:
    """Write an answer; without its body, but with its length, where HEAD asked."""
    head = (
        f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}\r\n"
        f"content-type: {answer.content_type}\r\n"
        f"content-length: {len(answer.body)}\r\n"
        f"content-security-policy: {answer.policy}\r\n"
        f"{_HEADERS}{answer.more}\r\n"
    )
    return head.encode("ascii") + (answer.body if has_body else b"")
