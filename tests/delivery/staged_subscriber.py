"""A subscriber whose answers a test sets, and queues with deliveries for it, without any provider."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_network
from types import TracebackType
from typing import Any, NamedTuple, Self

import pytest
from aiohttp import web
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.support.builders import SECRET
from tests.support.json_fields import assert_documented
from tests.support.rig import workers
from watcher.cli import main
from watcher.engine import breaker
from watcher.journal.events import Delivery
from watcher.receive import verify
from watcher.run.worker import Worker
from watcher.settings import EgressSettings, RedisSettings, Settings, SubscriptionSettings, WorkerSettings
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import Pipe
from watcher.store.queues import Breakers, Queues
from watcher.store.reader import Reader
from watcher.store.schedule import Schedule


class Arrival(NamedTuple):
    """One attempt: when it came, what it said, how many were under way with it, how it was answered."""

    at: float
    event: Any
    body: bytes
    attempt: int
    in_flight: int
    status: int


@dataclass(eq=False)
class StagedSubscriber:
    """Verifies and answers as its first four fields say at the moment; `async with` it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = "what it says"
    delay_s: float = 0.0
    arrivals: list[Arrival] = field(default_factory=list)
    in_flight: int = 0

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/hooks/t0ken"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.in_flight += 1
        status, headers = self.status, self.headers
        try:
            body = await request.read()
            event = verify(request.headers, body, SECRET)
            attempt = int(request.headers["watcher-attempt"])
            self.arrivals.append(Arrival(time.monotonic(), event, body, attempt, self.in_flight, status))
            await asyncio.sleep(self.delay_s)
        finally:
            self.in_flight -= 1
        return web.Response(status=status, headers=headers, text=self.text)

    @property
    def taken(self) -> list[Any]:
        """The events that it took, in their order of arrival, repeats included."""
        return [arrival.event for arrival in self.arrivals if 200 <= arrival.status < 300]

    async def until(self, claim: Callable[[], bool], *, within_s: float = 10) -> None:
        async with asyncio.timeout(within_s):
            while not claim():  # noqa: ASYNC110 - the program has no signal for it
                await asyncio.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Backlogs:
    """The backlogs of a namespace's subscriptions, to be filled and read."""

    settings: Settings
    queues: Queues
    letters: Reader
    breakers: Breakers
    pipe: Pipe
    keys: Keys

    async def queue(self, accounts: Sequence[str], numbers: Sequence[int] = (1,), to: str = "ops") -> None:
        for account in accounts:
            await self.queues.enqueue(to, account, [a_sample(account, number, to) for number in numbers])

    async def until_nothing_is_due(self) -> None:
        """Wait until every worker knows that nothing is due for delivery."""
        async with asyncio.timeout(10):
            while any([await self.queues.due_subscriptions(shard) for shard in range(SHARDS)]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # the schedule has no signal

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Worker]:
        """A running worker, drained at the end."""
        async with workers(self.settings, "w") as (worker,):
            yield worker


def lines_of(logged: list[Any], event: str) -> list[Any]:
    """The lines of one event, in what workers of this process log."""
    return [line for line in logged if line["event"] == event]


def a_sample(account: str, number: int, to: str = "ops") -> Delivery:
    """A delivery whose body says whose it is; sequences rise by one."""
    event_id = f"evt_{account}_{number}"
    says = {
        "id": event_id,
        "type": "total.increased",
        "data": {"account": {"name": account}, "sequence": number},
    }
    content = json.dumps(says).encode()[:-1]
    return Delivery(event_id, "total.increased", number, content, to, number - 1 or None)


def backlogs_of(client: Redis, url: str, namespace: str, **url_by_name: str) -> Backlogs:
    """A namespace with these subscriptions; their retries are quick."""
    settings = some_settings(url, namespace, {name: {"url": url} for name, url in url_by_name.items()})
    pipe, keys = Pipe(client), Keys(namespace)
    return Backlogs(
        settings, Queues(Schedule(pipe), keys), Reader(pipe, keys), Breakers(pipe, keys), pipe, keys
    )


def some_settings(url: str, namespace: str, subscriptions: Mapping[str, Mapping[str, Any]]) -> Settings:
    quick = (timedelta(0), *[timedelta(milliseconds=20)] * 49)
    return Settings(
        redis=RedisSettings(url=SecretStr(url), namespace=namespace),
        worker=WorkerSettings(drain=timedelta(seconds=5)),
        egress=EgressSettings(allow=(ip_network("127.0.0.0/8"),), allow_http=True),
        provider_by_name={},
        account_by_name={},
        subscription_by_name={
            name: SubscriptionSettings.model_validate(
                {"name": name, "secrets": (SECRET,), "retries": quick, **fields}
            )
            for name, fields in subscriptions.items()
        },
    )


class Ended(NamedTuple):
    """How a command ended."""

    code: object
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class CommandLine:
    """Runs `watcher` in this process, beside a worker or alone, with the configuration of a namespace."""

    def __init__(self, settings: Settings, path: Any, capsys: pytest.CaptureFixture[str]) -> None:
        self._path = path
        self._capsys = capsys
        tables = "".join(
            f'[[subscriptions]]\nname = "{name}"\nurl = "{each.url.get_secret_value()}"\n'
            f'secrets = ["{SECRET}"]\nevents = {json.dumps(each.events or ["*"])}\n'
            f"max_backlog = {each.max_backlog}\n"
            for name, each in settings.subscription_by_name.items()
        )
        redis = settings.redis
        path.write_text(
            f'[redis]\nurl = "{redis.url.get_secret_value()}"\nnamespace = "{redis.namespace}"\n'
            '[egress]\nallow = ["127.0.0.0/8"]\nallow_http = true\n'
            '[providers.loopring]\napi_key = "key"\n'
            '[[accounts]]\nname = "treasury"\nprovider = "loopring"\naccount_id = 10110\n' + tables
        )

    async def __call__(self, name: str, *arguments: str) -> Ended:
        return await asyncio.to_thread(self._run, name, arguments)

    def _run(self, name: str, arguments: Sequence[str]) -> Ended:
        with pytest.raises(SystemExit) as end:
            main([name, "--config", str(self._path), *arguments])
        out, err = self._capsys.readouterr()
        assert_documented([name, *arguments], out)
        return Ended(end.value.code, out, err)


def inactive(monkeypatch: pytest.MonkeyPatch, *rests_ms: int) -> None:
    """Open breakers for so long."""
    monkeypatch.setattr(breaker, "BACKOFF_MS", rests_ms)
