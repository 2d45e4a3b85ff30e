"""Canaries: secrets planted wherever one can stand, through success, failure and a crash. None comes out."""

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from redis.asyncio import Redis
from scraped import Seen, get
from servers import real_server

import watcher
from watcher.receiving.receiver import Fail, Receiver
from watcher.sandbox import Sandbox
from watcher.store.keys import Keys, shard_of

SOURCE = Path(watcher.__file__).parents[1]
API_KEY = "canary-api-key-7f3a"
WRONG_KEY = "canary-wrong-key-11aa"
URL_TOKEN = "canary-url-token-91c2"
HEADER = "canary-header-55d0"
PASSWORD = "canary-password-c0de"
SECRET = "whsec_" + base64.b64encode(b"canary-signing-secret-of-32-bytes").decode()
HTTP_TOKEN = "canary-http-token-3b77"
EMAIL = "canary-person@example.com"
CANARIES = (API_KEY, WRONG_KEY, URL_TOKEN, HEADER, PASSWORD, SECRET, SECRET[6:], HTTP_TOKEN, EMAIL)

COMMANDS = (
    *("--help", "run --help", "check", "check --connect", "status", "balances", "events", "deliveries"),
    *("deliveries --attempts", "subscriptions", "ping ops", "ping dead", "audit"),
    *("explain watcher.toml watcher.toml", "resend --since 1h --dry-run --subscription ops"),
)

CONFIGURATION = """
[redis]
url = "${{URL}}"

[egress]
allow = ["127.0.0.0/8"]
allow_http = true

[providers.loopring]
base_url = "{loopring}"
api_key = "${{KEY}}"
requests_per_second = 100

[providers.locked_out]
kind = "loopring"
base_url = "{loopring}"
api_key = "${{WRONG}}"

[providers.shop]
kind = "metakeep"
base_url = "{metakeep}"
api_key = "${{KEY}}"

[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 10110
interval = "1s"

[[accounts]]
name = "outcast"
provider = "locked_out"
account_id = 10110

[[accounts]]
name = "nobody"
provider = "shop"
of = {{ email = "{email}" }}
currencies = ["0x1456b21890f920110190063921f6bc7f7b027fa6"]

[[subscriptions]]
name = "ops"
url = "{receiver}in/{token}?token={token}"
secrets = ["${{SECRET}}"]
headers = {{ authorization = "Bearer ${{HEADER}}" }}
retries = ["0s", "1s", "1s", "1s"]

[[subscriptions]]
name = "dead"
url = "http://127.0.0.1:1999/{token}"
secrets = ["${{SECRET}}"]
"""


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        sandbox.loopring.requests_per_second = None
        sandbox.loopring.api_keys = sandbox.metakeep.api_keys = {API_KEY}
        yield sandbox


async def everything_in(server_url: str) -> bytes:
    """Every key and value of a server, as one text."""
    client = Redis.from_url(server_url, password=PASSWORD)
    readers: dict[Any, Callable[[Any], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": client.xrange,
        b"none": client.get,  # gone meanwhile
    }
    seen = b""
    async for key in client.scan_iter():
        value = await readers[await client.type(key)](key)
        seen += key + repr(value).encode()
    await client.aclose()
    return seen


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "commands",
    [("check", "audit"), pytest.param(COMMANDS, marks=pytest.mark.fault)],
    ids=["few commands", "all commands"],
)
async def test_no_secret_comes_out_of_anything(
    tmp_path: Path, sandbox: Sandbox, commands: tuple[str, ...]
) -> None:
    environment = {"KEY": API_KEY, "WRONG": WRONG_KEY, "SECRET": SECRET, "HEADER": HEADER}
    environment["WATCHER_HTTP_TOKEN"] = HTTP_TOKEN
    with real_server("valkey", "--requirepass", PASSWORD) as server:
        async with Receiver(secrets=[SECRET], fail=Fail(500, 1)) as receiver:
            text = CONFIGURATION.format(
                loopring=sandbox.loopring_url,
                metakeep=sandbox.metakeep_url,
                receiver=receiver.url,
                token=URL_TOKEN,
                email=EMAIL,
            )
            (tmp_path / "watcher.toml").write_text(text)
            environment |= {
                "URL": f"unix://:{PASSWORD}@{quote(str(server.socket))}",
                "LOG_LEVEL": "debug",
                "PYTHONPATH": str(SOURCE),
            }
            worker = await start(tmp_path, environment, "run", "--http", "127.0.0.1:0", "--page")
            await until(tmp_path, "account.baseline")
            sandbox.world.credit(10110, "ETH", "1")
            async with asyncio.timeout(20):
                await receiver.wait_for(1)
            await until(tmp_path, "poll.refused", 2)
            await until(tmp_path, "delivery.retried", 2)
            shown = [
                await asked(tmp_path, path) for path in ("/metrics", "/livez", "/readyz", "/", "/page.json")
            ]
            for command in commands:
                process = await start(tmp_path, environment, *command.split())
                assert await asyncio.wait_for(process.wait(), 30) in (0, 1), command
            (tmp_path / "watcher.toml").write_text(text + f'\nnonsense = "{URL_TOKEN}"')
            worker.send_signal(signal.SIGHUP)
            await until(tmp_path, "configuration.refused")
            broken = await start(tmp_path, environment, "check")
            assert await asyncio.wait_for(broken.wait(), 30) == 78
            await damage(server.url)
            await until(tmp_path, "bug")
            stored = await everything_in(server.url)
            worker.terminate()
            assert await asyncio.wait_for(worker.wait(), 20) == 0
    told = (tmp_path / "out").read_bytes()
    assert b"delivery.delivered" in told  # it did log
    assert b"total.increased" in stored  # and it did store
    assert b"Traceback" in told
    assert "treasury" in shown[-1].body
    seen = told + stored + "".join(each.body + str(each.headers) for each in shown).encode()
    assert [canary for canary in CANARIES if canary.encode() in seen] == []


async def asked(place: Path, path: str) -> Seen:
    """What the worker's listener answers to whoever has the token."""
    (started,) = [line for line in lines(place) if line["event"] == "listener.started"]
    answer = await get(
        int(started["address"].rpartition(":")[2]), path, f"Authorization: Bearer {HTTP_TOKEN}"
    )
    assert answer.status == 200, path
    return answer


async def damage(server_url: str) -> None:
    """Put something else where a schedule is, so that a worker meets what it did not plan for."""
    client = Redis.from_url(server_url, password=PASSWORD)
    key = Keys("watcher").polls(shard_of("treasury"), "loopring")
    await client.delete(key)
    await client.set(key, "of another type")
    await client.aclose()


async def start(place: Path, environment: dict[str, str], *arguments: str) -> "asyncio.subprocess.Process":
    with (place / "out").open("ab") as out:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "watcher", *arguments),
            cwd=place,
            env={**os.environ, **environment},
            stdout=out,
            stderr=out,
        )


async def until(place: Path, event: str, count: int = 1) -> None:
    async with asyncio.timeout(20):
        while events(place).count(event) < count:  # noqa: ASYNC110 - it is another process that writes
            await asyncio.sleep(0.05)


def events(place: Path) -> list[str]:
    return [line["event"] for line in lines(place)]


def lines(place: Path) -> list[dict[str, Any]]:
    """What was logged: commands write to the same file, but not like this."""
    said = (place / "out").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in said if line.startswith('{"timestamp"') and line.endswith("\n")]
