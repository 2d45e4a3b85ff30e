"""`watcher sandbox` serves, prints how to watch it, shows movements, and ends cleanly."""

import json
import os
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from watcher.commands.sandbox import command

RUN = "from watcher.commands.sandbox import command; command()"


@contextmanager
def a_sandbox(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    ports = ("--loopring-port", "0", "--metakeep-port", "0", "--bank-port", "0")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *ports, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def configuration(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("secrets"):
            break
    return "".join(lines)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_what_it_prints_shows_movements_and_exits_with_0(
    stop: signal.Signals, tmp_path: Path
) -> None:
    script = tmp_path / "changes.jsonl"
    script.write_text(
        '{"at": 0, "account": 10110, "asset": "LRC", "do": "deposit.seen", "amount": "12.5"}\n'
        '{"at": 0, "provider": "metakeep", "do": "fault", "fault": "hang"}\n'
    )
    with a_sandbox("--script", str(script)) as process:
        settings = tomllib.loads(configuration(process))
        loopring, shop = settings["providers"]["loopring"], settings["providers"]["shop"]
        treasury, alice, acme = settings["accounts"]
        assert process.stderr
        shown = [process.stderr.readline(), process.stderr.readline()]
        request = urllib.request.Request(
            f"{loopring['base_url']}/api/v3/user/balances?accountId={treasury['account_id']}&tokens=1",
            headers={"X-API-KEY": loopring["api_key"]},
        )
        with urllib.request.urlopen(request) as response:
            (row,) = json.load(response)
        process.send_signal(stop)
        assert process.wait(10) == 0
    assert row["pending"]["deposit"] == "12500000000000000000"
    assert (shop["kind"], alice["of"]) == ("metakeep", {"email": "alice@example.com"})
    assert (settings["providers"]["bank"]["kind"], acme["of"]) == ("http", {"account": "acme"})
    assert "10110  deposit.seen  LRC  pending_deposit +12.5 = 12.5" in shown[0]
    assert "metakeep  fault  hang, 1x" in shown[1]


def test_a_wrong_script_is_reported_before_anything_is_served(tmp_path: Path) -> None:
    script = tmp_path / "changes.jsonl"
    script.write_text('{"at": 0, "do": "deposit.sen"}\n')
    result = CliRunner().invoke(command, ["--script", str(script)])
    assert result.exit_code == 2
    assert f"{script}:1: do: not something a script can do -- did you mean 'deposit.seen'?" in result.output


def test_a_script_that_is_not_text_is_reported(tmp_path: Path) -> None:
    script = tmp_path / "changes.jsonl"
    script.write_bytes(b"\xff\xfe")
    assert CliRunner().invoke(command, ["--script", str(script)]).exit_code == 2


def test_a_script_and_a_seed_exclude_each_other(tmp_path: Path) -> None:
    script = tmp_path / "changes.jsonl"
    script.write_text("")
    result = CliRunner().invoke(command, ["--script", str(script), "--seed", "1"])
    assert (result.exit_code, "exclude each other" in result.output) == (2, True)


def test_a_port_that_is_taken_is_reported() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(
            command, ["--loopring-port", port, "--metakeep-port", "0", "--bank-port", "0"]
        )
    assert result.exit_code == 1
    assert f"cannot serve: 127.0.0.1:{port}: address already in use; choose another port" in result.output


def test_the_command_imports_nothing_heavy() -> None:
    code = "import sys; import watcher.commands.sandbox; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
