"""The layout of a store: which one it is in, moved from, asked for, and which workers block a move."""

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import Store, a_store
from watcher.store.exceptions import ConfigurationRefused, LayoutAwaited
from watcher.store.layout import Layout, Numbers, check_numbers, in_the_way
from watcher.store.members import GONE_AFTER, Presence


@pytest.fixture(params=EVERY_ENGINE)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(redis_client: Redis, namespace: str) -> Store:
    return a_store(redis_client, namespace)


async def numbers(store: Store, **fields: object) -> Numbers:
    """The numbers of a store whose meta holds these fields."""
    pairs = [part for pair in {"shards": 16, **fields}.items() for part in pair]
    await store.pipe.command("HSET", store.keys.meta(), *pairs)
    return await Layout(store.pipe, store.keys).read()


async def schema(store: Store) -> bytes | None:
    found: bytes | None = await store.pipe.command("HGET", store.keys.meta(), "schema")
    return found


async def test_a_new_store_is_ready_and_its_layout_is_written_once(store: Store) -> None:
    found = await Layout(store.pipe, store.keys).read()
    assert found.is_ready
    assert await store.contents() == {}
    await store.roster.check_layout()
    assert (await store.contents())[store.keys.meta()] == {
        b"shards": b"16",
        b"schema": b"2",
        b"moved": b"2",
        b"providers": b"[]",
    }


async def test_data_of_0_1_is_layout_1_where_this_version_may_not_work(store: Store) -> None:
    found = await numbers(store, schema=1)
    assert (found.at, found.to, found.wanted, found.target, found.is_ready) == (1, 1, 2, 2, False)
    with pytest.raises(LayoutAwaited, match=r"once the last worker of 0\.1 has ended"):
        await store.roster.check_layout()
    assert await schema(store) == b"1"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schema": 2, "moved": 2, "wanted": 1}, "is to be moved back to layout 1"),
        ({"schema": 2, "moving": "2", "turn": 5}, "is being moved from layout 1 to 2"),
        ({"schema": 2, "moving": "2?", "turn": 5}, "is being moved from layout 1 to 2"),
        ({"schema": 2, "moved": 2, "moving": "1", "turn": 5}, "is being moved from layout 2 to 1"),
        ({"schema": 1, "moved": 1, "wanted": 1}, "stays there until `watcher store layout --to 2`"),
    ],
)
async def test_the_reason_why_a_worker_may_not_work_is_given(
    store: Store, fields: dict[str, object], words: str
) -> None:
    found = await numbers(store, **fields)
    with pytest.raises(LayoutAwaited, match=words):
        check_numbers(found)


@pytest.mark.parametrize(
    "fields",
    [{"moved": 2}, {"moving": "2", "turn": 5}, {"moving": "2?", "turn": 5}, {"moving": "1", "moved": 2}],
    ids=str,
)
async def test_a_layout_number_rewritten_by_a_worker_of_0_1_is_corrected(
    store: Store, fields: dict[str, object]
) -> None:
    """It reads and writes in two commands: what it wrote let others of 0.1 start in the middle."""
    found = await numbers(store, schema=1, **fields)
    assert (found.at, found.to) != (1, 1)
    assert await schema(store) == b"2"
    assert (await Layout(store.pipe, store.keys).read())[:5] == found[:5]


@pytest.mark.parametrize(
    "fields", [{"schema": 3}, {"schema": 2, "moving": "3"}, {"schema": 2, "shards": 8}], ids=str
)
async def test_data_of_a_later_version_is_refused(store: Store, fields: dict[str, object]) -> None:
    with pytest.raises(ConfigurationRefused, match="laid out by another version"):
        await numbers(store, **fields)


async def test_of_two_movers_one_begins_and_each_move_has_a_later_number(store: Store) -> None:
    layout = Layout(store.pipe, store.keys)
    before = await numbers(store, schema=1)
    assert [await layout.begin(before, 1000), await layout.begin(before, 1000)] == [True, False]
    announced = await layout.read()
    assert (announced.is_announced, announced.turn) == (True, 1000)
    assert await layout.begin_now(announced)
    assert not await layout.begin_now(announced)
    assert not await layout.end(announced)
    assert await layout.end(await layout.read())
    await layout.want(1)
    assert await layout.begin(await layout.read(), 900), "the server's clock went back"
    back = await layout.read()
    assert (back.turn, back.to, back.is_announced, await schema(store)) == (1001, 1, False, b"2")
    assert await layout.end(back)
    assert (await schema(store), (await layout.read()).at) == (b"1", 1)


async def test_a_lease_is_for_one_mover_until_it_ends(store: Store) -> None:
    layout = Layout(store.pipe, store.keys)
    assert await layout.take_lease("one")
    assert not await layout.take_lease("other")
    assert await layout.take_lease("one"), "it keeps the lease"
    await layout.leave_lease("other")
    assert await layout.holder() == "one"
    assert 0 < await store.pipe.command("PTTL", store.keys.mover()) <= 10_000
    await layout.leave_lease("one")
    assert await layout.take_lease("other")


NOW = 10**12
GONE_MS = int(1000 * GONE_AFTER.total_seconds())


@pytest.mark.parametrize(
    ("to", "layouts", "stands_by", "ago_ms", "is_in_the_way"),
    [
        (2, (1,), False, 0, True),
        (2, (1,), False, GONE_MS - 1, True),
        (2, (1,), False, GONE_MS, False),
        (2, (2,), False, 0, False),
        (2, (2, 3), True, 0, False),
        (1, (2,), False, 0, True),
        (1, (2,), True, 0, False),
        (1, (2,), False, GONE_MS, False),
        (1, (1,), False, 0, False),
    ],
)
def test_workers_that_block_a_move_are_named(
    to: int, layouts: tuple[int, ...], stands_by: bool, ago_ms: int, is_in_the_way: bool
) -> None:
    one = Presence("w", "here", 1, "0", 0, {}, "", NOW - ago_ms, "", layouts, stands_by)
    assert (in_the_way([one], to, NOW) == [one]) is is_in_the_way
