"""A rolling deploy: the new worker starts, the old one is stopped, and work goes on."""

import asyncio
import itertools
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.builders import SECRET
from tests.support.processes import a_process, assert_reconciled, lines, until_logged
from watcher.receiver import Receiver
from watcher.sandbox.server import Sandbox

pytestmark = pytest.mark.slow

TREASURY = 10110
LOOPRING = "/api/v3/user/balances"


async def test_overlapping_workers_neither_poll_twice_nor_send_twice_or_out_of_order(
    place: Path, sandbox: Sandbox, receiver: Receiver
) -> None:
    moved = Counter[str]()

    async def keep_moving() -> None:
        for number in itertools.count(1):
            symbol = ("ETH", "LRC")[number % 2]
            sandbox.world.credit(TREASURY, symbol, str(number))
            moved[symbol] += number
            await asyncio.sleep(0.02)

    async with a_process(place, "run") as old:
        await until_logged(place, "account.baseline", 2)
        moving = asyncio.create_task(keep_moving())
        await until_delivered(receiver, 2)
        text = (place / "watcher.toml").read_text()
        (place / "watcher.toml").write_text(text.replace('name = "alice"', 'name = "bob"'))
        async with a_process(place, "run") as new:
            await until_logged(place, "worker.started", 2)
            await until_logged(place, "account.baseline", 3)  # bob's: the old worker does not know him
            await until_delivered(receiver, receiver.taken + 2)
            old.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(old.wait(), 10) == 0
            await until_delivered(receiver, receiver.taken + 4)
            moving.cancel()
            async with asyncio.timeout(20):
                while moved_by(receiver) != moved:
                    await receiver.wait_for(receiver.taken + 1)
            new.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(new.wait(), 10) == 0
    assert all(receipt.is_verified and receipt.order is None for receipt in receiver.receipts)
    assert not any(receipt.is_repeat for receipt in receiver.receipts)
    gaps = sandbox.traffic.gaps(LOOPRING)
    assert min(gaps) > 0.7, "its interval is 1 s, less a tenth: two workers would meet in between"
    assert max(gaps) < 3, "the new worker did at once what the old one had claimed"
    assert not lines(place, "bug")
    assert (place / "errors").read_text() == ""
    await assert_reconciled(place)


async def test_an_immediate_second_sigterm_harms_nothing(
    place: Path, sandbox: Sandbox, receiver: Receiver
) -> None:
    async with a_process(place, "run") as worker:
        await until_logged(place, "account.baseline", 2)
        sandbox.world.credit(TREASURY, "ETH", "1")
        await until_delivered(receiver, 1)
        await until_logged(place, "delivery.delivered")
        for _ in range(2):
            worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 5) == 0
    sandbox.world.credit(TREASURY, "ETH", "2")
    async with a_process(place, "run") as worker:
        await until_delivered(receiver, 2)
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 10) == 0
    assert [event["data"]["amount"] for event in receiver.events] == ["1", "2"]
    assert (place / "errors").read_text() == ""
    await assert_reconciled(place)


async def test_until_the_last_worker_is_restarted_all_events_go_to_the_old_url(
    place: Path, sandbox: Sandbox, receiver: Receiver
) -> None:
    async with Receiver(secrets=[SECRET]) as moved, AsyncExitStack() as stack:
        old = [await stack.enter_async_context(a_process(place, "run")) for _ in range(2)]
        await until_logged(place, "account.baseline", 2)
        text = (place / "watcher.toml").read_text()
        (place / "watcher.toml").write_text(text.replace(receiver.url, moved.url))
        await ended(old[0])
        new = [await stack.enter_async_context(a_process(place, "run"))]
        await until_logged(place, "configuration.differs", 2)
        sandbox.world.credit(TREASURY, "ETH", "1")
        await until_delivered(receiver, 1)
        await ended(old[1])
        sandbox.world.credit(TREASURY, "ETH", "2")
        new.append(await stack.enter_async_context(a_process(place, "run")))
        await until_delivered(moved, 1)
        for worker in new:
            await ended(worker)
    assert [event["data"]["amount"] for event in receiver.events] == ["1"]
    assert [event["data"]["amount"] for event in moved.events] == ["2"]
    said = [line["inactive"] for line in lines(place, "configuration.differs")]
    assert ["ops"] in said
    assert [] in said
    assert not lines(place, "bug")
    await assert_reconciled(place)


async def ended(worker: asyncio.subprocess.Process) -> None:
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(worker.wait(), 15) == 0


def moved_by(receiver: Receiver) -> Counter[str]:
    """How much of each asset arrived, by the events."""
    found = Counter[str]()
    for event in receiver.events:
        found[event["data"]["asset"]["symbol"]] += int(event["data"]["amount"])
    return found


async def until_delivered(receiver: Receiver, count: int) -> None:
    async with asyncio.timeout(20):
        await receiver.wait_for(count)
