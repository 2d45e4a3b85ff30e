"""What a worker caches of accounts that change: every poll has the same result as without the cache."""

import gc
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, NamedTuple

import pytest
from redis.asyncio import Redis

from tests.polling.test_poll import Polled, poll_lines
from tests.support.builders import a_subscription
from tests.support.provider_staging import (
    TOKENS_PATH,
    Stage,
    a_balance,
    a_token_list,
    answer,
    loopring_account,
    loopring_settings,
)
from tests.support.stores import ACCOUNT, OPS, PROVIDER, Store, a_commit, a_store
from watcher.journal.account import Rules
from watcher.journal.events import iso
from watcher.journal.interest import Interest
from watcher.journal.step import Reading, diff
from watcher.polling import poll
from watcher.providers.kept import Memo
from watcher.providers.loopring import Loopring
from watcher.providers.strict_json import parse
from watcher.settings import ThresholdSettings
from watcher.snapshot import Asset
from watcher.store import polls
from watcher.store.pipe import Pipe
from watcher.store.reader import Reader
from watcher.store.schedule import Reply
from watcher.store.state import Kept, Within, dump_state, load_state

TOKENS = range(6)
NOW_MS = 1_795_175_095_846


class Watched(Pipe):
    """Counts the states that are read."""

    reads = 0

    async def command(self, *command: Any) -> Any:
        self.reads += command[0] == "GET"
        return await super().command(*command)


@asynccontextmanager
async def a_worker(
    redis_client: Redis, namespace: str, stage: Stage
) -> AsyncIterator[tuple[Polled, Watched]]:
    pipe = Watched(redis_client)
    store = a_store(redis_client, namespace, pipe)
    await store.schedule.read_clock()
    stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(*TOKENS))
    worker = Polled(store, stage)
    worker.interest.follow({OPS: a_subscription(OPS, events=("*",))})
    async with worker.client:
        yield worker, pipe


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage() as stage:
        yield stage


async def events(store: Store) -> list[Any]:
    """What was emitted, oldest first."""
    found = Reader(store.pipe, store.keys).deliveries(OPS, ACCOUNT)
    return [json.loads(delivery.body) async for delivery in found if delivery]


async def moves(store: Store) -> list[tuple[str, str]]:
    """The totals that were emitted, before and after each."""
    shown = [event["data"] for event in await events(store) if event["type"].startswith("total.")]
    return [(data["before"]["total"], data["after"]["total"]) for data in shown]


async def test_neither_the_last_state_nor_unchanged_rows_are_read_again(
    redis_client: Redis, namespace: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_row, rows = Loopring.read_row, list[str]()

    def noted(self: Any, account: Any, said: Any, *rest: Any, **named: Any) -> Any:
        rows.append(said["total"])
        return read_row(self, account, said, *rest, **named)

    async with a_worker(redis_client, namespace, stage) as (worker, pipe):
        for total in ("9", "10", "11"):  # the first without the list of assets
            await worker.poll(a_balance(0, total), a_balance(1, "7"))
        monkeypatch.setattr(Loopring, "read_row", noted)
        for total in ("12", "12", "15"):
            await worker.poll(a_balance(0, total), a_balance(1, "7"))
        assert pipe.reads == 1, "there was none"
        assert rows == ["12", "15"]
        assert await moves(worker.store) == [("9", "10"), ("10", "11"), ("11", "12"), ("12", "15")]
        await worker.poll(a_balance(0, "0"), a_balance(1, "7"))
        await worker.poll(a_balance(0, "0"), a_balance(1, "7"))
        assert pipe.reads == 2, "a suspect row is read again"
        worker.poller.forget(ACCOUNT)
        await worker.poll(a_balance(0, "1"), a_balance(1, "7"))
        assert pipe.reads == 3


async def test_a_deposit_that_stays_pending_keeps_the_next_poll_near_while_others_change(
    redis_client: Redis, namespace: str, stage: Stage
) -> None:
    async with a_worker(redis_client, namespace, stage) as (worker, _):
        worker.account = loopring_account(interval="5m", pending_interval="10s")
        for deposit, within_ms in (("5", 10_000), ("0", 300_000)):
            for total in ("10", "11", "12", "13", "14"):
                await worker.poll(a_balance(0, total), a_balance(1, "7", deposit=deposit))
            assert within_ms / 2 < await worker.waits_ms() <= within_ms


async def test_a_state_that_another_worker_changed_is_read_and_no_movement_is_explained_twice(
    redis_client: Redis, namespace: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polls, "_READS_AFTER_A_RIVAL", 3)
    async with (
        a_worker(redis_client, namespace, stage) as (worker, pipe),
        a_worker(redis_client, namespace, stage) as (other, _),
    ):
        await worker.poll(a_balance(0, "10"))
        await other.poll(a_balance(0, "12"))
        (line,) = poll_lines(await worker.poll(a_balance(0, "15")))
        assert (line["event"], worker.is_taken) == ("poll.finished", True)
        assert await moves(worker.store) == [("10", "12"), ("12", "15")]
        assert pipe.reads == 2
        for total in ("16", "17", "18", "19"):
            await worker.poll(a_balance(0, total))
        assert pipe.reads == 4, "for a while no cached state is used"


async def test_an_unchanged_poll_of_another_worker_counts_as_the_last_poll_before_a_change(
    redis_client: Redis, namespace: str, stage: Stage
) -> None:
    async with (
        a_worker(redis_client, namespace, stage) as (worker, _),
        a_worker(redis_client, namespace, stage) as (other, _),
    ):
        for _ in range(2):
            await worker.poll(a_balance(0, "10"))
            other.ahead_ms += 5_000
            await other.poll()
            worker.ahead_ms = other.ahead_ms
            polled_at_ms = (await other.state()).polled_at_ms
            await worker.poll(a_balance(0, "12"))
            *_, event = await events(worker.store)
            assert event["data"]["observed"]["from"] == iso(polled_at_ms)


async def test_a_stale_state_is_read(redis_client: Redis, namespace: str, stage: Stage) -> None:
    async with a_worker(redis_client, namespace, stage) as (worker, pipe):
        await worker.poll(a_balance(0, "10"))
        worker.ahead_ms += 600_000
        await worker.look_stale()
        for total in ("11", "12"):
            reads = pipe.reads
            await worker.poll(a_balance(0, total))
            assert pipe.reads == reads + 1
            worker.ahead_ms += 600_000  # it stays stale, as this comes late, too


async def test_a_state_that_was_deleted_is_no_longer_known(
    redis_client: Redis, namespace: str, stage: Stage
) -> None:
    async with a_worker(redis_client, namespace, stage) as (worker, pipe):
        await worker.poll(a_balance(0, "10"))
        await pipe.command("DEL", worker.store.keys.state(ACCOUNT))
        await worker.poll(a_balance(0, "12"))
        assert [event["type"] for event in await events(worker.store)] == ["account.baseline"] * 2


async def test_a_state_of_the_same_version_and_another_length_is_not_replaced(store_of: Store) -> None:
    """As where a person, or a failing disk, changed what stands behind its first line."""
    lease = await store_of.lease()
    await store_of.polls.commit(a_commit(lease, version="v1", ETH="10"))
    key = store_of.keys.state(ACCOUNT)
    text = await store_of.pipe.command("GET", key)
    await store_of.pipe.command("SET", key, text.replace(b'10"', b'100"'))
    step = a_commit(await store_of.lease(), expected="v1", version="v2", ETH="12")
    reply, _ = await store_of.polls.commit(step)
    assert reply is Reply.MOVED_ON
    state = await store_of.polls.state_of(PROVIDER, ACCOUNT)
    assert state
    assert state.entry_by_asset["ETH"].published.total == "100"


@pytest.fixture
async def store_of(redis_client: Redis, namespace: str) -> Store:
    store = a_store(redis_client, namespace)
    await store.schedule.read_clock()
    return store


def an_answer(random: Random, held: dict[int, int]) -> list[Any]:
    """Movements of a few tokens, half movements, and what is odd."""
    for token in random.sample(TOKENS, random.randrange(3)):
        held[token] = random.choice((0, 5, held.get(token, 0) + random.randrange(1, 4)))
    rows = [
        a_balance(token, str(total), locked=str(random.choice((0, 0, 0, 1))), deposit=random.choice("00002"))
        for token, total in held.items()
    ]
    match random.randrange(12):
        case 0:
            rows.clear()
        case 1:
            random.shuffle(rows)
        case 2:
            rows.pop(random.randrange(len(rows)))
        case 3:
            rows.append(rows[0])
        case 4:
            rows[-1]["total"] = random.choice((None, 5, "-1", "1e3", "", "05"))
        case 5:
            rows[0]["accountId"] = 7
        case 6:
            rows[0]["pending"]["withdraw"] = "3"
    return rows


@pytest.mark.parametrize("seed", range(4))
async def test_any_answers_make_the_same_events_with_and_without_the_cache(
    redis_client: Redis, namespace: str, stage: Stage, seed: int
) -> None:
    """Beside a worker that forgets before each poll all that it knows of the account."""
    random, held = Random(seed), dict.fromkeys(TOKENS, 5)
    below = ThresholdSettings(asset="T1", field="total", below="5")
    async with (
        a_worker(redis_client, f"{namespace}a", stage) as (worker, pipe),
        a_worker(redis_client, f"{namespace}b", stage) as (forgetful, all_read),
    ):
        for polled in (worker, forgetful):
            polled.interest.follow({OPS: a_subscription(OPS, events=("*",), thresholds=(below,))})
        for number in range(60):
            rows = an_answer(random, held)
            if number % 20 == 15:
                worker.account = forgetful.account = loopring_account(tokens=random.choice((None, (0, 1, 2))))
            forgetful.poller.forget(ACCOUNT)
            stage.reply = answer(rows)
            lines = [poll_lines(await polled.poll()) for polled in (worker, forgetful)]
            assert [line["event"] for line in lines[0]] == [line["event"] for line in lines[1]]
            left = [await polled.state() for polled in (worker, forgetful)]
            assert left[0].entry_by_asset == left[1].entry_by_asset
            assert (left[0].watched, left[0].crossed) == (left[1].watched, left[1].crossed)
            assert bool(left[0].emptiness) == bool(left[1].emptiness)
        shown, expected = [
            [
                (event["type"], *(event["data"].get(part) for part in ("asset", "amount", "before", "after")))
                for event in await events(polled.store)
            ]
            for polled in (worker, forgetful)
        ]
        assert shown == expected
        assert pipe.reads < all_read.reads


class _Box(NamedTuple):
    content: str
    bytes_held: int


def test_the_latest_changes_are_kept_within_a_bound_in_bytes() -> None:
    within = Within[_Box](100)
    for account in ("a", "b", "c"):
        within.keep(account, _Box(account.upper(), 40))
    assert [within.get(account) for account in ("a", "b", "c")] == [None, _Box("B", 40), _Box("C", 40)]
    within.keep("b", _Box("again", 50))
    within.keep("d", _Box("D", 40))
    assert [within.get(account) for account in ("b", "c", "d")] == [_Box("again", 50), None, _Box("D", 40)]
    assert within.take("b") == _Box("again", 50)
    assert within.take("b") is None
    assert within.bytes_held == 40
    within.keep("e", _Box("larger than all", 101))
    assert (within.get("d"), within.get("e"), within.bytes_held) == (None, None, 0)


async def test_what_an_answer_led_to_is_only_cached_with_the_answer(
    redis_client: Redis, namespace: str, stage: Stage
) -> None:
    """Most accounts hardly ever change: their states would be held for nothing, and not be counted."""
    async with a_worker(redis_client, namespace, stage) as (worker, _):
        held = []
        for total in ("10", "11", "12"):
            await worker.poll(a_balance(0, total))
            memo, kept = worker.memos[ACCOUNT], await worker.polls.state_of(PROVIDER, ACCOUNT)
            assert kept
            held.append(any(one is kept.entry_by_asset for one in gc.get_referents(memo)))
        assert held == [False, False, True], "it is worth it from the second change on"


async def test_what_stays_of_many_accounts_is_not_looked_through_for_garbage(
    redis_client: Redis, namespace: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_at, polled = list[int](), list[str]()
    monkeypatch.setattr(poll, "_KEPT_AT_ONCE", 3)
    monkeypatch.setattr(poll, "keep", lambda: kept_at.append(len(polled)))
    async with a_worker(redis_client, namespace, stage) as (worker, _):
        for name in "abcdefgabcdefg":
            polled.append(name)
            worker.account = loopring_account().model_copy(update={"name": name})
            await worker.poll(a_balance(0, "10"))
    assert kept_at == [3, 6], "once each, however often they are polled"


@pytest.mark.parametrize("assets", [1, 10, 100])
def test_the_cache_takes_no_more_memory_than_it_counts(assets: int) -> None:
    """Each state as a change left it that had been read from the store, and each answer as it came."""
    accounts = 600 // assets
    provider, account, interest = Loopring(loopring_settings()), loopring_account(), Interest({})
    listed = {str(token): Asset(str(token), f"T{token}", f"Token {token}", 18) for token in range(assets)}
    names = {asset.id: asset[1:] for asset in listed.values()}
    states, memos = Within[Kept](1 << 30), Within[Memo](1 << 30)

    def live(name: str, number: int) -> None:
        rows = [a_balance(token, f"{10**20 + number}{token}", locked=f"5{number}") for token in range(assets)]
        memo, state, step = Memo(), None, None
        for total in ("7", "8"):
            rows[0]["total"] = total * 20
            body = json.dumps(rows).encode()
            snapshot, owner = provider.read_owned(account, [parse(body)], listed)
            memo.learn(provider, account, [body], listed, snapshot, owner)
            reading = Reading(name, PROVIDER, "source", snapshot, NOW_MS)
            step = diff(state, reading, rules=Rules(), interest=interest, version=name, now_ms=NOW_MS)
            assert step
            text = dump_state(step.state, names)
            state = load_state(text, names)
        assert step
        states.keep(name, Kept.of(step.state, text, is_ours=True))
        memos.keep(name, memo)

    live("warm", 0)
    gc.collect()
    tracemalloc.start()
    for number in range(accounts):
        live(f"account-{number}", number)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] / accounts
    tracemalloc.stop()
    counted = (states.bytes_held + memos.bytes_held) / (accounts + 1)
    assert counted / 2 < held < counted
