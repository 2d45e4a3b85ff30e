"""A store that loses the directory, or its last seconds, gets it back from its workers."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, cast

import pytest
from pydantic import SecretStr

from tests.faults.scene import BOUNDED, LONG
from tests.support.builders import SECRET
from tests.support.directory import Programs, with_key
from tests.support.provider_staging import loopring_settings
from tests.support.servers import DURABLE, ENGINES, RealServer, real_server
from tests.support.stores import Store, a_store, running
from watcher.engine.loop import Neighbours
from watcher.journal.interest import Interest
from watcher.run.directory import Followed
from watcher.settings import RedisSettings, Settings
from watcher.store.client import connect
from watcher.store.directory import KINDS, Directory, Kind, Record, version_of
from watcher.store.inventory import StoreAudit
from watcher.store.keys import SHARDS

pytestmark = BOUNDED

NAMES = [f"n{number}" for number in range(300)]
Name = tuple[Kind, str]


class Idle:
    """Takes differences over, and does nothing with them."""

    def __init__(self, file: Settings) -> None:
        self.settings = file
        self.interest = Interest({})
        self.moved = set[str]()

    async def change(self, _: object) -> None:
        await asyncio.sleep(0)


def a_file(namespace: str) -> Settings:
    redis = RedisSettings(url=SecretStr("redis://127.0.0.1:1/0"), namespace=namespace)
    providers = {"loopring": loopring_settings()}
    file = Settings(redis=redis, provider_by_name=providers, account_by_name={}, subscription_by_name={})
    return with_key(file)


@asynccontextmanager
async def a_holder(server: RealServer, namespace: str) -> AsyncIterator[Followed]:
    """What one worker holds of the directory, over connections of its own."""
    async with connect(server.url) as client:
        store, file = a_store(client, namespace), a_file(namespace)
        async with running(store.pipe):
            directory = Directory(store.pipe, store.keys)
            idle = cast(Any, Idle(file))
            yield Followed(directory, idle, Neighbours(), now_ms=lambda: 1)


class Client:
    """A program that adds, edits and deletes at random, and remembers which writes were acknowledged."""

    def __init__(self, store: Store, namespace: str, random: Random, asked: Followed) -> None:
        self.directory = Directory(store.pipe, store.keys)
        self.acknowledged: dict[Name, tuple[bytes, int] | None] = {}
        self._programs = Programs(self.directory, namespace)
        self._random = random
        self._asked = asked

    async def write(self, count: int, *, is_followed: bool = True) -> None:
        """Write; the worker that was asked follows at once, unless it dies before."""
        for _ in range(count):
            kind, name = self._random.choice(KINDS), self._random.choice(NAMES)
            if self._random.random() < 0.3:
                if (await self.directory.delete(kind, name)).outcome == "missing":
                    await self._asked.follow_now()  # the store may have lost it, and gets it back
                    await self.directory.delete(kind, name)
                self.acknowledged[kind, name] = None
            else:
                number = self._random.randrange(10**6)
                write = (
                    self._programs.account(name, "loopring", account_id=number)
                    if kind == "account"
                    else self._programs.subscription(
                        name, f"https://example.com/{number}", secrets={SECRET: None}
                    )
                )
                outcome, version = await self.directory.put(write)
                assert outcome == "done"
                self.acknowledged[kind, name] = write.encrypted, version
            if is_followed:
                await self._asked.follow_now()

    @property
    def expected(self) -> dict[Name, tuple[bytes, int]]:
        return {name: acknowledged for name, acknowledged in self.acknowledged.items() if acknowledged}


def held_by(holder: Followed) -> dict[Name, tuple[bytes, int]]:
    known = {(kind, name): holder.get(kind, name) for kind in KINDS for name in holder.names(kind)}
    return {place: seen(one.record) for place, one in known.items() if one}


def versions(holder: Followed) -> dict[Name, int]:
    known = {(kind, name): holder.get(kind, name) for kind in KINDS for name in holder.names(kind)}
    return {place: one.record.version for place, one in known.items() if one}


def seen(record: Record) -> tuple[bytes, int]:
    """What a client sees of a record: what it wrote, and its ETag."""
    return record.encrypted, record.edited


@pytest.mark.parametrize("engine", [*ENGINES])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=LONG) for seed in range(2, 40))])
async def test_workers_write_again_what_the_store_lost_and_delete_nothing(
    engine: str, namespace: str, seed: int
) -> None:
    random = Random(seed)
    with real_server(engine, *DURABLE) as server:
        async with (
            connect(server.url) as client,
            a_holder(server, namespace) as asked,
            a_holder(server, namespace) as other,
        ):
            store = a_store(client, namespace)
            await store.roster.enroll({"loopring": []}, now_ms=1)
            programs, kept = Client(store, namespace, random, asked), server.directory / "appendonlydir"
            earlier = server.directory / "earlier"
            await programs.write(200, is_followed=False)
            for holder in (asked, other):
                await holder.begin(a_file(namespace))
            for loss in ("last seconds", "everything", "its file", "last seconds"):
                shutil.copytree(kept, earlier)
                # What only the worker that was asked knows is given again by that one alone.
                await programs.write(60)
                await other.follow()
                await programs.write(60)
                last = max(map(version_of, await programs.directory.heads()))
                known = versions(asked)
                if loss == "everything":
                    await client.flushall()
                else:
                    server.kill()
                    shutil.rmtree(kept)
                    if loss == "last seconds":
                        earlier.rename(kept)
                    server.start()
                shutil.rmtree(earlier, ignore_errors=True)
                await store.roster.enroll({"loopring": []}, now_ms=1, remove=False)
                await programs.write(random.choice([0, 5, 40]), is_followed=False)
                for _ in range(4):  # one may undo what another one knows better, and gets an error
                    await asyncio.gather(asked.follow(), other.follow())
                found = [one async for one in programs.directory.read_all()]
                there = {(one.kind, one.name): seen(one) for part in found for one in part.records}
                assert there == programs.expected, loss
                for holder in (asked, other):
                    assert held_by(holder) == there, loss
                new = [version for place, version in versions(asked).items() if version != known.get(place)]
                assert min(new) > last, "no version comes twice"
                audit = StoreAudit(store.pipe, store.keys)
                flaws = [flaw for shard in range(SHARDS) for flaw in (await audit.of_shard(shard)).flaws]
                assert flaws == [], loss
