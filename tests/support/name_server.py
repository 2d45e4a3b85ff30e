"""A name server on loopback that knows the names under `.test`, and the resolv.conf that leads to it."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

_TYPE_A, _IN = 1, 1
_ANSWER, _NO_SUCH_NAME = 0x8180, 0x8183


class NameServer(asyncio.DatagramProtocol):
    """Answers `address` for any name under `.test`, and counts who `asked`; a silent one only counts."""

    def __init__(self, address: str = "127.0.0.1", *, is_silent: bool = False) -> None:
        self.address = address
        self.is_silent = is_silent
        self.asked = 0
        self.was_asked = asyncio.Event()
        self.port = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked += 1
        self.was_asked.set()
        if not self.is_silent:
            self._transport.sendto(self._answer(data), addr)

    @property
    def resolv_conf(self) -> str:
        return f"nameserver 127.0.0.1:{self.port}\n"

    def _answer(self, question: bytes) -> bytes:
        end = question.index(b"\0", 12)
        asked = question[12 : end + 5]
        (kind,) = struct.unpack(">H", question[end + 1 : end + 3])
        is_known = question[12:end].lower().endswith(b"\4test")
        record = b"\xc0\x0c" + struct.pack(">HHIH", kind, _IN, 1, 4) + socket.inet_aton(self.address)
        records = [record] if is_known and kind == _TYPE_A else []
        flags = _ANSWER if is_known else _NO_SUCH_NAME
        return question[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0) + asked + b"".join(records)


@asynccontextmanager
async def name_server(
    address: str = "127.0.0.1", *, is_silent: bool = False, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[NameServer]:
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: NameServer(address, is_silent=is_silent), local_addr=(host, port)
    )
    try:
        yield server
    finally:
        transport.close()
