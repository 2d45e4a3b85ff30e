"""Goes the way to a subscriber as far as its TLS: name, address, connection, certificate.

Refuses to send a request: nothing is said inside the connection. Every address passes the egress guard.
"""

import asyncio
import os
import socket
import ssl
from datetime import UTC, datetime
from typing import NamedTuple

from aiohttp.abc import AbstractResolver
from yarl import URL

from watcher.delivery.connector import EgressRefused, GuardedResolver, guarded_sockets
from watcher.delivery.egress import Policy, read_address
from watcher.resolver import CurrentResolver


class Reached(NamedTuple):
    """How far it went. `error` is in the words of `post`; `ends_at` is when its certificate does."""

    error: str | None = None
    is_refused_by_us: bool = False
    ends_at: datetime | None = None


async def reach(url: URL, policy: Policy, *, resolver: AbstractResolver | None = None) -> Reached:
    """Connect to where events would be POSTed, and hang up. `resolver` replaces DNS. Sets no time limit."""
    host, port = url.raw_host or "", url.port or 443
    context = ssl.create_default_context() if url.scheme == "https" else None
    try:
        addresses = await _addresses(host, port, policy, resolver)
    except EgressRefused as refusal:
        return Reached(f"refused: {refusal.reason}", is_refused_by_us=True)
    except (OSError, UnicodeError):
        return Reached("its name does not resolve")
    reached = Reached("its name does not resolve")
    for family, address in addresses:
        reached = await _connect(family, (address, port), host, context, policy)
        if reached.error is None:
            break
    return reached


async def _addresses(
    host: str, port: int, policy: Policy, resolver: AbstractResolver | None
) -> list[tuple[socket.AddressFamily, str]]:
    if read_address(host):
        return [(_family(host), host)]
    guarded = GuardedResolver(policy, resolver or CurrentResolver())
    try:
        answers = await guarded.resolve(host, port)
    finally:
        await guarded.close()
    return [(_family(answer["host"]), answer["host"]) for answer in answers]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


async def _connect(
    family: socket.AddressFamily,
    address: tuple[str, int],
    host: str,
    context: ssl.SSLContext | None,
    policy: Policy,
) -> Reached:
    loop = asyncio.get_running_loop()
    try:
        connection = guarded_sockets(policy)((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address))
    except EgressRefused as refusal:
        return Reached(f"refused: {refusal.reason}", is_refused_by_us=True)
    with connection:
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, address)
            name = host.removesuffix(".") if context else None
            transport, _ = await loop.create_connection(
                asyncio.Protocol, sock=connection, ssl=context, server_hostname=name
            )
        except ssl.SSLCertVerificationError as error:
            return Reached(f"its certificate does not verify: {_flaw(error)}")
        except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
            return Reached("TLS failed" if context else "it reset the connection")
        except OSError as error:
            reason = f": {os.strerror(error.errno).lower()}" if error.errno else ""
            return Reached(f"cannot connect{reason}")
        certificate = transport.get_extra_info("peercert") or {}
        transport.abort()
    ends = certificate.get("notAfter")
    return Reached(ends_at=datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), UTC) if ends else None)


def _flaw(error: ssl.SSLCertVerificationError) -> str:
    return str(error.verify_message).partition(",")[0].lower()  # the host is behind the comma
