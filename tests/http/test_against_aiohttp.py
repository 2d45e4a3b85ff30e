"""The lean client and aiohttp read the same bytes: the same answer, or both refuse."""

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator
from typing import NamedTuple

import aiohttp
import pytest
from yarl import URL

from tests.support.raw_subscribers import FakeDns
from watcher.http.dial import Dialer
from watcher.http.pool import Pool
from watcher.http.wire import Head, Limits, NoAnswer, Reader, place_of

LIMIT = 64 * 1024

CORPUS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end",
    b"HTTP/1.1 204 None\r\nX-A: 1\r\n\r\n",
    b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n',
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 103 Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 429 -\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Down\r\nRetry-After: Sun, 29 Nov 2026 18:00:00 GMT\r\nContent-Length: 4\r\n\r\ndown",
    b"HTTP/1.1 301 Moved\r\nLocation: /else\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 \xc3\x9c\xff\r\nX-Odd: \xff\xfe\r\nContent-Length: 2\r\n\r\nok",
]
"""Answers as servers give them, and as smugglers do: each is tried as it is, and damaged."""

PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"0",
    b"1",
    b"ff",
    b"\x00",
    b"-",
    b"+",
]
PIECES += [
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"chunked",
    b"close",
    b"Connection: close\r\n",
]


_CHUNKED = re.compile(rb"^Transfer-Encoding: (?:gzip, )?chunked\r$", re.MULTILINE)


class Read(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def damaged(chance: random.Random) -> bytes:
    answer = bytearray(chance.choice(CORPUS))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        at = chance.randrange(len(answer) + 1)
        match chance.randrange(4):
            case 0:
                answer[at : at + chance.randrange(4)] = b""
            case 1:
                answer[at:at] = chance.choice(PIECES)
            case 2:
                answer[at : at + 1] = chance.randbytes(1)
            case _:
                other = chance.choice(CORPUS)
                cut = chance.randrange(len(other) + 1)
                answer[at:] = other[cut:]
    return bytes(answer)


class Saying:
    """A server that answers each request with the same bytes, in pieces, and hangs up."""

    def __init__(self) -> None:
        self.answer = b""
        self.cuts: tuple[int, ...] = ()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            start = 0
            for end in (*self.cuts, len(self.answer)):
                writer.write(self.answer[start:end])
                await writer.drain()
                start = end
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class Both(NamedTuple):
    server: Saying
    url: URL
    pool: Pool
    session: aiohttp.ClientSession

    async def by_ours(self) -> Read | None:
        deadline = asyncio.get_running_loop().time() + 5
        request = Head.of("GET", self.url, []).written() + b"\r\n"
        try:
            answer = await self.pool.send(
                place_of(self.url), request, Limits(LIMIT, LIMIT), deadline=deadline
            )
        except NoAnswer:
            return None
        if answer.cut:
            return None
        return Read(
            answer.status, [(name, value.strip(b" \t")) for name, value in answer.headers], answer.body
        )

    async def by_aiohttp(self) -> Read | None:
        try:
            async with self.session.get(self.url, allow_redirects=False) as answer:
                body = await answer.read()
                headers = [(name, value.strip(b" \t")) for name, value in answer.raw_headers]
                return Read(answer.status, headers, body)
        except (aiohttp.ClientError, ValueError, OSError):
            return None


@contextlib.asynccontextmanager
async def both() -> AsyncIterator[Both]:
    server = Saying()
    async with await asyncio.start_server(server.serve, "127.0.0.1") as listening:
        port = listening.sockets[0].getsockname()[1]
        pool = Pool(Dialer(FakeDns({})), keep_alive_s=4)
        async with aiohttp.ClientSession(
            auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            yield Both(server, URL(f"http://127.0.0.1:{port}/in"), pool, session)
        await pool.close()


def agree(answer: bytes, ours: Read | None, theirs: Read | None) -> bool:
    """Say whether the two read the same, or one refuses what it may.

    Where more comes than one answer, it depends on how it comes in pieces. With a Transfer-Encoding that is
    none, or ends in a tab, the end of the body is undefined: the lean client finds none. So it is
    whether a status below 100, which is none either, has a body.
    """
    if ours == theirs:
        return True
    if ours and theirs:
        return ours.status == theirs.status < 100
    names = [name.lower() for name, _ in theirs.headers] if theirs else []
    if theirs and names.count(b"transfer-encoding") != len(_CHUNKED.findall(answer)):
        return True
    reader = Reader()
    reader.begin(Limits(LIMIT, LIMIT))
    with contextlib.suppress(NoAnswer):
        reader.feed(answer)
    return reader.is_odd


async def test_answers_are_read_as_aiohttp_reads_them() -> None:
    async with both() as clients:
        for answer in CORPUS:
            clients.server.answer = answer
            assert await clients.by_ours() == await clients.by_aiohttp(), answer


@pytest.mark.parametrize(
    "count", [300, pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
async def test_damaged_answers_are_read_the_same_or_refused_by_both(count: int) -> None:
    chance = random.Random(count)
    outcomes = []
    async with both() as clients:
        for _ in range(count):
            answer = damaged(chance)
            clients.server.answer = answer
            ends = range(len(answer) + 1)
            clients.server.cuts = tuple(sorted(chance.sample(ends, min(chance.randrange(3), len(ends)))))
            ours, theirs = await clients.by_ours(), await clients.by_aiohttp()
            outcomes.append(ours is None)
            assert agree(answer, ours, theirs), (answer, ours, theirs)
    assert 0.1 < sum(outcomes) / count < 0.9
