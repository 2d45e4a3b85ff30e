"""Stale accounts are reported in few lines: which, why, for how long; with reminders."""

from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.builders import an_account, seconds
from watcher.polling.report import ProviderFailures

ACCOUNTS = [an_account(f"account-{number}", interval=seconds(30)[0]) for number in range(100)]
HOUR_S, DAY_S = 3600, 86_400


async def never(_: str) -> bool:
    return False


class Reports:
    """The failures at one provider, with a clock that a test sets, and what was logged."""

    def __init__(self, lines: list[MutableMapping[str, Any]]) -> None:
        self.now = 1000.0
        self.failures = ProviderFailures("shop", is_rejected=never, clock=lambda: self.now)
        self._lines = lines

    @property
    def reasons(self) -> list[str]:
        return [line["reason"] for line in self._lines]

    def after(self, wait_s: float) -> list[tuple[Any, ...]]:
        """What is logged in so many seconds, checked at each turn of a loop."""
        before, until = len(self._lines), self.now + wait_s
        while self.now < until:
            self.now += 0.5
            self.failures.report()
        return [
            (line["event"], line.get("account") or line["accounts"], line["duration_ms"])
            for line in self._lines[before:]
        ]


@pytest.fixture
def reports() -> Iterator[Reports]:
    with capture_logs() as lines:
        yield Reports(lines)


def test_fewer_than_twenty_stale_accounts_are_a_line_each_and_more_are_one_line(reports: Reports) -> None:
    reports.failures.stale(ACCOUNTS[0].name, "no answer", 90_000)
    assert reports.after(3) == [("account.stale", "account-0", 90_000)]
    reports.failures.recovered(ACCOUNTS[0].name, 92_000)
    for account in ACCOUNTS[1:20]:
        reports.failures.stale(account.name, "no answer", 90_000)
    lines = reports.after(61)
    assert lines[-1] == ("account.recovered", "account-0", 92_000)
    assert {line[1] for line in lines[:-1]} == {account.name for account in ACCOUNTS[1:20]}
    for number, account in enumerate(ACCOUNTS[20:40]):
        reports.failures.stale(account.name, "no answer", 90_000 + number)
    assert reports.after(61) == [("account.stale", 20, 90_019)]


def test_the_line_of_many_gives_the_most_frequent_reason(reports: Reports) -> None:
    for number, account in enumerate(ACCOUNTS):
        reports.failures.stale(account.name, "no answer" if number % 3 else "over the rate limit", 90_000)
    reports.after(3)
    assert reports.reasons == ["no answer"]


def test_accounts_that_go_stale_within_seconds_are_one_line(reports: Reports) -> None:
    for account in ACCOUNTS[:20]:
        reports.failures.stale(account.name, "late", 5000)
        reports.now += 0.45
        reports.failures.report()
    assert reports.after(3) == [("account.stale", 20, 5000)]


def test_a_provider_whose_accounts_go_stale_one_by_one_is_a_line_a_minute(reports: Reports) -> None:
    lines = []
    for account in ACCOUNTS:
        reports.failures.stale(account.name, "no answer", 90_000)
        lines += reports.after(2)
    many = [line for line in lines if not isinstance(line[1], str)]
    assert len(many) == 3, "in 200 s"
    assert len(lines) - len(many) <= 6, "those of the first ten seconds have a line each"
    assert sum(line[1] for line in many) > 80


def test_while_they_stay_stale_one_reminder_follows_after_an_hour_and_then_daily(reports: Reports) -> None:
    for account in ACCOUNTS:
        reports.failures.stale(account.name, "no answer", 0)
    lines = reports.after(3)
    start = reports.now
    while reports.now < start + 2 * DAY_S:
        reports.now += 300
        lines += reports.after(3)
    assert [line[:2] for line in lines] == [("account.stale", 100)] * 3
    assert [line[2] // 1000 // HOUR_S for line in lines] == [0, 1, 25]
    for account in ACCOUNTS:
        reports.failures.recovered(account.name, 2 * 1000 * DAY_S)
    assert reports.after(61) == [("account.recovered", 100, 2 * 1000 * DAY_S)]
    assert not reports.failures.stale_accounts


def test_an_account_that_is_checked_again_is_reported_once(reports: Reports) -> None:
    for _ in range(10):
        reports.failures.stale(ACCOUNTS[0].name, "no answer", 5000)
    assert reports.after(3) == [("account.stale", "account-0", 5000)]
    assert reports.after(600) == []


def test_an_account_reported_by_another_worker_is_reported_again_only_as_a_reminder(reports: Reports) -> None:
    reports.failures.stale(ACCOUNTS[0].name, "no answer", 5000, is_news=False)
    assert reports.after(61) == []
    assert [*reports.failures.stale_accounts] == ["account-0"]
    reports.now += HOUR_S
    assert [line[:2] for line in reports.after(61)] == [("account.stale", "account-0")]


def test_a_recovered_account_may_go_stale_again(reports: Reports) -> None:
    for _ in range(2):
        reports.failures.stale(ACCOUNTS[0].name, "no answer", 5000)
        assert reports.after(61) == [("account.stale", "account-0", 5000)]
        reports.failures.fresh(ACCOUNTS[0].name)


def test_gathered_reports_are_written_at_the_end(reports: Reports) -> None:
    reports.failures.stale(ACCOUNTS[0].name, "no answer", 5000)
    reports.failures.report(at_once=True)
    assert reports.after(100) == []
    reports.failures.report(at_once=True)
    assert reports.after(1) == []


def test_a_removed_account_is_neither_stale_nor_recovers(reports: Reports) -> None:
    gone, stays = ACCOUNTS[0].name, ACCOUNTS[1].name
    for name in (gone, stays):
        reports.failures.stale(name, "no answer", 0)
        reports.failures.rejected(name)
    reports.after(61)
    reports.failures.forget(gone)
    reports.now += HOUR_S
    ((event, account, duration_ms),) = reports.after(61)
    assert (event, account, duration_ms // 1000 // HOUR_S) == ("account.stale", stays, 1)
    assert reports.failures.rejected(gone), "it is configured again, and its rejections begin"
