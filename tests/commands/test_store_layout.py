"""`watcher store layout`: shows the layout, moves Redis up and back, and may be ended at any time."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.old_store import OldStore, an_entry, an_event, without_numbers
from tests.support.program import COMMAND, environment
from tests.support.stores import Store, a_store
from tests.support.stories import Ended, a_configuration, ended
from tests.support.terminal import a_terminal
from watcher.settings import RedisSettings
from watcher.store import move
from watcher.store.client import connect
from watcher.store.exceptions import LayoutAwaited
from watcher.store.keys import SHARDS
from watcher.store.layout import Layout
from watcher.store.members import Presence, Workers
from watcher.store.opening import open_to_look

Run = Callable[..., Ended]
NAMES = [f"account-{n}" for n in range(60)]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move, "SETTLE_S", 0.0)


@pytest.fixture
def run(tmp_path: Path, redis_server_url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> Run:
    config = a_configuration(tmp_path, redis_server_url, namespace)
    return lambda *arguments: ended(capsys, "store", "layout", "--config", config, *arguments)


@pytest.fixture
def do(redis_server_url: str, namespace: str) -> Callable[[Callable[[Store], Awaitable[Any]]], Any]:
    async def done(act: Callable[[Store], Awaitable[Any]]) -> Any:
        async with connect(redis_server_url) as client:
            return await act(a_store(client, namespace))

    return lambda act: asyncio.run(done(act))


Do = Callable[[Callable[[Store], Awaitable[Any]]], Any]


async def filled(store: Store) -> dict[str, Any]:
    """Write a store of 0.1; returns what it holds."""
    old = OldStore(store)
    await old.begin()
    for number, name in enumerate(NAMES):
        await old.account(name, previous={"ops": number})
        await old.record(name, an_event(number))
        await old.queue("ops", name, [an_entry(an_event(number), "ops")])
    return without_numbers(await store.contents())


async def noted(store: Store, *layouts: int, stands_by: bool = False) -> None:
    presence = Presence("a-worker", "here", 1, "0.1.0", 0, {}, layouts=layouts, stands_by=stands_by)
    await Workers(store.pipe, store.keys).note(presence)


def test_a_new_store_is_in_the_layout_of_this_version(run: Run) -> None:
    done = run("--json")
    assert (done.code, done.err) == (0, "")
    (said,) = done.objects
    assert said == {"layout": 2, "wanted": 2, "moving_to": None, "mover": None, "shards": [], "workers": []}
    assert run().lines == ["layout 2, as wanted"]


def test_a_store_of_0_1_is_shown_with_the_workers_that_block_the_move(run: Run, do: Do) -> None:
    do(filled)
    do(lambda store: noted(store, 1))
    (said,) = run("--json").objects
    assert (said["layout"], said["wanted"]) == (1, 2)
    (worker,) = said["workers"]
    assert (worker["worker"], worker["version"], worker["layouts"], worker["in_the_way"]) == (
        "a-worker",
        "0.1.0",
        [1],
        True,
    )
    text = run()
    assert text.lines[0] == "layout 1; layout 2 is wanted"
    assert [line.split() for line in text.lines[1:]] == [
        ["worker", "version", "layout", "seen", "state"],
        ["a-worker", "0.1.0", "1", "0s", "ago", "in", "the", "way"],
    ]


def test_other_commands_refuse_another_layout_and_say_where_to_look(
    run: Run, do: Do, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    do(filled)
    done = ended(capsys, "status", "--config", tmp_path / "watcher.toml")
    assert (done.code, done.out) == (78, "")
    assert done.err == (
        "watcher: Redis is in layout 1, that of version 0.1, and is moved once the last worker of 0.1 "
        "has ended: see `watcher store layout`\n"
    )


async def test_a_read_during_which_a_move_began_is_refused(redis_server_url: str, namespace: str) -> None:
    settings = RedisSettings(url=SecretStr(redis_server_url), namespace=namespace)
    async with connect(redis_server_url) as client:
        store = a_store(client, namespace)
        await store.roster.enroll({}, now_ms=1)

        async def look() -> None:
            async with open_to_look(settings):
                layout = Layout(store.pipe, store.keys)
                await layout.want(1)
                await layout.begin(await layout.read(), 1)

        with pytest.raises(LayoutAwaited, match="is being moved from layout 2 to 1"):
            await look()


def test_a_store_is_moved_up_and_back(run: Run, do: Do) -> None:
    before = do(filled)
    (up,) = run("--to", "2", "--json").objects
    assert (up["layout"], up["wanted"]) == (2, 2)
    (back,) = run("--to", "1", "--json").objects
    assert (back["layout"], back["wanted"]) == (1, 1)
    after = {key: value for key, value in do(contents).items() if not key.endswith(":due:polls")}
    assert after.keys() == before.keys()
    assert {key: value for key, value in after.items() if not key.endswith(":due")} == {
        key: value for key, value in before.items() if not key.endswith(":due")
    }
    again = run("--to", "1")
    assert (again.code, again.err, again.lines[0]) == (0, "", "layout 1, as wanted")


async def contents(store: Store) -> dict[str, Any]:
    return without_numbers(await store.contents())


def test_a_new_store_can_be_kept_for_0_1(run: Run, do: Do) -> None:
    (said,) = run("--to", "1", "--json").objects
    assert (said["layout"], said["wanted"]) == (1, 1)

    async def schema(store: Store) -> Any:
        return await store.pipe.command("HMGET", store.keys.meta(), "schema", "shards")

    assert do(schema) == [b"1", b"16"]


def test_only_existing_layouts_can_be_asked_for(run: Run) -> None:
    assert run("--to", "3").code == 2


def start(config: Path, *arguments: str, **streams: Any) -> "subprocess.Popen[str]":
    command = [*COMMAND, "store", "layout", "--config", str(config), *arguments]
    return subprocess.Popen(command, env=environment(), text=True, **streams)


def until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


@pytest.mark.slow
def test_a_move_waits_for_workers_and_goes_on_once_they_stand_by(run: Run, do: Do, tmp_path: Path) -> None:
    do(filled)
    run("--to", "2")
    do(lambda store: noted(store, 2))
    with start(
        tmp_path / "watcher.toml", "--to", "1", stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as asked:
        assert asked.stderr
        assert asked.stderr.readline() == (
            "waiting for workers of version 0.1.0: a-worker (0.1.0); they stand by in a moment, or end them\n"
        )
        (said,) = run("--json").objects
        assert (said["layout"], said["wanted"], said["workers"][0]["in_the_way"]) == (2, 1, True)
        do(lambda store: noted(store, 2, stands_by=True))
        out, _ = asked.communicate(timeout=20)
    assert (asked.returncode, out.splitlines()[0]) == (0, "layout 1, as wanted")


@pytest.mark.slow
def test_a_move_ends_if_another_layout_is_asked_for_meanwhile(run: Run, do: Do, tmp_path: Path) -> None:
    do(filled)
    run("--to", "2")
    do(lambda store: noted(store, 2))
    with start(tmp_path / "watcher.toml", "--to", "1", stderr=subprocess.PIPE) as asked:
        assert asked.stderr
        assert asked.stderr.readline().startswith("waiting for workers")
        assert run("--to", "2").lines[0] == "layout 2, as wanted"
        _, errors = asked.communicate(timeout=20)
    assert (asked.returncode, errors) == (
        69,
        "watcher: layout 2 is wanted now: `watcher store layout --to 2` was said meanwhile\n",
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_move_can_be_interrupted_at_any_time(
    run: Run, do: Do, tmp_path: Path, number: signal.Signals
) -> None:
    before = do(filled)
    do(lambda store: noted(store, 1))
    with start(
        tmp_path / "watcher.toml", "--to", "2", stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as asked:
        assert asked.stderr
        assert asked.stderr.readline().startswith("waiting for")
        do(lambda store: Workers(store.pipe, store.keys).leave("a-worker"))

        def has_begun() -> bool:
            return not do(lambda store: Layout(store.pipe, store.keys).read()).rests

        until(has_begun)
        os.kill(asked.pid, number)
        _, errors = asked.communicate(timeout=20)
    assert asked.returncode in (-number, 128 + number)
    assert "Traceback" not in errors
    do(lambda store: store.pipe.command("DEL", store.keys.mover()))  # its lease has run out
    assert run("--to", "2").code == 0
    assert run("--to", "1").code == 0
    after = do(contents)
    assert {key: value for key, value in after.items() if ":due" not in key} == {
        key: value for key, value in before.items() if ":due" not in key
    }


@pytest.mark.slow
def test_a_terminal_shows_the_number_of_moved_shards(do: Do, run: Run, tmp_path: Path) -> None:
    do(filled)
    with a_terminal(tmp_path / "shown") as terminal:
        assert start(tmp_path / "watcher.toml", "--to", "2", stderr=terminal, stdout=terminal).wait(30) == 0
    shown = (tmp_path / "shown").read_text()
    assert "to layout 2" in shown
    assert "100%" in shown


def test_progress_within_each_shard_is_shown(run: Run, do: Do) -> None:
    do(filled)

    async def begun(store: Store) -> None:
        layout = Layout(store.pipe, store.keys)
        numbers = await layout.read()
        await layout.begin(numbers, 5)
        await layout.begin_now(await layout.read())
        turn = (await layout.read()).turn
        fields = ("turn", turn, "done", turn, "accounts", 3, "records", 4, "dead_letters", 5, "deliveries", 6)
        await store.pipe.command("HSET", store.keys.layout(7), *fields)
        await layout.take_lease("a-mover")

    do(begun)
    (said,) = run("--json").objects
    assert (said["layout"], said["moving_to"], said["mover"], len(said["shards"])) == (
        1,
        2,
        "a-mover",
        SHARDS,
    )
    assert said["shards"][7] == {
        "shard": 7,
        "is_moved": True,
        "accounts": 3,
        "records": 4,
        "dead_letters": 5,
        "deliveries": 6,
    }
    assert not said["shards"][8]["is_moved"]
    text = run()
    assert text.lines[0] == "layout 1, being moved to layout 2"
    assert text.lines[9].split() == ["7", "moved", "3", "4", "5", "6"]


def test_a_store_that_does_not_answer_is_unreachable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = a_configuration(tmp_path, "redis://127.0.0.1:1/0", "watcher")
    done = ended(capsys, "store", "layout", "--config", config, "--to", "2")
    assert done.code == 69
