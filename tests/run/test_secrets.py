"""Secrets planted in every possible place, through success, failure and a crash. None is shown."""

import asyncio
import re
import shutil
import signal
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import IO
from urllib.parse import quote

import pytest
from redis.asyncio import Redis

from tests.run.canaries import (
    HTTP_TOKEN,
    PASSWORD,
    a_process,
    a_world_with_canaries,
    canaries_in,
    damage,
    everything_in,
    rotated,
    with_mistakes,
)
from tests.support.processes import until_said
from tests.support.scraped import Seen, get
from tests.support.servers import real_server
from tests.support.terminal import a_terminal, obeyed
from watcher.receiver import Receiver
from watcher.sandbox.server import Sandbox
from watcher.store.embedded import Embedded

COMMANDS = (
    *("--help", "run --help", "check", "check --connect", "check --show", "check --show --json"),
    *("status", "balances", "events", "deliveries", "deliveries --attempts", "deliveries --dead"),
    *("subscriptions", "poll treasury", "ping ops", "ping dead", "ping parrot", "audit"),
    *("explain watcher.toml watcher.toml", "resend --since 1h --dry-run --subscription ops", "tail copy"),
)
CHECKS = ("check", "check --show", "check --show --json")
PATHS = ("/metrics", "/livez", "/readyz", "/", "/page.json")


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[Path]:
    """Where an embedded server may keep its files. At the end it is stopped, whatever failed."""
    state = tmp_path / "state"
    yield state
    async with Embedded(state):
        pass  # the last process stops it


each_form = pytest.mark.parametrize(
    ("commands", "checks"),
    [
        (("check --show", "status"), ("check --show",)),
        pytest.param(COMMANDS, CHECKS, marks=(pytest.mark.fault, pytest.mark.timeout(240))),
    ],
    ids=["few commands", "all commands"],
)
"""What is run when everything is right, and what while the configuration is full of mistakes."""


@each_form
async def test_no_output_contains_a_secret(
    tmp_path: Path, commands: Iterable[str], checks: Iterable[str]
) -> None:
    output, file = tmp_path / "output", tmp_path / "watcher.toml"
    with real_server("valkey", "--requirepass", PASSWORD) as server, output.open("ab") as out:
        url = f"unix://:{PASSWORD}@{quote(str(server.socket))}"
        async with (
            a_world_with_canaries('url = "${URL}"') as (sandbox, receiver, text),
            Redis.from_url(server.url, password=PASSWORD) as client,
        ):
            file.write_text(text)
            run = ("run", "--http", "127.0.0.1:0", "--page")
            async with a_process(tmp_path, out, *run, URL=url) as worker:
                await live(output, sandbox, receiver)
                (port,) = re.findall(r'"listener.started".*"address":"127.0.0.1:(\d+)"', output.read_text())
                shown = [await asked(port, path) for path in PATHS]
                await say(tmp_path, out, commands, {0, 1}, URL=url)
                file.write_text(rotated(text))
                worker.send_signal(signal.SIGHUP)
                await until_said(output, "configuration.changed")
                file.write_text(with_mistakes(text))
                worker.send_signal(signal.SIGHUP)
                await until_said(output, "configuration.refused")
                await say(tmp_path, out, checks, {78}, URL=url)
                await damage(client)
                await until_said(output, "Traceback")
                stored = await everything_in(client)
                worker.terminate()
                assert await asyncio.wait_for(worker.wait(), 20) == 0
    said = output.read_bytes()
    assert b"delivery.delivered" in said  # it did log
    assert b"total.increased" in stored  # and it did store
    assert b"Cannot POST" in stored  # what it was answered too
    assert "treasury" in shown[-1].body
    assert all(name in said for name in (b'"account":"declared"', b'"account":"nowhere"', b'"account":"gas"'))
    seen = said + stored + "".join(each.body + str(each.headers) for each in shown).encode()
    assert canaries_in(seen) == []


@each_form
async def test_neither_terminal_nor_files_of_the_embedded_server_contain_a_secret(
    tmp_path: Path, state: Path, commands: Iterable[str], checks: Iterable[str]
) -> None:
    output, file = tmp_path / "output", tmp_path / "watcher.toml"
    with a_terminal(output) as terminal:
        async with a_world_with_canaries(f'data_dir = "{state}"') as (sandbox, receiver, text):
            file.write_text(text)
            async with a_process(tmp_path, terminal, "run") as worker:
                await live(output, sandbox, receiver)
                await say(tmp_path, terminal, commands, {0, 1})
                file.write_text(with_mistakes(text))
                worker.send_signal(signal.SIGHUP)
                await until_said(output, "configuration.refused")
                await say(tmp_path, terminal, checks, {78})
                async with Redis.from_url(f"unix://{quote(str(state / 'server.sock'))}") as client:
                    await damage(client)
                await until_said(output, "Traceback")
                kept = files_of(state)
                worker.terminate()
                assert await asyncio.wait_for(worker.wait(), 20) == 0
    kept += files_of(state)
    assert b"total.increased" in kept
    assert b"Cannot POST" in kept
    said = output.read_bytes()
    assert b"\x1b[2maccount=\x1b[0mtreasury" in said
    assert obeyed(said) == set()
    assert canaries_in(said + kept) == []


async def live(output: Path, sandbox: Sandbox, receiver: Receiver) -> None:
    """Wait until the worker has polled, rejected, sent, retried and given up."""
    await until_said(output, "account.baseline")
    sandbox.world.credit(10110, "ETH", "1")
    async with asyncio.timeout(20):
        await receiver.wait_for(1)
    await until_said(output, "delivery.dead")
    await until_said(output, "poll.rejected", 3)
    shutil.copy(output, output.parent / "copy")


def files_of(state: Path) -> bytes:
    """Whatever lies in a directory, names included."""
    files = [file for file in state.rglob("*") if file.is_file()]
    return b"".join(f"{file}\n".encode() + file.read_bytes() for file in files)


async def say(
    place: Path, out: IO[bytes] | int, commands: Iterable[str], codes: set[int], **more: str
) -> None:
    """Run commands, a few at a time, and look how they end."""
    turn = asyncio.Semaphore(3)

    async def one(command: str) -> None:
        async with turn, a_process(place, out, *command.split(), **more) as process:
            assert await asyncio.wait_for(process.wait(), 60) in codes, command

    async with asyncio.TaskGroup() as group:
        for command in commands:
            group.create_task(one(command))


async def asked(port: str, path: str) -> Seen:
    """What the worker's listener answers to a client with the token."""
    answer = await get(int(port), path, f"Authorization: Bearer {HTTP_TOKEN}")
    assert answer.status == 200, path
    return answer
