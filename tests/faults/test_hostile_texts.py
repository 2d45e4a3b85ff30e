"""Names at a provider and answers of a subscriber with control characters: none is shown raw."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.builders import SECRET
from tests.support.processes import TEMPLATE, start, until_said
from tests.support.rig import MK
from tests.support.terminal import a_terminal, obeyed
from watcher.sandbox.answers import Answer
from watcher.sandbox.server import Sandbox
from watcher.store.embedded import Embedded

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[8m\x9b31m\u202egnp.exe\u2066\u200f\u2028\x00\r\nlevel=error\ud800"
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


def coins(balance: str) -> dict[str, object]:
    """What MetaKeep says of the one currency that is watched there."""
    row = {"currency": MK, "balance": balance, "symbol": HOSTILE, "name": HOSTILE}
    return {"status": "SUCCESS", "balances": [row]}


COMMANDS = (
    *("status", "balances", "balances --wide", "events", "events --wide --local", "history treasury"),
    *("deliveries", "deliveries --attempts", "deliveries --dead"),
    *("subscriptions", "audit", "check", "check --show", "check --connect", "ping ops"),
    *("poll treasury alice", "poll --provider shop"),
    *("resend --since 1h --dry-run --subscription ops", "tail json"),
    *("explain before.json after.json", "explain coins.json more.json"),
)
ACCOUNTS = {"loopring": "treasury", "metakeep": "alice"}
SETTINGS = {"OPS_SECRET": SECRET, "LOG_LEVEL": "debug"}
TAKES_NO_JSON = ("check", "explain", "ping", "tail")


@pytest.mark.timeout(240)
async def test_no_output_contains_control_characters_from_outside(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.loopring.every_token_answer = Answer.json(TOKENS)
    sandbox.metakeep.every_answer = Answer.json(coins("1"))
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
        for name, balance in (("coins", "1"), ("more", "2.5")):
            (tmp_path / f"{name}.json").write_text(json.dumps(coins(balance)))
        async with Embedded(tmp_path / "state"):
            with (tmp_path / "json").open("ab") as file:
                worker = await start(tmp_path, SETTINGS, "run", out=file)
                await until_said(tmp_path / "json", "account.baseline", 2, within_s=40)
                sandbox.world.credit(10110, "ETH", "1")
                sandbox.metakeep.every_answer = Answer.json(coins("2.5"))
                await until_said(tmp_path / "json", "delivery.dead", 2, within_s=40)
                await end(worker)
            sandbox.metakeep.every_answer = Answer.json({"status": HOSTILE, "message": HOSTILE}, 400)
            with a_terminal(tmp_path / "shown") as terminal:
                worker = await start(tmp_path, SETTINGS, "run", out=terminal)
                sandbox.world.credit(10110, "ETH", "1")
                await until_said(tmp_path / "shown", "delivery.dead", within_s=40)
                await until_said(tmp_path / "shown", "poll.rejected", within_s=40)
                await end(worker)
            for command in COMMANDS:
                await say(tmp_path, command)
    said = all_said(tmp_path)
    for provider, command in product(("loopring", "metakeep"), ("balances --wide", "events --wide --local")):
        shown = said[f"{command}.out"].decode().splitlines()
        assert [line for line in shown if ACCOUNTS[provider] in line and "owned" in line], "is sent"
    assert b"owned" in said["deliveries --attempts.out"]
    assert b"owned" in said["explain coins.json more.json.out"]
    assert {name: obeyed(text) for name, text in said.items() if obeyed(text)} == {}


def all_said(place: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes()
        for file in place.iterdir()
        if file.suffix in ("", ".out") and file.is_file()
    }


@asynccontextmanager
async def a_subscriber() -> AsyncIterator[str]:
    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.Response(status=500, body=ANSWER)

    server = await asyncio.get_running_loop().create_server(web.Server(answer), "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def say(place: Path, command: str) -> None:
    """Run a command at a terminal and, with --json where it takes that, into a file."""
    more = [] if command.partition(" ")[0] in TAKES_NO_JSON else ["--json"]
    with (
        a_terminal(place / f"{command}.out") as terminal,
        (place / f"{' '.join([command, *more])} of a file.out").open("wb") as file,
    ):
        said = [
            await start(place, SETTINGS, *command.split(), out=terminal),
            await start(place, SETTINGS, *command.split(), *more, out=file),
        ]
        codes = [await asyncio.wait_for(process.wait(), 60) for process in said]
    assert {0, 1, 78}.issuperset(codes), command


async def end(worker: asyncio.subprocess.Process) -> None:
    worker.terminate()
    assert await asyncio.wait_for(worker.wait(), 30) == 0
