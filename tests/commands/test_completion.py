"""A shell completes commands, options and configured names; errors complete nothing, silently."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.program import COMMAND, environment, watcher

pytestmark = pytest.mark.slow

CONFIGURATION = """
accounts_file = "accounts.jsonl"
[redis]
url = "${NOT_SET_ANYWHERE}"
[[accounts]]
name = "treasury"
[[accounts]]
name = "shop-1"
[[subscriptions]]
name = "ops"
[[subscriptions]]
name = "alerts"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "watcher.toml").write_text(CONFIGURATION)
    (tmp_path / "accounts.jsonl").write_text('{"name": "shop-2"}\n\n{"name": "shop-\\u001b[31m"}\n')
    return tmp_path / "watcher.toml"


def completed(line: str, file: Path | None = None) -> list[str]:
    """The completions in bash of the last word of a line; watcher prints nothing else and does not fail."""
    words = line.split(" ")
    named = {"WATCHER_CONFIG": str(file)} if file else {}
    done = watcher(
        _WATCHER_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1), **named
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [offer.removeprefix("plain,") for offer in done.stdout.splitlines() if offer]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("watcher pi", ["ping"]),
        ("watcher ping ", ["ops", "alerts"]),
        ("watcher ping a", ["alerts"]),
        ("watcher subscriptions p", ["pause"]),
        ("watcher subscriptions pause o", ["ops"]),
        ("watcher subscriptions resume ", ["ops", "alerts"]),
        ("watcher subscriptions list ", []),
        ("watcher resend --dead --subscription o", ["ops"]),
        ("watcher deliveries --subscription al", ["alerts"]),
        ("watcher deliveries g", ["give-up"]),
        ("watcher deliveries give-up ", []),
        ("watcher deliveries --account shop-", ["shop-1", "shop-2"]),
        ("watcher events --account t", ["treasury"]),
        ("watcher tail --account t", ["treasury"]),
        ("watcher tail --subscription o", ["ops"]),
        ("watcher balances shop-2", ["shop-2"]),
        ("watcher audit t", ["treasury"]),
        ("watcher resend --su", ["--subscription"]),
        ("watcher nothing pi", ["ping"]),
    ],
)
def test_names_are_completed_where_an_argument_takes_one(line: str, offered: list[str], file: Path) -> None:
    assert completed(line, file) == offered


def test_the_configuration_named_on_the_command_line_is_read(file: Path) -> None:
    assert completed(f"watcher ping --config {file} al") == ["alerts"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[[subscriptions",
        b"\xff\xfe",
        b'subscriptions = "ops"',
        b"subscriptions = [1]",
        b"subscriptions = 7",
        b'[[subscriptions]]\nname = ["ops"]',
        b'[[subscriptions]]\nname = "a\\nb"',
        b"accounts_file = 7",
        b'accounts_file = "nowhere"',
        b"a = " + b"[" * 5000,
    ],
)
def test_a_broken_configuration_completes_nothing_silently(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "watcher.toml").write_bytes(content)
    for line in ("watcher ping ", "watcher balances "):
        assert completed(line, tmp_path / "watcher.toml") == []


def test_a_missing_configuration_completes_nothing_silently(tmp_path: Path) -> None:
    for place in (tmp_path / "none.toml", tmp_path):
        assert completed("watcher ping ", place) == []


def test_of_a_hundred_thousand_accounts_few_enough_are_offered(tmp_path: Path) -> None:
    names = (f"shop-{number:06}" for number in range(100_000))
    (tmp_path / "watcher.toml").write_text('accounts_file = "accounts.jsonl"')
    (tmp_path / "accounts.jsonl").write_text("".join(json.dumps({"name": name}) + "\n" for name in names))
    assert completed("watcher balances shop-", tmp_path / "watcher.toml") == []
    assert len(completed("watcher balances shop-0994", tmp_path / "watcher.toml")) == 100


def test_completion_imports_nothing_heavy(file: Path) -> None:
    script = "import sys; from types import SimpleNamespace as N"
    script += "; from watcher.commands._shared import names_of"
    script += "; print(names_of('accounts')(N(params={}), None, 't'), *sorted(sys.modules))"
    done = subprocess.run(
        [COMMAND[0], "-c", script],
        env=environment(WATCHER_CONFIG=str(file)),
        capture_output=True,
        text=True,
        check=True,
    )
    found, *modules = done.stdout.split()
    assert found == "['treasury']"
    assert not {"pydantic", "orjson", "redis", "aiohttp", "asyncio", "watcher.config"} & {*modules}
