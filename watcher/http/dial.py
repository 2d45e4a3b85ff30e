"""Makes connections: looks names up, judges every address, connects to the first that answers, speaks TLS.

Refuses to trust what was judged before: a name may answer differently each time (rebinding), so an address is
judged when it is looked up and once more at the socket. Names are looked up by the configuration of now.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from aiohappyeyeballs import start_connection
from aiohttp import AsyncResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from watcher.http.wire import NoAnswer, Place

CACHE_S = 10.0
"""Saves a burst its look-ups; short, so that a server that moves is found again at the first retry."""

_MOST_NAMES = 10_000
_MOST_ADDRESSES = 64
"""Of a name; what more it has is left out. A hostile one has thousands, each of which would be judged."""

_MOST_TRIED = 4
"""Addresses of each family, by one request: each that hangs holds a descriptor until the deadline."""

_NEXT_ADDRESS_S = 0.25
"""How long an address may take before the next one of its name is tried beside it (RFC 8305)."""

FILES = (Path("/etc/resolv.conf"), Path("/etc/hosts"))
_MOST_BYTES = 64 * 1024

Judge = Callable[[str], str | None]
"""Says why an address must not be dialled, or None where it may be."""

AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]


class Line(asyncio.Protocol):
    """Our end of a connection: `transport` is there while it is open."""

    transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def abort(self) -> None:
        """Close at once: a peer may never receive the rest, nor answer the end of TLS."""
        transport, self.transport = self.transport, None
        if transport:
            transport.abort()


class NoConnection(NoAnswer):
    """No connection was made; its cause is the error of the system or of OpenSSL."""


class Unresolved(NoConnection):
    """The name does not resolve."""


class NoHostName(NoConnection):
    """The name cannot be looked up: it is no host name."""


class EgressRefused(NoConnection, OSError):
    """The judge denies this address. No byte was sent; this lasts until the policy or DNS changes."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EACCES, f"the egress policy forbids it: {reason}")
        self.reason = reason


@cache
def system_tls() -> ssl.SSLContext:
    """Make the client's side of TLS, once: certificate and host name are verified by what the system trusts,
    or SSL_CERT_FILE names."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


@lru_cache(maxsize=256)
def tls_trusting(certificates: str) -> ssl.SSLContext:
    """Make the client's side of TLS where only these certificates, as PEM, are trusted: also one that a node
    has made for itself.
    """
    context = ssl.create_default_context(cadata=certificates)
    context.set_alpn_protocols(["http/1.1"])
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # by which nodes do not go
    return context


class Dialer:
    """Connects to places. `judge` is asked about every address; without one, every address is allowed.

    The caller closes a `resolver` that it gives; without one it has its own. Needs a running loop.
    """

    def __init__(self, resolver: AbstractResolver | None = None, judge: Judge | None = None) -> None:
        self._resolver = resolver or CurrentResolver()
        self._is_own = resolver is None
        self._judge = judge
        self._known: dict[tuple[str, int], tuple[float, list[str]]] = {}
        self._asked: dict[tuple[str, int], asyncio.Task[list[str]]] = {}
        self._is_closed = False

    async def connect(self, place: Place, line: Line) -> None:
        """Open a line. Raises NoConnection; sets no time limit."""
        addresses = await self.look_up(place.host, place.port)
        sixes = [address for address in addresses if ":" in address][:_MOST_TRIED]
        fours = [address for address in addresses if ":" not in address][:_MOST_TRIED]
        infos = [_info(address, place.port) for address in addresses if address in (*sixes, *fours)]
        refusals: list[EgressRefused] = []

        def guarded(info: AddressInfo) -> socket.socket:
            try:
                self._judged(info[4][0])
            except EgressRefused as refusal:
                refusals.append(refusal)
                raise
            return socket.socket(*info[:3])

        try:
            sock = await start_connection(
                infos, happy_eyeballs_delay=_NEXT_ADDRESS_S, interleave=1, socket_factory=guarded
            )
        except (OSError, RuntimeError) as error:  # uvloop says some of it with a RuntimeError
            if refusals:
                raise refusals[0] from None
            raise NoConnection from error.with_traceback(None)  # of frames that hold it
        is_open, tls = False, None
        if place.is_tls:
            tls = tls_trusting(place.trusted) if place.trusted else system_tls()
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: line,
                sock=sock,
                ssl=tls,
                server_hostname=place.host.rstrip(".") if place.is_tls else None,
            )
            is_open = True
        except (OSError, RuntimeError) as error:  # ssl.SSLError is an OSError
            raise NoConnection from error
        except ValueError as error:  # a name that TLS cannot ask for
            raise NoHostName from error
        finally:
            if not is_open:
                line.abort()  # first: a loop that finds the socket closed under a transport trips over it
                with suppress(OSError):  # uvloop before 0.23, which ccxt brings, has closed it then
                    sock.close()

    async def look_up(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a host, the next one first each time.

        Raises EgressRefused if any of them is denied: keeping the allowed ones instead would let a
        subscriber probe inside with every second attempt. Raises Unresolved and NoHostName.
        """
        with suppress(ValueError):
            ip_address(host)
            return (self._judged(host),)
        wanted = host, port
        until, addresses = self._known.get(wanted, (0.0, []))
        if until <= asyncio.get_running_loop().time():
            task = self._asked.get(wanted)
            if task is None:
                if self._is_closed:  # and soon the resolver
                    raise Unresolved
                task = self._asked[wanted] = asyncio.create_task(self._ask(*wanted), name=f"look up {host}")
                task.add_done_callback(lambda ended: self._forget(wanted, ended))
            await asyncio.wait([task])  # others may wait for it: it goes on where one is cancelled
            if task.cancelled():  # by `close`
                raise Unresolved
            try:
                addresses = task.result()
            finally:
                del task  # which holds its error, and that this frame
        addresses.append(addresses.pop(0))
        return tuple(addresses)

    async def close(self) -> None:
        """End all lookups: callers that wait for one get Unresolved."""
        self._is_closed = True
        asked = [*self._asked.values()]
        for task in asked:
            task.cancel()
        if asked:
            await asyncio.wait(asked)
        if self._is_own:
            await self._resolver.close()

    async def _ask(self, host: str, port: int) -> list[str]:
        try:
            answers = await self._resolver.resolve(host, port, socket.AF_UNSPEC)
        except UnicodeError as error:
            raise NoHostName from error
        except OSError as error:
            raise Unresolved from error
        addresses = [self._judged(answer["host"]) for answer in answers[:_MOST_ADDRESSES]]
        if not addresses:
            raise Unresolved
        if len(self._known) >= _MOST_NAMES:
            self._known.clear()
        self._known[host, port] = (asyncio.get_running_loop().time() + CACHE_S, addresses)
        return addresses

    def _forget(self, wanted: tuple[str, int], task: asyncio.Task[list[str]]) -> None:
        del self._asked[wanted]
        if not task.cancelled():
            task.exception()  # read, so that asyncio does not warn of it

    def _judged(self, address: str) -> str:
        if self._judge and (reason := self._judge(address)):
            raise EgressRefused(reason)
        return address


def _info(address: str, port: int) -> AddressInfo:
    """Write an address as `getaddrinfo` does."""
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)


def ask_by_files() -> AbstractResolver:
    """Make a resolver that has read the files as they are now.

    Without an argument it would be one that all sessions of the process share, which read them long ago. The
    values are those of c-ares itself: 2 s for the first question, twice as long for each of the next ones.
    """
    return AsyncResolver(timeout=2.0, tries=3)


class CurrentResolver(AbstractResolver):
    """A resolver that is made anew whenever `files` have changed. Needs a running loop.

    aiodns reads the configuration once, when it begins. A resolv.conf may be empty when a container starts,
    be filled in place through a bind mount, or be a link that moves; aiodns watches the directory /etc, which
    sees neither, and its names then never resolve again.

    It looks at them before each look-up; one that is under way when they change is repeated. `follow` looks
    without a look-up: call it now and then.
    """

    def __init__(
        self, files: Sequence[Path] = FILES, make: Callable[[], AbstractResolver] = ask_by_files
    ) -> None:
        self._files = files
        self._make = make
        self._failed: set[str] = set()
        self._changed: set[str] | None = None
        self._begin()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raise OSError where the look-up fails."""
        await self.follow()
        while True:
            inner = self._inner
            try:
                answers = await inner.resolve(host, port, family)
            except OSError:
                if await self.follow() or inner is not self._inner:
                    continue
                self._failed.add(host)
                raise
            self._failed.discard(host)
            return answers

    async def follow(self) -> bool:
        """Begin anew if the files have changed; says whether they have."""
        if self._read() == self._contents:
            return False
        self._changed, self._failed = (self._changed or set()) | self._failed, set()
        outdated = self._inner
        self._begin()
        await outdated.close()  # ends what it still waits for
        return True

    def take_change(self) -> set[str] | None:
        """Name, once, the hosts that could not be looked up before the files changed; None: they did not."""
        hosts, self._changed = self._changed, None
        return hosts

    async def close(self) -> None:
        await self._inner.close()

    def _begin(self) -> None:
        self._contents = self._read()
        self._inner = self._make()

    def _read(self) -> list[bytes | None]:
        """Read the files whole: an edit within one tick of the clock changes no time of theirs."""
        return [_contents(file) for file in self._files]


def _contents(file: Path) -> bytes | None:
    try:
        with file.open("rb") as opened:
            return opened.read(_MOST_BYTES)
    except OSError:
        return None
