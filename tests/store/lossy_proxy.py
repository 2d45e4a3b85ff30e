"""A proxy before a real server that lets scripts run and loses some of their answers, as a network does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self


class LossyProxy:
    """Passes everything on; of every `lose_every`-th request with a script it closes the way back."""

    def __init__(self, upstream: str, *, lose_every: int) -> None:
        self.scripts = 0
        """How many requests with a script the server was sent."""

        self.lost = 0
        """How many of them were answered in vain."""

        self._upstream = Path(upstream.removeprefix("unix://"))
        self._lose_every = lose_every
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"redis://{host}:{port}"
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
        try:
            async with _closing(writer), self._to_the_server() as (answers, server):
                while request := await reader.read(1 << 20):
                    server.write(request)
                    answer = await answers.read(1 << 20)  # the server has done it all by now
                    if b"EVAL" in request and self._is_lost():
                        return
                    writer.write(answer)
        except ConnectionError:
            pass  # one of the two has gone, which ends it for the other
        finally:
            self._connections.discard(task)

    def _is_lost(self) -> bool:
        self.scripts += 1
        is_lost = self.scripts % self._lose_every == 0
        self.lost += is_lost
        return is_lost

    @asynccontextmanager
    async def _to_the_server(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_unix_connection(self._upstream)
        async with _closing(writer):
            yield reader, writer


@asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
