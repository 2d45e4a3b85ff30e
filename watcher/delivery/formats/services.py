"""The services that take messages for people: how each is written to, how much it takes, what it answers.

Pure. Refuses to say anything that a sentence does not: a service has its markup, its size and its errors.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import orjson

from watcher.delivery.webhook import Reading, reading_of
from watcher.engine.breaker import Answer

_NEW_WEBHOOK = "make a new incoming webhook and write its URL into the subscription's url"
_ERRORS_FROM = 300


def gone(*names: str, fix: str) -> Mapping[str, Reading]:
    """Say of errors, by the names that a service gives them, that its owner has to act, and how."""
    return {name: Reading(Answer.GONE, name, fix) for name in names}


class Service:
    """What the services have in common."""

    limit: ClassVar[int]
    """The longest text of a message, as `size` measures it."""

    most_together = 20
    """Lines of a message at most: more are not read."""

    def escape(self, text: str) -> str:
        """Keep the service's own markup out of a text."""
        return text

    def size(self, text: str) -> int:
        """Measure an escaped text as the service does."""
        return len(text)

    def write(self, text: str) -> Mapping[str, Any]:
        """Write a message with an escaped text."""
        raise NotImplementedError

    def read(self, status: int, body: bytes) -> Reading:
        """Read an answer. A good status does not make up for what the body says."""
        raise NotImplementedError

    def reading(self, status: int, *, is_refused: bool) -> Reading:
        """Read an answer whose error has no name that is known."""
        if is_refused and status < _ERRORS_FROM:
            return Reading(Answer.FAILED, f"its answer says with status {status} that it failed")
        return reading_of(status)


class Slack(Service):
    """An incoming webhook. https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks"""

    limit = 3000  # of one block of text
    errors = MappingProxyType(
        {
            **gone("channel_not_found", "channel_is_archived", "user_not_found", fix=_NEW_WEBHOOK),
            **gone("no_service", "no_service_id", "no_active_hooks", "invalid_token", fix=_NEW_WEBHOOK),
            **gone("no_team", "team_disabled", fix=_NEW_WEBHOOK),
            **gone(
                *("action_prohibited", "posting_to_general_channel_denied"),
                fix="have an administrator of the workspace allow it, or post to another channel",
            ),
        }
    )

    def escape(self, text: str) -> str:
        """Escape the three characters that control a text: nothing else begins a mention or a link."""
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    def write(self, text: str) -> Mapping[str, Any]:
        """Write it as plain text, and once more for notifications, which show no blocks."""
        block = {"type": "section", "text": {"type": "plain_text", "text": text, "emoji": False}}
        return {
            "text": text,
            "mrkdwn": False,
            "unfurl_links": False,
            "unfurl_media": False,
            "blocks": [block],
        }

    def read(self, status: int, body: bytes) -> Reading:
        """Read `ok`, or the name of an error: as text, or in an object."""
        answer = in_json(body)
        is_refused = answer.get("ok") is False
        named = str(answer.get("error")) if answer else body.decode(errors="replace").strip()
        known = self.errors.get(named) if is_refused or status >= _ERRORS_FROM else None
        return known or self.reading(status, is_refused=is_refused)


def in_json(body: bytes) -> Mapping[str, Any]:
    """Read an answer that is a JSON object; anything else says nothing."""
    try:
        answer = orjson.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


SERVICES: Mapping[str, Service] = MappingProxyType({"slack": Slack()})
"""By format."""
