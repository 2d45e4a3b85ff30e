"""`watcher accounts reset`: an account starts anew, whatever runs beside it."""

import asyncio
import re
from functools import partial
from pathlib import Path

import pytest

from tests.support.rig import TREASURY, a_rig
from tests.support.stories import (
    MINUTE_MS,
    NOW_MS,
    STORY,
    Books,
    Run,
    Write,
    a_configuration,
    ended,
    steps,
)
from watcher.store.keys import shard_of
from watcher.store.polls import Commit, Committed, Polls


@pytest.fixture
def run(tmp_path: Path, redis_server_url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> Run:
    config = a_configuration(tmp_path, redis_server_url, namespace, "treasury", "alice")
    return lambda *arguments: ended(capsys, *arguments, "--config", config)


async def lived(books: Books) -> None:
    await books.enroll("treasury", "alice")
    await books.live(STORY)


async def waits_ms(books: Books) -> float:
    """In how many ms the account is polled next."""
    await books.schedule.read_clock()
    score = await books.pipe.command("ZSCORE", books.keys.polls(shard_of("treasury"), "loopring"), "treasury")
    return float(score) - books.schedule.now_ms()


def answered(answer: str | None, _: str) -> str:
    """What a person types; or that there is no terminal."""
    if answer is None:
        raise EOFError
    return answer


def test_an_account_that_is_reset_is_polled_at_once_and_begins_with_a_baseline(
    run: Run, write: Write
) -> None:
    write(lived)
    queued = write(lambda books: books.pipe.command("LLEN", books.keys.queue("ops", "treasury")))

    done = run("accounts", "reset", "treasury", "--yes")
    assert (done.code, done.out) == (
        0,
        "treasury: 3 assets forgotten; its next successful poll is a baseline, and it is due now\n",
    )
    assert write(waits_ms) <= 0
    assert "not read yet" in run("balances", "treasury").out
    _, audited = run("audit", "treasury").lines
    assert audited.startswith("treasury  ok")
    _, forgotten = run("events", "--account", "treasury", "--type", "forgotten").lines
    assert re.search(r"3 assets, reset by \S+@\S+", forgotten)
    assert "@" in run("events", "--account", "treasury", "--type", "forgotten", "--json").objects[0]["by"]

    async def begun(books: Books) -> None:
        state = await books.polls.read_state("loopring", "treasury")
        assert state
        made = steps(STORY[:2], state=state, at_ms=NOW_MS + 60 * MINUTE_MS)
        expected = state.version
        for step in made:
            await books.commit(step, expected=expected)
            expected = step.state.version
        assert made[0].advance.is_baseline

    write(begun)
    _, audited = run("audit", "treasury").lines
    assert audited.startswith("treasury  ok")
    now = write(lambda books: books.pipe.command("LLEN", books.keys.queue("ops", "treasury")))
    assert now == queued + 1, "queued events wait, and behind them those since the baseline"


def test_without_yes_it_asks_and_anything_but_a_yes_changes_nothing(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lived)
    before = write(lambda books: books.polls.read_state("loopring", "treasury"))
    for answer in ("n", None):
        monkeypatch.setattr("click.termui.visible_prompt_func", partial(answered, answer))
        done = run("accounts", "reset", "treasury")
        assert (done.code, done.out) == (1, "")
    assert write(lambda books: books.polls.read_state("loopring", "treasury")) == before
    monkeypatch.setattr("click.termui.visible_prompt_func", partial(answered, "y"))
    assert run("accounts", "reset", "treasury").code == 0
    assert write(lambda books: books.polls.read_state("loopring", "treasury")).entry_by_asset == {}


def test_an_unknown_name_is_refused_with_the_nearest_one(run: Run, write: Write) -> None:
    write(lived)
    done = run("accounts", "reset", "tresury", "--yes")
    assert done.code == 2
    assert "no account of the configuration is called 'tresury'; did you mean 'treasury'?" in done.err


def test_an_account_that_was_never_read_has_nothing_to_forget(run: Run, write: Write) -> None:
    write(lived)
    done = run("accounts", "reset", "alice", "--yes")
    assert (done.code, done.out) == (
        0,
        "alice: nothing is known of it; its next successful poll is a baseline\n",
    )


def test_an_unscheduled_account_and_a_damaged_state_are_not_reset(run: Run, write: Write) -> None:
    async def taken_off(books: Books) -> None:
        await lived(books)
        await books.damage("DEL", books.keys.polls(shard_of("treasury"), "loopring"))

    write(taken_off)
    done = run("accounts", "reset", "treasury", "--yes")
    assert (done.code, "on no schedule of loopring" in done.err) == (1, True)
    write(lambda books: books.damage_state("treasury"))
    done = run("accounts", "reset", "treasury", "--yes")
    assert done.code == 1
    assert re.search(
        r"the state of treasury is not readable: JSONDecodeError: delete \S+:account:treasury", done.err
    )


@pytest.mark.parametrize(("polls", "code"), [(10, 0), (11, 1)])
def test_a_reset_is_retried_beside_polls_but_not_for_ever(
    polls: int, code: int, run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lived)
    rivals, commit = iter(range(polls)), Polls.commit

    async def overtaken(self: Polls, step: Commit) -> Committed:
        if (rival := next(rivals, None)) is not None:
            await self._pipe.command("SETRANGE", self._keys.state("treasury"), 0, f"{rival:016}")
        return await commit(self, step)

    monkeypatch.setattr(Polls, "commit", overtaken)
    done = run("accounts", "reset", "treasury", "--yes")
    assert (done.code, "changes all the time" in done.err) == (code, code == 1)


async def test_beside_a_busy_worker_the_next_poll_is_the_baseline(
    redis_server_url: str, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What moves between the reset and that poll is never emitted; what moves before and after is."""
    there = ("--redis", redis_server_url, "--namespace", namespace)
    async with a_rig(redis_server_url, namespace) as rig:
        (ops,) = rig.settings.subscription_by_name.values()
        everything = ops.model_copy(update={"events": ("*.*",)})
        rig.settings = rig.settings.model_copy(update={"subscription_by_name": {ops.name: everything}})
        async with rig.worker():
            await rig.events(2)
            rig.sandbox.world.deposit_seen(TREASURY, "LRC", "12.5")
            await rig.events(3)
            done = await asyncio.to_thread(ended, capsys, "accounts", "reset", "treasury", "--yes", *there)
            assert done.code == 0, done.err
            await rig.events(4)
            rig.sandbox.world.deposit_cleared(TREASURY, "LRC", "12.5")
            events = [
                event for event in await rig.events(5) if event["data"]["account"]["name"] == "treasury"
            ]
    types = ["account.baseline", "deposit.pending", "account.baseline", "deposit.cleared"]
    assert [event["type"] for event in events] == types
    sequences = [event["data"]["sequence"] for event in events]
    assert sequences == sorted({*sequences})
    previous = [event["subscription"]["previous_sequence"] for event in events]
    assert previous == [None, *sequences[:-1]], "no gap, and no second baseline"
