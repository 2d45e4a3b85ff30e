"""A Redis Cluster behind the face of one pipe: whatever is asked goes to the node that has its keys.

Refuses to take a call apart: all keys of one lie in one slot, as `keys` writes them. Nodes are found by
asking any of them, again whenever one sends elsewhere or does not answer.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError

from watcher.store.address import Several
from watcher.store.batch import Call
from watcher.store.client import connect_node
from watcher.store.exceptions import PartOfCluster, StoreError, StoreUnreachable
from watcher.store.pipe import Pipe

Address = tuple[str, int]

_HOPS = 5
"""So often a call follows its keys. Who has not found them by then tries again later, as after any outage."""


class ClusterPipe(Pipe):
    """The pipes to all nodes of a Cluster; itself one to the first that its address names."""

    is_cluster = True

    def __init__(self, found: Several) -> None:
        super().__init__(connect_node(found, *found.hosts[0]))
        self._found = found
        self._pipe_by_address: dict[Address, Pipe] = {}
        self._owner_by_slot: list[Address | None] = []
        self._learning = asyncio.Lock()
        self._running: list[asyncio.TaskGroup] = []

    async def send(self, call: Call) -> Any:
        for _ in range(_HOPS):
            owner = await self._owner_of(call)
            try:
                return await self._follow(owner, call)
            except PartOfCluster as node:
                if not isinstance(node.__cause__, AskError):
                    raise node.__cause__ or node from None  # keys of several slots in one call: a bug
                self._owner_by_slot = []
            except StoreUnreachable:
                self._owner_by_slot = []  # another node may have its slots by now
                raise
        raise StoreUnreachable("the Cluster sends from node to node; it heals by itself")

    async def _follow(self, owner: Address, call: Call) -> Any:
        """Send a call, and where its slot is just being moved, to the node that is given it."""
        try:
            return await self._pipe_at(owner).send(call.again())
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

    async def aclose(self) -> None:
        await super().aclose()
        for pipe in self._pipe_by_address.values():
            await pipe.aclose()

    async def _owner_of(self, call: Call) -> Address:
        owners = await self._owners()
        key = call.first_key
        owner = next(filter(None, owners), None) if key is None else owners[key_slot(key.encode())]
        if owner is None:
            self._owner_by_slot = []
            raise StoreUnreachable("no node of the Cluster has the slot of some keys; it heals by itself")
        return owner

    async def _owners(self) -> list[Address | None]:
        """Which node has which slot."""
        async with self._learning:
            if not self._owner_by_slot:
                self._owner_by_slot = await self._ask_for_owners()
            return self._owner_by_slot

    async def _ask_for_owners(self) -> list[Address | None]:
        trouble: StoreError | None = None
        for address in dict.fromkeys((*self._pipe_by_address, *self._found.hosts)):
            try:
                ranges = await self._pipe_at(address).command("CLUSTER", "SLOTS")
            except StoreError as error:
                trouble = trouble or error
                self._pipe_by_address[address] = self._pipe_by_address.pop(address)  # asked last next time
            else:
                return _by_slot(ranges, asked=address[0])
        assert trouble
        raise trouble

    def _pipe_at(self, address: Address) -> Pipe:
        if address not in self._pipe_by_address:
            self._pipe_by_address[address] = pipe = Pipe(connect_node(self._found, *address))
            for group in self._running:
                group.create_task(pipe.run(), name="pipe")
        return self._pipe_by_address[address]


def _by_slot(ranges: Iterable[list[Any]], *, asked: str) -> list[Address | None]:
    """Read what CLUSTER SLOTS answers. A node that does not tell its name is the one that was asked."""
    owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    for first, last, (host, port, *_), *_ in ranges:
        name = asked if host in (None, b"", b"?") else host.decode()
        owners[first : last + 1] = [(name, int(port))] * (last + 1 - first)
    return owners
