"""Read commands work with a broken file, without secrets, and without any file."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.builders import SECRET, a_snapshot
from tests.support.stores import pause
from tests.support.stories import STORY, Books, Ended, Run, a_configuration, ended, in_the_books
from watcher.journal.events import Origin
from watcher.journal.interest import Interest
from watcher.journal.step import go_stale
from watcher.store.keys import shard_of
from watcher.store.queues import Breakers

LOOK = ("status", "balances", "events", "deliveries", "subscriptions", "audit")


async def a_past(books: Books) -> None:
    """Two accounts with a past, one that failed, and a subscription that is paused with a backlog."""
    await books.enroll("treasury", "alice")
    await books.enroll("bob", provider="shop")
    await books.live(STORY)
    await books.live([a_snapshot(ETH="1"), a_snapshot(ETH="2")], "alice")
    await pause(Breakers(books.pipe, books.keys), "ops", "410 Gone")
    await books.pipe.command(
        "HSET", books.keys.meta(), "shards", 16, "schema", "1", "providers", '["loopring","shop"]'
    )


SHOWN = {
    "status": ("bob", "shop: 1 account scheduled", "paused since"),
    "balances": ("treasury", "alice", "bob", "not read yet"),
    "events": ("treasury", "alice", "total.increased"),
    "deliveries": ("ops", "treasury", "alice"),
    "subscriptions": ("ops", "paused since"),
    "audit": ("treasury  ok", "alice     ok", "bob       ok"),
}
"""What each command must show, whatever is wrong with the configuration."""


@pytest.fixture
def file(tmp_path: Path, redis_server_url: str, namespace: str) -> Path:
    """A configuration whose store holds nothing."""
    return a_configuration(tmp_path, redis_server_url, namespace, "treasury", "alice")


@pytest.fixture
def config(file: Path, redis_server_url: str, namespace: str) -> Path:
    """A configuration whose store has a past."""
    in_the_books(redis_server_url, namespace, a_past)
    return file


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda name, *arguments: ended(capsys, name, *arguments)


def assert_shown(name: str, done: Ended) -> None:
    assert done.code == 0, done.err
    for text in SHOWN[name]:
        assert text in done.out, name


def warning_of(done: Ended) -> str:
    (warning,) = (line for line in done.err.splitlines() if line.startswith("warning: "))
    assert "canary" not in done.err
    assert SECRET not in done.err
    return warning


BROKEN: dict[str, Callable[[str], str]] = {
    "unknown key": lambda text: text.replace("account_id = 1", "acount_id = 1"),
    "a secret that is not set": lambda text: text.replace(SECRET, "${NOWHERE}"),
    "a key that is not set": lambda text: text.replace('"canaryApiKey"', '"${NOWHERE}"'),
    "no provider": lambda text: text.replace("[providers.loopring]", "[providers.loopringg]"),
    "accounts_file that is gone": lambda text: f'accounts_file = "gone.jsonl"\n{text}',
    "no TOML below": lambda text: text.replace("account_id = 0", "account_id = "),
    "no TOML at the end": lambda text: f'{text}\n[[subscriptions]\nname = "',
    "no TOML at the top": lambda text: f'accounts_file = "gone\n{text}',
    "no TOML in [redis]": lambda text: text.replace("[redis]", "[redis]\nmax_memory = 1GB"),
    "a bracket too many": lambda text: text.replace("[redis]", "[redis]]"),
    "a line that is cut": lambda text: text[: text.index("secrets")] + "secrets = [",
    "nothing but [redis]": lambda text: text[: text.index("[providers")] + "[providers.loopring",
    "an unknown section": lambda text: f"{text}\n[redsi]\n",
    "no file of this name for a secret": lambda text: text.replace(SECRET, "${file:/nowhere}"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_file_is_one_warning(config: Path, run: Run, broken: str) -> None:
    config.write_text(BROKEN[broken](config.read_text()))
    assert run("check", "--config", config).code == 78
    for name in LOOK:
        done = run(name, "--config", config)
        assert_shown(name, done)
        assert "what it lacks is read from Redis" in warning_of(done)


@pytest.mark.parametrize("name", LOOK)
def test_a_correct_file_makes_no_warning(config: Path, run: Run, name: str) -> None:
    done = run(name, "--config", config)
    assert (done.code, "warning" in done.err) == (0, False)


@pytest.mark.parametrize("name", LOOK)
def test_no_file_is_needed_where_redis_is_named(
    config: Path, run: Run, name: str, redis_server_url: str, namespace: str
) -> None:
    config.unlink()
    assert_shown(name, run(name, "--redis", redis_server_url, "--namespace", namespace))
    assert run(name, "--redis", redis_server_url, "--namespace", "another").code == 0


@pytest.mark.parametrize("name", LOOK)
def test_a_variable_may_name_redis_too(
    config: Path,
    run: Run,
    name: str,
    redis_server_url: str,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    config.write_text(config.read_text().replace(redis_server_url, "redis://:${PASSWORD}@127.0.0.1:1"))
    monkeypatch.setenv("REDIS_URL", redis_server_url)
    assert_shown(name, run(name))
    config.unlink()
    monkeypatch.setattr("watcher.environment.Environment.PLACES", (Path("watcher.toml"),))
    done = run(name, "--namespace", namespace)
    assert_shown(name, done)
    assert warning_of(done).startswith("warning: there is no configuration")


@pytest.mark.parametrize("name", LOOK)
@pytest.mark.parametrize(
    ("find", "put"),
    [
        ('url = "', 'url = "${NOWHERE}'),
        ('url = "', 'url = "r'),
        ('url = "', "url = "),
        ('url = "', 'urll = "'),
        ("namespace = ", "namespace = $"),
        ("[redis]", "[redsi]"),
        ("[redis]", "[redis"),
        ("[redis]", '[worker]\ndrain = "5s"\n[redis'),
    ],
)
def test_without_any_address_of_redis_none_is_guessed(
    file: Path, run: Run, name: str, find: str, put: str, tmp_path: Path
) -> None:
    file.write_text(file.read_text().replace(find, put, 1))
    done = run(name, "--config", file)
    assert (done.code, done.out) == (78, "")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", LOOK)
@pytest.mark.parametrize(
    ("option", "value"),
    [("--redis", "rdis://here"), ("--redis", "canary"), ("--namespace", "a b"), ("--namespace", "")],
)
def test_an_option_with_an_invalid_address_is_a_usage_error(
    file: Path, run: Run, name: str, option: str, value: str
) -> None:
    done = run(name, "--config", file, option, value)
    assert (done.code, done.out) == (2, "")
    assert option in done.err
    assert "canary" not in done.err


@pytest.mark.parametrize("name", LOOK)
def test_the_embedded_server_is_found_by_its_directory(run: Run, name: str, tmp_path: Path) -> None:
    done = run(name, "--data-dir", tmp_path / "data")
    assert done.code == 69
    assert f"the embedded server has no state in {tmp_path / 'data'} yet" in done.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", LOOK)
def test_an_unreadable_directory_is_no_bug(run: Run, name: str) -> None:
    done = run(name, "--data-dir", "x" * 5000)  # as one that is closed to the user, but for root too
    assert (done.code, done.out) == (78, "")
    assert done.err.rstrip().endswith("cannot be used: File name too long")


@pytest.mark.parametrize("name", LOOK)
def test_an_empty_store_is_valid_json_too(run: Run, name: str, redis_server_url: str, namespace: str) -> None:
    done = run(name, "--redis", redis_server_url, "--namespace", f"{namespace}-empty", "--json")
    assert done.code == 0
    assert all(isinstance(one, dict) for one in done.objects)


def test_an_account_that_only_redis_knows_is_stale_if_its_workers_said_so(
    config: Path, run: Run, redis_server_url: str, namespace: str
) -> None:
    """Its interval is not known: it is not guessed, which would call every slow account stale."""

    now_ms = int(time.time() * 1000)

    async def read_long_ago(books: Books) -> None:
        for name in ("slow", "stale"):
            (step,) = await books.live([a_snapshot(ETH="1")], name, at_ms=now_ms - 600_000)
            await books.pipe.command("ZADD", books.keys.polls(shard_of(name), "loopring"), 1, name)
        origin = Origin("stale", "loopring", step.state.sequence, now_ms - 600_000, now_ms)
        said = go_stale(
            step.state, origin, "gone", "nobody", interest=Interest({}), version="v2", now_ms=now_ms
        )
        await books.commit(said, "stale", expected=step.state.version)

    in_the_books(redis_server_url, namespace, read_long_ago)
    where = ("--redis", redis_server_url, "--namespace", namespace, "--json")
    lines = [line for line in run("status", *where).objects if line["kind"] == "account"]
    problems = {line["account"]: line["problems"] for line in lines}
    assert problems == {"bob": ["never read"], "stale": ["stale"]}


def test_a_subscription_is_paused_and_resumed_while_the_file_is_broken(config: Path, run: Run) -> None:
    config.write_text(config.read_text().replace(SECRET, "${NOWHERE}"))
    assert run("subscriptions", "resume", "ops", "--config", config).code == 0
    assert run("subscriptions", "pause", "ops", "--config", config).out.startswith("ops: paused")
    done = run("subscriptions", "pause", "opss", "--config", config)
    assert done.code == 2
    assert "opss" in done.err


def test_unknown_facts_of_a_provider_are_left_out(config: Path, run: Run) -> None:
    config.write_text(config.read_text().replace("[providers.loopring]", "[providers.loopringg]"))
    done = run("status", "--config", config, "--json")
    lines: dict[str, Any] = {line["provider"]: line for line in done.objects if line["kind"] == "provider"}
    assert lines["loopring"]["needed_per_second"] is None
    assert lines["loopring"]["accounts"] == 2
    assert not re.search(r"None|needs \d", run("status", "--config", config).out)
