"""Answers of a simulator, down to the bytes on the socket, and the ways in which an answer goes wrong."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from aiohttp import hdrs, web

from watcher.sandbox.book import AccountKey

TransportFault = Literal["content_length_short", "slow_body", "disconnect", "hang"]
"""content_length_short: fewer bytes than Content-Length says, then the connection closes. slow_body: one
byte per `byte_every_s`. disconnect: closed without an answer. hang: no answer, ever."""


class Call(NamedTuple):
    """One request as a simulator reads it. `headers` compares names in any case."""

    method: str
    path: str
    host: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: any status, any headers, any bytes. `content_type` None sends no such header."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = "application/json"
    transport_fault: TransportFault | None = None
    delay_s: float = 0
    byte_every_s: float = 1

    @classmethod
    def json(cls, value: Any, status: int = 200) -> "Answer":
        """Answer with a JSON value."""
        return cls(status, json.dumps(value, separators=(",", ":")).encode())


class Reply(NamedTuple):
    """A true answer; `polled` is the account whose balances it has, or None."""

    answer: Answer
    polled: AccountKey | None = None


class Declined(Exception):
    """The request is refused as the documentation says; `answer` says it to the client."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("the request is refused")
        self.answer = answer


Fault = Answer | Callable[[Answer], Answer]
"""What is sent instead: fixed bytes, or a spoilt form of the honest answer."""


def truncated(answer: Answer) -> Answer:
    """Cut the body in half, with a Content-Length that fits the half: JSON that never ends."""
    return replace(answer, body=answer.body[: len(answer.body) // 2])


def short_body(answer: Answer) -> Answer:
    """Send half the bytes that Content-Length promises, then close."""
    return replace(answer, transport_fault="content_length_short")


def slow_body(answer: Answer) -> Answer:
    """Send a valid answer a byte a second, so that only a timeout on the whole request ends it."""
    return replace(answer, transport_fault="slow_body")


def slow(delay_s: float) -> Fault:
    """Send a valid answer late."""
    return lambda answer: replace(answer, delay_s=delay_s)


def _html(status: int, text: str) -> Answer:
    return Answer(status, f"<html><body><h1>{text}</h1></body></html>".encode(), content_type="text/html")


UNAVAILABLE = Answer(503, content_type=None)
"""503 with an empty body, as seen in production (PROVIDERS, A4)."""

BAD_GATEWAY = _html(502, "502 Bad Gateway")
SERVER_ERROR = Answer.json({"status": "SOMETHING_WENT_WRONG"}, 500)
CHALLENGE = _html(200, "Just a moment...")
"""A gateway's page with status 200 in front of the API."""

TOO_MANY = Answer(429, content_type=None)
TOO_MANY_JSON = Answer.json({"message": "Too Many Requests"}, 429)
TOO_MANY_HTML = _html(429, "429 Too Many Requests")
"""The body of a 429 is unknown for both providers (PROVIDERS, A4 and B4): these are the variants."""

FORBIDDEN_RATE = Answer.json({"message": "Limit Exceeded"}, 403)
DISCONNECT = Answer(transport_fault="disconnect")
HANG = Answer(transport_fault="hang")

FAULTS: Mapping[str, Fault] = {
    "unavailable": UNAVAILABLE,
    "bad-gateway": BAD_GATEWAY,
    "server-error": SERVER_ERROR,
    "challenge": CHALLENGE,
    "too-many": TOO_MANY,
    "too-many-json": TOO_MANY_JSON,
    "too-many-html": TOO_MANY_HTML,
    "disconnect": DISCONNECT,
    "hang": HANG,
    "truncated": truncated,
    "short-body": short_body,
    "slow-body": slow_body,
}
"""Faults by the name that a script calls them."""


def too_many(retry_after: str) -> Answer:
    """A 429 that says when to come back: seconds, a date, or nonsense."""
    return replace(TOO_MANY, headers={"Retry-After": retry_after})


async def call_of(request: web.Request) -> Call:
    """Read a request whole."""
    body = await request.read()
    return Call(request.method, request.path, request.host, request.query, request.headers, body)


async def send(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Send an answer, with the transport fault that it asks for."""
    if answer.delay_s:
        await asyncio.sleep(answer.delay_s)
    if answer.transport_fault == "hang":
        await asyncio.Event().wait()
    if answer.transport_fault == "disconnect":
        _close(request)
        return web.Response()
    typed = {hdrs.CONTENT_TYPE: answer.content_type} if answer.content_type else {}
    headers = typed | dict(answer.headers)
    if not answer.transport_fault:
        return web.Response(status=answer.status, body=answer.body, headers=headers)
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    if answer.transport_fault == "slow_body":
        for byte in answer.body:
            await response.write(bytes((byte,)))
            await asyncio.sleep(answer.byte_every_s)
    else:
        await response.write(answer.body[: len(answer.body) // 2])
        _close(request)
    return response


async def drop_default_type(_: web.Request, response: web.StreamResponse) -> None:
    """Remove the Content-Type that aiohttp adds if an answer asked for none."""
    if response.headers.get(hdrs.CONTENT_TYPE) == "application/octet-stream":
        del response.headers[hdrs.CONTENT_TYPE]


def _close(request: web.Request) -> None:
    if request.transport:
        request.transport.close()
