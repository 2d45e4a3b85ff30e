"""Signals reach a process from its first instruction to its last, and mean what their sender expects."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support.builders import SECRET
from tests.support.processes import (
    a_process,
    assert_reconciled,
    killed_in_the_end,
    lines,
    start,
    until_logged,
    until_said,
)
from watcher.receiver import Receiver
from watcher.sandbox.server import Sandbox
from watcher.service.exposure import notify_ready
from watcher.service.serve import is_haste

of_the_slow = partial(pytest.param, marks=pytest.mark.slow)
MOMENTS_S = (0.1, 0.25, 0.4, 0.6, 0.9, 1.3, 2.0)


async def until_it_handles(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Wait for its first instruction: before that, Python itself handles no signal."""
    async with asyncio.timeout(20):
        while process.returncode is None and not _handles(process.pid, number):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def an_attempt(receiver: Receiver) -> None:
    """Wait until one is in flight."""
    async with asyncio.timeout(20):
        while not receiver.receipts:  # noqa: ASYNC110 - it has no signal for a first attempt
            await asyncio.sleep(0.005)


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def _handles(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    ("number", "since_first_s", "is_one"),
    [
        (signal.SIGTERM, 0.5, False),
        (signal.SIGTERM, 4.9, False),
        (signal.SIGTERM, 5.0, True),
        (signal.SIGINT, 0.001, False),
        (signal.SIGINT, 0.2, True),
    ],
)
def test_a_second_ctrl_c_or_a_sigterm_after_five_seconds_skips_the_drain(
    number: int, since_first_s: float, is_one: bool
) -> None:
    assert is_haste(number, since_first_s) is is_one


async def test_a_sighup_at_the_first_instruction_is_a_reload(place: Path) -> None:
    async with a_process(place, "run") as worker:
        await until_it_handles(worker, signal.SIGHUP)
        worker.send_signal(signal.SIGHUP)
        await until_logged(place, "configuration.loaded", 2)
        await until_logged(place, "account.baseline", 2)
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 20) == 0
    assert (place / "errors").read_text() == ""


async def test_a_sigterm_at_the_first_instruction_is_an_orderly_end(place: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        async with a_process(place, "run") as worker:
            await until_it_handles(worker, signal.SIGHUP)  # SIGINT is handled by Python itself
            worker.send_signal(number)
            assert await asyncio.wait_for(worker.wait(), 20) == 0
    assert (place / "errors").read_text() == ""
    assert not lines(place, "worker.started")


async def test_a_sigterm_ends_a_worker_whose_redis_hangs(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = "redis://{}:{}".format(*silent.getsockname())
        text = (place / "watcher.toml").read_text()
        (place / "watcher.toml").write_text(text.replace("[redis]", f'[redis]\nurl = "{url}"'))
        async with a_process(place, "run") as worker:
            asked, _ = await asyncio.wait_for(asyncio.to_thread(silent.accept), 20)
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(worker.wait(), 4) == 0
            asked.close()
    assert (place / "errors").read_text() == ""
    assert lines(place, "worker.stopped")


async def test_the_service_manager_is_notified_of_each_phase(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place / "manager"))
        manager.setblocking(False)

        async def shown() -> bytes:
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(manager, 100), 20)

        settings = {"OPS_SECRET": SECRET, "NOTIFY_SOCKET": str(place / "manager")}
        with (place / "log").open("ab") as log:
            worker = await start(place, settings, "run", out=log)
        async with killed_in_the_end(worker):
            assert await shown() == b"READY=1"
            worker.send_signal(signal.SIGHUP)
            assert (await shown()).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert await shown() == b"READY=1"
            worker.send_signal(signal.SIGTERM)
            assert await shown() == b"STOPPING=1"
            assert await asyncio.wait_for(worker.wait(), 20) == 0


def test_a_missing_service_manager_changes_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (str(place / "nobody"), "@nobody", "vsock:2:1", "x" * 300):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify_ready()


async def test_two_sigterms_cancel_no_attempt(place: Path, sandbox: Sandbox, receiver: Receiver) -> None:
    async with a_process(place, "run") as worker:
        await until_logged(place, "account.baseline", 2)
        receiver.delay_s = 1
        sandbox.world.credit(10110, "ETH", "1")
        await an_attempt(receiver)
        worker.send_signal(signal.SIGTERM)
        await until_logged(place, "worker.draining")
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 20) == 0
    assert len(lines(place, "delivery.delivered")) == 1
    await assert_reconciled(place)


async def test_a_second_ctrl_c_ends_at_once(place: Path, sandbox: Sandbox, receiver: Receiver) -> None:
    async with a_process(place, "run") as worker:
        await until_logged(place, "account.baseline", 2)
        receiver.delay_s = 15
        sandbox.world.credit(10110, "ETH", "1")
        await an_attempt(receiver)
        worker.send_signal(signal.SIGINT)
        await until_logged(place, "worker.draining")
        await asyncio.sleep(0.05)  # as fast as a person can press it
        worker.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(worker.wait(), 5) == 128 + signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGHUP, *map(of_the_slow, (signal.SIGTERM, signal.SIGINT))])
async def test_other_long_commands_end_cleanly(place: Path, number: signal.Signals) -> None:
    (place / "empty").touch()
    codes = {"listen --port 0": 0, "sandbox --loopring-port 0 --metakeep-port 0 --bank-port 0": 0}
    for command, code in codes.items():
        said = place / command.split()[0]
        with said.open("ab") as out:
            process = await start(place, {}, *command.split(), out=out)
        async with killed_in_the_end(process):
            await until_said(said, "\n")
            process.send_signal(number)
            assert await asyncio.wait_for(process.wait(), 20) == code, command
        assert "Traceback" not in said.read_text()
    with (place / "out").open("ab") as out:
        process = await start(place, {}, "tail", "-f", "empty", out=out)
    async with killed_in_the_end(process):
        await until_it_handles(process, signal.SIGHUP)
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 20) == 128 + number
    assert (place / "out").read_text() == ""


DROPS = """
from watcher import signals

class Drops:
    def __init__(self, error): self.error = error
    def __del__(self): raise self.error

signals.install(is_worker=True)
Drops(signals.Ended(0))
Drops(ValueError("said"))
"""


def test_a_librarys_unraisable_error_is_hidden_only_after_a_signal() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DROPS], capture_output=True, text=True, check=True, timeout=20
    )
    assert "ValueError: said" in done.stderr
    assert "Ended" not in done.stderr


async def test_a_sighup_ignored_by_nohup_stays_ignored(place: Path) -> None:
    with (place / "out").open("ab") as out:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            process = await start(place, {}, "listen", "--port", "0", out=out)
        finally:
            signal.signal(signal.SIGHUP, before)
    async with killed_in_the_end(process):
        await until_said(place / "out", "listening at")
        process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.1)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("each", [3, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("first", range(3))
async def test_signals_are_handled_at_every_moment_of_the_start(place: Path, first: int, each: int) -> None:
    """Each of the signals, at every third of the moments or at each of them: three tests have them all."""
    number = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)[first]
    moments_s = [moment_s * times / 3 for moment_s in MOMENTS_S for times in (1, 2, 3)]
    for moment_s in moments_s[first % each :: each]:
        seen = len(lines(place, "configuration.loaded")) if (place / "log").exists() else 0
        async with a_process(place, "run") as worker:
            await until_it_handles(worker, signal.SIGHUP)
            await asyncio.sleep(moment_s)
            worker.send_signal(number)
            if number == signal.SIGHUP:
                await until_logged(place, "configuration.loaded", seen + 2)
                worker.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(worker.wait(), 20) == 0, moment_s
    assert (place / "errors").read_text() == ""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a namespace of processes")
async def test_signals_are_handled_as_process_1_of_a_container_too(place: Path) -> None:
    program = f"{sys.executable} -m watcher run >> log 2>> errors"
    (place / "log").touch()
    inside = await asyncio.create_subprocess_exec(
        *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", f"exec {program}"),
        cwd=place,
        env={**os.environ, "OPS_SECRET": SECRET, "LOG_FORMAT": "json"},
    )
    async with killed_in_the_end(inside):
        await until_logged(place, "account.baseline", 2)
        child = _only_child(inside.pid)
        os.kill(child, signal.SIGHUP)
        await until_logged(place, "configuration.loaded", 2)
        os.kill(child, signal.SIGTERM)
        assert await asyncio.wait_for(inside.wait(), 20) == 0
