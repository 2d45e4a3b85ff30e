"""Fixtures for tests of commands."""

from collections.abc import Iterator

import pytest
import structlog

from tests.support.stories import Write, in_the_books


@pytest.fixture
def write(redis_server_url: str, namespace: str) -> Write:
    return lambda act: in_the_books(redis_server_url, namespace, act)


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Undo what a command says of the log: its level would hold for all tests that follow in this process."""
    from watcher.observe.log import unbind

    yield
    structlog.reset_defaults()
    unbind()
