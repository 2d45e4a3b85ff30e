"""A small HTTP server for metrics and probes: one request a connection, bounded in size, number and time.

Written out rather than a framework's, because it stands in the worker's process: nobody who connects may
cost the deliveries descriptors, memory or time. Refuses what `door` refuses, and says so in the log.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import NamedTuple, Self

from watcher.observe.door import Address, Door, ListenerRefused
from watcher.observe.log import log
from watcher.observe.request import HEAD_BYTES, HeadTooLong, Request, parse, read_head, why_none
from watcher.observe.throttle import Throttle

_CONNECTIONS = 16
"""At the same time. A scraper and a few probes need one each, for milliseconds."""

_CONNECTION_S = 10.0
"""From the first byte to the last, as long as Prometheus waits."""

_LINGER_S = 1.0
_LINGER_BYTES = 64 * 1024
"""What a client says beyond its head is read away, so far: left unread it would reset the connection, and the
answer would be lost."""

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
    """Serves `routes` (by path) while it is entered. With a `token`, only to those who show it.

    At the paths of `probes` a client that shows no token at all learns the status alone: load balancers
    cannot show one.
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
        """Start to listen; `address` then tells the port. Raises ListenerRefused."""
        try:
            self._server = await asyncio.start_server(
                self._connected, self.address.host, self.address.port, limit=HEAD_BYTES, backlog=_CONNECTIONS
            )
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ListenerRefused(f"cannot listen at {self.address}: {reason}") from error
        self.address = self.address._replace(port=self._server.sockets[0].getsockname()[1])
        log.info("listener.started", address=str(self.address))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection. Who is too slow or too long is cut off, and of too many who came first."""
        if len(self._open) >= _CONNECTIONS:
            self._cut_off(next(iter(self._open)))
        self._open[writer] = None
        try:
            async with asyncio.timeout(_CONNECTION_S):
                answer = await self._answer(reader)
                writer.transport.set_write_buffer_limits(0)  # so that drain waits for the last byte
                writer.write(answer)
                await writer.drain()
                await _linger(reader, writer)
                writer.close()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            writer.transport.abort()
        except (
            asyncio.CancelledError
        ):  # not raised on: the task ends here, and Python 3.11 would call it a fault
            writer.transport.abort()
        finally:
            self._open.pop(writer, None)

    def _cut_off(self, writer: asyncio.StreamWriter) -> None:
        """Make room at once: those who hold connections open must not keep a probe out."""
        writer.transport.abort()
        del self._open[writer]

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
            # A browser shows no token before it is asked for one: that is no mistake to tell of.
            why = self._door.advice(refusal, request.headers)
            return _say(refusal, why) if is_asked else self._refuse(refusal, why)
        if request.method == "OPTIONS" and not is_probe:
            return Answer(200, b"", more=_ALLOW)
        route = self._routes.get(request.path)
        if route is None:
            return _say(404, f"here are {', '.join(self._routes)}")
        if request.method not in _METHODS.split(", "):
            return _say(405)
        answer = await self._ask(route)
        return _say(answer.status) if is_stranger and answer.status != 200 else answer

    async def _ask(self, route: Route) -> Answer:
        try:
            return await route()
        except Exception:
            log.exception("bug", affected="listener")
            return _say(500)

    def _refuse(self, status: int, reason: str) -> Answer:
        """Refuse a request, and say so in the log: at once, then seldom, whatever strangers send."""
        what = status if status == 421 else (status, reason)  # a reason with a Host in it has no end of them
        if streak := self._refusals.struck(what, time.monotonic()):
            log.warning("listener.refused", status=status, reason=reason, **streak._asdict())
        return _say(status, reason)


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say that no more will come, and read away what the client still says."""
    writer.write_eof()
    left = _LINGER_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while left > 0 and (said := await reader.read(left)):
                left -= len(said)


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
