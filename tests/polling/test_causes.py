"""An error that only a person can fix is logged once for all its accounts, and its end once."""

import asyncio
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from watcher.polling.report import NotAsked, ProviderFailures
from watcher.providers.contract import Rejected
from watcher.store.polls import Failing

KEY = Rejected("auth", "the API key is refused (401)", status=401)
ABSENT = Rejected("configuration", "no account has this address (101001)", status=400)


class Reports:
    """The causes at one provider, a clock, what another worker has noted, and what was logged."""

    def __init__(self, lines: list[MutableMapping[str, Any]]) -> None:
        self.now = 1000.0
        self.refused = {f"a{number}" for number in range(200)}
        self.failures = ProviderFailures("shop", is_rejected=self._is_rejected, clock=lambda: self.now)
        self._lines = lines

    async def _is_rejected(self, account: str) -> bool:
        await asyncio.sleep(0)  # as Redis, which takes its time
        return account in self.refused

    @property
    def last(self) -> MutableMapping[str, Any]:
        return self._lines[-1]

    def lines(self) -> list[tuple[Any, ...]]:
        """What was logged since this was last asked."""
        found = [(line["event"], line.get("account"), line.get("accounts")) for line in self._lines]
        self._lines.clear()
        return found


@pytest.fixture
def reports() -> Iterator[Reports]:
    with capture_logs() as lines:
        yield Reports(lines)


def test_a_wrong_key_is_one_error_at_once_which_says_what_to_fix() -> None:
    with capture_logs() as lines:
        failures = Reports(lines).failures
        for number in range(150):
            failures.refused(f"a{number}", KEY)
        (line,) = lines
    assert (line["event"], line["log_level"], line["account"], line["status"]) == (
        *("provider.refusing", "error", "a0"),
        401,
    )
    assert line["reason"] == "the API key is refused (401): fix the key in [providers.shop]"


def test_the_number_of_accounts_is_logged_a_minute_later_and_in_reminders(reports: Reports) -> None:
    for number in range(150):
        reports.failures.refused(f"a{number}", KEY if number < 5 else NotAsked(KEY.error_class, KEY.reason))
        reports.failures.report()
    assert reports.lines() == [("provider.refusing", "a0", 1)]
    for _ in range(120):
        reports.now += 1
        reports.failures.report()
        reports.failures.refused("a0", KEY)
    assert reports.lines() == [("provider.refusing", None, 150)]
    reports.now += 3600
    reports.failures.refused("a0", KEY)
    assert reports.lines() == [("provider.refusing", None, 150)]


def test_passing_errors_are_not_logged_as_causes(reports: Reports) -> None:
    for error_class in ("rate", "transient", "malformed", "gone"):
        reports.failures.refused("a0", Rejected(error_class, "whatever"))
    assert reports.lines() == []


async def test_two_causes_are_two_errors_that_end_separately(reports: Reports) -> None:
    reports.failures.refused("a0", ABSENT)
    reports.failures.refused("a1", ABSENT)
    reports.failures.refused("a2", Rejected("configuration", "no such account id (102003)"))
    assert [line[0] for line in reports.lines()] == ["provider.refusing"] * 2
    await reports.failures.report_fixed("a0")
    assert reports.lines() == [], "a1 is not there yet"
    await reports.failures.report_fixed("a1")
    assert [line[0] for line in reports.lines()] == ["provider.recovered"]


async def test_a_key_is_right_once_an_account_it_failed_for_is_polled_successfully(reports: Reports) -> None:
    reports.failures.refused("a0", KEY)
    reports.failures.refused("a1", KEY)
    reports.lines()
    await reports.failures.report_fixed("a7")
    assert reports.lines() == [], "it may be the key of that one alone"
    await reports.failures.report_fixed("a1")
    assert [line[0] for line in reports.lines()] == ["provider.recovered"]
    reports.failures.refused("a1", KEY)
    assert reports.lines() == [("provider.refusing", "a1", 1)]


async def test_an_account_that_another_worker_polls_does_not_delay_the_end_of_a_cause(
    reports: Reports,
) -> None:
    reports.failures.refused("a0", ABSENT)
    reports.lines()
    await reports.failures.report_fixed("a7")
    reports.refused.clear()
    reports.now += 5
    await reports.failures.report_fixed("a7")
    assert [line[0] for line in reports.lines()] == ["provider.recovered"]


async def test_polls_that_end_at_the_same_moment_report_the_end_of_a_cause_once(reports: Reports) -> None:
    reports.failures.refused("a0", ABSENT)
    reports.failures.refused("a1", Rejected("configuration", "no such account id (102003)"))
    reports.lines()
    await asyncio.gather(*(reports.failures.report_fixed(account) for account in ("a1", "a7", "a8")))
    assert [line[0] for line in reports.lines()] == ["provider.recovered"]


async def test_polls_of_other_workers_are_looked_up_rarely_while_a_cause_lasts(reports: Reports) -> None:
    reports.failures.refused("a0", ABSENT)
    reports.lines()
    await reports.failures.report_fixed("a7")
    reports.refused.clear()
    await reports.failures.report_fixed("a7")
    assert reports.lines() == [], "it was looked a moment ago"


async def test_an_account_has_one_cause_at_a_time(reports: Reports) -> None:
    reports.failures.refused("a0", ABSENT)
    reports.failures.refused("a0", KEY)
    reports.lines()
    await reports.failures.report_fixed("a7")
    (line,) = reports._lines
    assert (line["event"], line["reason"]) == ("provider.recovered", ABSENT.reason)


async def test_a_cause_from_before_a_reload_is_checked_again_and_its_end_logged(reports: Reports) -> None:
    failing = {
        "a0": Failing(3, 5, KEY.error_class, KEY.reason),
        "a1": Failing(1, 5, "rate", "over the rate limit (429)"),
    }
    assert reports.failures.remember(failing, now_ms=60_005) == ["a0"]
    reports.now += 2
    await reports.failures.report_fixed("a0")
    assert (reports.last["event"], reports.last["duration_ms"], reports.last["times"]) == (
        *("provider.recovered", 62_000),
        3,
    )


async def test_a_cause_from_before_a_reload_has_lasted_since_its_first_account(reports: Reports) -> None:
    since_ms = {"a0": 20_000, "a1": 5, "a2": 30_000}
    failing = {name: Failing(3, at_ms, KEY.error_class, KEY.reason) for name, at_ms in since_ms.items()}
    reports.failures.remember(failing, now_ms=60_005)
    await reports.failures.report_fixed("a0")
    assert reports.last["duration_ms"] == 60_000


def test_a_cause_that_outlasts_a_reload_is_logged_again_at_once(reports: Reports) -> None:
    reports.failures.remember({"a0": Failing(3, 5, KEY.error_class, KEY.reason)}, now_ms=6)
    reports.failures.refused("a0", KEY)
    assert reports.lines() == [("provider.refusing", "a0", 1)]
