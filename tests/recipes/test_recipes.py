"""Every recipe makes the right requests, and reads its samples to the last digit."""

import json
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from watcher import recipes
from watcher.commands.recipes import asked
from watcher.config.files import read_toml
from watcher.config.findings import Findings
from watcher.config.sections import read_accounts, read_providers
from watcher.environment import Environment
from watcher.preview import polls
from watcher.providers.contract import Provider, Rejected, provider_class
from watcher.providers.declared import HttpAccount
from watcher.providers.http import by_status
from watcher.providers.strict_json import parse
from watcher.recipes import HERE
from watcher.settings import AccountSettings, ProviderSettings
from watcher.snapshot import Snapshot

NAMES = [name for name in recipes.names() if recipes.recipe(name).kind == "http"]
"""The others are read by code, which has its own tests."""
SAMPLES = HERE / "samples"


def variables_of(name: str) -> dict[str, str]:
    return dict.fromkeys(re.findall(r"\$\{(\w+)\}", recipes.recipe(name).text), "KEY")


@cache
def read(name: str) -> tuple[Provider, AccountSettings]:
    """A recipe as a section finds it that says nothing but its name, and the account of its example."""
    settings, account = section(name)
    return provider_class(settings.kind)(settings), account


def section(name: str, **over: Any) -> tuple[ProviderSettings, AccountSettings]:
    """The same with what else the section says, its settings."""
    environment, findings = Environment(variables_of(name)), Findings()
    document = read_toml(HERE / f"{name}.toml", environment, findings)
    bare = replace(document, table={**document.table, "providers": {name: over}})
    providers = read_providers(bare, environment, findings)
    accounts = read_accounts(bare, environment, providers, findings)
    assert [*map(str, findings.mistakes), *map(str, findings.warnings)] == []
    (account,) = accounts.by_name.values()
    return providers.settings_by_name[name], account


def expected(name: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((SAMPLES / name / "expected.json").read_text())
    return said


def bodies(name: str, kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((SAMPLES / name).glob(f"{kind}-*.json"))]


def said_of(snapshot: Snapshot) -> dict[str, Any]:
    balances = {asset: [*row.balance] for asset, row in snapshot.row_by_asset.items()}
    return {"balances": balances, **({} if snapshot.height is None else {"height": snapshot.height})}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_asks_and_reads_what_its_samples_say(name: str) -> None:
    provider, account = read(name)
    wanted = expected(name)
    assert [asked(request) for request in provider.requests(account)] == wanted.pop("asks")
    later = wanted.pop("later", None)
    assert [said_of(snapshot) for snapshot, _ in polls(provider, account, bodies(name, "answer"))] == [wanted]
    if later:
        assert [said_of(snapshot) for snapshot, _ in polls(provider, account, bodies(name, "later"))] == [
            later
        ]


NAMELESS = {"bitcoin-core", "etherscan", "lnbits", "lnd", "monero", "solana", "stripe", "wise"}
"""Their answers do not say for whom they are."""


@pytest.mark.parametrize("name", sorted({*NAMES} - NAMELESS))
def test_an_answer_about_another_account_is_rejected(name: str) -> None:
    provider, account = read(name)
    assert isinstance(account, HttpAccount)
    parsed = [parse(body) for body in bodies(name, "answer")]
    others = account.of | {slot: f"{value}1" for slot, value in account.of.items() if slot != "coin"}
    with pytest.raises(Rejected, match="about another account") as rejected:
        provider.read(account.model_copy(update={"of": others}), parsed, {})
    assert rejected.value.error_class == "malformed"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_knows_the_errors_of_its_api(name: str) -> None:
    provider, _ = read(name)
    for sample in json.loads((SAMPLES / name / "errors.json").read_text()):
        body = None if sample["answer"] is None else parse(json.dumps(sample["answer"]).encode())
        refused = provider.refusal(sample["status"], body)
        if refused is None or sample["status"] == 429:
            assert sample["status"] != 200, sample
            refused = by_status(sample["status"])
        assert refused.error_class == sample["error_class"], sample
