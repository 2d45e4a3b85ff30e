"""A receiver that pulls gets every event, in the order of each account, or learns that some are gone."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from tests.support.builders import a_snapshot, a_subscription
from tests.support.servers import EVERY_ENGINE
from tests.support.stores import ACCOUNT, NEIGHBOURS, OPS, SHARD, a_store
from tests.support.stories import NOW_MS, Books
from watcher.store.history import Cursor, Gone, History, Logged, Place
from watcher.store.keeper import _FREE
from watcher.store.keys import SHARDS, shard_of
from watcher.store.pipe import Pipe
from watcher.store.queues import Bounds

ACCOUNTS = [f"account-{number}" for number in range(12)]
EVERYTHING = a_subscription(events=("*",))
ELSEWHERE = a_subscription("elsewhere", accounts=("account-3",))


@pytest.fixture
async def books(redis_client: Redis, namespace: str) -> Books:
    return Books(Pipe(redis_client), namespace)


@pytest.fixture
def history(books: Books) -> History:
    return History(books.pipe, books.keys)


async def live(books: Books, *accounts: str, polls: int = 3, at_ms: int = NOW_MS) -> None:
    """Let accounts be read for the first time, and change with every poll after that."""
    snapshots = [a_snapshot(ETH=str(number)) for number in range(1, polls + 1)]
    for account in accounts:
        await books.live(snapshots, account, at_ms=at_ms, subscriptions=(EVERYTHING, ELSEWHERE))


async def pulled(
    history: History,
    cursor: Cursor,
    *,
    limit: int = 3,
    account: str | None = None,
    subscription: str | None = None,
) -> tuple[list[Logged], Cursor]:
    """All that is behind a cursor, page by page."""
    found: list[Logged] = []
    for _ in range(1000):
        page = await history.page(cursor, limit=limit, account=account, subscription=subscription)
        assert len(page.events) <= limit
        assert not page.unreadable
        found += page.events
        cursor = Cursor.read(page.cursor.text)  # as a caller brings it back
        if page.is_end:
            return found, cursor
    raise AssertionError("there is no end of it")


async def is_answered(
    history: History, cursor: Cursor, expected: Sequence[str], account: str | None = None
) -> bool:
    """Say whether what is behind a cursor comes; then it is all that is expected."""
    try:
        found, _ = await pulled(history, cursor, account=account)
    except Gone:
        return False
    assert [event.event_id for event in found] == expected
    return True


def in_order(events: Sequence[Logged]) -> bool:
    by_account: dict[str, list[int]] = {}
    for event in events:
        by_account.setdefault(event.account, []).append(event.sequence)
    return all(numbers == sorted(set(numbers)) for numbers in by_account.values())


async def events_of(history: History, account: str | None = None) -> list[Logged]:
    """All events of the log, as a whole reading of it finds them."""
    return [
        Logged(
            record.account,
            record.content["id"],
            record.content["type"],
            record.content["data"]["sequence"],
            record.raw,
            "\n".join(f"{name} {previous or '-'}" for name, previous in record.previous.items()).encode(),
        )
        async for record in history.records(account)
        if "id" in record.content
    ]


@pytest.mark.parametrize("engine", EVERY_ENGINE)
async def test_pages_of_any_length_hold_every_event_of_all_shards_once_and_in_order(
    books: Books, history: History
) -> None:
    await live(books, *ACCOUNTS)
    expected = {*await events_of(history)}
    assert len(expected) == 3 * len(ACCOUNTS), "a baseline that was queued is an event of the log"
    for limit in (1, 5, 1000):
        found, cursor = await pulled(history, Cursor(), limit=limit)
        assert {*found} == expected
        assert len(found) == len(expected)
        assert in_order(found)
        assert await pulled(history, cursor) == ([], cursor)


async def test_a_cursor_continues_with_newer_events_of_any_shard(books: Books, history: History) -> None:
    _, cursor = await pulled(history, Cursor())
    for account in ACCOUNTS:
        await live(books, account)
        found, cursor = await pulled(history, cursor)
        assert [(event.account, event.type) for event in found] == [
            (account, "account.baseline"),
            (account, "total.increased"),
            (account, "total.increased"),
        ]
    assert await history.end() == cursor


async def test_a_subscription_gets_its_own_events_byte_for_byte_and_no_other(
    books: Books, history: History, redis_client: Redis
) -> None:
    await live(books, *ACCOUNTS)
    store = a_store(redis_client, books.keys.namespace)
    for name, accounts in ((OPS, ACCOUNTS), ("elsewhere", ["account-3"])):
        found, _ = await pulled(history, Cursor(), subscription=name)
        assert {event.account for event in found} == {*accounts}
        for account in accounts:
            stored = await store.bodies(shard_of(account))
            deliveries = [event.to(name) for event in found if event.account == account]
            for one in deliveries:
                assert one.content == stored[one.reference.encode()].partition(b"\n")[2]
            assert [one.entry for one in deliveries] == await store.queue(account, name)


@pytest.mark.parametrize("name", ["else", "where", "lsewhere", "elsewher", "ops elsewhere", "-", "another"])
async def test_a_similar_name_gets_no_event_of_another(books: Books, history: History, name: str) -> None:
    await live(books, "account-3")
    assert (await pulled(history, Cursor(), subscription=name))[0] == []


@pytest.mark.parametrize("is_freed", [False, True], ids=["the log is full", "the server is full"])
async def test_every_cursor_leads_to_all_events_after_it_or_is_refused(
    redis_client: Redis, namespace: str, is_freed: bool
) -> None:
    store = a_store(redis_client, namespace, bounds=Bounds(log=1 << 20 if is_freed else 4_000))
    books, history = Books(store.pipe, namespace), History(store.pipe, store.keys)
    books.polls = store.polls
    cursors = [(await history.end(), 0)]
    written: list[str] = []
    for number in range(8):
        await live(books, NEIGHBOURS[number])
        if is_freed and number % 2:
            await free(books, 7)
        there = await events_of(history)
        written += [event.event_id for event in there if event.event_id not in written]
        kept = written.index(there[0].event_id)
        for cursor, behind in cursors:
            is_whole = await is_answered(history, cursor, written[behind:])
            assert is_whole <= (behind >= kept), "some trimmed events were left out"
            # Between the last that was trimmed and the first that is left may be records without an event.
            assert is_whole or behind <= kept, "all events behind it are there"
        cursors.append((await history.end(), len(written)))
        assert await is_answered(history, cursors[-1][0], [])
    assert 5 < kept < len(written)
    page = await history.page(Cursor(), limit=1000)
    assert [event.event_id for event in page.events] == written[kept:], "what is left, from its oldest on"


async def free(books: Books, records: int) -> None:
    """Take the oldest of the log away, as the keeper does where there is no memory."""
    keys = books.keys
    names = [
        keys.log(SHARD),
        keys.nothing(SHARD),
        keys.bodies(SHARD),
        keys.sizes(SHARD),
        keys.given_up(SHARD),
    ]
    assert await books.pipe.script(_FREE, names, "log", records, "", 0) == records


async def test_after_a_rollback_an_old_cursor_is_refused_though_new_records_came(
    books: Books, history: History, redis_client: Redis
) -> None:
    await live(books, ACCOUNT)
    log = books.keys.log(SHARD)
    before = await redis_client.dump(log)
    await live(books, NEIGHBOURS[0])
    cursor = await history.end()
    last = cursor.places[SHARD].id
    assert before
    await redis_client.restore(log, 0, before, replace=True)
    with pytest.raises(Gone):
        await history.page(cursor, limit=10)
    await redis_client.xadd(log, {"account": NEIGHBOURS[1], "entry": "5 {}"}, last)
    with pytest.raises(Gone):  # the same id, of another record
        await history.page(cursor, limit=10)
    await redis_client.delete(log)
    with pytest.raises(Gone):
        await history.page(cursor, limit=10)


@pytest.mark.parametrize("ahead_ms", [0, 10 * 24 * 3_600_000], ids=["clocks agree", "clocks were wrong"])
async def test_all_events_of_an_account_after_any_of_its_sequences_are_returned(
    books: Books, history: History, ahead_ms: int
) -> None:
    await books.schedule.read_clock()  # by which the log goes
    await live(books, *NEIGHBOURS[:3], polls=6, at_ms=books.schedule.now_ms() + ahead_ms)
    account = NEIGHBOURS[1]
    events = await events_of(history, account)
    last = events[-1].sequence
    for number, event in enumerate(events):
        for after in (event.sequence, event.sequence + 1):
            found, cursor = await pulled(history, Cursor({}, after), account=account, limit=2)
            assert found == events[number + 1 :]
            assert cursor.after is None or after >= last
    found, _ = await pulled(history, Cursor({}, 0), account=account)
    assert found == events
    first = events[0].sequence
    for after in (1, first - 1):  # which it never was at
        with pytest.raises(Gone) as caught:
            await pulled(history, Cursor({}, after), account=account)
        assert caught.value.oldest == 0


async def test_a_sequence_whose_next_event_was_trimmed_is_refused_with_the_oldest_left(
    books: Books, history: History
) -> None:
    await live(books, *NEIGHBOURS[:2], polls=6)
    account = NEIGHBOURS[0]
    events = await events_of(history, account)
    sequences = [event.sequence for event in events]
    for gone in range(1, 6):  # the first goes together with the record of the start
        await free(books, 2 if gone == 1 else 1)
        oldest = sequences[gone - 1]
        for number, after in enumerate(sequences):
            if after >= oldest:
                expected = [event.event_id for event in events[number + 1 :]]
                assert await is_answered(history, Cursor({}, after), expected, account=account)
            with pytest.raises(Gone) as caught:
                await pulled(history, Cursor({}, oldest - 1), account=account)
            assert caught.value.oldest == oldest
    await free(books, 1)
    with pytest.raises(Gone) as caught:
        await pulled(history, Cursor({}, sequences[-2]), account=account)
    assert caught.value.oldest is None, "no event of it is left"


async def test_a_reader_that_is_up_to_date_continues_after_its_state(books: Books, history: History) -> None:
    await live(books, *NEIGHBOURS[:2])
    end = (await history.end()).places[SHARD]
    cursor = await history.since(ACCOUNT, 7, sequence=7, log_end=end.id)
    assert cursor == Cursor({SHARD: end})
    assert await history.since(ACCOUNT, 6, sequence=7, log_end=end.id) == Cursor({}, 6)


async def test_a_page_without_a_match_is_empty_and_its_cursor_advances(
    books: Books, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("watcher.store.history._LOOKS", 2)
    monkeypatch.setattr("watcher.store.history._LOOKED_AT", 4)
    await live(books, *NEIGHBOURS[:4], polls=6)
    await live(books, ACCOUNT)
    cursor, looks = Cursor(), 0
    found: list[Logged] = []
    while True:
        page = await history.page(cursor, account=ACCOUNT, limit=1000)
        found += page.events
        looks += 1
        if page.is_end:
            break
        assert page.cursor != cursor
        assert page.events or page.in_vain > 0, "which is counted, as it takes time"
        cursor = page.cursor
    assert [event.account for event in found] == [ACCOUNT] * 3
    assert looks > 5
    account = NEIGHBOURS[3]
    expected = await events_of(history, account)
    found, _ = await pulled(history, Cursor({}, expected[0].sequence), account=account)
    assert found == expected[1:], "nor does the search for a sequence look at more"


async def test_an_unreadable_record_is_counted_and_hides_no_other(books: Books, history: History) -> None:
    await live(books, ACCOUNT)
    first, second, third = await events_of(history)
    reference = f"{second.event_id} {second.sequence}"
    await books.pipe.command("HDEL", books.keys.bodies(SHARD), reference)
    page = await history.page(Cursor(), limit=1000)
    assert page.events == [first, third]
    assert page.unreadable == 1


PLACES = st.builds(
    lambda ms, count, check: Place(f"{ms}-{count}", check),
    *(st.integers(0, 10**13), st.integers(0, 10**6), st.sampled_from(["", "0000", "ffff", "0a1b"])),
)
CURSORS = st.builds(
    lambda places, after, search: Cursor(places, after, search if after is not None else "near"),
    st.dictionaries(st.integers(0, SHARDS - 1), PLACES),
    st.none() | st.integers(0, 10**13),
    st.sampled_from(["near", "all", "found"]),
)


@given(CURSORS)
def test_a_cursor_is_read_as_it_was_written(cursor: Cursor) -> None:
    assert Cursor.read(cursor.text) == cursor
    assert len(cursor.text) < 300
    assert set(cursor.text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


@given(CURSORS, st.data())
def test_a_modified_cursor_is_refused(cursor: Cursor, data: st.DataObject) -> None:
    text = cursor.text
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("aZ09-_=%é ").filter(lambda letter: letter != text[at]))
    for spoilt in (text[:at] + other + text[at + 1 :], text[:at], text + other):
        with pytest.raises(ValueError, match="no cursor"):
            Cursor.read(spoilt)


@given(st.text(max_size=500))
def test_an_invalid_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no cursor"):
        Cursor.read(text)
