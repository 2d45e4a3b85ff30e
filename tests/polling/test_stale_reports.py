"""Accounts that go stale are reported in few lines: which, why, for how long; and again while it lasts."""

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


class Told:
    """The failures at one provider, with a clock that a test sets, and what was logged."""

    def __init__(self, lines: list[MutableMapping[str, Any]]) -> None:
        self.now = 1000.0
        self.failures = ProviderFailures("shop", is_rejected=never, clock=lambda: self.now)
        self._lines = lines

    def after(self, wait_s: float) -> list[tuple[Any, ...]]:
        """What is told in so many seconds, looked at as often as a loop turns."""
        before, until = len(self._lines), self.now + wait_s
        while self.now < until:
            self.now += 0.5
            self.failures.report()
        return [
            (line["event"], line.get("account") or line["accounts"], line["duration_ms"])
            for line in self._lines[before:]
        ]


@pytest.fixture
def told() -> Iterator[Told]:
    with capture_logs() as lines:
        yield Told(lines)


def test_one_account_is_told_by_its_name_and_many_by_their_number(told: Told) -> None:
    told.failures.stale(ACCOUNTS[0].name, "no answer")
    assert told.after(3) == [("account.stale", "account-0", 0)]
    told.failures.recovered(ACCOUNTS[0].name, 90_000)
    for account in ACCOUNTS[1:10]:
        told.failures.stale(account.name, "no answer")
    assert told.after(61) == [("account.stale", 9, 0), ("account.recovered", "account-0", 90_000)]


def test_a_provider_that_takes_its_accounts_with_it_one_by_one_is_a_line_a_minute(told: Told) -> None:
    lines = []
    for account in ACCOUNTS:
        told.failures.stale(account.name, "no answer")
        lines += told.after(2)
    assert len(lines) == 4  # in 200 s
    assert sum(1 if isinstance(who, str) else who for _, who, _ in lines) > 90


def test_while_it_lasts_it_is_told_after_an_hour_and_daily_for_all_of_them(told: Told) -> None:
    for account in ACCOUNTS:
        told.failures.stale(account.name, "no answer")
    lines = told.after(3)
    start = told.now
    while told.now < start + 2 * DAY_S:
        told.now += 300
        for account in ACCOUNTS:
            told.failures.stale(account.name, "no answer", int(1000 * (told.now - start)))
        lines += told.after(3)
    assert [line[:2] for line in lines] == [("account.stale", 100)] * 3
    assert [line[2] // 1000 // HOUR_S for line in lines] == [0, 1, 25]
    for account in ACCOUNTS:
        told.failures.succeeded(account.name)
        told.failures.recovered(account.name, 2 * 1000 * DAY_S)
    assert told.after(61) == [("account.recovered", 100, 2 * 1000 * DAY_S)]


def test_a_worker_that_starts_while_accounts_are_stale_says_so_once(told: Told) -> None:
    for _ in range(10):
        for account in ACCOUNTS[:2]:
            told.failures.stale(account.name, "no answer", 5000)
    assert told.after(3) == [("account.stale", "account-0", 5000)]
    assert told.after(600) == []


def test_who_is_back_may_go_again(told: Told) -> None:
    for _ in range(2):
        told.failures.stale(ACCOUNTS[0].name, "no answer")
        assert told.after(61) == [("account.stale", "account-0", 0)]
        told.failures.succeeded(ACCOUNTS[0].name)


def test_what_has_gathered_is_not_lost_at_the_end(told: Told) -> None:
    told.failures.stale(ACCOUNTS[0].name, "no answer")
    told.failures.report(at_once=True)
    assert told.after(100) == []
    told.failures.report(at_once=True)
    assert told.after(1) == []


def test_an_account_that_is_no_longer_configured_is_neither_stale_nor_recovers(told: Told) -> None:
    gone, stays = ACCOUNTS[0].name, ACCOUNTS[1].name
    for name in (gone, stays):
        told.failures.stale(name, "no answer")
        told.failures.rejected(name)
    told.after(61)
    told.failures.forget(gone)
    told.now += HOUR_S
    told.failures.stale(stays, "no answer", 1000 * HOUR_S)
    assert told.after(3) == [("account.stale", stays, 1000 * HOUR_S)]
    assert told.failures.rejected(gone), "it is configured again, and its rejections begin"
