"""What `audit --store` finds: nothing after anything that the program does, and each kind of damage."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from itertools import count
from random import Random
from secrets import token_hex

import pytest
from redis.asyncio import Redis

from tests.support.builders import a_subscription
from tests.support.servers import EVERY_ENGINE
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    NEIGHBOURS,
    OPS,
    PROVIDER,
    SHARD,
    Store,
    a_commit,
    a_delivery,
    a_store,
    some_deliveries,
)
from watcher.delivery.resend import Resend, Resent, Selection
from watcher.journal.events import Delivery, Event
from watcher.store.consistency import Flaw, Lasting, Named, keys_of_accounts, lasting, strange
from watcher.store.directory import Directory, Write
from watcher.store.inventory import StoreAudit
from watcher.store.keeper import Keeper
from watcher.store.keys import SHARDS, Keys, shard_of
from watcher.store.polls import Polls
from watcher.store.queues import Bounds, Queues
from watcher.store.schedule import Lease

AUDIT = "audit"
OTHER, ADDED = NEIGHBOURS[:2]
ELSEWHERE = next(name for name in map("n{}".format, range(99)) if shard_of(name) != SHARD)
CONTENT = a_delivery().content
TIGHT = Bounds(log=600, dead=500, attempts=200)


async def flaws(store: Store, *, may_scan: bool = True) -> list[Flaw]:
    """What the audit finds in the one shard that these tests write to, and in the names of keys."""
    audit = StoreAudit(store.pipe, store.keys)
    names = await audit.names() if may_scan else None
    of_shard = await audit.of_shard(SHARD)
    assert of_shard.moving == 0
    return [*(names.flaws if names else ()), *of_shard.flaws]


class World:
    """Accounts and subscriptions, and everything that a worker and an operator do with them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._numbers = count(1)
        self._version = {ACCOUNT: "", OTHER: ""}
        self._sent: list[tuple[str, Delivery]] = []

    async def commit(self, account: str, subscriptions: list[str], events: int, *, baseline: bool) -> None:
        type_ = "account.baseline" if baseline else "total.increased"
        numbers = [next(self._numbers) for _ in range(events)]
        deliveries = {
            name: [
                a_delivery(number, event_type=type_, previous=None, subscription=name) for number in numbers
            ]
            for name in subscriptions
        }
        lease, version = await self.store.lease(account), token_hex(8)
        commit = a_commit(
            lease,
            expected=self._version[account],
            version=version,
            sequence=numbers[-1],
            notes=[b'{"type":"baseline"}'] if baseline else [],
            deliveries=deliveries,
        )
        if not subscriptions:  # events without a subscription are logged too
            made = tuple(Event(f"evt_{one}", type_, account, None, "0", one, b"{}", None) for one in numbers)
            commit = commit._replace(step=commit.step._replace(events=made))
        reply, _ = await self.store.polls.commit(commit)
        assert reply == 1
        self._version[account] = version

    def resume(self, account: str, version: str, number: int) -> None:
        """Go on from a state that is there, with events from a number on."""
        self._version[account] = version
        self._numbers = count(number)

    async def settle(self, account: str, subscription: str, outcome: str) -> None:
        queues = self.store.queues
        if not await self.store.queue(account, subscription):
            return
        lease = await self.store.lease_queue(account, subscription)
        until = queues.until(lease, MINUTE_MS)
        begun = await queues.begin(subscription, lease, until=until, at_most=1)
        lease = Lease(account, until)
        (head, delivery), until = begun.deliveries[0], queues.until(lease, MINUTE_MS)
        assert delivery
        match outcome:
            case "by hand":
                if not await queues.give_up(subscription, account, head, reason="by hand"):
                    await queues.begin(subscription, lease, until=until, at_most=1)  # nothing waits
                else:
                    await queues.release(subscription, lease)
            case "delivered":
                self._sent.append((account, delivery))
                await queues.delivered(subscription, lease, head, until=until)
            case "dead":
                await queues.dead(subscription, lease, head, until=until, reason="410", record=b"{}")
            case "retry":
                await queues.retry(subscription, lease, head, wait_ms=1, record=b'{"status":500}')

    async def again(self) -> None:
        """Send once more what was sent."""
        if self._sent:
            account, one = self._sent[-1]
            await self.store.queues.enqueue(one.subscription, account, [one])

    async def resend(self, subscription: str) -> None:
        """Send dead letters again."""
        resend = Resend(self.store.pipe, self.store.keys, is_preview=False)
        selection = Selection(is_dead=True, until_ms=2 * await self.store.now_ms())
        await resend.dead_letters(Resent(subscription, 100), a_subscription(subscription), selection)

    async def give_up(self, subscription: str, *, has_memory: bool) -> None:
        """Keep few deliveries, as the keeper does."""
        keeper = Keeper(self.store.pipe, self.store.keys, "w", TIGHT)
        await keeper.give_up(subscription, range(SHARDS), 3, "backlog full" if has_memory else "memory full")

    async def forget(self, account: str) -> None:
        """Take an account out of the configuration, and put it back when it is forgotten."""
        now_ms = await self.store.now_ms()
        others = [name for name in self._version if name != account]
        for names in (others, [*self._version]):
            await self.store.roster.enroll({PROVIDER: names}, now_ms=now_ms)
            await self.store.roster.forget(now_ms + 10 * MINUTE_MS)
        self._version[account] = ""


def tight(store: Store) -> Store:
    """The same store, whose log, dead letters and attempts are trimmed early."""
    schedule, keys = store.schedule, store.keys
    return replace(store, polls=Polls(schedule, keys, TIGHT), queues=Queues(schedule, keys, TIGHT))


async def act(world: World, random: Random) -> None:
    """Do something: mostly, events come and go."""
    account, subscription = random.choice([ACCOUNT, OTHER]), random.choice([OPS, AUDIT])
    kinds = {"commit": 40, "settle": 50, "again": 4, "resend": 4, "forget": 2, "give up": 5}
    match random.choices([*kinds], [*kinds.values()])[0]:
        case "commit":
            wanted = random.choice([[], [OPS], [AUDIT], [OPS, AUDIT]])
            await world.commit(account, wanted, random.randint(1, 4), baseline=random.random() < 0.1)
        case "settle":
            await world.settle(
                account, subscription, random.choice(["delivered", "dead", "retry", "by hand"])
            )
        case "again":
            await world.again()
        case "resend":
            await world.resend(subscription)
        case "give up":
            await world.give_up(subscription, has_memory=random.random() < 0.5)
        case "forget":
            await world.forget(account)


@pytest.mark.parametrize("seed", range(4))
async def test_no_operation_leaves_an_inconsistency(redis_client: Redis, namespace: str, seed: int) -> None:
    random, store = Random(seed), tight(a_store(redis_client, namespace))
    await store.roster.check_layout()
    world = World(store)
    for _ in range(4):
        for _ in range(60):
            await act(world, random)
        assert await flaws(store) == []
        assert await flaws(store, may_scan=False) == []


every_server = pytest.mark.parametrize("engine", EVERY_ENGINE)

ONE, TWO, THREE = some_deliveries(1, 2, 3)
Damage = Callable[[Store], Awaitable[object]]


async def a_whole_store(client: Redis, namespace: str) -> Store:
    """Three deliveries wait, one is dead, and one attempt is remembered."""
    store = a_store(client, namespace)
    await store.roster.enroll({PROVIDER: [ACCOUNT]}, now_ms=await store.now_ms())
    await store.fill(*some_deliveries(1, 2, 3))
    await store.fill(*some_deliveries(4, 5))
    lease = await store.lease_queue()
    lease, begun = await store.begin(lease)
    until = store.queues.until(lease, MINUTE_MS)
    directory = Directory(store.pipe, store.keys)
    await directory.put(Write("account", ADDED, {"provider": PROVIDER}, b"encrypted"))
    await directory.put(Write("subscription", ADDED, {}, b"encrypted"))
    await store.queues.dead(OPS, lease, begun.deliveries[0][0], until=until, reason="410", record=b"{}")
    assert await flaws(store) == []
    return store


def to(command: str, key: Callable[[Keys], str], *arguments: object, instead: bool = False) -> Damage:
    """A damage that one command does to a key, or to one that it puts in its place."""

    async def do(store: Store) -> None:
        if instead:
            await store.pipe.command("DEL", key(store.keys))
        await store.pipe.command(command, key(store.keys), *arguments)

    return do


def bodies(keys: Keys) -> str:
    return keys.bodies(SHARD)


def queue(keys: Keys) -> str:
    return keys.queue(OPS, ACCOUNT)


def backlogs(keys: Keys) -> str:
    return keys.backlogs(SHARD)


def records(keys: Keys) -> str:
    return keys.account_records(SHARD)


def schedule(keys: Keys) -> str:
    return keys.queues(SHARD, OPS)


async def one_dead_letter_less(store: Store) -> None:
    key = store.keys.dead(SHARD, OPS)
    (letter,) = await store.pipe.command("XRANGE", key, "-", "+")
    await store.pipe.command("XDEL", key, letter[0])


DAMAGES: dict[str, tuple[Damage, set[str]]] = {
    "a body is gone": (to("HDEL", bodies, "evt_2 2"), {"bodiless", "size"}),
    "all bodies are gone": (to("DEL", bodies), {"bodiless", "size"}),
    "a body counts one more": (to("HSET", bodies, "evt_2 2", b"3 total.increased\n" + CONTENT), {"count"}),
    "a body counts one less": (to("HSET", bodies, "evt_2 2", b"1 total.increased\n" + CONTENT), {"count"}),
    "a body is garbage": (to("HSET", bodies, "evt_2 2", b"\xff"), {"unreadable", "size"}),
    "a body is left over": (
        to("HSET", bodies, "evt_9 9", b"1 total.increased\n" + CONTENT),
        {"unreferenced"},
    ),
    "a delivery is gone": (to("RPOP", queue), {"count", "backlog"}),
    "a queue is gone": (to("DEL", queue), {"count", "empty", "backlog"}),
    "a delivery is garbage": (to("RPUSH", queue, "garbage"), {"unreadable", "backlog"}),
    "a delivery is there twice": (to("RPUSH", queue, "evt_5 5 4"), {"count", "backlog"}),
    "a queue is in no schedule": (to("ZREM", schedule, ACCOUNT), {"unscheduled", "backlog"}),
    "an empty queue is scheduled": (to("ZADD", schedule, 9, OTHER), {"empty"}),
    "attempts of an empty queue are noted": (
        to("HSET", lambda keys: keys.tries(SHARD, OPS), OTHER, "1 evt_9 9 -"),
        {"retry"},
    ),
    "a dead letter is gone": (one_dead_letter_less, {"count", "size"}),
    "the dead letters are gone": (to("DEL", lambda keys: keys.dead(SHARD, OPS)), {"count", "size"}),
    "the log is gone": (to("DEL", lambda keys: keys.log(SHARD)), {"count", "size"}),
    "the backlogs are gone": (to("DEL", backlogs), {"backlog"}),
    "a backlog is too long": (to("HINCRBY", backlogs, OPS, 1), {"backlog"}),
    "a backlog of nobody is noted": (to("HSET", backlogs, "nobody", 1), {"backlog"}),
    "a backlog is garbage": (to("HSET", backlogs, OPS, "x"), {"backlog"}),
    "the backlogs are of another type": (to("SET", backlogs, 1, instead=True), {"type"}),
    "the sizes are gone": (to("DEL", lambda keys: keys.sizes(SHARD)), {"size"}),
    "of dead letters too many are noted": (
        to("HINCRBY", lambda keys: keys.sizes(SHARD), f"dead {OPS}", 1),
        {"size"},
    ),
    "dead letters are noted that are nowhere": (
        to("HSET", lambda keys: keys.sizes(SHARD), "dead nobody", 1),
        {"size"},
    ),
    "a size is garbage": (to("HSET", lambda keys: keys.sizes(SHARD), "log", "x"), {"size"}),
    "the index of queues is gone": (to("DEL", lambda keys: keys.due_subscriptions(SHARD)), {"index"}),
    "the index of polls is gone": (to("DEL", lambda keys: keys.due_polls(SHARD)), {"index"}),
    "the index of polls is late": (
        to("ZADD", lambda keys: keys.due_polls(SHARD), 10**14, PROVIDER),
        {"index"},
    ),
    "the last sequence is too low": (
        to("HSET", lambda keys: keys.queued(ACCOUNT), OPS, 4),
        {"sequence"},
    ),
    "a state is garbage": (to("SET", lambda keys: keys.state(ACCOUNT), "garbage"), {"state"}),
    "a state is of another type": (
        to("HSET", lambda keys: keys.state(ACCOUNT), "version", 1, instead=True),
        {"state"},
    ),
    "the log is of another type": (
        to("SET", lambda keys: keys.log(SHARD), 1),
        {"type"},
    ),
    "the bodies are of another type": (to("SET", bodies, 1), {"type"}),
    "a record is garbage": (to("HSET", records, ADDED, "garbage"), {"record"}),
    "a subscription's record is garbage": (
        to("HSET", lambda keys: keys.subscription_records(SHARD), ADDED, b"1 1 {}\n"),
        {"record"},
    ),
    "a record lies in another shard": (to("HSET", records, ELSEWHERE, b"1 1 {}\nx"), {"record"}),
    "no change names a record": (to("DEL", lambda keys: keys.changes(SHARD)), {"record"}),
    "an account of the directory is to be forgotten": (
        to("ZADD", lambda keys: keys.removed(SHARD), 1, ADDED),
        {"record"},
    ),
    "an account of the directory is on no schedule": (
        to("ZREM", lambda keys: keys.polls(SHARD, PROVIDER), ADDED),
        {"unpolled"},
    ),
    "the records are of another type": (to("SET", records, 1), {"type"}),
    "a key is nobody's": (to("SET", lambda keys: f"{keys.namespace}:notes", 1), {"unknown"}),
    "a key lies in another shard": (
        to("SET", lambda keys: f"{keys.namespace}:{{{SHARD + 1}}}:account:{ACCOUNT}", 1),
        {"unknown"},
    ),
    "layout 1 left its log": (to("SET", lambda keys: f"{keys.namespace}:{{3}}:log", 1), {"leftover"}),
    "a move left a schedule": (
        to("SET", lambda keys: f"{keys.namespace}:{{3}}:moving:polls:loopring", 1),
        {"leftover"},
    ),
}


@pytest.fixture
def _at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is under way: there is nothing to wait for between two looks."""
    monkeypatch.setattr("watcher.store.inventory.WAITS_S", (0.0, 0.0, 0.0))


@pytest.mark.usefixtures("_at_rest")
@pytest.mark.parametrize("damage", DAMAGES)
async def test_each_kind_of_damage_is_found(redis_client: Redis, namespace: str, damage: str) -> None:
    store = await a_whole_store(redis_client, namespace)
    do, kinds = DAMAGES[damage]
    await do(store)
    found = await flaws(store)
    assert {flaw.kind for flaw in found} == kinds
    assert all(flaw.text and flaw.advice for flaw in found)


@pytest.mark.usefixtures("_at_rest")
@every_server
async def test_a_store_is_audited_with_the_least_rights_but_for_the_names_of_keys(
    redis_client: Redis, namespace: str, engine: str
) -> None:
    store = await a_whole_store(redis_client, namespace)
    names = await StoreAudit(store.pipe, store.keys).names()
    assert (names is None) == engine.endswith("-acl")
    await store.pipe.command("HDEL", store.keys.bodies(SHARD), "evt_3 3")
    await store.pipe.command("DEL", store.keys.queues(SHARD, OPS))
    found = await flaws(store)
    assert {flaw.kind for flaw in found} == {"bodiless", "unscheduled", "size", "backlog"}
    (unscheduled,) = (flaw for flaw in found if flaw.kind == "unscheduled")
    assert unscheduled.about == store.keys.queue(OPS, ACCOUNT)


@pytest.mark.slow
async def test_under_traffic_only_damage_is_reported(redis_client: Redis, namespace: str) -> None:
    store = await a_whole_store(redis_client, namespace)
    world = World(tight(store))
    state = await store.polls.read_state(PROVIDER, ACCOUNT)
    assert state
    world.resume(ACCOUNT, state.version, 10)

    stop, random = asyncio.Event(), Random(7)

    async def work() -> None:
        while not stop.is_set():
            await act(world, random)

    working = asyncio.create_task(work())
    try:
        audit = StoreAudit(store.pipe, store.keys)
        for _ in range(3):
            audited = await audit.of_shard(SHARD)
            assert audited.flaws == []
            assert audited.references
        await store.pipe.command("HSET", store.keys.bodies(SHARD), "evt_9 9", b"1 a.b\n{}")
        await store.pipe.command("HINCRBY", store.keys.sizes(SHARD), "log", 7)
        found = (await audit.of_shard(SHARD)).flaws
        assert [flaw.kind for flaw in found] == ["size", "unreferenced"]
    finally:
        stop.set()
        await working


def a_flaw(text: str, about: str = "a") -> Flaw:
    return Flaw("count", 1, about, text, "")


def test_a_finding_that_differs_at_each_look_is_in_motion_and_not_reported() -> None:
    still, gone = a_flaw("2, not 3", "b"), a_flaw("1, not 2", "c")
    looks = [[a_flaw("1, not 2"), still, gone], [a_flaw("2, not 3"), still], [a_flaw("3, not 4"), still]]
    assert lasting(looks) == Lasting([still], moving=1)
    assert lasting([[]]) == Lasting([], moving=0)


def catalogue(account: str = ACCOUNT) -> Iterator[str]:
    """Every key that the program may write, of an account and a shard."""
    parts = {"shard": SHARD, "account": account, "kind": "hash"}
    for name, method in inspect.getmembers(Keys, inspect.isfunction):
        if not name.startswith("_"):
            wanted = list(inspect.signature(method).parameters)[1:]
            yield method(Keys("watcher"), *(parts.get(part, "some-Name_1.x") for part in wanted))


def test_every_key_of_the_catalogue_is_known() -> None:
    assert [*strange("watcher", [*catalogue()])] == []
    assert {*keys_of_accounts("watcher", [*catalogue()])} == {
        Named(SHARD, "", ACCOUNT),
        Named(SHARD, "some-Name_1.x", ACCOUNT),
    }


def test_keys_of_layout_1_are_reported_as_left_behind() -> None:
    old = ["standings", "{3}:due", "{3}:log", "{3}:polls:p", "{3}:lanes:s", "{3}:lane:s:a", "{3}:state:a"]
    old += ["{3}:tries:s", "{3}:dead:s", "{3}:moving:polls:p", "{3}:moving:lanes:s"]
    assert {flaw.kind for flaw in strange("watcher", [f"watcher:{key}" for key in old])} == {"leftover"}
