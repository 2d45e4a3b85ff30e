"""What very many accounts cost one worker: its start, and two polls of each, with answers made up here.

The worker is a whole one, on an embedded server of its own. Every account is enrolled, claimed and committed
at its first poll, claimed and touched at its second. What the provider's answers cost is not in it.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from unittest.mock import patch

from pydantic import SecretStr
from redis.asyncio import Redis

from tests.benchmarks.fast_server import still_body
from tests.benchmarks.reload import ticking
from tests.benchmarks.stage import PROVIDER, say, server_us, some_settings
from tests.benchmarks.tables import Row
from tests.support.memory import peak_mib
from watcher.providers.http import ProviderClient
from watcher.run.worker import Worker
from watcher.settings import AccountSettings, Settings
from watcher.store.client import connect
from watcher.store.embedded import Embedded
from watcher.store.keys import Keys
from watcher.store.members import Roster

MOST_MS = 50
"""How long the event loop may stand still."""

_HOUR = timedelta(hours=1)
_MADE_DUE_AT_ONCE = 10_000
_TICK_S = 0.02


class Phase(NamedTuple):
    """What one phase took. `busy_ms`: the most that the loop worked between two turns."""

    took_s: float
    cpu_us: float
    server_us: float
    busy_ms: float

    def rows(self, what: str, count: int) -> Iterator[Row]:
        yield Row(what, f"{self.took_s:,.1f}")
        yield Row("- µs of this process for each", f"{self.cpu_us / count:.0f}")
        yield Row("- µs of commands in Redis for each", f"{self.server_us / count:.1f}")
        yield Row(
            "- ms for which the loop stood still at most", f"{self.busy_ms:.0f}", at_least=f"≤ {MOST_MS}"
        )


@dataclass
class Many:
    """A worker with many accounts, and how far it came."""

    worker: Worker
    client: Redis
    found: list[Row] = field(default_factory=list)

    @property
    def accounts(self) -> int:
        return len(self.worker.settings.account_by_name)

    @property
    def has_begun(self) -> bool:
        """Whether it has enrolled all accounts, and claims them."""
        return bool(self.worker.loop and self.worker.loop.turned_at_by_name)

    def polled(self, outcome: str) -> int:
        return self.worker.counters.by_poll[PROVIDER, outcome]

    async def phase(
        self, what: str, is_over: Callable[[], bool], begin: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Begin something, and wait until it is over."""
        say(what)
        await self.client.config_resetstat()
        with ticking() as ticker:
            at, cpu_s = time.monotonic(), time.process_time()
            if begin:
                await begin()
            while not is_over():  # noqa: ASYNC110 - the worker only counts
                await asyncio.sleep(_TICK_S)
            took_s, cpu_s = time.monotonic() - at, time.process_time() - cpu_s
        spent_us = await server_us(self.client)
        phase = Phase(took_s, 1e6 * cpu_s, spent_us, 1000 * ticker.busy_s)
        self.found += phase.rows(f"{what}, s", self.accounts)

    async def make_due(self) -> None:
        assert self.worker.opened
        pipe, names = self.worker.opened.schedule.pipe, [*self.worker.settings.account_by_name]
        roster = Roster(pipe, Keys(self.worker.settings.redis.namespace))
        for start in range(0, len(names), _MADE_DUE_AT_ONCE):
            await roster.make_due(PROVIDER, names[start : start + _MADE_DUE_AT_ONCE], now_ms=pipe.now_ms())


async def measure_many(url: str, accounts: int) -> list[Row]:
    """Let a worker begin with so many accounts of the provider at `url`, and poll each of them twice."""
    body = still_body()

    async def ask(_: ProviderClient, __: AccountSettings) -> tuple[bytes, ...]:
        return (body,)

    say(f"{accounts:,} accounts")
    with TemporaryDirectory() as directory, patch.object(ProviderClient, "ask", ask):
        data_dir = Path(directory) / "data"
        async with Embedded(data_dir, max_memory="16GB") as server, connect(server.url) as client:
            many = Many(Worker(_settings(url, accounts, server.url), name="many"), client)
            gc.collect()
            gc.freeze()  # as what is read from files is
            running = asyncio.create_task(many.worker.run())
            await many.phase(f"start with {accounts:,} accounts", lambda: many.has_begun)
            await many.phase("their first polls", lambda: many.polled("committed") >= accounts)
            is_over = lambda: many.polled("unchanged") >= accounts  # noqa: E731
            await many.phase("their polls that find nothing new", is_over, many.make_due)
            used = (await client.info("memory"))["used_memory"]
            many.worker.stop()
            await running
    return [
        *many.found,
        Row("- bytes of Redis for each, the log included", f"{used / accounts:,.0f}"),
        Row("- MB of this process at most", f"{peak_mib():,.0f}"),
    ]


def _settings(url: str, accounts: int, server: str) -> Settings:
    settings = some_settings(f"{url}/still", accounts, interval=_HOUR)
    redis = settings.redis.model_copy(update={"url": SecretStr(server)})
    return settings.model_copy(update={"redis": redis})
