"""The webhook sink: POSTs exact bytes, signed, to one subscription, within bounds.

Refuses to follow, to remember and to trust: no redirect, no cookie, no proxy; of the answer the status
counts, and no more than 64 KiB of it are read.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from watcher import __version__
from watcher.delivery.connector import (
    ANSWER_LIMIT,
    MOST_KEPT,
    AnswerTooLong,
    Progress,
    drop_frames,
    guarded_connector,
    progress,
    refusal_in,
)
from watcher.delivery.egress import Policy, check_url
from watcher.delivery.signing import Signer
from watcher.delivery.sink import ATTEMPT_TIMEOUT_S, LONGEST_RETRY_AFTER_S, Attempt
from watcher.durations import retry_after_s
from watcher.engine.breaker import Answer
from watcher.journal.events import Delivery
from watcher.printable import printable, without_secrets
from watcher.resolver import CurrentResolver
from watcher.settings import SubscriptionSettings
from watcher.tls_flaws import CANNOT_CONNECT, Flaw, cannot_connect, tls_flaw

UNRESOLVED = "its name does not resolve"
REFUSED = "refused"
"""How an attempt's error begins if another answer of the resolver may help; the second is the egress
guard's."""

_BODY_S = 2.0
"""Once the status is known, the rest is awaited only so that the connection can be used again."""

EXCERPT_LIMIT = 1024
"""Bytes of an answer that are kept with its attempt."""

_EXCERPT_BYTES = 4096  # far more than is shown, so that no secret is cut in two before it is found
_BUFFER = 16 * 1024  # of each answer: a thousand endless ones at a time must fit in memory
_MOST_HEADERS = 1000  # what has more is left unread but for its status
_AGAIN_WITHIN_S = 1.0
_TRANSPORT_ERRORS = (aiohttp.ClientError, OSError, ValueError)


_ANSWERS = {
    410: Answer.GONE,
    429: Answer.SLOW_DOWN,
    503: Answer.OVERLOADED,
    **dict.fromkeys((502, 504), Answer.NO_ANSWER),
    **dict.fromkeys((400, 409, 413, 415, 422), Answer.REJECTED),
}
"""What else than FAILED a status says: of a gateway, of the whole receiver, or of the one event."""


_REDIRECTED = "redirects are not followed: write the place where it leads into the subscription's url"


def _fix_of(status: int) -> str:
    return _REDIRECTED if 300 <= status < 400 else ""


def answer_of(status: int) -> Answer:
    """Translate a status. A redirect is never followed: it is a failure."""
    return Answer.DELIVERED if 200 <= status < 300 else _ANSWERS.get(status, Answer.FAILED)


class WebhookTarget:
    """Where and how one subscription is reached: checked and prepared once per configuration."""

    def __init__(self, settings: SubscriptionSettings, policy: Policy) -> None:
        self.name = settings.name
        self.settings = settings
        self.url: URL = check_url(settings.url.get_secret_value(), policy)
        self.signer = Signer([secret.get_secret_value() for secret in settings.secrets])
        self.headers = {
            **settings.headers,
            "content-type": "application/json",
            "user-agent": f"watcher/{__version__}",
        }


class WebhookSink:
    """The connections to all webhook subscribers. Use as `async with`; a change of policy needs a new one.

    `deadline_s` bounds an attempt, second try included; no more than `keep` connections are kept for the next
    attempts. The caller closes a `resolver` that it gives.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        deadline_s: float = ATTEMPT_TIMEOUT_S,
        resolver: AbstractResolver | None = None,
        keep: int = MOST_KEPT,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._policy = policy
        self._deadline_s = deadline_s
        self._resolver = resolver
        self._keep = keep
        self._unix_time = unix_time
        self._sessions = AsyncExitStack()

    async def __aenter__(self) -> Self:
        enter = self._sessions.enter_async_context
        resolver = self._resolver
        if resolver is None:
            resolver = CurrentResolver()
            self._sessions.push_async_callback(resolver.close)
        self._session = await enter(_session(self._policy, resolver, self._keep))
        self._fresh = await enter(_session(self._policy, resolver, keep=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sessions.aclose()

    async def send(self, target: WebhookTarget, delivery: Delivery, attempt: int) -> Attempt:
        """POST once; at once a second time if an idle connection turned out to be closed."""
        started = time.monotonic()
        deadline = asyncio.get_running_loop().time() + self._deadline_s
        so_far = Progress()
        progress.set(so_far)
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._respond(target, delivery, attempt)
        except (TimeoutError, *_TRANSPORT_ERRORS) as error:
            return self._unanswered(error, target.url, so_far, started)
        async with response:
            answer = answer_of(response.status)
            is_smooth = attempt == 1 and answer is Answer.DELIVERED  # what else it says is of no interest
            beginning, until = b"", min(deadline, asyncio.get_running_loop().time() + _BODY_S)
            if not (is_smooth and response.content.is_eof()):
                # Read to its end, so that the connection can be used again; the status is known however that
                # ends.
                try:
                    async with asyncio.timeout_at(until):
                        async for chunk in response.content.iter_any():
                            beginning += chunk[: _EXCERPT_BYTES - len(beginning)]
                except (aiohttp.ClientError, OSError) as error:
                    drop_frames(error)
                    response.close()
        if is_smooth:
            return Attempt(answer, _since_ms(started), status=response.status)
        text = printable(without_secrets(beginning.decode(errors="backslashreplace")), EXCERPT_LIMIT)
        now = datetime.fromtimestamp(self._unix_time(), UTC)
        return Attempt(
            answer,
            _since_ms(started),
            status=response.status,
            retry_after_s=retry_after_s(
                response.headers.get("Retry-After"), now, most_s=LONGEST_RETRY_AFTER_S
            ),
            excerpt=text.encode()[:EXCERPT_LIMIT].decode(errors="ignore"),
            fix=_fix_of(response.status),
        )

    async def _respond(
        self, target: WebhookTarget, delivery: Delivery, attempt: int
    ) -> aiohttp.ClientResponse:
        """Send, and wait for the head of an answer; a second try has a connection that is not old."""
        again_until = time.monotonic() + _AGAIN_WITHIN_S
        body = delivery.body
        headers = self._headers(target, delivery.event_id, body, attempt)
        try:
            return await self._session.post(target.url, data=body, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectionError:
            so_far = progress.get()
            if not so_far.is_reused or so_far.status is not None or time.monotonic() > again_until:
                raise
        headers = {**self._headers(target, delivery.event_id, body, attempt), "connection": "close"}
        return await self._fresh.post(target.url, data=body, headers=headers, allow_redirects=False)

    def _headers(self, target: WebhookTarget, event_id: str, body: bytes, attempt: int) -> dict[str, str]:
        timestamp = int(self._unix_time())
        return {
            **target.headers,
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": target.signer.signature(event_id, timestamp, body),
            "watcher-attempt": str(attempt),
        }

    def _unanswered(self, error: Exception, url: URL, so_far: Progress, started: float) -> Attempt:
        """Make the Attempt of one without a whole head of an answer: a status that arrived decides."""
        took_ms, refusal = _since_ms(started), refusal_in(error)
        if so_far.status is not None:
            status = so_far.status
            attempt = Attempt(answer_of(status), took_ms, status=status, fix=_fix_of(status))
        elif refusal:
            attempt = Attempt(Answer.FORBIDDEN, took_ms, error=f"{REFUSED}: {refusal}")
        elif type(error) is TimeoutError:
            what = "answer" if so_far.is_connected else "connection"
            attempt = Attempt(Answer.OVERLOADED, took_ms, error=f"no {what} within {self._deadline_s:g} s")
        else:
            flaw = flaw_of(error, url)
            attempt = Attempt(Answer.NO_ANSWER, took_ms, error=flaw.words, fix=flaw.fix)
        drop_frames(error)
        return attempt


def _session(policy: Policy, resolver: AbstractResolver, keep: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=guarded_connector(policy, resolver, keep=keep),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),  # the whole attempt has one, second try included
        skip_auto_headers={"accept-encoding"},  # an answer is shown as it comes, so better not packed
        auto_decompress=False,
        trust_env=False,
        read_bufsize=_BUFFER,
        max_line_size=ANSWER_LIMIT,
        max_field_size=ANSWER_LIMIT,
        max_headers=_MOST_HEADERS,
    )


def flaw_of(error: Exception, url: URL) -> Flaw:
    """Name what went wrong without repeating it: texts of aiohttp hold the whole URL."""
    is_connecting = isinstance(error, aiohttp.ClientConnectorError)
    if flaw := tls_flaw(error, is_handshake=is_connecting and url.scheme == "https"):
        return flaw
    words = next((words for kind, words in _WORDS if isinstance(error, kind)), type(error).__name__)
    return Flaw(cannot_connect(error) if words == CANNOT_CONNECT else words)


_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorDNSError, UNRESOLVED),
    (aiohttp.ClientConnectorError, CANNOT_CONNECT),
    (AnswerTooLong, "its answer has no end"),
    (aiohttp.ServerDisconnectedError, "it closed the connection without an answer"),
    (aiohttp.ClientOSError, "it reset the connection"),
    (aiohttp.ClientResponseError, "its answer is not HTTP"),
    (UnicodeError, "its name is not a host name"),
)


def _since_ms(started: float) -> int:
    return round(1000 * (time.monotonic() - started))
