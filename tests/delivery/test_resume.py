"""`watcher subscriptions resume`: the backlog is sent within a second, whatever it waited for."""

import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.delivery.staged_subscriber import CommandLine, StagedSubscriber, backlogs_of
from tests.support.builders import seconds
from tests.support.stores import pause

pytest_plugins = ("tests.delivery.subscribers",)

NOTICED_S = 1.0
"""How often a worker looks at the breakers."""

BUSY_MACHINE_S = 1.0

ACCOUNTS = ["alice", "bob", "treasury"]
AN_HOUR = {"retry-after": "3600"}
ANSWERS = {
    "gone": (410, {}),
    "limited": (429, AN_HOUR),
    "limited-at-a-rate": (429, AN_HOUR),
    "overloaded": (503, AN_HOUR),
    "paused-by-hand": (200, {}),
    "refusing": (400, {}),
    "waiting": (500, AN_HOUR),
}


async def test_a_resume_sends_the_backlog_within_a_second_whatever_it_waited_for(
    redis_client: Redis,
    redis_server_url: str,
    namespace: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with AsyncExitStack() as stack:
        subscribers: dict[str, StagedSubscriber] = {}
        for name, (status, headers) in ANSWERS.items():
            one = StagedSubscriber(status=status, headers=headers)
            subscribers[name] = await stack.enter_async_context(one)
        all_ = backlogs_of(
            redis_client, redis_server_url, namespace, **{name: one.url for name, one in subscribers.items()}
        )
        by_name = {
            name: each.model_copy(
                update={
                    "retries": seconds(0, 3600, 3600),
                    "requests_per_second": 50 if name == "limited-at-a-rate" else None,
                }
            )
            for name, each in all_.settings.subscription_by_name.items()
        }
        all_ = replace(all_, settings=all_.settings.model_copy(update={"subscription_by_name": by_name}))
        run = CommandLine(all_.settings, tmp_path / "watcher.toml", capsys)
        await pause(all_.breakers, "paused-by-hand", "by hand")
        for name in ANSWERS:
            await all_.queue(ACCOUNTS, to=name)
        async with all_.worker(), all_.worker():
            for name, one in subscribers.items():
                await one.until(lambda one=one, name=name: one.arrivals or name == "paused-by-hand")  # type: ignore[misc]
            await all_.until_nothing_is_due()
            resumed_at = {}
            for name, one in subscribers.items():
                one.status, one.headers = 200, {}
                assert "what waits is due now" in (await run("subscriptions", "resume", name)).out
                resumed_at[name] = time.monotonic()
            for one in subscribers.values():
                await one.until(lambda one=one: len(one.taken) == len(ACCOUNTS), within_s=40)  # type: ignore[misc]
    waited_s = {name: one.arrivals[-1].at - resumed_at[name] for name, one in subscribers.items()}
    assert max(waited_s.values()) <= NOTICED_S + BUSY_MACHINE_S, waited_s
