"""T31: eight workers share a provider's rate limit: never above it, no account starved, no turn wasted."""

import asyncio
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain, pairwise

import pytest
from pydantic import SecretStr

from tests.support.builders import SECRET
from tests.support.provider_staging import Stage, answer, loopring_settings
from tests.support.rig import workers
from watcher.polling import poll, work
from watcher.providers.contract import Request
from watcher.providers.http import ProviderClient
from watcher.providers.loopring import LoopringAccount
from watcher.settings import RedisSettings, Settings, SubscriptionSettings

WORKERS = 8
PER_SECOND = 20
ACCOUNTS = 100
ROUND_S = ACCOUNTS * 1.05 / PER_SECOND
"""Until every account had a turn, if none is missed; workers keep 5 % below the limit."""

ROUNDS = 4
SCALE = 4
"""Leases are so much shorter, so that a queue of turns that is too long shows within seconds."""


@dataclass
class Sent:
    """When requests left, by account."""

    at: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def all(self) -> list[float]:
        return sorted(at for times in self.at.values() for at in times)

    def most_in_a_second(self) -> int:
        starts = self.all
        return max(sum(start <= other < start + 1 for other in starts[i:]) for i, start in enumerate(starts))

    def oldest_s(self) -> float:
        """The longest time that any account waited for its next poll."""
        return max(later - earlier for earlier, later in self._waits())

    def most_between(self) -> int:
        """The most requests that left while any account waited for its next poll, its own included."""
        starts = self.all
        return max(
            bisect_left(starts, later) - bisect_left(starts, earlier) for earlier, later in self._waits()
        )

    def _waits(self) -> Iterator[tuple[float, float]]:
        return chain.from_iterable(map(pairwise, self.at.values()))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    sent = Sent()
    fetch = ProviderClient._fetch

    async def noted(self: ProviderClient, request: Request) -> bytes:
        sent.at[request.query["accountId"]].append(time.monotonic())
        return await fetch(self, request)

    monkeypatch.setattr(ProviderClient, "_fetch", noted)
    return sent


def some_settings(url: str, namespace: str, provider_url: str) -> Settings:
    ops = SubscriptionSettings(
        name="ops", url=SecretStr("https://ops.example.com"), secrets=(SecretStr(SECRET),)
    )
    loopring = loopring_settings(provider_url, timeout_s=0.5, requests_per_second=PER_SECOND)
    return Settings(
        redis=RedisSettings(url=SecretStr(url), namespace=namespace),
        provider_by_name={"loopring": loopring},
        account_by_name={f"a{number}": an_account(number) for number in range(1, ACCOUNTS + 1)},
        subscription_by_name={"ops": ops},
    )


def an_account(number: int) -> LoopringAccount:
    often = timedelta(seconds=1)
    return LoopringAccount(
        name=f"a{number}", provider="loopring", account_id=number, interval=often, pending_interval=often
    )


async def test_eight_workers_keep_within_the_limit_and_starve_no_account(
    redis_server_url: str, namespace: str, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("watcher.polling.poll._LEASE_MARGIN_S", poll._LEASE_MARGIN_S / SCALE)
    monkeypatch.setattr("watcher.polling.work.LONGEST_TURN_S", work.LONGEST_TURN_S / SCALE)
    async with Stage() as stage:
        stage.reply = answer(b"[]")
        names = (f"w{number}" for number in range(WORKERS))
        async with workers(some_settings(redis_server_url, namespace, stage.url), *names) as running:
            await asyncio.sleep(ROUNDS * ROUND_S)
            outcomes = sum((worker.counters.by_poll for worker in running), Counter[tuple[str, str]]())
    pace = len(sent.all) / (ROUNDS * ROUND_S)  # a busy machine misses turns
    ideal_s = ACCOUNTS / pace
    print(f"{pace:.1f} a second, at most {sent.most_in_a_second()}; {outcomes}")
    print(f"{sent.oldest_s():.1f} s from a poll to the next, ideal {ideal_s:.1f} s")
    print(f"at most {sent.most_between()} requests from a poll to the next of {ACCOUNTS} accounts")
    assert not outcomes["loopring", "discarded"]
    assert len(sent.at) == ACCOUNTS
    assert sent.most_in_a_second() <= PER_SECOND
    assert pace > PER_SECOND / 2
    # By count, not by the clock: a turn that a busy machine misses delays all accounts alike.
    assert sent.most_between() <= 1.2 * ACCOUNTS
