"""How others may see that a worker lives: over HTTP, and by a file that it touches.

Refuses to hold the worker up: both run beside it, from before its store is open until after it has drained.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from watcher.observe.door import Address
from watcher.observe.heartbeat import HeartbeatFile
from watcher.observe.listener import Listener, Route
from watcher.run.worker import Worker


@dataclass(frozen=True, slots=True)
class Exposure:
    """What was asked for: an address for HTTP, with a token that clients must show; a heartbeat file.

    `has_page`: people find a page there.
    """

    address: Address | None = None
    token: str | None = None
    has_page: bool = False
    heartbeat_file: Path | None = None


@asynccontextmanager
async def exposed(worker: Worker, exposure: Exposure) -> AsyncIterator[Address | None]:
    """Let others see the worker inside the block, over HTTP at this address.

    Raises ListenerRefused and HeartbeatRefused.
    """
    address = None
    async with AsyncExitStack() as stack:
        if exposure.heartbeat_file:
            await stack.enter_async_context(_beating(worker, exposure.heartbeat_file))
        if exposure.address:
            from watcher.observe.probes import PROBES  # prometheus-client is heavy, and off by default

            routes = _routes(worker, exposure)
            listener = Listener(exposure.address, routes, token=exposure.token, probes=PROBES)
            address = (await stack.enter_async_context(listener)).address
        yield address


def _routes(worker: Worker, exposure: Exposure) -> Mapping[str, Route]:
    from watcher.observe.probes import routes

    if not exposure.has_page:
        return routes(worker)
    from watcher.observe.page.serving import routes as page_routes

    return {**routes(worker), **page_routes(worker)}


@asynccontextmanager
async def _beating(worker: Worker, path: Path) -> AsyncIterator[None]:
    heartbeat = HeartbeatFile(path, lambda: worker.liveness.stuck(time.monotonic()))
    heartbeat.begin()
    beating = asyncio.create_task(heartbeat.run(), name="heartbeat file")  # ended with the block, below
    try:
        yield
    finally:
        beating.cancel()
        heartbeat.end()
