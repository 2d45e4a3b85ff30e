"""A wake becomes a webhook within 300 ms, and the examples of deploy/wake work: real processes."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median

import aiohttp
import pytest
from aiohttp import web

from tests.support.processes import a_process, killed_in_the_end, start, until_logged
from tests.support.program import ROOT
from tests.support.rig import TREASURY, Rig, a_rig
from tests.support.servers import a_free_port
from watcher.receiver import Receiver
from watcher.sandbox.server import Sandbox
from watcher.settings import RedisSettings
from watcher.store.members import Roster
from watcher.store.opening import open_store

EXAMPLES = ROOT / "deploy" / "wake"
POLLS = "/api/v3/user/balances"
WITHIN_S = 0.3
ROUNDS = 3
A_SECOND = 1.1
"""Which lies between two polls of an account, and a little more."""


@pytest.mark.slow
async def test_a_wake_reaches_the_receiver_within_300_ms_though_the_interval_is_ten_minutes(
    place: Path, sandbox: Sandbox, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "watcher.toml"
    file.write_text(file.read_text().replace('interval = "1s"', 'interval = "10m"'))
    took: Mapping[str, list[float]] = {"store call": [], "its start": [], "its end": []}
    async with a_process(place, "run"):
        await until_logged(place, "account.baseline", 2)
        redis = RedisSettings(data_dir=place / "state")
        async with open_store(redis) as store:
            for number in range(2 * ROUNDS):
                await asyncio.sleep(A_SECOND)
                asked = sandbox.traffic.count(POLLS)
                sandbox.world.credit(TREASURY, "LRC", "1")
                begun = time.monotonic()
                if number % 2:
                    woken = await Roster(store.pipe, store.keys).wake(["treasury"])
                    assert [(one.in_ms, one.waits_for) for one in woken] == [(0, "turn")]
                    ended = begun
                else:
                    async with a_process(place, "poll", "treasury") as poll:
                        arriving = asyncio.create_task(receiver.wait_for(number + 1))
                        assert await poll.wait() == 0
                        ended = time.monotonic()
                        await asyncio.wait_for(arriving, 5)
                await asyncio.wait_for(receiver.wait_for(number + 1), 5)
                arrived = time.monotonic()
                assert sandbox.traffic.count(POLLS) == asked + 1
                if number % 2:
                    took["store call"].append(arrived - begun)
                else:
                    took["its start"].append(arrived - begun)
                    took["its end"].append(arrived - ended)
    assert all(receipt.is_verified for receipt in receiver.receipts)
    with capsys.disabled():
        for name, seconds in took.items():
            of = "" if name == "store call" else "`watcher poll`, from "
            listed = ", ".join(f"{1000 * one:.0f}" for one in seconds)
            print(f"\nfrom wake to webhook, {of}{name}: median {1000 * median(seconds):.0f} ms ({listed})")
    assert min(took["store call"]) <= WITHIN_S
    assert min(took["its end"]) <= WITHIN_S


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    """Accounts that are polled every ten minutes."""
    async with a_rig(redis_server_url, namespace) as rig:
        seldom = {"interval": timedelta(minutes=10), "pending_interval": timedelta(minutes=10)}
        accounts = {
            name: account.model_copy(update=seldom) for name, account in rig.settings.account_by_name.items()
        }
        rig.settings = rig.settings.model_copy(update={"account_by_name": accounts})
        yield rig


@pytest.fixture
def settings(tmp_path: Path, redis_server_url: str, namespace: str) -> Mapping[str, str]:
    """An environment in which `watcher` is found, and its store."""
    program = tmp_path / "bin" / "watcher"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m watcher "$@"\n')
    program.chmod(0o755)
    (tmp_path / "watcher.toml").write_text(
        f'[redis]\nurl = "{redis_server_url}"\nnamespace = "{namespace}"\n'
    )
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


@asynccontextmanager
async def woken(rig: Rig, wake: Callable[[], object]) -> AsyncIterator[None]:
    """Two changes at the provider, each of which is emitted once the account was woken, inside the block."""
    async with rig.worker():
        async with asyncio.timeout(10):
            while rig.sandbox.traffic.count(POLLS) < 1:  # noqa: ASYNC110 - the simulator only counts
                await asyncio.sleep(0.005)
        yield
        for number in (1, 2):
            rig.sandbox.world.credit(TREASURY, "LRC", "1")
            wake()
            await rig.events(number, within_s=20)


NEWHEADS = (sys.executable, str(EXAMPLES / "newheads.py"))


@pytest.mark.slow
async def test_every_new_block_and_every_reconnection_is_a_poll(
    rig: Rig, settings: Mapping[str, str], tmp_path: Path
) -> None:
    nodes: list[tuple[web.Request, web.WebSocketResponse]] = []
    asked: list[object] = []

    async def node(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        asked.append((await socket.receive_json())["params"])
        await socket.send_json({"jsonrpc": "2.0", "id": 1, "result": "0x1"})
        nodes.append((request, socket))
        async for _ in socket:
            pass
        return socket

    def push() -> None:
        ((request, socket),) = nodes
        if not pushed:
            pushed.append(group.create_task(socket.send_json(HEAD)))
        else:
            assert request.transport
            request.transport.abort()

    pushed: list[asyncio.Task[None]] = []
    async with a_server(node) as url, asyncio.TaskGroup() as group:
        script = await start(tmp_path, settings, url, "treasury", out=2, program=NEWHEADS)
        async with killed_in_the_end(script), woken(rig, push):
            async with asyncio.timeout(20):
                while not nodes:  # noqa: ASYNC110 - it is another process that connects
                    await asyncio.sleep(0.02)
    assert asked == [["newHeads"]] * 2


HEAD = {"jsonrpc": "2.0", "method": "eth_subscription", "params": {"result": {"number": "0x1"}}}


@pytest.mark.slow
async def test_a_node_without_new_heads_ends_the_script_with_a_message(
    settings: Mapping[str, str], tmp_path: Path
) -> None:
    async def node(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive_json()
        await socket.send_json({"jsonrpc": "2.0", "id": 1, "error": {"code": -32601, "message": "no"}})
        await socket.receive()
        return socket

    async with a_server(node) as url:
        with (tmp_path / "said").open("wb") as said:
            script = await start(tmp_path, settings, url, "treasury", out=said, program=NEWHEADS)
            async with killed_in_the_end(script):
                assert await asyncio.wait_for(script.wait(), 20) == 1
    assert (tmp_path / "said").read_text().startswith("newheads: the node says {")


@pytest.mark.slow
async def test_a_flood_of_wakes_is_one_poll_a_second(rig: Rig) -> None:
    calls = 0

    async def flood(seconds: float) -> None:
        nonlocal calls
        async with open_store(rig.settings.redis) as store:
            end_at = time.monotonic() + seconds
            while time.monotonic() < end_at:
                await Roster(store.pipe, store.keys).wake(["treasury"])
                calls += 1

    async with rig.worker():
        async with asyncio.timeout(10):
            while rig.sandbox.traffic.count(POLLS) < 1:  # noqa: ASYNC110 - the simulator only counts
                await asyncio.sleep(0.005)
        await asyncio.gather(*(flood(3.2) for _ in range(3)))
        async with asyncio.timeout(5):
            while rig.sandbox.traffic.count(POLLS) < 4:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.005)
    times = rig.sandbox.traffic.times(POLLS)
    assert calls > 300
    assert min(later - sooner for sooner, later in pairwise(times)) >= 0.99
    assert len(times) <= 5


@asynccontextmanager
async def a_server(
    handler: Callable[[web.Request], object],
) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@pytest.mark.slow
async def test_the_hook_of_bitcoind_is_a_poll(rig: Rig, settings: Mapping[str, str], tmp_path: Path) -> None:
    (line,) = (line for line in (EXAMPLES / "bitcoin.conf").read_text().splitlines() if line[0] != "#")
    setting, _, command = line.partition("=")
    for theirs, ours in (
        ("/opt/watcher/bin/", ""),
        ("/etc/watcher", str(tmp_path)),
        ("%w", "treasury"),  # as it does: the wallet's name, quoted for a shell
    ):
        assert theirs in command
        command = command.replace(theirs, ours)
    codes: list[asyncio.Task[int]] = []

    async def call() -> int:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
        return await (await asyncio.create_subprocess_shell(command, env=environment)).wait()

    async with asyncio.TaskGroup() as group, woken(rig, lambda: codes.append(group.create_task(call()))):
        pass
    assert (setting, [task.result() for task in codes]) == ("walletnotify", [0, 0])


@pytest.mark.slow
async def test_a_providers_webhook_with_the_token_is_a_poll(
    rig: Rig, settings: Mapping[str, str], tmp_path: Path
) -> None:
    port = a_free_port()
    program = (sys.executable, str(EXAMPLES / "webhook.py"))
    own = {**settings, "TOKEN": "swordfish"}
    script = await start(tmp_path, own, "127.0.0.1", str(port), out=2, program=program)
    statuses: list[asyncio.Task[int]] = []

    async def post(path: str = "swordfish/treasury") -> int:
        async with session.post(f"http://127.0.0.1:{port}/{path}") as answer:
            return answer.status

    async with (
        killed_in_the_end(script),
        aiohttp.ClientSession() as session,
        asyncio.TaskGroup() as group,
        woken(rig, lambda: statuses.append(group.create_task(post()))),
    ):
        async with asyncio.timeout(20):
            while not await is_open(port):  # noqa: ASYNC110 - it is another process that listens
                await asyncio.sleep(0.02)
        assert await post("guess/treasury") == 404
        assert await post("swordfish/--provider=loopring") == 404
        assert await asyncio.gather(*(post() for _ in range(20))) == [202] * 20
    assert [task.result() for task in statuses] == [202, 202]


async def is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
