"""What everything is compared with: aiohttp in a plain loop, without a worker around it."""

import asyncio
import time
from typing import Any, NamedTuple

import aiohttp

CONCURRENCY = 64


class Speed(NamedTuple):
    """How many a second, and how much of this process's time each took."""

    per_second: float
    cpu_us: float


class Watch:
    """Measures from its making on."""

    def __init__(self) -> None:
        self._at = time.monotonic(), time.process_time()

    def speed(self, count: int) -> Speed:
        wall_s, cpu_s = time.monotonic() - self._at[0], time.process_time() - self._at[1]
        return Speed(count / wall_s, 1e6 * cpu_s / max(count, 1))


async def raw_speed(method: str, url: str, seconds: float, **request: Any) -> Speed:
    """Send the same request over and over, as many at a time as the worker."""
    count = 0

    async def repeat() -> None:
        nonlocal count
        while time.monotonic() < end_at:
            async with session.request(method, url, **request) as response:
                await response.read()
            count += 1

    async with _session() as session, asyncio.TaskGroup() as group:
        end_at = time.monotonic() + seconds
        watch = Watch()
        for _ in range(CONCURRENCY):
            group.create_task(repeat())
    return watch.speed(count)


async def raw_latencies_ms(url: str, count: int, *, every_s: float) -> list[float]:
    """POST to `url`/timed at an even pace; how long each was on its way, as the server saw it."""
    sent_at: dict[str, float] = {}

    async def post(number: int) -> None:
        sent_at[str(number)] = time.monotonic()
        async with session.post(f"{url}/timed", data=b"{}", headers={"webhook-id": str(number)}) as response:
            await response.read()

    async with _session() as session, asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(post(number))
            await asyncio.sleep(every_s)
    return latencies_ms(sent_at, await receipts(url))


async def receipts(url: str) -> dict[str, float]:
    """When each event arrived at `url`/timed since the last question, by its id."""
    async with _session() as session, session.get(f"{url}/receipts") as response:
        return dict(await response.json())


def latencies_ms(sent_at: dict[str, float], received_at: dict[str, float]) -> list[float]:
    """Every process of a machine has the same monotonic clock."""
    return sorted(1000 * (received_at[name] - at) for name, at in sent_at.items() if name in received_at)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
