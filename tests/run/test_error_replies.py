"""A worker whose server answers with errors of any kind: logged once, waited for, recovered from."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.replying import ReplyingServer
from tests.support.rig import TREASURY, Rig, a_rig
from tests.support.servers import real_server
from tests.support.stores import pause
from watcher.delivery.queue import LONGEST_LEASE_MS
from watcher.store.keys import SHARDS
from watcher.store.opening import open_store
from watcher.store.pipe import load_script
from watcher.store.queues import Breakers, Queues
from watcher.store.schedule import Schedule

Lines = list[MutableMapping[str, Any]]

FOR_S = 1.0
HEALED_S = 2.0
"""So soon after the last error the worker does its part: its longest pause."""

BUSY_MACHINE_S = 2.0


@pytest.fixture
async def front(redis_server_url: str) -> AsyncIterator[ReplyingServer]:
    async with ReplyingServer(upstream=Path(redis_server_url.removeprefix("unix://"))) as front:
        yield front


@pytest.fixture
async def rig(redis_server_url: str, namespace: str, front: ReplyingServer) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        redis = rig.settings.redis
        through = redis.model_copy(update={"url": SecretStr(front.url)})
        rig.settings = rig.settings.model_copy(update={"redis": through})
        yield rig
        rig.settings = rig.settings.model_copy(update={"redis": redis})


@pytest.fixture
def lines() -> Iterator[Lines]:
    with capture_logs() as lines:
        yield lines


def of(lines: Lines, *events: str) -> Lines:
    return [line for line in lines if line["event"] in events]


async def until(is_so: Callable[[], object], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not is_so():  # noqa: ASYNC110 - a list sends no signal
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("reply", "only", "words"),
    [
        ("-ERR max requests limit exceeded", (), "unknown error: ERR max requests limit exceeded"),
        ("-ERR max number of clients reached", (), "raise its maxclients"),
        ("-BUSY Redis is busy running a script.", (), "SCRIPT KILL"),
        ("-NOAUTH Authentication required.", (), "asks for credentials"),
        ("-ERR quota", ("EVALSHA", "EVAL"), "unknown error: ERR quota"),
        ("-ERR quota", ("HMGET", "HGETALL"), "unknown error: ERR quota"),
        ("-MOVED somewhere", ("EVALSHA",), "unknown error"),
    ],
)
async def test_any_error_reply_is_logged_once_and_recovered_from(
    reply: str, only: tuple[str, ...], words: str, front: ReplyingServer, rig: Rig, lines: Lines
) -> None:
    async with rig.worker():
        await until(lambda: len(of(lines, "account.baseline")) == 2)
        front.only, front.reply = frozenset(only), reply.encode()
        await until(lambda: front.seen)
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        await asyncio.sleep(FOR_S)
        front.reply = None
        healed_at = time.monotonic()
        await rig.events(1, within_s=HEALED_S + BUSY_MACHINE_S)
        assert time.monotonic() - healed_at <= HEALED_S + BUSY_MACHINE_S
        asked = len(front.seen)
    (said,) = of(lines, "store.refusing", "store.unreachable")
    assert said["event"] == "store.refusing"
    assert words in said["reason"]
    assert of(lines, "bug", "state.lost", "library.failed") == []
    assert asked < 600, "it is rarely asked while it refuses"


async def test_if_only_commits_are_refused_it_is_logged_and_the_provider_is_not_polled_in_a_loop(
    front: ReplyingServer, rig: Rig, lines: Lines
) -> None:
    """As where a right that only a commit needs is taken away: claims go on, and every poll is in vain."""
    async with rig.worker() as worker:
        await until(lambda: len(of(lines, "account.baseline")) == 2)
        front.only = frozenset({load_script("commit").digest})
        front.reply = b"-ERR The user executing the script can't run this command or subcommand"
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        await until(lambda: of(lines, "store.refusing"))
        before = worker.counters.by_request["loopring"]
        await asyncio.sleep(FOR_S)
        polls = worker.counters.by_request["loopring"] - before
        front.reply = None
        await rig.events(1, within_s=HEALED_S + BUSY_MACHINE_S)
    (said,) = of(lines, "store.refusing", "store.unreachable")
    assert "forbids its user" in said["reason"]
    assert of(lines, "bug", "store.recovered") == []
    assert polls <= 6, "asked again at once, it would be dozens"


async def test_a_worker_that_starts_on_a_full_server_drains_it(namespace: str, lines: Lines) -> None:
    with real_server() as server:
        async with a_rig(server.url, namespace) as rig, open_store(rig.settings.redis) as store:
            breakers = Breakers(store.pipe, store.keys)
            await pause(breakers, "ops", "by hand")
            async with rig.worker():
                await until(lambda: len(of(lines, "account.baseline")) == 2)
                rig.sandbox.world.credit(TREASURY, "ETH", "1")
                await until(lambda: [line for line in of(lines, "event.created") if line["subscriptions"]])
            assert not rig.receiver.events
            await breakers.resume("ops")
            queues = Queues(Schedule(store.pipe), store.keys)
            for shard in range(SHARDS):
                await queues.make_due("ops", shard, lease_ms=LONGEST_LEASE_MS)
            await store.pipe.command("CONFIG", "SET", "maxmemory", 1)
            async with rig.worker():
                await rig.events(1)
                assert of(lines, "store.refusing"), "refused work is logged all the same"
                await store.pipe.command("CONFIG", "SET", "maxmemory", 0)
    assert of(lines, "bug") == []
