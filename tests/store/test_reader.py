"""Data of the store are read in bulk, as of one moment, whatever is damaged."""

import pytest
from redis.asyncio import Redis

from tests.support.builders import a_snapshot
from tests.support.servers import EVERY_ENGINE
from tests.support.stores import ACCOUNT, OPS, PROVIDER, SHARD, a_store, some_deliveries
from tests.support.stories import NOW_MS, STORY, Books, steps
from watcher.store.history import START
from watcher.store.keys import shard_of
from watcher.store.pipe import Pipe
from watcher.store.polls import Failing
from watcher.store.reader import Backlog, Overdue, Reader, Seen


@pytest.fixture
async def books(redis_client: Redis, namespace: str) -> Books:
    return Books(Pipe(redis_client), namespace)


@pytest.fixture
async def a_reader(books: Books) -> Reader:
    return Reader(books.pipe, books.keys)


async def seen(a_reader: Reader, *accounts: str) -> list[Seen]:
    return [one async for one in a_reader.read_states(dict.fromkeys(accounts, PROVIDER))]


@pytest.mark.parametrize("engine", EVERY_ENGINE)
async def test_states_come_in_the_order_asked_for(
    a_reader: Reader, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("watcher.store.reader._AT_ONCE", 2)
    names = [f"account-{number}" for number in range(100)]
    for name in names[::3]:
        await books.live(STORY[:1], name)
    found = await seen(a_reader, *names)
    assert [one.account for one in found] == names
    assert [one.account for one in found if one.state] == names[::3]
    assert not any(one.damage for one in found)


@pytest.mark.parametrize("engine", EVERY_ENGINE)
async def test_a_state_is_read_with_its_position_in_the_log(a_reader: Reader, books: Books) -> None:
    assert await seen(a_reader, "treasury") == [Seen("treasury", None, None, START)]
    (step,) = await books.live(STORY[:1])
    (found,) = await seen(a_reader, "treasury")
    ((last, _),) = await books.pipe.command("XRANGE", books.keys.log(shard_of("treasury")), "-", "+")
    assert (found.state, found.log_end) == (step.state, last.decode())


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize(
    ("command", "damage"),
    [
        (("SETRANGE", 40, "{"), "not readable"),
        (("SETRANGE", 0, " " * 16), "not readable"),
        (("SET", "text"), "not readable"),
        (("XADD", "*", "is", "text"), "not readable"),
    ],
)
async def test_a_damaged_state_is_named_and_hides_no_other(
    a_reader: Reader, books: Books, command: tuple[object, ...], damage: str
) -> None:
    shard = shard_of("treasury")
    neighbour = next(name for name in map("account-{}".format, range(999)) if shard_of(name) == shard)
    await books.live(STORY[:1])
    await books.live(STORY[:1], neighbour)
    name, *arguments = command
    if name == "XADD":
        await books.pipe.command("DEL", books.keys.state("treasury"))
    await books.pipe.command(name, books.keys.state("treasury"), *arguments)
    damaged, whole = await seen(a_reader, "treasury", neighbour)
    assert damaged.state is None
    assert damaged.damage
    assert damaged.damage.startswith(damage)
    assert whole.state is not None


async def test_failing_accounts_are_read_with_their_reasons(a_reader: Reader, books: Books) -> None:
    why = "auth the API key is refused"
    for _ in range(2):
        lease = await books.lease("treasury")
        postponed = await books.polls.postpone("loopring", lease, why=why, at_least_ms=0, waits_ms=[0])
    assert postponed is not None
    found = await a_reader.failing("loopring")
    assert found == {"treasury": Failing(2, postponed.since_ms, "auth", "the API key is refused")}
    key = books.keys.failing(shard_of("treasury"), "loopring")
    await books.pipe.command("HSET", key, "treasury", b"\xff 99999999999999999999")
    assert (await a_reader.failing("loopring"))["treasury"].error_class == "unknown"


async def test_a_schedule_has_its_count_and_its_first_due_time(a_reader: Reader, books: Books) -> None:
    assert await a_reader.overdue("loopring") == Overdue(0, None)
    await books.enroll("a", "b", "c")
    due_ms = await a_reader.now_ms() - 5000
    await books.pipe.command("ZADD", books.keys.polls(shard_of("b"), "loopring"), due_ms, "b")
    assert await a_reader.overdue("loopring") == Overdue(3, due_ms)


@pytest.mark.parametrize("engine", EVERY_ENGINE)
async def test_the_backlog_is_measured_per_subscription(a_reader: Reader, books: Books) -> None:
    accounts = [f"account-{number}" for number in range(20)]
    for number, account in enumerate(accounts):
        await books.live(STORY[:3], account, at_ms=NOW_MS + number)
    backlogs = await a_reader.backlogs(["ops", "quiet"])
    oldest = steps(STORY[:2])[1].state.sequence
    assert backlogs == {
        "ops": Backlog(queues=20, deliveries=40, oldest_sequence=oldest),
        "quiet": Backlog(),
    }
    assert await a_reader.backlogs([]) == {
        "ops": backlogs["ops"]
    }  # for a subscription that is not configured any more


async def test_dead_letters_and_retrying_queues_are_counted(a_reader: Reader, books: Books) -> None:
    await books.live(STORY[:3])
    shard = shard_of("treasury")
    await books.pipe.command("XADD", books.keys.dead(shard, "ops"), "*", "account", "treasury")
    await books.pipe.command("HSET", books.keys.tries(shard, "ops"), "treasury", "3 evt_1 1 -")
    found = (await a_reader.backlogs(["ops"]))["ops"]
    assert (found.queues, found.retrying, found.dead) == (1, 1, 1)


async def test_dead_letters_without_bodies_are_still_named(a_reader: Reader, books: Books) -> None:
    for subscription in ("ops", "others"):
        await books.pipe.command(
            *("XADD", books.keys.given_up(shard_of("treasury")), "*", "subscription", subscription),
            *("account", "treasury", "reason", "410", "delivery", "evt_7 1795175095846 -"),
        )
    (letter,) = await a_reader.dead_letters("ops", 10, lambda _: True)
    assert (letter.account, letter.event_id, letter.sequence) == ("treasury", "evt_7", 1_795_175_095_846)
    assert letter.delivery is None
    assert letter.reason == "410; its body is gone, for want of memory"
    assert abs(letter.at_ms - await a_reader.now_ms()) < 10_000


async def test_a_queue_whose_oldest_delivery_is_damaged_is_still_counted(
    a_reader: Reader, books: Books
) -> None:
    await books.live([a_snapshot(ETH="1"), a_snapshot(ETH="2")])
    await books.pipe.command("SET", books.keys.queue("ops", "treasury"), b"\xff\x00")
    assert (await a_reader.backlogs(["ops"]))["ops"] == Backlog(queues=1, deliveries=1)
    await books.pipe.command("DEL", books.keys.queue("ops", "treasury"))
    await books.pipe.command("RPUSH", books.keys.queue("ops", "treasury"), b"\xff\x00")
    assert (await a_reader.backlogs(["ops"]))["ops"] == Backlog(queues=1, deliveries=1)


async def test_a_queue_longer_than_a_page_is_read_once(
    redis_client: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("watcher.store.reader._DELIVERIES_PAGE", 2)
    store, waiting = a_store(redis_client, namespace), [*some_deliveries(1, 2, 3, 4, 5)]
    await store.fill(*waiting)
    reader = Reader(store.pipe, store.keys)
    assert [one async for one in reader.deliveries(OPS, ACCOUNT)] == waiting


@pytest.mark.parametrize(
    ("waiting", "event_id", "place", "behind"),
    [
        ((1, 2, 3, 4, 5, 6, 7), "evt_5", 5, 5),
        ((1, 2, 3, 4, 5, 6, 7), "evt_7", 7, 7),
        ((3, 4, 5, 6, 7), "evt_5", 5, 3),
        ((5, 6, 7), "evt_5", 5, 1),
        ((6, 7), "evt_5", 5, 0),
        ((), "evt_5", 5, 0),
        ((6, 7, 5), "evt_5", 5, 3),
        ((1, 2, 3), "evt_3", 10**12, 3),
        ((1, 2, 3), "", 2, 2),
        ((1,), "", 2, 1),
    ],
)
async def test_reading_a_queue_continues_after_the_last_delivery_though_others_left(
    redis_client: Redis,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    waiting: tuple[int, ...],
    event_id: str,
    place: int,
    behind: int,
) -> None:
    monkeypatch.setattr("watcher.store.reader._DELIVERIES_PAGE", 2)
    store = a_store(redis_client, namespace)
    if waiting:
        await store.fill(*some_deliveries(*waiting))
    reader = Reader(store.pipe, store.keys)
    assert await reader.place_behind(OPS, ACCOUNT, event_id, place) == behind
    found = [one.sequence async for one in reader.deliveries(OPS, ACCOUNT, behind) if one]
    assert found == [*waiting[behind:]]


async def test_the_latest_dead_letters_are_read_and_those_without_bodies_have_no_delivery(
    redis_client: Redis, namespace: str
) -> None:
    store, shard = a_store(redis_client, namespace), SHARD
    elsewhere = next(name for name in map("other-{}".format, range(99)) if shard_of(name) != shard)
    await store.pipe.command("HSET", store.keys.bodies(shard), "evt_1 1", "3 total.increased\n{")
    for at, account, entry in (
        (1, ACCOUNT, "evt_1 1 5"),
        (2, ACCOUNT, "evt_1 1 -"),
        (3, elsewhere, "evt_1 1 -"),
        (4, ACCOUNT, "what 1"),
    ):
        fields = ("account", account, "reason", "410", "delivery", entry)
        await store.pipe.command("XADD", store.keys.dead(shard, OPS), f"{at}-1", *fields)
    letters = await Reader(store.pipe, store.keys).dead_letters(OPS, 3, lambda _: True)
    assert [(one.at_ms, one.delivery is None, one.event_id, one.sequence) for one in letters] == [
        (2, False, "evt_1", 1),
        (3, True, "evt_1", 1),
        (4, True, None, None),
    ]
    behind = await Reader(store.pipe, store.keys).dead_letters_behind(OPS, shard, "1-1")
    assert [one.at_ms for one in behind] == [2, 3, 4]
    assert len(await Reader(store.pipe, store.keys).dead_letters_behind(OPS, shard, "")) == 4
