"""T26: a failing provider makes no event, is hardly polled, and its recovery is noticed.

Time runs thirty times as fast: an interval of 30 s is one, half an hour is a minute.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.faults.failing_provider import KINDS, FailingProvider, Names
from tests.faults.provider_scene import ACCOUNTS, INTERVAL, some_settings, until_read
from tests.faults.scene import BOUNDED, LONG
from tests.support.builders import SECRET
from tests.support.rig import workers
from tests.support.tls_subscribers import a_client_trusting
from watcher.engine import breaker
from watcher.http import dial
from watcher.http.dial import CurrentResolver
from watcher.polling import cadence, poll, work
from watcher.providers.contract import Request
from watcher.providers.http import ProviderClient
from watcher.receiver import Receiver
from watcher.run import configured
from watcher.store.keys import Keys

pytestmark = BOUNDED

SCALE = 30
FIVE_MINUTES_S = 300 / SCALE
HALF_AN_HOUR_S = 1800 / SCALE

WORKERS = 2
CANARY, *OTHERS = [f"-{number}" for number in range(ACCOUNTS)]
"""How the names of a provider's accounts end: the first of them asks for all."""

SPREAD = 0.1


@pytest.fixture(autouse=True)
def _time_runs_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (poll, "_LEASE_MARGIN_S"),
        (work, "LONGEST_TURN_S"),
        (cadence, "_FIRST_WAIT_S"),
        (cadence, "_LONGEST_WAIT_S"),
        (cadence, "_LONGEST_WAIT_OF_PROBE_S"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name) / SCALE)
    monkeypatch.setattr(breaker, "PROBES_S", [wait_s / SCALE for wait_s in breaker.PROBES_S])


@pytest.fixture
def polled_at(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, list[float]]:
    """When each account was asked about, whatever became of the request."""
    polled_at: dict[str, list[float]] = defaultdict(list)
    fetch = ProviderClient._fetch

    async def noted(self: ProviderClient, request: Request) -> bytes:
        if account := request.query.get("accountId"):
            polled_at[f"{self._settings.name}-{int(account) - 1}"].append(time.monotonic())
        return await fetch(self, request)

    monkeypatch.setattr(ProviderClient, "_fetch", noted)
    return polled_at


@pytest.fixture
async def providers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mapping[str, FailingProvider]]:
    async with AsyncExitStack() as stack:
        providers = {kind: await stack.enter_async_context(FailingProvider(kind)) for kind in KINDS}
        trusting = a_client_trusting(providers["tls"].pem)
        monkeypatch.setattr(dial, "system_tls", lambda: trusting)
        monkeypatch.setattr(configured, "CurrentResolver", partial(CurrentResolver, make=Names))
        monkeypatch.setattr(dial, "CACHE_S", 0)
        yield providers


@pytest.mark.parametrize("outage_s", [6, pytest.param(HALF_AN_HOUR_S, marks=LONG)])
async def test_no_outage_makes_an_event_and_each_is_over_as_soon_as_the_provider_is_back(
    outage_s: float,
    providers: Mapping[str, FailingProvider],
    polled_at: Mapping[str, list[float]],
    redis_client: Redis,
    redis_server_url: str,
    namespace: str,
) -> None:
    async with Receiver(secrets=[SECRET]) as receiver:
        settings = some_settings(redis_server_url, namespace, providers.values(), receiver.url)
        keys = [Keys(namespace).state(name) for name in settings.account_by_name]
        async with workers(settings, *(f"w{number}" for number in range(WORKERS))):
            await until_read(redis_client, keys)
            await asyncio.gather(*(provider.fail() for provider in providers.values()))
            failing_from, states = time.time(), await read(redis_client, keys)
            for step in (1, 2):
                await asyncio.sleep(outage_s / 2)
                for provider in providers.values():
                    provider.total += step
            is_told, kept = receiver.taken, await read(redis_client, keys)
            healed_at = time.monotonic()
            await asyncio.gather(*(provider.heal() for provider in providers.values()))
            async with asyncio.timeout(20):
                events = await receiver.wait_for(len(keys))
            back_s = {kind: max(_back_s(polled_at, kind, healed_at)) for kind in providers}
            await asyncio.sleep(2 * INTERVAL.total_seconds())
    print("back after, in intervals:", {kind: f"{seconds:.2f}" for kind, seconds in back_s.items()})
    assert is_told == 0
    assert kept == states
    assert receiver.taken == len(keys), "what happened meanwhile is one event each"
    assert {(event["type"], event["data"]["amount"]) for event in events} == {("total.increased", "3")}
    assert all(_from(event) <= failing_from for event in events)
    assert max(back_s.values()) <= 2.5, "two intervals, and what a busy machine adds"
    if outage_s == HALF_AN_HOUR_S:
        _assert_hardly_asked(providers, polled_at, healed_at - FIVE_MINUTES_S * 2, healed_at)


def _assert_hardly_asked(
    kinds: Iterable[str], polled_at: Mapping[str, list[float]], since: float, until: float
) -> None:
    for kind in kinds:
        counts = {}
        for account in (CANARY, *OTHERS):
            at = [at for at in polled_at[kind + account] if since < at < until]
            counts[account] = len(at)
            waits = [later - sooner for sooner, later in pairwise(at)]
            longest_s = INTERVAL.total_seconds() if account == CANARY else FIVE_MINUTES_S
            assert min(waits, default=longest_s) >= (1 - SPREAD) * longest_s
        print(kind, "asked in ten minutes:", counts)


def _back_s(polled_at: Mapping[str, list[float]], kind: str, healed_at: float) -> list[float]:
    """How long after its provider was healed each account was polled, if not just before."""
    return [
        min((at for at in polled_at[kind + account] if at > healed_at), default=healed_at) - healed_at
        for account in (CANARY, *OTHERS)
    ]


def _from(event: Any) -> float:
    return datetime.fromisoformat(event["data"]["observed"]["from"]).timestamp()


async def read(redis: Redis, keys: list[str]) -> list[Any]:
    """When each account was last read, and what it held: that it went stale may stand beside it."""
    found = []
    for key in keys:
        state = await redis.get(key)
        assert isinstance(state, bytes)
        head, _, said = state.partition(b"\n")
        found.append((head.split()[-2], json.loads(said)[1]))
    return found
