"""One attempt: POST exact bytes, signed, to one subscription, within bounds.

Refuses to follow, to remember and to trust: no redirect, no cookie, no proxy; of the answer the status
counts, its body is read no further than 64 KiB. Whatever happens comes back as an Attempt.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

import aiohttp
from yarl import URL

from watcher import __version__
from watcher.delivery.connector import guarded_connector
from watcher.delivery.egress import Policy, check_url
from watcher.delivery.outcomes import LONGEST_RETRY_AFTER_S, Attempt
from watcher.delivery.signing import Signer
from watcher.retry_after import retry_after_s
from watcher.settings import SubscriptionSettings
from watcher.store.lanes import Delivery

ATTEMPT_TIMEOUT_S = 20
"""A whole attempt, name look-up to last byte. Shorter than a lane's lease and than the drain."""

ANSWER_LIMIT = 64 * 1024

_AGAIN_WITHIN_S = 1.0
_CLOSED_MEANWHILE = (aiohttp.ServerDisconnectedError, ConnectionResetError)
_TRANSPORT_ERRORS = (aiohttp.ClientError, OSError, UnicodeError, ValueError)


class Target:
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


class Poster:
    """The connections to all subscribers. Use as `async with`; a change of policy needs a new one."""

    def __init__(self, policy: Policy, *, unix_time: Callable[[], float] = time.time) -> None:
        self._policy = policy
        self._unix_time = unix_time

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=guarded_connector(self._policy),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # the whole attempt has one, second try included
            auto_decompress=False,
            trust_env=False,
            max_line_size=8190,
            max_field_size=8190,
            max_headers=128,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, target: Target, delivery: Delivery, attempt: int) -> Attempt:
        """Make one attempt; at once a second time if an idle connection turned out to be closed."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                return await self._post(target, delivery, attempt, started)
        except TimeoutError:
            return Attempt(_since_ms(started), error=f"no answer within {ATTEMPT_TIMEOUT_S} s")

    async def _post(self, target: Target, delivery: Delivery, attempt: int, started: float) -> Attempt:
        is_first = True
        while True:
            try:
                return await self._once(target, delivery, attempt, started)
            except TimeoutError:
                raise
            except _TRANSPORT_ERRORS as error:
                is_soon = time.monotonic() - started <= _AGAIN_WITHIN_S
                if not (is_first and is_soon and isinstance(error, _CLOSED_MEANWHILE)):
                    return Attempt(_since_ms(started), error=_in_our_words(error))
            is_first = False

    async def _once(self, target: Target, delivery: Delivery, attempt: int, started: float) -> Attempt:
        timestamp = int(self._unix_time())
        headers = {
            **target.headers,
            "webhook-id": delivery.event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": target.signer.signature(delivery.event_id, timestamp, delivery.body),
            "watcher-attempt": str(attempt),
        }
        async with self._session.post(
            target.url, data=delivery.body, headers=headers, allow_redirects=False
        ) as response:
            wish_s = retry_after_s(
                response.headers.get("Retry-After"),
                datetime.fromtimestamp(timestamp, UTC),
                most_s=LONGEST_RETRY_AFTER_S,
            )
            await _drain(response)
            return Attempt(_since_ms(started), status=response.status, retry_after_s=wish_s)


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read a short answer to its end, so that the connection can be used again; drop a long one."""
    size = 0
    try:
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > ANSWER_LIMIT:
                response.close()
                return
    except (aiohttp.ClientError, OSError):
        response.close()  # the status is known, and only it counts


def _in_our_words(error: Exception) -> str:
    """Name what went wrong without repeating it: texts of aiohttp hold the whole URL."""
    for kind, words in _WORDS:
        if isinstance(error, kind):
            return words
    return type(error).__name__


_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorCertificateError, "its certificate does not verify"),
    (aiohttp.ClientConnectorSSLError, "TLS failed"),
    (aiohttp.ClientConnectorDNSError, "its name does not resolve"),
    (aiohttp.ClientConnectorError, "cannot connect"),
    (aiohttp.ServerDisconnectedError, "it closed the connection without an answer"),
    (ConnectionResetError, "it reset the connection"),
    (aiohttp.ClientResponseError, "its answer is not HTTP"),
    (aiohttp.ClientPayloadError, "its answer broke off"),
    (UnicodeError, "its name is not a host name"),
)


def _since_ms(started: float) -> int:
    return round(1000 * (time.monotonic() - started))
