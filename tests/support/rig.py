"""A worker in its surroundings: both simulators, a real server, a verifying receiver."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

from pydantic import SecretStr

from tests.support.audited import flaws
from tests.support.builders import SECRET
from tests.support.events_schema import assert_valid
from tests.support.replayed import audit
from watcher.journal.log import Record
from watcher.providers.loopring import LoopringAccount, LoopringSettings
from watcher.providers.metakeep import MetaKeepAccount, MetaKeepSettings
from watcher.receiver import Receiver
from watcher.run.worker import Worker
from watcher.sandbox.server import Sandbox
from watcher.settings import (
    AccountSettings,
    EgressSettings,
    RedisSettings,
    Settings,
    SubscriptionSettings,
    WorkerSettings,
)
from watcher.store.history import History
from watcher.store.opening import open_store
from watcher.store.reader import Reader

TREASURY = 10110
ALICE = "alice@example.com"
MK = "0x1456b21890f920110190063921f6bc7f7b027fa6"

_numbers = itertools.count(1)


@dataclass
class Rig:
    """What surrounds the workers of one test. `settings` may be changed before a worker is started."""

    sandbox: Sandbox
    receiver: Receiver
    settings: Settings
    is_damaged: bool = False
    """Set by a test that damages the log or another part of the store: it is not audited at the end."""

    @asynccontextmanager
    async def worker(self, settings: Settings | None = None) -> AsyncIterator[Worker]:
        """A running worker, drained at the end."""
        async with workers(settings or self.settings, f"w{next(_numbers)}") as (worker,):
            yield worker

    def with_short_timeouts(self) -> Settings:
        """The settings with a time-out of 50 ms: what was not read for 200 ms is stale."""
        short = {"timeout": timedelta(milliseconds=50)}
        providers = {
            name: one.model_copy(update=short) for name, one in self.settings.provider_by_name.items()
        }
        return self.settings.model_copy(update={"provider_by_name": providers})

    async def assert_reconciled(self) -> None:
        await assert_reconciled(self.settings, self.receiver)

    async def events(self, count: int, *, within_s: float = 10) -> list[Any]:
        """The first `count` events that the receiver took."""
        async with asyncio.timeout(within_s):
            return await self.receiver.wait_for(count)


async def assert_reconciled(settings: Settings, receiver: Receiver) -> None:
    """After any test, the log leads to the state, and what was sent matches the catalogue."""
    for event in receiver.events:
        assert_valid(json.dumps(event).encode())
    async with open_store(settings.redis) as store:
        pipe, keys = store.pipe, store.keys
        names = {name: one.provider for name, one in settings.account_by_name.items()}
        states = {seen.account: seen async for seen in Reader(pipe, keys).read_states(names)}
        records: dict[str, list[Record]] = {name: [] for name in names}
        async for record in History(pipe, keys).records():
            records.setdefault(record.account, []).append(record)
        assert await flaws(pipe, keys) == []
    for name, seen in states.items():
        assert not seen.damage
        assert audit(records[name], seen.state).findings == []


@asynccontextmanager
async def workers(settings: Settings, *names: str) -> AsyncIterator[list[Worker]]:
    """Workers that run in this process, drained at the end."""
    started = [Worker(settings, name=name) for name in names]
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(worker.run()) for worker in started]
        try:
            yield started
        finally:
            for worker in started:
                worker.stop()
            await asyncio.wait(running)


@asynccontextmanager
async def a_rig(url: str, namespace: str) -> AsyncIterator[Rig]:
    async with Sandbox() as sandbox, Receiver(secrets=[SECRET]) as receiver:
        sandbox.loopring.requests_per_second = None
        sandbox.metakeep.requests_per_second = None
        rig = Rig(sandbox, receiver, some_settings(url, namespace, sandbox, receiver.url))
        yield rig
        if not rig.is_damaged:
            await rig.assert_reconciled()


def some_settings(url: str, namespace: str, sandbox: Sandbox, receiver_url: str) -> Settings:
    """Two accounts polled every 50 ms: shorter than a file may say, so that tests are quick."""
    often: dict[str, Any] = {
        "interval": timedelta(milliseconds=50),
        "pending_interval": timedelta(milliseconds=50),
    }
    accounts: list[AccountSettings] = [
        LoopringAccount(name="treasury", provider="loopring", account_id=TREASURY, **often),
        MetaKeepAccount(name="alice", provider="shop", of={"email": ALICE}, currencies=(MK,), **often),
    ]
    loopring = LoopringSettings(
        name="loopring",
        kind="loopring",
        base_url=sandbox.loopring_url,
        api_key=SecretStr("sandbox"),
        requests_per_second=1000,
    )
    shop = MetaKeepSettings(
        name="shop",
        kind="metakeep",
        base_url=sandbox.metakeep_url,
        api_key=SecretStr("sandbox"),
        requests_per_second=1000,
    )
    return Settings(
        redis=RedisSettings(url=SecretStr(url), namespace=namespace),
        worker=WorkerSettings(drain=timedelta(seconds=5)),
        egress=EgressSettings(allow=(ip_network("127.0.0.0/8"),), allow_http=True),
        provider_by_name={"loopring": loopring, "shop": shop},
        account_by_name={account.name: account for account in accounts},
        subscription_by_name={
            "ops": SubscriptionSettings(
                name="ops", url=SecretStr(receiver_url), secrets=(SecretStr(SECRET),), retries=quick(20)
            )
        },
    )


def quick(attempts: int) -> tuple[timedelta, ...]:
    """Retries fast enough for a test."""
    return (timedelta(0), *[timedelta(milliseconds=20)] * (attempts - 1))
