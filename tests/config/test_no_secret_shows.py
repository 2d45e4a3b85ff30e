"""Secrets in a configuration, through every way to show it and to break it."""

import base64
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from watcher.commands.check import command
from watcher.config.findings import ConfigRefused
from watcher.config.loading import load
from watcher.printable import traceback_text

CANARIES = {
    "API_KEY": "canaryApiKey",
    "SECRET": "whsec_" + base64.b64encode(b"canary signing secret 24+").decode(),
    "URL_TOKEN": "canaryUrlToken",
    "REDIS_PASSWORD": "canaryRedisPassword",
    "HEADER": "canaryHeader",
    "BASIC": "canaryBasic",
    "KEY_HEADER": "canaryKeyHeader",
    "KEY_SLOT": "canary/Key+Slot",
    "NODE_KEY": "canary/Node+Key",
    "BOT_TOKEN": "123:canaryBotToken",
    "ROUTING_KEY": "canaryRoutingKey0123456789abcdef",
    "KEY": "wkey_" + base64.b64encode(b"canary key of the API: 32 bytes.").decode(),
}
ACCOUNT_LINE = '{"name": "b", "provider": "loopring", "account_id": 2}'
CONFIGURATION = """\
accounts_file = "accounts.jsonl"
[redis]
url = "redis://user:${REDIS_PASSWORD}@localhost:6379/0?ssl=no"
[api]
secret_key = ["${KEY}"]
[providers.loopring]
api_key = "${API_KEY}"
[providers.node]
kind = "http"
base_url = "https://node.example.com"
basic = "user:${BASIC}"
headers = { x-api-key = "Bearer ${KEY_HEADER}" }
secrets = { key = "${KEY_SLOT}" }
ask = [{ path = "/v2/{key}/{who}", query = { key = "{key}" } }]
read = [{ id = "BTC", total = "n" }]
[providers.chain]
kind = "evm"
base_url = "https://node.example.com"
path = "/v2/{api_key}"
api_key = "${NODE_KEY}"
chain_id = 1
[[accounts]]
name = "gas"
provider = "chain"
address = "0x00000000000000000000000000000000000ba11e"
[[accounts]]
name = "n"
provider = "node"
of = { who = "me" }
[[accounts]]
name = "a"
provider = "loopring"
account_id = 1
[[subscriptions]]
name = "ops"
url = "https://ops.example.com/${URL_TOKEN}?key=${URL_TOKEN}"
secrets = ["${SECRET}"]
headers = { authorization = "Bearer ${HEADER}" }
[[subscriptions]]
name = "chat"
url = "https://api.telegram.org/bot${BOT_TOKEN}/sendMessage"
format = "telegram"
chat = "-1001"
[[subscriptions]]
name = "pager"
url = "https://events.pagerduty.com/v2/enqueue"
format = "pagerduty"
routing_key = "${ROUTING_KEY}"
events = ["account.*"]
""".replace("?ssl=no", "")

LITERAL = re.sub(r"\$\{(\w+)\}", lambda match: CANARIES[match[1]], CONFIGURATION)
"""The same with the secrets in the file itself, so that its syntax can break around them."""


def shows(text: str) -> list[str]:
    secrets = [*CANARIES.values(), "canary"]
    secrets += [CANARIES[name].partition("_")[2] for name in ("SECRET", "KEY")]
    return [secret for secret in secrets if secret in text]


def damaged() -> list[str]:
    """Break each line of the file in each of many ways."""
    damages: list[Callable[[str], str]] = [
        lambda line: line.replace('"', "", 1),
        lambda line: line.replace('"', "'", 1),
        lambda line: line + " trailing",
        lambda line: line.replace(" = ", " "),
        lambda line: line.replace(" = ", "x = "),
        lambda line: line.replace(" = ", " = 1 #"),
        lambda line: line.replace(" = ", " = [") + "]",
        lambda line: line.replace(" = ", " = { x = ") + " }",
        lambda line: line.replace("://", ":/"),
        lambda line: line.replace("https://", "http://"),
        lambda line: line.replace("https://", "https://canary@"),
        lambda line: line.replace("redis://", "canary://"),
        lambda line: line.replace("@localhost", "/x#y@local host"),
        lambda line: line.replace("whsec_", "whsek_"),
        lambda line: line.replace("whsec_", "whsec_!"),
        lambda line: line.replace("whsec_", "whsk_"),
        lambda line: line.replace("wkey_", "wkey_!"),
        lambda line: line.replace("Bearer", "\\u0000"),
        lambda line: line.replace('"', '"${', 1),
        lambda line: f"{line}\n{line}",
        lambda line: "",
    ]
    lines = LITERAL.splitlines()
    files = []
    for damage, number in product(damages, range(len(lines))):
        broken = damage(lines[number])
        if broken != lines[number]:
            files.append("\n".join([*lines[:number], broken, *lines[number + 1 :]]))
    # Every value where every other one belongs: a secret may stand in any place.
    values = ['"' + canary + '"' for canary in CANARIES.values()]
    for value, number in product(values, range(len(lines))):
        key, equals, _ = lines[number].partition(" = ")
        if equals:
            files.append("\n".join([*lines[:number], key + equals + value, *lines[number + 1 :]]))
    return files


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., Result]:
    (tmp_path / "accounts.jsonl").write_text(ACCOUNT_LINE)

    def check(text: str, *arguments: str, environ: dict[str, str] | None = None) -> Result:
        path = tmp_path / "watcher.toml"
        path.write_text(text)
        return CliRunner(env=environ or CANARIES).invoke(command, ["--config", str(path), *arguments])

    return check


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--show",), ("--show", "--json"), ("--help",)])
def test_a_valid_configuration_is_shown_without_its_secrets(
    check: Callable[..., Result], arguments: tuple[str, ...]
) -> None:
    for text in (CONFIGURATION, LITERAL):
        result = check(text, *arguments)
        assert result.exit_code == 0, result.output
        assert shows(result.output) == []


def test_a_broken_configuration_is_refused_without_its_secrets(tmp_path: Path) -> None:
    (tmp_path / "accounts.jsonl").write_text(ACCOUNT_LINE)
    path = tmp_path / "watcher.toml"
    refusals = 0
    for text in damaged():
        path.write_text(text)
        try:
            messages = "\n".join(map(str, load(path, {}).warnings))
        except ConfigRefused as refused:
            refusals += 1
            messages = f"{refused}\n{refused!r}\n{refused.mistakes!r}"
        assert shows(messages) == [], text
    assert refusals > 150


def test_whatever_is_wrong_check_show_repeats_no_secret(check: Callable[..., Result]) -> None:
    codes = set()
    for text in damaged():
        if 'name = "canary' in text:
            continue  # a name is shown, whatever it is
        for arguments in (("--show",), ("--show", "--json")):
            result = check(text, *arguments)
            codes.add(result.exit_code)
            assert shows(result.output) == [], text
    assert codes == {0, 78}


def test_a_loaded_secret_is_hidden_wherever_it_is_quoted(check: Callable[..., Result]) -> None:
    quotes = {
        "API_KEY": "key {}",
        "SECRET": "signed with {}",
        "URL_TOKEN": "Cannot POST /{0}?key={0}",
        "REDIS_PASSWORD": "AUTH {}",
        "HEADER": "not a token: {}",
        "BASIC": "not a password: {}",
        "KEY_HEADER": "not a key: {}",
        "KEY_SLOT": "nothing at /v2/{}/me",
        "NODE_KEY": "no node at /v2/{}",
    }
    assert check(CONFIGURATION).exit_code == 0
    said = [quote.format(CANARIES[name]) for name, quote in quotes.items()]
    said += [
        "nothing at /v2/canary%2FKey%2BSlot/me",
        "no node at /v2/canary%2FNode%2BKey",
        "no Basic dXNlcjpjYW5hcnlCYXNpYw==",
    ]
    assert "dXNlcjpjYW5hcnlCYXNpYw" not in traceback_text(RuntimeError("\n".join(said)))
    assert shows(traceback_text(RuntimeError("\n".join(said)))) == []


def test_a_refusal_chains_no_exception_that_holds_a_secret(
    check: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "watcher.toml"
    for text in (LITERAL.replace("ops", ""), LITERAL + "x", LITERAL.replace("interval", "")):
        path.write_text(text.replace('name = "a"', "name = 1"))
        with pytest.raises(ConfigRefused) as refused:
            load(path, {})
        assert refused.value.__cause__ is None
        assert refused.value.__context__ is None or refused.value.__suppress_context__


def test_a_secret_in_the_wrong_place_is_not_repeated_by_the_command(check: Callable[..., Result]) -> None:
    text = CONFIGURATION.replace('provider = "loopring"', 'provider = "${API_KEY}"')
    text = text.replace(
        'name = "ops"', 'name = "${SECRET}"\nevents = ["${API_KEY}"]\naccounts = ["${API_KEY}"]'
    )
    for arguments in ((), ("--json",), ("--show",)):
        result = check(text, *arguments)
        assert result.exit_code == 78
        assert shows(result.output) == []


def test_settings_do_not_repeat_a_secret_when_they_are_printed(tmp_path: Path) -> None:
    (tmp_path / "accounts.jsonl").write_text(ACCOUNT_LINE)
    path = tmp_path / "watcher.toml"
    path.write_text(CONFIGURATION)
    loaded = load(path, CANARIES)
    assert shows(repr(loaded)) == []


def test_the_output_of_show_with_hidden_secrets_is_refused_as_a_configuration(
    check: Callable[..., Result],
) -> None:
    """A mask that is taken for the secret would sign every event with stars."""
    shown = check(CONFIGURATION, "--show").output
    result = check(shown)
    assert result.exit_code == 78
    masked = [line for line in result.stderr.splitlines() if "mask" in line]
    assert len(masked) == 10


def test_a_key_in_a_field_that_is_shown_is_a_warning(check: Callable[..., Result]) -> None:
    shown = CONFIGURATION.replace('path = "/v2/{key}/{who}"', 'path = "/v2/${KEY_HEADER}/{key}/{who}"')
    (warned,) = [line for line in check(shown).stderr.splitlines() if "belongs in `secrets`" in line]
    assert "providers.node.ask[0].path: is shown with the variable in it" in warned
    shown = CONFIGURATION.replace('path = "/v2/{api_key}"', 'path = "/${NODE_KEY}/{api_key}"')
    (warned,) = [line for line in check(shown).stderr.splitlines() if "belongs in `api_key`" in line]
    assert "providers.chain.path: is shown with the variable in it" in warned
    assert "belongs in" not in check(CONFIGURATION).stderr
