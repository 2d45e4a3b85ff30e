"""T30: providers that are down or slow do not delay the accounts of another one in the same worker."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from statistics import median
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.faults.failing_provider import FailingProvider, Names
from tests.faults.provider_scene import some_settings, until_read
from tests.faults.scene import BOUNDED, LONG
from tests.support.rig import workers
from watcher.http.dial import CurrentResolver
from watcher.providers.contract import Request
from watcher.providers.http import ProviderClient
from watcher.run import configured
from watcher.store.keys import Keys
from watcher.store.polls import Polls
from watcher.store.schedule import Lease

pytestmark = BOUNDED

BAD = ("hang", "late", "refused")
ACCOUNTS = 40
"""Of each provider, polled every second."""

SETTLES_S = 0.5
PHASE_S = 2.0
MORE = 1.1
MORE_MS = 10
"""What a tenth means where a delay is a few milliseconds."""


@pytest.fixture
def delays_ms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By how much each poll of the good provider left later than it was due."""
    delays_ms: list[float] = []
    due_ms: dict[str, float] = {}
    fetch, touch = ProviderClient._fetch, Polls.touch

    async def noted_touch(self: Polls, provider: str, lease: Lease, **times: Any) -> Any:
        if provider == "good":
            due_ms[lease.member] = times["due_ms"]
        return await touch(self, provider, lease, **times)

    async def noted_fetch(self: ProviderClient, request: Request) -> bytes:
        number = int(request.query.get("accountId", "0")) - 1
        if due := due_ms.pop(f"{self._settings.name}-{number}", None):
            delays_ms.append(1000 * time.time() - due)
        return await fetch(self, request)

    monkeypatch.setattr(Polls, "touch", noted_touch)
    monkeypatch.setattr(ProviderClient, "_fetch", noted_fetch)
    monkeypatch.setattr(configured, "CurrentResolver", partial(CurrentResolver, make=Names))
    return delays_ms


@pytest.mark.parametrize(
    ("rounds", "is_quiet"), [(3, False), pytest.param(25, True, marks=LONG)], ids=["short", "long"]
)
async def test_providers_that_fail_do_not_delay_the_polls_of_another(
    rounds: int,
    is_quiet: bool,
    delays_ms: list[float],
    redis_client: Redis,
    redis_server_url: str,
    namespace: str,
) -> None:
    """The middle is compared in the short form, the 99th of a hundred in the long one: on a machine that
    does other things as well it says more about those."""
    found: dict[bool, list[float]] = {False: [], True: []}
    async with AsyncExitStack() as stack:
        bad = [await stack.enter_async_context(FailingProvider(kind)) for kind in BAD]
        good = await stack.enter_async_context(FailingProvider("good"))
        settings = some_settings(
            redis_server_url, namespace, [*bad, good], "http://127.0.0.1:9999/", accounts_each=ACCOUNTS
        )
        await stack.enter_async_context(workers(settings, "w0"))
        await until_read(redis_client, [Keys(namespace).state(name) for name in settings.account_by_name])
        for _ in range(rounds):
            for is_failing in found:
                for provider in bad:
                    await (provider.fail() if is_failing else provider.heal())
                await asyncio.sleep(SETTLES_S)
                delays_ms.clear()
                await asyncio.sleep(PHASE_S)
                found[is_failing] += delays_ms
    _tell(found)
    assert median(found[True]) <= MORE * median(found[False]) + MORE_MS
    if is_quiet:
        assert _percentile(found[True], 99) <= MORE * _percentile(found[False], 99) + MORE_MS


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100]


def _tell(found: Mapping[bool, list[float]]) -> None:
    for is_failing, delays in found.items():
        said = ", ".join(f"p{percent} {_percentile(delays, percent):.1f} ms" for percent in (50, 90, 99))
        print(f"others {'fail' if is_failing else 'are well'}: {len(delays)} polls late by {said}")
