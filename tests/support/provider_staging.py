"""A provider on a stage: a real socket that answers exactly the bytes that a test wants, odd ones included.

Also the builders of settings, accounts and clients that the provider tests share.
"""

import asyncio
import base64
import gzip
import json
import ssl
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any, NamedTuple, Self

from watcher.providers.declared import Http, HttpAccount, HttpSettings
from watcher.providers.http import ProviderClient
from watcher.providers.loopring import Loopring, LoopringAccount, LoopringSettings
from watcher.providers.metakeep import MetaKeep, MetaKeepAccount, MetaKeepSettings
from watcher.sandbox import bank

API_KEY = "canary-api-key-1f6b"
TOKENS_PATH = "/api/v3/exchange/tokens"

Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Seen(NamedTuple):
    """A request as it arrived; header names in lower case."""

    method: str
    target: str
    header_by_name: Mapping[str, str]
    body: bytes


class Stage:
    """Answers every request with `reply`, or with the next of `replies`, or with the reply of its path, or
    as `reply_to` says where it says something.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.seen: list[Seen] = []
        self.arrived = asyncio.Event()
        self.connections = 0
        self.replies: list[Reply] = []
        self.reply: Reply = answer(b"[]")
        self.reply_by_path: dict[str, Reply] = {}
        self.reply_to: Callable[[Seen], Reply | None] = lambda seen: None
        self.port = port
        self._tls = tls
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self.connections += 1
        try:
            while seen := await _request(reader):
                self.seen.append(seen)
                self.arrived.set()
                path = seen.target.partition("?")[0]
                reply = self.reply_to(seen) or self.reply_by_path.get(path)
                reply = reply or (self.replies.pop(0) if self.replies else self.reply)
                await reply(writer)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client hung up on us, or the test is over
        finally:
            self._tasks.discard(task)
            writer.close()


async def _request(reader: asyncio.StreamReader) -> Seen | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip().split("\r\n")
    method, target, _ = first.split(" ")
    header_by_name = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    body = await reader.readexactly(int(header_by_name.get("content-length", "0")))
    return Seen(method, target, header_by_name, body)


def answer(
    body: bytes | str | object,
    status: int = 200,
    *,
    content_type: str | None = "application/json",
    headers: Mapping[str, str] | None = None,
    promised: int | None = None,
) -> Reply:
    """A whole answer. `promised` is a Content-Length that differs from what is sent."""
    sent = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else _json(body)
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"Content-Type: {content_type}"] if content_type else []
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"Content-Length: {len(sent) if promised is None else promised}", "", ""]
    return raw("\r\n".join(lines).encode("latin-1") + sent, hang_up=promised is not None)


def raw(sent: bytes, *, hang_up: bool = False) -> Reply:
    """Exactly these bytes."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        if hang_up:
            await writer.drain()
            raise ConnectionResetError

    return reply


def dripping(head: bytes, drop: bytes, *, every_s: float) -> Reply:
    """A head, and then one byte after the other without end."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(every_s)

    return reply


async def never_answer(writer: asyncio.StreamWriter) -> None:
    """No answer, ever."""
    await asyncio.Event().wait()


def body_of(case: Mapping[str, Any]) -> bytes:
    """The body of a case of data/provider_answers.json."""
    if "body_base64" in case:
        return base64.b64decode(case["body_base64"])
    if "body_gen" in case:
        made = case["body_gen"]
        text = made.get("prefix", "") + made["repeat"] * made["times"] + made.get("suffix", "")
        return gzip.compress(text.encode()) if made.get("gzip") else text.encode()
    return case["body"].encode()  # type: ignore[no-any-return]


def a_token_list(*ids: int, decimals: int = 0) -> list[dict[str, Any]]:
    """Loopring's list of tokens, as its documentation shows it."""
    return [
        {
            "type": "ERC20",
            "tokenId": token,
            "symbol": f"T{token}",
            "name": f"Token {token}",
            "address": f"0x{token:040x}",
            "decimals": decimals,
            "precision": 3,
            "enabled": True,
        }
        for token in ids
    ]


def a_balance(
    token: int, total: str = "0", locked: str = "0", deposit: str = "0", withdraw: str = "0"
) -> Any:
    """One row of Loopring's answer."""
    pending = {"withdraw": withdraw, "deposit": deposit}
    return {"accountId": 10110, "tokenId": token, "total": total, "locked": locked, "pending": pending}


def loopring_settings(
    base_url: str = "http://127.0.0.1:9", *, timeout_s: float = 5, **more: Any
) -> LoopringSettings:
    timeout = timedelta(seconds=timeout_s)
    return LoopringSettings(
        name="loopring", kind="loopring", base_url=base_url, api_key=API_KEY, timeout=timeout, **more
    )


def metakeep_settings(
    base_url: str = "http://127.0.0.1:9", *, timeout_s: float = 5, **more: Any
) -> MetaKeepSettings:
    timeout = timedelta(seconds=timeout_s)
    return MetaKeepSettings(
        name="shop", kind="metakeep", base_url=base_url, api_key=API_KEY, timeout=timeout, **more
    )


LOOPRING_DECLARED: dict[str, Any] = {
    "headers": {"X-API-KEY": API_KEY},
    "error": "resultInfo.code",
    "error_classes": {"104002": "auth", "102003": "configuration"},
    "ask": [
        {"path": "/api/v3/user/balances", "query": {"accountId": "{id}", "tokens": "0,1"}},
    ],
    "read": [
        {
            "rows": "@",
            "asset": "tokenId",
            "unit": "smallest",
            "decimals": {"*": 18},
            "total": "total",
            "locked": "locked",
            "pending_deposit": "pending.deposit",
            "pending_withdrawal": "pending.withdraw",
        }
    ],
}
"""What `kind = "http"` needs to read Loopring."""


BANK_DECLARED: dict[str, Any] = tomllib.loads(bank.section("http://127.0.0.1:9"))["providers"]["bank"]
"""What it needs to read the sandbox's bank, in pages."""


def a_bank_page(next_cursor: str | None, **booked: str) -> Any:
    """A page of the sandbox's bank."""
    rows = [
        {"currency": currency, "booked": amount, "held": "12", "incoming": "7.25", "outgoing": "0.5"}
        for currency, amount in booked.items()
    ]
    return {"balances": rows, "next_cursor": next_cursor}


def declared_settings(
    base_url: str = "http://127.0.0.1:9", *, timeout_s: float = 5, **more: Any
) -> HttpSettings:
    given = {"name": "api", "kind": "http", "base_url": base_url, "timeout": timedelta(seconds=timeout_s)}
    return HttpSettings.model_validate(given | (more or LOOPRING_DECLARED))


def declared_account(**of: Any) -> HttpAccount:
    return HttpAccount(name="shop", provider="api", of=of)


def declared_client(base_url: str, *, timeout_s: float = 5, **more: Any) -> ProviderClient:
    settings = declared_settings(base_url, timeout_s=timeout_s, **more)
    return ProviderClient(Http(settings), settings)


def loopring_client(base_url: str, *, timeout_s: float = 5, **more: Any) -> ProviderClient:
    settings = loopring_settings(base_url, timeout_s=timeout_s)
    return ProviderClient(Loopring(settings), settings, **more)


def metakeep_client(base_url: str, *, timeout_s: float = 5, **more: Any) -> ProviderClient:
    settings = metakeep_settings(base_url, timeout_s=timeout_s)
    return ProviderClient(MetaKeep(settings), settings, **more)


def loopring_account(**more: Any) -> LoopringAccount:
    address = {} if "address" in more else {"account_id": 10110}
    return LoopringAccount(name="treasury", provider="loopring", **address, **more)


def metakeep_account(*currencies: str, **more: Any) -> MetaKeepAccount:
    of = more.pop("of", {"email": "alice@example.com"})
    return MetaKeepAccount(name="alice", provider="shop", of=of, currencies=currencies, **more)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
