"""What a worker logs of a failing server: its beginning, its end, reminders in between."""

import asyncio
import inspect
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog

from watcher.store.errors import of_reply
from watcher.store.exceptions import (
    ConfigurationRefused,
    ServerRefused,
    StoreError,
    StoreRefuses,
    StoreUnreachable,
)
from watcher.store.guarantee import judge
from watcher.store.health import StoreHealth

GONE = StoreUnreachable("Redis at db cannot be reached; is it running?")
FORBIDS = ConfigurationRefused("Redis at db forbids its user a command or key that watcher needs")
FULL = StoreRefuses("Redis at db refuses writes (OOM): its memory is full; raise its maxmemory")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines() -> Iterator[list[MutableMapping[str, Any]]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def names(lines: list[MutableMapping[str, Any]]) -> list[str]:
    return [line["event"] for line in lines]


async def test_an_error_is_logged_once_and_its_end_once(lines: list[MutableMapping[str, Any]]) -> None:
    clock = Clock()
    health = StoreHealth(clock=clock)
    for _ in range(20):
        await health.failed(GONE)
        clock.now += 0.5
    health.answered()
    health.answered()
    assert names(lines) == ["store.unreachable", "store.recovered"]
    assert lines[0]["reason"] == str(GONE)
    assert lines[1]["duration_ms"] == 10_000


async def test_missing_rights_are_logged_once_though_other_commands_succeed(
    lines: list[MutableMapping[str, Any]],
) -> None:
    clock = Clock()
    health = StoreHealth(clock=clock)
    for _ in range(20):
        await health.failed(FORBIDS)
        health.answered()
        clock.now += 0.5
    clock.now += 5
    health.answered()
    assert names(lines) == ["store.refusing", "store.recovered"]


async def test_a_second_cause_is_logged_though_the_server_was_never_back(
    lines: list[MutableMapping[str, Any]],
) -> None:
    clock = Clock()
    health = StoreHealth(clock=clock)
    replies = ("NOAUTH Authentication required.", "OOM command not allowed", "READONLY You can't write")
    for reply in replies:
        for node in range(5):
            trouble = of_reply(reply, f"node-{node}")
            assert isinstance(trouble, StoreError)
            await health.failed(trouble)
            clock.now += 0.5
    assert names(lines) == ["store.refusing"] * len(replies)
    for line, words in zip(lines, ("credentials", "OOM", "READONLY"), strict=True):
        assert words in line["reason"]


async def test_an_unknown_error_with_changing_text_is_logged_once(
    lines: list[MutableMapping[str, Any]],
) -> None:
    health = StoreHealth()
    for usage in range(20):
        trouble = of_reply(f"ERR max requests limit exceeded. Usage: {usage}", "db")
        assert isinstance(trouble, StoreError)
        await health.failed(trouble)
    assert names(lines) == ["store.refusing"]


async def test_a_healthy_server_is_not_logged(lines: list[MutableMapping[str, Any]]) -> None:
    health = StoreHealth()
    health.answered()
    assert lines == []


async def test_waits_grow_and_restart_after_a_recovery(lines: list[MutableMapping[str, Any]]) -> None:
    clock = Clock()
    health = StoreHealth(clock=clock)
    waits = []
    for _ in range(7):
        waits.append(await health.failed(GONE))
        assert await health.failed(GONE) == waits[-1], "a failure beside it makes no caller wait for longer"
        clock.now += waits[-1]
    assert waits == [0.1, 0.2, 0.5, 1.0, 2.0, 2.0, 2.0]
    health.answered()
    assert await health.failed(GONE) == 0.1
    assert names(lines) == ["store.unreachable", "store.recovered", "store.unreachable"]


async def test_a_lasting_error_is_logged_again_after_an_hour_and_then_daily(
    lines: list[MutableMapping[str, Any]],
) -> None:
    clock = Clock()
    health = StoreHealth(clock=clock)
    for _ in range(2 * 86_400 // 10):
        await health.failed(GONE)
        clock.now += 10
    assert names(lines) == ["store.unreachable"] * 3
    assert [line["duration_ms"] for line in lines] == [0, 3_600_000, 90_000_000]
    assert [line["times"] for line in lines] == [1, 361, 9001]
    health.answered()
    assert (lines[-1]["duration_ms"], lines[-1]["times"]) == (172_800_000, 17_280)


async def test_reads_that_succeed_do_not_end_a_refusal_of_writes(
    lines: list[MutableMapping[str, Any]],
) -> None:
    clock = Clock()
    health = StoreHealth(clock=clock)
    for _ in range(10):
        pause_s = await health.failed(FULL)
        for _ in range(20):
            health.answered()
            clock.now += pause_s / 20
    assert names(lines) == ["store.refusing"]
    assert pause_s == 2.0
    clock.now += 5
    health.answered()
    assert names(lines) == ["store.refusing", "store.recovered"]


async def test_an_error_of_another_kind_is_logged_too(lines: list[MutableMapping[str, Any]]) -> None:
    health = StoreHealth(clock=Clock())
    for trouble in (GONE, GONE, FULL, FULL):
        await health.failed(trouble)
    assert names(lines) == ["store.unreachable", "store.refusing"]


async def test_an_embedded_server_is_fixed_at_every_failure(lines: list[MutableMapping[str, Any]]) -> None:
    fixed: list[int] = []

    async def fix() -> None:
        fixed.append(len(fixed))
        if len(fixed) == 2:
            raise StoreError("it does not start")

    health = StoreHealth(fix, clock=Clock())
    for _ in range(3):
        await health.failed(GONE)
    assert len(fixed) == 3
    assert [line["log_level"] for line in lines] == ["error", "debug"]


def test_the_clock_of_a_worker_never_steps() -> None:
    assert inspect.signature(StoreHealth).parameters["clock"].default.__name__ == "monotonic"


async def gone() -> int:
    raise GONE


async def there() -> int:
    return 1


async def test_an_unreachable_part_affects_only_itself(lines: list[MutableMapping[str, Any]]) -> None:
    clock = Clock()
    health = StoreHealth(clock=clock)
    for _ in range(10):
        assert await health.of_parts(there(), gone(), there()) == [1, None, 1]
        health.answered()  # the rest did
        clock.now += 1
    assert names(lines) == ["store.unreachable"]
    clock.now += 10
    assert await health.of_parts(there(), there()) == [1, 1]
    health.answered()
    assert names(lines) == ["store.unreachable", "store.recovered"]


async def test_a_reply_to_an_earlier_command_does_not_end_a_failure(
    lines: list[MutableMapping[str, Any]],
) -> None:
    clock = Clock()
    health = StoreHealth(clock=clock)

    async def slow() -> int:
        clock.now += 1
        await health.failed(GONE)  # another loop's, while this one is on its way
        clock.now += 1
        return 1

    assert await health.of_parts(slow()) == [1]
    assert not health.is_up
    assert await health.of_parts() == []
    assert not health.is_up, "nothing was asked"
    assert await health.of_parts(there()) == [1]
    assert health.is_up
    assert names(lines) == ["store.unreachable", "store.recovered"]


async def test_a_failure_while_a_server_is_being_fixed_does_not_wait_for_it() -> None:
    begun, done = asyncio.Event(), asyncio.Event()

    async def fix() -> None:
        begun.set()
        await done.wait()

    health = StoreHealth(fix, clock=Clock())
    fixing = asyncio.create_task(health.failed(GONE))
    await begun.wait()
    assert await health.failed(GONE) == 0.1
    done.set()
    assert await fixing == 0.1


async def test_if_all_parts_are_unreachable_redis_is(lines: list[MutableMapping[str, Any]]) -> None:
    with pytest.raises(StoreUnreachable):
        await StoreHealth().of_parts(gone(), gone())
    assert lines == []
    assert await StoreHealth().of_parts() == []


async def test_our_own_mistake_is_no_unreachable_part() -> None:
    async def wrong() -> int:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await StoreHealth().of_parts(there(), wrong())


INFO = {"redis_version": "7.2.4", "role": "master", "aof_enabled": 1, "maxmemory_policy": "noeviction"}
CONFIG = {"appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
KEPT = judge(INFO, CONFIG, at="db")
LOST = judge({**INFO, "aof_enabled": 0}, CONFIG, at="db")


def test_the_guarantee_is_logged_when_it_changes_and_again_when_it_is_weaker(
    lines: list[MutableMapping[str, Any]],
) -> None:
    health = StoreHealth()
    for found in (KEPT, KEPT, LOST, LOST, KEPT):
        health.promised(found)
    assert names(lines) == ["store.guarantee", "store.guarantee", "store.weak", "store.guarantee"]
    assert [line["persistence"] for line in lines if "persistence" in line] == [
        "everysec",
        "none",
        "everysec",
    ]
    assert "guarantees less than before" in lines[2]["reason"]


async def test_a_refused_server_is_logged_once_and_its_answers_do_not_end_that(
    lines: list[MutableMapping[str, Any]],
) -> None:
    clock = Clock()
    health = StoreHealth(clock=clock)
    for _ in range(20):
        assert await health.failed(ServerRefused("Redis at db evicts keys")) == 2.0
        health.answered()
        clock.now += 10
    assert names(lines) == ["store.refusing"]
    assert lines[0]["reason"] == "Redis at db evicts keys"
    assert health.refusal
    assert health.is_up, "it answers, and deliveries go on"
