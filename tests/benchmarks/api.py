"""What requests to /v1 cost the deliveries beside them, how many it takes, and what an event to 2,000 costs.

    python -m tests.benchmarks.api            # about two minutes
    python -m tests.benchmarks.api --quick    # seconds: shows that it runs

One worker runs here, on an embedded store, with accounts that change every second, each change delivered.
The program that calls is a process of its own. Latency is from the event's commit to its arrival. First
nothing is asked; then almost as much as one token may, which is 100 requests a second; then as much as is
answered, with that limit off: reads, then writes. Exits 1 where 90 requests a second cost the p99 of
deliveries more than 50 ms.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import aiohttp
from pydantic import SecretStr

from tests.benchmarks.fast_server import fast_server
from tests.benchmarks.raw_loop import receipts
from tests.benchmarks.reload import ticking
from tests.benchmarks.stage import PROVIDER, on_a_loop, perform, say, some_settings
from tests.support import ROOT
from tests.support.api import OPERATORS
from tests.support.builders import SECRET
from tests.support.directory import with_key
from watcher.api import access
from watcher.api.access import Address
from watcher.run.worker import Worker
from watcher.service.exposure import Exposure, exposed
from watcher.settings import RedisSettings, Settings, SubscriptionSettings
from watcher.store.embedded import Embedded
from watcher.store.history import History
from watcher.store.keys import Keys

MORE_MS = 50
"""How much above the quiet p99 that of deliveries may be while one token is used as much as it may be."""

PACED = 90
"""Requests a second: a little less than one token may make, as a late answer must not be one too many."""

_ADDED = "added"
_AT_ONCE = 8
_PATIENCE_S = 60


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    accounts: int = 200
    seconds: float = 15
    fan_out: int = 2000
    times: int = 7
    every_s: int = 3
    warm_up_s: float = 2.0


QUICK = Plan(accounts=20, seconds=1.2, fan_out=100, times=1, every_s=1, warm_up_s=0.2)


class Phase(NamedTuple):
    """What deliveries took, in ms, sorted; how many requests were answered a second, and in how many ms; the
    most that the loop worked between two turns; and the part of a core that the worker took."""

    latencies_ms: Sequence[float]
    per_second: float
    answer_ms: Sequence[float]
    busy_ms: float
    core: float

    def line(self, what: str) -> str:
        asked = f"{self.per_second:>9,.0f}{_percentiles(self.answer_ms)}" if self.answer_ms else ""
        return f"{what:<28}{_percentiles(self.latencies_ms)}{self.busy_ms:>8.0f}{self.core:>8.0%}{asked}"


class FanOut(NamedTuple):
    """One event to many subscriptions: in how many seconds all had it, how many of these the worker had a
    core, and the most that its loop worked between two turns."""

    seconds: Sequence[float]
    core_s: Sequence[float]
    busy_ms: float


class Found(NamedTuple):
    phases: dict[str, Phase]
    fan_out: FanOut

    def faults(self) -> list[str]:
        quiet = _percentile(self.phases["nothing"].latencies_ms, 99)
        limit = quiet + MORE_MS
        return [
            f"{what}: the p99 of deliveries is {MORE_MS} ms above the quiet one"
            for what in (f"{PACED} reads a second", f"{PACED} writes a second")
            if _percentile(self.phases[what].latencies_ms, 99) > limit
        ]


def _percentile(values: Sequence[float], percent: int) -> float:
    return values[min(len(values) - 1, len(values) * percent // 100)]


def _percentiles(values: Sequence[float]) -> str:
    return f"{_percentile(values, 50):>8.1f}{_percentile(values, 99):>8.1f}"


@asynccontextmanager
async def a_worker(settings: Settings) -> AsyncIterator[Worker]:
    """A whole worker on an embedded store."""
    with TemporaryDirectory() as directory:
        async with Embedded(Path(directory) / "data") as server:
            redis = RedisSettings(url=SecretStr(server.url), namespace="bench")
            worker = Worker(settings.model_copy(update={"redis": redis}), name="measured")
            running = asyncio.create_task(worker.run())
            try:
                yield worker
            finally:
                worker.stop()
                await running


async def measure(plan: Plan) -> Found:
    with fast_server() as url:
        return Found(await _beside_traffic(plan, url), await _fan_out(plan, url))


async def _beside_traffic(plan: Plan, url: str) -> dict[str, Phase]:
    settings = some_settings(
        f"{url}/restless", plan.accounts, subscriber=f"{url}/timed", interval=timedelta(seconds=1)
    )
    provider = settings.provider_by_name[PROVIDER]
    added = provider.model_copy(
        update={"name": _ADDED, "base_url": f"{url}/each", "requests_per_second": 100}
    )
    settings = with_key(settings.model_copy(update={"provider_by_name": {PROVIDER: provider, _ADDED: added}}))
    exposure, found = Exposure(Address("127.0.0.1", 0), OPERATORS, has_api=True), dict[str, Phase]()
    async with a_worker(settings) as worker, exposed(worker, exposure) as address:
        async with asyncio.timeout(_PATIENCE_S):
            while worker.counters.deliveries < plan.accounts:  # noqa: ASYNC110 - it only counts
                await asyncio.sleep(0.05)
        await asyncio.sleep(plan.warm_up_s)
        for what, kind, per_second in (
            ("nothing", "", 0),
            (f"{PACED} reads a second", "reads", PACED),
            (f"{PACED} writes a second", "writes", PACED),
            ("reads, as many as it takes", "reads", 0),
            ("writes, as many as it takes", "writes", 0),
        ):
            say(what)
            found[what] = await _phase(worker, url, f"{address}", kind, per_second, plan.seconds)
    return found


async def _phase(
    worker: Worker, url: str, address: str, kind: str, per_second: float, seconds: float
) -> Phase:
    limit = access.PER_SECOND
    access.PER_SECOND = limit if per_second else 10**9
    await receipts(url)
    core_s, begin = time.process_time(), time.monotonic()
    try:
        with ticking() as ticker:
            if kind:
                asked = await _ask_beside(address, kind, per_second, seconds)
            else:
                asked = []
                await asyncio.sleep(seconds)
    finally:
        access.PER_SECOND = limit
    core = (time.process_time() - core_s) / (time.monotonic() - begin)
    arrived, ahead_s = await receipts(url), time.time() - time.monotonic()
    assert worker.opened
    records = History(worker.opened.schedule.pipe, Keys("bench")).records()
    took = [
        1000 * (arrived[record.content["id"]] + ahead_s) - record.content["data"]["sequence"]
        async for record in records
        if record.content.get("id") in arrived
    ]
    return Phase(sorted(took), len(asked) / seconds, sorted(asked), 1000 * ticker.busy_s, core)


async def _ask_beside(address: str, kind: str, per_second: float, seconds: float) -> list[float]:
    """Let a process of its own ask; returns how many ms each answer took."""
    command = ("-m", "tests.benchmarks.api", "--ask", address, kind, str(per_second), str(seconds))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, kind
    return [float(each) for each in json.loads(out)]


async def ask(address: str, kind: str, per_second: float, seconds: float) -> list[float]:
    """Ask for so long, at an even pace or as fast as answers come; returns how many ms each answer took."""
    took, numbers, begin = list[float](), itertools.count(), time.monotonic()
    mark, free = int(time.time()), begin

    async def one_after_the_other(session: aiohttp.ClientSession) -> None:
        nonlocal free
        for number in numbers:
            turn = max(free, time.monotonic())  # what was missed is not made up for
            free = turn + 1 / per_second if per_second else 0.0
            await asyncio.sleep(turn - time.monotonic())
            if (asked := time.monotonic()) > begin + seconds:
                return
            method, path, body = _request(kind, number, mark)
            async with session.request(method, f"http://{address}/v1{path}", json=body) as answer:
                await answer.read()
                assert answer.status < 300, (path, answer.status, await answer.text())
            took.append(1000 * (time.monotonic() - asked))

    headers = {"authorization": f"Bearer {OPERATORS}"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(one_after_the_other(session))
    return took


def _request(kind: str, number: int, mark: int) -> tuple[str, str, object]:
    """Make the request of that number: reads in turn, or an account and a subscription that are new."""
    if kind == "reads":
        paths = (
            *("/accounts/account-7", "/accounts/account-7/balances", "/accounts?limit=100"),
            *("/subscriptions/ops", "/events?limit=100", "/events?limit=100&account=account-7"),
        )
        return "GET", paths[number % len(paths)], None
    name = f"new-{mark}-{number}"
    if number % 2:
        url = "http://127.0.0.1:1999/hooks"
        return "PUT", f"/subscriptions/{name}", {"url": url, "accounts": [f"new-{mark}-{number - 1}"]}
    # An account id is below 2**31 there: four digits of the mark leave 100,000 numbers to each run.
    return "PUT", f"/accounts/{name}", {"provider": _ADDED, "account_id": mark % 10**4 * 10**5 + number + 1}


async def _fan_out(plan: Plan, url: str) -> FanOut:
    """Let one account change, whose events are for all subscriptions; until all have the event."""
    say(f"one event to {plan.fan_out:,} subscriptions")
    names = [f"to-{number}" for number in range(plan.fan_out)]
    settings = some_settings(f"{url}/restless", 1, interval=timedelta(seconds=plan.every_s)).model_copy(
        update={
            "subscription_by_name": {
                name: SubscriptionSettings(
                    name=name, url=SecretStr(f"{url}/{name}"), secrets=(SecretStr(SECRET),)
                )
                for name in names
            }
        }
    )
    seconds, core_s, busy_ms = list[float](), list[float](), 0.0
    async with a_worker(settings) as worker, asyncio.timeout(_PATIENCE_S):
        counters = worker.counters
        for number in range(1, plan.times + 2):  # the first one opens connections
            while counters.changes <= number:  # noqa: ASYNC110 - it only counts; one is the baseline
                await asyncio.sleep(0.002)
            with ticking() as ticker:
                at, core_at = time.monotonic(), time.process_time()
                while counters.deliveries < plan.fan_out * number:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
                seconds.append(time.monotonic() - at)
                core_s.append(time.process_time() - core_at)
            busy_ms = max(busy_ms, 1000 * ticker.busy_s if number > 1 else 0.0)
    return FanOut(sorted(seconds[1:]), sorted(core_s[1:]), busy_ms)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--ask", nargs=4, help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args(arguments)
    if given.ask:
        address, kind, per_second, seconds = given.ask
        print(json.dumps(on_a_loop(ask(address, kind, float(per_second), float(seconds)))))
        return 0
    found, plan = perform(
        measure, rest, what="What requests to /v1 cost deliveries.", full=Plan(), quick=QUICK
    )
    print(f"{'ms: deliveries':<28}     p50     p99    loop    core a second     p50     p99")
    for what, phase in found.phases.items():
        print(phase.line(what))
    fan_out = found.fan_out
    median_s, core_s = statistics.median(fan_out.seconds), statistics.median(fan_out.core_s)
    print(
        f"one event to {plan.fan_out:,} subscriptions: all had it within {median_s:.2f} s "
        f"({fan_out.seconds[-1]:.2f} at most), of which the worker had a core for {core_s:.2f} s; its loop "
        f"worked {fan_out.busy_ms:.0f} ms at most between two turns"
    )
    for fault in (faults := found.faults()):
        print(f"FAILED: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
