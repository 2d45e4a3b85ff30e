"""The catalogue of keys: every key in Redis is in it, as it says, on the right node of a Cluster."""

import inspect
import itertools
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    OPS,
    PROVIDER,
    SHARD,
    Store,
    a_commit,
    a_delivery,
    a_store,
    fail,
    some_deliveries,
)
from watcher.snapshot import Asset
from watcher.store import keeper, move, queues
from watcher.store.directory import Directory, Write
from watcher.store.keeper import Keeper
from watcher.store.keys import SHARDS, Keys, shard_of
from watcher.store.layout import Layout
from watcher.store.members import Configurations, Fingerprint, Mark, Presence, Workers
from watcher.store.move import Mover
from watcher.store.pipe import Joint, Pipe, Script
from watcher.store.queues import Breakers, take_lease
from watcher.store.schedule import Lease

NOBODY = Fingerprint({}, {}, {})
GONE = "left-the-list"
PARTS: dict[str, tuple[Any, ...]] = {
    "provider": (PROVIDER, "shop"),
    "subscription": (OPS, "audit"),
    "account": (ACCOUNT, GONE),
    "shard": tuple(range(SHARDS)),
    "kind": ("hash", "list"),
    "digest": (NOBODY.digest,),
    "host": ("example.com",),
}
METHODS = {
    name: method for name, method in inspect.getmembers(Keys, inspect.isfunction) if not name.startswith("_")
}
LIVES_ON = {"permanent", "trimmed"}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move, "SETTLE_S", 0)


class Recorder(Pipe):
    """A pipe that remembers which keys each script was given, and each plain command as it was."""

    def __init__(self, client: Redis) -> None:
        super().__init__(client)
        self.scripts: list[tuple[str, list[str]]] = []
        self.commands: list[tuple[Any, ...]] = []

    async def script(self, script: Script, keys: list[str], *arguments: Any) -> Any:
        self.scripts.append((script.name, keys))
        return await super().script(script, keys, *arguments)

    async def step(self, joint: Joint, keys: tuple[str, ...], *arguments: Any) -> Any:
        self.scripts.append((joint.script.name, [*joint.keys, *keys]))
        return await super().step(joint, keys, *arguments)

    async def command(self, *command: Any) -> Any:
        self.commands.append(command)
        return await super().command(*command)


def lifetime(name: str) -> tuple[str, str]:
    """The type and the lifetime that a key's docstring begins with; of one that never exists, nothing."""
    said = (METHODS[name].__doc__ or "").partition(":")[0].split(", ")
    return (said[0], said[1]) if len(said) == 2 else ("", "")


def catalogue(keys: Keys) -> dict[str, str]:
    """Every key that this workload may leave behind, and by which method it is spelled."""
    spelled = {}
    for name, method in METHODS.items():
        choices = [PARTS[part] for part in list(inspect.signature(method).parameters)[1:]]
        for parts in itertools.product(*choices):
            spelled[method(keys, *parts)] = name
    return spelled


async def workload(store: Store) -> None:
    """Everything that the store does, at least once."""
    await store.pipe.command("HSET", store.keys.meta(), "shards", SHARDS, "schema", 1)
    await Mover(store.pipe, store.keys, "mover").advance()
    await Layout(store.pipe, store.keys).take_lease("mover")
    await store.roster.check_layout()
    now = await store.now_ms()
    await store.roster.enroll({PROVIDER: [ACCOUNT, GONE], "shop": []}, now_ms=now)
    await store.roster.wake([ACCOUNT])
    await store.roster.make_due(PROVIDER, [ACCOUNT], now_ms=now - 1)
    (lease,) = (await store.polls.claim(PROVIDER, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases
    await store.polls.take_turns(PROVIDER, 1, spacing_ms=200)
    deliveries = {OPS: some_deliveries(1, 2, 3, 4), "audit": [a_delivery(1)]}
    await store.polls.commit(a_commit(lease, notes=[b"event"], deliveries=deliveries))
    await store.polls.read_state(PROVIDER, ACCOUNT)
    await store.polls.note_watch()
    await store.polls.polled_at_ms([ACCOUNT])
    await store.polls.touch(
        PROVIDER, await store.lease(), version="v1", polled_at_ms=now, due_ms=now + MINUTE_MS
    )
    for account in (ACCOUNT, GONE):
        refused = await store.lease(account)
        await store.polls.postpone(PROVIDER, refused, why="down", at_least_ms=0, waits_ms=[1])
    await store.polls.release(PROVIDER, await store.lease())
    await store.roster.enroll({PROVIDER: [ACCOUNT], "shop": []}, now_ms=now)
    await Keeper(store.pipe, store.keys, "w").look({OPS: 3})
    await take_lease(store.pipe, store.keys.verifier(), "w", lease_ms=MINUTE_MS)
    await store.schedule.take_turns(store.keys.ping_rate("example.com"), 1, spacing_ms=200)
    directory = Directory(store.pipe, store.keys)
    await directory.put(Write("account", ACCOUNT, {"provider": PROVIDER}, b"encrypted"))
    await directory.put(Write("subscription", OPS, {}, b"encrypted"))
    await directory.delete("account", GONE)
    await directory.read(SHARD)
    await directory.changes(SHARD, (await directory.heads())[SHARD])
    await _deliver(store)


async def _deliver(store: Store) -> None:
    deliver = store.queues
    await deliver.due_subscriptions(SHARD)
    await deliver.hold(SHARD, {OPS: 1})
    (queue,) = (await deliver.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases
    queue, _ = await store.begin(queue)
    second, third, fourth = (a_delivery(number).entry for number in (2, 3, 4))  # the first was pushed out
    _, deadline = await deliver.delivered(OPS, queue, second, until=deliver.until(queue, MINUTE_MS))
    _, deadline = await deliver.dead(
        OPS,
        Lease(ACCOUNT, deadline),
        third,
        until=deliver.until(Lease(ACCOUNT, deadline), MINUTE_MS),
        reason="410",
    )
    await deliver.retry(
        OPS, Lease(ACCOUNT, deadline), fourth, wait_ms=10 * MINUTE_MS, record=b"{}", result="failed"
    )
    await deliver.enqueue(OPS, ACCOUNT, [a_delivery(5)])
    await deliver.enqueue(OPS, GONE, [a_delivery(6)])
    await deliver.give_up(OPS, GONE, a_delivery(6).entry, reason="by hand")
    await deliver.make_due(OPS, SHARD, lease_ms=MINUTE_MS)
    await deliver.release(OPS, await store.lease_queue())
    breakers = Breakers(store.pipe, store.keys)
    await fail(breakers, OPS, "503", open_ms=1)
    await breakers.take_probes(OPS, ["w"], at_most=1, lease_ms=MINUTE_MS)
    await breakers.take_turn(OPS, spacing_ms=200, within_ms=1000)
    store.pipe.is_apart = True  # as on a Cluster
    await breakers.count_results(OPS, closed_at_ms=0)
    await Workers(store.pipe, store.keys).note(Presence("w", "here", 1, "0", 0, {}))
    configurations = Configurations(store.pipe, store.keys)
    await configurations.write(NOBODY)
    await configurations.waited_for_since(NOBODY.digest, 1)
    await configurations.mark({OPS: (None, Mark("url", NOBODY.digest))})
    await store.polls.names.note(PROVIDER, [Asset("0", "ETH", "Ether", 18)])


@pytest.mark.parametrize("engine", EVERY_ENGINE)
async def test_every_key_is_in_the_catalogue_with_its_type_and_ttl(
    redis_client: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_store(redis_client, namespace)
    monkeypatch.setattr(queues, "DEAD_PER_SUBSCRIPTION", 1)
    monkeypatch.setattr(keeper, "DEAD_PER_SUBSCRIPTION", 1)
    await workload(store)
    name_by_key, found = catalogue(store.keys), set()
    for key in await store.contents():
        assert key in name_by_key, f"nothing else spells a key: {key}"
        name = name_by_key[key]
        kind, lives = lifetime(name)
        is_alone = name == "queue" and len(await store.queue(key.rpartition(":")[2], key.split(":")[-2])) == 1
        kinds = {"list", "string"} if is_alone else {kind.lower()}
        assert (await store.pipe.command("TYPE", key)).decode() in kinds, name
        ttl_ms = await store.pipe.command("PTTL", key)
        assert (ttl_ms == -1) == (lives in LIVES_ON), (
            f"{name} is said to be {lives} and has a TTL of {ttl_ms}"
        )
        found.add(name)
    assert found == {name for name in METHODS if lifetime(name)[0]}


@pytest.mark.parametrize("name", METHODS)
def test_the_catalogue_documents_type_and_ttl_of_each_key(name: str) -> None:
    kind, lives = lifetime(name)
    if name in ("nothing", "trial"):
        assert (METHODS[name].__doc__ or "").startswith("Never exists")
    else:
        assert kind in {"HASH", "LIST", "STREAM", "STRING", "ZSET"}
        assert lives in LIVES_ON | {"expires"}


@pytest.mark.parametrize("engine", EVERY_ENGINE)
async def test_all_keys_of_one_call_are_on_one_node_of_a_cluster(redis_client: Redis, namespace: str) -> None:
    recorder = Recorder(redis_client)
    await workload(a_store(redis_client, namespace, recorder))
    assert {
        "claim",
        "commit",
        "begin_queue",
        "settle",
        "touch",
        "postpone",
        "release",
        "make_due",
        "wake",
    } <= {name for name, _ in recorder.scripts}
    for name, keys in recorder.scripts:
        assert len({key_slot(key.encode()) for key in keys}) == 1, f"{name} needs keys of two nodes"
    for command, *arguments in recorder.commands:
        keys = [part for part in arguments if str(part).startswith(f"{namespace}:")]
        assert len({key_slot(str(key).encode()) for key in keys}) <= 1, command


@pytest.mark.parametrize("account", [ACCOUNT, "a", "Z9._-", "x" * 64])
def test_all_keys_of_an_account_share_the_tag_of_its_shard(account: str) -> None:
    keys, shard = Keys("watcher"), shard_of(account)
    spelled = [
        keys.state(account),
        keys.queued(account),
        keys.account_records(shard),
        keys.subscription_records(shard),
        keys.changes(shard),
        keys.bodies(shard),
        keys.sizes(shard),
        keys.given_up(shard),
        keys.queue(OPS, account),
        keys.polls(shard, PROVIDER),
        keys.failing(shard, PROVIDER),
        keys.log(shard),
        keys.due_subscriptions(shard),
        keys.queues(shard, OPS),
        keys.tries(shard, OPS),
        keys.dead(shard, OPS),
        keys.nothing(shard),
    ]
    assert {key[key.index("{") : key.index("}") + 1] for key in spelled} == {f"{{{shard}}}"}
    assert len({key_slot(key.encode()) for key in spelled}) == 1
    assert len(set(spelled)) == len(spelled)


def test_no_two_things_share_a_key() -> None:
    keys = Keys("watcher")
    size = sum(
        len(
            list(itertools.product(*(PARTS[part] for part in list(inspect.signature(method).parameters)[1:])))
        )
        for method in METHODS.values()
    )
    assert len(catalogue(keys)) == size


def test_every_key_begins_with_the_namespace() -> None:
    assert all(key.startswith("mine:") for key in catalogue(Keys("mine")))


@pytest.mark.parametrize(("account", "shard"), [("treasury", 0), ("alice", 7), ("shop-7", 5)])
def test_an_account_never_changes_its_shard(account: str, shard: int) -> None:
    """What is stored under one number would not be found under another."""
    assert (SHARDS, shard_of(account)) == (16, shard)


def test_accounts_spread_over_all_shards() -> None:
    counts = [0] * SHARDS
    for n in range(1600):
        counts[shard_of(f"account-{n}")] += 1
    assert min(counts) > 60
