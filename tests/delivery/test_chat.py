"""Messages for people: what is sent to each service, and what its answers mean."""

import json
from typing import Any

import pytest

from tests.delivery.test_sentences import a_change
from tests.support.builders import a_subscription
from tests.support.raw_subscribers import LOOPBACK
from watcher.delivery.chat import ChatTarget, target_of
from watcher.delivery.webhook import WebhookTarget
from watcher.engine.breaker import Answer


def a_chat(format_: str = "slack", **fields: Any) -> ChatTarget:
    settings = a_subscription(url="http://127.0.0.1:8080/hook", **fields).model_copy(
        update={"format": format_, "secrets": ()}
    )
    return ChatTarget(settings, LOOPBACK)


def body_of(request: bytes) -> Any:
    return json.loads(request.partition(b"\r\n\r\n")[2])


def test_the_format_says_which_target_it_is() -> None:
    assert isinstance(target_of(a_subscription(), LOOPBACK), WebhookTarget)
    assert isinstance(target_of(a_chat().settings, LOOPBACK), ChatTarget)


def test_several_deliveries_are_a_line_each() -> None:
    target = a_chat("slack")
    deliveries = [a_change(amount=str(number)) for number in range(3)]
    assert target.together(deliveries) == 3
    said = body_of(target.request(deliveries, 1, 0))["text"].splitlines()
    assert said == [f"treasury: deposit cleared, +{number} LRC (total 112.5)" for number in range(3)]
    assert target.together(deliveries * 20) == 20


@pytest.mark.parametrize(
    ("status", "body", "answer", "error"),
    [
        (200, b"ok", Answer.DELIVERED, None),
        (200, b'{"ok":true}', Answer.DELIVERED, None),
        (200, b'{"ok":false,"error":"channel_not_found"}', Answer.GONE, "channel_not_found"),
        (200, b'{"ok":false}', Answer.FAILED, "its answer says with status 200 that it failed"),
        (404, b"channel_not_found", Answer.GONE, "channel_not_found"),
        (404, b"no_service\n", Answer.GONE, "no_service"),
        (403, b"action_prohibited", Answer.GONE, "action_prohibited"),
        (410, b"channel_is_archived", Answer.GONE, "channel_is_archived"),
        (400, b"invalid_payload", Answer.REJECTED, None),
        (404, b"<html>", Answer.FAILED, None),
        (429, b"rate_limited", Answer.SLOW_DOWN, None),
        (503, b"", Answer.OVERLOADED, None),
    ],
)
def test_what_slack_answers_is_understood(
    status: int, body: bytes, answer: Answer, error: str | None
) -> None:
    reading = a_chat("slack").read(status, body)
    assert (reading.answer, reading.error) == (answer, error)
    assert bool(reading.fix) == (answer is Answer.GONE)
