"""A worker on a Redis Cluster: a missing node, and a burst whose queues are on all nodes."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from tests.delivery.staged_subscriber import some_settings
from tests.delivery.test_chat_live import a_storm, said, seen
from tests.run.test_worker import baselines
from tests.support.chat import ChatService
from tests.support.clusters import Cluster, a_cluster
from tests.support.rig import ALICE, TREASURY, a_rig, workers
from watcher.store.address import several
from watcher.store.client import ClusterPipe
from watcher.store.keys import Keys
from watcher.store.queues import Queues
from watcher.store.schedule import Schedule

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


async def test_while_a_node_is_down_accounts_of_the_other_nodes_are_polled_and_delivered(
    cluster: Cluster,
) -> None:
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


async def test_a_burst_is_gathered_on_all_nodes_each_event_once_in_order(
    cluster: Cluster, namespace: str
) -> None:
    cluster.until_whole()
    found, keys = several(cluster.url), Keys(namespace)
    assert found
    accounts = ["treasury", next(n for n in map("a{}".format, range(99)) if apart(cluster, keys, n))]
    async with ChatService("slack") as slack, aclosing(ClusterPipe(found)) as pipe:
        settings = some_settings(cluster.url, namespace, {"ops": {"url": slack.url, "format": "slack"}})
        queues = Queues(Schedule(pipe), keys)
        for account, first in zip(accounts, (1, 101), strict=True):
            await queues.enqueue("ops", account, a_storm(first, first + 24))
        async with workers(settings, "w"):
            await slack.until(lambda: len(slack.lines) >= 50, within_s=20)
        assert await queues.backlog("ops") == 0
    lines = seen(slack.lines)
    assert len(lines) == 50
    for first in (1, 101):
        wanted = said(first, first + 24)
        assert [line for line in lines if line in wanted] == wanted
    assert (slack.flaws, slack.limited) == ([], 0)
    assert len(slack.messages) == 4, "20 and 5 lines of each account"


def apart(cluster: Cluster, keys: Keys, account: str) -> bool:
    """Whether the queue of an account lies on another node than that of `treasury`."""
    return cluster.owner(keys.queue("ops", account)) is not cluster.owner(keys.queue("ops", "treasury"))
