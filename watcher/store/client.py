"""Makes the one Redis client of a process; on a Cluster, the pipe that sends each call to the node with its
keys.

Refuses to judge the server (`guarantee` does that, on each new connection) and to explain its errors
(`errors` does).
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialWithJitterBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, ResponseError

from watcher.store.address import Several, check_address, host_text, several
from watcher.store.errors import translated, unreadable
from watcher.store.exceptions import ConfigurationRefused, PartOfCluster, StoreError, StoreUnreachable
from watcher.store.guarantee import judge_connection
from watcher.store.pipe import Call, Pipe, Verdict

CONNECTIONS = 64
"""Commands in flight at the same time. Further ones wait for a connection; redis-py's other pool would
raise."""

_HOPS = 5
"""Redirections that a call follows. After that, its caller tries again later."""

_NO_OWNER = "no node of the Cluster has the slot of some keys; this ends by itself"

Address = tuple[str, int]


def connect(url: str, verdict: Verdict | None = None) -> Redis:
    """Return a client for redis://, rediss://, unix:// or redis+sentinel://. It connects when it is first
    used, and passes to `verdict` what its servers answer about themselves on each new connection. Answers
    come as bytes.

    rediss:// verifies the certificate and the host name. In the query of the URL, `ssl_ca_certs=/path/ca.pem`
    trusts one's own authority, `ssl_certfile` and `ssl_keyfile` present a client certificate,
    `ssl_check_hostname=no` accepts another name, and `ssl_cert_reqs=none` turns verification off. Raises
    ConfigurationRefused.
    """
    check_address(url)
    found = several(url)
    if not found:
        return Redis.from_pool(_pool(_options(url, verdict)))
    assert found.kind == "sentinel", "a Cluster has no client, but a pipe of its own"
    # Each connection is made to the server that the Sentinels name as the primary at that time.
    options = _options(found.url, verdict)
    del options["host"]
    is_tls = options.pop("connection_class", None) is not None
    credentials = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    tls = {"ssl": is_tls, **{name: value for name, value in options.items() if name.startswith("ssl_")}}
    sentinels = _Sentinels(  # type: ignore[no-untyped-call]
        found.hosts, sentinel_kwargs={**_manners(), **tls, **credentials}
    )
    pool = _WatchedPool(found.name, sentinels, ssl=is_tls, **options)  # type: ignore[no-untyped-call]
    return Redis.from_pool(pool)


def connect_node(found: Several, host: str, port: int, verdict: Verdict | None = None) -> Redis:
    """Return a client for one node of a Cluster, as `connect` does for a server."""
    return Redis.from_pool(_pool({**_options(found.url, verdict), "host": host, "port": port}))


def _options(url: str, verdict: Verdict | None) -> dict[str, Any]:
    return {**parse_url(url), "redis_connect_func": partial(_greet, verdict), **_manners()}


def _pool(options: dict[str, Any]) -> BlockingConnectionPool:
    return BlockingConnectionPool(max_connections=CONNECTIONS, timeout=20, **options)


class _WatchedPool(SentinelConnectionPool):
    async def aclose(self) -> None:
        """Close the connections to the Sentinels as well, which redis-py leaves to the garbage collector."""
        await super().aclose()
        await self.sentinel_manager.aclose()


class _Sentinels(Sentinel):
    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Ask the Sentinels one after the other, the one that answered last first. Raises StoreError.

        redis-py's own method takes a wrong password, certificate or name for a primary that is down.
        """
        errors: list[StoreError] = []
        known: set[str] = set()
        for sentinel in [*self.sentinels]:
            try:
                with translated(sentinel):
                    masters: Any = await sentinel.sentinel_masters()
            except StoreError as error:
                errors.append(error)
                continue
            known.update(masters)
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                self.sentinels.remove(sentinel)
                self.sentinels.insert(0, sentinel)
                return state["ip"], state["port"]
        if known and service_name not in known:
            others = ", ".join(sorted(known))
            raise ConfigurationRefused(
                f"the Sentinels in the URL of Redis do not know {service_name}, but {others}"
            )
        if len(errors) == len(self.sentinels):
            raise next((each for each in errors if isinstance(each, ConfigurationRefused)), errors[0])
        raise StoreUnreachable(
            f"the Sentinels in the URL of Redis name no primary of {service_name} that is up"
        )


def _manners() -> dict[str, Any]:
    """Return the options of every connection, to a server or to a Sentinel."""
    return {
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        # redis-py's own ten retries hold one command up to 59 s on a server that hangs.
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=1), 3),
        # A full disk makes PING fail while reads work: a PING before each command would stop those too.
        "health_check_interval": 0,
        # RESP3 gains nothing for scripts that return integers and strings, and costs a HELLO and the
        # negotiation of maintenance notices for each connection.
        "protocol": 2,
        "driver_info": None,
    }


async def _greet(verdict: Verdict | None, connection: Any) -> None:
    try:
        await connection.on_connect()
        commands = [("CLIENT", "SETNAME", "watcher"), *([("INFO",)] if verdict else [])]
        answer: object = None
        for command in commands:  # an ACL may forbid them; the name only helps in CLIENT LIST
            await connection.send_command(*command, check_health=False)
        for _ in commands:
            with suppress(exceptions.ResponseError):
                answer = await connection.read_response()
        if verdict:
            at = getattr(connection, "path", None) or host_text(connection.host, connection.port)
            judge_connection(verdict, answer, at=at)
    except RuntimeError as error:  # uvloop raises it if a connection was closed a moment ago
        raise exceptions.ConnectionError("the connection was closed") from error
    except ValueError as error:
        raise unreadable(error) from None


class ClusterPipe(Pipe):
    """The pipes to all nodes of a Cluster; it is itself the pipe to the first node of the address.

    Refuses to split a call: all keys of a call are in one slot, as `keys` writes them. Any node says which
    nodes there are; one is asked again whenever a node redirects or does not answer.
    """

    is_cluster = True

    def __init__(self, found: Several) -> None:
        verdict = Verdict()
        super().__init__(connect_node(found, *found.hosts[0], verdict), verdict, is_apart=True)
        self._found = found
        self._pipe_by_address: dict[Address, Pipe] = {}
        self._owner_by_slot: list[Address | None] = []
        self._learning = asyncio.Lock()
        self._running: list[asyncio.TaskGroup] = []

    async def batch(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send a batch to each node, as any pipe does: each command names a key first. Errors are answers."""
        owners = await self._owners()
        places_by_owner: defaultdict[Address | None, list[int]] = defaultdict(list)
        for place, (_, key, *_) in enumerate(commands):
            places_by_owner[owners[key_slot(key.encode())]].append(place)
        found = await asyncio.gather(
            *(self._ask(owner, [commands[i] for i in places]) for owner, places in places_by_owner.items())
        )
        answers: list[Any] = [None] * len(commands)
        for places, some in zip(places_by_owner.values(), found, strict=True):
            for place, answer in zip(places, some, strict=True):
                answers[place] = answer
        return answers

    async def _ask(self, owner: Address | None, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Ask one node. What it refuses is sent again by itself, to the node that may have its key now."""
        try:
            if owner is None:
                raise StoreUnreachable(_NO_OWNER)
            answers = await self._pipe_at(owner).batch(commands)
        except StoreError as error:
            self._owner_by_slot = []  # another node may have its slots now
            return [error] * len(commands)
        refused = [i for i, answer in enumerate(answers) if isinstance(answer, ResponseError)]
        again = (self.command(*commands[i]) for i in refused)
        for i, answer in zip(refused, await asyncio.gather(*again, return_exceptions=True), strict=True):
            answers[i] = answer
        return answers

    async def send(self, call: Call) -> Any:
        for _ in range(_HOPS):
            owners = await self._owners()
            key = call.first_key
            owner = next(filter(None, owners), None) if key is None else owners[key_slot(key.encode())]
            if owner is None:
                self._owner_by_slot = []
                raise StoreUnreachable(_NO_OWNER)
            try:
                return await self._follow(owner, call)
            except PartOfCluster as node:
                if not isinstance(node.__cause__, AskError):
                    raise node.__cause__ or node from None  # keys of several slots in one call: a bug
                self._owner_by_slot = []
                call = call.again()
            except StoreUnreachable:
                self._owner_by_slot = []  # another node may have its slots now
                raise
        raise StoreUnreachable("the nodes of the Cluster redirect to each other; this ends by itself")

    async def _follow(self, owner: Address, call: Call) -> Any:
        """Send a call, and where its slot is just being moved, to the node that is given it."""
        try:
            return await self._pipe_at(owner).send(call)
        except PartOfCluster as node:
            ask = node.__cause__
            if not isinstance(ask, AskError) or isinstance(ask, MovedError):
                raise
            host, port = ask.node_addr  # no host: the one that was asked
            return await self._pipe_at((host or owner[0], port)).send_where_it_moves(call)

    async def run(self) -> None:
        """Gather and send for every node, until cancelled. Start two, as of any pipe."""
        async with asyncio.TaskGroup() as group:
            self._running.append(group)
            try:
                for pipe in self._pipe_by_address.values():
                    group.create_task(pipe.run(), name="pipe")
                await asyncio.Event().wait()
            finally:
                self._running.remove(group)

    async def servers(self) -> list[Redis]:
        owners = sorted({owner for owner in await self._owners() if owner})
        return [client for owner in owners for client in await self._pipe_at(owner).servers()]

    async def servers_of(
        self, shards: Sequence[int], key: Callable[[int], str]
    ) -> list[tuple[Redis, Sequence[int]]]:
        owners = await self._owners()
        shards_by_owner: defaultdict[Address, list[int]] = defaultdict(list)
        for shard in shards:
            if owner := owners[key_slot(key(shard).encode())]:
                shards_by_owner[owner].append(shard)
        return [
            (client, some)
            for owner, some in shards_by_owner.items()
            for client in await self._pipe_at(owner).servers()
        ]

    async def aclose(self) -> None:
        await super().aclose()
        for pipe in self._pipe_by_address.values():
            await pipe.aclose()

    async def _owners(self) -> list[Address | None]:
        """Return which node has which slot, as the first node that answers says."""
        async with self._learning:
            if self._owner_by_slot:
                return self._owner_by_slot
            first_error: StoreError | None = None
            for address in dict.fromkeys((*self._pipe_by_address, *self._found.hosts)):
                try:
                    ranges = await self._pipe_at(address).command("CLUSTER", "SLOTS")
                except StoreError as error:
                    first_error = first_error or error
                    self._pipe_by_address[address] = self._pipe_by_address.pop(
                        address
                    )  # asked last next time
                    continue
                owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
                for first, last, (host, port, *_), *_ in ranges:
                    # A node that does not say its name is the one that was asked.
                    name = address[0] if host in (None, b"", b"?") else host.decode()
                    owners[first : last + 1] = [(name, int(port))] * (last + 1 - first)
                self._owner_by_slot = owners
                return owners
            assert first_error
            raise first_error

    def _pipe_at(self, address: Address) -> Pipe:
        if address not in self._pipe_by_address:
            client = connect_node(self._found, *address, self.verdict)
            self._pipe_by_address[address] = pipe = Pipe(client, self.verdict, is_apart=True)
            for group in self._running:
                group.create_task(pipe.run(), name="pipe")
        return self._pipe_by_address[address]
