"""Connections: how many, how long, and that no request gets the answer to another."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from yarl import URL

from tests.support.raw_subscribers import OK, FakeDns, Peer, Subscriber, answering, never_answer, subscribing
from watcher.http.dial import Dialer
from watcher.http.pool import Pool
from watcher.http.wire import Answer, Head, Limits, TimedOut, place_of

ROOM = Limits(65_536, 65_536)


@contextlib.asynccontextmanager
async def a_pool(**options: Any) -> AsyncIterator[Pool]:
    pool = Pool(Dialer(FakeDns({})), **{"keep_alive_s": 4.0, **options})
    yield pool
    await pool.close()


async def post(pool: Pool, to: Subscriber, *, deadline_s: float = 5, rest_s: float | None = None) -> Answer:
    url = URL(to.url)
    request = Head.of("POST", url, [("content-length", "0")]).written() + b"\r\n"
    deadline = asyncio.get_running_loop().time() + deadline_s
    return await pool.send(place_of(url), request, ROOM, deadline=deadline, rest_s=rest_s)


async def test_sequential_requests_share_a_connection() -> None:
    async with subscribing(answering(OK)) as server, a_pool() as pool:
        assert [(await post(pool, server)).status for _ in range(5)] == 5 * [200]
        assert server.connections == 1


async def test_concurrent_requests_have_a_connection_each() -> None:
    are_all = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        if len(peer.subscriber.requests) == 5:
            are_all.set()
        await are_all.wait()
        await peer.send(OK)
        await peer.wait_for_the_end()

    async with subscribing(script) as server, a_pool() as pool:
        answers = await asyncio.gather(*(post(pool, server) for _ in range(5)))
        assert [answer.status for answer in answers] == 5 * [200]
        assert server.connections == 5


async def test_concurrent_requests_are_limited() -> None:
    async with subscribing(answering(OK)) as server, a_pool(limit=2) as pool:
        answers = await asyncio.gather(*(post(pool, server) for _ in range(20)))
        assert [answer.status for answer in answers] == 20 * [200]
        assert server.connections == 2


async def test_the_wait_for_a_free_connection_is_within_the_deadline() -> None:
    async with subscribing(never_answer) as server, a_pool(limit=1) as pool:
        first, second = await asyncio.gather(
            post(pool, server, deadline_s=0.2), post(pool, server, deadline_s=0.1), return_exceptions=True
        )
        assert isinstance(first, TimedOut)
        assert isinstance(second, TimedOut)
        assert (first.is_connected, second.is_connected) == (True, False)
        assert server.connections == 1


async def test_an_idle_connection_is_closed_after_a_while() -> None:
    has_ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(OK)
        await peer.wait_for_the_end()
        has_ended.set()

    async with subscribing(script) as server, a_pool(keep_alive_s=0.05) as pool:
        await post(pool, server)
        async with asyncio.timeout(5):
            await has_ended.wait()


async def test_a_request_that_was_cancelled_leaves_no_connection_to_the_next() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        if peer.number > 1:
            await peer.send(OK)
        await peer.wait_for_the_end()

    async with subscribing(script) as server, a_pool() as pool:
        cancelled = asyncio.create_task(post(pool, server))
        await server.until(lambda server: len(server.requests) == 1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert (await post(pool, server)).status == 200
        assert server.connections == 2


FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"

SMUGGLING = {
    "a second answer": b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" + FORGED,
    "half of a second answer": b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" + FORGED[:20],
    "a body of a 204": b"HTTP/1.1 204 None\r\nContent-Length: 45\r\n\r\n" + FORGED,
    "a body of a 304": b"HTTP/1.1 304 None\r\nContent-Length: 45\r\n\r\n" + FORGED,
    "behind the last chunk": b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + FORGED,
    "in a trailer": b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n\r\n" + FORGED,
    "a length and chunks": (
        b"HTTP/1.1 500 No\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + FORGED
    ),
    "chunks and a length": (
        b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + FORGED
    ),
    "two lengths": b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nContent-Length: 45\r\n\r\n" + FORGED,
    "a list of lengths": b"HTTP/1.1 500 No\r\nContent-Length: 0, 0\r\n\r\n" + FORGED,
    "a signed length": b"HTTP/1.1 500 No\r\nContent-Length: +0\r\n\r\n" + FORGED,
    "a hexadecimal length": b"HTTP/1.1 500 No\r\nContent-Length: 0x0\r\n\r\n" + FORGED,
    "chunks that are not last": b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n" + FORGED,
    "chunks twice": b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n"
    + FORGED,
    "a chunk beyond 64 bits": b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n"
    + FORGED,
    "a chunk with a line break": b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n0\n\n" + FORGED,
    "interim behind the answer": b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\nHTTP/1.1 100 Go on\r\n\r\n"
    + FORGED,
    "an upgrade": b"HTTP/1.1 101 Up\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + FORGED,
}
"""What leaves bytes behind that the next request on the connection could take for its answer."""


@pytest.mark.parametrize("said", SMUGGLING.values(), ids=SMUGGLING)
@pytest.mark.parametrize("is_later", [False, True])
async def test_no_request_gets_the_answer_to_another(said: bytes, is_later: bool) -> None:
    """`is_later`: what is behind the answer comes in a piece of its own, before the next request."""
    has_ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        if peer.number == 1:
            try:
                await peer.send(*(said.partition(b"\r\n\r\n") if is_later else (said,)), pause_s=0.005)
                await peer.wait_for_the_end()
            finally:
                has_ended.set()
        else:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")

    async with subscribing(script) as server, a_pool(keep_alive_s=60) as pool:  # nothing else closes it
        first = await post(pool, server, rest_s=0.05)
        assert first.status in (101, 204, 304, 500)
        async with asyncio.timeout(5):
            await has_ended.wait()
        second = await post(pool, server)
        assert (second.status, second.body, server.connections) == (200, b"true", 2)
