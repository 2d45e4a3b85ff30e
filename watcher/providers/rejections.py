"""Why a poll is rejected, as far as HTTP itself shows it: by the status, or by how the connection failed.

Refuses to look at a body (the provider's module does) and to repeat what a foreign exception says:
those texts hold URLs.
"""

from collections.abc import Mapping

import aiohttp

from watcher.providers.contract import ErrorClass, Rejected
from watcher.tls_flaws import CANNOT_CONNECT, cannot_connect, tls_flaw

TRANSPORT_ERRORS = (aiohttp.ClientError, OSError, TimeoutError, UnicodeError)
"""All that a request was seen to raise: a time-out is no ClientError, a host name like `a..b` neither."""

_REDIRECTS = (301, 302, 303, 307, 308)
_ERROR_CLASS_BY_STATUS: Mapping[int, tuple[ErrorClass, str]] = {
    401: ("auth", "the API key is refused"),
    403: ("auth", "forbidden: the key has no access, or this address is blocked"),
    408: ("transient", "a time-out at the provider"),
    425: ("transient", "too early"),
    429: ("rate", "over the rate limit"),
    **dict.fromkeys(_REDIRECTS, ("configuration", "a redirect, which is not followed: see base_url")),
}
_ERROR_CLASS_BY_HUNDRED: Mapping[int, tuple[ErrorClass, str]] = {
    4: ("configuration", "a request that the provider does not take"),
    5: ("transient", "an error at the provider"),
}

_UNREACHED: tuple[tuple[type[Exception], ErrorClass, str], ...] = (
    (aiohttp.InvalidURL, "configuration", "base_url is not an address"),
    (UnicodeError, "configuration", "base_url is not a host name"),
    (aiohttp.ClientConnectorDNSError, "gone", "the name does not resolve"),
    (aiohttp.ClientConnectorError, "gone", CANNOT_CONNECT),
    (aiohttp.ClientResponseError, "malformed", "the answer is not HTTP"),
    (TimeoutError, "gone", "no answer in time"),
    (Exception, "gone", "the connection broke before an answer"),
)
_BROKEN_OFF: tuple[tuple[type[Exception], ErrorClass, str], ...] = (
    (TimeoutError, "transient", "no whole answer in time"),
    (Exception, "transient", "the answer broke off"),
)


def by_status(status: int) -> Rejected:
    """Say what an HTTP status other than 200 means where the provider's own words say nothing."""
    other: tuple[ErrorClass, str] = ("malformed", "an answer that says nothing of balances")
    error_class, reason = _ERROR_CLASS_BY_STATUS.get(status) or _ERROR_CLASS_BY_HUNDRED.get(
        status // 100, other
    )
    return Rejected(error_class, f"{reason} ({status})", status=status)


def by_error(error: Exception, status: int | None, *, is_tls: bool) -> Rejected:
    """Say how a request failed: before an answer (`status` is None), or in the middle of one with status 200.

    `is_tls`: it was to go through TLS.
    """
    is_handshake = is_tls and isinstance(error, aiohttp.ClientConnectorError)
    if status is None and (flaw := tls_flaw(error, is_handshake=is_handshake)):
        return Rejected("gone", flaw.words, fix=flaw.fix)
    table = _UNREACHED if status is None else _BROKEN_OFF
    error_class, reason = next(row[1:] for row in table if isinstance(error, row[0]))
    return Rejected(error_class, cannot_connect(error) if reason == CANNOT_CONNECT else reason, status=status)
