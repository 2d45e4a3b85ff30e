"""A body is refused in the words of `check`, with all mistakes at once, and no variable in it is replaced."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.builders import SECRET
from tests.support.fuzzing import damaged, damaged_bytes, fuzz
from watcher.config.bodies import BodyRefused, account_of, read_table, subscription_of
from watcher.config.findings import ConfigRefused, Finding, pointer
from watcher.config.loading import load
from watcher.config.sections import Providers
from watcher.delivery.egress import Policy
from watcher.providers.loopring import LoopringSettings
from watcher.providers.metakeep import MetaKeepSettings

BAD = Path(__file__).parent / "bad"
PROVIDERS = Providers.of(
    {
        "loopring": LoopringSettings(name="loopring", kind="loopring", api_key="k"),
        "shop": MetaKeepSettings(name="shop", kind="metakeep", api_key="k"),
    }
)
ACCOUNT = {"name": "treasury", "provider": "loopring", "account_id": 10110, "interval": "30s"}
SUBSCRIPTION = {"name": "ops", "url": "https://ops.example.com/in", "secrets": [SECRET], "accounts": ["a-*"]}


def account(**changes: Any) -> list[tuple[str, str]]:
    """What is wrong with an account that is ACCOUNT but for these."""
    return flaws(lambda: account_of({**ACCOUNT, **changes}, PROVIDERS, lambda _: None))


def subscription(**changes: Any) -> list[tuple[str, str]]:
    return flaws(lambda: subscription_of({**SUBSCRIPTION, **changes}, Policy(), ("ops", "desk")))


def flaws(read: Any) -> list[tuple[str, str]]:
    try:
        read()
    except BodyRefused as refused:
        return [(found.key, found.text) for found in refused.findings]
    return []


def test_a_valid_body_becomes_the_settings_that_a_file_would() -> None:
    made, _ = account_of(ACCOUNT, PROVIDERS, lambda _: None)
    assert made == PROVIDERS.asked_by_name["loopring"].Account.model_validate(ACCOUNT)
    assert subscription_of(SUBSCRIPTION, Policy(), ()).accounts == ("a-*",)


def test_all_mistakes_of_a_body_are_reported_at_once() -> None:
    found = dict(account(interval="0s", account_id="x", colour=1, provider=3))
    assert found.keys() >= {"/interval", "/colour", "/provider"}
    found = dict(
        subscription(
            url="http://10.0.0.1/",
            secrets=["short"],
            headers={"Host": "x", "a/b~c": "y"},
            events=["deposit.cleard"],
            thresholds=[{"asset": "LRC", "below": 0.1}],
            alerts_to="dsk",
            colour="red",
        )
    )
    assert {*found} == {
        "/url",
        "/secrets/0",
        "/headers/Host",
        "/headers/a~1b~0c",
        "/events/0",
        "/thresholds/0/below",
        "/alerts_to",
        "/colour",
    }
    assert found["/alerts_to"].endswith("did you mean 'desk'?")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "accounts_of_loopring",
            "accounts_of_metakeep",
            "durations",
            "events",
            "headers",
            "headers_too_long",
        ),
        *("headers_too_many", "names", "secrets", "thresholds", "unknown_keys", "urls"),
    ],
)
def test_a_body_and_a_file_are_refused_in_the_same_words(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    with pytest.raises(ConfigRefused) as refused:
        load(Path(f"{name}.toml"), {"SECRET": SECRET})
    found_in_file = {
        (match[1], _as_pointer(match[2]), found.text)
        for found in refused.value.mistakes
        if (match := re.match(r"(accounts|subscriptions)\[\d+\]\.(.*)", found.key))
        and "of another" not in found.text
    }
    document = tomllib.loads(Path(f"{name}.toml").read_text())
    found_in_bodies = set[tuple[str, str, str]]()
    for table in _tables(document, "accounts"):
        found_of = flaws(lambda table=table: account_of(table, PROVIDERS, lambda _: None))
        found_in_bodies |= {("accounts", key, text) for key, text in found_of}
    for table in _tables(document, "subscriptions"):
        table["secrets"] = [SECRET if text == "${SECRET}" else text for text in table.get("secrets", [])]
        found_of = flaws(lambda table=table: subscription_of(table, Policy(), ()))
        found_in_bodies |= {("subscriptions", key, text) for key, text in found_of}
    assert found_in_file
    assert found_in_file <= found_in_bodies


def _tables(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    listed = document.get(kind, [])
    return [{**table} for table in listed if isinstance(table, dict)] if isinstance(listed, list) else []


def _as_pointer(written: str) -> str:
    parts = re.findall(r'"((?:[^"\\]|\\.)*)"|\[(\d+)\]|([^.\[\]"]+)', written)
    return pointer(tuple(json.loads(f'"{quoted}"') or index or bare for quoted, index, bare in parts))


def test_a_variable_in_a_body_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPS_SECRET", SECRET)
    ((key, text),) = subscription(secrets=["${OPS_SECRET}"])
    assert key == "/secrets/0"
    assert "not a signing secret" in text or "whsec_" in text
    made = subscription_of(
        {**SUBSCRIPTION, "headers": {"x-key": "${OPS_SECRET}"}, "url": "https://x.example.com/${HOME}"},
        Policy(),
        (),
    )
    assert made.headers == {"x-key": "${OPS_SECRET}"}
    assert made.url.get_secret_value() == "https://x.example.com/${HOME}"


def test_no_file_is_read_for_a_body() -> None:
    assert account(ca="/etc/passwd") == [("/ca", "unknown key")]
    assert dict(subscription(ca="/etc/passwd")).keys() == {"/ca"}
    assert subscription(secrets=["${file:/etc/hostname}"])


def test_two_accounts_of_one_source_are_refused() -> None:
    _, source = account_of(ACCOUNT, PROVIDERS, lambda _: None)
    found = flaws(lambda: account_of(ACCOUNT, PROVIDERS, {source: "old"}.get))
    assert found == [("", "is the same account at the same provider as old")]
    assert not flaws(lambda: account_of(ACCOUNT, PROVIDERS, {source: "treasury"}.get))


def test_a_subscription_alerts_another_one_that_is_there() -> None:
    assert subscription(alerts_to="desk") == []
    assert dict(subscription(alerts_to="ops")) == {
        "/alerts_to": "is this subscription itself, which gets nothing while it is paused"
    }


@pytest.mark.parametrize(
    ("body", "key", "text"),
    [
        (b"", "", "is empty: must be one JSON object"),
        (b"[]", "", "must be one JSON object"),
        (b'{"a": 1}\n{"a": 1}', "", "not valid JSON at line 2, column 1"),
        (b'{"a": NaN}', "", "not valid JSON at column 7"),
        (b'{"a": 1e999}', "", "not valid JSON at column 7"),
        (b'{"a": "\\ud800"}', "", "not valid JSON at column 8"),
        (b'{"a": 1, "a": 1}', "/a", "is given twice"),
        (b'{"of": {"email": 1, "email": 2}}', "/email", "is given twice"),
        (b'{"a": "\xff"}', "", "not UTF-8 text at byte 8"),
        (b'{"a": ' + b"[" * 10_000, "", "not valid JSON"),
        (b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", "", "nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "", "not valid JSON at column 7"),
        (b'{"name": "other"}', "/name", "is not the name in the path"),
        (b'{"name": ["ops"]}', "/name", "is not the name in the path"),
    ],
)
def test_a_body_is_one_strict_json_object(body: bytes, key: str, text: str) -> None:
    with pytest.raises(BodyRefused) as refused:
        read_table(body, named="ops")
    (found,) = refused.value.findings
    assert found.key == key
    assert found.text.startswith(text)


def test_a_whole_number_of_a_body_is_exact() -> None:
    body = (
        b'{"url": "https://a.example.com/", "secrets": ["%s"], "thresholds": [{"asset": "X", "below": %d}]}'
    )
    table = read_table(body % (SECRET.encode(), 10**29 + 1), named="ops")
    assert subscription_of(table, Policy(), ()).thresholds[0].below == f"{10**29 + 1}"


NAMES = ("name", "url", "of", "asset", "provider", "x-y", "secrets", "account_id")


@fuzz(damaged_bytes(json.dumps(SUBSCRIPTION).encode()))
def test_any_bytes_are_a_table_or_refused(body: bytes) -> None:
    use(body)


@fuzz(damaged({**SUBSCRIPTION, **ACCOUNT, "thresholds": [{"asset": "LRC", "below": "5"}]}, *NAMES))
def test_any_table_is_settings_or_refused(table: dict[str, Any]) -> None:
    use(json.dumps(table).encode())


def use(body: bytes) -> None:
    """Claim that this is settings, or refused in words that can be shown."""
    findings: list[Finding] = []
    try:
        table = read_table(body, named=None)
    except BodyRefused as refused:
        findings.extend(refused.findings)
        table = {}
    for read in (
        lambda: account_of(table, PROVIDERS, lambda _: None),
        lambda: subscription_of(table, Policy(), ("ops",)),
    ):
        try:
            assert read()
        except BodyRefused as refused:
            findings.extend(refused.findings)
    assert all(found.text.isprintable() and SECRET not in found.text for found in findings)
