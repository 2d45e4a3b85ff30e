"""A Redis Cluster: calls find their keys on any node, follow them when they move, and wait for them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar
from unittest.mock import ANY

import pytest

from tests.support.audited import flaws
from tests.support.clusters import Cluster, Node, a_cluster
from tests.support.old_store import OldStore, an_entry, an_event
from tests.support.sentinels import on_port
from tests.support.servers import ENGINES, a_free_port, real_server
from tests.support.stores import MINUTE_MS, OPS, PROVIDER, Store, a_delivery, a_store, running
from watcher.store import move
from watcher.store.address import Several, check_address, safe_url, several
from watcher.store.client import ClusterPipe, connect
from watcher.store.directory import Directory, Write
from watcher.store.errors import DamagedKey
from watcher.store.exceptions import ConfigurationRefused, ServerRefused, StoreUnreachable
from watcher.store.guarantee import guarantee, guarantee_of_all, missing_rights
from watcher.store.history import History
from watcher.store.keeper import LEAST_BACKLOG, Keeper
from watcher.store.keys import SHARDS, shard_of
from watcher.store.layout import Layout
from watcher.store.queues import Breaker, Breakers, dump_breaker
from watcher.store.schedule import Due, DueIndex, Lease, Reply

pytestmark = pytest.mark.slow

PASSWORD = "canary-7f3a"  # no secret: it must never show
_NAMES = [f"account-{number}" for number in range(500)]
ACCOUNTS = [next(name for name in _NAMES if shard_of(name) == shard) for shard in range(SHARDS)]
"""One in each shard."""

ACCOUNT = ACCOUNTS[0]
T = TypeVar("T")


@pytest.fixture(scope="module", params=ENGINES)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with a_cluster(request.param) as cluster:
        yield cluster


@pytest.fixture
async def store(cluster: Cluster, namespace: str) -> AsyncIterator[Store]:
    found = several(cluster.url)
    assert found
    cluster.until_whole()
    pipe = ClusterPipe(found)
    async with running(pipe):
        yield a_store(connect("redis://nobody"), namespace, pipe)
    await pipe.aclose()


async def test_accounts_of_all_shards_are_polled_and_delivered(store: Store) -> None:
    await store.roster.enroll({PROVIDER: ACCOUNTS}, now_ms=await store.now_ms())
    await asyncio.gather(*(store.fill(a_delivery(1), a_delivery(2), account=name) for name in ACCOUNTS))
    states = await asyncio.gather(*(store.polls.read_state(PROVIDER, name) for name in ACCOUNTS))
    assert all(states)
    taken = await asyncio.gather(*(_deliver(store, shard) for shard in range(SHARDS)))
    assert taken == [[a_delivery(1).entry, a_delivery(2).entry]] * SHARDS


async def test_events_of_all_shards_are_read_in_pages(store: Store) -> None:
    history = History(store.pipe, store.keys)
    begun = await history.end()
    await asyncio.gather(*(store.fill(a_delivery(1), a_delivery(2), account=name) for name in ACCOUNTS))
    found: list[tuple[str, int]] = []
    cursor, is_end = begun, False
    while not is_end:
        page = await history.page(cursor, subscription=OPS, limit=5)
        found += [(event.account, event.sequence) for event in page.events]
        cursor, is_end = page.cursor, page.is_end
    assert sorted(found) == sorted((name, number) for name in ACCOUNTS for number in (1, 2))
    assert all(found.index((name, 1)) < found.index((name, 2)) for name in ACCOUNTS)
    assert cursor == await history.end()


async def test_the_directory_is_written_followed_and_written_again_over_all_nodes(store: Store) -> None:
    directory = Directory(store.pipe, store.keys)
    writes = [Write("account", name, {"provider": PROVIDER}, name.encode()) for name in ACCOUNTS]
    assert {one.outcome for one in await directory.put_all(writes)} == {"done"}
    assert await directory.counts() == {"account": SHARDS, "subscription": 0}
    heads = await directory.heads()
    held = [held async for held in directory.read_all()]
    assert [one.head for one in held] == heads
    assert [[record.name for record in one.records] for one in held] == [[name] for name in ACCOUNTS]
    assert all([(await store.scores(store.keys.polls(shard, PROVIDER))) for shard in range(SHARDS)])
    await directory.delete("account", ACCOUNT)
    changes = await directory.changes(0, heads[0])
    assert [(one.name, one.record) for one in changes.changed] == [(ACCOUNT, None)]
    for shard in range(SHARDS):
        await store.pipe.command("DEL", store.keys.account_records(shard))
        await store.pipe.command("DEL", store.keys.changes(shard))
    lost = [await directory.changes(shard, heads[shard]) for shard in range(SHARDS)]
    assert {one.lost_after for one in lost} == {0}
    assert await directory.write_again(0, [record for one in held for record in one.records]) == SHARDS


async def test_a_store_of_0_1_is_moved_to_layout_2_and_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move, "SETTLE_S", 0.0)
    old, layout = OldStore(store), Layout(store.pipe, store.keys)
    await old.begin()
    await old.ask("HSET", old.keys.breakers(), OPS, "3 1 2 0 503")
    events = [an_entry(an_event(number), OPS) for number in (1, 2)]
    for name in ACCOUNTS:
        await old.account(name, previous={OPS: 1})
        await old.queue(OPS, name, events)
    assert await move.Mover(store.pipe, store.keys, "mover").advance() == (SHARDS, 0, 0, 2 * SHARDS)
    assert (await layout.read()).is_ready
    assert all([await store.polls.read_state(PROVIDER, name) for name in ACCOUNTS])
    assert [len(await store.queue(name)) for name in ACCOUNTS] == [2] * SHARDS
    breaker = dump_breaker(Breaker(reason="503", since_ms=1, open_until_ms=2, rests=1))
    assert await store.pipe.command("HGETALL", store.keys.breakers()) == [b"ops", breaker]
    await layout.want(1)
    assert await move.Mover(store.pipe, store.keys, "mover").advance()
    for name in ACCOUNTS:
        assert await old.ask("LRANGE", old.keys.queue(OPS, name), 0, -1) == events
    assert await old.ask("HGETALL", old.keys.breakers()) == [b"ops", b"3 1 2 0 503"]


async def test_writes_during_a_slot_migration_wait_and_are_not_lost(store: Store, cluster: Cluster) -> None:
    queue = store.keys.queue(OPS, ACCOUNT)
    await store.fill(a_delivery(0), account=ACCOUNT)
    async with asyncio.TaskGroup() as group:
        moves = cluster.move(queue, _other(cluster, queue))
        next(moves)
        for number in range(1, 9):
            group.create_task(_patiently(lambda n=number: _queue(store, n)))  # type: ignore[misc]
            await asyncio.sleep(0.01)
        for _ in moves:
            await asyncio.sleep(0.01)
    found = await store.queue(ACCOUNT)
    assert sorted(found) == sorted(a_delivery(number).entry for number in range(9))


async def test_a_call_follows_its_keys_into_a_migrating_slot(store: Store, cluster: Cluster) -> None:
    key = store.keys.meta()
    await store.pipe.command("HSET", key, "providers", "[]")
    for _ in cluster.move(key, _other(cluster, key)):  # the key is there already, its slot still here
        assert await store.pipe.command("HGET", key, "providers") == b"[]"
    assert await store.pipe.command("HGET", key, "providers") == b"[]"


async def test_a_batch_finds_its_keys_on_all_nodes_also_while_they_move(
    store: Store, cluster: Cluster
) -> None:
    keys = [store.keys.log(shard) for shard in range(SHARDS)]
    assert await store.pipe.batch([("SADD", key, key) for key in keys]) == [1] * SHARDS
    asking = [("SMEMBERS", key) for key in keys]
    answers = [[key.encode()] for key in keys]
    for _ in cluster.move(keys[0], _other(cluster, keys[0])):
        assert await store.pipe.batch(asking) == answers
    assert await store.pipe.batch(asking) == answers


async def test_an_error_in_a_batch_is_the_same_as_of_a_single_command(store: Store) -> None:
    key = store.keys.log(0)
    _, wrong, right = await store.pipe.batch([("SET", key, "x"), ("LLEN", key), ("GET", key)])
    assert isinstance(wrong, DamagedKey)
    assert key in str(wrong)
    assert right == b"x"


async def test_an_index_of_another_type_is_empty_and_affects_no_other(store: Store) -> None:
    await store.pipe.command("SET", store.keys.due_polls(0), "damaged")
    await store.due(store.keys.due_subscriptions(0), ops=-10)
    parts = await DueIndex(store.schedule, store.keys).look()
    assert [part for part in parts if part != []] == [[Due("delivery", 0, "ops", ANY)]]


async def test_behind_a_proxy_of_a_cluster_each_shard_is_read_by_itself(namespace: str) -> None:
    """One node with all slots answers as such a proxy does: CROSSSLOT, and never MOVED."""
    with a_cluster(nodes=1) as alone:
        async with connect(alone.nodes[0].url) as client:
            store = a_store(client, namespace)
            index = DueIndex(store.schedule, store.keys)
            await store.pipe.command("SET", store.keys.due_polls(3), "damaged")
            for _ in range(2):
                await store.due(store.keys.due_subscriptions(7), ops=-10)
                parts = await index.look()
                assert [part for part in parts if part != []] == [[Due("delivery", 7, "ops", ANY)]]
            spent = await client.info("commandstats")
            assert spent["cmdstat_evalsha"]["rejected_calls"] == 1, "the second look knows the node"


async def test_behind_a_proxy_of_a_cluster_steps_are_joined_by_shard_after_the_first_refusal(
    namespace: str,
) -> None:
    with a_cluster(nodes=1) as alone:
        async with connect(alone.nodes[0].url) as client:
            store = a_store(client, namespace)
            await store.roster.enroll({PROVIDER: ACCOUNTS}, now_ms=0)
            async with running(store.pipe):
                for _ in range(2):
                    claims = await asyncio.gather(
                        *(
                            store.polls.claim(PROVIDER, shard, lease_ms=-1, at_most=1)
                            for shard in range(SHARDS)
                        )
                    )
                    assert [len(claim.leases) for claim in claims] == [1] * SHARDS
                fills = (store.fill(a_delivery(), account=name) for name in ACCOUNTS)
                await asyncio.gather(*fills)
            taken = await asyncio.gather(*(_deliver(store, shard) for shard in range(SHARDS)))
            assert taken == [[a_delivery().entry]] * SHARDS
            assert store.pipe.is_apart
            spent = await client.info("commandstats")
            assert spent["cmdstat_evalsha"]["rejected_calls"] == 1, "it is learned once"


async def test_a_missing_node_affects_only_its_own_shards(store: Store, cluster: Cluster) -> None:
    for shard, name in enumerate(ACCOUNTS):
        await store.fill(a_delivery(), account=name)
        await store.due(store.keys.due_polls(shard), loopring=-10)
    node = cluster.owner(store.keys.queue(OPS, ACCOUNTS[0]))
    node.server.stop()  # in order: what a kill takes back while the disk is slow is not asked here
    try:
        read = await asyncio.gather(*map(store.queue, ACCOUNTS), return_exceptions=True)
        gone = [name for name, found in zip(ACCOUNTS, read, strict=True) if isinstance(found, Exception)]
        assert all(isinstance(found, list | StoreUnreachable) for found in read)
        of_polls = (await DueIndex(store.schedule, store.keys).look())[:SHARDS]
    finally:
        node.server.start()
    assert gone == [name for name in ACCOUNTS if cluster.owner(store.keys.queue(OPS, name)) is node]
    looked = zip(ACCOUNTS, of_polls, strict=True)
    assert [name for name, part in looked if isinstance(part, StoreUnreachable)] == gone
    named = [due.shard for part in of_polls if isinstance(part, list) for due in part]
    assert named == [shard for shard, name in enumerate(ACCOUNTS) if name not in gone]
    again = await asyncio.gather(*(_patiently(lambda n=name: store.queue(n)) for name in ACCOUNTS))  # type: ignore[misc]
    assert again == [[a_delivery().entry]] * SHARDS


async def test_a_right_missing_on_one_node_counts_as_missing(cluster: Cluster, store: Store) -> None:
    node = cluster.nodes[-1]
    node.ask("ACL", "SETUSER", "default", "-rename", "-setrange")
    try:
        assert await missing_rights(store.pipe, store.keys) == ["RENAME", "SETRANGE"]
    finally:
        node.ask("ACL", "SETUSER", "default", "+@all")
    assert await missing_rights(store.pipe, store.keys) == []


async def test_the_guarantee_of_a_cluster_is_that_of_its_weakest_node(cluster: Cluster, store: Store) -> None:
    assert len(await store.pipe.servers()) == len(cluster.nodes)
    assert (await guarantee_of_all(store.pipe)).persistence == "everysec"
    cluster.nodes[1].ask("CONFIG", "SET", "appendfsync", "no")
    try:
        assert (await guarantee_of_all(store.pipe)).persistence == "no"
    finally:
        cluster.nodes[1].ask("CONFIG", "SET", "appendfsync", "everysec")
    assert await missing_rights(store.pipe, store.keys) == []


async def test_a_node_that_evicts_is_refused_also_while_another_one_is_unreachable(
    cluster: Cluster, store: Store
) -> None:
    evicting, gone = cluster.nodes[1], cluster.nodes[0]
    await guarantee_of_all(store.pipe)
    evicting.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    gone.server.stop()
    try:
        with pytest.raises(ServerRefused, match=f":{evicting.port} evicts keys"):
            await guarantee_of_all(store.pipe)
    finally:
        gone.server.start()
        evicting.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await _patiently(lambda: guarantee_of_all(store.pipe))


async def test_each_node_is_judged_when_it_is_connected_to(cluster: Cluster) -> None:
    found = several(cluster.url)
    assert found
    pipe, evicting = ClusterPipe(found), cluster.nodes[1]
    key = next(key for key in map("k{}".format, range(1000)) if cluster.owner(key) is evicting)
    evicting.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        await pipe.command("GET", key)
        assert f":{evicting.port} evicts keys" in str(pipe.verdict.refusal)
    finally:
        evicting.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await pipe.aclose()


async def test_a_single_node_and_a_server_that_is_no_node_are_refused(cluster: Cluster) -> None:
    async with connect(f"redis://127.0.0.1:{cluster.nodes[0].port}") as client:
        with pytest.raises(ConfigurationRefused, match=r"name it by redis\+cluster://"):
            await guarantee(client)
    port = a_free_port()
    with real_server("valkey", *on_port(port)):
        pipe = ClusterPipe(Several("cluster", (("127.0.0.1", port),), "", "redis://unknown"))
        with pytest.raises(ConfigurationRefused, match="not part of a Cluster"):
            await guarantee_of_all(pipe)
        await pipe.aclose()


@pytest.mark.parametrize(
    ("url", "found", "shown"),
    [
        (
            "redis+cluster://one.example.com",
            Several("cluster", (("one.example.com", 6379),), "", "redis://unknown"),
            "redis+cluster://one.example.com:6379",
        ),
        (
            f"rediss+cluster://me:{PASSWORD}@one:1,[::1]:2?ssl_cert_reqs=none",
            Several(
                "cluster", (("one", 1), ("::1", 2)), "", f"rediss://me:{PASSWORD}@unknown?ssl_cert_reqs=none"
            ),
            "rediss+cluster://one:1,[::1]:2",
        ),
    ],
)
def test_an_address_may_name_several_nodes(url: str, found: Several, shown: str) -> None:
    assert several(url) == found
    assert safe_url(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        f"redis+cluster://one/{PASSWORD}",
        "redis+cluster://one/1",
        "redis+cluster://one\n",
        f"redis+cluster://one:{PASSWORD}",
        f"redis+cluster://one?{PASSWORD}",
        f"redis+cluster://one?sentinel_password={PASSWORD}",
    ],
)
def test_an_invalid_address_is_refused_and_never_quoted(url: str) -> None:
    with pytest.raises(ConfigurationRefused) as caught:
        check_address(url)
    assert PASSWORD not in f"{caught.value}{caught.value.__cause__}{safe_url(url)}"


async def _deliver(store: Store, shard: int) -> list[bytes]:
    """Work off the one queue of a shard; returns what was in it."""
    taken: list[bytes] = []
    while (claimed := await store.queues.claim(OPS, shard, lease_ms=MINUTE_MS, at_most=1)).leases:
        (lease,) = claimed.leases
        lease, begun = await store.begin(lease)
        for entry, _ in begun.deliveries:
            head = entry.partition(b"\n")[0]
            reply, deadline = await store.queues.delivered(
                OPS, lease, head, until=store.queues.until(lease, MINUTE_MS)
            )
            assert reply is Reply.DONE
            lease = Lease(lease.member, deadline)
            taken.append(entry)
    return taken


async def _queue(store: Store, number: int) -> None:
    await store.queues.enqueue(OPS, ACCOUNT, [a_delivery(number)])


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer, as a worker does."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await ask()
            except StoreUnreachable:
                await asyncio.sleep(0.05)


def _other(cluster: Cluster, key: str) -> Node:
    return next(node for node in cluster.nodes if node is not cluster.owner(key))


async def test_a_node_that_is_nearly_full_gives_up_only_its_own_data(store: Store) -> None:
    for name in ACCOUNTS:
        await store.fill(
            *(a_delivery(number, b'{"id":"' + b"x" * 700) for number in range(1, 301)), account=name
        )
    servers = await store.pipe.servers_of(range(SHARDS), store.keys.backlogs)
    assert sorted(shard for _, shards in servers for shard in shards) == [*range(SHARDS)]
    (server, shards), *others = servers
    before = {shard: len(await store.queue(ACCOUNTS[shard])) for _, some in others for shard in some}
    await server.config_set("maxmemory", 1)
    try:
        (relief,) = (await Keeper(store.pipe, store.keys, "w").look({})).reliefs
    finally:
        await server.config_set("maxmemory", 0)
    assert relief.ours is not None, "it is full of its own data"
    waiting = [len(await store.queue(ACCOUNTS[shard])) for shard in shards]
    assert sum(waiting) == min(LEAST_BACKLOG, 300 * len(shards))
    assert {shard: len(await store.queue(ACCOUNTS[shard])) for shard in before} == before
    assert await flaws(store.pipe, store.keys) == []


async def test_counts_of_a_subscription_are_summed_over_all_shards(store: Store) -> None:
    breakers = Breakers(store.pipe, store.keys)
    assert breakers.is_apart
    await breakers.count_results(OPS, closed_at_ms=0)
    for account in ACCOUNTS:
        await store.fill(a_delivery(), account=account)
        lease = await store.lease_queue(account)
        result = "unavailable" if account in ACCOUNTS[:9] else "failed"
        await store.queues.retry(OPS, lease, a_delivery().entry, wait_ms=60_000, result=result)
    results = await breakers.count_results(OPS, closed_at_ms=0)
    assert (results.tried, results.failed, len(results.row)) == (SHARDS, SHARDS, SHARDS)
    assert await breakers.resume(OPS) is False
    assert (await breakers.count_results(OPS, closed_at_ms=0)).tried == 0
    assert not await breakers.is_idle(OPS)
