"""One account's events to one subscriber go one at a time by design: how many a second that makes."""

import pytest
from redis.asyncio import Redis

from tests.delivery.staged_subscriber import StagedSubscriber, backlogs_of

pytest_plugins = ("tests.delivery.subscribers",)

OVERHEAD_S = 0.005
"""What the worker adds to each answer at most."""

PART = 0.8


TRIES = 5
"""A machine that is busy with something else only makes it slower."""


@pytest.mark.parametrize(
    ("answer_s", "count"),
    [
        (0, 200),
        pytest.param(0.05, 60, marks=pytest.mark.slow),
        pytest.param(0.2, 15, marks=pytest.mark.slow),
    ],
)
async def test_one_queue_is_as_fast_as_its_receiver_answers(
    redis_client: Redis,
    redis_server_url: str,
    namespace: str,
    subscriber: StagedSubscriber,
    answer_s: float,
    count: int,
) -> None:
    subscriber.delay_s = answer_s
    rates: list[float] = []
    least = PART / (answer_s + OVERHEAD_S)
    while max(rates, default=0) < least and len(rates) < TRIES:
        account = f"account-{len(rates)}"
        one = backlogs_of(redis_client, redis_server_url, namespace, ops=subscriber.url)
        subscriber.arrivals.clear()
        await one.queue([account], range(1, count + 1))
        async with one.worker():
            await subscriber.until(lambda: len(subscriber.taken) == count, within_s=30)
        arrivals = subscriber.arrivals
        rates.append((count - 1) / (arrivals[-1].at - arrivals[0].at))
        assert {arrival.in_flight for arrival in arrivals} == {1}
        assert [event["data"]["sequence"] for event in subscriber.taken] == [*range(1, count + 1)]
    assert max(rates) >= least, rates
