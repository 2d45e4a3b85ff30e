"""T44: 256 file descriptors, a thousand subscribers that hang, refuse or answer, and one that is watched."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import cast

from tests.faults.restless_provider import account_name
from tests.faults.scene import BOUNDED, Scene, a_scene
from tests.faults.verdict import emitted_at
from tests.faults.worker_processes import WorkerProcess
from tests.support.builders import SECRET

pytestmark = BOUNDED

DESCRIPTORS = 256
OTHERS = 1000
LAST = 30
ANSWERING = 200
ACCOUNTS = 20
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def test_a_thousand_subscribers_do_not_use_up_the_descriptors_of_a_worker() -> None:
    """The one that is watched is as unknown as the others at first: while each of those that hang has one of
    few places until its first attempt is over, it waits with them for a turn. Then it hardly waits."""
    async with a_scene(accounts=ACCOUNTS) as scene, others() as urls:
        subscribe(scene, urls)
        (worker,) = await scene.start_workers(1, descriptors=DESCRIPTORS)
        await scene.begin(changes_per_second=10)
        begun, most = time.monotonic(), 0
        async with asyncio.timeout(60):  # 15 s on a machine that does nothing else
            while len(tried(worker)) < 0.9 * OTHERS or lately_late_s(scene) > 0.5:
                for _ in range(10):
                    await asyncio.sleep(0.1)
                    most = max(most, worker.descriptors())
        took_s = time.monotonic() - begun
        verdict = await scene.verdict(within_s=50)
        said = worker.log.read_text()
    print(f"at most {most} descriptors, nine of ten tried and the one in time after {took_s:.0f} s")
    assert verdict.problems == []
    assert verdict.repeats == 0
    assert "too many open files" not in said.lower()
    assert DESCRIPTORS // 3 < most < DESCRIPTORS


def lately_late_s(scene: Scene) -> float:
    """Return the seconds from a change to its arrival, in the middle of the last that arrived."""
    return median(arrival.at - emitted_at(arrival) for arrival in scene.receiver.arrivals[-LAST:])


def tried(worker: WorkerProcess) -> set[str]:
    """Name the subscriptions to which an attempt has ended."""
    return {line["subscription"] for line in worker.lines() if line["event"].startswith("delivery.")}


def subscribe(scene: Scene, urls: list[str]) -> None:
    """Give each of the others one account."""
    with (scene.directory / "watcher.toml").open("a") as file:
        for number in range(OTHERS):
            url, account = urls[number % len(urls)], account_name(1 + number % ACCOUNTS)
            file.write(
                f'[[subscriptions]]\nname = "other-{number}"\nurl = "{url}/{number}"\n'
                f'secrets = ["{SECRET}"]\naccounts = ["{account}"]\n'
            )


@asynccontextmanager
async def others() -> AsyncIterator[list[str]]:
    """A third each: no answer, no listener, and an answer with the connection kept."""
    async with AsyncExitStack() as stack:
        serve = asyncio.get_running_loop().create_server
        hanging = await serve(asyncio.Protocol, "127.0.0.1", 0, backlog=1024)
        answering = [await serve(_Answering, "127.0.0.1", 0) for _ in range(ANSWERING)]
        refusing = await serve(asyncio.Protocol, "127.0.0.1", 0)
        nobody = _url(refusing)
        refusing.close()
        for server in (hanging, *answering):
            await stack.enter_async_context(server)
        yield [url for one in answering for url in (_url(hanging), nobody, _url(one))]


def _url(server: asyncio.Server) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


class _Answering(asyncio.Protocol):
    """Answers each request that comes in one piece, as ours do, and keeps the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"}"):
            self._transport.write(OK)
