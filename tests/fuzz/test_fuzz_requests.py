"""Any bytes that arrive over a socket are answered or refused, and the server goes on."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import uvloop
from aiohttp import web
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.support.fuzzing import damaged_bytes, fuzz
from watcher.api.access import Access, Address
from watcher.api.problems import answer, body_of
from watcher.api.server import Listener

TOKEN = "the-token-of-the-operator"
SHOWN = b"Host: localhost\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
PROBE = b"GET /livez HTTP/1.1\r\n" + SHOWN + b"\r\n"
PUT = b"PUT /v1/accounts/%61 HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 5\r\n" + SHOWN
CHUNKED = PUT.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"\r\n5\r\nhello\r\n0\r\n\r\n"
TWO = (
    PUT
    + b"\r\nhello"
    + b"OPTIONS http://[::1]:80/v1/?a=%FF HTTP/1.0\r\nExpect: 100-continue\r\n"
    + SHOWN
    + b"\r\n"
)
REQUESTS = damaged_bytes(PROBE) | damaged_bytes(CHUNKED) | damaged_bytes(TWO) | st.binary()


@dataclass(frozen=True, slots=True)
class Place:
    runner: asyncio.Runner
    port: int
    stumbled: list[Any]
    """Uncaught errors."""

    def _repr_pretty_(self, printer: Any, _is_cycle: bool) -> None:
        printer.text("place")


async def _take(request: web.Request) -> web.Response:
    return answer({"name": request.match_info.get("name"), "bytes": len(await body_of(request))})


async def _well(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stumbled, stack = list[Any](), AsyncExitStack()
        runner.get_loop().set_exception_handler(lambda _, context: stumbled.append(context))
        listener = Listener(
            Address("127.0.0.1", 0),
            {"/livez": _well},
            token=TOKEN,
            probes=("/livez",),
            api=[web.put("/v1/accounts/{name}", _take)],
            access=Access(TOKEN, dict[str, str]().get),
        )
        port = runner.run(stack.enter_async_context(listener)).address.port
        yield Place(runner, port, stumbled)
        runner.run(stack.aclose())


@fuzz(request=REQUESTS)
def test_any_bytes_are_answered_or_refused_and_the_next_request_is_answered(
    place: Place, request: bytes
) -> None:
    with capture_logs() as lines:
        said = place.runner.run(_said(place.port, request, patience_s=0.05))
        assert place.runner.run(_said(place.port, PROBE, patience_s=10)).endswith(b"\r\n\r\nok\n")
    assert place.stumbled == []
    assert [line for line in lines if line["event"] not in ("api.refused", "listener.refused")] == []
    assert all(str(line["reason"]).isprintable() for line in lines)
    assert not said or re.match(rb"HTTP/\d\.\d (?:100|200|4\d\d|503) ", said)
    assert TOKEN.encode() not in said


async def _said(port: int, request: bytes, *, patience_s: float) -> bytes:
    """What comes back in time: one whose body does not come whole is not answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = b""
    try:
        writer.write(request)
        writer.write_eof()
        async with asyncio.timeout(patience_s):
            while part := await reader.read(65_536):
                found += part
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return found
