"""The services that take messages for people: how to write to each, what it accepts, how it answers. Pure.

Refuses to say anything that a sentence does not say: a service has its markup, its size and its errors.
"""

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import orjson

from watcher.delivery.formats.sentences import harmless
from watcher.delivery.sink import LONGEST_RETRY_AFTER_S
from watcher.delivery.webhook import Reading, reading_of
from watcher.engine.breaker import Answer
from watcher.journal.events import Delivery, iso
from watcher.settings import SubscriptionSettings

Errors = Mapping[str, Reading]

WARNINGS = {"account.stale": "error", "subscription.paused": "error", "threshold.crossed": "warning"}
"""Events that a person should look at, and how severe they are."""

_NEW_URL = "make a new webhook and write its URL into the subscription's url"
_ERRORS_FROM = 300


def gone(*names: str, fix: str) -> Errors:
    """Make the entries of errors after which the service's owner has to act, by the service's names for
    them."""
    return {name: Reading(Answer.GONE, name, fix) for name in names}


class Service:
    """What the services have in common."""

    limit: ClassVar[int]
    """The longest text of a message, as `size` measures it."""

    most_together = 20
    """Lines of a message at most: people read no more."""

    content_type = "application/json"
    errors: ClassVar[Errors] = MappingProxyType({})

    def escape(self, text: str) -> str:
        """Keep the service's own markup out of a text."""
        return text

    def size(self, text: str) -> int:
        """Measure an escaped text as the service does."""
        return len(text)

    def write(self, text: str, settings: SubscriptionSettings, deliveries: Sequence[Delivery]) -> bytes:
        """Write the body of a message with an escaped text: a line for each delivery."""
        raise NotImplementedError

    def headers(self, deliveries: Sequence[Delivery]) -> Mapping[str, str]:
        """Return the headers of a message."""
        return {}

    def read(self, status: int, body: bytes) -> Reading:
        """Read an answer. A body that says `error` counts, also with a status of success."""
        return self.reading(status, self.error_in(in_json(body)))

    def error_in(self, answer: Mapping[str, Any]) -> str:
        """Return the error that an answer speaks of, named as in `errors`."""
        return ""

    def reading(self, status: int, error: str, *, is_refused: bool = False) -> Reading:
        """Read a status, and an error if its name is known."""
        if status < _ERRORS_FROM and not is_refused:
            return reading_of(status)
        failed = Reading(Answer.FAILED, f"its answer has status {status} and says that it failed")
        return self.errors.get(error) or (failed if status < _ERRORS_FROM else reading_of(status))


class Slack(Service):
    """An incoming webhook. https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks"""

    limit = 3000  # of one block of text
    errors = MappingProxyType(
        {
            **gone("channel_not_found", "channel_is_archived", "user_not_found", fix=_NEW_URL),
            **gone("no_service", "no_service_id", "no_active_hooks", "invalid_token", fix=_NEW_URL),
            **gone("no_team", "team_disabled", fix=_NEW_URL),
            **gone(
                *("action_prohibited", "posting_to_general_channel_denied"),
                fix="have an administrator of the workspace allow it, or post to another channel",
            ),
        }
    )

    def escape(self, text: str) -> str:
        """Escape the three characters that control a text: nothing else begins a mention or a link."""
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    def write(self, text: str, settings: SubscriptionSettings, deliveries: Sequence[Delivery]) -> bytes:
        """Write it as plain text, and once more for notifications, which show no blocks."""
        block = {"type": "section", "text": {"type": "plain_text", "text": text, "emoji": False}}
        return orjson.dumps(
            {"text": text, "mrkdwn": False, "unfurl_links": False, "unfurl_media": False, "blocks": [block]}
        )

    def read(self, status: int, body: bytes) -> Reading:
        """Read `ok`, or the name of an error: as text, or in an object."""
        answer = in_json(body)
        named = str(answer.get("error")) if answer else body.decode(errors="replace").strip()
        return self.reading(status, named, is_refused=answer.get("ok") is False)


class Discord(Service):
    """A channel's webhook. https://docs.discord.com/developers/resources/webhook#execute-webhook"""

    limit = 2000
    errors = MappingProxyType(
        {
            "10015": Reading(Answer.GONE, "unknown webhook", _NEW_URL),
            "10003": Reading(Answer.GONE, "unknown channel", _NEW_URL),
            "50027": Reading(Answer.GONE, "invalid webhook token", _NEW_URL),
        }
    )
    _MARKUP = re.compile(r"[\\*_~`|<>#\[\]@]")
    _LIST = re.compile(r"^( *)(?:(?=-)|(\d+)(?=\.))", re.MULTILINE)
    _SUPPRESS_EMBEDS = 4

    def escape(self, text: str) -> str:
        return self._LIST.sub(r"\1\2\\", self._MARKUP.sub(r"\\\g<0>", text))

    def size(self, text: str) -> int:
        return in_utf16(text)

    def write(self, text: str, settings: SubscriptionSettings, deliveries: Sequence[Delivery]) -> bytes:
        return orjson.dumps(
            {"content": text, "allowed_mentions": {"parse": []}, "flags": self._SUPPRESS_EMBEDS}
        )

    def error_in(self, answer: Mapping[str, Any]) -> str:
        return str(answer.get("code"))

    def read(self, status: int, body: bytes) -> Reading:
        """Read the code of an error, and the seconds to wait."""
        asked = in_json(body).get("retry_after")
        return super().read(status, body)._replace(retry_after_s=seconds(asked))


class Teams(Service):
    """A workflow that posts to a channel or chat, or an old connector.
    https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/connectors-using
    """

    limit = 20_000  # of 28 KB with all that is around it
    errors = MappingProxyType(
        {
            **gone("WorkflowNotFound", fix=_NEW_URL),
            **gone("WorkflowTriggerIsNotEnabled", fix=f"turn the workflow on again, or {_NEW_URL}"),
            **gone(
                "DirectApiAuthorizationRequired",
                fix="copy the whole URL of the workflow, which anyone must be allowed to trigger",
            ),
        }
    )
    _FAILED = b"Webhook message delivery failed"  # with status 200, by a connector
    _LIMITED = b"HTTP error 429"

    def escape(self, text: str) -> str:
        """Part what would be a function of a card, `{{DATE(…)}}`: plain runs of text know no more."""
        return text.replace("{{", "{\N{ZERO WIDTH SPACE}{")

    def size(self, text: str) -> int:
        return len(orjson.dumps(text))

    def write(self, text: str, settings: SubscriptionSettings, deliveries: Sequence[Delivery]) -> bytes:
        """Write a card of plain runs of text, which know no markup, a block for each line."""
        lines = [
            {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": line}]}
            for line in text.split("\n")
        ]
        card = {
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.2",
            "body": lines,
        }
        attachment = {
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": None,
            "content": card,
        }
        return orjson.dumps({"type": "message", "attachments": [attachment]})

    def error_in(self, answer: Mapping[str, Any]) -> str:
        match answer:
            case {"error": {"code": str(code)}}:
                return code
        return ""

    def read(self, status: int, body: bytes) -> Reading:
        if status < _ERRORS_FROM and body.startswith(self._FAILED):
            limited = Reading(Answer.SLOW_DOWN, f"its answer has status {status} and says 429")
            return limited if self._LIMITED in body else self.reading(status, "", is_refused=True)
        return super().read(status, body)


class Telegram(Service):
    """A bot. https://core.telegram.org/bots/api#sendmessage"""

    limit = 4096
    _REACH = "let the bot into the chat again, or write another chat"
    errors = MappingProxyType(
        {
            **gone("unauthorized", "not found", fix="write the bot's token into the url"),
            "upgraded": Reading(
                Answer.GONE, "the group became a supergroup", "write the new id of the group as chat"
            ),
            **gone("chat not found", "bot was blocked by the user", "user is deactivated", fix=_REACH),
            **gone("bot was kicked", "bot is not a member", "not enough rights", "forbidden", fix=_REACH),
            **gone("have no rights", "need administrator rights", "peer_id_invalid", fix=_REACH),
        }
    )

    def size(self, text: str) -> int:
        return in_utf16(text)

    def write(self, text: str, settings: SubscriptionSettings, deliveries: Sequence[Delivery]) -> bytes:
        """Write it without a parse mode: then it has no markup."""
        chat = settings.chat or ""
        return orjson.dumps(
            {
                "chat_id": chat if chat.startswith("@") else int(chat),
                "text": text,
                "link_preview_options": {"is_disabled": True},
            }
        )

    def read(self, status: int, body: bytes) -> Reading:
        """Read the description of an error, which names it somewhere, and the seconds to wait."""
        answer = in_json(body)
        said, more = str(answer.get("description", "")).lower(), answer.get("parameters")
        more = more if isinstance(more, dict) else {}
        # The longest name says most; `unauthorized` and `not found` of the bot say nothing else.
        names = [name for name in self.errors.keys() - {"unauthorized", "not found"} if name in said]
        named = said if said in self.errors else max(names, key=len, default="")
        reading = self.reading(status, named, is_refused=answer.get("ok") is False)
        new_id = more.get("migrate_to_chat_id")
        if reading.answer is Answer.GONE and type(new_id) is int:
            reading = reading._replace(fix=f"write the new id of the group: chat = {new_id}")
        return reading._replace(retry_after_s=seconds(more.get("retry_after")))


class Ntfy(Service):
    """A topic, which is the URL. https://docs.ntfy.sh/publish/"""

    limit = 4096  # more becomes a file
    content_type = "text/plain; charset=utf-8"
    _ENTER = "write an access token of the topic into headers: authorization"
    errors = MappingProxyType(
        {
            "40101": Reading(Answer.GONE, "unauthorized", _ENTER),
            "40301": Reading(Answer.GONE, "forbidden", _ENTER),
        }
    )

    def size(self, text: str) -> int:
        return len(text.encode())

    def write(self, text: str, settings: SubscriptionSettings, deliveries: Sequence[Delivery]) -> bytes:
        return text.encode()

    def headers(self, deliveries: Sequence[Delivery]) -> Mapping[str, str]:
        is_warning = any(delivery.type in WARNINGS for delivery in deliveries)
        return {"markdown": "no", "priority": "high" if is_warning else "default"}

    def error_in(self, answer: Mapping[str, Any]) -> str:
        return str(answer.get("code"))


class PagerDuty(Service):
    """An integration of Events API v2.
    https://developer.pagerduty.com/docs/events-api-v2/trigger-events

    A stale account and a paused subscription open an alert each, and a recovery closes its own. Any other
    event is an alert by itself: there is none that would close it.
    """

    limit = 1024  # of a summary
    most_together = 1
    errors = MappingProxyType(
        gone("invalid routing key", fix="write the key of an Events API v2 integration as routing_key")
    )

    def write(self, text: str, settings: SubscriptionSettings, deliveries: Sequence[Delivery]) -> bytes:
        (delivery,) = deliveries
        source, key = "watcher", delivery.event_id
        match in_json(delivery.body):
            case {"type": "account.stale" | "account.recovered", "data": {"account": {"name": str(name)}}}:
                source, key = name, f"watcher account {name}"
            case {"type": "subscription.paused", "data": {"paused": str(name)}}:
                source, key = name, f"watcher subscription {name}"
            case {"data": {"account": {"name": str(name)}}}:
                source = name
        details = {"event": delivery.event_id, "type": delivery.type, "sequence": delivery.sequence}
        assert settings.routing_key
        return orjson.dumps(
            {
                "routing_key": settings.routing_key.get_secret_value(),
                "event_action": "resolve" if delivery.type == "account.recovered" else "trigger",
                "dedup_key": key,
                "client": "watcher",
                "payload": {
                    "summary": text,
                    "source": harmless(source),
                    "severity": WARNINGS.get(delivery.type, "info"),
                    "timestamp": iso(delivery.sequence),
                    "class": delivery.type,
                    "custom_details": details,
                },
            }
        )

    def error_in(self, answer: Mapping[str, Any]) -> str:
        """Return the error if it is about the key; any other one is about this event only."""
        said = f"{answer.get('message')} {answer.get('errors')}".lower().replace("_", " ")
        return "invalid routing key" if "routing key" in said else ""


def in_json(body: bytes) -> Mapping[str, Any]:
    """Read a JSON object; anything else counts as empty."""
    try:
        answer = orjson.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def in_utf16(text: str) -> int:
    """Count characters as services do that count in UTF-16."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def seconds(asked: object) -> float | None:
    """Read how many seconds an answer's body asks to wait."""
    if not isinstance(asked, int | float) or isinstance(asked, bool) or not math.isfinite(asked):
        return None
    return min(max(float(asked), 0.0), LONGEST_RETRY_AFTER_S)


SERVICES: Mapping[str, Service] = MappingProxyType(
    {
        "slack": Slack(),
        "discord": Discord(),
        "teams": Teams(),
        "telegram": Telegram(),
        "ntfy": Ntfy(),
        "pagerduty": PagerDuty(),
    }
)
"""By format."""
