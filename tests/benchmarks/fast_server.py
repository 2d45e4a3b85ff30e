"""Serves fixed answers over HTTP faster than a client can request them, so it is never the limit.

    python -m tests.benchmarks.fast_server      # prints its port; ends when its stdin is closed

Under `/still` a Loopring that never changes, under `/restless` one whose first balance grows with every
answer, under `/each` the same for accounts of any number, at some cost; every POST is taken, and those to
`/timed` are listed under `/receipts`. Refuses to understand HTTP beyond what aiohttp sends: a head, and the
length of a body.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import uvloop

from tests.benchmarks.beside import beside

TOKENS = 10
_WHOLE = 10**18

_numbers = itertools.count(1)
_closed: list[None] = []
_receipts: list[tuple[str, float]] = []


def _answer(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _balances(first_total: str, account: int = 1) -> bytes:
    amounts = [first_total, *(f"{token}{_WHOLE}" for token in range(1, TOKENS))]
    rows = [
        {
            "accountId": account,
            "tokenId": token,
            "total": amount,
            "locked": "0",
            "pending": {"withdraw": "0", "deposit": "0"},
        }
        for token, amount in enumerate(amounts)
    ]
    return json.dumps(rows).encode()


def still_body() -> bytes:
    """Make the balances that never change."""
    return _balances(str(_WHOLE))


_LISTED = [
    {"type": "ERC20", "tokenId": token, "symbol": f"TOK{token}", "name": f"Token {token}", "decimals": 18}
    for token in range(TOKENS)
]
_CATALOGUE = _answer(json.dumps(_LISTED).encode())
_STILL = _answer(still_body())
_BEFORE, _AFTER = _answer(_balances("7" * 30)).split(b"7" * 30)
_TAKEN = _answer(b"{}")


class FastServer(asyncio.Protocol):
    """One connection. Requests may come in pieces, and several at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own, no subclass of it
        self._unread = b""

    def connection_lost(self, _: Exception | None) -> None:
        _closed.append(None)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while (end := self._unread.find(b"\r\n\r\n")) >= 0:
            head = self._unread[:end]
            end += 4
            if head.startswith(b"POST"):
                end += int(_header(head.lower(), b"content-length"))
                if len(self._unread) < end:
                    return
            self._unread = self._unread[end:]
            self._transport.write(_respond(head))


def _respond(head: bytes) -> bytes:
    if head.startswith(b"GET /still/api/v3/user/"):
        return _STILL
    if head.startswith(b"GET /restless/api/v3/user/"):
        return b"%b%030d%b" % (_BEFORE, 10**29 + next(_numbers) * 10**12, _AFTER)
    if head.startswith(b"GET /each/api/v3/user/"):
        account = int(head.partition(b"accountId=")[2].partition(b" ")[0].partition(b"&")[0])
        return _answer(_balances(str(10**29 + next(_numbers) * 10**12), account))
    if head.startswith(b"POST /timed"):
        _receipts.append((_header(head, b"webhook-id").decode(), time.monotonic()))
        return _TAKEN
    if head.startswith(b"POST"):
        return _TAKEN
    if head.startswith(b"GET /closed"):
        return _answer(b"%d" % len(_closed))
    if head.startswith(b"GET /receipts"):
        body = json.dumps(_receipts).encode()
        _receipts.clear()
        return _answer(body)
    return _CATALOGUE


def _header(head: bytes, name: bytes) -> bytes:
    value = head.partition(b"\r\n" + name + b": ")[2]
    return value.partition(b"\r\n")[0]


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(FastServer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


@contextmanager
def fast_server() -> Iterator[str]:
    """Run a server in a process of its own; its URL."""
    with beside("tests.benchmarks.fast_server") as port:
        yield f"http://127.0.0.1:{int(port)}"


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
