"""Opens the Redis that a configuration names; if its answer does not say what is wrong, finds out."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import NoPermissionError, ResponseError

from watcher.settings import RedisSettings
from watcher.store.address import check_address, host_text, places, safe_url, several
from watcher.store.client import ClusterPipe, connect
from watcher.store.embedded import Embedded, is_made
from watcher.store.exceptions import ConfigurationRefused, StoreError, StoreRefuses, StoreUnreachable
from watcher.store.keys import Keys
from watcher.store.layout import Layout, check_numbers
from watcher.store.pipe import Pipe, Verdict

PATIENCE_S = 5.0
"""The longest wait for each server of the address: as for any command."""

_TRY_S = 1.0
_NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "HTTP_REQUEST",
    "UNEXPECTED_EOF",
    "BAD_RECORD_TYPE",
)


async def make_contact(pipe: Pipe, url: str, *, patience_s: float = PATIENCE_S) -> None:
    """Ask the server for its time: every server that can do anything answers that. Raises StoreError."""
    found = places(url)
    at = ",".join(host_text(*place) for place in found) or safe_url(url).removeprefix("unix://")
    try:
        async with asyncio.timeout(patience_s * max(1, len(found))):
            answer = await pipe.command("TIME")
    except TimeoutError:
        silent = StoreUnreachable(f"Redis at {at} does not answer in time; is it stopped or overloaded?")
        raise await _why(silent, url) from None
    except StoreError as error:
        if isinstance(error.__cause__, NoPermissionError):
            return  # the next command may not need it
        if isinstance(error.__cause__, ResponseError) and await _is_sentinel(pipe):
            raise ConfigurationRefused(
                f"{at} is a Sentinel: name it by redis+sentinel://, with the primary that it watches"
            ) from error
        raise await _why(error, url) from error
    parts = answer if isinstance(answer, list) and len(answer) == 2 else [None]
    if not all(isinstance(part, bytes) and part.isdigit() for part in parts):
        raise ConfigurationRefused(f"what answers at {at} is not Redis; check the URL")


async def _is_sentinel(pipe: Pipe) -> bool:
    try:
        answer = await pipe.command("INFO", "server")
    except StoreError:
        return False
    return isinstance(answer, bytes) and b"_mode:sentinel" in answer


async def _why(error: StoreError, url: str) -> StoreError:
    """Say what listens there, if it is not the expected server; otherwise return `error`."""
    found = places(url)
    if isinstance(error, StoreRefuses | ConfigurationRefused) or not found:
        return error
    host, port = found[0]
    at = host_text(host, port)
    if await _said(host, port, b"") is None:
        return error
    if url.startswith("rediss"):
        if (await _said(host, port, b"PING\r\n") or b"").startswith((b"+PONG", b"-")):
            return ConfigurationRefused(f"Redis at {at} does not speak TLS; use redis://, or its TLS port")
        if len(found) == 1 and not await _speaks_tls(host, port):
            return StoreUnreachable(
                f"what listens at {at} does not complete the TLS handshake; is it the TLS port of a working "
                "Redis?"
            )
        return error
    if await _speaks_tls(host, port):
        return ConfigurationRefused(f"Redis at {at} speaks TLS; use rediss://, or its port without TLS")
    if (await _said(host, port, b"HEAD / HTTP/1.0\r\n\r\n") or b"").startswith(b"HTTP/"):
        return ConfigurationRefused(f"what answers at {at} is not Redis, but a web server; check the URL")
    is_cut_off = isinstance(error.__cause__, NoConnection) and error.__cause__.status_code is None
    if len(found) == 1 and is_cut_off:
        return StoreUnreachable(
            f"what listens at {at} closes the connection without an answer; is it a working Redis?"
        )
    return error


async def _said(host: str, port: int, question: bytes) -> bytes | None:
    """Send a question, which may be empty, and return the answer; None if nothing listens."""
    try:
        async with asyncio.timeout(_TRY_S):
            reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return None
    try:
        async with asyncio.timeout(_TRY_S):
            writer.write(question)
            return await reader.read(64) if question else b""
    except OSError:
        return b""
    finally:
        await _hang_up(writer)


async def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    try:
        async with asyncio.timeout(_TRY_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except ssl.SSLError as error:  # an alert of TLS is TLS
        return not any(sign in str(error) for sign in _NO_TLS)
    except OSError:
        return False
    await _hang_up(writer)
    return True


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()  # nothing more is sent, and no answer is awaited
    with suppress(OSError):
        await writer.wait_closed()


@dataclass(frozen=True, slots=True)
class OpenStore:
    """A Redis while it is open. `fix` restarts an embedded server that is gone."""

    pipe: Pipe
    keys: Keys
    fix: Callable[[], Awaitable[object]] | None = None


@asynccontextmanager
async def open_store(settings: RedisSettings) -> AsyncIterator[OpenStore]:
    """Open Redis, once it answers. Raises StoreError."""
    async with AsyncExitStack() as stack:
        url, fix = settings.url.get_secret_value(), None
        if url == "embedded":
            server = await stack.enter_async_context(Embedded(settings.data_dir, settings.max_memory))
            url, fix = server.url, server.ensure
        check_address(url)
        found = several(url)
        verdict = Verdict()
        pipe = (
            ClusterPipe(found) if found and found.kind == "cluster" else Pipe(connect(url, verdict), verdict)
        )
        stack.push_async_callback(pipe.aclose)
        await make_contact(pipe, url)
        yield OpenStore(pipe, Keys(settings.namespace), fix)


@asynccontextmanager
async def open_to_look(settings: RedisSettings, *, in_any_layout: bool = False) -> AsyncIterator[OpenStore]:
    """Open a Redis that a worker has used. Raises StoreError, also if no worker or another version has used
    it."""
    if settings.url.get_secret_value() == "embedded":
        _refuse_unused(settings.data_dir)
    async with open_store(settings) as store:
        await store.pipe.command("HLEN", store.keys.meta())  # damage is reported like that of any other key
        layout = Layout(store.pipe, store.keys)
        if not in_any_layout:
            await _check_readable(layout)
        yield store
        if not in_any_layout:  # what was moved meanwhile was not seen
            await _check_readable(layout)


async def _check_readable(layout: Layout) -> None:
    if not (numbers := await layout.read()).can_be_read:
        check_numbers(numbers)


def _refuse_unused(data_dir: Path) -> None:
    if not is_made(data_dir):
        raise StoreUnreachable(
            f"the embedded server has no state in {os.path.abspath(data_dir)} yet (redis.data_dir): `watcher "
            "run` makes it; if it has run, then from another directory"
        )
