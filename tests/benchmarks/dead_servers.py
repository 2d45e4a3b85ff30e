"""Receivers that are dead, each in its own way, and their DNS; all in a process of their own.

    python -m tests.benchmarks.dead_servers     # prints where everything is, as JSON; ends with its stdin

`hang` accepts and answers nothing, `refuse` is a port without a listener, `tls` has an untrusted certificate,
and `dns` answers for live.example.com alone: a query for another name waits. `back` is a receiver that has
come back: it accepts everything, and returns under GET how many requests came at a time.
"""

import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

from aiohttp import web

from tests.benchmarks.beside import beside
from tests.support.tls_subscribers import a_certificate

LIVE_NAME = "live.example.com"
TAKES_S = 0.01
"""How long the one that has come back takes for each, so that attempts overlap if they are let to."""

_BACKLOG = 4096
_FOUND = struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
_NOT_FOUND = struct.pack(">HHHHH", 0x8180, 1, 0, 0, 0)
_A_LOOPBACK = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton("127.0.0.1")


class DeadServers(NamedTuple):
    """Their ports."""

    hang: int
    refuse: int
    tls: int
    dns: int
    back: int


class _Dns(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: object) -> None:
        question = data[12:]
        name, _, kind = question.partition(b"\0")
        if name != b"".join(bytes([len(label)]) + label.encode() for label in LIVE_NAME.split(".")):
            return
        question = name + b"\0" + kind[:4]
        is_a = kind[:2] == b"\0\x01"
        head = data[:2] + (_FOUND if is_a else _NOT_FOUND)
        self._transport.sendto(head + question + (_A_LOOPBACK if is_a else b""), address)  # type: ignore[arg-type]


class _Back:
    """`alone`: no other request came before the first one was answered."""

    def __init__(self) -> None:
        self.taken = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.alone = True

    async def take(self, request: web.Request) -> web.Response:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.alone = self.alone and (self.taken > 0 or self.in_flight == 1)
        await request.read()
        await asyncio.sleep(TAKES_S)
        self.in_flight -= 1
        self.taken += 1
        return web.Response()

    async def tell(self, _request: web.Request) -> web.Response:
        return web.json_response(vars(self))


async def _hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(65536):
            pass
    writer.close()


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    hang = await asyncio.start_server(_hang, "127.0.0.1", 0, backlog=_BACKLOG)
    tls = await asyncio.start_server(
        _hang, "127.0.0.1", 0, ssl=a_certificate("nobody.example")[0], backlog=_BACKLOG
    )
    loop.set_exception_handler(lambda _loop, _context: None)  # handshakes that our side breaks off
    dns, _ = await loop.create_datagram_endpoint(_Dns, local_addr=("127.0.0.1", 0))
    back, app = _Back(), web.Application()
    app.add_routes([web.post("/", back.take), web.get("/", back.tell)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=_BACKLOG).start()
    with socket.socket() as nobody:  # bound and not listening: refused, and the port stays taken
        nobody.bind(("127.0.0.1", 0))
        ports = DeadServers(
            hang.sockets[0].getsockname()[1],
            nobody.getsockname()[1],
            tls.sockets[0].getsockname()[1],
            dns.get_extra_info("sockname")[1],
            runner.addresses[0][1],
        )
        print(json.dumps(ports), flush=True)
        await asyncio.to_thread(sys.stdin.read)


@contextmanager
def dead_servers() -> Iterator[DeadServers]:
    """Run them in a process of their own."""
    with beside("tests.benchmarks.dead_servers") as ports:
        yield DeadServers(*json.loads(ports))


if __name__ == "__main__":
    asyncio.run(_serve())
