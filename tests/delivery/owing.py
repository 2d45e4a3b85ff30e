"""Fixtures: a subscriber, its deliveries, and the log lines of workers in this process.

For modules that say `pytest_plugins = ("tests.delivery.owing",)`.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from redis.asyncio import Redis

from tests.delivery.moody_subscriber import MoodySubscriber, Owed, owed


@pytest.fixture
async def subscriber() -> AsyncIterator[MoodySubscriber]:
    async with MoodySubscriber() as subscriber:
        yield subscriber


@pytest.fixture
async def second() -> AsyncIterator[MoodySubscriber]:
    """Another subscriber, which a module names as it needs it."""
    async with MoodySubscriber() as second:
        yield second


@pytest.fixture
def one(redis_client: Redis, redis_server_url: str, namespace: str, subscriber: MoodySubscriber) -> Owed:
    return owed(redis_client, redis_server_url, namespace, ops=subscriber.url)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines
