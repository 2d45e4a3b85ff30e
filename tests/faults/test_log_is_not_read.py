"""T45: the reader of the log stops reading, or closes it. Deliveries go on; lost lines are counted."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.faults.scene import AS_IT_COMES, BOUNDED, LONG, Scene, a_scene
from tests.faults.worker_processes import WorkerProcess

pytestmark = BOUNDED

PER_SECOND = 200
ROOM = 200
"""Log lines that may wait, in the short form: as the program comes, 10,000 may."""


@dataclass(eq=False)
class Reader:
    """Reads the log of a worker from a pipe into its file, while it `is_reading`."""

    worker: WorkerProcess
    lines: asyncio.StreamReader
    pipe: asyncio.ReadTransport
    is_reading: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        with self.worker.log.open("ab", buffering=0) as file:
            while said := await self.lines.read(1 << 16):
                file.write(said)
                await self.is_reading.wait()


@asynccontextmanager
async def a_worker_that_is_read(scene: Scene, **faults: Any) -> AsyncIterator[Reader]:
    reading, writing = os.pipe()
    worker = await scene.start_worker(output=writing, **faults)
    os.close(writing)
    lines = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(reading, "rb", buffering=0)
    )
    reader = Reader(worker, lines, pipe)
    reader.is_reading.set()
    copying = asyncio.create_task(reader.run())
    try:
        await worker.logged("worker.started")
        yield reader
    finally:
        copying.cancel()
        pipe.close()


@pytest.mark.parametrize(
    ("for_s", "faults"), [(5, {"log_room": ROOM}), pytest.param(60, {}, marks=LONG)], ids=["short", "long"]
)
async def test_an_unread_log_holds_up_no_delivery(for_s: float, faults: dict[str, Any]) -> None:
    async with a_scene(leases=AS_IT_COMES) as scene, a_worker_that_is_read(scene, **faults) as reader:
        await scene.begin(PER_SECOND)
        await scene.until_delivered(PER_SECOND, within_s=20)
        reader.is_reading.clear()
        before = scene.receiver.taken
        await asyncio.sleep(for_s)
        delivered = scene.receiver.taken - before
        reader.is_reading.set()
        await reader.worker.logged("log.dropped")
        verdict = await scene.verdict()
        dropped = sum(line["lines"] for line in reader.worker.lines("log.dropped"))
        created = len(reader.worker.lines("event.created"))
    print(f"{delivered} deliveries while the log was not read, {dropped} lines lost")
    assert verdict.problems == []
    assert delivered > PER_SECOND * for_s / 2
    assert verdict.lag_ms(99) <= 2000
    assert 0 < verdict.committed - created < dropped, "what is missing was counted"


async def test_a_log_whose_reader_closed_holds_up_neither_deliveries_nor_the_end() -> None:
    async with a_scene(leases=AS_IT_COMES) as scene, a_worker_that_is_read(scene) as reader:
        await scene.begin(PER_SECOND)
        await scene.until_delivered(PER_SECOND, within_s=20)
        reader.pipe.close()
        await scene.until_delivered(5 * PER_SECOND, within_s=20)
        verdict = await scene.verdict()
        assert reader.worker.process.returncode == 0
        assert reader.worker.errors == ""
    assert verdict.problems == []
