"""Fixtures: a subscriber, its deliveries, and the log lines of workers in this process.

For modules that say `pytest_plugins = ("tests.delivery.subscribers",)`.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from redis.asyncio import Redis

from tests.delivery.staged_subscriber import Backlogs, StagedSubscriber, backlogs_of


@pytest.fixture
async def subscriber() -> AsyncIterator[StagedSubscriber]:
    async with StagedSubscriber() as subscriber:
        yield subscriber


@pytest.fixture
async def second() -> AsyncIterator[StagedSubscriber]:
    """Another subscriber, which a module names as it needs it."""
    async with StagedSubscriber() as second:
        yield second


@pytest.fixture
def one(redis_client: Redis, redis_server_url: str, namespace: str, subscriber: StagedSubscriber) -> Backlogs:
    return backlogs_of(redis_client, redis_server_url, namespace, ops=subscriber.url)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines
