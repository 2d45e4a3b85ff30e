"""Receivers that answer without end, too much or too slowly; all in a process of their own.

    python -m tests.benchmarks.hostile_servers     # prints their ports, as JSON; ends with its stdin

`good` answers as it should: what it costs is the measure of the others.
"""

import asyncio
import contextlib
import gzip
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from tests.benchmarks.beside import beside

_OK = b"HTTP/1.1 200 OK\r\n"
_BACKLOG = 4096


class Attack(NamedTuple):
    """What is said to each request: first this, then a piece again and again, so long apart."""

    first: bytes
    piece: bytes = b""
    pause_s: float = 0


ATTACKS: Mapping[str, Attack] = {
    "good": Attack(_OK + b"Content-Length: 0\r\n\r\n"),
    "endless body": Attack(_OK + b"\r\n", 65_536 * b"x"),
    "never-ending headers": Attack(_OK, 1000 * b"x-more: and more\r\n"),
    "100,000 headers": Attack(_OK + b"".join(b"x-%d: %d\r\n" % (n, n) for n in range(100_000)) + b"\r\n"),
    "gzip bomb": Attack(_OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(bytes(10_000_000))),
    "interim answers": Attack(b"", 1000 * b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"),
    "a byte a second, of its head": Attack(_OK + b"x: ", b"x", 1),
    "a byte a second, of its body": Attack(_OK + b"Content-Length: 9999\r\n\r\n", b"x", 1),
}


async def _attack(attack: Attack, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            writer.write(attack.first)
            while attack.piece and not writer.is_closing():
                writer.write(attack.piece)
                await writer.drain()
                await asyncio.sleep(attack.pause_s)
    writer.transport.abort()


async def _serve() -> None:
    ports = {}
    for name, attack in ATTACKS.items():

        async def connected(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, attack: Attack = attack
        ) -> None:
            await _attack(attack, reader, writer)

        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=_BACKLOG)
        ports[name] = server.sockets[0].getsockname()[1]
    print(json.dumps(ports), flush=True)
    await asyncio.to_thread(sys.stdin.read)


@contextmanager
def hostile_servers() -> Iterator[dict[str, int]]:
    """Run them inside the block; gives their ports by name."""
    with beside("tests.benchmarks.hostile_servers") as ports:
        yield json.loads(ports)


if __name__ == "__main__":
    asyncio.run(_serve())
