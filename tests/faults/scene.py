"""A scene for one fault: a server, a restless provider, a recording receiver, and workers.

A test makes its fault happen, then asks for the verdict: it ends the changes, waits until everything is
delivered, drains the workers, and compares. Refuses to be replayed to the microsecond: the seed decides
changes and faults, the machine decides when.
"""

import asyncio
import itertools
import json
import os
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.faults.faulty_proxy import FaultyProxy
from tests.faults.recording_receiver import RecordingReceiver
from tests.faults.restless_provider import RestlessProvider, account_name
from tests.faults.server_clock import ServerClock
from tests.faults.verdict import Verdict, judge
from tests.faults.worker_processes import WorkerProcess
from tests.support.audited import flaws
from tests.support.builders import SECRET
from tests.support.processes import start
from tests.support.servers import DURABLE, ENGINES, RealServer
from watcher.store.client import connect
from watcher.store.history import History
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import Pipe
from watcher.store.queues import BOUNDS

NAMESPACE = "watcher"
SUBSCRIPTION = "ops"

LEASE_S = 3
SHORT_LEASES: Mapping[str, Any] = {"lease_s": LEASE_S}
"""What a dead worker had in hand is free again after so long; as the program comes, it takes 15 s."""

AS_IT_COMES: Mapping[str, Any] = {}

SOON = 'retries = ["0s", "1s", "1s", "1s", "1s", "1s"]'

BOUNDED = pytest.mark.timeout(120)
"""For every test of this suite: on a busy machine they take longer than others may."""

IN_FLIGHT = 32
"""Of one subscription, as it comes: what one worker may have in hand, and leave to be repeated."""

LONG = (pytest.mark.long, pytest.mark.timeout(3600))
"""For the long form of a test: `pytest -m long tests/faults`."""

_TICK_S = 0.05
_AUDIT_S = 300
"""The long soak leaves 160,000 records behind."""

_TEMPLATE = """
accounts_file = "accounts.jsonl"

[redis]
url = "{redis}"

[egress]
allow = ["127.0.0.0/8"]
allow_http = true

[providers.loopring]
base_url = "{provider}"
api_key = "key"
requests_per_second = 2000
timeout = "1s"
settle_polls = 1

[[subscriptions]]
name = "{subscription}"
url = "{receiver}"
secrets = ["${{SECRET}}"]
{retries}
headers = {{ x-worker = "${{WORKER}}" }}
"""


@dataclass(eq=False)
class Scene:
    """Everything around the workers of one test, and the workers."""

    directory: Path
    random: Random
    server: RealServer
    provider: RestlessProvider
    receiver: RecordingReceiver
    redis: Redis
    proxy: FaultyProxy
    faults: Mapping[str, Any]
    """What every worker gets, besides what it is started with."""

    clock: ServerClock | None = None
    """The server's, where the scene was set with one."""

    workers: list[WorkerProcess] = field(default_factory=list)
    keys: Keys = field(default_factory=lambda: Keys(NAMESPACE))
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def go_by(self, url: str, pipe: Pipe) -> None:
        """Let workers keep their state under this URL instead, and the verdict look through this pipe."""
        file = self.directory / "watcher.toml"
        file.write_text(file.read_text().replace(self.server.url, url))
        self.pipe = pipe

    async def start_workers(
        self, count: int, *, python: str | None = None, **faults: Any
    ) -> list[WorkerProcess]:
        """Start workers, and wait until all of them work."""
        started = [await self.start_worker(python=python, **faults) for _ in range(count)]
        for worker in started:
            await worker.logged("worker.started")
        return started

    async def start_worker(
        self,
        *,
        output: int | None = None,
        python: str | None = None,
        api_port: int | None = None,
        **faults: Any,
    ) -> WorkerProcess:
        """Start one, and do not wait for it."""
        name = f"worker-{next(self._numbers)}"
        worker = WorkerProcess(self.directory, name, {**self.faults, **faults}, output, python, api_port)
        await worker.start()
        self.workers.append(worker)
        return worker

    @property
    def running(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers if worker.is_running]

    async def begin(self, changes_per_second: float, *, within_s: float = 20) -> None:
        """Wait until every account has its baseline, then let balances move."""
        await self.until_polled(within_s=within_s)
        self.provider.run(changes_per_second)

    async def until_polled(self, *, within_s: float = 20) -> None:
        """Wait until every account has a state."""
        states = [self.keys.state(account_name(1 + number)) for number in range(self.provider.accounts)]
        async with asyncio.timeout(within_s):
            while not all([await self.pipe.command("EXISTS", key) for key in states]):  # noqa: ASYNC110
                await asyncio.sleep(_TICK_S)

    async def until_delivered(self, more: int, *, within_s: float) -> float:
        """Wait for so many more events; returns how many seconds that took."""
        started, wanted = time.monotonic(), self.receiver.taken + more
        async with asyncio.timeout(within_s):
            while self.receiver.taken < wanted:  # noqa: ASYNC110 - other processes send
                await asyncio.sleep(_TICK_S)
        return time.monotonic() - started

    async def layout(self, *arguments: str) -> dict[str, Any]:
        """Ask `watcher store layout`, which must do it; returns what it prints at the end."""
        code, said, errors = await self.command("store", "layout", "--json", *arguments)
        assert code == 0, errors
        found: dict[str, Any] = json.loads(said)
        return found

    async def command(self, *arguments: str) -> tuple[int | None, str, str]:
        """Run a command of `watcher`; returns its exit code, and what it said on stdout and on stderr."""
        settings = {"SECRET": SECRET, "WORKER": "none"}
        asked = await start(self.directory, settings, *arguments, out=PIPE, errors=PIPE)
        async with asyncio.timeout(_AUDIT_S):
            said, errors = await asked.communicate()
        return asked.returncode, said.decode(), errors.decode()

    async def verdict(
        self,
        *,
        within_s: float = 30,
        spared: Collection[str] = (),
        losses: int = 0,
        wrong_clocks: Collection[str] = (),
        may_say: Collection[str] = (),
    ) -> Verdict:
        """Move every asset once more, wait until all is delivered, drain the workers, and judge.

        `spared` accounts may be behind; `may_say` names log lines that are expected for once.
        """
        await self.provider.rest()
        self.provider.move_all()
        is_told = await self.until_all_is_delivered(within_s=within_s, spared=spared)
        codes = await asyncio.gather(*(worker.terminate() for worker in self.running))
        records = [record async for record in History(self.pipe, self.keys).records()]
        verdict = judge(
            self.receiver.arrivals,
            records,
            self.provider.truth(),
            spared=spared,
            losses=losses,
            wrong_clocks=wrong_clocks,
            is_trimmed=await self._is_log_full()
            or any(worker.lines("store.relieved") for worker in self.workers),
        )
        if not is_told:
            verdict.problems.append(f"not everything was delivered within {within_s} s")
        if any(codes):
            verdict.problems.append(f"workers that were asked to end exited with {codes}")
        verdict.problems += [
            *self._complaints(may_say),
            *await self._leftovers(spared),
            *await self.audit(spared),
            *await flaws(self.pipe, self.keys, spared=spared),
        ]
        print(f"{verdict}, {time.monotonic() - self._started:.1f} s")
        for worker in self.workers if verdict.problems else ():
            print(worker.summary())
        return verdict

    def __post_init__(self) -> None:
        self.pipe = Pipe(self.redis)
        self._started = time.monotonic()

    async def until_all_is_delivered(self, *, within_s: float, spared: Collection[str] = ()) -> bool:
        """Wait until the receiver knows the truth and nothing is in any queue; says if it came to that."""
        true = {name: balance for name, balance in self.provider.truth().items() if name[0] not in spared}
        try:
            async with asyncio.timeout(within_s):
                while not self._is_delivered(true) or await self._waiting(spared):  # noqa: ASYNC110
                    await asyncio.sleep(_TICK_S)
        except TimeoutError:
            return False
        return True

    def _is_delivered(self, true: Mapping[tuple[str, str], Mapping[str, str]]) -> bool:
        balances = self.receiver.balances
        return all(said.items() <= balances.get(name, {}).items() for name, said in true.items())

    async def _is_log_full(self) -> bool:
        """Whether a shard's log reached its bound: a hundred thousand events do not fit."""
        sizes = [await self.pipe.command("HGET", self.keys.sizes(shard), "log") for shard in range(SHARDS)]
        return max(int(size or 0) for size in sizes) > 0.9 * BOUNDS.log

    async def _waiting(self, spared: Collection[str] = ()) -> list[str]:
        """Which accounts have a queue with something in it."""
        queues: list[Any] = [
            await self.pipe.command("ZRANGE", self.keys.queues(shard, SUBSCRIPTION), 0, -1)
            for shard in range(SHARDS)
        ]
        return sorted({name.decode() for queue in queues for name in queue}.difference(spared))

    def _complaints(self, may_say: Collection[str]) -> list[str]:
        """Log lines that no worker should ever write."""
        never = {"bug", "library.failed", "library.warned", "worker.cut_off"}.difference(may_say)
        said = [
            f"{worker.name} logged {line}"
            for worker in self.workers
            for line in worker.lines()
            if line["event"] in never
        ]
        return said[:3] + [
            f"{worker.name} on stderr: {worker.errors}" for worker in self.workers if worker.errors
        ]

    async def _leftovers(self, spared: Collection[str]) -> list[str]:
        letters = [
            dict(zip(fields[::2], fields[1::2], strict=True))
            for shard in range(SHARDS)
            for _, fields in await self.pipe.command("XRANGE", self.keys.dead(shard, SUBSCRIPTION), "-", "+")
        ]
        dead = sum(letter[b"account"].decode() not in spared for letter in letters)
        waiting = await self._waiting(spared)
        return [
            *([f"{dead} dead letters"] if dead else []),
            *([f"queues left: {waiting}"] if waiting else []),
        ]

    async def audit(self, spared: Collection[str] = ()) -> list[str]:
        """Ask `watcher audit`, which must find nothing."""
        _, said, errors = await self.command("audit", "--json")
        accounts = [json.loads(line) for line in said.splitlines()]
        differ = [said for said in accounts if not said["ok"] and said["account"] not in spared]
        if not accounts:
            return [f"audit said nothing: {errors}"]
        return [f"audit finds {len(differ)} accounts that differ, such as {differ[0]}"] if differ else []


@asynccontextmanager
async def a_scene(
    *,
    accounts: int = 100,
    engine: str = "valkey",
    flags: tuple[str, ...] = (),
    through_proxy: bool = False,
    has_clock: bool = False,
    leases: Mapping[str, Any] = SHORT_LEASES,
    retries: str = SOON,
) -> AsyncIterator[Scene]:
    """Set a scene. FAULT_SEED in the environment replays one; a test that fails shows which it was.

    `retries` is text of the subscription; without any they are as they come.
    """
    seed = int(os.environ.get("FAULT_SEED") or SystemRandom().randrange(10**6))
    print(f"FAULT_SEED={seed}")
    random = Random(seed)
    async with AsyncExitStack() as stack:
        # Not in tmp_path: its name may be too long for a unix socket.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="watcher-faults-")))
        place = directory / "server"
        place.mkdir()
        clock = ServerClock(directory) if has_clock else None
        environment = clock.environment if clock else {}
        server = RealServer(ENGINES[engine], place, (*DURABLE, *flags), environment)
        server.start()
        stack.callback(server.kill)
        provider = await stack.enter_async_context(RestlessProvider(accounts, random))
        receiver = await stack.enter_async_context(RecordingReceiver())
        proxy = await stack.enter_async_context(FaultyProxy(server.socket))
        redis = await stack.enter_async_context(connect(server.url))
        text = _TEMPLATE.format(
            redis=proxy.url if through_proxy else server.url,
            provider=provider.url,
            receiver=receiver.url,
            subscription=SUBSCRIPTION,
            retries=retries,
        )
        (directory / "watcher.toml").write_text(text)
        (directory / "accounts.jsonl").write_text("".join(map(_account_line, range(1, accounts + 1))))
        scene = Scene(directory, random, server, provider, receiver, redis, proxy, leases, clock)
        try:
            yield scene
        finally:
            await asyncio.gather(*(worker.kill() for worker in scene.running))


def _account_line(account: int) -> str:
    wish = {"name": account_name(account), "provider": "loopring", "account_id": account}
    return json.dumps({**wish, "interval": "1s", "pending_interval": "1s"}) + "\n"
