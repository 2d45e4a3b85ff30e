"""Which addresses a worker may listen at, which clients are let in, and what each token allows."""

import hmac
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from ipaddress import ip_address
from typing import NamedTuple

from aiohttp import web

from watcher.encryption import CIPHER
from watcher.printable import printable

_SHORTEST_TOKEN = 16
_TOKEN = re.compile(r"[!-~]+\Z")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+|localhost)):([0-9]{1,5})\Z", re.ASCII)
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(?::[0-9]{1,5})?\Z", re.ASCII)


class ListenerRefused(Exception):
    """The address or the token would expose the worker, or cannot be used: choose others."""

    exit_code = 78


class Address(NamedTuple):
    """Where to listen; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return ip_address(self.host).is_loopback


def parse_address(text: str) -> Address:
    """Read `127.0.0.1:8787`, `[::1]:8787` or `localhost:8787`. Raises ValueError.

    Other names are not resolved: a name may come to mean another address, which other clients can reach.
    """
    match = _ADDRESS.match(text)
    if not match or int(match[3]) > 65_535:
        raise ValueError("not an address and a port, such as 127.0.0.1:8787 or [::1]:8787")
    host = "127.0.0.1" if match[2] == "localhost" else match[1] or match[2]
    try:
        return Address(str(ip_address(host)), int(match[3]))
    except ValueError:
        raise ValueError("not an address of IPv4 or IPv6, before the port") from None


class Door:
    """Decides which requests are let in. Raises ListenerRefused for a public address without a token."""

    def __init__(self, address: Address, token: str | None) -> None:
        if token is None and not address.is_loopback:
            raise ListenerRefused(
                f"--http {address} is not a loopback address: anyone could read the metrics there; "
                "set WATCHER_HTTP_TOKEN, or listen at 127.0.0.1"
            )
        if token is not None and (len(token) < _SHORTEST_TOKEN or not _TOKEN.match(token)):
            raise ListenerRefused(
                f"the token for --http must be {_SHORTEST_TOKEN} visible ASCII characters at least"
            )
        self._token = None if token is None else token.encode()

    def refusal(self, headers: Mapping[str, str]) -> int | None:
        """Return the status that refuses a request; None lets it in.

        A request without a Host, or with an empty one, is let in on loopback: probes leave it out, browsers
        never do.
        """
        if self._token is None:
            # A browser that another name led here (DNS rebinding) sends that name.
            match = _HOST.match(headers.get("host") or "localhost")
            host = match[1] or match[2] if match else ""
            with suppress(ValueError):
                if host.lower().removesuffix(".") == "localhost" or ip_address(host).is_loopback:
                    return None
            return 421
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        # RFC 9110: in any case, after any number of spaces.
        scheme, token = scheme.lower(), shown.lstrip(" ").encode("utf-8", "surrogateescape")
        if scheme == "basic":  # a browser shows it as a password, after any user's name
            try:
                token = b64decode(token, validate=True).partition(b":")[2]
            except ValueError:
                token = b""
        # In constant time, so that no answer shows how much of it was right.
        is_shown = hmac.compare_digest(token, self._token) and scheme in ("basic", "bearer")
        return None if is_shown else 401

    def advice(self, status: int, headers: Mapping[str, str]) -> str:
        """Explain a refusal, for the answer and the log: the reason, and what to do about it."""
        if status == 421:
            host = printable(headers.get("host", ""), 80)
            return (
                f"Host '{host}' is none of loopback's: have the proxy in front send `Host: 127.0.0.1`, "
                "or set WATCHER_HTTP_TOKEN, which decides alone"
            )
        if "authorization" in headers:
            return "the token in Authorization is not that of --http"
        return "send the token of --http as `Authorization: Bearer ...`, or as a password"


def check_api(token: str | None, *, has_key: bool) -> None:
    """Refuse to open /v1 without a token, on loopback as well, or without a key to encrypt what comes in.
    Raises ListenerRefused, which names all that is missing."""
    missing = []
    if token is None:
        missing.append(
            "a token, also on loopback: put one into WATCHER_HTTP_TOKEN, such as "
            "`python3 -c 'import secrets; print(secrets.token_urlsafe(32))'` prints"
        )
    if not has_key:
        missing.append(
            "a key to encrypt what it stores: let [api] secret_key be "
            '"${WATCHER_SECRET_KEY}", and put there what `watcher secret new --key` prints'
        )
        if not find_spec("cryptography"):
            missing.append(CIPHER)
    if missing:
        raise ListenerRefused(f"--api needs {'; and '.join(missing)}")


class Caller(NamedTuple):
    """The owner of the token of a request under /v1: the operator, or the named subscription."""

    subscription: str | None = None

    @property
    def name(self) -> str:
        """The name of the token in the log."""
        return "operator" if self.subscription is None else f"subscription {self.subscription}"


CALLER = web.RequestKey("caller", Caller)

OPEN_TO_ITS_SUBSCRIPTION = frozenset(
    {
        ("GET", "/v1/subscriptions/{name}/balances"),
        ("GET", "/v1/subscriptions/{name}/events"),
    }
)
"""All that a subscription's token allows, with `name` its own; everything else is for the operator."""

OPERATOR = Caller()


class Access:
    """Finds the owner of a token under /v1, and decides whether the token allows a request.

    `by_token` returns the subscription whose token has this SHA-256 (hex), or None.
    """

    def __init__(self, token: str, by_token: Callable[[str], str | None]) -> None:
        self._operator = sha256(token.encode()).hexdigest()
        self._by_token = by_token

    def caller(self, authorization: str) -> Caller | None:
        """Return the owner of the token in an Authorization header; None if the token is unknown.

        Only `Bearer` is read: a browser sends a password by itself, so any page could make requests with it.
        """
        scheme, _, shown = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        # Hashes are compared: how long that takes says nothing about the token.
        digest = sha256(shown.lstrip(" ").encode("utf-8", "surrogateescape")).hexdigest()
        if hmac.compare_digest(digest, self._operator):
            return OPERATOR
        name = self._by_token(digest)
        return None if name is None else Caller(name)

    def is_open(self, caller: Caller, request: web.Request) -> bool:
        """Say whether the caller may make this request, whether or not the name in it exists."""
        if caller.subscription is None:
            return True
        resource = request.match_info.route.resource
        method = "GET" if request.method == "HEAD" else request.method
        return (
            resource is not None
            and (method, resource.canonical) in OPEN_TO_ITS_SUBSCRIPTION
            and request.match_info.get("name") == caller.subscription
        )


COST = web.ResponseKey("cost", int)
"""How many more requests an answer counts as, because it took Redis much time."""

PER_SECOND = 100
_MOST_CALLERS = 10_000


_BYTES_OF_ONE = 64 * 1024


class Rates:
    """The rate limit of each caller: PER_SECOND requests a second, and as many at once after a second without
    any. An answer counts as one more for each 64 KiB, which take the worker's time, and for its COST."""

    def __init__(self) -> None:
        self._left: dict[Caller, tuple[float, float]] = {}  # requests, and when that was so (monotonic)

    def wait_s(self, caller: Caller, now: float) -> float:
        """Count a request. Returns 0, or the seconds to wait before the next try."""
        left, at = self._left.get(caller, (PER_SECOND, now))
        left = min(PER_SECOND, left + (now - at) * PER_SECOND)
        if left < 1:
            return (1 - left) / PER_SECOND
        if len(self._left) >= _MOST_CALLERS:  # after a second a caller is as good as new
            self._left = {one: (had, at) for one, (had, at) in self._left.items() if now - at < 1}
        self._left[caller] = left - 1, now
        return 0

    def charge(self, caller: Caller, response: web.StreamResponse) -> None:
        """Count what an answer costs in addition to its request."""
        left, at = self._left.get(caller, (PER_SECOND, 0.0))
        cost = (response.content_length or 0) // _BYTES_OF_ONE + response.get(COST, 0)
        self._left[caller] = left - cost, at
