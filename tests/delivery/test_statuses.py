"""What the status of a webhook receiver means: the webhook sink's own table."""

import pytest

from watcher.delivery.webhook import answer_of
from watcher.engine.breaker import Answer


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert answer_of(status) is Answer.DELIVERED


@pytest.mark.parametrize("status", [0, 100, 199, 300, 301, 302, 307, 308, 401, 404, 500, 501, 999])
def test_redirects_and_most_errors_are_failures(status: int) -> None:
    assert answer_of(status) is Answer.FAILED


@pytest.mark.parametrize("status", [400, 409, 413, 415, 422])
def test_some_statuses_are_about_the_one_event(status: int) -> None:
    assert answer_of(status) is Answer.REJECTED


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (429, Answer.SLOW_DOWN),
        (502, Answer.NO_ANSWER),
        (503, Answer.OVERLOADED),
        (504, Answer.NO_ANSWER),
        (410, Answer.GONE),
    ],
)
def test_some_statuses_are_about_the_whole_receiver(status: int, answer: Answer) -> None:
    assert answer_of(status) is answer
