"""What tests of commands are given."""

import pytest

from tests.support.stories import Write, in_the_books


@pytest.fixture
def write(redis_server_url: str, namespace: str) -> Write:
    return lambda act: in_the_books(redis_server_url, namespace, act)
