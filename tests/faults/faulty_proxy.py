"""A network between workers and their server: it can lose answers, slow down, hang, close its port."""

import asyncio
import re
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_SCRIPT = re.compile(rb"\r\nEVAL(?:SHA)?\r\n")
_SLOW_S = 0.5


class FaultyProxy:
    """Passes everything on to a unix socket while it is entered. Its faults are attributes."""

    def __init__(self, upstream: Path) -> None:
        self.lose_every = 0
        """Of every so many requests with a script one is executed and its answer lost (0: none)."""

        self.delay_s = 0.0
        """How much later each answer comes."""

        self.slow_every = 0
        """Of so many answers one comes half a second late (0: none)."""

        self.is_silent = False
        """Take everything, pass nothing on."""

        self.scripts = 0
        self.lost = 0
        self._answers = 0
        self._upstream = upstream
        self._connections: set[asyncio.Task[None]] = set()
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.open()
        self.url = f"redis://127.0.0.1:{self._port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Listen, on the same port each time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=1024)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close the port and every connection."""
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one of the two has gone, or the port was closed, which ends it for the other
        finally:
            self._connections.discard(task)
            writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_unix_connection(self._upstream)
        connection = _Connection()
        try:
            async with asyncio.TaskGroup() as group:
                up = group.create_task(self._up(connection, reader, server))
                down = group.create_task(self._down(connection, answers, writer))
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
                up.cancel()
                down.cancel()
        except* OSError:
            pass
        finally:
            server.close()
            with suppress(OSError):
                await server.wait_closed()

    async def _up(
        self, connection: "_Connection", reader: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> None:
        while request := await reader.read(1 << 16):
            if self.is_silent:
                continue
            if _SCRIPT.search(request):
                self.scripts += 1
                connection.is_doomed |= bool(self.lose_every) and self.scripts % self.lose_every == 0
            server.write(request)
            await server.drain()

    async def _down(
        self, connection: "_Connection", answers: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while answer := await answers.read(1 << 16):
            if connection.is_doomed:
                self.lost += 1
                return
            await asyncio.sleep(self._late_s())
            if not self.is_silent:
                writer.write(answer)
                await writer.drain()

    def _late_s(self) -> float:
        self._answers += 1
        is_slow = self.slow_every and self._answers % self.slow_every == 0
        return _SLOW_S if is_slow else self.delay_s


class _Connection:
    """What is to become of one connection."""

    is_doomed = False
