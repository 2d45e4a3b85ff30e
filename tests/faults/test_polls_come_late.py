"""T55: accounts beyond the rate limit are stale, reported once each, and `check` has warned."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

from structlog.testing import capture_logs

from tests.support.rig import Rig, a_rig
from tests.support.scraped import a_listener_of, scrape
from watcher.commands.status import read_lines
from watcher.config.loading import Look
from watcher.providers.loopring import LoopringAccount
from watcher.settings import Settings

ACCOUNTS = 20
PER_SECOND = 5
"""A poll every four seconds and more, where three intervals and the time-out are 3.2 s."""


def overloaded(rig: Rig, requests_per_second: float) -> Settings:
    """Twenty accounts of a second each at a provider that allows so many requests."""
    second = timedelta(seconds=1)
    limit = {"requests_per_second": requests_per_second, "timeout": timedelta(milliseconds=200)}
    loopring = rig.settings.provider_by_name["loopring"].model_copy(update=limit)
    ops = {"events": ("account.stale", "account.recovered")}
    return rig.settings.model_copy(
        update={
            "provider_by_name": {"loopring": loopring},
            "account_by_name": {
                f"a{number}": LoopringAccount(
                    name=f"a{number}",
                    provider="loopring",
                    account_id=20_000 + number,
                    interval=second,
                    pending_interval=second,
                )
                for number in range(ACCOUNTS)
            },
            "subscription_by_name": {"ops": rig.settings.subscription_by_name["ops"].model_copy(update=ops)},
        }
    )


def types(rig: Rig) -> Counter[str]:
    return Counter(event["type"] for event in rig.receiver.events)


async def test_polls_that_cannot_keep_up_make_one_event_per_account_and_one_log_line(
    redis_server_url: str, namespace: str
) -> None:
    async with a_rig(redis_server_url, namespace) as rig:
        for number in range(ACCOUNTS):
            rig.sandbox.world.open_account(20_000 + number)
        settings = overloaded(rig, PER_SECOND)
        with capture_logs() as lines:
            async with rig.worker(settings) as worker, a_listener_of(worker) as port:
                await rig.events(ACCOUNTS, within_s=20)
                polls = worker.counters.polls
                async with asyncio.timeout(20):
                    while not lines_of(lines, "account.stale"):  # noqa: ASYNC110 - a list sends no signal
                        await asyncio.sleep(0.1)
                (line,) = lines_of(lines, "account.stale")
                assert worker.counters.polls > polls
                assert types(rig) == {"account.stale": ACCOUNTS}, "polls that come late do not end it"
                assert (await scrape(port)).value("watcher_accounts_stale", provider="loopring") == ACCOUNTS
                status = await read_lines(Look(settings))
                stale = [line for line in status if "stale" in line.get("problems", ())]
                assert len(stale) == ACCOUNTS
                worker.reload(overloaded(rig, 1000))
                await rig.events(2 * ACCOUNTS, within_s=20)
    assert types(rig) == {"account.stale": ACCOUNTS, "account.recovered": ACCOUNTS}
    names = [event["data"]["account"]["name"] for event in rig.receiver.events]
    assert {*Counter(names).values()} == {2}
    assert line["accounts"] == ACCOUNTS
    assert "take 20 requests/s, 4.75 can be made" in line["reason"]


def lines_of(lines: list[Any], event: str) -> list[Any]:
    return [line for line in [*lines] if line["event"] == event]
