"""Workers as users start them: processes that share an embedded server in a directory of their own.

`tests/conftest.py` names it as a plugin, so that its fixtures are there for all.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.support.builders import SECRET
from tests.support.program import COMMAND, ROOT
from tests.support.rig import MK
from watcher.receiver import Receiver
from watcher.sandbox.server import Sandbox
from watcher.store.embedded import Embedded

TEMPLATE = """
[redis]
data_dir = "{directory}/state"

[egress]
allow = ["127.0.0.0/8"]
allow_http = true

[providers.loopring]
base_url = "{loopring}"
api_key = "sandbox"
requests_per_second = 100
timeout = "1s"

[providers.shop]
kind = "metakeep"
base_url = "{metakeep}"
api_key = "sandbox"

[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 10110
interval = "1s"
pending_interval = "1s"

[[accounts]]
name = "alice"
provider = "shop"
of = {{ email = "alice@example.com" }}
currencies = ["{mk}"]
interval = "1s"

[[subscriptions]]
name = "ops"
url = "{receiver}"
secrets = ["${{OPS_SECRET}}"]
"""


@asynccontextmanager
async def a_process(directory: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`watcher` with its output in files, killed at the end if it still runs."""
    settings = {"OPS_SECRET": SECRET, "LOG_FORMAT": "json", "LOG_LEVEL": "debug"}
    with (directory / "log").open("ab") as log, (directory / "errors").open("ab") as errors:
        process = await start(directory, settings, *arguments, out=log, errors=errors)
    async with killed_in_the_end(process):
        yield process


async def start(
    place: Path,
    settings: Mapping[str, str],
    *arguments: str,
    out: IO[bytes] | int,
    errors: IO[bytes] | int | None = None,
    program: Sequence[str] = COMMAND,
) -> asyncio.subprocess.Process:
    """`watcher` with these settings in its environment. Errors go where the rest goes, if nowhere else."""
    return await asyncio.create_subprocess_exec(
        *(*program, *arguments),
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
        stdout=out,
        stderr=out if errors is None else errors,
    )


@asynccontextmanager
async def killed_in_the_end(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        sandbox.loopring.requests_per_second = None
        yield sandbox


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver(secrets=[SECRET]) as receiver:
        yield receiver


@pytest.fixture
async def place(tmp_path: Path, sandbox: Sandbox, receiver: Receiver) -> AsyncIterator[Path]:
    """A directory with a configuration. Its embedded server is stopped at the end."""
    text = TEMPLATE.format(
        directory=tmp_path,
        loopring=sandbox.loopring_url,
        metakeep=sandbox.metakeep_url,
        receiver=receiver.url,
        mk=MK,
    )
    (tmp_path / "watcher.toml").write_text(text)
    yield tmp_path
    await stop_server(tmp_path)


async def stop_server(place: Path) -> None:
    """Stop the embedded server that workers have left behind which were killed."""
    state = place / "state"
    if state.exists():
        async with Embedded(state):
            pass  # the last process stops it


async def assert_reconciled(place: Path) -> None:
    """`watcher audit` finds nothing, in the journal and in the store, even if workers were killed."""
    for more in ((), ("--store",)):
        async with a_process(place, "audit", *more) as audit:
            assert await asyncio.wait_for(audit.wait(), 20) == 0


def lines(place: Path, event: str) -> list[dict[str, object]]:
    log = [line for line in whole_lines(place / "log") if line.startswith(b"{")]
    return [line for line in map(json.loads, log) if line["event"] == event]


def whole_lines(file: Path) -> list[bytes]:
    """What a process has written to a file, without a line that is half written or was cut short."""
    return file.read_bytes().rpartition(b"\n")[0].splitlines()


async def until_logged(place: Path, event: str, count: int = 1) -> None:
    async with asyncio.timeout(20):
        while len(lines(place, event)) < count:  # noqa: ASYNC110 - it is another process that writes
            await asyncio.sleep(0.02)


def said_at(file: Path) -> str:
    return file.read_text() if file.exists() else ""


async def until_said(file: Path, text: str, count: int = 1, *, within_s: float = 20) -> None:
    """Wait until a process has written something to a file, so many times."""
    async with asyncio.timeout(within_s):
        while said_at(file).count(text) < count:  # noqa: ASYNC110 - it is another process that writes
            await asyncio.sleep(0.02)
