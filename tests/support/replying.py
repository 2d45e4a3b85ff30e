"""A server with the answers that a test sets, as quotas, proxies and other programs give them.

The rest it asks of a real one. Commands are answered one after the other: no answer overtakes another.
"""

import asyncio
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from hiredis import Reader


class ReplyingServer:
    """Listens on a port of this machine while it is entered. `reply` and `only` may be changed meanwhile."""

    def __init__(
        self, reply: bytes | None = None, *, only: Collection[str] = (), upstream: Path | None = None
    ) -> None:
        self.reply = reply
        """What is answered, a line in RESP without its end, such as `-ERR no`; None: nothing is, for ever."""

        self.only = frozenset(only)
        """The commands that are answered so, by name, or by their first argument, as the digest of a script;
        none: all. The others are passed on."""

        self.seen: list[str] = []
        """Which commands were answered by `reply`."""

        self._upstream = upstream
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        server = _Upstream(self._upstream)
        try:
            while line := await reader.readline():
                if line.startswith(b"*"):
                    words = [await _word(reader) for _ in range(int(line[1:]))]
                elif not (words := line.split()) or not words[0].isalpha():
                    return  # neither RESP nor a command that was typed
                writer.write(await self._answer(words, server))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one of the two has gone
        finally:
            self._connections.discard(task)
            server.close()
            writer.close()

    async def _answer(self, words: list[bytes], server: "_Upstream") -> bytes:
        name = words[0].decode().upper()
        is_passed_on = self.only and self.only.isdisjoint({name, *(word.decode() for word in words[1:2])})
        if server.path and (self.reply is None or is_passed_on):
            return await server.ask(words)
        self.seen.append(name)
        if self.reply is None:
            await asyncio.Event().wait()
        assert self.reply is not None
        return self.reply + b"\r\n"


async def _word(reader: asyncio.StreamReader) -> bytes:
    size = int((await reader.readline())[1:])
    return (await reader.readexactly(size + 2))[:-2]


class _Upstream:
    """A connection to a real server, made when it is first needed."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, words: list[bytes]) -> bytes:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_unix_connection(self.path)
        parts = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        self._writer.write(b"*%d\r\n%s" % (len(words), parts))
        whole, answer = Reader(notEnoughData=Ellipsis), b""
        while whole.gets() is Ellipsis:
            data = await self._reader.read(1 << 16)
            if not data:
                raise ConnectionResetError
            whole.feed(data)
            answer += data
        return answer

    def close(self) -> None:
        if self._writer:
            self._writer.close()
