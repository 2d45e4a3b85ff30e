"""Turns errors of redis-py and of Redis into a StoreError, in words for the operator."""

import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ResponseError

from watcher.printable import printable, without_secrets
from watcher.store.address import host_text
from watcher.store.exceptions import (
    ConfigurationRefused,
    PartOfCluster,
    StoreError,
    StoreRefuses,
    StoreUnreachable,
)

_OURS = re.compile(
    r"(?<![@\w])user_script:\d+: |Error compiling script|[Ww]rong number of arg"
    r"|[Nn]umber of keys can't be|\bsyntax error\b|is not (an integer|a valid float|a float)\b"
    r"|\bstream ID\b|The ID specified in X|The stream has exhausted"
)

_Words = tuple[type[StoreError], str]
_CREDENTIALS: _Words = (ConfigurationRefused, "refuses the credentials in its URL")
_RIGHTS: _Words = (
    ConfigurationRefused,
    "forbids its user a command or key that watcher needs; allow them as deploy/users.acl does",
)
_NODE: _Words = (PartOfCluster, "is part of a Cluster: name it by redis+cluster://")
_SLOTS: _Words = (StoreRefuses, "moves or misses some of the slots of its Cluster; this ends by itself")
_NO_NODE: _Words = (ConfigurationRefused, "is not part of a Cluster: name it by redis://")

_BY_CODE: Mapping[str, _Words] = {
    "MISCONF": (
        StoreRefuses,
        "refuses writes (MISCONF): it could not write to its disk; look at its disk space and its log",
    ),
    "OOM": (StoreRefuses, "refuses writes (OOM): its memory is full; raise its maxmemory"),
    "READONLY": (
        StoreRefuses,
        "refuses writes (READONLY): it is a replica; use the URL of the primary",
    ),
    "NOREPLICAS": (StoreRefuses, "refuses writes (NOREPLICAS): too few of its replicas are connected"),
    "MASTERDOWN": (
        StoreRefuses,
        "is a replica that has lost its primary (MASTERDOWN), and answers once that is back; use "
        "the URL of the primary",
    ),
    "BUSY": (
        StoreRefuses,
        "is busy with a script that does not end (BUSY), which is none of watcher's; end it by "
        "SCRIPT KILL, or FUNCTION KILL",
    ),
    "LOADING": (StoreUnreachable, "is still loading its data, and will answer after that"),
    "CLUSTERDOWN": _SLOTS,
    "TRYAGAIN": _SLOTS,
    "MOVED": _NODE,
    "ASK": _NODE,
    "CROSSSLOT": _NODE,
    "NOPERM": _RIGHTS,
    "WRONGPASS": _CREDENTIALS,
    "NOAUTH": (
        ConfigurationRefused,
        "asks for credentials: put them into its URL, as in redis://user:password@host",
    ),
    "DENIED": (
        ConfigurationRefused,
        "is in protected mode, and accepts connections from its own machine only: set a password there",
    ),
}
_FIRST = ("LOADING", "ASK", "WRONGPASS", "NOAUTH", "DENIED")
"""Codes that only a server sends, never a script: elsewhere in a reply, they are words."""

_CODE = re.compile(rf"\b({'|'.join(_BY_CODE.keys() - {*_FIRST})})\b|\A-?({'|'.join(_FIRST)})\b")

_BY_PHRASE: Mapping[str, _Words] = {
    "max number of clients": (
        StoreRefuses,
        "has no connection left (max number of clients reached): raise its maxclients, or see by CLIENT LIST "
        "which clients use them",
    ),
    "user executing the script can't": _RIGHTS,
    "ACL failure in script": _RIGHTS,
    "without any password configured": (
        ConfigurationRefused,
        "has no password: take the credentials out of its URL",
    ),
    "no password is set": (ConfigurationRefused, "has no password: take the credentials out of its URL"),
    "invalid password": _CREDENTIALS,
    "Invalid Username or Password": _CREDENTIALS,
    "for 'auth' command": _CREDENTIALS,
    "SELECT is not allowed in cluster mode": _NODE,
    "cluster support disabled": _NO_NODE,
    "DB index": (
        ConfigurationRefused,
        "has no database of this number; its URL names it at the end, or in ?db=",
    ),
}

_UNKNOWN = re.compile(r"unknown (?:redis )?(?:sub)?command(?:,? ['`\"](\w{1,32}))?", re.IGNORECASE)
_BY_UNKNOWN: Mapping[str, _Words] = {
    "SENTINEL": (ConfigurationRefused, "is no Sentinel: name the server itself, by redis://"),
    "CLUSTER": _NO_NODE,
}
_REPEATED = re.compile(r",? with args beginning with.*", re.DOTALL)
_MOST_KEYS = 3
_SHOWN = 90
"""Characters kept of an unknown error: the advice must fit into the same log line."""


class DamagedKey(ResponseError):
    """A key of watcher's holds another type, which watcher did not write."""

    exit_code = 69

    def __init__(self, at: str) -> None:
        super().__init__(status_code="WRONGTYPE")
        self._at = at
        self.keys: Sequence[str] = ()
        """Those of the command: one of them is damaged."""

    def __str__(self) -> str:
        shown = [*self.keys[:_MOST_KEYS], *(["…"] if len(self.keys) > _MOST_KEYS else [])]
        one = "one of " if len(shown) > 1 else ""
        keys = ", ".join(shown) or "a key"
        what = f"{one}{keys} is not of watcher's type (WRONGTYPE): restore it or delete it"
        return f"in Redis at {self._at}, {what}"


def of_reply(text: str, at: str) -> StoreError | DamagedKey | None:
    """Explain an error reply to the operator; None for a fault of our own."""
    if re.search(r"\bWRONGTYPE\b", text):
        return DamagedKey(at)
    words: _Words | None
    if unknown := _UNKNOWN.search(text):
        name = (unknown[1] or "").upper()
        because = f"does not know a command that watcher needs{name and f' ({name})'}"
        words = (ConfigurationRefused, f"{because}: is it renamed, or is this a proxy?")
        words = _BY_UNKNOWN.get(name, words)
    elif code := _CODE.search(text):
        words = _BY_CODE[code[1] or code[2]]
    else:
        words = next((words for phrase, words in _BY_PHRASE.items() if phrase in text), None)
    if words:
        kind, because = words
        error = kind(f"Redis at {at} {because}")
        error.cause = because
        return error
    if _OURS.search(text):
        return None
    shown = printable(without_secrets(_REPEATED.sub("", text)), _SHOWN) or "one without words"
    return StoreRefuses(
        f"Redis at {at} answers with an unknown error: {shown}; look at its limits and log, or its proxy's"
    )


_CLIENT_CERTIFICATE = "name one in its URL by ?ssl_certfile=/path/client.pem&ssl_keyfile=/path/client.key"
_OLD_TLS = "speaks no version of TLS that this machine speaks: let it speak TLS 1.2 or 1.3"
_NO_TLS = "does not speak TLS; use redis://, or its TLS port"
_BY_TLS: Mapping[str, str] = {
    "mismatch, certificate is not valid for": (
        "has a certificate for another name; use that one in its URL, or add ?ssl_check_hostname=no to it"
    ),
    "certificate has expired": "has a certificate that has expired",
    "certificate is not yet valid": "has a certificate that is not valid yet; look at the clocks",
    "CERTIFICATE_VERIFY_FAILED": (
        "has a certificate that does not verify; if it is self-signed, name it or its authority in its URL "
        "by ?ssl_ca_certs=/path/ca.pem, or trust any certificate by ?ssl_cert_reqs=none"
    ),
    "CERTIFICATE_REQUIRED": f"wants a client certificate: {_CLIENT_CERTIFICATE}",
    "INSUFFICIENT_SECURITY": "has no safe cipher in common with this machine: let it speak TLS 1.2 or 1.3",
    "HANDSHAKE_FAILURE": (
        f"breaks off the TLS handshake: it wants a client certificate ({_CLIENT_CERTIFICATE}), or has no "
        "cipher in common with this machine"
    ),
    "ALERT_UNKNOWN_CA": "does not trust the client certificate that ssl_certfile names in its URL",
    **dict.fromkeys(
        ("ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE_"),
        "refuses the client certificate that ssl_certfile names in its URL",
    ),
    **dict.fromkeys(
        # An OpenSSL newer than Python's list of names says it in words.
        ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION", "legacy sigalg"),
        _OLD_TLS,
    ),
    **dict.fromkeys(
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"), _NO_TLS
    ),
    "UNRECOGNIZED_NAME": "has no certificate for this name; look at the host name in its URL",
    "TOO_SMALL": "has a certificate with a key that is too weak",
    "TOO_WEAK": "has a certificate whose key or signature is too weak",
}
"""By what OpenSSL says; the first that is found in it counts."""


class translated:  # noqa: N801 -- used as a word of `with`, and around every command: a generator costs more
    """Turn what redis-py raises inside the block into a StoreError. Our own errors pass."""

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
    """Tell redis-py how to treat `-MOVED` and `-ASK` that name no node: it has closed the connection."""
    return exceptions.ResponseError(f"one that cannot be read ({error})")


def where(client: Redis) -> str:
    """Return the address of a client's server, for a message."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return str(pool.service_name)
    options: dict[str, Any] = pool.connection_kwargs
    return str(options["path"]) if "path" in options else host_text(options["host"], options.get("port"))


def in_our_words(error: Exception, at: str) -> StoreError | DamagedKey | None:
    """Explain a foreign error to the operator; None for an error of our own that is no damage."""
    if isinstance(error.__cause__, exceptions.RedisError):
        error = error.__cause__  # redis-py wraps what goes wrong while it connects
    if isinstance(error, exceptions.InvalidResponse):
        return ConfigurationRefused(f"what answers at {at} is not Redis; check the URL")
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
