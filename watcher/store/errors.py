"""Turns what redis-py raises into a StoreError, in words for the operator; `replies` knows error replies.

Refuses to turn what is ours into one.
"""

import socket
from collections.abc import Mapping
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.sentinel import SentinelConnectionPool

from watcher.store.address import host_text
from watcher.store.exceptions import ConfigurationRefused, StoreError, StoreUnreachable
from watcher.store.replies import DamagedKey, of_reply

_CLIENT_CERTIFICATE = "name one in redis.url by ?ssl_certfile=/path/client.pem&ssl_keyfile=/path/client.key"
_OLD_TLS = "speaks no version of TLS that this machine does: let it speak TLS 1.2 or 1.3"
_NO_TLS = "does not speak TLS; use redis://, or its TLS port"
_BY_TLS: Mapping[str, str] = {
    "mismatch, certificate is not valid for": (
        "has a certificate for another name; use that one in redis.url, or add ?ssl_check_hostname=no to it"
    ),
    "certificate has expired": "has a certificate that has expired",
    "certificate is not yet valid": "has a certificate that is not valid yet; look at the clocks",
    "CERTIFICATE_VERIFY_FAILED": (
        "has a certificate that does not verify; if it is self-signed, name it or its authority in redis.url "
        "by ?ssl_ca_certs=/path/ca.pem, or trust any certificate by ?ssl_cert_reqs=none"
    ),
    "CERTIFICATE_REQUIRED": f"wants a client certificate: {_CLIENT_CERTIFICATE}",
    "INSUFFICIENT_SECURITY": "shares no safe cipher with this machine: let it speak TLS 1.2 or 1.3",
    "HANDSHAKE_FAILURE": (
        f"breaks off the TLS handshake: it wants a client certificate ({_CLIENT_CERTIFICATE}), or has no "
        "cipher in common with this machine"
    ),
    "ALERT_UNKNOWN_CA": "does not trust the client certificate that ssl_certfile names in redis.url",
    **dict.fromkeys(
        ("ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE_"),
        "refuses the client certificate that ssl_certfile names in redis.url",
    ),
    **dict.fromkeys(
        # An OpenSSL newer than Python's list of names says it in words.
        ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION", "legacy sigalg"),
        _OLD_TLS,
    ),
    **dict.fromkeys(
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"), _NO_TLS
    ),
    "UNRECOGNIZED_NAME": "serves no such name with TLS; look at the host name in redis.url",
    "TOO_SMALL": "has a certificate with a key that is too weak",
    "TOO_WEAK": "has a certificate whose key or signature is too weak",
}
"""By what OpenSSL says; the first that is found in it counts."""


class translated:  # noqa: N801 -- used as a word of `with`, and around every command: a generator costs more
    """Turn what redis-py raises inside into a StoreError; an error that is ours passes."""

    __slots__ = ("_client",)

    def __init__(self, client: Redis) -> None:
        self._client = client

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, exceptions.RedisError | OSError) and (
            ours := in_our_words(error, where(self._client))
        ):
            raise ours from error


def unreadable(error: ValueError) -> exceptions.ResponseError:
    """What redis-py should make of `-MOVED` and `-ASK` that name no node; it has closed the connection."""
    return exceptions.ResponseError(f"one that cannot be read ({error})")


def where(client: Redis) -> str:
    """Return the address of a client's server, for a message."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return str(pool.service_name)
    options: dict[str, Any] = pool.connection_kwargs
    return str(options["path"]) if "path" in options else host_text(options["host"], options.get("port"))


def in_our_words(error: Exception, at: str) -> StoreError | DamagedKey | None:
    """Say what a foreign error means for the operator; None for what is ours and no damage."""
    if isinstance(error.__cause__, exceptions.RedisError):
        error = error.__cause__  # redis-py wraps what goes wrong while it connects
    if isinstance(error, exceptions.InvalidResponse):
        return ConfigurationRefused(f"what answers at {at} is not Redis; check redis.url")
    code = getattr(error, "status_code", None)
    if code or isinstance(error, exceptions.ResponseError | exceptions.AuthenticationError):
        return of_reply(f"{code or ''} {error}".strip(), at)
    for sign, because in _BY_TLS.items():
        if sign in str(error):
            return ConfigurationRefused(f"Redis at {at} {because}")
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return StoreUnreachable(f"Redis at {at} does not answer in time; is it stopped or overloaded?")
    if isinstance(error.__context__, socket.gaierror):
        return StoreUnreachable(f"Redis at {at} cannot be reached: its name cannot be resolved")
    if isinstance(error.__context__, PermissionError):
        return StoreUnreachable(f"Redis at {at} cannot be reached: this user may not open it")
    if isinstance(error, exceptions.ConnectionError | OSError):
        return StoreUnreachable(f"Redis at {at} cannot be reached; is it running?")
    return None
