"""The services that take messages for people: how each is written to, how much it takes, what it answers.

Pure. Refuses to say anything that a sentence does not: a service has its markup, its size and its errors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson

from watcher.delivery.webhook import Reading, reading_of
from watcher.engine.breaker import Answer

Errors = Mapping[str, Reading]
"""By what a service calls an error, what it means."""

_NEW_WEBHOOK = "make a new incoming webhook and write its URL into the subscription's url"


@dataclass(frozen=True, slots=True)
class Service:
    """One service. `escape` keeps its markup out of a text, `write` makes the body of a message, of which the
    text has at most `limit` by the `measure` of the service, and `read` says what an answer means.
    """

    escape: Callable[[str], str]
    limit: int
    write: Callable[[str], Mapping[str, Any]]
    read: Callable[[int, bytes], Reading]
    measure: Callable[[str], int] = len
    most_together: int = 20


def _gone(*names: str, fix: str) -> dict[str, Reading]:
    return {name: Reading(Answer.GONE, name, fix) for name in names}


def _slack_text(text: str) -> str:
    """Escape the three characters that control a text of Slack: nothing else begins a mention or a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _slack(text: str) -> Mapping[str, Any]:
    """Write the text as plain text, and once more for notifications, which show no blocks."""
    block = {"type": "section", "text": {"type": "plain_text", "text": text, "emoji": False}}
    return {"text": text, "mrkdwn": False, "unfurl_links": False, "unfurl_media": False, "blocks": [block]}


_SLACK_ERRORS: Errors = MappingProxyType(
    {
        **_gone(
            *("channel_not_found", "channel_is_archived", "user_not_found", "no_active_hooks"),
            *("no_service", "no_service_id", "no_team", "team_disabled", "invalid_token"),
            fix=_NEW_WEBHOOK,
        ),
        **_gone(
            *("action_prohibited", "posting_to_general_channel_denied"),
            fix=f"an administrator of the workspace forbids it: have it allowed, or {_NEW_WEBHOOK}",
        ),
    }
)


def _read_slack(status: int, body: bytes) -> Reading:
    """Read `ok`, or the name of an error as text, of some endpoints as JSON."""
    answer = _json(body)
    named = str(answer.get("error", "")) or body.decode(errors="replace").strip()
    is_error = status >= _ERRORS_FROM or answer.get("ok") is False
    return (is_error and _SLACK_ERRORS.get(named)) or _reading(status, is_said=is_error)


_ERRORS_FROM = 300


def _reading(status: int, *, is_said: bool) -> Reading:
    """Read a status: one that is good does not make up for what the body says."""
    if is_said and status < _ERRORS_FROM:
        return Reading(Answer.FAILED, f"its answer has status {status} and says that it failed")
    return reading_of(status)


def _json(body: bytes) -> Mapping[str, Any]:
    """Read an answer that is a JSON object; anything else says nothing."""
    try:
        answer = orjson.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


SERVICES: Mapping[str, Service] = MappingProxyType(
    {
        # 3,000 characters are what one block takes.
        "slack": Service(_slack_text, 3000, _slack, _read_slack),
    }
)
"""By format."""
