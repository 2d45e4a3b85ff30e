"""The services that take messages for people, as their documentation describes them: a simulator that judges.

Each refuses what it would refuse in earnest: another shape, a text that is too long, more requests than its
rate. It says so in its own way, and notes it: `flaws` is empty where all that it got was right.

Rules from the services' own pages: Slack, "Sending messages using incoming webhooks", "Rate limits" and
"Section block"; Discord, "Execute Webhook" and "Rate Limits"; Microsoft, "Create an Incoming Webhook";
Telegram, "sendMessage" and "My bot is hitting limits"; ntfy, "Publishing" and "Limitations"; PagerDuty,
"Send an alert event" and "Events API v2 overview".
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiohttp import web

Body = Mapping[str, Any]
Flaws = Iterator[str]


class Answer(NamedTuple):
    """What a service answers."""

    status: int
    text: str = ""
    headers: Mapping[str, str] = {}


class Message(NamedTuple):
    """A message that a service accepted, and the lines that people read."""

    at: float
    lines: list[str]
    body: Body


class Rules(NamedTuple):
    """A service: where it is posted to, how many requests it takes at once, and a second; what it answers;
    what it finds wrong with a request, and what people see of a good one."""

    path: str
    burst: int
    per_second: float
    ok: Answer
    limited: Callable[[float], Answer]
    refusal: Callable[[str], Answer]
    flaws: Callable[[web.Request, bytes, Body], Flaws]
    shown: Callable[[Body], str]


def _as_json(status: int, /, **says: Any) -> Answer:
    return Answer(status, json.dumps(says), {"Content-Type": "application/json"})


def _slack(request: web.Request, raw: bytes, body: Body) -> Flaws:
    if not body.get("text"):
        yield "no_text"
    blocks = body.get("blocks", [])
    if not isinstance(blocks, list) or len(blocks) > 50:
        yield "invalid_blocks"
        return
    for block in blocks:
        text = block.get("text", {})
        if block.get("type") != "section" or text.get("type") not in ("plain_text", "mrkdwn"):
            yield "invalid_blocks"
        elif not 1 <= len(text.get("text", "")) <= 3000:
            yield "invalid_blocks: text must be 3001 characters at most, and one at least"
    if len(body.get("text", "")) > 40_000:
        yield "msg_too_long"


def _discord(request: web.Request, raw: bytes, body: Body) -> Flaws:
    if not 1 <= len(body.get("content") or "") <= 2000:
        yield "Must be 2000 or fewer in length."
    if body.get("allowed_mentions", {}).get("parse", ["everyone"]):
        yield "mentions are not switched off"
    if not body.get("flags", 0) & 4:
        yield "embeds of links are not suppressed"


def _teams(request: web.Request, raw: bytes, body: Body) -> Flaws:
    if len(raw) > 28 * 1024:
        yield "Request Entity too large"
    cards = body.get("attachments", [])
    if body.get("type") != "message" or len(cards) != 1:
        yield "no message with one card"
        return
    card = cards[0].get("content", {})
    if cards[0].get("contentType") != "application/vnd.microsoft.card.adaptive":
        yield "not the type of an adaptive card"
    if card.get("type") != "AdaptiveCard" or not card.get("version"):
        yield "not an adaptive card"
    for block in card.get("body", []):
        if block.get("type") not in ("TextBlock", "RichTextBlock"):
            yield f"no element of an adaptive card: {block.get('type')}"


def _telegram(request: web.Request, raw: bytes, body: Body) -> Flaws:
    if not request.path.endswith("/sendMessage"):
        yield "Not Found"
    if not body.get("chat_id"):
        yield "Bad Request: chat_id is empty"
    if not body.get("text"):
        yield "Bad Request: message text is empty"
    if len(body.get("text", "").encode("utf-16-le")) > 2 * 4096:
        yield "Bad Request: message is too long"


def _ntfy(request: web.Request, raw: bytes, body: Body) -> Flaws:
    if not re.fullmatch("/[-_A-Za-z0-9]{1,64}", request.path):
        yield "topic invalid"
    if len(raw) > 4096:
        yield "message too large: it would become an attachment"
    if (
        request.headers.get("markdown", "no") not in ("no", "0", "false")
        or "markdown" in request.content_type
    ):
        yield "markdown is switched on"
    if request.headers.get("priority", "3") not in (
        *"12345",
        "min",
        "low",
        "default",
        "high",
        "max",
        "urgent",
    ):
        yield "invalid priority"


def _pagerduty(request: web.Request, raw: bytes, body: Body) -> Flaws:
    payload = body.get("payload", {})
    if request.path != "/v2/enqueue":
        yield "Not Found"
    if len(raw) > 512 * 1024:
        yield "Payload Too Large"
    if not body.get("routing_key"):
        yield "'routing_key' is missing"
    if body.get("event_action") not in ("trigger", "acknowledge", "resolve"):
        yield "'event_action' is invalid"
    elif body["event_action"] != "trigger":
        if not body.get("dedup_key"):
            yield "'dedup_key' is missing"
    else:
        if not 1 <= len(payload.get("summary", "")) <= 1024:
            yield "'payload.summary' is missing, or longer than 1024 characters"
        if not payload.get("source"):
            yield "'payload.source' is missing"
        if payload.get("severity") not in ("critical", "error", "warning", "info"):
            yield "'payload.severity' is invalid"
    if len(body.get("dedup_key", "")) > 255:
        yield "'dedup_key' is longer than 255 characters"


def _shown_by_slack(body: Body) -> str:
    texts = [block["text"] for block in body.get("blocks", [])] or [{"type": "mrkdwn", "text": body["text"]}]
    said = "\n".join(each["text"] for each in texts)
    return said.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _shown_by_teams(body: Body) -> str:
    def said(block: Body) -> str:
        if block["type"] == "TextBlock":
            return str(block["text"])
        return "".join(run if isinstance(run, str) else run["text"] for run in block["inlines"])

    return "\n".join(map(said, body["attachments"][0]["content"]["body"]))


SERVICES: Mapping[str, Rules] = {
    "slack": Rules(
        path="/services/T000/B000/XXXX",
        burst=2,  # "short bursts of more than one are allowed"
        per_second=1,
        ok=Answer(200, "ok"),
        limited=lambda s: Answer(429, "rate_limited", {"Retry-After": f"{max(1, round(s))}"}),
        refusal=lambda why: Answer(400, why.partition(":")[0]),
        flaws=_slack,
        shown=_shown_by_slack,
    ),
    "discord": Rules(
        path="/api/webhooks/1/token",
        burst=5,
        per_second=2.5,
        ok=Answer(204),
        limited=lambda s: _as_json(429, message="You are being rate limited.", retry_after=s),
        refusal=lambda why: _as_json(400, code=50035, message="Invalid Form Body", errors={"content": why}),
        flaws=_discord,
        shown=lambda body: re.sub(r"\\(.)", r"\1", body["content"]),
    ),
    "teams": Rules(
        path="/workflows/w/triggers/manual/paths/invoke?sig=s",
        burst=4,
        per_second=4,
        ok=Answer(202),
        limited=lambda s: Answer(429, "", {"Retry-After": f"{max(1, round(s))}"}),
        refusal=lambda why: Answer(413 if "large" in why else 400, why),
        flaws=_teams,
        shown=_shown_by_teams,
    ),
    "telegram": Rules(
        path="/bot123:token/sendMessage",
        burst=2,
        per_second=1,
        ok=_as_json(200, ok=True, result={"message_id": 1}),
        limited=lambda s: _as_json(
            429,
            ok=False,
            error_code=429,
            description=f"Too Many Requests: retry after {max(1, round(s))}",
            parameters={"retry_after": max(1, round(s))},
        ),
        refusal=lambda why: _as_json(400, ok=False, error_code=400, description=why),
        flaws=_telegram,
        shown=lambda body: str(body["text"]),
    ),
    "ntfy": Rules(
        path="/topic",
        burst=60,
        per_second=0.2,
        ok=_as_json(200, id="sPs71M8A2T", event="message"),
        limited=lambda s: _as_json(429, code=42901, http=429, error="limit reached: too many requests"),
        refusal=lambda why: _as_json(400, code=40017, http=400, error=f"invalid request: {why}"),
        flaws=_ntfy,
        shown=lambda body: str(body["message"]),
    ),
    "pagerduty": Rules(
        path="/v2/enqueue",
        burst=120,
        per_second=2,
        ok=_as_json(202, status="success", message="Event processed", dedup_key="k"),
        limited=lambda s: Answer(429, "", {}),
        refusal=lambda why: _as_json(400, status="invalid event", message="invalid", errors=[why]),
        flaws=_pagerduty,
        shown=lambda body: str(body["payload"]["summary"]),
    ),
}
"""By the subscription's `format`."""

Mood = Callable[[list[str]], "Answer | None"]
"""What a service answers to these lines besides what its rules say; None: nothing else."""


@dataclass(eq=False)
class ChatService:
    """One service on a port of its own: `async with` it. A `mood` may refuse what the rules let through;
    while it `is_stuck`, accepted messages are not answered."""

    format: str
    mood: Mood = lambda lines: None
    is_stuck: bool = False
    messages: list[Message] = field(default_factory=list)
    flaws: list[str] = field(default_factory=list)
    limited: int = 0
    refused: int = 0
    credit: float | None = None
    """How many requests it takes at once from now on: as many as its rules say, if nothing is set."""
    _credited_at: float = 0.0

    async def __aenter__(self) -> Self:
        self.rules = SERVICES[self.format]
        self.credit = self.rules.burst if self.credit is None else self.credit
        self._credited_at = time.monotonic()
        self._has_news = asyncio.Condition()
        app = web.Application()
        app.router.add_post("/{path:.*}", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}{self.rules.path}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @property
    def lines(self) -> list[str]:
        """All lines that people have read, in order, repeats included."""
        return [line for message in self.messages for line in message.lines]

    async def until(self, claim: Callable[[], bool], *, within_s: float = 10) -> None:
        async with asyncio.timeout(within_s), self._has_news:
            await self._has_news.wait_for(claim)

    async def _take(self, request: web.Request) -> web.Response:
        raw = await request.read()
        answer = self._judge(request, raw)
        async with self._has_news:
            self._has_news.notify_all()
        while self.is_stuck:  # noqa: ASYNC110 - the test ends it
            await asyncio.sleep(0.01)
        return web.Response(status=answer.status, text=answer.text, headers=answer.headers)

    def _judge(self, request: web.Request, raw: bytes) -> Answer:
        now, rules = time.monotonic(), self.rules
        assert self.credit is not None
        self.credit = min(rules.burst, self.credit + (now - self._credited_at) * rules.per_second)
        self._credited_at = now
        if self.credit < 1:
            self.limited += 1
            return rules.limited((1 - self.credit) / rules.per_second)
        self.credit -= 1
        is_text = self.format == "ntfy"
        try:
            body = {"message": raw.decode()} if is_text else json.loads(raw)
            wrong = [*rules.flaws(request, raw, body)]
        except (ValueError, AttributeError, TypeError) as error:
            body, wrong = {}, [f"invalid_payload: {error}"]
        if request.content_type != ("text/plain" if is_text else "application/json"):
            wrong.append(f"another content type: {request.content_type}")
        if wrong:
            self.flaws += wrong
            return rules.refusal(wrong[0])
        lines = rules.shown(body).split("\n")
        if other := self.mood(lines):
            self.refused += 1
            return other
        self.messages.append(Message(now, lines, body))
        return rules.ok
