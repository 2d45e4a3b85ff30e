"""Any bytes that come back over a socket become an attempt that is judged, or a rejected poll."""

import asyncio
import gzip
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import pytest
import uvloop
from hypothesis import strategies as st

from tests.support.builders import a_subscription
from tests.support.fuzzing import damaged_bytes, fuzz
from tests.support.provider_staging import (
    TOKENS_PATH,
    Stage,
    a_balance,
    a_token_list,
    loopring_account,
    loopring_settings,
    raw,
)
from tests.support.provider_staging import answer as as_answer
from watcher.delivery.egress import Policy
from watcher.delivery.sink import LONGEST_RETRY_AFTER_S
from watcher.delivery.webhook import WebhookSink, WebhookTarget
from watcher.journal.events import Delivery
from watcher.providers.contract import Rejected
from watcher.providers.http import LONGEST_RETRY_AFTER_S as LONGEST_PAUSE_S
from watcher.providers.http import ProviderClient
from watcher.providers.loopring import Loopring

DELIVERY = Delivery("evt_1", "total.increased", 1, b'{"id":"evt_1"', "ops")
POLICY = Policy((ip_network("127.0.0.0/8"),), allow_http=True)
ACCOUNT = loopring_account()

REFUSAL = b"""HTTP/1.1 503 Service Unavailable\r
Date: Fri, 20 Nov 2026 14:03:05 GMT\r
Retry-After: 120\r
Set-Cookie: a=b\r
Transfer-Encoding: chunked\r
\r
5;x=y\r
sorry\r
0\r
\r
"""
BALANCES = gzip.compress(json.dumps([a_balance(0, "12", "5"), a_balance(1, "7")]).encode(), mtime=0)
BODY = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\nRetry-After: 9\r\n\r\n%b"
GOOD = b"HTTP/1.1 100 Continue\r\n\r\n" + BODY % (len(BALANCES), BALANCES)
ANSWERS = damaged_bytes(REFUSAL) | damaged_bytes(GOOD) | st.binary()


@dataclass(frozen=True, slots=True)
class Place:
    """A server with a given answer, and its clients."""

    runner: asyncio.Runner
    stage: Stage
    sink: WebhookSink
    target: WebhookTarget
    client: ProviderClient
    stumbled: list[Any]
    """Uncaught errors between the socket and the reader."""

    def _repr_pretty_(self, printer: Any, _is_cycle: bool) -> None:
        printer.text("place")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()
        yield runner.run(_placed(runner, stack))
        runner.run(stack.aclose())


async def _placed(runner: asyncio.Runner, stack: AsyncExitStack) -> Place:
    stumbled: list[Any] = []
    runner.get_loop().set_exception_handler(lambda _, context: stumbled.append(context))
    stage = await stack.enter_async_context(Stage())
    stage.reply_by_path[TOKENS_PATH] = as_answer(a_token_list(0, 1, decimals=2))
    settings = loopring_settings(stage.url)
    client = await stack.enter_async_context(ProviderClient(Loopring(settings), settings))
    sink = await stack.enter_async_context(WebhookSink(POLICY))
    target = WebhookTarget(a_subscription(url=f"{stage.url}/in"), POLICY)
    return Place(runner, stage, sink, target, client, stumbled)


@fuzz(answer=ANSWERS)
def test_any_answer_of_a_receiver_is_an_attempt(place: Place, answer: bytes) -> None:
    place.stage.reply = raw(answer, hang_up=True)
    attempt = place.runner.run(place.sink.send(place.target, [DELIVERY], 1))
    assert place.stumbled == []
    assert (attempt.status is None) != (attempt.error is None)
    assert f"{attempt.error}{attempt.excerpt}".replace("\xa0", " ").isprintable()
    assert 0 <= (attempt.retry_after_s or 0) <= LONGEST_RETRY_AFTER_S


@fuzz(answer=ANSWERS)
def test_any_answer_of_a_provider_is_a_snapshot_or_refused(place: Place, answer: bytes) -> None:
    place.stage.reply = raw(answer, hang_up=True)
    refused = place.runner.run(_refusal(place.client))
    assert place.stumbled == []
    if refused:
        assert refused.reason.isprintable()
        assert 0 <= (refused.retry_after_s or 0) <= LONGEST_PAUSE_S


async def _refusal(client: ProviderClient) -> Rejected | None:
    try:
        await client.read(ACCOUNT, await client.ask(ACCOUNT))
    except Rejected as refused:
        return refused
    return None
