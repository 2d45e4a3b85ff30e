"""What load balancers, orchestrators and uptime monitors send, byte for byte, and what they expect."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tests.support.scraped import said
from watcher.api import server
from watcher.api.access import Address
from watcher.api.server import Listener

TOKEN = "a-token-of-some-length"
SHOWN = f"Authorization: Bearer {TOKEN}\r\n"
LATIN_1 = "X-User: J\xfcrgen"


async def well(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def not_ready(_: web.Request) -> web.Response:
    return web.Response(status=503, text="Redis cannot be used now\n")


ROUTES = {"/livez": well, "/readyz": not_ready, "/metrics": well}
PROBES = ("/livez", "/readyz")


@asynccontextmanager
async def a_listener(host: str = "127.0.0.1", token: str | None = None) -> AsyncIterator[int]:
    async with Listener(Address(host, 0), ROUTES, token=token, probes=PROBES) as listening:
        yield listening.address.port


async def asked(port: int, request: str) -> tuple[int, bytes, bytes]:
    """Status, head and body of what comes back."""
    head, _, body = (await said(port, request.encode("latin-1"))).partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), head, body


def get(path: str, host: str, *more: str) -> str:
    return "\r\n".join((f"GET {path} HTTP/1.1", f"Host: {host}", *more, "", ""))


ON_LOOPBACK = {
    "curl": get("/livez", "127.0.0.1:8787", "User-Agent: curl/8.5.0", "Accept: */*"),
    "HAProxy httpchk GET": "GET /livez HTTP/1.0\r\n\r\n",
    "HAProxy httpchk with a path alone": "OPTIONS /livez HTTP/1.0\r\n\r\n",
    "HTTP/1.1 of who knows no name": "GET /livez HTTP/1.1\r\nHost:\r\n\r\n",
    "HTTP/1.0 with a Host": "GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n",
    "absolute form": get("http://127.0.0.1/livez", "127.0.0.1"),
    "absolute form with a port and a query": get("http://localhost:8787/livez?a=b", "localhost"),
    "trailing slash": get("/livez/", "localhost"),
    "latin-1 header": get("/livez", "localhost", LATIN_1),
    "body with GET": get("/livez", "localhost", "Content-Length: 2") + "hi",
    "large body with GET": get("/livez", "localhost", "Content-Length: 60000") + "h" * 60_000,
    "chunked body with GET": get("/livez", "localhost", "Transfer-Encoding: chunked")
    + "2\r\nhi\r\n0\r\n\r\n",
    "expects 100": get("/livez", "localhost", "Content-Length: 2", "Expect: 100-continue"),
    "asks for h2c": get("/livez", "localhost", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
    "Prometheus": get("/metrics", "localhost:8787", "Accept: application/openmetrics-text;version=1.0.0"),
}


@pytest.mark.parametrize("request_text", ON_LOOPBACK.values(), ids=ON_LOOPBACK)
async def test_a_common_probe_on_loopback_is_answered(request_text: str) -> None:
    async with a_listener() as port:
        status, _, body = await asked(port, request_text.replace("8787", str(port)))
    assert (status, body) == (200, b"ok\n")


@pytest.mark.parametrize("path", ["/livez", "/nothing"])
async def test_a_client_that_half_closes_still_gets_its_answer(path: str) -> None:
    async with a_listener() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        writer.write_eof()
        assert (await reader.read()).startswith(b"HTTP/1.0 200" if path == "/livez" else b"HTTP/1.0 404")
        writer.close()


async def test_a_body_that_comes_after_the_answer_does_not_reset_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "LINGER_S", 30.0)
    async with a_listener() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get("/livez", "localhost", "Content-Length: 40000", "Expect: 100-continue").encode())
        await reader.readuntil(b"ok\n")
        for _ in range(20):
            writer.write(b"h" * 2000)
            await writer.drain()
            await asyncio.sleep(0.001)  # so that a reset, if there is one, arrives in between
        writer.close()


def undated(head: bytes) -> list[bytes]:
    return [line for line in head.split(b"\r\n") if not line.startswith(b"Date: ")]


HEADS = {
    "wget --spider": "HEAD /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Keep-Alive\r\n\r\n",
    "curl -I": "HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HAProxy httpchk HEAD": "HEAD /livez HTTP/1.0\r\n\r\n",
}


@pytest.mark.parametrize("request_text", HEADS.values(), ids=HEADS)
async def test_head_is_get_without_a_body(request_text: str) -> None:
    async with a_listener() as port:
        status, head, body = await asked(port, request_text)
        _, like_get, _ = await asked(port, request_text.replace("HEAD", "GET"))
    assert (status, body) == (200, b"")
    assert undated(head) == undated(like_get)
    assert b"content-length: 3" in head.lower()


@pytest.mark.parametrize(("path", "expected"), [("/readyz", 503), ("/nothing", 404)])
async def test_head_reports_an_error_without_a_body_too(path: str, expected: int) -> None:
    async with a_listener() as port:
        status, _, body = await asked(port, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (status, body) == (expected, b"")


async def test_options_on_a_probe_returns_its_status_as_haproxy_expects() -> None:
    async with a_listener() as port:
        assert (await asked(port, "OPTIONS /readyz HTTP/1.0\r\n\r\n"))[0] == 503


@pytest.mark.parametrize("path", ["/", "*", "/metrics"])
@pytest.mark.parametrize("token", [None, TOKEN])
async def test_options_on_anything_else_lists_the_allowed_methods_only(path: str, token: str | None) -> None:
    async with a_listener(token=token) as port:
        status, head, body = await asked(port, f"OPTIONS {path} HTTP/1.0\r\n\r\n")
    assert (status, body) == (200, b"")
    assert b"\r\nallow: GET, HEAD, OPTIONS\r\n" in head


BEYOND = {
    "Kubernetes": get(
        "/livez", "10.1.2.3:8787", "User-Agent: kube-probe/1.29", "Accept: */*", "Connection: close"
    ),
    "AWS ALB": get("/livez", "10.1.2.3:8787", "Connection: close", "User-Agent: ELB-HealthChecker/2.0"),
    "AWS ELB": get("/livez", "10.1.2.3", "User-Agent: ELB-HealthChecker/1.0", "Connection: keep-alive"),
    "Google": get("/livez", "10.1.2.3", "User-Agent: GoogleHC/1.0", "Connection: Keep-alive"),
    "HAProxy": "OPTIONS /livez HTTP/1.0\r\n\r\n",
    "a proxy's public name": get("/livez", "watch.example.com", "X-Forwarded-For: 192.0.2.1"),
}


@pytest.mark.parametrize("shown", ["", SHOWN], ids=["without a token", "with the token"])
@pytest.mark.parametrize("request_text", BEYOND.values(), ids=BEYOND)
@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
async def test_a_load_balancer_without_a_token_learns_the_status(
    host: str, request_text: str, shown: str
) -> None:
    async with a_listener(host, TOKEN) as port:
        status, _, body = await asked(port, request_text.replace("\r\n\r\n", f"\r\n{shown}\r\n"))
    assert (status, body) == (200, b"ok\n")


async def test_without_the_token_a_probe_shows_only_its_status() -> None:
    async with a_listener("0.0.0.0", TOKEN) as port:
        strange = await asked(port, get("/readyz", "10.1.2.3"))
        own = await asked(port, get("/readyz", "10.1.2.3", SHOWN.strip()))
        wrong = await asked(port, get("/readyz", "10.1.2.3", f"{SHOWN.strip()}x"))
        metrics = await asked(port, get("/metrics", "10.1.2.3"))
    assert (strange[0], strange[2]) == (503, b"Service Unavailable\n")
    assert (own[0], own[2]) == (503, b"Redis cannot be used now\n")
    assert (wrong[0], metrics[0]) == (401, 401)


NO_REQUESTS = {
    "HTTP/2 preface": ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "HTTP/1.1"),
    "PROXY protocol": (
        "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
        "send-proxy",
    ),
    "PROXY protocol 2": (
        "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + "\x00" * 12 + "GET / HTTP/1.1\r\n\r\n",
        "PROXY",
    ),
    "TLS": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
    "HTTP/0.9": ("GET /livez\r\n\r\n", "not HTTP/1.1"),
    "HTTP/1.1 without a Host": ("GET /livez HTTP/1.1\r\n\r\n", "one Host"),
    "two types of content": (
        "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n\r\n",
        "at most one Content-Type",
    ),
    "line feeds alone": ("GET /livez HTTP/1.0\n\n", "CR LF"),
}


@pytest.mark.parametrize(("request_text", "reason"), NO_REQUESTS.values(), ids=NO_REQUESTS)
async def test_bytes_that_are_no_request_get_a_clean_400_at_once_and_a_line_with_the_fix(
    request_text: str, reason: str
) -> None:
    async with a_listener() as port:
        with capture_logs() as lines:
            status, head, body = await asked(port, request_text)
    assert status == 400
    assert b"connection: close" in head
    (line,) = lines
    assert (line["event"], line["log_level"], line["status"]) == ("listener.refused", "warning", 400)
    assert reason in line["reason"]
    assert reason in body.decode()


async def test_refused_requests_are_logged_once_an_hour_however_many_come() -> None:
    async with a_listener() as port:
        with capture_logs() as lines:
            for name in ("a", "b", "c"):
                await asked(port, get("/livez", f"{name}.example"))
                await asked(port, "\x16\x03\x01")
                await asked(port, "PROXY UNKNOWN\r\n\r\n")
    led, tls, proxied = lines
    assert [(line["status"], line["times"]) for line in lines] == [(421, 1), (400, 1), (400, 1)]
    assert "Host 'a.example' is none of loopback's" in led["reason"]
    assert ("TLS" in tls["reason"], "PROXY" in proxied["reason"]) == (True, True)


async def test_a_browser_that_is_only_asked_for_the_token_is_not_logged() -> None:
    async with a_listener(token=TOKEN) as port:
        with capture_logs() as lines:
            first = await asked(port, get("/metrics", "watch.example.com", "Accept: text/html,*/*"))
        assert (first[0], lines) == (401, [])
        with capture_logs() as lines:
            await asked(port, get("/metrics", "watch.example.com"))
    assert [(line["status"], "Bearer" in line["reason"]) for line in lines] == [(401, True)]
