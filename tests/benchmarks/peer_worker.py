"""Other queues that could send webhooks, each used as documented, with delivery at least once.

    python -I peer_worker.py arq|taskiq|saq|celery fill|work REDIS_URL RECEIVER_URL KEY CONCURRENCY DELIVERIES

KEY is base64; DELIVERIES is a file with one {"id", "body"} a line. `peers.py` runs it with the Python of an
environment in which that library is installed; so it imports nothing else of here.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

NAME = "send"
TIMEOUT_S = 20
MOST_TRIES = 10
_AT_ONCE = 200


@dataclass(frozen=True)
class Job:
    """What the command line says."""

    redis_url: str
    receiver_url: str
    key: bytes
    concurrency: int
    deliveries: str

    def each(self) -> Iterator[tuple[str, str]]:
        """Yield the id and the body of each delivery."""
        with open(self.deliveries, encoding="utf-8") as lines:
            for line in lines:
                delivery = json.loads(line)
                yield delivery["id"], delivery["body"]

    def headers(self, event_id: str, body: str) -> dict[str, str]:
        timestamp = str(int(time.time()))
        digest = hmac.digest(self.key, f"{event_id}.{timestamp}.{body}".encode(), hashlib.sha256)
        return {
            "content-type": "application/json",
            "user-agent": "peer/1",
            "webhook-id": event_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        }

    async def put_all(self, put: Callable[[str, str], Awaitable[Any]]) -> None:
        """Put every delivery into a queue, some at a time."""
        batch = []
        for event_id, body in self.each():
            batch.append(put(event_id, body))
            if len(batch) == _AT_ONCE:
                await asyncio.gather(*batch)
                batch.clear()
        await asyncio.gather(*batch)

    @asynccontextmanager
    async def sender(self) -> AsyncIterator[Callable[[str, str], Awaitable[None]]]:
        """How the asynchronous ones send: aiohttp, one session."""
        import aiohttp

        connector = aiohttp.TCPConnector(limit=self.concurrency)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def send(event_id: str, body: str) -> None:
                headers = self.headers(event_id, body)
                async with session.post(self.receiver_url, data=body.encode(), headers=headers) as response:
                    await response.read()
                    response.raise_for_status()

            yield send


async def arq(job: Job, what: str) -> None:
    from arq import create_pool, func
    from arq.connections import RedisSettings
    from arq.worker import Worker

    settings = RedisSettings.from_dsn(job.redis_url)
    if what == "fill":
        pool = await create_pool(settings)
        await job.put_all(lambda event_id, body: pool.enqueue_job(NAME, event_id, body))
        return
    async with job.sender() as send:

        async def deliver(_: object, event_id: str, body: str) -> None:
            await send(event_id, body)

        worker = Worker(
            [func(deliver, name=NAME, keep_result=0, max_tries=MOST_TRIES)],
            redis_settings=settings,
            max_jobs=job.concurrency,
            poll_delay=0.01,  # its half a second is meant for a queue that is empty most of the time
        )
        await worker.async_run()


async def taskiq(job: Job, what: str) -> None:
    from taskiq.acks import AcknowledgeType
    from taskiq.api import run_receiver_task
    from taskiq_redis import RedisStreamBroker  # its list would lose what a worker has in hand

    broker = RedisStreamBroker(job.redis_url)
    async with job.sender() as send:

        async def deliver(event_id: str, body: str) -> None:
            await send(event_id, body)

        task = broker.task(task_name=NAME)(deliver)
        if what == "fill":
            await broker.startup()
            await job.put_all(task.kiq)
            await broker.shutdown()
            return
        broker.is_worker_process = True
        await run_receiver_task(
            broker,
            max_async_tasks=job.concurrency,
            ack_time=AcknowledgeType.WHEN_EXECUTED,
            run_startup=True,
        )


async def saq(job: Job, what: str) -> None:
    from saq import Queue, Worker

    queue = Queue.from_url(job.redis_url)
    if what == "fill":
        await queue.connect()

        async def put(event_id: str, body: str) -> None:
            await queue.enqueue(
                NAME, event_id=event_id, body=body, retries=MOST_TRIES, timeout=TIMEOUT_S, ttl=-1
            )

        await job.put_all(put)
        await queue.disconnect()
        return
    async with job.sender() as send:

        async def deliver(_: object, *, event_id: str, body: str) -> None:
            await send(event_id, body)

        await Worker(queue, [(NAME, deliver)], concurrency=job.concurrency).start()


def celery(job: Job, what: str) -> None:
    import requests
    from celery import Celery

    app = Celery("peers", broker=job.redis_url)
    app.conf.update(task_acks_late=True, task_ignore_result=True)
    own = threading.local()

    def deliver(event_id: str, body: str) -> None:
        if not hasattr(own, "session"):
            own.session = requests.Session()
        headers = job.headers(event_id, body)
        own.session.post(
            job.receiver_url, data=body.encode(), headers=headers, timeout=TIMEOUT_S
        ).raise_for_status()

    task = app.task(deliver, name=NAME)
    if what == "fill":
        with app.producer_or_acquire() as producer:
            for delivery in job.each():
                task.apply_async(delivery, producer=producer)
        return
    options = ("--loglevel=ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat")
    app.worker_main(["worker", "--pool=threads", f"--concurrency={job.concurrency}", *options])


def main() -> None:
    name, what, redis_url, receiver_url, key, concurrency, deliveries = sys.argv[1:]
    job = Job(redis_url, receiver_url, base64.b64decode(key), int(concurrency), deliveries)
    if name == "celery":
        celery(job, what)
        return
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run({"arq": arq, "taskiq": taskiq, "saq": saq}[name](job, what))


if __name__ == "__main__":
    main()
