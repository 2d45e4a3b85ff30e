"""How often a provider that stays down is polled, and how soon its recovery is noticed."""

import heapq
from itertools import pairwise
from random import Random
from typing import Any, cast

import pytest

from tests.support.builders import an_account, seconds
from tests.support.loops import StillLoop
from tests.support.provider_staging import loopring_settings
from watcher.engine.breaker import OPEN_AFTER
from watcher.journal.interest import Interest
from watcher.observe.counters import Counters
from watcher.polling.cadence import waits_ms
from watcher.polling.poll import Poller
from watcher.polling.report import PollReport
from watcher.providers.contract import Rejected

(INTERVAL,) = seconds(30)
HALF_AN_HOUR_S = 1800
HOUR_S = 3600


class Gone:
    """A provider that never answers, a clock, and the store as far as it says whether an account is failing:
    notes which account asked when."""

    spacing_s = 0.0

    def __init__(self, is_probe_failing: bool | None = None) -> None:
        self.now = 0.0
        self.is_probe_failing = is_probe_failing
        self.asked: list[tuple[float, str]] = []

    async def ask(self, account: Any) -> tuple[bytes, ...]:
        self.asked.append((self.now, account.name))
        raise Rejected("gone", "nobody there")

    async def is_failing(self, _: str, account: str, *, times: int = 1) -> bool:
        is_failing = any(name == account for _, name in self.asked)
        return is_failing if self.is_probe_failing is None else self.is_probe_failing

    def times(self, account: str) -> list[float]:
        """When an account asked, once half an hour was over."""
        return [at for at, name in self.asked if name == account and at >= HALF_AN_HOUR_S]


def a_poller(gone: Gone, probe_account: str) -> Poller:
    report = PollReport(Counters(), is_rejected=gone.is_failing, clock=lambda: gone.now)
    poller = Poller(
        loopring_settings(),
        cast(Any, gone),
        cast(Any, gone),
        Interest({}),
        report,
        now_ms=lambda: 0,
        loop=(loop := StillLoop()),
        deliver=loop.deliver,
        let_go=loop.let_go,
        clock=lambda: gone.now,
    )
    poller.probe_account = probe_account
    return poller


async def an_hour_without(accounts: int, workers: int) -> Gone:
    """Let workers poll for an hour, each account when its wait is over."""
    gone, chance = Gone(), Random(1)
    pollers = [a_poller(gone, "a000") for _ in range(workers)]
    due = [(chance.uniform(0, 30), f"a{number:03}", 0) for number in range(accounts)]
    heapq.heapify(due)
    while gone.now < HOUR_S:
        gone.now, name, refusals = heapq.heappop(due)
        account = an_account(name, interval=INTERVAL, pending_interval=INTERVAL)
        with pytest.raises(Rejected) as refused:
            await chance.choice(pollers).ask(account)
        waits = waits_ms(
            account, refused.value.error_class, is_probe_account=name == "a000", chance=chance.random()
        )
        wait_s = waits[min(refusals, len(waits) - 1)] / 1000
        heapq.heappush(due, (gone.now + wait_s, name, refusals + 1))
    return gone


@pytest.mark.parametrize("is_probe_failing", [True, False])
async def test_an_outage_ends_when_any_worker_polls_the_probe_account_successfully(
    is_probe_failing: bool,
) -> None:
    gone = Gone(is_probe_failing)
    poller = a_poller(gone, "a0")
    for _ in range(OPEN_AFTER):
        for name in ("a1", "a2"):
            with pytest.raises(Rejected):
                await poller.ask(an_account(name))
    assert len(gone.asked) == (OPEN_AFTER if is_probe_failing else 2 * OPEN_AFTER)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("accounts", [1, 2, 3, 10, 500])
async def test_after_half_an_hour_the_probe_account_is_polled_and_the_others_hardly(
    accounts: int, workers: int
) -> None:
    gone = await an_hour_without(accounts, workers)
    probe_account, *others = [gone.times(f"a{number:03}") for number in range(accounts)]
    waits = [later - sooner for sooner, later in pairwise(probe_account)]
    assert min(waits) > 26
    assert max(waits) <= 30, "its recovery is noticed within an interval"
    assert all(later - sooner > 269 for times in others for sooner, later in pairwise(times)), "5 minutes"
    assert sum(map(len, others)) <= workers * HALF_AN_HOUR_S / 60 + 1
