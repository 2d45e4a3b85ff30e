"""Goes the way to a subscriber as far as its TLS: name, address, connection, certificate.

Refuses to send a request: nothing is said inside the connection. Every address passes the egress guard.
"""

import asyncio
import socket
import ssl
from datetime import UTC, datetime
from typing import NamedTuple

from aiohttp.abc import AbstractResolver
from yarl import URL

from watcher.delivery.connector import EgressRefused, GuardedResolver, guarded_sockets
from watcher.delivery.egress import Policy, read_address
from watcher.resolver import CurrentResolver
from watcher.tls_flaws import CANNOT_CONNECT, HUNG_UP, cannot_connect, tls_flaw

_STEP_S = 6.0
"""To connect, and then again for TLS: so it is known which of the two hangs, before the time for all is
over."""

_OBJECTION_S = 0.3
"""With TLS 1.3 a server rejects a missing client certificate only after our side of the handshake has
ended."""


class Reached(NamedTuple):
    """How far it went: `error` and `fix` as those of an attempt. `ends_at` is when its certificate does."""

    error: str | None = None
    fix: str = ""
    is_refused_by_us: bool = False
    ends_at: datetime | None = None


async def reach(url: URL, policy: Policy, *, resolver: AbstractResolver | None = None) -> Reached:
    """Connect to where events would be POSTed, and hang up. `resolver` replaces DNS. Sets no time limit."""
    host, port = url.raw_host or "", url.port or 443
    context = ssl.create_default_context() if url.scheme == "https" else None
    addresses = [host] if read_address(host) else None
    try:
        if addresses is None:
            guarded = GuardedResolver(policy, resolver or CurrentResolver())
            try:
                addresses = [answer["host"] for answer in await guarded.resolve(host, port)]
            finally:
                await guarded.close()
    except EgressRefused as refusal:
        return Reached(f"refused: {refusal.reason}", is_refused_by_us=True)
    except (OSError, UnicodeError):
        return Reached("its name does not resolve")
    reached = Reached("its name does not resolve")
    for address in addresses:
        reached = await _connect((address, port), host, context, policy)
        if reached.error is None:
            break
    return reached


async def _connect(
    address: tuple[str, int], host: str, context: ssl.SSLContext | None, policy: Policy
) -> Reached:
    loop, family = asyncio.get_running_loop(), socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        connection = guarded_sockets(policy)((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address))
    except EgressRefused as refusal:
        return Reached(f"refused: {refusal.reason}", is_refused_by_us=True)
    is_connected = False
    with connection:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(_STEP_S):
                await loop.sock_connect(connection, address)
            is_connected = True
            name = host.removesuffix(".") if context else None
            async with asyncio.timeout(_STEP_S):
                transport, peer = await loop.create_connection(
                    _Peer, sock=connection, ssl=context, server_hostname=name
                )
            if context:
                await peer.may_object()
        except TimeoutError:
            if is_connected:
                return Reached(f"TLS failed: no handshake within {_STEP_S:g} s", HUNG_UP.fix)
            return Reached(f"{CANNOT_CONNECT}: no answer within {_STEP_S:g} s")
        except OSError as error:  # ssl.SSLError is one
            if context and (flaw := tls_flaw(error, is_handshake=True)):
                return Reached(flaw.words, flaw.fix)
            return Reached(cannot_connect(error))
        transport.abort()
    certificate = transport.get_extra_info("peercert") or {}
    ends = certificate.get("notAfter")
    return Reached(ends_at=datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), UTC) if ends else None)


class _Peer(asyncio.Protocol):
    def __init__(self) -> None:
        self._ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(exc)

    async def may_object(self) -> None:
        """Wait a moment for an alert. Raises ssl.SSLError where one comes."""
        await asyncio.wait([self._ended], timeout=_OBJECTION_S)
        if self._ended.done() and isinstance(error := self._ended.result(), ssl.SSLError):
            raise error
