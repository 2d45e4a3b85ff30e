"""The webhook sink: POSTs to one subscription, within bounds; and the target of signed events.

Refuses to follow redirects, to keep cookies and to use a proxy. Of the answer only the status counts, and no
more than 64 KiB of it are read.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple, Protocol, Self

from aiohttp.abc import AbstractResolver
from yarl import URL

from watcher import __version__
from watcher.delivery.egress import Policy, check_url
from watcher.delivery.signing import Signer
from watcher.delivery.sink import ATTEMPT_TIMEOUT_S, LONGEST_RETRY_AFTER_S, Attempt, Target
from watcher.durations import retry_after_s
from watcher.engine.breaker import Answer
from watcher.http import wire
from watcher.http.dial import Dialer, EgressRefused, NoConnection, NoHostName, Unresolved
from watcher.http.pool import MOST_KEPT, Pool
from watcher.journal.events import Delivery
from watcher.printable import printable, without_secrets
from watcher.settings import SubscriptionSettings
from watcher.tls_flaws import CANNOT_CONNECT, Flaw, cannot_connect, tls_flaw

ANSWER_LIMIT = 64 * 1024
"""Bytes read of one answer, with its head and interim answers. One more ends the connection."""

UNRESOLVED = "its name does not resolve"
REFUSED = "refused"
"""How an attempt's error begins if another answer of the resolver may help; the second is the egress
policy's."""

_BODY_S = 2.0
"""Once the status is known, the body is awaited only so that the connection can be used again."""

EXCERPT_LIMIT = 1024
"""Bytes of an answer that are kept with its attempt."""

_EXCERPT_BYTES = 4096  # far more than is shown: a secret that is cut in two would not be found
_LIMITS = wire.Limits(ANSWER_LIMIT, _EXCERPT_BYTES)


_ANSWERS = {
    410: Answer.GONE,
    429: Answer.SLOW_DOWN,
    503: Answer.OVERLOADED,
    **dict.fromkeys((502, 504), Answer.NO_ANSWER),
    **dict.fromkeys((400, 409, 413, 415, 422), Answer.REJECTED),
}
"""Statuses that mean something else than FAILED: of a gateway, of the whole receiver, or of the one event."""


_REDIRECTED = "redirects are not followed: write the URL that it redirects to into the subscription's url"


def answer_of(status: int) -> Answer:
    """Translate a status. A redirect is a failure: it is never followed."""
    return Answer.DELIVERED if 200 <= status < 300 else _ANSWERS.get(status, Answer.FAILED)


class Reading(NamedTuple):
    """What an answer says: the name of the error in its body, and how to fix it."""

    answer: Answer
    error: str | None = None
    fix: str = ""
    retry_after_s: float | None = None


@lru_cache(maxsize=64)
def reading_of(status: int) -> Reading:
    """Read an answer by its status alone."""
    return Reading(answer_of(status), fix=_REDIRECTED if 300 <= status < 400 else "")


class HttpTarget(Target, Protocol):
    """A target that is reached by one POST."""

    @property
    def url(self) -> URL: ...

    @property
    def place(self) -> wire.Place: ...

    def request(self, deliveries: Sequence[Delivery], attempt: int, timestamp: int) -> bytes:
        """Write the request of an attempt that is made at this Unix time."""
        ...

    def read(self, status: int, body: bytes) -> Reading:
        """Read an answer, given no more than the first 4 KiB of its body."""
        ...


def post_head(url: URL, headers: Mapping[str, str], content_type: str) -> bytes:
    """Write the part of a POST's head that is the same for all attempts, for a URL that was checked."""
    ours = {"content-type": content_type, "user-agent": f"watcher/{__version__}"}
    accept = {} if any(name.lower() == "accept" for name in headers) else {"accept": "*/*"}
    return wire.Head.of("POST", url, {**headers, **accept, **ours}.items()).written()


class WebhookTarget:
    """A subscription of signed events, one at a time."""

    most_together = 1

    def __init__(self, settings: SubscriptionSettings, policy: Policy) -> None:
        self.name = settings.name
        self.settings = settings
        self.signer = Signer([secret.get_secret_value() for secret in settings.secrets])
        self.lead_to(check_url(settings.url.get_secret_value(), policy))

    def lead_to(self, url: URL) -> None:
        """Send to a URL that was checked."""
        self.url = url
        self.place = wire.place_of(url)
        self._head = post_head(url, self.settings.headers, "application/json")

    def together(self, deliveries: Sequence[Delivery]) -> int:
        return 1

    def request(self, deliveries: Sequence[Delivery], attempt: int, timestamp: int) -> bytes:
        (delivery,) = deliveries
        body, event_id = delivery.body, delivery.event_id
        signature = self.signer.signature(event_id, timestamp, body)
        headers = (
            f"webhook-id: {event_id}\r\nwebhook-timestamp: {timestamp}\r\nwebhook-signature: {signature}\r\n"
            f"watcher-attempt: {attempt}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return b"%b%b%b" % (self._head, headers.encode("ascii"), body)

    def read(self, status: int, body: bytes) -> Reading:
        return reading_of(status)


class WebhookSink:
    """The connections to all subscribers. Use as `async with`; another policy needs a new sink.

    `deadline_s` bounds an attempt, its second try included; at most `keep` connections are kept for the next
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

    async def __aenter__(self) -> Self:
        self._pool = Pool(Dialer(self._resolver, self._policy.judge), keep=self._keep)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    async def send(self, target: HttpTarget, deliveries: Sequence[Delivery], attempt: int) -> Attempt:
        """POST once; a second time at once if an idle connection turned out to be closed."""
        started = time.monotonic()
        request = target.request(deliveries, attempt, int(self._unix_time()))
        deadline = self._pool.time() + self._deadline_s
        try:
            response = await self._pool.send(
                target.place, request, _LIMITS, deadline=deadline, rest_s=_BODY_S
            )
        except wire.NoAnswer as error:
            return self._unanswered(error, _since_ms(started))
        status = response.status
        reading = target.read(status, response.body)
        if attempt == 1 and reading.answer is Answer.DELIVERED:  # the rest of it does not matter
            return Attempt(reading.answer, _since_ms(started), status=status)
        text = printable(without_secrets(response.body.decode(errors="backslashreplace")), EXCERPT_LIMIT)
        now = datetime.fromtimestamp(self._unix_time(), UTC)
        asked_s = retry_after_s(response.header("retry-after"), now, most_s=LONGEST_RETRY_AFTER_S)
        return Attempt(
            reading.answer,
            _since_ms(started),
            status=status,
            error=reading.error,
            retry_after_s=asked_s if reading.retry_after_s is None else reading.retry_after_s,
            excerpt=text.encode()[:EXCERPT_LIMIT].decode(errors="ignore"),
            fix=reading.fix,
        )

    def _unanswered(self, error: wire.NoAnswer, took_ms: int) -> Attempt:
        """Make the Attempt of a POST without an answer."""
        match error:
            case EgressRefused():
                return Attempt(Answer.FORBIDDEN, took_ms, error=f"{REFUSED}: {error.reason}")
            case wire.TimedOut():
                what = "answer" if error.is_connected else "connection"
                words = f"no {what} within {self._deadline_s:g} s"
                return Attempt(Answer.OVERLOADED, took_ms, error=words)
        flaw = flaw_of(error)
        return Attempt(Answer.NO_ANSWER, took_ms, error=flaw.words, fix=flaw.fix)


def flaw_of(error: Exception) -> Flaw:
    """Return what went wrong, without repeating texts of the system or of OpenSSL."""
    if flaw := tls_flaw(error, is_handshake=isinstance(error, NoConnection)):
        return flaw
    words = next((words for kind, words in _WORDS if isinstance(error, kind)), type(error).__name__)
    return Flaw(cannot_connect(error) if words == CANNOT_CONNECT else words)


_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (Unresolved, UNRESOLVED),
    (NoHostName, "its name is not a host name"),
    (NoConnection, CANNOT_CONNECT),
    (wire.TooLong, "its answer does not end"),
    (wire.Reset, "it reset the connection"),
    (wire.Disconnected, "it closed the connection without an answer"),
    (wire.NotHttp, "its answer is not HTTP"),
)


def _since_ms(started: float) -> int:
    return round(1000 * (time.monotonic() - started))
