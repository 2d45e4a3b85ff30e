"""A small HTTP server for metrics and probes: one GET a connection, bounded in size, number and time.

Written out rather than a framework's, because it stands in the worker's process: nobody who connects may
cost the deliveries descriptors, memory or time. Refuses every method but GET, and whom `door` refuses.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Self

from watcher.exposed.door import Address, Door, ListenerRefused
from watcher.logs.lines import log

_HEAD_BYTES = 8 * 1024
_CONNECTIONS = 16
"""At the same time. A scraper and a few probes need one each, for milliseconds."""

_CONNECTION_S = 10.0
"""From the first byte to the last, as long as Prometheus waits."""

_REQUEST = re.compile(r"([A-Z]{1,16}) (/[!-~]{0,1024}) HTTP/1\.[01]\Z", re.ASCII)
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):([ -~\t]*)\Z", re.ASCII)
_ONCE = ("host", "authorization")

_PHRASES = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    421: "Misdirected Request",
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
_MORE = {
    # Two lines, as browsers do not find the one that they know in a list.
    401: 'www-authenticate: Basic realm="watcher", charset="UTF-8"\r\nwww-authenticate: Bearer\r\n',
    405: "allow: GET\r\n",
}


class Answer(NamedTuple):
    """What a route answers. `policy` is the content security policy: what it may do in a browser."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    policy: str = "default-src 'none'"


Route = Callable[[], Awaitable[Answer]]


class Listener:
    """Serves `routes` (by path) while it is entered. With a `token`, only to those who show it."""

    def __init__(self, address: Address, routes: Mapping[str, Route], *, token: str | None = None) -> None:
        self.address = address
        self._door = Door(address, token)
        self._routes = routes
        self._open: dict[asyncio.StreamWriter, None] = {}  # the oldest first

    async def __aenter__(self) -> Self:
        """Start to listen; `address` then tells the port. Raises ListenerRefused."""
        try:
            self._server = await asyncio.start_server(
                self._connected, self.address.host, self.address.port, limit=_HEAD_BYTES, backlog=_CONNECTIONS
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
                head = await reader.readuntil(b"\r\n\r\n")
                writer.transport.set_write_buffer_limits(0)  # so that drain waits for the last byte
                writer.write(_encode(await self._answer(head)))
                await writer.drain()
                writer.close()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
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

    async def _answer(self, head: bytes) -> Answer:
        request = _parse(head)
        if request is None:
            return _say(400)
        if refusal := self._door.refusal(request.headers):
            return _say(refusal)
        route = self._routes.get(request.path)
        if route is None:
            return _say(404)
        if request.method != "GET":
            return _say(405)
        try:
            return await route()
        except Exception:
            log.exception("bug", affected="listener")
            return _say(500)


class _Request(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]


def _parse(head: bytes) -> _Request | None:
    """Read a request's head; None where it is none, or says twice where it goes or who sends it."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    request = _REQUEST.match(first)
    headers = [(header[1].lower(), header[2].strip()) for line in lines if (header := _HEADER.match(line))]
    names = [name for name, _ in headers]
    if not request or len(headers) < len(lines) or any(names.count(name) > 1 for name in _ONCE):
        return None
    return _Request(request[1], request[2].partition("?")[0], dict(headers))


def _say(status: int) -> Answer:
    return Answer(status, f"{_PHRASES[status]}\n".encode())


def _encode(answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}\r\n"
        f"content-type: {answer.content_type}\r\n"
        f"content-length: {len(answer.body)}\r\n"
        f"content-security-policy: {answer.policy}\r\n"
        f"{_HEADERS}{_MORE.get(answer.status, '')}\r\n"
    )
    return head.encode("ascii") + answer.body
