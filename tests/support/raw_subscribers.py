"""Subscribers in a few lines each, over real sockets, that answer as no server should; and their sinks.

A script ends when its connection does. Leaving `subscribing` waits for that, so a connection that
the sink forgot to close is a failure.
"""

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, cast

from aiohttp.abc import AbstractResolver, ResolveResult

from tests.support.builders import a_subscription
from watcher.delivery.egress import Policy
from watcher.delivery.webhook import WebhookSink, WebhookTarget
from watcher.journal.events import Delivery

LOOPBACK = Policy((ip_network("127.0.0.0/8"),), allow_http=True)
DEADLINE_S = 5.0
"""Far beyond what anything takes that is not to wait for it."""
SHORT_S = 0.2
"""For code that waits for it."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CONTENT = b'{"id": "evt_1", "type": "deposit.cleared", "data": {"amount": "12.5"}'
TAIL = b',"subscription":{"name":"ops","previous_sequence":null}}'
EVENT = CONTENT + TAIL

_PATIENCE_S = 120


@dataclass(frozen=True)
class Request:
    """One request as it came: `connection` counts from 1."""

    connection: int
    headers: Mapping[str, str]
    body: bytes
    head: bytes


@dataclass
class Peer:
    """The sink, as one connection of a subscriber sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    subscriber: "Subscriber"
    number: int

    async def receive(self) -> Request:
        """Wait for a whole request. Raises IncompleteReadError when the connection ends first."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")[1:-2]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        request = Request(self.number, headers, body, head)
        self.subscriber.note(request)
        return request

    async def send(self, *pieces: bytes, pause_s: float = 0) -> None:
        for piece in pieces:
            if self.writer.is_closing():
                raise ConnectionResetError  # which uvloop would call a RuntimeError
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(pause_s)

    async def send_endlessly(self, piece: bytes, *, pause_s: float = 0) -> None:
        while True:
            await self.send(piece, pause_s=pause_s)

    async def wait_for_the_end(self) -> None:
        await self.reader.read()

    def stop_reading(self) -> None:
        self._incoming.pause_reading()

    def read_on(self) -> None:
        self._incoming.resume_reading()

    @property
    def _incoming(self) -> asyncio.ReadTransport:
        return cast(asyncio.ReadTransport, self.writer.transport)

    def reset(self) -> None:
        now = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class Subscriber:
    script: Script
    port: int = 0
    scheme: str = "http"
    peers: list[object] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def connections(self) -> int:
        return len(self.peers)

    @property
    def url(self) -> str:
        return self.url_at("127.0.0.1")

    def url_at(self, host: str) -> str:
        return f"{self.scheme}://{host}:{self.port}/in"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(writer.get_extra_info("peername"))
        self._news.set()
        peer = Peer(reader, writer, self, len(self.peers))
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # the sink has hung up
            await self.script(peer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def note(self, request: Request) -> None:
        self.requests.append(request)
        self._news.set()

    async def until(self, is_so: Callable[["Subscriber"], bool]) -> None:
        """Wait for connections or requests."""
        while not is_so(self):
            self._news.clear()
            await self._news.wait()

    async def visits(self) -> int:
        """Count the connections so far. One of our own queues behind them: none can still be on its way."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        own = writer.get_extra_info("sockname")
        await self.until(lambda subscriber: own in subscriber.peers)
        writer.close()
        await writer.wait_closed()
        return self.peers.index(own)


@contextlib.asynccontextmanager
async def subscribing(
    script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Subscriber]:
    subscriber = Subscriber(script, scheme="https" if tls else "http")
    async with asyncio.timeout(_PATIENCE_S), asyncio.TaskGroup() as connections:

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.create_task(subscriber.serve(reader, writer))

        server = await asyncio.start_server(connected, host, 0, ssl=tls, backlog=2048)
        subscriber.port = server.sockets[0].getsockname()[1]
        try:
            yield subscriber
        finally:
            server.close()


def answering(*answers: bytes) -> Script:
    """Answer one request after the other with these bytes, the last of them again and again."""

    async def script(peer: Peer) -> None:
        remaining = list(answers)
        while True:
            await peer.receive()
            await peer.send(remaining.pop(0) if len(remaining) > 1 else remaining[0])

    return script


async def never_answer(peer: Peer) -> None:
    await peer.wait_for_the_end()


async def not_speaking_tls(peer: Peer) -> None:
    await peer.reader.read(1)
    await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


class FakeDns(AbstractResolver):
    """Knows the given addresses, or an error, of a name. It never answers about any other."""

    def __init__(self, known: Mapping[str, Sequence[str] | Exception]) -> None:
        self._known = known
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if host not in self._known:
            await asyncio.Event().wait()
        answer = self._known[host]
        if isinstance(answer, Exception):
            raise answer
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in answer
        ]

    async def close(self) -> None:
        pass


def a_sink(policy: Policy = LOOPBACK, **options: Any) -> WebhookSink:
    return WebhookSink(policy, **{"deadline_s": DEADLINE_S, **options})


def a_target(subscriber: Subscriber | str, **fields: Any) -> WebhookTarget:
    url = subscriber if isinstance(subscriber, str) else subscriber.url
    return WebhookTarget(a_subscription(url=url, **fields), LOOPBACK)


def a_delivery(event_id: str = "evt_1", content: bytes = CONTENT) -> Delivery:
    """The first delivery to `ops`: what is sent of it is its content, and `TAIL`."""
    return Delivery(event_id, "deposit.cleared", 1, content, "ops")


def open_files() -> int:
    """Count the descriptors of this process, without what other tests left to the garbage collector."""
    gc.collect()
    return len(os.listdir("/dev/fd"))
