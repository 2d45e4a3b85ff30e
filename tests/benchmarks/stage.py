"""The stage of the benchmarks: an embedded server as in production, and the settings of a busy worker."""

import argparse
import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from pydantic import SecretStr
from redis.asyncio import Redis

from tests.benchmarks.fast_server import fast_server
from tests.benchmarks.raw_loop import CONCURRENCY
from tests.support.builders import SECRET
from watcher.observe.log import configure
from watcher.providers.loopring import LoopringAccount, LoopringSettings
from watcher.service.serve import loop_factory
from watcher.settings import EgressSettings, RedisSettings, Settings, SubscriptionSettings
from watcher.store.client import connect
from watcher.store.embedded import Embedded
from watcher.store.health import StoreHealth
from watcher.store.pipe import Pipe
from watcher.store.schedule import Schedule

P = TypeVar("P")
F = TypeVar("F")

PROVIDER = "loopring"

ALWAYS_DUE = timedelta(microseconds=1)

_numbers = itertools.count(1)


def a_namespace() -> str:
    """A key prefix that no other measure has."""
    return f"bench{next(_numbers)}"


@dataclass(frozen=True)
class Stage:
    """What all measures of a run share."""

    url: str
    client: Redis
    schedule: Schedule
    health: StoreHealth
    redis_url: str = ""

    async def used_memory(self) -> int:
        return int((await self.client.info("memory"))["used_memory"])

    async def forget_commands(self) -> None:
        await self.client.config_resetstat()

    async def server_us(self) -> float:
        return await server_us(self.client)


async def server_us(client: Redis) -> float:
    """Say what scripts cost the server since its statistics were reset, with what they call.

    Commands that are sent on their own are left out: the statistics add them to those that scripts call. A
    worker sends a few dozen of them a second, and reads each state once.
    """
    spent = await client.info("commandstats")
    return float(sum(spent[name]["usec"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in spent))


@asynccontextmanager
async def a_stage() -> AsyncIterator[Stage]:
    with TemporaryDirectory() as directory, fast_server() as url:
        async with Embedded(Path(directory) / "data") as server, a_stage_at(server.url, url) as stage:
            yield stage


@asynccontextmanager
async def a_stage_at(redis_url: str, url: str) -> AsyncIterator[Stage]:
    """The same, with a Redis and a fast server that run already."""
    async with connect(redis_url) as client, asyncio.TaskGroup() as group:
        pipe = Pipe(client)
        runners = [group.create_task(pipe.run()) for _ in range(2)]
        schedule = Schedule(pipe)
        await schedule.read_clock()
        yield Stage(url, client, schedule, StoreHealth(), redis_url)
        for runner in runners:
            runner.cancel()


def perform(
    measure: Callable[[P], Coroutine[Any, Any, F]],
    arguments: Sequence[str] | None,
    *,
    what: str,
    full: P,
    quick: P,
) -> tuple[F, P]:
    """Measure by the plan that the command line asks for, on a worker's loop; returns that plan as well."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--quick", action="store_true", help="a small form, in seconds")
    plan = quick if parser.parse_args(arguments).quick else full
    return on_a_loop(measure(plan)), plan


def on_a_loop(measuring: Coroutine[Any, Any, F]) -> F:
    """Measure on a worker's loop, which logs as in production."""
    with Path(os.devnull).open("w") as nowhere:
        writer = configure("info", "json", nowhere)
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                return runner.run(measuring)
        finally:
            writer.close()


def say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


def some_settings(
    base_url: str,
    accounts: int,
    *,
    subscriber: str | None = None,
    polls_per_second: float = 1e6,
    interval: timedelta = ALWAYS_DUE,
) -> Settings:
    """Accounts at a provider without a limit, always due; each time under another namespace."""
    provider = LoopringSettings(name=PROVIDER, kind="loopring", base_url=base_url, api_key=SecretStr("key"))
    return Settings(
        redis=RedisSettings(namespace=a_namespace()),
        egress=EgressSettings(allow=(ip_network("127.0.0.0/8"),), allow_http=True),
        provider_by_name={PROVIDER: provider.model_copy(update={"requests_per_second": polls_per_second})},
        account_by_name={
            name: LoopringAccount(name=name, provider=PROVIDER, account_id=1, interval=interval)
            for name in account_names(accounts)
        },
        subscription_by_name={"ops": a_subscription(subscriber)} if subscriber else {},
    )


def a_subscription(url: str) -> SubscriptionSettings:
    return SubscriptionSettings(
        name="ops", url=SecretStr(url), secrets=(SecretStr(SECRET),), max_in_flight=CONCURRENCY
    )


def account_names(count: int) -> list[str]:
    return [f"account-{number}" for number in range(count)]
