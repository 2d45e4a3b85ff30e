"""An idle worker is idle, however many providers it has: one look finds what is due, for all of them."""

import asyncio
from collections.abc import Callable

import pytest

from tests.benchmarks.idle import idle
from tests.support.clusters import a_cluster

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("providers", [2, 50])
def test_an_idle_worker_asks_redis_no_more_the_more_providers_it_has(
    server_url_of: Callable[[str], str], providers: int
) -> None:
    found = asyncio.run(idle(server_url_of("valkey"), providers, seconds=3.0))
    assert found.scripts <= 30


def test_an_idle_worker_asks_no_node_of_a_cluster_more_either() -> None:
    with a_cluster() as cluster:
        nodes = [node.url for node in cluster.nodes]
        found = asyncio.run(idle(cluster.url, 50, nodes=nodes, seconds=3.0))
    assert found.scripts <= 30
