"""Makes first contact with a server, and finds out what is wrong where the server itself does not say so.

Refuses to guess: whatever is said of an address was tried there.
"""

import asyncio
import ssl
from contextlib import suppress

from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import NoPermissionError, ResponseError

from watcher.store.address import host_text, places, safe_url
from watcher.store.exceptions import ConfigurationRefused, StoreError, StoreRefuses, StoreUnreachable
from watcher.store.pipe import Pipe

PATIENCE_S = 5.0
"""For each server that the address names: as long as any command is waited for."""

_TRY_S = 1.0
_NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "HTTP_REQUEST",
    "UNEXPECTED_EOF",
    "BAD_RECORD_TYPE",
)


async def make_contact(pipe: Pipe, url: str, *, patience_s: float = PATIENCE_S) -> None:
    """Ask the server for its time, which every one answers that can do anything. Raises StoreError."""
    found = places(url)
    at = ",".join(host_text(*place) for place in found) or safe_url(url).removeprefix("unix://")
    try:
        async with asyncio.timeout(patience_s * max(1, len(found))):
            answer = await pipe.command("TIME")
    except TimeoutError:
        silent = StoreUnreachable(f"Redis at {at} does not answer in time; is it stopped or overloaded?")
        raise await _why(silent, url) from None
    except StoreError as trouble:
        if isinstance(trouble.__cause__, NoPermissionError):
            return  # the command to come may do without
        if isinstance(trouble.__cause__, ResponseError) and await _is_sentinel(pipe):
            raise ConfigurationRefused(
                f"{at} is a Sentinel: name it by redis+sentinel://, with the primary that it watches"
            ) from trouble
        raise await _why(trouble, url) from trouble
    if not _is_time(answer):
        raise ConfigurationRefused(f"what answers at {at} is not Redis; check redis.url")


def _is_time(answer: object) -> bool:
    parts = answer if isinstance(answer, list) and len(answer) == 2 else [None]
    return all(isinstance(part, bytes) and part.isdigit() for part in parts)


async def _is_sentinel(pipe: Pipe) -> bool:
    try:
        answer = await pipe.command("INFO", "server")
    except StoreError:
        return False
    return isinstance(answer, bytes) and b"_mode:sentinel" in answer


async def _why(trouble: StoreError, url: str) -> StoreError:
    """Return what is behind a trouble, as far as it is that something else than expected listens there."""
    found = places(url)
    if isinstance(trouble, StoreRefuses | ConfigurationRefused) or not found:
        return trouble
    host, port = found[0]
    at = host_text(host, port)
    if await _said(host, port, b"") is None:
        return trouble
    if url.startswith("rediss"):
        if (await _said(host, port, b"PING\r\n") or b"").startswith((b"+PONG", b"-")):
            return ConfigurationRefused(f"Redis at {at} does not speak TLS; use redis://, or its TLS port")
        if len(found) == 1 and not await _speaks_tls(host, port):
            return StoreUnreachable(
                f"what listens at {at} completes no TLS handshake; is it the TLS port of Redis, and well?"
            )
        return trouble
    if await _speaks_tls(host, port):
        return ConfigurationRefused(f"Redis at {at} speaks TLS; use rediss://, or its port without TLS")
    if (await _said(host, port, b"HEAD / HTTP/1.0\r\n\r\n") or b"").startswith(b"HTTP/"):
        return ConfigurationRefused(f"what answers at {at} is not Redis, but a web server; check redis.url")
    is_cut_off = isinstance(trouble.__cause__, NoConnection) and trouble.__cause__.status_code is None
    if len(found) == 1 and is_cut_off:
        return StoreUnreachable(
            f"what listens at {at} ends the connection without a word; is it Redis, and well?"
        )
    return trouble


async def _said(host: str, port: int, question: bytes) -> bytes | None:
    """Return what is answered to a question, of which there may be none; None where nobody listens."""
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
    except ssl.SSLError as error:  # a complaint in TLS is TLS
        return not any(sign in str(error) for sign in _NO_TLS)
    except OSError:
        return False
    await _hang_up(writer)
    return True


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()  # there is nothing to be said any more, and no answer to wait for
    with suppress(OSError):
        await writer.wait_closed()
