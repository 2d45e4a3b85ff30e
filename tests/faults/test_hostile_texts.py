"""Names at a provider and answers of a subscriber that would steer a terminal: none comes out raw."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unicodedata import category

import pytest
from aiohttp import web
from builders import SECRET
from processes import SOURCE, TEMPLATE
from rig import MK

from watcher.sandbox import Sandbox
from watcher.sandbox.answers import Answer
from watcher.store.embedded import Embedded

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066\u200f\u2028\x00\r\nlevel=error\ud800"
ANSWER = HOSTILE.encode("utf-8", "surrogatepass") + b"\xff\xfe"
TOKENS = [
    {
        "type": "ERC20",
        "tokenId": number,
        "symbol": f"{HOSTILE}{number}",
        "name": HOSTILE,
        "address": "0x0",
        "decimals": 6,
    }
    for number in range(10)
]

COMMANDS = (
    *("status", "balances", "events", "deliveries", "deliveries --attempts", "deliveries --dead"),
    *("subscriptions", "audit", "check", "check --show", "check --connect", "ping ops"),
    *("resend --since 1h --dry-run --subscription ops", "explain before.json after.json", "tail json"),
)
TAKES_NO_JSON = ("check", "explain", "ping", "tail")


@pytest.mark.timeout(240)
async def test_what_would_steer_a_terminal_comes_out_of_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.loopring.every_token_answer = Answer.json(TOKENS)
    sandbox.metakeep.every_answer = Answer(400, json.dumps({"status": HOSTILE, "message": HOSTILE}).encode())
    async with a_subscriber() as url:
        text = TEMPLATE.format(
            directory=tmp_path,
            loopring=sandbox.loopring_url,
            metakeep=sandbox.metakeep_url,
            receiver=url,
            mk=MK,
        )
        (tmp_path / "watcher.toml").write_text(text + 'retries = ["0s", "1s"]\n')
        row = {"accountId": 10110, "tokenId": 0, "total": "1", "locked": "0"}
        for name, total in (("before", "1"), ("after", HOSTILE)):
            (tmp_path / f"{name}.json").write_text(json.dumps([{**row, "total": total}]))
        async with Embedded(tmp_path / "state"):
            for log_format in ("json", "pretty"):
                worker = await start(tmp_path, log_format, "run", log_format=log_format)
                await until(tmp_path / log_format, "poll.finished")
                sandbox.world.credit(10110, "ETH", "1")
                await until(tmp_path / log_format, "delivery.dead")
                worker.terminate()
                assert await asyncio.wait_for(worker.wait(), 30) == 0
            for command in COMMANDS:
                await say(tmp_path, command)
    said = all_said(tmp_path)
    assert b"owned" in said["balances.out"], "it was told, in its way"
    assert b"owned" in said["deliveries --attempts.out"]
    assert {name: raw(text) for name, text in said.items() if raw(text)} == {}


@asynccontextmanager
async def a_subscriber() -> AsyncIterator[str]:
    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.Response(status=500, body=ANSWER)

    server = await asyncio.get_running_loop().create_server(web.Server(answer), "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def say(place: Path, command: str) -> None:
    """Run a command as it is, and with --json where it takes that."""
    more = [] if command.partition(" ")[0] in TAKES_NO_JSON else ["--json"]
    lines = [[*command.split(), *options] for options in ([], more)]
    said = [await start(place, f"{' '.join(line)}.out", *line) for line in lines]
    codes = [await asyncio.wait_for(process.wait(), 60) for process in said]
    assert {0, 1, 78}.issuperset(codes), command


async def start(
    place: Path, output: str, *arguments: str, log_format: str = "json"
) -> asyncio.subprocess.Process:
    settings = {"OPS_SECRET": SECRET, "LOG_FORMAT": log_format, "LOG_LEVEL": "debug", "NO_COLOR": "1"}
    with (place / output).open("ab") as file:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "watcher", *arguments),
            cwd=place,
            env={**os.environ, **settings, "PYTHONPATH": str(SOURCE)},
            stdout=file,
            stderr=file,
        )


async def until(file: Path, event: str) -> None:
    async with asyncio.timeout(40):
        while event not in all_said(file.parent)[file.name].decode():  # noqa: ASYNC110 - it is another process that writes
            await asyncio.sleep(0.05)


def all_said(place: Path) -> dict[str, bytes]:
    files = [file for file in place.iterdir() if file.is_file() and file.suffix in ("", ".out")]
    return {file.name: file.read_bytes() for file in files}


def raw(said: bytes) -> set[str]:
    """What a terminal would obey, or could not show; a line may end, and that is all."""
    return {char for char in said.decode() if char != "\n" and category(char) in ("Cc", "Cf", "Cs", "Zl")}
