"""A worker on a Redis Cluster: a node that is gone costs the accounts whose state is there, for as long."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.run.test_worker import baselines
from tests.support.clusters import Cluster, a_cluster
from tests.support.rig import ALICE, TREASURY, a_rig
from watcher.store.keys import Keys

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with a_cluster() as cluster:
        yield cluster


def a_namespace_with_treasury_alone(cluster: Cluster) -> str:
    """One whose keys that all accounts share lie on other nodes than the state of `treasury`."""
    for namespace in map("n{}".format, range(1000)):
        keys = Keys(namespace)
        shared = (
            keys.meta(),
            keys.breakers(),
            keys.rate("loopring"),
            keys.rate("shop"),
            keys.state("alice"),
        )
        if cluster.owner(keys.state("treasury")) not in map(cluster.owner, shared):
            return namespace
    raise AssertionError("there is one in every few")


async def test_the_accounts_of_the_other_nodes_are_polled_and_told_on(cluster: Cluster) -> None:
    namespace = a_namespace_with_treasury_alone(cluster)
    async with a_rig(cluster.url, namespace) as rig, rig.worker() as worker:
        await baselines(rig)
        node = cluster.owner(Keys(namespace).state("treasury"))
        node.server.kill()
        try:
            for number in range(1, 4):
                rig.sandbox.world.credit(ALICE, "MK", "1")
                events = await rig.events(number, within_s=20)
            rig.sandbox.world.credit(TREASURY, "LRC", "2")
            assert worker.opened
            async with asyncio.timeout(10):
                while worker.opened.health.is_up:  # noqa: ASYNC110 - until a command to that node has failed
                    await asyncio.sleep(0.01)
        finally:
            node.server.start()
        events = await rig.events(4, within_s=30)
    assert [event["data"]["account"]["name"] for event in events] == ["alice", "alice", "alice", "treasury"]
