"""A store is moved from layout 1 to 2 and back, and all its data with it."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain, count
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from tests.support.builders import a_subscription
from tests.support.fuzzing import tried
from tests.support.old_store import AT_MS, OldStore, an_entry, an_event, without_numbers
from tests.support.servers import EVERY_ENGINE, FAKE, LIMITED
from tests.support.stores import NEIGHBOURS, Store, a_store, running
from watcher.delivery.resend import Resend, Resent, Selection
from watcher.store import move
from watcher.store.client import connect
from watcher.store.directory import Directory, Write
from watcher.store.exceptions import LayoutAwaited, StoreRefuses
from watcher.store.history import START, Cursor, Gone, History, Place
from watcher.store.inventory import StoreAudit
from watcher.store.keys import SHARDS, OldKeys, shard_of
from watcher.store.layout import Layout
from watcher.store.members import Presence, Workers
from watcher.store.move import Counts, Mover, read_old
from watcher.store.pipe import Call, Pipe
from watcher.store.queues import Breaker, dump_breaker
from watcher.store.reader import Reader

ONE_LIMITED = "valkey-acl"
ONE_ENGINE = pytest.mark.parametrize("engine", [ONE_LIMITED], indirect=True)
OPS, AUDIT, GONE = "ops", "audit", "gone"
NAMES = ("treasury", "alice", "shop-7", "dust")
of_the_slow = partial(pytest.param, marks=pytest.mark.slow)
TOGETHER = ("treasury", *NEIGHBOURS[:2])
"""In the first shard."""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move, "SETTLE_S", 0.0)


@pytest.fixture(
    params=[ONE_LIMITED, *(of_the_slow(name) for name in (FAKE, *LIMITED) if name != ONE_LIMITED)]
)
def engine(request: pytest.FixtureRequest) -> str:
    """One server by default; what a store holds goes up and back on each."""
    return str(request.param)


@pytest.fixture
async def store(redis_client: Redis, namespace: str) -> Store:
    return a_store(redis_client, namespace)


def a_mover(
    store: Store, who: str = "mover", *, pipe: Pipe | None = None, subscriptions: Collection[str] = ()
) -> Mover:
    return Mover(pipe or store.pipe, store.keys, who, subscriptions=subscriptions)


async def to(store: Store, number: int, *, subscriptions: Collection[str] = ()) -> Counts | None:
    await Layout(store.pipe, store.keys).want(number)
    return await a_mover(store, subscriptions=subscriptions).advance()


async def some(store: Store, names: Sequence[str] = NAMES) -> OldStore:
    """A small store of 0.1 with a bit of everything."""
    old = OldStore(store)
    await old.begin()
    for number, name in enumerate(names):
        events = [an_event(10 * number + n) for n in range(1, 4)]
        previous = {OPS: AT_MS + 10 * number + 3, GONE: AT_MS + 10 * number + 1}
        previous |= {AUDIT: AT_MS + 1} if name == names[0] else {}
        await old.account(name, previous=previous, due_ms=AT_MS + number + 0.25)
        for event in events:
            await old.record(name, event)
        await old.record(
            name, b'{"type":"baseline","timestamp":"2026","sequence":1,"assets":{},"whole":true}'
        )
        await old.queue(
            OPS, name, [an_entry(event, OPS) for event in events], due_ms=AT_MS + 0.5, tries=number
        )
        await old.letter(GONE, name, an_entry(events[0], GONE, AT_MS))
    await old.queue(AUDIT, names[0], [an_entry(an_event(1), AUDIT, 7)])
    await old.ask("XADD", old.keys.attempts(shard_of(names[0]), GONE), "*", "attempt", "{}")
    await old.ask("HSET", old.keys.breakers(), OPS, "3 1 2 0 503")
    return old


async def test_after_a_move_all_data_reads_as_it_was_written(store: Store) -> None:
    await some(store)
    assert await to(store, 2) == Counts(accounts=4, records=16, dead_letters=4, deliveries=13)
    assert (await Layout(store.pipe, store.keys).read()).is_ready
    reader = Reader(store.pipe, store.keys)
    deliveries = [one async for one in reader.deliveries(OPS, NAMES[0])]
    assert [one and one.body for one in deliveries] == [
        an_entry(an_event(n), OPS).partition(b"\n")[2] for n in (1, 2, 3)
    ]
    (audited,) = [one async for one in reader.deliveries(AUDIT, NAMES[0])]
    assert audited
    assert (audited.previous, audited.type) == (7, "total.increased")
    assert await store.scores(store.keys.polls(shard_of("alice"), "loopring")) == {"alice": AT_MS + 1.25}
    assert await store.scores(store.keys.queues(shard_of("alice"), OPS)) == {"alice": AT_MS + 0.5}
    assert await store.scores(store.keys.due_polls(shard_of("alice"))) == {"loopring": AT_MS + 1.25}
    assert (await store.scores(store.keys.due_subscriptions(shard_of("alice"))))[OPS] == AT_MS + 0.5
    assert await store.tries("shop-7") == (2, f"evt_21 {AT_MS + 21} -".encode())
    state = await store.polls.read_state("loopring", "alice")
    assert state
    assert state.entry_by_asset["1"].asset == ("1", "LRC", "Loopring", 18)
    assert state.entry_by_asset["1"].published == ("1.5", "0", "0", "0")
    records = [one async for one in History(store.pipe, store.keys).records("alice")]
    assert [one.content["type"] for one in records] == ["total.increased"] * 3 + ["baseline"]
    dead_letters = [
        one for one in await reader.dead_letters(GONE, 10, lambda _: True) if one.account == "alice"
    ]
    assert [one.delivery and one.delivery.previous for one in dead_letters] == [AT_MS]
    found = await store.contents()
    assert found[store.keys.queued("alice")] == {
        b"ops": b"%d" % (AT_MS + 13),
        b"gone": b"%d" % (AT_MS + 11),
    }
    breaker = dump_breaker(Breaker(reason="503", since_ms=1, open_until_ms=2, rests=1))
    assert found[store.keys.breakers()] == {b"ops": breaker}
    assert await references(store) == {}
    audit = StoreAudit(store.pipe, store.keys, (OPS, AUDIT, GONE))
    assert [(await audit.of_shard(shard)).flaws for shard in range(SHARDS)] == [[]] * SHARDS


async def references(store: Store) -> dict[str, tuple[int, int]]:
    """Where the count of a body is not how many refer to it: the count, and how many do."""
    found, wrong = await store.contents(), {}
    for shard in range(SHARDS):
        refer: dict[bytes, int] = {}
        mark = f":{{{shard}}}:"
        for key, value in found.items():
            entries = []
            if f"{mark}queue:" in key:
                entries = value
            elif f"{mark}events" in key or f"{mark}dead_letters:" in key:
                entries = [
                    fields[i + 1]
                    for _, fields in value
                    for i in range(0, len(fields), 2)
                    if fields[i] in (b"entry", b"delivery")
                ]
            for entry in entries:
                if match := re.match(rb"(?:\d+ )?(evt_\S+ \d+)(?: |\Z)", entry):
                    refer[match[1]] = refer.get(match[1], 0) + 1
        bodies = found.get(store.keys.bodies(shard), {})
        for reference in {*refer, *bodies}:
            count = int(bodies.get(reference, b"0 ").partition(b" ")[0])
            if count != refer.get(reference, 0):
                wrong[reference.decode()] = (count, refer.get(reference, 0))
    return wrong


async def sizes(store: Store) -> dict[str, dict[str, int]]:
    """What log and dead letters take by the rule of commit and settle, for each shard that has some."""
    found, sizes = await store.contents(), {}
    for shard in range(SHARDS):
        bodies = found.get(store.keys.bodies(shard), {})

        def body(entry: bytes) -> int:
            match = re.match(rb"(?:\d+ )?(evt_\S+ \d+)(?: |\Z)", entry)
            return len(re.sub(rb"^\d+", b"", bodies.get(match[1], b""))) if match else 0  # noqa: B023

        log = sum(80 + len(f[1]) + len(f[3]) + body(f[3]) for _, f in found.get(store.keys.log(shard), ()))
        dead_letters = [value for key, value in found.items() if f":{{{shard}}}:dead_letters:" in key]
        dead = sum(
            150 + len(f[1]) + len(f[3]) + len(f[5]) + body(f[5]) for one in dead_letters for _, f in one
        )
        sizes[store.keys.sizes(shard)] = {"log": log, "dead": dead}
    return sizes


async def test_sizes_of_log_dead_letters_and_attempts_are_counted_as_if_written_here(
    store: Store,
) -> None:
    await some(store)
    await to(store, 2)
    found = await store.contents()
    for key, expected in (await sizes(store)).items():
        said = found.get(key, {})
        assert {name: int(said.get(name.encode(), 0)) for name in ("log", "dead")} == expected
    assert int(found[store.keys.sizes(shard_of(NAMES[0]))][b"attempts"]) == 82


async def test_pulling_begins_after_the_records_of_0_1_which_name_no_subscriptions(
    store: Store,
) -> None:
    await some(store)
    await to(store, 2)
    history = History(store.pipe, store.keys)
    assert [record async for record in history.records()]
    page = await history.page(Cursor(), limit=10)
    ends = {shard: Place(end) for shard, end in enumerate(await history.ends())}
    assert (page.events, page.is_end, page.cursor) == ([], True, Cursor(ends))
    shard = shard_of(NAMES[0])
    before = [record.id async for record in history.of_shard(shard)][:-1]
    assert before
    for record_id in (START, *before):
        with pytest.raises(Gone):
            await history.page(Cursor({shard: Place(record_id)}), limit=10)


@pytest.mark.parametrize("engine", EVERY_ENGINE, indirect=True)
async def test_a_move_up_and_back_and_up_again_restores_every_byte(store: Store) -> None:
    await some(store)
    before = await store.contents()
    await to(store, 2)
    above = await store.contents()
    assert await to(store, 1) == Counts(accounts=4, records=16, dead_letters=4, deliveries=13)
    back = without_numbers(await store.contents())
    for shard in {shard_of(name) for name in NAMES}:  # 0.1 has no such index, and this version leaves it
        assert back.pop(store.keys.due_polls(shard))
        index = OldStore(store).keys.due_subscriptions(shard)
        assert {*back.pop(index)} == {*before.pop(index)}
    assert back == without_numbers(before)
    await to(store, 2)
    assert without_numbers(await store.contents()) == without_numbers(above)


class Ended(Exception):
    """A mover is gone."""


_OF_A_MOVER = ("move", "take_shard", "switch_layout")


class Hooked(Pipe):
    """A pipe that calls a hook at one of the scripts of a mover, before it is sent or once it was taken."""

    def __init__(
        self, client: Redis, at: int, hook: Callable[[], Awaitable[None]], *, is_after: bool
    ) -> None:
        super().__init__(client)
        self._left = at
        self._hook = hook
        self._is_after = is_after

    async def send(self, call: Call) -> Any:
        if call.script is None or call.script.name not in _OF_A_MOVER:
            return await super().send(call)
        self._left -= 1
        if self._left == 0 and not self._is_after:
            await self._hook()
        answer = await super().send(call)
        if self._left == 0 and self._is_after:
            await self._hook()
        return answer


class Counted(Pipe):
    """A pipe that counts the scripts of a mover."""

    taken = 0

    async def send(self, call: Call) -> Any:
        self.taken += call.script is not None and call.script.name in _OF_A_MOVER
        return await super().send(call)


async def refill(store: Store, contents: Mapping[str, Any]) -> None:
    """Make the store hold just this again."""
    for key in await store.contents():
        await store.pipe.command("UNLINK", key)
    for key, value in contents.items():
        if isinstance(value, bytes):
            await store.pipe.command("SET", key, value)
        elif isinstance(value, dict):
            is_schedule = re.search(r":(polls|lanes|due|schedule|moving)\b", key)
            pairs = [one[::-1] if is_schedule else one for one in value.items()]
            await store.pipe.command("ZADD" if is_schedule else "HSET", key, *chain.from_iterable(pairs))
        elif value and isinstance(value[0], bytes):
            await store.pipe.command("RPUSH", key, *value)
        else:
            for entry_id, fields in value:
                await store.pipe.command("XADD", key, entry_id, *fields)


BOTH_WAYS = pytest.mark.parametrize("number", [2, 1], ids=["up", "back"])


@pytest.fixture
def _one_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first shard is moved, so that each step of all can be tried."""
    monkeypatch.setattr(move, "SHARDS", 1)


async def before_a_move(store: Store, number: int) -> dict[str, Any]:
    """Bring the store to where a move to a layout begins; returns what it holds."""
    await some(store, TOGETHER)
    if number == 1:
        await to(store, 2)
    await Layout(store.pipe, store.keys).want(number)
    return await store.contents()


async def test_the_directory_is_not_moved(store: Store) -> None:
    await some(store)
    await to(store, 2)
    directory = Directory(store.pipe, store.keys)
    await directory.put(Write("account", "treasury", {"provider": "loopring"}, b"encrypted"))
    await directory.put(Write("subscription", OPS, {}, b"encrypted"))
    held = [one async for one in directory.read_all()]
    await to(store, 1)
    assert [one async for one in directory.read_all()] == held
    await to(store, 2)
    assert [one async for one in directory.read_all()] == held


@pytest.mark.slow
@ONE_ENGINE
@BOTH_WAYS
@pytest.mark.usefixtures("_one_shard")
@pytest.mark.parametrize("is_after", [False, True], ids=["before it is taken", "after it is taken"])
async def test_a_mover_that_dies_at_any_step_is_followed_by_one_that_goes_on(
    store: Store, redis_client: Redis, number: int, is_after: bool
) -> None:
    before = await before_a_move(store, number)
    await a_mover(store).advance()
    expected = without_numbers(await store.contents())

    async def die() -> None:
        raise Ended

    for step in count(1):
        await refill(store, before)
        pipe = Hooked(redis_client, step, die, is_after=is_after)
        try:
            await a_mover(store, "dies", pipe=pipe).advance()
        except Ended:
            await a_mover(store, "goes on").advance()
        else:
            break
        assert without_numbers(await store.contents()) == expected, f"dead at step {step}"
    assert step > 12


@pytest.mark.slow
@ONE_ENGINE
@BOTH_WAYS
@pytest.mark.usefixtures("_one_shard")
@pytest.mark.parametrize("is_back", [False, True], ids=["", "and the store was moved back as well"])
async def test_a_delayed_mover_that_was_replaced_changes_nothing(
    store: Store, redis_client: Redis, number: int, is_back: bool
) -> None:
    before = await before_a_move(store, number)
    then: dict[str, Any] = {}

    async def overtake() -> None:
        await redis_client.delete(store.keys.mover())  # its lease has run out
        assert await a_mover(store, "overtakes").advance()
        if is_back:
            assert await to(store, 3 - number)
        then.update(await store.contents())

    for step in count(1):
        await refill(store, before)
        then.clear()
        pipe = Hooked(redis_client, step, overtake, is_after=False)
        is_last = await a_mover(store, "late", pipe=pipe).advance()
        if not then:
            break
        assert not is_last, f"held up at step {step}"
        assert await store.contents() == then, f"held up at step {step}"
    assert step > 12


class Repeating(Pipe):
    """A pipe whose every answer is lost once, so that each script is repeated."""

    async def send(self, call: Call) -> Any:
        if call.script:
            await super().send(call.again())
        return await super().send(call)


@ONE_ENGINE
@BOTH_WAYS
@pytest.mark.usefixtures("_one_shard")
async def test_a_repeated_step_of_a_move_is_done_once(store: Store, redis_client: Redis, number: int) -> None:
    before = await before_a_move(store, number)
    await a_mover(store).advance()
    expected = without_numbers(await store.contents())
    await refill(store, before)
    await a_mover(store, pipe=Repeating(redis_client)).advance()
    assert (await Layout(store.pipe, store.keys).read()).at == number
    assert without_numbers(await store.contents()) == expected


@BOTH_WAYS
async def test_only_one_mover_moves(store: Store, number: int) -> None:
    await before_a_move(store, number)
    layout = Layout(store.pipe, store.keys)
    assert await layout.take_lease("another")
    before = await store.contents()
    assert await a_mover(store).advance() is None
    await layout.leave_lease("mover")
    assert await store.contents() == before
    await layout.leave_lease("another")
    assert await a_mover(store).advance()
    assert await layout.holder() is None


WIDE = st.text(max_size=12).filter(lambda text: text.isprintable() or text.isascii())
NAMES_OF_ALL = st.sampled_from(("treasury", "a", "Z9._-", "x" * 64, "münze", "a b"))
SUBSCRIPTIONS = st.sampled_from(("ops", "audit", "O_o.-", "y" * 64, 'q"uote'))
AMOUNTS = st.sampled_from(("0", "1", "-0.5", "1" + "0" * 77, "0." + "0" * 17 + "1"))
PENDING = st.none() | AMOUNTS
BALANCES = st.tuples(AMOUNTS, AMOUNTS, PENDING, PENDING).map(list)
LABELS = st.none() | WIDE
ROWS = st.builds(
    lambda balance, symbol, name, decimals, rest: [*balance, symbol, name, decimals, *rest],
    BALANCES,
    WIDE,
    LABELS,  # what has neither symbol nor name is called as it is elsewhere
    st.none() | st.integers(0, 77),
    st.just([])
    | st.tuples(st.integers(1, 3), BALANCES, st.none()).map(list)
    | st.tuples(st.integers(0, 3), BALANCES, BALANCES).map(list),
)
STATES = st.fixed_dictionaries(
    {
        "assets": st.dictionaries(WIDE, ROWS, max_size=4),
        "previous": st.dictionaries(SUBSCRIPTIONS, st.integers(0, 10**13), max_size=3),
        "watched": st.none() | st.lists(WIDE, max_size=3),
    },
    optional={
        "stale": st.integers(1, 10**13),
        "crossed": st.lists(WIDE, min_size=1, unique=True).map(sorted),
    },
)
NOTES = ("", "\u2028", "\x00", '"', "ü" * 9)
EVENTS = st.integers(0, 50).map(
    lambda number: an_event(
        number, ("total.increased", "account.stale")[number % 2], note=NOTES[number % len(NOTES)]
    )
)
ODD = st.sampled_from(
    (b"", b"?", b"evt_1 5 -", b"evt_1 5 x\n", b"evt_1 5 x\n{}", b"\xff\x00", b"? evt_1 5 4")
)


@st.composite
def entries(draw: st.DrawFn, subscription: str) -> list[bytes]:
    previous = st.none() | st.integers(0, 10**13)
    whole = st.builds(lambda event, before: an_entry(event, subscription, before), EVENTS, previous)
    return draw(st.lists(whole | ODD | st.binary(max_size=8), min_size=1, max_size=8))


@st.composite
def stores(draw: st.DrawFn) -> dict[str, Any]:
    queues = draw(st.lists(st.tuples(SUBSCRIPTIONS, NAMES_OF_ALL), unique=True, max_size=5))
    dead_letters = draw(st.lists(st.tuples(SUBSCRIPTIONS, NAMES_OF_ALL), max_size=3))
    odd_record = st.sampled_from(
        (b"{", b"evt_1 5", b"{}", b'{"id":"evt_1"}', b"null", b'{"type":"baseline"}')
    )
    return {
        "states": draw(st.dictionaries(NAMES_OF_ALL, STATES | st.none(), max_size=4)),
        "queues": [(*one, draw(entries(one[0])), draw(st.integers(0, 3))) for one in queues],
        "letters": [(*one, entry) for one in dead_letters for entry in draw(entries(one[0]))],
        "records": draw(st.lists(st.tuples(NAMES_OF_ALL, EVENTS | odd_record), max_size=6)),
    }


def bodies_of(records: Sequence[tuple[str, bytes]]) -> set[bytes]:
    return {content for _, content in records}


@tried(8)
@given(what=stores())
def test_any_data_comes_back_byte_for_byte(what: dict[str, Any], redis_server_url: str) -> None:
    asyncio.run(_there_and_back(what, redis_server_url))


async def _there_and_back(what: dict[str, Any], url: str) -> None:
    async with connect(url) as client:
        store = a_store(client, f"t{os.getpid()}-moved")
        await refill(store, {})
        old = OldStore(store)
        await old.begin()
        for name, body in what["states"].items():
            if body is None:
                await old.ask("HSET", old.keys.state(name), "body", "{", "version", "x")
                await old.ask("ZADD", old.keys.polls(shard_of(name), "loopring"), AT_MS, name)
            else:
                await old.account(name, **body)
        for subscription, account, waiting, tries in what["queues"]:
            await old.queue(subscription, account, waiting, due_ms=AT_MS + 0.5)
            head = waiting[0].partition(b"\n")[0] + b"\n"
            if tries and read_old(waiting[0], subscription):
                await old.ask(
                    "HSET", old.keys.tries(shard_of(account), subscription), account, b"%d %b" % (tries, head)
                )
        for subscription, account, entry in what["letters"]:
            await old.letter(subscription, account, entry)
        for account, content in what["records"]:
            await old.record(account, content)
        before = await store.contents()
        names = {name for name, *_ in (*what["queues"], *what["letters"])}
        assert await to(store, 2, subscriptions=names)
        assert await references(store) == {}
        assert await to(store, 1, subscriptions=names)
        after = await store.contents()
        left = [key for key in after if key.endswith((":bodies", ":sizes"))]
        assert left == []
        assert readable(after) == readable(before)


def readable(contents: Mapping[str, Any]) -> dict[str, Any]:
    """What a store of layout 1 holds, states as parsed JSON: a hash of many subscriptions keeps no order."""
    found = without_numbers(contents)
    for key, value in [*found.items()]:
        if key.endswith((":due:polls", ":due")):
            del found[key]
        elif ":state:" in key and isinstance(value, dict) and b"source" in value[b"body"]:
            found[key] = {**value, b"body": orjson.loads(value[b"body"])}
    return found


async def test_keys_of_another_type_are_moved_unchanged(store: Store) -> None:
    old = await some(store)
    lost = {
        old.keys.state("alice"): store.keys.state("alice"),
        old.keys.queue(OPS, "treasury"): store.keys.queue(OPS, "treasury"),
        old.keys.log(shard_of("dust")): store.keys.log(shard_of("dust")),
        old.keys.dead(shard_of("dust"), GONE): store.keys.dead(shard_of("dust"), GONE),
        old.keys.polls(shard_of("treasury"), "loopring"): store.keys.polls(shard_of("treasury"), "loopring"),
    }
    for key in lost:
        await old.ask("UNLINK", key)
        await old.ask(*(("HSET", key, "damaged") if ":lane:" in key else ("SET", key)), "damaged")
    before = await store.contents()
    await to(store, 2)
    found = await store.contents()
    assert all(b"damaged" in found[key] for key in lost.values())
    assert not found.keys() & lost.keys()
    assert found[store.keys.queue(OPS, "dust")]
    await to(store, 1)
    assert readable(await store.contents()) == readable(before)


async def test_queues_with_a_damaged_schedule_are_still_moved(store: Store) -> None:
    old = await some(store)
    shard = shard_of("alice")
    await old.ask("UNLINK", old.keys.queues(shard, OPS))
    await old.ask("SET", old.keys.queues(shard, OPS), "damaged")
    await to(store, 2)
    assert len((await store.contents())[store.keys.queue(OPS, "alice")]) == 3


@pytest.mark.parametrize("place", ["bodies", "queue"])
async def test_a_key_of_another_type_where_layout_2_writes_stops_the_move_until_it_is_gone(
    store: Store, place: str
) -> None:
    await OldStore(store).record("alice", b'{"type":"baseline"}', "1-1")  # refers to no body
    await some(store)
    in_the_way = store.keys.bodies(shard_of("alice")) if place == "bodies" else store.keys.queue(OPS, "alice")
    await store.damage(in_the_way)
    with pytest.raises(StoreRefuses, match=place):
        await to(store, 2)
    await store.pipe.command("UNLINK", in_the_way)
    assert await to(store, 2)
    assert await references(store) == {}
    assert len([one async for one in History(store.pipe, store.keys).records("alice")]) == 5


class Moving(Pipe):
    """A pipe beside which a move begins while the first dead letters, or records, are read."""

    has_begun = False

    async def send(self, call: Call) -> Any:
        answer = await super().send(call)
        if call.script and call.script.name == "read_records" and not self.has_begun:
            self.has_begun = True
            await super().send(Call(("HSET", call.all_keys[0].partition(":{")[0] + ":meta", "moving", "1")))
        return answer


@ONE_ENGINE
async def test_a_resend_during_a_move_is_refused(store: Store, redis_client: Redis) -> None:
    await some(store)
    await to(store, 2)
    before = await store.contents()
    resend = Resend(Moving(redis_client), store.keys, is_preview=False)
    selection = Selection(is_dead=True, until_ms=AT_MS * 2)
    with pytest.raises(LayoutAwaited, match="is being moved from layout 2 to 1"):
        await resend.dead_letters(Resent(GONE, 100), a_subscription(GONE), selection)
    await store.pipe.command("HDEL", store.keys.meta(), "moving")
    assert await store.contents() == before


@ONE_ENGINE
@pytest.mark.usefixtures("_one_shard")
async def test_any_number_of_subscriptions_is_found_in_states(store: Store) -> None:
    old = OldStore(store)
    await old.begin()
    accounts = ("treasury", *NEIGHBOURS[:5])
    for number, name in enumerate(accounts):
        await old.account(name, previous={f"s{number}-{n}": n for n in range(1500)})
    async with running(store.pipe):
        counts = await to(store, 2)
    assert counts
    assert counts.accounts == len(accounts)
    assert (await Layout(store.pipe, store.keys).read()).is_ready
    for name in accounts:
        assert await store.pipe.command("HLEN", store.keys.queued(name)) == 1500


@BOTH_WAYS
@pytest.mark.parametrize("index", ["due_polls", "due_subscriptions"])
async def test_an_index_of_another_type_does_not_stop_a_move(store: Store, number: int, index: str) -> None:
    await some(store)
    if number == 1:
        await to(store, 2)
    keys = store.keys if number == 1 or index == "due_polls" else OldKeys(store.keys.namespace)
    key = getattr(keys, index)(shard_of("alice"))
    await store.pipe.command("UNLINK", key)
    await store.pipe.command("SET", key, "none of ours")
    assert await to(store, number) == Counts(accounts=4, records=16, dead_letters=4, deliveries=13)
    assert index == "due_polls" or key not in await store.contents()


async def test_moving_back_turns_a_delivery_without_a_body_into_a_dead_letter(store: Store) -> None:
    await some(store)
    await to(store, 2)
    shard = shard_of("alice")
    lost = f"evt_11 {AT_MS + 11}"
    await store.pipe.command("HDEL", store.keys.bodies(shard), lost)
    await store.pipe.command("HDEL", store.keys.bodies(shard_of(NAMES[0])), f"evt_1 {AT_MS + 1}")
    await to(store, 1)
    old, found = OldStore(store).keys, await store.contents()
    assert len(found[old.queue(OPS, "alice")]) == 2
    ((_, fields),) = found[old.dead(shard, OPS)]
    assert fields == [b"account", b"alice", b"reason", b"its body is gone", b"delivery", f"{lost} -".encode()]
    assert NAMES[0].encode() not in found.get(old.queues(shard_of(NAMES[0]), AUDIT), {}), "an empty queue"


@pytest.mark.parametrize("place", ["state", "mark", "breaker"])
async def test_a_removed_subscription_is_found_by_the_data_it_left(store: Store, place: str) -> None:
    old = OldStore(store)
    await old.begin()
    await old.account("alice", previous={GONE: 5} if place == "state" else {})
    if place != "state":
        key = old.keys.marks() if place == "mark" else old.keys.breakers()
        await old.ask("HSET", key, GONE, "1 1 1 0 503")
    await old.letter(GONE, "alice", an_entry(an_event(1), GONE))
    await to(store, 2)
    (letter,) = await Reader(store.pipe, store.keys).dead_letters(GONE, 10, lambda _: True)
    assert letter.delivery
    await to(store, 1)
    assert old.keys.dead(shard_of("alice"), GONE) in await store.contents()


async def test_a_layout_number_written_by_a_late_worker_of_0_1_is_corrected(store: Store) -> None:
    await some(store)
    await to(store, 2)
    await store.pipe.command("HSET", store.keys.meta(), "schema", 1)
    layout = Layout(store.pipe, store.keys)
    assert (await layout.read()).is_ready
    assert (await layout.read()).noted.schema == b"2"


async def test_move_numbers_rise_also_if_the_clock_was_set_back(store: Store) -> None:
    await some(store)
    await to(store, 2)
    for key in (store.keys.meta(), *map(store.keys.layout, range(SHARDS))):
        await store.pipe.command("HSET", key, "turn", 9_999_999_999_999)
    assert await to(store, 1)


@pytest.mark.usefixtures("_one_shard")
async def test_a_mover_that_lost_its_lease_stops(
    store: Store, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move, "LEASE_MS", 0)  # looks at each step
    await before_a_move(store, 2)

    async def lose() -> None:
        await redis_client.set(store.keys.mover(), "another")

    assert await a_mover(store, pipe=Hooked(redis_client, 5, lose, is_after=True)).advance() is None
    assert not (await move.read_progress(store.pipe, store.keys))[0].is_done


async def test_a_value_that_only_looks_like_a_reference_is_moved_unchanged(store: Store) -> None:
    old = OldStore(store)
    await old.begin()
    await old.account("alice")
    await old.queue(OPS, "alice", [b"evt_1 5 -", b"?evt_1 5 -"])
    await old.letter(OPS, "alice", b"evt_1 5 -")
    await old.record("alice", b"evt_1 5")
    await old.ask("XADD", old.keys.log(shard_of("alice")), "*", "account", "alice", "entry", "?")
    before = readable(await store.contents())
    await to(store, 2)
    assert await references(store) == {}
    await to(store, 1)
    assert readable(await store.contents()) == before


async def test_a_single_delivery_is_moved_back_as_a_list_of_one(store: Store) -> None:
    old = await some(store)
    await to(store, 2)
    alone, queue = an_entry(an_event(7), AUDIT), store.keys.queue(AUDIT, "alice")
    delivery = read_old(alone, AUDIT)
    assert delivery
    await store.queues.enqueue(AUDIT, "alice", [delivery])
    assert await store.pipe.command("TYPE", queue) == b"string"
    await to(store, 1)
    found = await store.contents()
    assert found[old.keys.queue(AUDIT, "alice")] == [alone]
    assert queue not in found


async def test_moved_records_are_appended_to_existing_ones(store: Store) -> None:
    await some(store, NAMES[:1])
    log = store.keys.log(shard_of(NAMES[0]))
    await store.pipe.command("XADD", log, "9999999999999-5", "account", "of another time", "entry", "0 {}")
    assert await to(store, 2)
    accounts = [fields["account"].decode() for fields in await store.stream(log)]
    assert accounts == ["of another time", *[NAMES[0]] * 4]


@BOTH_WAYS
async def test_failures_of_a_delivery_that_is_not_the_head_are_not_moved(store: Store, number: int) -> None:
    old, shard, last = OldStore(store), shard_of("alice"), 50
    await old.begin()
    await old.account("alice")
    await old.queue(OPS, "alice", [an_entry(an_event(n), OPS) for n in range(last + 1)])
    if number == 1:
        await to(store, 2)
    keys, tail = (old.keys, " total.increased\n") if number == 2 else (store.keys, " -")
    await old.ask("HSET", keys.tries(shard, OPS), "alice", f"3 evt_{last} {AT_MS + last}{tail}")
    assert await to(store, number)
    assert not {old.keys.tries(shard, OPS), store.keys.tries(shard, OPS)} & (await store.contents()).keys()


async def test_long_queues_and_large_bodies_are_moved_in_parts(
    store: Store, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = OldStore(store)
    await old.begin()
    await old.account("alice")
    long = [an_entry(an_event(n), OPS) for n in range(230)]
    large = [an_entry(an_event(1000 + n, note="x" * 20_000), OPS) for n in range(30)]
    await old.queue(OPS, "alice", [*long, *large])
    for name in NEIGHBOURS[:10]:
        await old.queue(OPS, name, long[:15])
    steps: list[tuple[int, int]] = []

    class Measured(Pipe):
        async def send(self, call: Call) -> Any:
            if call.script and call.script.name == "move":
                size = sum(len(part) for part in call.arguments if isinstance(part, bytes))
                steps.append((sum(part == "HOLD" for part in call.arguments), size))
            return await super().send(call)

    await a_mover(store, pipe=Measured(redis_client)).advance()
    assert max(entries for entries, _ in steps) == move.ENTRIES
    assert max(size for _, size in steps) <= move.BYTES + 25_000
    assert len((await store.contents())[store.keys.queue(OPS, "alice")]) == 260
    await to(store, 1)
    assert (await store.contents())[old.keys.queue(OPS, "alice")] == [*long, *large]


def a_presence(worker: str, *layouts: int, stands_by: bool = False) -> Presence:
    return Presence(worker, "here", 1, "0", 0, {}, layouts=layouts or (1,), stands_by=stands_by)


async def test_no_move_begins_while_a_worker_blocks_it(store: Store) -> None:
    await some(store)
    workers, layout = Workers(store.pipe, store.keys), Layout(store.pipe, store.keys)
    await workers.note(a_presence("older"))
    await workers.note(a_presence("lost"))
    await workers.note(a_presence("newer", 2, stands_by=True))
    _, _, said = (await store.pipe.command("HGET", store.keys.workers(), "lost")).partition(b" ")
    await store.pipe.command("HSET", store.keys.workers(), "lost", b"1 " + said)  # not seen since 1970
    before = await store.contents()
    assert await to(store, 2) is None
    assert {**await store.contents(), store.keys.meta(): 0} == {**before, store.keys.meta(): 0}
    await workers.leave("older")
    assert await to(store, 2)
    await workers.note(a_presence("newer", 2))
    assert await to(store, 1) is None
    assert (await layout.read()).rests
    await workers.note(a_presence("newer", 2, stands_by=True))
    assert await to(store, 1)


async def test_a_worker_of_0_1_that_had_just_started_cancels_the_move(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await some(store)
    workers, layout = Workers(store.pipe, store.keys), Layout(store.pipe, store.keys)
    seen = []

    async def meanwhile(_: float) -> None:
        seen.append((await layout.read()).noted.schema)
        await workers.note(a_presence("older"))

    monkeypatch.setattr(asyncio, "sleep", meanwhile)
    before = await store.contents()
    assert await to(store, 2) is None
    assert seen == [b"2"], "one that starts now is refused"
    numbers = await layout.read()
    assert (numbers.at, numbers.rests, numbers.noted.schema) == (1, True, b"1")
    changed = {key for key, value in (await store.contents()).items() if before.get(key) != value}
    assert changed == {store.keys.meta(), store.keys.workers()}


@pytest.mark.usefixtures("_one_shard")
async def test_work_scheduled_by_a_delayed_worker_meanwhile_is_moved_too(
    store: Store, redis_client: Redis
) -> None:
    old = await some(store, TOGETHER)

    async def schedule_and_die() -> None:
        await old.ask("ZADD", old.keys.polls(0, "loopring"), 1, "treasury", 2.5, "late")
        raise Ended

    with pytest.raises(Ended):
        await a_mover(store, pipe=Hooked(redis_client, 5, schedule_and_die, is_after=False)).advance()
    await a_mover(store).advance()
    assert old.keys.polls(0, "loopring") not in await store.contents()
    due = await store.scores(store.keys.polls(0, "loopring"))
    assert (due["treasury"], due["late"]) == (AT_MS + 0.25, 2.5)


async def test_foreign_entries_in_a_shard_cause_no_access_to_another(store: Store) -> None:
    old = await some(store)
    elsewhere = shard_of("alice")
    assert elsewhere != shard_of("treasury")
    await old.ask("ZADD", old.keys.queues(elsewhere, OPS), AT_MS, "treasury")
    await old.ask("ZADD", old.keys.polls(elsewhere, "loopring"), AT_MS, "treasury")
    await old.ask("SET", store.keys.marks(), "damaged")
    assert await to(store, 2)
    assert await references(store) == {}
    assert len((await store.contents())[store.keys.queue(OPS, "treasury")]) == 3
    assert "treasury" in await store.scores(store.keys.polls(elsewhere, "loopring"))


@pytest.mark.slow
@pytest.mark.usefixtures("_one_shard")
async def test_a_shard_rolled_back_by_a_crash_is_moved_before_the_move_ends(
    store: Store, redis_client: Redis
) -> None:
    await some(store, TOGETHER)
    steps = Counted(redis_client)
    await a_mover(store, pipe=steps).advance()
    expected = without_numbers(await store.contents())
    await to(store, 1)
    await Layout(store.pipe, store.keys).want(2)

    class SetBack(Counted):
        """Its server loses the last step of the shard: all that is left is the one that ends the move."""

        async def send(self, call: Call) -> Any:
            is_last = self.taken == steps.taken - 2
            before = await store.contents()
            answer = await super().send(call)
            if is_last and self.taken == steps.taken - 1:
                now = await store.contents()
                kept = {key: value for key, value in now.items() if ":{0}:" not in key}
                await refill(store, kept | {key: value for key, value in before.items() if ":{0}:" in key})
            return answer

    assert await a_mover(store, pipe=SetBack(redis_client)).advance() is None
    assert not (await Layout(store.pipe, store.keys).read()).rests
    assert await a_mover(store).advance()
    assert without_numbers(await store.contents()) == expected


async def test_states_of_configured_accounts_are_moved_though_their_schedule_was_lost(store: Store) -> None:
    old = await some(store)
    await old.ask("UNLINK", old.keys.polls(shard_of("alice"), "loopring"))
    damaged = old.keys.polls(shard_of("dust"), "loopring")
    await old.ask("UNLINK", damaged)
    await old.ask("SET", damaged, "damaged")
    for number in (2, 1, 2):
        await Layout(store.pipe, store.keys).want(number)
        assert await Mover(store.pipe, store.keys, "mover", accounts={"loopring": NAMES}).advance()
    for name in NAMES:
        assert await store.polls.read_state("loopring", name)
    await store.pipe.command("UNLINK", store.keys.polls(shard_of("dust"), "loopring"))
    await store.roster.enroll({"loopring": NAMES}, now_ms=AT_MS)
    assert await store.polls.read_state("loopring", "dust"), "it goes on from where it was"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"3 1 2 0 503", Breaker(reason="503", since_ms=1, open_until_ms=2, rests=1)),
        (b"3 1 0 0 no name", Breaker(reason="no name", since_ms=1, rests=1)),
        (b"3 5 6 7 by hand", Breaker(7, 0, "by hand", 5, 6, 1)),
        (b"3 5 6 7!8 status 410", Breaker(7, 8, "status 410", 5, 6, 1)),
    ],
)
def test_a_breaker_is_converted_both_ways_and_a_pause_stays(old: bytes, new: Breaker) -> None:
    assert move.breaker_up(old) == dump_breaker(new)
    assert move.breaker_down(dump_breaker(new)) == old


def test_failures_of_a_closed_breaker_are_not_moved() -> None:
    assert move.breaker_up(b"2 1 0 0 status 500") == dump_breaker(Breaker(reason="status 500"))
    assert move.breaker_down(dump_breaker(Breaker(pace_per_s=3.0, pace_at_ms=1))) == b""
    assert move.breaker_up(b"3 1 2") == move.breaker_down(b"3 1 2") == b""
