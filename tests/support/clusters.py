"""A Redis Cluster of real servers, whose slots a test may move from node to node."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from tests.support.servers import DURABLE, ENGINES, RealServer, a_free_port, until

_HOST = "127.0.0.1"
_BUS = 10_000
"""The nodes talk to each other on their port and so much."""

_FLAGS = (
    "--cluster-enabled",
    "yes",
    "--cluster-node-timeout",
    "2000",
    "--cluster-require-full-coverage",
    "no",
)


@dataclass
class Node:
    """One primary. `ask` is for the setup of a test, which waits long for it."""

    server: RealServer
    port: int

    def ask(self, *command: Any) -> Any:
        with Redis(host=_HOST, port=self.port, socket_timeout=5) as client:
            return client.execute_command(*command)

    @property
    def url(self) -> str:
        return f"redis://{_HOST}:{self.port}"

    @property
    def id(self) -> str:
        return str(self.ask("CLUSTER", "MYID").decode())


@dataclass
class Cluster:
    nodes: list[Node]

    @property
    def url(self) -> str:
        return f"redis+cluster://{_HOST}:{self.nodes[0].port}"

    def owner(self, key: str) -> Node:
        """The node that has a key's slot, as the first node says."""
        slot = key_slot(key.encode())
        for first, last, (_, port, *_), *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def until_whole(self) -> None:
        """Wait until every node answers for its slots again: one that was started again needs a moment."""
        until(lambda: all(map(_sees_whole, self.nodes)), "the Cluster did not heal")

    def move(self, key: str, target: Node) -> Iterator[int]:
        """Move the slot of a key, as operators do; yields after every few keys how many those were."""
        slot, source = key_slot(key.encode()), self.owner(key)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
            source.ask("MIGRATE", _HOST, target.port, "", 0, 5000, "KEYS", *keys)
            yield len(keys)
        for node in (target, source, *self.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)


@contextlib.contextmanager
def a_cluster(engine: str = "valkey", nodes: int = 3) -> Iterator[Cluster]:
    """Run a Cluster of primaries inside the block, each with as many slots."""
    with contextlib.ExitStack() as stack:
        cluster = Cluster([_start(engine, stack) for _ in range(nodes)])
        share = -(-REDIS_CLUSTER_HASH_SLOTS // nodes)
        for number, node in enumerate(cluster.nodes):
            slots = range(number * share, min((number + 1) * share, REDIS_CLUSTER_HASH_SLOTS))
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)  # alike, they would dispute what is moved
            node.ask("CLUSTER", "ADDSLOTS", *slots)
            node.ask("CLUSTER", "MEET", _HOST, cluster.nodes[0].port)
        until(
            lambda: all(_sees_all(node, nodes) for node in cluster.nodes), "the nodes did not find each other"
        )
        yield cluster


def _start(engine: str, stack: contextlib.ExitStack) -> Node:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="watcher-")))
    port = a_free_port(_BUS)
    flags = (*DURABLE, "--bind", _HOST, "--port", str(port), *_FLAGS)
    server = RealServer(ENGINES[engine], directory, flags)
    server.start()
    stack.callback(server.kill)
    return Node(server, port)


def _sees_all(node: Node, count: int) -> bool:
    return len(node.ask("CLUSTER", "SLOTS")) == count and _sees_whole(node)


def _sees_whole(node: Node) -> bool:
    covered = sum(last + 1 - first for first, last, *_ in node.ask("CLUSTER", "SLOTS"))
    return covered == REDIS_CLUSTER_HASH_SLOTS and b"cluster_state:ok" in node.ask("CLUSTER", "INFO")
