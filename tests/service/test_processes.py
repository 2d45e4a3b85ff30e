"""Workers as users start them: processes that share an embedded server, are killed and misconfigured."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.support.processes import a_process, assert_reconciled, lines, until_logged
from watcher.receiver import Receiver
from watcher.sandbox.server import Sandbox

pytestmark = pytest.mark.slow


async def test_a_sigterm_drains_and_exits_with_0(place: Path, sandbox: Sandbox, receiver: Receiver) -> None:
    async with a_process(place, "run") as worker:
        await until_logged(place, "account.baseline", 2)
        sandbox.world.credit(10110, "ETH", "1")
        async with asyncio.timeout(10):
            await receiver.wait_for(1)
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 10) == 0
    assert lines(place, "worker.stopped")
    assert (place / "errors").read_text() == ""
    await assert_reconciled(place)


async def test_a_killed_worker_loses_nothing_and_the_other_works_on(
    place: Path, sandbox: Sandbox, receiver: Receiver
) -> None:
    changes = 8
    async with a_process(place, "run") as first, a_process(place, "run"):
        await until_logged(place, "worker.started", 2)
        await until_logged(place, "account.baseline", 2)
        for number in range(1, changes + 1):
            sandbox.world.credit(10110, "ETH", number)
            async with asyncio.timeout(50):
                await receiver.wait_for(number)
            if number == changes // 2:
                # In the middle of an attempt it would take 30 s until the queue's lease ends.
                await until_logged(place, "delivery.delivered", number)
                first.kill()
    shown = [event["data"]["amount"] for event in receiver.events]
    assert len(shown) == changes
    assert all(receipt.is_verified and receipt.order is None for receipt in receiver.receipts)
    assert not lines(place, "bug")
    await assert_reconciled(place)


async def test_state_survives_a_restart_of_everything(
    place: Path, sandbox: Sandbox, receiver: Receiver
) -> None:
    for _ in range(2):
        sandbox.world.credit(10110, "ETH", "1")
        async with a_process(place, "run", "--once") as worker:
            assert await asyncio.wait_for(worker.wait(), 20) == 0
    assert [event["data"]["amount"] for event in receiver.events] == ["1"]
    assert len(lines(place, "account.baseline")) == 2
    await assert_reconciled(place)


async def test_a_reload_with_a_mistake_changes_nothing(
    place: Path, sandbox: Sandbox, receiver: Receiver
) -> None:
    good = (place / "watcher.toml").read_text()
    async with a_process(place, "run") as worker:
        await until_logged(place, "account.baseline", 2)
        (place / "watcher.toml").write_text(good.replace("interval", "intervall"))
        worker.send_signal(signal.SIGHUP)
        await until_logged(place, "configuration.refused")
        sandbox.world.credit(10110, "ETH", "1")
        async with asyncio.timeout(10):
            await receiver.wait_for(1)
        (place / "watcher.toml").write_text(good.replace('name = "ops"', 'name = "others"'))
        worker.send_signal(signal.SIGHUP)
        await until_logged(place, "configuration.loaded", 2)
        sandbox.world.credit(10110, "ETH", "1")
        async with asyncio.timeout(10):
            await receiver.wait_for(2)
    assert [event["subscription"]["name"] for event in receiver.events] == ["ops", "others"]
    await assert_reconciled(place)


async def test_an_unreachable_redis_is_one_line_and_exit_code_69(place: Path) -> None:
    text = (place / "watcher.toml").read_text()
    (place / "watcher.toml").write_text(text.replace("[redis]", '[redis]\nurl = "redis://127.0.0.1:1"'))
    async with a_process(place, "run") as worker:
        assert await asyncio.wait_for(worker.wait(), 30) == 69
    (complaint,) = (place / "errors").read_text().splitlines()
    assert "127.0.0.1:1" in complaint


async def test_a_mistake_in_the_file_exits_with_78_before_anything_runs(place: Path) -> None:
    (place / "watcher.toml").write_text("[[accounts]]\nname = 1\n")
    async with a_process(place, "run") as worker:
        assert await asyncio.wait_for(worker.wait(), 10) == 78
    assert "watcher.toml:" in (place / "errors").read_text()
    assert (place / "log").read_text() == ""
