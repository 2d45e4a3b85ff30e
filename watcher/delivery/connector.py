"""The socket's side of the egress guard: every address that is looked up or dialled is judged.

Refuses to trust what was judged before: a name may answer differently each time (rebinding), and
aiohttp never asks a resolver about a URL whose host is an address.
"""

import errno
import socket
from typing import Any

from aiohttp import AddrInfoType, SocketFactoryType, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from watcher.delivery.egress import Policy, read_address

DNS_CACHE_S = 10
"""Saves a burst its look-ups; short, so that a subscriber who moves is found again at the first retry."""

_DNS_CACHE_NAMES = 10_000
MOST_KEPT = 5_000
_KEEP_ALIVE_S = 4  # below the 5 s after which common servers hang up: a POST must not meet a closing door


class EgressRefused(OSError):
    """The policy forbids this address. No byte was sent; it stays so until the policy or DNS changes.

    An OSError, because aiohttp turns those into its ClientConnectorError; a ValueError would leave a
    session raw. `refusal_in` finds it again.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EACCES, f"the egress policy forbids it: {reason}")
        self.reason = reason


class GuardedResolver(AbstractResolver):
    """Looks names up through `inner`, and refuses a name whole if any of its answers is forbidden.

    Keeping the good answers instead would let a subscriber probe inside with every second attempt.
    """

    def __init__(self, policy: Policy, inner: AbstractResolver) -> None:
        self._policy = policy
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raise EgressRefused, or another OSError where the look-up itself fails."""
        answers = await self._inner.resolve(host, port, family)
        for answer in answers:
            _refuse(self._policy, answer["host"])
        return answers

    async def close(self) -> None:
        await self._inner.close()


def guarded_connector(policy: Policy, resolver: AbstractResolver, *, keep: int = MOST_KEPT) -> TCPConnector:
    """Make the connector of a session that POSTs to subscribers. Needs a running loop.

    A change of policy needs a new connector: connections that are already open are not judged again.
    Give it to a session with `trust_env=False`, and send with `allow_redirects=False`: through a proxy,
    only the proxy's address is seen here. No limit on connections, else dead subscribers would starve
    live ones: whoever sends keeps count; of idle ones no more than `keep` stay open. `resolver` is not closed
    with the connector.
    """
    connector = _GuardedConnector(
        resolver=GuardedResolver(policy, resolver),
        socket_factory=guarded_sockets(policy),
        limit=0,
        ttl_dns_cache=DNS_CACHE_S,
        dns_cache_max_size=_DNS_CACHE_NAMES,
        keepalive_timeout=_KEEP_ALIVE_S,
    )
    connector.keep = keep
    return connector


def guarded_sockets(policy: Policy) -> SocketFactoryType:
    """Make the `socket_factory` of a connector: no socket for a forbidden address. Raises EgressRefused."""

    def guarded_socket(address_info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = address_info
        _refuse(policy, address[0])
        return socket.socket(family, kind, protocol)

    return guarded_socket


def refusal_in(error: BaseException) -> str | None:
    """Say why the guard refused, if that is what `error`, as aiohttp raised it, is about."""
    cause = error if isinstance(error, EgressRefused) else error.__cause__
    return cause.reason if isinstance(cause, EgressRefused) else None


class _GuardedConnector(TCPConnector):
    """Keeps no more than so many idle connections, which aiohttp does not bound: a thousand hosts that answer
    at once would take a thousand file descriptors."""

    keep = MOST_KEPT

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        is_full = sum(map(len, self._conns.values())) >= self.keep
        super()._release(key, protocol, should_close=should_close or is_full)


def _refuse(policy: Policy, host: object) -> None:
    address = read_address(host)
    reason = policy.verdict(address) if address else "not an address in its usual spelling"
    if reason:
        raise EgressRefused(reason)
