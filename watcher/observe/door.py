"""Who is let in to see a worker over HTTP: where it listens, and what a request must show.

Where a token is set, the token alone decides, which a browser asks people for as a password. Without one, on
loopback, the Host must be its own: a browser that was led here by DNS rebinding sends another. Refuses an
address that strangers can reach without a token.
"""

import hmac
import re
from base64 import b64decode
from collections.abc import Mapping
from ipaddress import ip_address
from typing import NamedTuple

from watcher.printable import printable

_SHORTEST_TOKEN = 16
_TOKEN = re.compile(r"[!-~]+\Z")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+|localhost)):([0-9]{1,5})\Z", re.ASCII)
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(?::[0-9]{1,5})?\Z", re.ASCII)


class ListenerRefused(Exception):
    """What was asked for would expose the worker, or cannot be had: somebody has to change the call."""

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

    Other names are not looked up: what one means may change, and with it who can connect.
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
    """Guards one address. Raises ListenerRefused where strangers could read along."""

    def __init__(self, address: Address, token: str | None) -> None:
        if token is None and not address.is_loopback:
            raise ListenerRefused(
                f"--http {address} is not a loopback address: whoever reaches it could read the metrics; "
                "set WATCHER_HTTP_TOKEN, or listen at 127.0.0.1"
            )
        if token is not None and (len(token) < _SHORTEST_TOKEN or not _TOKEN.match(token)):
            raise ListenerRefused(
                f"the token for --http must be {_SHORTEST_TOKEN} visible ASCII characters at least"
            )
        self._token = None if token is None else token.encode()

    def refusal(self, headers: Mapping[str, str]) -> int | None:
        """Say with which status a request is refused; None for who may come in.

        A request without a Host, or with an empty one, is let in on loopback: probes leave it out, browsers
        never do.
        """
        if self._token is None:
            return None if _is_own(headers.get("host") or "localhost") else 421
        # In constant time, so that no answer tells how much of it was right.
        is_shown = hmac.compare_digest(_token_in(headers.get("authorization", "")), self._token)
        return None if is_shown else 401

    def advice(self, status: int, headers: Mapping[str, str]) -> str:
        """Say to people, and to the log, why it was refused and what to do."""
        if status == 421:
            host = printable(headers.get("host", ""), 80)
            return (
                f"Host '{host}' is none of loopback's: have the proxy in front send `Host: 127.0.0.1`, "
                "or set WATCHER_HTTP_TOKEN, which decides alone"
            )
        if "authorization" in headers:
            return "what Authorization shows is not the token of --http"
        return "show the token of --http as `Authorization: Bearer ...`, or as a password"


def _token_in(authorization: str) -> bytes:
    """Read the token as programs show it, or as a browser does with a password, whatever the user's name."""
    scheme, _, shown = authorization.partition(" ")
    scheme, shown = scheme.lower(), shown.lstrip(" ")  # RFC 9110: in any case, after any number of spaces
    if scheme != "basic":
        return shown.encode() if scheme == "bearer" else b""
    try:
        return b64decode(shown, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _is_own(host: str) -> bool:
    """Whatever name a browser was led astray by, it is in the Host; an address of loopback is not."""
    match = _HOST.match(host)
    if not match:
        return False
    try:
        return (match[2] or "").lower().removesuffix(".") == "localhost" or ip_address(
            match[1] or match[2]
        ).is_loopback
    except ValueError:
        return False
