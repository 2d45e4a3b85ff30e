"""Makes the one Redis client of a process, and says in our words why Redis cannot be used.

Refuses to judge the server (`guarantee` does) and to show a credential.
"""

import re
from contextlib import suppress
from typing import Any

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialWithJitterBackoff

from watcher.store.address import ConfigurationRefused as ConfigurationRefused
from watcher.store.address import Several, check_address, host_text, several
from watcher.store.address import StoreError as StoreError
from watcher.store.address import StoreUnreachable as StoreUnreachable

CONNECTIONS = 64
"""Commands in flight at once. More wait for a connection; redis-py's other pool would raise instead."""

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


def connect(url: str) -> Redis:
    """Return a client for redis://, rediss://, unix:// or redis+sentinel://; it connects when first used.

    Answers come as bytes. rediss:// verifies the certificate and the host name. In the query of the URL,
    `ssl_ca_certs=/path/ca.pem` trusts one's own authority, `ssl_certfile` and `ssl_keyfile` present a
    client certificate, `ssl_check_hostname=no` accepts another name, and `ssl_cert_reqs=none` turns
    verification off. Raises ConfigurationRefused.
    """
    check_address(url)
    found = several(url)
    assert not found or found.kind == "sentinel", "a Cluster has no client, but a pipe of its own"
    options = _options(found.url if found else url)
    return Redis.from_pool(_watched_pool(found, options) if found else _pool(options))


def connect_node(found: Several, host: str, port: int) -> Redis:
    """Return a client for one node of a Cluster, as `connect` does for a server."""
    return Redis.from_pool(_pool({**_options(found.url), "host": host, "port": port}))


def _options(url: str) -> dict[str, Any]:
    return {**parse_url(url), "redis_connect_func": _greet, **_manners()}


def _pool(options: dict[str, Any]) -> BlockingConnectionPool:
    return BlockingConnectionPool(max_connections=CONNECTIONS, timeout=20, **options)


def _watched_pool(found: Several, options: dict[str, Any]) -> SentinelConnectionPool:
    """Connections to whichever server the Sentinels name as the primary, each time that one is made."""
    del options["host"]
    is_tls = options.pop("connection_class", None) is not None
    credentials = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    tls = {"ssl": is_tls, **{name: value for name, value in options.items() if name.startswith("ssl_")}}
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        found.hosts, sentinel_kwargs={**_manners(), **tls, **credentials}
    )
    return _WatchedPool(found.name, sentinels, ssl=is_tls, **options)  # type: ignore[no-untyped-call]


class _WatchedPool(SentinelConnectionPool):
    async def aclose(self) -> None:
        """Close the connections to the Sentinels too, which redis-py leaves to the garbage collector."""
        await super().aclose()
        await self.sentinel_manager.aclose()


def _manners() -> dict[str, Any]:
    """How every connection behaves, to a server or to a Sentinel."""
    return {
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        # redis-py's own ten retries hold one command up to 59 s on a server that hangs.
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=1), 3),
        # A full disk makes PING fail while reads work: a PING before each command would stop those too.
        "health_check_interval": 0,
        # RESP3 brings nothing to scripts that return integers and strings, and costs a HELLO and the
        # negotiation of maintenance notices for each connection.
        "protocol": 2,
        "driver_info": None,
    }


def where(client: Redis) -> str:
    """Return the address of a client's server, for a message."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return str(pool.service_name)
    options: dict[str, Any] = pool.connection_kwargs
    return str(options["path"]) if "path" in options else host_text(options["host"], options.get("port"))


class translated:  # noqa: N801 -- used as a word of `with`, and around every command: a generator costs more
    """Turn what redis-py raises inside into a StoreError; an error that no server state explains passes."""

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
    if isinstance(error, MasterNotFoundError):
        return StoreUnreachable(
            f"the Sentinels of {at} in redis.url do not answer, or name no primary that is up"
        )
    if isinstance(error, exceptions.ClusterDownError | exceptions.TryAgainError):
        return StoreUnreachable(f"the Cluster of {at} moves or misses some of its slots; it heals by itself")
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
