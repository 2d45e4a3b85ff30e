"""`watcher run` with the options that show its health to others, as a process and up to its exit code."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.builders import SECRET
from tests.support.processes import a_process, lines, stop_server
from tests.support.scraped import get, parsed
from watcher.api.access import ListenerRefused
from watcher.commands.health import command as health
from watcher.commands.run import command as run

CONFIGURATION = """
accounts_file = "accounts.jsonl"

[redis]
data_dir = "{directory}/state"

[providers.loopring]
base_url = "http://127.0.0.1:1"
api_key = "key"

[[subscriptions]]
name = "ops"
url = "https://ops.example.com/in"
secrets = ["${{OPS_SECRET}}"]
"""
ACCOUNT = '{{"name": "account-{number}", "provider": "loopring", "account_id": {number}}}\n'


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Path]:
    (tmp_path / "watcher.toml").write_text(CONFIGURATION.format(directory=tmp_path))
    (tmp_path / "accounts.jsonl").write_text(ACCOUNT.format(number=1))
    yield tmp_path
    await stop_server(tmp_path)


def ran(place: Path, *arguments: str, **environment: str) -> Result:
    """`watcher run …` up to where it is refused."""
    return CliRunner().invoke(
        run,
        ["--config", str(place / "watcher.toml"), *arguments],
        env={"OPS_SECRET": SECRET, "WATCHER_HTTP_TOKEN": "", **environment},
        standalone_mode=False,
    )


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 - it is another process that does it
            await asyncio.sleep(0.02)


async def test_a_worker_shows_that_it_lives_reloads_an_edited_file_and_ends(place: Path) -> None:
    beat = place / "beat"
    arguments = ("--http", "127.0.0.1:0", "--watch", "--heartbeat-file", str(beat))
    async with a_process(place, "run", *arguments) as process:
        await until(lambda: lines(place, "worker.started"))
        address = str(lines(place, "listener.started")[0]["address"])
        port = int(address.rpartition(":")[2])
        assert (await asyncio.to_thread(ask_health, "--url", f"http://{address}")) == 0
        assert (await asyncio.to_thread(ask_health, "--file", str(beat))) == 0
        async with asyncio.timeout(20):
            while (await get(port, "/readyz")).status != 200:  # noqa: ASYNC110 - it sends no signal
                await asyncio.sleep(0.02)

        with (place / "accounts.jsonl").open("a") as accounts:
            accounts.write(ACCOUNT.format(number=2))
        await until(lambda: len(lines(place, "configuration.loaded")) == 2)
        shown = parsed((await get(port, "/metrics")).body)
        assert shown.value("watcher_accounts", provider="loopring") == 2
        assert shown.value("watcher_configuration_last_reload_ok") == 1

        with (place / "accounts.jsonl").open("a") as accounts:
            accounts.write("{")
        await until(lambda: lines(place, "configuration.refused"))
        shown = parsed((await get(port, "/metrics")).body)
        assert shown.value("watcher_accounts", provider="loopring") == 2
        assert shown.value("watcher_configuration_last_reload_ok") == 0

        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    assert (await asyncio.to_thread(ask_health, "--file", str(beat))) == 1
    assert len(lines(place, "configuration.loaded")) == 2
    assert (place / "errors").read_text() == ""


def ask_health(*arguments: str) -> object:
    return CliRunner().invoke(health, arguments, standalone_mode=False).return_value


async def test_a_heartbeat_file_that_cannot_be_written_exits_with_78(place: Path) -> None:
    async with a_process(place, "run", "--heartbeat-file", str(place / "nowhere" / "beat")) as process:
        assert await asyncio.wait_for(process.wait(), 20) == 78
    assert "heartbeat file" in (place / "errors").read_text()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:8787"])
def test_an_address_beyond_loopback_is_refused_without_a_token(place: Path, address: str) -> None:
    refused = ran(place, "--http", address).exception
    assert isinstance(refused, ListenerRefused)
    assert refused.exit_code == 78


@pytest.mark.parametrize("arguments", [(), ("--http-token-env", "MINE")])
def test_a_token_that_is_too_short_is_refused_even_on_loopback(
    place: Path, arguments: tuple[str, ...]
) -> None:
    refused = ran(
        place, "--http", "127.0.0.1:0", *arguments, WATCHER_HTTP_TOKEN="canary", MINE="canary"
    ).exception
    assert isinstance(refused, ListenerRefused)
    assert "canary" not in str(refused)


def test_a_variable_that_is_named_for_the_token_must_hold_one(place: Path) -> None:
    for environment in ({}, {"MINE": ""}, {"MINE_FILE": str(place / "none")}):
        done = ran(place, "--http", "127.0.0.1:0", "--http-token-env", "MINE", **environment)
        assert getattr(done.exception, "exit_code", None) == 78
        assert "MINE" in str(done.exception)


def test_an_api_always_takes_a_token_a_key_and_an_address(place: Path) -> None:
    for environment, missing in (
        ({}, "WATCHER_HTTP_TOKEN"),
        ({}, "; and a key to encrypt what it stores"),
        ({"WATCHER_HTTP_TOKEN": "a-token-of-some-length"}, "watcher secret new --key"),
    ):
        refused = ran(place, "--http", "127.0.0.1:0", "--api", **environment).exception
        assert isinstance(refused, ListenerRefused)
        assert (refused.exit_code, missing in str(refused)) == (78, True)
    misused = ran(place, "--api", WATCHER_HTTP_TOKEN="a-token-of-some-length").exception
    assert getattr(misused, "exit_code", None) == 2
    assert "--http 127.0.0.1:8787" in str(misused)


def test_an_invalid_address_is_a_usage_error(place: Path) -> None:
    done = ran(place, "--http", "8787")
    assert getattr(done.exception, "exit_code", None) == 2
    assert "127.0.0.1:8787" in str(done.exception)
