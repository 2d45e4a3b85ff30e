"""A Loopring that fails in one way while a test says so, and otherwise lists what its accounts hold.

Refuses to know what a worker makes of it.
"""

import asyncio
import socket
import ssl
import struct
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from tests.support.provider_staging import (
    TOKENS_PATH,
    Reply,
    Stage,
    a_balance,
    a_token_list,
    answer,
    never_answer,
)
from tests.support.tls_subscribers import a_certificate

NAME = "provider.test"


async def reset(writer: asyncio.StreamWriter) -> None:
    """Throw the connection away, with what was not read of it."""
    on, at_once = 1, 0
    linger = struct.pack("ii", on, at_once)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def late(writer: asyncio.StreamWriter) -> None:
    """An answer that is no good one, and comes when the client is about to give up."""
    await asyncio.sleep(0.4)
    await answer(b"", 500)(writer)


ANSWERS: dict[str, Reply] = {
    "status-500": answer(b"", 500),
    "status-429": answer(b"", 429),
    "status-429-wait": answer(b"", 429, headers={"Retry-After": "1"}),
    "hang": never_answer,
    "late": late,
    "reset": reset,
}
KINDS = (*ANSWERS, "refused", "tls", "dns")


@dataclass(eq=False)
class FailingProvider:
    """Listens while it is entered; `fail` and `heal` cut all of its connections."""

    kind: str
    total: int = 100
    is_failing: bool = False
    pem: str = ""
    stage: Stage = field(init=False)

    async def __aenter__(self) -> Self:
        self._good, self.pem = a_certificate(NAME)
        self._open = AsyncExitStack()
        await self._listen(self._good, 0)
        self.port = self.stage.port
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    @property
    def url(self) -> str:
        scheme = "https" if self.kind == "tls" else "http"
        return f"{scheme}://{NAME}:{self.port}"

    async def fail(self) -> None:
        self.is_failing = True
        await self._open.aclose()
        if self.kind == "tls":
            await self._listen(a_certificate(NAME)[0], self.port)  # which is not trusted
        elif self.kind != "refused":
            await self._listen(self._good, self.port)
        if self.kind == "dns":
            Names.dead.add(self.port)

    async def heal(self) -> None:
        self.is_failing = False
        Names.dead.discard(self.port)
        await self._open.aclose()
        await self._listen(self._good, self.port)

    async def _listen(self, context: ssl.SSLContext, port: int) -> None:
        self.stage = Stage(tls=context if self.kind == "tls" else None, port=port)
        self.stage.reply_by_path[TOKENS_PATH] = self._failing_or(answer(a_token_list(0)))
        self.stage.reply = self._failing_or(self._balances)
        await self._open.enter_async_context(self.stage)

    def _failing_or(self, good: Reply) -> Reply:
        async def reply(writer: asyncio.StreamWriter) -> None:
            await (ANSWERS.get(self.kind, good) if self.is_failing else good)(writer)

        return reply

    async def _balances(self, writer: asyncio.StreamWriter) -> None:
        account = int(URL(self.stage.seen[-1].target).query["accountId"])
        await answer([{**a_balance(0, str(self.total)), "accountId": account}])(writer)


class Names(AbstractResolver):
    """All names of one machine; those of the `dead` ports do not resolve."""

    dead: set[int] = set()  # noqa: RUF012 - a class, because the program makes its own instance

    def __init__(self, **_: object) -> None:
        pass

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if port in self.dead:
            raise OSError(None, "no such name")
        return [
            ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)
        ]

    async def close(self) -> None:
        pass
