"""The web server of a worker: metrics, probes, the page, and /v1 behind its tokens.

Refuses to let a client cost the worker more than a little: its connections and requests are bounded in size,
number and time.
"""

import asyncio
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from http import HTTPStatus
from typing import Self

from aiohttp import HttpVersion10, HttpVersion11, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.typedefs import Handler

from watcher.api.access import (
    CALLER,
    PER_SECOND,
    Access,
    Address,
    Caller,
    Door,
    ListenerRefused,
    Rates,
)
from watcher.api.problems import Problem, answer
from watcher.engine.loop import survived
from watcher.observe.log import Throttle, log
from watcher.printable import printable, why_not_listening
from watcher.store.exceptions import StoreError

CONNECTIONS = 16
"""Connections at the same time: a scraper and a few probes need one each, for milliseconds."""

API_CONNECTIONS = 64
"""The same with /v1: programs keep theirs open from one request to the next."""

_AT_ONCE = 8
"""Requests under /v1 answered at the same time: most of the worker's time is for deliveries."""

_MOST_IN_HAND = 64
"""Requests under /v1 that are answered or wait; more are refused."""

REQUEST_S = 10.0
"""The limit for a request and its answer: Prometheus waits as long."""

IDLE_S = 75.0
"""The limit between two requests of a connection that has shown a token. It is longer than that of a proxy,
so that the proxy closes the connection, and at a time when no request is on its way."""

LINGER_S = 1.0
"""For so long, what a client still sends after the answer is read and discarded: left unread, it would reset
the connection, and the client would lose the answer."""

HEAD_BYTES = 16 * 1024
"""The limit for a request's head: the cookies of a company fit in, and nginx and Node take as much."""

_END_S = 0.5
"""How long a worker that ends waits for answers under way. aiohttp takes 0 for no limit."""

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "server": "watcher",
    "x-content-type-options": "nosniff",
}
_LAST = (401, 413, 431)
"""After these statuses the connection is closed: the client would send more of the same."""

_SOON = {"retry-after": "2"}
_AUTHENTICATE = ('Basic realm="watcher", charset="UTF-8"', "Bearer")
"""Two headers: browsers do not find the scheme that they know in a list."""

_NO_REQUEST = (
    (b"\x16", "it speaks TLS, which this port does not: use http://, or let a proxy terminate TLS"),
    (b"PROXY ", "it speaks the PROXY protocol: switch that off for this backend (HAProxy: no send-proxy)"),
    (b"\r\n", "it begins with an empty line, as version 2 of the PROXY protocol does: switch that off"),
    (b"PRI * HTTP/2", "it speaks HTTP/2: have it use HTTP/1.1 for this backend"),
)
_NO_HTTP = "it is not HTTP/1.1, which needs one Host, at most one Content-Type, and lines that end in CR LF"
_TOO_LONG = f"its head is longer than {HEAD_BYTES} bytes: send fewer cookies"
_ABSOLUTE = re.compile(r"https?://([!-.0-~]{1,256})(?:/|\Z)")
_NO_ACCESS_LOG = logging.Logger("access", logging.CRITICAL)


class Listener:
    """Serves `routes` (by path) while it is entered. With a `token`, only to clients that show it.

    At the paths of `probes`, a client without a token gets the status alone, because load balancers cannot
    show one. `api` are the routes under /v1, for callers that `access` knows. `counted` counts the requests
    there by outcome; `in_hand` are not answered yet.
    """

    def __init__(
        self,
        address: Address,
        routes: Mapping[str, Handler],
        *,
        token: str | None = None,
        probes: Collection[str] = (),
        api: Iterable[web.RouteDef] = (),
        access: Access | None = None,
        counted: Counter[str] | None = None,
    ) -> None:
        self.address = address
        self._door = Door(address, token)
        self._routes = routes
        self._probes = probes
        self._api = [*api]
        self._access = access
        self._counted = Counter[str]() if counted is None else counted
        self._most = CONNECTIONS if access is None else API_CONNECTIONS
        self._refusals = Throttle()
        self._rates = Rates()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self.in_hand = 0
        self._open: dict[Connection, None] = {}  # the oldest first

    async def __aenter__(self) -> Self:
        """Start to listen; `address` then has the port. Raises ListenerRefused."""
        app = web.Application(middlewares=[self._answer])
        for path, handler in self._routes.items():
            for each in dict.fromkeys((path, f"{path.rstrip('/')}/")):
                methods = ("GET", "HEAD", "OPTIONS") if path in self._probes else ("GET", "HEAD")
                for method in methods:  # HAProxy asks by OPTIONS
                    app.router.add_route(method, each, handler, expect_handler=_expect_nothing)
        if self._access:
            app.router.add_routes([*self._api, web.get("/v1", self._index), web.get("/v1/", self._index)])
        self._runner = web.AppRunner(app, shutdown_timeout=_END_S)
        await self._runner.setup()
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._connect, self.address.host, self.address.port, backlog=self._most
            )
        except OSError as error:
            reason = why_not_listening(error)
            raise ListenerRefused(f"cannot listen at {self.address}: {reason}") from error
        self.address = self.address._replace(port=self._server.sockets[0].getsockname()[1])
        log.info("listener.started", address=str(self.address))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._runner.cleanup()
        for connection in [*self._open]:
            connection.abort()

    def _connect(self) -> "Connection":
        assert self._runner.server
        return Connection(self, self._runner.server)

    def admit(self, connection: "Connection") -> None:
        """Note a connection. If there are too many, cut off the oldest one without a token, else the oldest
        idle one, else the oldest: connections that are held open must not keep a probe out."""
        if len(self._open) >= self._most:
            oldest = min(self._open, key=lambda one: (one.is_known, one.is_known and not one.is_idle))
            oldest.abort()
            del self._open[oldest]
        self._open[connection] = None

    def forget(self, connection: "Connection") -> None:
        self._open.pop(connection, None)

    def refuse(self, status: int, reason: str) -> web.Response:
        """Refuse a request. The first refusal of a kind is logged at once, its repeats seldom."""
        what = status if status == 421 else (status, reason)  # a reason with the Host is never the same
        if streak := self._refusals.struck(what, time.monotonic()):
            log.warning("listener.refused", status=status, reason=reason, **streak._asdict())
        return _say(status, reason)

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        assert isinstance(request.protocol, Connection)
        request.protocol.begin(request.content)
        headers = {name.lower(): value for name, value in request.headers.items()}
        if not request.raw_path.startswith(("/", "*")):
            # A target that names a host outranks the header, by RFC 9112.
            absolute = _ABSOLUTE.match(request.raw_path)
            headers["host"] = absolute[1] if absolute else ""
        is_api = self._access is not None and f"{request.path}/".startswith("/v1/")
        flaw = _flaw(request, headers)
        if flaw:
            response: web.StreamResponse = self.refuse(*flaw)
            response = Problem(*flaw).answer() if is_api else response
        elif is_api:
            response = await self._answer_api(request, request.protocol, handler)
        else:
            response = await self._answer_to(request, handler, headers)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        if not is_api or flaw or response.status in _LAST:
            response.headers["connection"] = "close"
            response.force_close()
        return response

    async def _answer_to(
        self, request: web.Request, handler: Handler, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        refusal = self._door.refusal(headers)
        resource = request.match_info.route.resource
        is_probe = resource is not None and resource.canonical.rstrip("/") in self._probes
        is_stranger = refusal == 401 and "authorization" not in headers
        if refusal and not (is_stranger and (is_probe or request.method == "OPTIONS")):
            is_asked = is_stranger and "text/html" in headers.get("accept", "")
            # A browser shows no token before it is asked for one: this is not logged.
            why = self._door.advice(refusal, headers)
            return _say(refusal, why) if is_asked else self.refuse(refusal, why)
        if request.method == "OPTIONS" and not is_probe:
            return web.Response(headers={"allow": "GET, HEAD, OPTIONS"})
        response: web.StreamResponse = _say(500)
        with survived("listener"):
            try:
                async with asyncio.timeout(REQUEST_S):
                    response = await handler(request)
            except web.HTTPMethodNotAllowed:
                return _say(405)
            except web.HTTPNotFound:
                return _say(404, f"here are {', '.join(self._routes)}")
        return _say(response.status) if is_stranger and response.status != 200 else response

    async def _answer_api(
        self, request: web.Request, connection: "Connection", handler: Handler
    ) -> web.StreamResponse:
        """Answer a request under /v1. Every error is a problem+json, and none says more than the caller may
        know."""
        response: web.StreamResponse = Problem(
            500, "this is a bug, and the worker's log has its traceback: please report it"
        ).answer()
        self.in_hand += 1
        try:
            with survived("api"):
                try:
                    self._let_in(request, connection)
                    async with asyncio.timeout(REQUEST_S), self._slots:
                        response = await handler(request)
                except (Problem, StoreError, TimeoutError, web.HTTPException) as error:
                    response = _problem(error, request).answer()
        finally:
            self.in_hand -= 1
        if caller := request.get(CALLER):
            self._rates.charge(caller, response)
        outcome = {4: "refused", 5: "failed"}.get(response.status // 100, "answered")
        self._counted[outcome] += 1
        return response

    def _let_in(self, request: web.Request, connection: "Connection") -> None:
        """Identify the caller, and check its rights and its rate. Raises Problem, and logs that seldom."""
        assert self._access
        caller = self._access.caller(request.headers.get("authorization", ""))
        if caller is None:
            raise self._refused(
                None,
                401,
                "send a token of this API: `Authorization: Bearer ...`",
                {"www-authenticate": "Bearer"},
            )
        connection.is_known = True
        if not self._access.is_open(caller, request):
            raise self._refused(caller, 403, "this token does not allow this request")
        if wait_s := self._rates.wait_s(caller, time.monotonic()):
            after = {"retry-after": str(math.ceil(wait_s))}
            raise self._refused(
                caller, 429, f"more than {PER_SECOND} requests a second with one token", after
            )
        if self.in_hand > _MOST_IN_HAND:
            after = {"retry-after": "1"}
            raise self._refused(caller, 503, f"more than {_MOST_IN_HAND} requests at the same time", after)
        request[CALLER] = caller

    def _refused(
        self, caller: Caller | None, status: int, reason: str, headers: Mapping[str, str] | None = None
    ) -> Problem:
        if streak := self._refusals.struck((caller, status), time.monotonic()):
            name = caller.name if caller else None
            log.warning("api.refused", status=status, reason=reason, token=name, **streak._asdict())
        return Problem(status, reason, headers=headers)

    async def _index(self, _: web.Request) -> web.Response:
        """List all paths, with their methods."""
        methods_by_path: dict[str, list[str]] = {}
        for each in self._api:
            methods_by_path.setdefault(each.path, []).append(each.method)
        return answer({path: sorted(methods) for path, methods in sorted(methods_by_path.items())})


def _flaw(request: web.Request, headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Return the status and the reason to refuse a request that could be read, or None."""
    if not HttpVersion10 <= request.version <= HttpVersion11 or not (
        headers.get("host") or request.raw_path[0] in "/*"
    ):
        return 400, _NO_HTTP
    if sum(len(name) + len(value) + 4 for name, value in request.raw_headers) > HEAD_BYTES:
        return 431, _TOO_LONG
    coding = headers.get("transfer-encoding", "chunked").lower()
    if coding != "chunked" or ("transfer-encoding" in headers and request.version < HttpVersion11):
        return 400, "its Transfer-Encoding is not accepted: a proxy may see another end of the body"
    if len(headers) < len(request.headers) and len(request.headers.getall("authorization", ())) > 1:
        return 400, "it has two tokens"
    return None


def _problem(error: Exception, request: web.Request) -> Problem:
    """Turn an error of a request under /v1 into a problem."""
    match error:
        case Problem():
            return error
        case StoreError():
            return Problem(503, f"Redis cannot be used now: {printable(str(error))}", headers=_SOON)
        case TimeoutError():
            return Problem(503, f"this took longer than {REQUEST_S:.0f} s", headers=_SOON)
        case web.HTTPMethodNotAllowed():
            allow = ", ".join(sorted(error.allowed_methods))
            return Problem(405, f"{request.path} takes {allow}"[:200], headers={"allow": allow})
        case web.HTTPNotFound():
            return Problem(404, "there is no such path: GET /v1/ lists all paths")
        case _:
            status = error.status if isinstance(error, web.HTTPException) else 500
            return Problem(status, HTTPStatus(status).phrase)


class Connection(web.RequestHandler):
    """One connection. A slow request is cut off; what is no HTTP request gets an answer that says so."""

    def __init__(self, listener: Listener, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=_NO_ACCESS_LOG,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            max_headers=100,
            auto_decompress=False,
        )
        self._listener = listener
        self.is_known = False  # has shown a token
        self._begun = b""
        self._is_asked = self._is_over = False
        self._body: StreamReader | None = None
        self._cut_off: asyncio.TimerHandle | None = None
        self._peer: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._peer = transport
        self._listener.admit(self)
        self.begin()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if len(self._begun) < 16:
            self._begun += data[:16]
        self._is_asked = True
        if self._cut_off is None:
            self.begin()
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override] # a Protocol's may say that it still writes
        """Answer a client that closed its side after the request and still reads, as `nc -N` does."""
        self._is_over = True
        return self._is_asked and (self._body is None or self._body.is_eof())

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._cut_off:
            self._cut_off.cancel()
        self._listener.forget(self)
        super().connection_lost(exc)

    def begin(self, body: StreamReader | None = None) -> None:
        """Note that a request begins: it and its answer have REQUEST_S from now on."""
        self._body = body
        if self._is_over and body and not body.is_eof():
            self.abort()
        if self._cut_off:
            self._cut_off.cancel()
        self._cut_off = asyncio.get_running_loop().call_later(REQUEST_S, self.abort)

    def log_access(self, request: web.BaseRequest, response: web.StreamResponse, time: float | None) -> None:
        """Note that an answer is sent: no time limit runs until the next request."""
        super().log_access(request, response, time)
        self._is_asked, self._body = False, None
        if self._is_over:
            self.close()
        if self.is_known and self._cut_off:
            self._cut_off.cancel()
            self._cut_off = None

    @property
    def is_idle(self) -> bool:
        return self._cut_off is None

    def abort(self) -> None:
        if isinstance(self._peer, asyncio.Transport):
            self._peer.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what cannot be read as a request."""
        response: web.StreamResponse
        if not isinstance(exc, HttpProcessingError):
            response = super().handle_error(request, status, exc)  # logs it
        elif isinstance(exc, LineTooLong):
            response = self._listener.refuse(431, _TOO_LONG)
        else:
            found = (why for begin, why in _NO_REQUEST if self._begun.startswith(begin))
            response = self._listener.refuse(400, next(found, _NO_HTTP))
        response.headers.update({**_HEADERS, "connection": "close"})
        return response


async def _expect_nothing(_: web.Request) -> None:
    """Let a request with `Expect` be answered at once: no body is wanted."""


def _say(status: int, why: str = "") -> web.Response:
    text = f"{HTTPStatus(status).phrase}{': ' if why else ''}{why}\n"
    response = web.Response(status=status, text=text)
    if status == 401:
        for scheme in _AUTHENTICATE:
            response.headers.add("www-authenticate", scheme)
    if status == 405:
        response.headers["allow"] = "GET, HEAD, OPTIONS"
    return response
