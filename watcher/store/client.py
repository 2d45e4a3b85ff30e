"""Makes the one Redis client of a process.

Refuses to judge the server (`guarantee` does) and to say what its errors mean (`errors` does).
"""

from contextlib import suppress
from typing import Any

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialWithJitterBackoff

from watcher.store.address import Several, check_address, several
from watcher.store.errors import translated, unreadable
from watcher.store.exceptions import ConfigurationRefused as ConfigurationRefused
from watcher.store.exceptions import StoreError as StoreError
from watcher.store.exceptions import StoreUnreachable as StoreUnreachable

CONNECTIONS = 64
"""Commands in flight at once. More wait for a connection; redis-py's other pool would raise instead."""


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
    sentinels = _Sentinels(  # type: ignore[no-untyped-call]
        found.hosts, sentinel_kwargs={**_manners(), **tls, **credentials}
    )
    return _WatchedPool(found.name, sentinels, ssl=is_tls, **options)  # type: ignore[no-untyped-call]


class _WatchedPool(SentinelConnectionPool):
    async def aclose(self) -> None:
        """Close the connections to the Sentinels too, which redis-py leaves to the garbage collector."""
        await super().aclose()
        await self.sentinel_manager.aclose()


class _Sentinels(Sentinel):
    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Ask one after the other, first the one that knew it last. Raises StoreError.

        redis-py's own takes a wrong password, certificate or name for a primary that is down.
        """
        troubles: list[StoreError] = []
        known: set[str] = set()
        for sentinel in [*self.sentinels]:
            try:
                with translated(sentinel):
                    masters: Any = await sentinel.sentinel_masters()
            except StoreError as trouble:
                troubles.append(trouble)
                continue
            known.update(masters)
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                self.sentinels.remove(sentinel)
                self.sentinels.insert(0, sentinel)
                return state["ip"], state["port"]
        if known and service_name not in known:
            others = ", ".join(sorted(known))
            raise ConfigurationRefused(f"the Sentinels in redis.url do not know {service_name}, but {others}")
        if len(troubles) == len(self.sentinels):
            raise next((each for each in troubles if isinstance(each, ConfigurationRefused)), troubles[0])
        raise StoreUnreachable(f"the Sentinels in redis.url name no primary of {service_name} that is up")


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


async def _greet(connection: Any) -> None:
    try:
        await connection.on_connect()
        await connection.send_command("CLIENT", "SETNAME", "watcher", check_health=False)
        with suppress(exceptions.ResponseError):  # an ACL may forbid it; the name only helps in CLIENT LIST
            await connection.read_response()
    except ValueError as error:
        raise unreadable(error) from None
