"""What a webhook receiver's status says: the webhook sink's own table."""

import pytest

from watcher.delivery.webhook import answer_of
from watcher.engine.breaker import Answer


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert answer_of(status) is Answer.DELIVERED


@pytest.mark.parametrize("status", [0, 100, 199, 300, 301, 302, 307, 308, 400, 401, 404, 422, 500, 501, 999])
def test_redirects_and_most_errors_may_be_about_the_one_event(status: int) -> None:
    assert answer_of(status) is Answer.REJECTED


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_these_speak_for_the_whole_receiver(status: int) -> None:
    assert answer_of(status) is Answer.SLOW_DOWN


def test_410_says_that_this_url_is_not_coming_back() -> None:
    assert answer_of(410) is Answer.GONE
