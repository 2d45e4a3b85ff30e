"""With 10,000 subscriptions, of which few or all have a backlog, page and metrics are soon computed."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from tests.benchmarks.reload import ticking
from tests.observe.pictures import some_settings
from tests.support.builders import a_subscription
from watcher.observe import views
from watcher.observe.metrics import Metrics
from watcher.observe.page import look
from watcher.observe.page.look import Look
from watcher.run.worker import Opened, Worker
from watcher.store.health import StoreHealth
from watcher.store.keys import Keys, shard_of
from watcher.store.pipe import Pipe
from watcher.store.schedule import Schedule

SUBSCRIPTIONS = 10_000
COMPUTED_S = 0.6
HELD_UP_S = 0.05


async def computed(read: Callable[[], Awaitable[bytes]]) -> bytes:
    """Read it, within the time that this process may compute, and hold its loop up, for it."""
    began_s = time.process_time()
    with ticking() as ticker:
        answer = await read()
        await asyncio.sleep(0.01)  # for the ticker's next turn
    assert time.process_time() - began_s < COMPUTED_S
    assert ticker.busy_s < HELD_UP_S
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("waiting", [50, SUBSCRIPTIONS])
async def test_of_thousands_of_subscriptions_page_and_metrics_answer_soon(
    redis_client: Redis, redis_server_url: str, namespace: str, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (views, look):  # computing is judged: others may take the processor
        monkeypatch.setattr(module, "TIMEOUT_S", 20.0)
    names = [f"s-{number}" for number in range(SUBSCRIPTIONS)]
    subscriptions = {name: a_subscription(name) for name in names}
    settings = some_settings(redis_server_url, (), subscriptions)
    redis = settings.redis.model_copy(update={"namespace": namespace})
    worker = Worker(settings.model_copy(update={"redis": redis}), name="w")
    pipe, keys = Pipe(redis_client), Keys(namespace)
    for start in range(0, waiting, 1_000):
        pipeline = redis_client.pipeline(transaction=False)
        for name in names[start : min(waiting, start + 1_000)]:
            shard = shard_of(name)  # each has one account, of its own name
            pipeline.zadd(keys.queues(shard, name), {name: 1})
            pipeline.zadd(keys.due_subscriptions(shard), {name: 1})
            pipeline.hset(keys.backlogs(shard), name, 1)
            pipeline.set(keys.queue(name, name), "evt_1 5 4")
        await pipeline.execute()
    schedule = Schedule(pipe)
    await schedule.read_clock()
    worker.opened = Opened(schedule, StoreHealth())
    metrics = (await computed(Metrics(worker).text)).decode()
    seen = json.loads(await computed(Look(worker).json))["seen"]
    assert metrics.count('"} 1.0\n') >= waiting
    assert f"{waiting:,} subscriptions delayed" in [one["text"] for one in seen["health"]["problems"]]
    assert len(seen["subscriptions"]["shown"]) + seen["subscriptions"]["left_out"] == SUBSCRIPTIONS
