"""A lasting failure is logged when it begins and when it ends, not at each poll."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.support.rig import Rig, a_rig
from watcher.observe.views import provider_line
from watcher.polling import poll
from watcher.providers.loopring import LoopringAccount
from watcher.store.keys import Keys
from watcher.store.pipe import Pipe
from watcher.store.reader import Reader

Lines = list[MutableMapping[str, Any]]


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


@pytest.fixture
def lines() -> Iterator[Lines]:
    with capture_logs() as lines:
        yield lines


def logged(lines: Lines, event: str, account: str, *, level: str | None = None) -> Lines:
    found = [line for line in lines if line["event"] == event and line.get("account") == account]
    return [line for line in found if level in (None, line["log_level"])]


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 - a list sends no signal
            await asyncio.sleep(0.01)


async def test_rejected_polls_are_reported_once_and_their_end_once(rig: Rig, lines: Lines) -> None:
    async with rig.worker(rig.with_short_timeouts()) as worker:
        await until(lambda: logged(lines, "account.baseline", "treasury"))
        await rig.sandbox.take_down("loopring")
        await until(lambda: len(logged(lines, "poll.rejected", "treasury")) >= 4)
        await until(lambda: worker.stale_accounts("loopring"))
        await rig.sandbox.bring_back("loopring")
        before = len(lines)
        await until(lambda: len(logged(lines[before:], "poll.finished", "treasury")) >= 3)
    refused = logged(lines, "poll.rejected", "treasury")
    assert [line["log_level"] for line in refused] == ["info", *["debug"] * (len(refused) - 1)]
    assert [line["times"] for line in refused] == [*range(1, len(refused) + 1)]
    (end,) = (line for line in logged(lines, "poll.finished", "treasury", level="info") if line.get("times"))
    assert end["times"] == len(refused)
    assert len(logged(lines, "account.stale", "treasury")) == 1
    (back,) = logged(lines, "account.recovered", "treasury")
    assert back["duration_ms"] > 200  # three intervals and the time-out


async def test_a_damaged_state_is_reported_once_and_again_when_it_is_fixed(
    rig: Rig, lines: Lines, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll, "_QUARANTINE_MS", (50,))
    key = Keys(rig.settings.redis.namespace).state("treasury")
    async with rig.worker() as worker:
        await until(lambda: logged(lines, "account.baseline", "treasury"))
        state = await redis_client.get(key)
        assert isinstance(state, bytes)
        await redis_client.set(key, state[: state.index(b"\n")] + b"\n{")
        rig.sandbox.world.credit(10110, "ETH", "1")  # an answer like the last one need not look at the state
        await until(lambda: worker.counters.by_poll["loopring", "quarantined"] >= 3)
        await redis_client.set(key, state)
        await until(lambda: logged(lines, "account.recovered", "treasury"))
    assert len(logged(lines, "account.quarantined", "treasury")) == 1
    (back,) = logged(lines, "account.recovered", "treasury")
    assert back["times"] >= 3


async def test_a_wrong_key_of_150_accounts_is_one_error_and_one_recovery(
    rig: Rig, lines: Lines, redis_client: Redis
) -> None:
    accounts = {
        f"a{number}": LoopringAccount(name=f"a{number}", provider="loopring", account_id=20_000 + number)
        for number in range(150)
    }
    for number in range(150):
        rig.sandbox.world.open_account(20_000 + number)
    right = rig.settings.model_copy(update={"account_by_name": {**rig.settings.account_by_name, **accounts}})
    wrong_key = right.provider_by_name["loopring"].model_copy(update={"api_key": SecretStr("wrong")})
    wrong = right.model_copy(update={"provider_by_name": {**right.provider_by_name, "loopring": wrong_key}})
    survey = Reader(Pipe(redis_client), Keys(right.redis.namespace))
    async with rig.worker(wrong) as worker:
        await until(lambda: worker.counters.by_error_class["loopring", "auth"] >= 151)
        failing = await survey.failing("loopring")
        line = provider_line("loopring", failing, await survey.overdue("loopring"), await survey.now_ms())
        loud = [one for one in lines if one["log_level"] in ("warning", "error")]
        worker.reload(right)
        await until(lambda: logged(lines, "account.baseline", "a149"))
        await until(lambda: any(one["event"] == "provider.recovered" for one in lines))
    assert [(one["error_class"], one["accounts"]) for one in line["errors"]] == [("auth", 151)]
    assert "fix the key in [providers.loopring]" in loud[0]["reason"]
    assert {one["event"] for one in loud} <= {"provider.refusing", "account.stale"}
    assert [one["event"] for one in loud].count("provider.refusing") == 1
    assert all("API key" in one["reason"] for one in loud)
