"""The sockets to subscribers: every address that is dialled is judged, and every answer is bounded.

Refuses to trust what was judged before: a name may answer differently each time (rebinding), and aiohttp
never asks a resolver about a URL whose host is an address. Refuses to take in what has no end: aiohttp
bounds each head and hands bodies on in pieces; but of interim answers, chunk extensions and whatever comes
on an idle connection 8 MB became 400 MB of objects.
"""

import asyncio
import errno
import re
import socket
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import AddrInfoType, ClientError, SocketFactoryType, StreamReader, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler

from watcher.delivery.egress import Policy, read_address

DNS_CACHE_S = 10
"""Saves a burst its look-ups; short, so that a subscriber that moves is found again at the first retry."""

_DNS_CACHE_NAMES = 10_000
MOST_KEPT = 5_000
_KEEP_ALIVE_S = 4  # below the 5 s after which common servers hang up: a POST must not meet a closing door

ANSWER_LIMIT = 64 * 1024
"""Bytes of one answer, its head and what came before it included. The connection ends with the next one."""


@dataclass(slots=True)
class Progress:
    """How far a request has come, whatever becomes of it. `status` is known from its line on: a head that has
    no end, or that aiohttp cannot read, does not undo what the receiver did.
    """

    is_connected: bool = False
    is_reused: bool = False
    status: int | None = None


progress: ContextVar[Progress] = ContextVar("progress")
"""The progress of the request that this task sends next."""

_HEADS_UNREAD = 16
"""Interim answers in one piece of data. A server says `100 Continue` and `103 Early Hints`, once or twice."""

_INTERIM = range(100, 200)
_SWITCHING = 101
_END_OF_HEAD = b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")
_LONGEST_STATUS = 16


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
    live ones: the worker keeps count; of idle ones no more than `keep` stay open. `resolver` is not closed
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
    factory = partial(_BoundedConnection, loop=asyncio.get_running_loop())
    connector._factory = factory  # type: ignore[assignment]  # noqa: SLF001 -- there is no public way
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


class AnswerTooLong(ClientError):
    """The limit was reached before there was a status. What comes later of an answer is just left out."""


def drop_frames(error: BaseException | None) -> None:
    """Let go of the frames that an error and its causes passed through, and so of what these had read.

    A connection holds the error that ended it, and the error's frames hold the connection: answers that are
    not HTTP left 57 KiB each behind, until such circles were collected.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class _BoundedConnection(ResponseHandler):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._room = ANSWER_LIMIT
        self._is_final = False
        self._is_used = False
        self._progress = Progress()
        self._beginning = b""

    def set_response_params(self, **params: Any) -> None:
        """Make room for the answer to another request. Runs in the task that sends it."""
        self._progress = progress.get(self._progress)
        self._progress.is_connected, self._progress.is_reused = True, self._is_used
        self._is_used = True
        self._beginning = b""
        self._room = ANSWER_LIMIT
        self._is_final = False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Take what there is room for, each head by itself: a fault behind it must not hide a status."""
        if not data:  # a reader that had to wait asks for the rest of what is here already
            super().data_received(data)
            return
        *heads, rest = data[: max(self._room, 0)].split(_END_OF_HEAD, _HEADS_UNREAD + 1)
        for part in filter(None, [*(head + _END_OF_HEAD for head in heads), rest]):
            is_answered = self._is_final and (self._payload is None or self._payload.is_eof())
            if is_answered or len(self) > _HEADS_UNREAD:
                self._cut()
            if self._exception:
                break
            if self._progress.status is None:  # a part may be the beginning of a head, or one whole head
                self._beginning += part[: _LONGEST_STATUS - len(self._beginning)]
                found = _STATUS.match(self._beginning)
                if found and (int(found[1]) not in _INTERIM or int(found[1]) == _SWITCHING):
                    self._progress.status = int(found[1])
                elif part.endswith(_END_OF_HEAD):
                    self._beginning = b""
            super().data_received(part)
        self._room -= len(data)
        if self._room < 0:
            self._cut()
        if self._exception and self._payload:
            self._payload.feed_eof()  # what has come of the body is all there will be

    def feed_data(self, data: tuple[Any, StreamReader], size: int = 0) -> None:
        """Note whether this head is the answer, or one of those that may come before it."""
        self._is_final = data[0].code not in _INTERIM
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Keep the error, and not the frames of its cause: where no task waits for it, none drops them."""
        drop_frames(exc_cause)
        super().set_exception(exc, *filter(None, [exc_cause]))

    def close(self) -> None:
        """Close at once: a peer may take for ever to receive the rest, or to say goodbye over TLS.

        What came when the attempt was over is not kept either: it and the connection hold each other.
        """
        self._buffer.clear()
        self.abort()

    def _cut(self) -> None:
        self.set_exception(AnswerTooLong())
        if self.transport is not None:
            self.transport.abort()
