"""What a worker counts and logs of its polls, by provider."""

import time
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.builders import an_account, seconds
from watcher.observe.counters import POLL_BOUNDS_S, Counters
from watcher.polling.report import PollReport
from watcher.providers.contract import Rejected
from watcher.store.schedule import Reply

KEY = Rejected("auth", "the API key is refused (401)", status=401)
DOWN = Rejected("gone", "no answer")
INTERVAL_S = 30
HERE, THERE = an_account("a0", "loopring", interval=seconds(INTERVAL_S)[0]), an_account("a0", "shop")


class Reported:
    """The report of one worker, a clock, and what other workers have noted."""

    def __init__(self, lines: list[MutableMapping[str, Any]]) -> None:
        self.now = 1000.0
        self.rejected = {("loopring", "a0"), ("shop", "a0")}
        self.counters = Counters()
        self.report = PollReport(self.counters, is_rejected=self._is_rejected, clock=lambda: self.now)
        self._lines = lines

    async def _is_rejected(self, provider: str, account: str) -> bool:
        return (provider, account) in self.rejected

    def lines(self) -> list[tuple[Any, ...]]:
        """What was logged since this was last asked, but for debugging."""
        found = [
            (line["event"], line.get("provider")) for line in self._lines if line["log_level"] != "debug"
        ]
        self._lines.clear()
        return found


@pytest.fixture
def reported() -> Iterator[Reported]:
    with capture_logs() as lines:
        yield Reported(lines)


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (Reply.DONE, "unchanged"),
        (Reply.DONE_BEFORE, "unchanged"),
        (Reply.MOVED_ON, "discarded"),
        (Reply.LEASE_LOST, "discarded"),
    ],
)
async def test_a_late_poll_is_counted_as_discarded(reported: Reported, reply: Reply, outcome: str) -> None:
    await reported.report.finished(HERE, reply, reported.report.began(), None)
    assert reported.counters.by_poll == {("loopring", outcome): 1}
    assert reported.counters.polls == 1


def test_a_rejected_poll_is_counted_by_its_provider_and_error_class(reported: Reported) -> None:
    reported.report.rejected(THERE, DOWN, None, reported.report.began())
    counters = reported.counters
    assert (counters.by_poll, counters.by_error_class) == ({("shop", "rejected"): 1}, {("shop", "gone"): 1})
    assert counters.rejected == 1


async def test_failures_of_one_provider_do_not_count_for_another(reported: Reported) -> None:
    for account in (HERE, THERE):
        reported.report.failures(account.provider).refused(account.name, KEY)
    assert reported.lines() == [("provider.refusing", "loopring"), ("provider.refusing", "shop")]
    await reported.report.finished(THERE, Reply.DONE, reported.report.began(), None)
    assert reported.lines() == [("provider.recovered", "shop")]


async def test_successful_polls_of_other_workers_are_looked_up_by_provider(
    reported: Reported,
) -> None:
    reported.report.failures("loopring").refused("a0", KEY)
    reported.lines()
    reported.rejected = {("loopring", "a0")}
    await reported.report.failures("loopring").report_fixed("another")
    assert reported.lines() == []
    reported.now += 60
    reported.rejected = {("shop", "a0")}
    await reported.report.failures("loopring").report_fixed("another")
    assert reported.lines() == [("provider.recovered", "loopring")]


def test_a_reconfigured_provider_starts_without_a_past(reported: Reported) -> None:
    reported.report.failures("loopring").refused("a0", KEY)
    reported.report.failures("loopring").refused("a0", KEY)
    assert reported.lines() == [("provider.refusing", "loopring")]
    reported.report.forget("loopring")
    reported.report.failures("loopring").refused("a0", KEY)
    assert reported.lines() == [("provider.refusing", "loopring")]


async def test_the_duration_of_a_poll_is_counted(reported: Reported) -> None:
    await reported.report.finished(HERE, Reply.DONE, time.monotonic() - 0.6, None)
    assert reported.counters.by_duration == {"loopring": {POLL_BOUNDS_S.index(1.0): 1}}
    assert 0.6 <= reported.counters.polling_s["loopring"] < 1.0


def test_once_nothing_is_stale_the_next_stale_account_is_logged_again(reported: Reported) -> None:
    failures = reported.report.failures("loopring")
    for account in ("a0", "a1"):
        failures.stale(account, "no answer", 5000)
        reported.report.gathered(at_once=True)
        failures.fresh(account)
    assert reported.lines() == [("account.stale", "loopring")] * 2


def test_gathered_lines_are_written_soon_and_at_once_at_the_end(reported: Reported) -> None:
    reported.report.failures("loopring").stale("a0", "no answer", 5000)
    reported.report.gathered()
    assert reported.lines() == []
    reported.report.gathered(at_once=True)
    assert reported.lines() == [("account.stale", "loopring")]
    reported.report.gathered(at_once=True)
    assert reported.lines() == []
