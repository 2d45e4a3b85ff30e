"""A server that is changed, restarted or replaced while a worker runs is checked again."""

import asyncio
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from structlog.testing import capture_logs

from tests.support.rig import TREASURY, Rig, a_rig
from tests.support.sentinels import on_port, watched
from tests.support.servers import DURABLE, FAST, a_free_port, real_server
from watcher.observe.metrics import Metrics, readyz
from watcher.run import worker
from watcher.run.worker import Worker
from watcher.sandbox.answers import slow
from watcher.store import health
from watcher.store.exceptions import ServerRefused

Lines = list[MutableMapping[str, Any]]

NOTICED_S = 10
"""On a busy machine; a worker needs two pauses of a second."""


@pytest.fixture
def lines() -> Iterator[Lines]:
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name, short in (
        (health, "JUDGE_S", 0.1),
        (health, "_PAUSES_S", (0.1,)),
        (worker, "_JUDGED_S", 0.1),
    ):
        monkeypatch.setattr(place, name, short)


def of(lines: Lines, *events: str) -> Lines:
    return [line for line in lines if line["event"] in events]


async def until(is_so: Callable[[], object], within_s: float = NOTICED_S) -> None:
    async with asyncio.timeout(within_s):
        while not is_so():  # noqa: ASYNC110 - a list sends no signal
            await asyncio.sleep(0.01)


async def exposed(one: Worker) -> str:
    return (await Metrics(one).text()).decode()


async def commits_nothing_and_says_so(rig: Rig, one: Worker, lines: Lines) -> None:
    """From the error line on: a change is not committed, and no provider is asked for it."""
    await until(lambda: of(lines, "store.refusing"))
    await until(lambda: one.in_flight == 0)
    before, changes = one.counters.by_request.copy(), sum(one.counters.by_change.values())
    rig.sandbox.world.credit(TREASURY, "ETH", "1")
    await asyncio.sleep(0.3)  # six intervals
    assert one.counters.by_request == before
    assert sum(one.counters.by_change.values()) == changes
    answer = await readyz(one)
    assert answer.status == 503
    assert "set maxmemory-policy noeviction" in str(answer.text)
    assert "watcher_store_refused 1.0" in await exposed(one)
    assert len(of(lines, "store.refusing")) == 1


def _moved(rig: Rig) -> float:
    return sum(float(event["data"]["effect"]["total"]) for event in rig.receiver.events)


async def test_an_evicting_policy_stops_commits_until_it_is_set_back(
    namespace: str, lines: Lines, quick: None
) -> None:
    with real_server("valkey") as server:
        async with a_rig(server.url, namespace) as rig, rig.worker() as one:
            await until(lambda: len(of(lines, "account.baseline")) == 2)
            with Redis(unix_socket_path=str(server.socket)) as redis:
                redis.config_set("maxmemory-policy", "allkeys-lru")
                await commits_nothing_and_says_so(rig, one, lines)
                redis.config_set("maxmemory-policy", "noeviction")
            await rig.events(1)
            assert (await readyz(one)).status == 200
            assert "watcher_store_refused 0.0" in await exposed(one)
    assert len(of(lines, "store.refusing")) == len(of(lines, "store.recovered")) == 1
    assert of(lines, "bug") == []


@pytest.mark.slow
async def test_run_once_ends_with_the_error_that_it_would_have_had_at_its_start(
    namespace: str, lines: Lines, quick: None
) -> None:
    with real_server("valkey") as server:
        async with a_rig(server.url, namespace) as rig:
            rig.sandbox.metakeep.every_answer = slow(1.0)
            running = asyncio.create_task(Worker(rig.settings, name="w").run(once=True))
            await until(lambda: of(lines, "account.baseline"))
            with Redis(unix_socket_path=str(server.socket)) as redis:
                redis.config_set("maxmemory-policy", "allkeys-lru")
                with pytest.raises(ExceptionGroup) as raised:
                    await running
                redis.config_set("maxmemory-policy", "noeviction")
    assert raised.value.subgroup(ServerRefused)
    assert len(of(lines, "account.baseline")) == 1


@pytest.mark.slow
async def test_after_a_failover_nothing_is_committed_to_a_primary_that_evicts(
    namespace: str, lines: Lines
) -> None:
    port = a_free_port()
    with real_server("valkey", *on_port(port)) as primary, watched(primary, port) as url:
        with Redis(port=port) as redis:
            replica = Redis(port=redis.info("replication")["slave0"]["port"])
        async with a_rig(url, namespace) as rig, rig.worker() as one:
            await until(lambda: len(of(lines, "account.baseline")) == 2)
            replica.config_set("maxmemory-policy", "allkeys-lru")
            rig.sandbox.world.credit(TREASURY, "ETH", "1")
            await rig.events(1)
            with Redis(port=port) as redis:
                redis.set("after all that", 1)
                assert redis.wait(1, 5000) == 1
            primary.kill()
            rig.sandbox.world.credit(TREASURY, "ETH", "1")
            await commits_nothing_and_says_so(rig, one, lines)
            assert len(rig.receiver.events) == 1, "nor was anything committed before the line"
            replica.config_set("maxmemory-policy", "noeviction")
            await until(lambda: _moved(rig) == 3, 30)
        replica.close()


@pytest.mark.slow
async def test_a_restart_without_its_append_only_file_is_one_line_and_a_metric(
    namespace: str, lines: Lines, tmp_path: Path
) -> None:
    with real_server("valkey", *DURABLE) as server:
        async with a_rig(server.url, namespace) as rig, rig.worker() as one:
            rig.is_damaged = True
            await until(lambda: len(of(lines, "account.baseline")) == 2)
            assert 'persistence="everysec"' in await exposed(one)
            server.flags = FAST
            server.restart()
            await until(lambda: len(of(lines, "store.guarantee")) == 2)
            found = 'watcher_store_guarantee{persistence="none",eviction="noeviction"} 1.0'
            assert found in await exposed(one)
    assert [line["persistence"] for line in of(lines, "store.guarantee")] == ["everysec", "none"]
    (weak,) = of(lines, "store.weak")
    assert "guarantees less than before" in weak["reason"]
