"""Makes the one Redis client of a process, and says in our words why Redis cannot be used.

Refuses to judge the server (`guarantee` does) and to show a credential: messages and logs name a server
by `safe_url`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

CONNECTIONS = 64
"""Commands in flight at once. More wait for a connection; redis-py's other pool would raise instead."""

_SCHEMES = ("redis", "rediss", "unix")
_LATER = re.compile(r"rediss?\+(sentinel|cluster)://")
_PLAIN_OPTIONS = frozenset({"db", "username", "password"})
_FILE_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_TLS_OPTIONS = frozenset({"ssl_cert_reqs", "ssl_check_hostname"}) | _FILE_OPTIONS
_REFUSES_WRITES = {
    "MISCONF": "it could not write to its disk; look at its disk space and its log",
    "OOM": "its memory is full; raise its maxmemory",
    "READONLY": "it is a replica; point redis.url at the primary",
    "NOREPLICAS": "too few of its replicas are connected",
}
_TLS_REFUSALS = {
    "mismatch, certificate is not valid for": (
        "has a certificate for another name; use that one in redis.url, or add ?ssl_check_hostname=no to it"
    ),
    "certificate has expired": "has a certificate that has expired",
    "CERTIFICATE_VERIFY_FAILED": (
        "has a certificate that does not verify; if it is self-signed, name it or its authority in redis.url "
        "by ?ssl_ca_certs=/path/ca.pem, or trust any certificate by ?ssl_cert_reqs=none"
    ),
    "WRONG_VERSION_NUMBER": "does not speak TLS; use redis://, or its TLS port",
}
"""By what OpenSSL says; the first that is found in it counts."""
_REFUSAL = re.compile(r"\b(" + "|".join(_REFUSES_WRITES) + r")\b")


class StoreError(Exception):
    """Redis cannot be used now. A worker that already runs says so once, waits and tries again."""


class StoreUnreachable(StoreError):
    """Nobody answers, or the server answers and refuses writes: time or its operator heals it."""

    exit_code = 69


class ConfigurationRefused(StoreError):
    """The address, the credentials or the server's settings are wrong: waiting heals nothing."""

    exit_code = 78


def connect(url: str) -> Redis:
    """Return a client for redis://, rediss:// or unix://; it connects when first used.

    Answers come as bytes. rediss:// verifies the certificate and the host name. In the query of the URL,
    `ssl_ca_certs=/path/ca.pem` trusts one's own authority, `ssl_certfile` and `ssl_keyfile` present a
    client certificate, `ssl_check_hostname=no` accepts another name, and `ssl_cert_reqs=none` turns
    verification off. Raises ConfigurationRefused.
    """
    _check_options(_checked(url))
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=20,
        socket_timeout=5,
        socket_connect_timeout=2,
        # redis-py's own ten retries hold one command up to 59 s on a server that hangs.
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1), 3),
        # A full disk makes PING fail while reads work: a PING before each command would stop those too.
        health_check_interval=0,
        # RESP3 brings nothing to scripts that return integers and strings, and costs a HELLO and the
        # negotiation of maintenance notices for each connection.
        protocol=2,
        driver_info=None,
        redis_connect_func=_greet,
    )
    return Redis.from_pool(pool)


def safe_url(url: str) -> str:
    """Return where `url` points, without credentials and options. Never raises."""
    if url == "embedded":
        return url
    try:
        parts = _checked(url)
    except ConfigurationRefused:
        return "(not a Redis URL)"
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{_host(parts.hostname or '', parts.port)}{parts.path.rstrip('/')}"


def where(client: Redis) -> str:
    """Return the address of a client's server, for a message."""
    options: dict[str, Any] = client.connection_pool.connection_kwargs
    return str(options["path"]) if "path" in options else _host(options["host"], options.get("port"))


@contextmanager
def translated(client: Redis) -> Iterator[None]:
    """Turn what redis-py raises inside into a StoreError; an error that no server state explains passes."""
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        ours = in_our_words(error, where(client))
        if ours is None:
            raise
        raise ours from error


def in_our_words(error: Exception, at: str) -> StoreError | None:
    """Say what a foreign error means for whoever runs `watcher`, or None if it is a bug or bad data."""
    if isinstance(error.__cause__, exceptions.RedisError):
        error = error.__cause__  # redis-py wraps what goes wrong while it connects
    text = f"{getattr(error, 'status_code', None) or ''} {error}"
    if refusal := _REFUSAL.search(text):
        because = _REFUSES_WRITES[refusal[1]]
        return StoreUnreachable(f"Redis at {at} refuses writes ({refusal[1]}): {because}")
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return ConfigurationRefused(f"Redis at {at} refuses the credentials in redis.url")
    if isinstance(error, exceptions.NoPermissionError):
        return ConfigurationRefused(f"Redis at {at} forbids its user a command or key that watcher needs")
    if isinstance(error, exceptions.InvalidResponse):
        return ConfigurationRefused(f"what answers at {at} is not Redis; check redis.url")
    for sign, because in _TLS_REFUSALS.items():
        if sign in text:
            return ConfigurationRefused(f"Redis at {at} {because}")
    if isinstance(error, exceptions.BusyLoadingError):
        return StoreUnreachable(f"Redis at {at} is still loading its data; it will answer when it is done")
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return StoreUnreachable(f"Redis at {at} does not answer in time; is it stopped or overloaded?")
    if isinstance(error, exceptions.ConnectionError | OSError):
        return StoreUnreachable(f"Redis at {at} cannot be reached; is it running?")
    return None


async def _greet(connection: Any) -> None:
    await connection.on_connect()
    await connection.send_command("CLIENT", "SETNAME", "watcher", check_health=False)
    with suppress(exceptions.ResponseError):  # an ACL may forbid it; the name only helps in CLIENT LIST
        await connection.read_response()


def _checked(url: str) -> SplitResult:
    """Take the URL apart. What a special character in a password pushed out of place is refused unseen."""
    if later := _LATER.match(url):
        raise ConfigurationRefused(
            f"redis.url: {later[0]} is not supported yet; use redis://, rediss:// or unix://"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
        options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)]
    except ValueError:
        raise _no_url("is not a URL") from None
    if parts.scheme not in _SCHEMES:
        raise ConfigurationRefused(
            "redis.url must be `embedded` or begin with redis://, rediss:// or unix://"
        )
    if parts.scheme == "unix":
        misplaced = port is not None or not parts.path or (parts.netloc and "@" not in parts.netloc)
    else:
        misplaced = not parts.hostname or not re.fullmatch(r"/?[0-9]{0,5}", parts.path, re.ASCII)
    if misplaced or parts.fragment:
        raise _no_url("is not redis://[user:password@]host[:port][/db] nor unix:///path")
    known = _PLAIN_OPTIONS | (_TLS_OPTIONS if parts.scheme == "rediss" else set())
    if not known.issuperset(options):
        raise _no_url(f"has an option other than {', '.join(sorted(known))}")
    return parts


def _no_url(reason: str) -> ConfigurationRefused:
    return ConfigurationRefused(f"redis.url {reason}; percent-encode special characters in a password")


def _check_options(parts: SplitResult) -> None:
    """Find now what redis-py would only find at the first connection, or never."""
    for name, value in parse_qsl(parts.query):
        if name in _FILE_OPTIONS and not Path(value).is_file():
            raise ConfigurationRefused(f"redis.url: the file that {name} names cannot be found")
        if name == "ssl_cert_reqs" and value not in ("none", "required"):
            raise ConfigurationRefused("redis.url: ssl_cert_reqs is either none or required")
        if name == "ssl_check_hostname" and value not in ("yes", "no"):
            raise ConfigurationRefused("redis.url: ssl_check_hostname is either yes or no")
        if name == "db" and not re.fullmatch(r"[0-9]{1,5}", value, re.ASCII):
            raise ConfigurationRefused("redis.url: db is a number")


def _host(name: str, port: int | None) -> str:
    return f"[{name}]:{port or 6379}" if ":" in name else f"{name}:{port or 6379}"
