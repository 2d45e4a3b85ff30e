"""A receiver that is killed, refuses events and loses its database recovers by pulling alone."""

import asyncio
import json
import sqlite3
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.docs.blocks import BLOCKS
from tests.faults.scene import BOUNDED, LONG, SUBSCRIPTION, Scene, a_scene
from tests.faults.worker_processes import TOKEN, WorkerProcess
from tests.support.audited import flaws
from tests.support.directory import KEY
from tests.support.processes import start
from tests.support.servers import a_free_port

pytestmark = BOUNDED

PROGRAM = Path(__file__).with_name("pulling_receiver.py")
_TICK_S = 0.05


@dataclass
class Receiver:
    """The program of RECEIVING.md in a process of its own, beside a scene's workers, and its database."""

    scene: Scene
    api_port: int
    port: int = field(default_factory=a_free_port)
    secret: str = ""
    token: str = ""
    process: Process | None = None

    @property
    def database(self) -> Path:
        return self.scene.directory / "receiver.db"

    async def subscribe(self) -> None:
        """Have the operator put the subscription, whose answer has its secret and its token."""
        headers = {"authorization": f"Bearer {TOKEN}"}
        body = {"url": f"http://127.0.0.1:{self.port}/", "retries": ["0s"]}
        url = f"http://127.0.0.1:{self.api_port}/v1/subscriptions/{SUBSCRIPTION}"
        async with asyncio.timeout(20), ClientSession() as session:
            status = 503  # while the worker starts
            while status == 503:
                await asyncio.sleep(_TICK_S)
                async with session.put(url, json=body, headers=headers) as answer:
                    status, made = answer.status, await answer.json()
        assert status == 201, made
        (self.secret,), self.token = made["secrets"], made["token"]

    async def start(self) -> None:
        (text,) = (one.text for one in BLOCKS if "Journal(" in one.text)
        for old, new in (
            ("https://watcher.example.com", f"http://127.0.0.1:{self.api_port}"),
            ("the token that PUT showed", self.token),
        ):
            assert old in text
            text = text.replace(old, new)
        (self.scene.directory / "receiver.py").write_text(text)
        settings = {"PROGRAM": "receiver.py", "PORT": str(self.port), "SECRET": self.secret, "REFUSES": "0.1"}
        with self.said.open("ab") as said:
            program = (sys.executable, str(PROGRAM))
            self.process = await start(self.scene.directory, settings, out=said, program=program)

    @property
    def said(self) -> Path:
        return self.scene.directory / "receiver.log"

    async def kill(self) -> None:
        assert self.process
        assert self.process.returncode is None, self.said.read_text()[-2000:]
        self.process.kill()
        await self.process.wait()

    async def lose_all(self) -> None:
        """Die, and leave no database to the next one."""
        await self.kill()
        for file in self.scene.directory.glob("receiver.db*"):
            file.unlink()

    def balances(self) -> dict[tuple[str, str], Mapping[str, str]]:
        """What its database says, by account and asset."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT account, kept FROM journal WHERE account > ''").fetchall()
        kept = {account: json.loads(said)["balances"] for account, said in rows}
        return {(account, asset): one for account, of in kept.items() for asset, one in of.items()}

    def events(self) -> int:
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(*) FROM seen").fetchone()[0])

    async def until_it_agrees(self, *, within_s: float = 20) -> None:
        """Wait until its database says what the provider does."""
        differ: list[object] = ["it has no database"]
        try:
            async with asyncio.timeout(within_s):
                while differ:
                    await asyncio.sleep(_TICK_S)
                    if self.database.exists():
                        differ = self._differing()
        except TimeoutError:
            raise AssertionError(f"{len(differ)} differ, such as {differ[:3]}") from None

    def _differing(self) -> list[object]:
        try:
            held = self.balances()
        except sqlite3.OperationalError:  # it is just being made
            return ["it has no tables"]
        truth = self.scene.provider.truth()
        return [
            (place, said, held.get(place))
            for place, said in truth.items()
            if not said.items() <= held.get(place, {}).items()
        ]


@asynccontextmanager
async def a_receiver(scene: Scene) -> AsyncIterator[Receiver]:
    receiver = Receiver(scene, a_free_port())
    file = scene.directory / "watcher.toml"
    text = file.read_text().partition("[[subscriptions]]")[0]
    file.write_text(f'{text}\n[api]\nsecret_key = "{KEY}"\n')
    try:
        yield receiver
    finally:
        if receiver.process and receiver.process.returncode is None:
            await receiver.kill()


async def begin(scene: Scene, receiver: Receiver) -> WorkerProcess:
    worker = await scene.start_worker(api_port=receiver.api_port)
    await worker.logged("worker.started")
    await receiver.subscribe()
    await scene.begin(changes_per_second=150)
    await receiver.start()
    return worker


@pytest.mark.parametrize(("rounds", "between_s"), [(1, 0.5), pytest.param(20, 3.0, marks=LONG)])
async def test_a_receiver_that_lost_its_database_reconciles_by_pulling_alone(
    rounds: int, between_s: float
) -> None:
    async with a_scene(accounts=40) as scene, a_receiver(scene) as receiver:
        worker = await begin(scene, receiver)
        for _ in range(rounds):
            await asyncio.sleep(between_s)
            await receiver.kill()
            await receiver.start()
            await asyncio.sleep(between_s)
            await receiver.lose_all()
            await asyncio.sleep(scene.random.random())
            await receiver.start()
            await asyncio.sleep(between_s)
            await worker.kill()
            worker = await scene.start_worker(api_port=receiver.api_port)
            await worker.logged("worker.started")
        await worker.logged("delivery.dead")  # it did not arrive, and is pulled
        await scene.provider.rest()
        scene.provider.move_all()
        await receiver.until_it_agrees(within_s=30)
        taken = receiver.events()
        await receiver.lose_all()
        await receiver.start()
        await receiver.until_it_agrees()
        assert receiver.events() < taken, "nothing but balances, and what came since"
        assert receiver.process
        assert receiver.process.returncode is None, receiver.said.read_text()[-2000:]
        assert await worker.terminate() == 0
        assert await scene.audit() == []
        assert await flaws(scene.pipe, scene.keys) == []
        assert not [line for one in scene.workers for line in one.lines("bug")]
