"""What a worker answers when it is asked whether it lives, whether it is ready, and what it counts.

Refuses to let a store that is down look like a worker that is dead: only readiness asks Redis.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from watcher.observe.listener import Answer, Route
from watcher.observe.metrics import CONTENT_TYPE, Metrics
from watcher.run.worker import Worker
from watcher.store.exceptions import StoreError
from watcher.store.keys import Keys
from watcher.store.reader import Reader

READY_TIMEOUT_S = 1.0
PROBES = ("/livez", "/readyz")
"""Clients without the token learn the status of these: it says no more than a closed port would."""


def routes(worker: Worker) -> Mapping[str, Route]:
    """What is served, by path."""
    metrics = Metrics(worker)

    async def tell() -> Answer:
        return Answer(200, await metrics.text(), CONTENT_TYPE)

    return {"/metrics": tell, "/livez": lambda: livez(worker), "/readyz": lambda: readyz(worker)}


async def livez(worker: Worker) -> Answer:
    """Whether all loops turn: 200, or 503 with those that do not. To be started again on 503."""
    stuck = worker.liveness.stuck(time.monotonic())
    if stuck:
        return _no(f"{name} has not turned for {wait_s:.0f} s" for name, wait_s in stuck.items())
    return _OK


async def readyz(worker: Worker) -> Answer:
    """Whether work gets done: 200 when the configuration is in force and the store does its part."""
    if worker.is_stopped:
        return _no(["the worker drains"])
    if worker.opened is None:
        return _no(["starting: the store is not open yet"])
    if not worker.has_begun:
        return _no(["starting: the accounts are being scheduled"])
    if worker.opened.health.is_up:
        reader = Reader(worker.opened.schedule.pipe, Keys(worker.settings.redis.namespace))
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S):
                await reader.now_ms()
                return _OK
    return _no(["the store does not do its part"])


_OK = Answer(200, b"ok\n")


def _no(reasons: Iterable[str]) -> Answer:
    return Answer(503, "".join(f"{reason}\n" for reason in reasons).encode())
