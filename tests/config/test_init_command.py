import os
import pty
import re
import stat
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from watcher.commands.check import command as check_command
from watcher.commands.init import (
    command,
    destinations,
    example,
    example_with,
    sources,
    stand_in,
    variables_of,
)
from watcher.config.findings import ConfigRefused
from watcher.config.loading import Loaded, load
from watcher.providers.contract import kinds
from watcher.settings import PER_SECOND_BY_FORMAT


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def init(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_it_writes_the_example_and_prints_the_next_commands() -> None:
    result = init()
    assert result.exit_code == 0
    assert Path("watcher.toml").read_text() == example()
    exports, check, run = result.stdout.splitlines()
    assert exports.startswith("export LOOPRING_API_KEY='your-key' OPS_SECRET=whsec_")
    assert (check, run) == ("watcher check", "watcher run")
    assert "watcher.toml" in result.stderr
    assert "For what needs no key: watcher init --provider ethereum" in result.stderr
    assert "no key" not in init("other.toml", "--provider", "ethereum").stderr


def test_the_commands_that_it_prints_work() -> None:
    """As a new user would: paste the first line into a shell, then check."""
    exports = init().stdout.splitlines()[0]
    program = f"{exports}; exec {sys.executable} -m watcher check"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("watcher.toml is good\n")


def test_each_run_makes_its_own_secret_and_writes_it_nowhere() -> None:
    secrets = {init("--force").stdout.splitlines()[0].rpartition("=whsec_")[2] for _ in range(5)}
    assert len(secrets) == 5
    assert "whsec_" not in "".join(
        line.split("#")[0] for line in Path("watcher.toml").read_text().splitlines()
    )


def test_it_refuses_to_overwrite_and_says_what_to_do() -> None:
    Path("watcher.toml").write_text("mine")
    result = init()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: watcher.toml is there already: name another file (watcher init other.toml), or replace it "
        "with --force\n"
    )
    assert Path("watcher.toml").read_text() == "mine"
    assert init("--force").exit_code == 0
    assert Path("watcher.toml").read_text() == example()


def test_another_path_is_named_in_the_next_commands() -> None:
    result = init("my watcher.toml")
    assert result.stdout.splitlines()[1:] == [
        "watcher check --config 'my watcher.toml'",
        "watcher run --config 'my watcher.toml'",
    ]
    environ = {"LOOPRING_API_KEY": "k", "OPS_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    assert CliRunner(env=environ).invoke(check_command, ["--config", "my watcher.toml"]).exit_code == 0


def test_an_unwritable_place_is_one_message_without_a_traceback() -> None:
    result = init("nowhere/watcher.toml")
    assert result.exit_code == 1
    assert result.stderr == "Error: nowhere/watcher.toml cannot be written: No such file or directory\n"


def test_a_dangling_link_is_not_followed() -> None:
    Path("watcher.toml").symlink_to("elsewhere.toml")
    assert init().exit_code == 1
    assert not Path("elsewhere.toml").exists()


def test_the_file_has_ordinary_permissions() -> None:
    init()
    assert stat.S_ISREG(Path("watcher.toml").stat().st_mode)


def loaded(source: str, destination: str) -> Loaded:
    """Load what is written for them, with what stands in for each variable."""
    text = example_with(source, destination)
    Path("watcher.toml").write_text(text)
    assignments = (stand_in(name).partition("=") for name in variables_of(text))
    return load(Path("watcher.toml"), {name: value.strip("'") for name, _, value in assignments})


@pytest.mark.parametrize("source", [name for name in sources() if name != "exchange"])
def test_each_source_and_destination_make_a_valid_configuration(source: str) -> None:
    for destination in destinations():
        found = loaded(source, destination)
        nobody = destination == "none"
        assert [warning.text for warning in found.warnings] == [
            "no [[subscriptions]]: no event will be sent"
        ] * nobody, destination
        assert [*found.settings.subscription_by_name] == ["ops"] * (not nobody)
        assert len(found.settings.account_by_name) == 1
        (provider,) = found.settings.provider_by_name.values()
        assert source in (provider.name, provider.kind)


def test_an_exchange_needs_its_extra_and_nothing_else() -> None:
    if find_spec("ccxt"):
        assert not loaded("exchange", "standard").warnings
        return
    with pytest.raises(ConfigRefused) as refused:
        loaded("exchange", "standard")
    (mistake,) = refused.value.mistakes
    assert mistake.text == "needs ccxt: pip install 'balance-watcher[exchange]'"


def test_every_kind_of_provider_is_a_source() -> None:
    assert {*sources()} == {*kinds()}


def test_each_variable_is_named_with_where_its_value_comes_from() -> None:
    result = init("--provider", "stripe", "--to", "none")
    assert "  STRIPE_API_KEY: Stripe: Developers, API keys, a restricted key" in result.stderr
    assert result.stdout.splitlines() == ["export STRIPE_API_KEY='your-key'", "watcher check", "watcher run"]
    result = init("--force", "--provider", "ethereum", "--to", "standard")
    assert result.stdout.splitlines()[1:] == ["watcher check", "watcher ping ops", "watcher run"]


def test_the_file_says_where_to_get_the_url_of_a_chat_too() -> None:
    result = init("--provider", "evm", "--to", "slack")
    assert result.stdout.splitlines() == [
        "export SLACK_URL='https://hooks.slack.com/services/T000/B000/your-token'",
        *("watcher check", "watcher ping ops", "watcher run"),
    ]
    origin = "SLACK_URL: api.slack.com/apps: your app (or Create New App), Incoming Webhooks, Add New Webhook"
    assert origin in result.stderr
    assert origin in Path("watcher.toml").read_text()


def test_every_format_is_a_destination() -> None:
    assert {*destinations()} == {*PER_SECOND_BY_FORMAT, "none"}


def test_an_unknown_source_or_destination_writes_nothing() -> None:
    result = init("--provider", "stripee")
    assert result.stderr == "Error: no kind of provider is called 'stripee'; did you mean 'stripe'?\n"
    assert init("--to", "slak").stderr == "Error: no destination is called 'slak'; did you mean 'slack'?\n"
    result = init("--to", "standart")
    assert result.stderr == "Error: no destination is called 'standart'; did you mean 'standard'?\n"
    assert (result.exit_code, Path("watcher.toml").exists()) == (2, False)


def test_on_a_terminal_it_asks_for_both_and_again_after_an_unknown_name() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "watcher", "init"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs) as running:
        os.close(theirs)
        os.write(ours, b"esplorra\nesplora\nnone\n")
        said = b""
        with suppress(OSError):  # what Linux says at the end of a terminal
            while part := os.read(ours, 1000):
                said += part
        assert running.stdout
        printed = running.stdout.read().decode()
    os.close(ours)
    assert printed.splitlines() == ["watcher check", "watcher run"]
    assert b"did you mean 'esplora'?" in said
    assert Path("watcher.toml").read_text() == example_with("esplora", "none")


@pytest.mark.parametrize("destination", PER_SECOND_BY_FORMAT)
def test_the_commented_lines_are_valid_too(destination: str) -> None:
    text = example_with("ethereum", destination)
    Path("watcher.toml").write_text(re.sub(r"(?m)^# (?=(?:events|assets|template) = )", "", text))
    assignments = (stand_in(name).partition("=") for name in variables_of(text))
    found = load(Path("watcher.toml"), {name: value.strip("'") for name, _, value in assignments})
    assert found.warnings == ()
    assert found.settings.subscription_by_name["ops"].events
