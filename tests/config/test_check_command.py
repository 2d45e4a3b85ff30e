import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from watcher.commands.check import command
from watcher.settings import DEFAULT_RETRIES

GOOD = """\
[providers.loopring]
api_key = "${LOOPRING_API_KEY:-k}"

[providers."loop.two"]
kind = "loopring"
api_key = "k"

[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 1
interval = "90s"

[[subscriptions]]
name = "ops"
url = "https://ops.example.com:8443/hooks?token=t"
secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
accounts = ["treasury", "nobody"]
headers = { x-team = "ops" }
thresholds = [{ asset = "LRC", below = 10 }]
"""
BAD = '[worker]\ndrain = 5\n\n[[subscriptions]]\nname = "ops"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "watcher.toml"


def check(path: Path, text: str, *arguments: str) -> Result:
    path.write_text(text)
    return CliRunner().invoke(command, ["--config", str(path), *arguments])


def test_a_valid_file_is_summarized_on_stdout_with_its_warnings_on_stderr(path: Path) -> None:
    result = check(path, GOOD)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"{path} is good",
        "providers           2  loopring, loop.two",
        "accounts            1  treasury",
        "subscriptions       1  ops",
    ]
    assert result.stderr.splitlines() == [
        f'warning: {path}:4: providers."loop.two": no account is polled there',
        f"warning: {path}:18: subscriptions[0].accounts[1]: matches no account",
    ]


def test_mistakes_are_shown_on_stderr_with_exit_code_78(path: Path) -> None:
    result = check(path, BAD)
    assert result.exit_code == 78
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{path}:2: worker.drain: not a duration: write a whole number and a unit, "
        'such as "30s", "5m" or "2h"',
        f"{path}:4: subscriptions[0].url: is missing",
        f"{path}:4: subscriptions[0].secrets: is missing",
        f"warning: {path}:1: no [[accounts]]: nothing will be polled",
    ]


def test_json_gives_one_object_a_line(path: Path) -> None:
    good = [json.loads(line) for line in check(path, GOOD, "--json").stdout.splitlines()]
    assert [found.get("severity") for found in good] == ["warning", "warning", None]
    assert good[-1]["providers"]["loopring"] == {"kind": "loopring", "accounts": 1}
    result = check(path, BAD, "--json")
    assert result.exit_code == 78
    bad = [json.loads(line) for line in result.stdout.splitlines()]
    assert [found["severity"] for found in bad] == ["mistake"] * 3 + ["warning"]
    assert bad[1] == {
        "severity": "mistake",
        "file": str(path),
        "line": 4,
        "key": "subscriptions[0].url",
        "text": "is missing",
    }


def test_show_prints_what_is_in_effect_as_toml(path: Path) -> None:
    shown = tomllib.loads(check(path, GOOD, "--show").stdout)
    assert shown["redis"] == {
        "url": "embedded",
        "namespace": "watcher",
        "data_dir": ".watcher",
        "max_memory": "1GB",
    }
    assert shown["providers"]["loopring"]["api_key"] == "***"
    assert shown["providers"]["loop.two"]["base_url"] == "https://api3.loopring.io"
    assert shown["accounts"] == [
        {
            "name": "treasury",
            "provider": "loopring",
            "interval": "90s",
            "pending_interval": "10s",
            "account_id": 1,
        }
    ]
    (subscription,) = shown["subscriptions"]
    assert subscription["url"] == "https://ops.example.com:8443/***"
    assert subscription["secrets"] == ["***"]
    assert subscription["headers"] == {"x-team": "***"}
    assert subscription["retries"] == [*DEFAULT_RETRIES]
    assert subscription["thresholds"] == [{"asset": "LRC", "field": "total", "below": "10"}]
    assert json.loads(check(path, GOOD, "--show", "--json").stdout.splitlines()[-1]) == shown


def test_show_escapes_control_characters(path: Path) -> None:
    text = GOOD.replace('accounts = ["treasury", "nobody"]', 'assets = ["\\U0001F600"]').replace(
        "account_id = 1", 'account_id = 1\n[providers.shop]\nkind = "metakeep"\napi_key = "k"\n'
        '[[accounts]]\nname = "a"\nprovider = "shop"\nof = { "e\\u001bmail" = "\\u202e\\u009b\\u007f" }\n'
        'currencies = ["0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619"]\n',
    )  # fmt: skip
    output = check(path, text, "--show").stdout
    assert all(letter.isprintable() for line in output.split("\n") for letter in line)
    shown = tomllib.loads(output)
    assert shown["accounts"][1]["of"] == {"e\x1bmail": "\u202e\x9b\x7f"}
    assert shown["subscriptions"][0]["assets"] == ["\U0001f600"]


def test_without_secrets_the_output_of_show_loads_as_the_same_settings(path: Path) -> None:
    text = GOOD[: GOOD.index("[[subscriptions]]")]
    first = check(path, text, "--show").stdout
    again = first.replace('"***"', '"k"')
    assert check(path, again, "--show").stdout == first


def test_many_mistakes_are_cut_for_people_and_complete_as_json(path: Path) -> None:
    (path.parent / "a.jsonl").write_text("{\n" * 3000)
    text = 'accounts_file = "a.jsonl"\n'
    lines = check(path, text).stderr.splitlines()
    assert len(lines) == 1001
    assert lines[-1] == "and 2000 more; `watcher check --json` lists all"
    assert len(check(path, text, "--json").stdout.splitlines()) == 3000


def test_nothing_heavy_is_imported_before_the_command_runs() -> None:
    program = "import sys, watcher.commands.check, watcher.commands.init; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_whole_check_imports_neither_a_client_nor_an_event_loop(path: Path) -> None:
    path.write_text(GOOD)
    program = (
        "import sys\nfrom watcher.cli import main\n"
        f"try: main(['check', '--config', {str(path)!r}])\n"
        "except SystemExit as ended: print(ended.code, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    code, *modules = done.stderr.splitlines()[-1].split()
    assert code == "0"
    assert "watcher.settings" in modules
    heavy = {"aiohttp", "asyncio", "hiredis", "prometheus_client", "redis", "ssl", "structlog", "uvloop"}
    assert not heavy & set(modules)
