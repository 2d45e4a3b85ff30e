"""The HTTP server in front of a worker: strict, small, and no client can slow the worker down."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tests.support.scraped import get, said
from watcher.api import server
from watcher.api.access import Address, ListenerRefused
from watcher.api.server import Listener

TOKEN = "a-token-of-some-length"


async def fine(_: web.Request) -> web.Response:
    return web.Response(text="fine\n")


async def broken(_: web.Request) -> web.Response:
    raise KeyError("canary")


async def large(_: web.Request) -> web.Response:
    return web.Response(body=b"x" * 20_000_000)


ROUTES = {"/livez": fine, "/broken": broken, "/large": large}


@contextlib.asynccontextmanager
async def a_listener(token: str | None = None, host: str = "127.0.0.1") -> AsyncIterator[int]:
    async with Listener(Address(host, 0), ROUTES, token=token) as listening:
        yield listening.address.port


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with a_listener() as port:
        yield port


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_an_answer_is_plain_uncached_and_closes_its_connection(port: int) -> None:
    answer = await get(port, "/livez?probe=1")
    assert (answer.status, answer.body) == (200, "fine\n")
    assert answer.headers == {
        "date": answer.headers["date"],
        "server": "watcher",
        "content-type": "text/plain; charset=utf-8",
        "content-length": "5",
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "connection": "close",
    }


@pytest.mark.parametrize(
    "path", ["/", "/livez//", "/LIVEZ", "//livez", "/livez/../livez", "/livez%2F", "/%00", "/favicon.ico"]
)
async def test_only_what_is_served_is_found(port: int, path: str) -> None:
    assert (await get(port, path)).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "TRACE", "PATCH"])
async def test_a_method_that_would_change_something_is_refused(port: int, method: str) -> None:
    answer = await said(port, f"{method} /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status(answer) == 405
    assert b"\r\nallow: GET, HEAD, OPTIONS\r\n" in answer


@pytest.mark.parametrize(
    "request_head",
    [
        "GET /livez",
        "GET  /livez HTTP/1.1",
        "get /livez HTTP/1.1",
        "GET /livez HTTP/2.0",
        "GET /livez HTTP/1.1 ",
        "GET ftp://localhost/livez HTTP/1.1",
        "GET * livez HTTP/1.1",
        "GET livez HTTP/1.1",
        "GET /li\x00vez HTTP/1.1",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil.example",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nauthorization: a\r\nAuthorization: b",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\n folded: yes",
        "GET /livez HTTP/1.1\r\nHost : localhost",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nno colon",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nx: \x1b[31m",
        "GET /livez HTTP/1.1\nHost: localhost\nHost: evil.example",
        "GET /livez HTTP/1.1\r\nHost: local\rhost",
        "CONNECT localhost:80 HTTP/1.1",
        "GET /livez HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked",
        "\x16\x03\x01\x02\x00\x01",
    ],
)
async def test_what_is_not_exactly_http_is_refused(port: int, request_head: str) -> None:
    assert status(await said(port, request_head.encode("latin-1") + b"\r\n\r\n")) == 400


async def test_a_request_by_dns_rebinding_is_refused(port: int) -> None:
    assert status(await said(port, b"GET /livez HTTP/1.1\r\nHost: evil.example\r\n\r\n")) == 421
    led = b"GET http://evil.example/livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert status(await said(port, led)) == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_where_a_token_is_set_a_request_without_it_learns_nothing(host: str) -> None:
    async with a_listener(TOKEN, host) as port:
        answers = [
            await get(port, path, *shown)
            for path in ("/livez", "/nothing")
            for shown in ([], [f"Authorization: Bearer {TOKEN}x"], [f"Authorization: Bearer {TOKEN}"])
        ]
    assert [answer.status for answer in answers] == [401, 401, 200, 401, 401, 404]
    assert answers[0].headers["www-authenticate"] == "bearer"


async def test_a_bug_behind_a_route_is_logged_and_not_shown_to_the_client(port: int) -> None:
    with capture_logs() as lines:
        answer = await get(port, "/broken")
    assert (answer.status, answer.body) == (500, "Internal Server Error\n")
    assert [(line["event"], line["affected"]) for line in lines] == [("bug", "listener")]


@pytest.mark.parametrize("line", [b"x: " + b"a" * 20_000, b"\r\n".join([b"x: " + b"a" * 1000] * 20)])
async def test_a_head_that_is_too_long_is_refused_with_a_reason(port: int, line: bytes) -> None:
    with capture_logs() as lines:
        assert (
            status(await said(port, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + line + b"\r\n\r\n"))
            == 431
        )
    assert [(line["event"], line["status"]) for line in lines] == [("listener.refused", 431)]
    assert (await get(port, "/livez")).status == 200


async def test_a_costly_head_is_refused_within_a_second(port: int) -> None:
    started = time.perf_counter()
    assert status(await said(port, b"GET /livez HTTP/1.1\r\nx:" + b" " * 8000 + b"\x7f\r\n\r\n")) == 400
    assert time.perf_counter() - started < 1


async def test_a_client_that_sends_nothing_or_does_not_read_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.2)
    async with a_listener() as port:
        silent = await asyncio.open_connection("127.0.0.1", port)
        deaf = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        deaf[1].write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert await silent[0].read() == b""
            await asyncio.sleep(0.4)  # meanwhile nothing is read
            with contextlib.suppress(ConnectionError):
                assert len(await deaf[0].read()) < 20_000_000
        for _, writer in (silent, deaf):
            writer.close()


async def test_idle_connections_are_bounded_and_keep_no_probe_out(port: int) -> None:
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
    assert (await get(port, "/livez")).status == 200
    async with asyncio.timeout(5):
        for reader, _ in held[:40]:  # the oldest ones were closed
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
    for _, writer in held:
        writer.close()


async def test_closing_the_listener_cuts_off_open_connections() -> None:
    async with a_listener() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await get(port, "/livez")
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_that_is_taken_is_reported_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(
            ListenerRefused, match=r"at 127\.0\.0\.1:\d+: address already in use; choose another port$"
        ) as refused:
            async with Listener(Address("127.0.0.1", taken.getsockname()[1]), ROUTES):
                pass
    assert refused.value.exit_code == 78


async def test_a_worker_that_ends_during_an_answer_leaves_no_traceback() -> None:
    asked, complaints = asyncio.Event(), []

    async def never(_: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with Listener(Address("127.0.0.1", 0), {"/": never}, token=None) as listening:
        client = asyncio.create_task(
            said(listening.address.port, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        )
        await asked.wait()
    assert await client == b""
    assert complaints == []
