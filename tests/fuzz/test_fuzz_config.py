"""Any file and environment: every mistake is reported, or all of it can be used."""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example
from hypothesis import strategies as st
from yarl import URL

from tests.support.builders import SECRET
from tests.support.fuzzing import damaged, damaged_bytes, damaged_text, fuzz, json_values, text_objects, texts
from watcher.config.files import interpolate
from watcher.config.findings import ConfigRefused, Finding
from watcher.config.loading import Loaded, as_toml, load, read_to_look, shown
from watcher.delivery.egress import Policy
from watcher.delivery.webhook import WebhookTarget
from watcher.environment import Environment, NotSet
from watcher.providers.contract import provider_class

CANARY = "canary-1f6b"
ENVIRON = {"KEY": CANARY, "SECRET": SECRET, "PASSWORD": CANARY, "KEY_FILE": "/nowhere"}
GOOD: dict[str, Any] = {
    "redis": {"url": "redis://:${PASSWORD}@127.0.0.1:7000/1", "namespace": "w"},
    "worker": {"drain": "25s"},
    "log": {"level": "info", "format": "auto"},
    "egress": {"allow": ["10.1.0.0/16"], "allow_http": False, "nat64": False},
    "providers": {
        "loopring": {"base_url": "https://api3.loopring.io", "api_key": "${KEY}", "requests_per_second": 4},
        "shop": {"kind": "metakeep", "api_key": "${KEY:-none}", "timeout": "10s", "withdrawals": "inside"},
        "litecoin": {
            "kind": "bitcoin-core",
            "basic": "watcher:${PASSWORD}",
            "error_classes": {"-4": "transient"},
            "read": [{"id": "LTC", "total": ["trusted"]}],
        },
    },
    "accounts": [
        {
            "name": "treasury",
            "provider": "loopring",
            "account_id": 10110,
            "tokens": [0, 1],
            "interval": "30s",
        },
        {
            "name": "alice",
            "provider": "shop",
            "of": {"email": "a@b.c"},
            "currencies": ["0x" + "7c" * 20],
        },
        {"name": "wallet", "provider": "litecoin", "of": {"wallet": "shop"}},
    ],
    "subscriptions": [
        {
            "name": "ops",
            "url": "https://ops.example.com/hooks",
            "secrets": ["${SECRET}"],
            "accounts": ["treasury", "shop-*"],
            "events": ["deposit.*"],
            "assets": ["LRC"],
            "retries": ["0s", "5s"],
            "headers": {"x-team": "money"},
            "max_in_flight": 8,
            "requests_per_second": 5,
            "alerts_to": "desk",
            "thresholds": [{"asset": "LRC", "field": "total", "below": "5", "clear": "6.5"}],
        },
        {"name": "desk", "url": "https://desk.example.com/", "secrets": ["${SECRET}"]},
    ],
}
TEXT = "\n".join(as_toml(GOOD))
OPS = GOOD["subscriptions"][0]
NAMES = ("name", "url", "email", "asset", "provider", "x-y")
ENVIRONS = text_objects(
    "KEY", "SECRET", "REDIS_URL", "LOG_LEVEL", "KEY_FILE", "REDIS_URL_FILE", "LOG_LEVEL_FILE"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def test_the_undamaged_configuration_is_valid(place: Path) -> None:
    (place / "watcher.toml").write_text(TEXT)
    assert load(place / "watcher.toml", ENVIRON).settings.subscription_by_name.keys() == {"ops", "desk"}


@example(text=TEXT.replace('name = "treasury"', r'name = "treasu\u202e"'), environ={})
@example(text=TEXT.replace("retries", "12.5" * 3000), environ={})
@fuzz(text=texts | damaged_text(TEXT), environ=ENVIRONS)
def test_any_text_is_a_configuration_or_a_list_of_mistakes(
    place: Path, text: str, environ: dict[str, str]
) -> None:
    use(place, text.encode(errors="surrogatepass"), {**ENVIRON, **environ})


@example(content=b"a." * 5000 + b"a = 1")
@fuzz(content=st.binary() | damaged_bytes(TEXT.encode()))
def test_any_bytes_are_a_configuration_or_a_list_of_mistakes(place: Path, content: bytes) -> None:
    use(place, content, ENVIRON)


@example(tree={**GOOD, "subscriptions": [{**OPS, "thresholds": [{"asset": "\x93ºþ", "below": "5"}]}]})
@fuzz(tree=damaged(GOOD, *NAMES))
def test_any_values_make_a_configuration_or_a_list_of_mistakes(place: Path, tree: dict[str, Any]) -> None:
    try:
        text = "\n".join(as_toml(tree))
    except AttributeError:
        return  # it writes tables, and some of these are none
    use(place, text.encode(errors="surrogatepass"), ENVIRON)


LINES = [json.dumps(account) for account in GOOD["accounts"]]
LINE = st.one_of(*(damaged(account, *NAMES) for account in GOOD["accounts"]), json_values(*NAMES))


@fuzz(
    lines=st.lists(
        LINE.map(lambda value: json.dumps(value).encode()) | damaged_bytes(LINES[1].encode()), max_size=3
    )
)
def test_any_lines_are_accounts_or_mistakes(place: Path, lines: list[bytes]) -> None:
    (place / "accounts.jsonl").write_bytes(b"\n".join(lines))
    tree = {name: table for name, table in GOOD.items() if name != "accounts"}
    text = 'accounts_file = "accounts.jsonl"\n' + "\n".join(as_toml(tree))
    use(place, text.encode(), ENVIRON)


@example("redis://" + 2000 * ":${NAME:-default", {})
@fuzz(texts | damaged_text("redis://${KEY}:${NAME:-default}@$${literal}"), ENVIRONS)
def test_any_reference_is_replaced_or_reported_as_unset(text: str, environ: dict[str, str]) -> None:
    try:
        replaced = interpolate(text, Environment(environ))
    except NotSet as missing:
        show_no_secret((missing,))
    else:
        assert "${" in text or replaced == text


def look_with(path: Path, environ: Mapping[str, str]) -> None:
    """Claim that read commands work with what no worker accepts, unless its Redis is missing."""
    try:
        look = read_to_look(path, environ, {})
    except ConfigRefused as refused:
        show_no_secret(refused.mistakes)
    else:
        assert not look.is_whole
        assert look.problem
        show_no_secret((look.problem,))


def use(place: Path, content: bytes, environ: Mapping[str, str]) -> None:
    """Claim that this is refused in words that show no secret, or that all of it can be used and shown."""
    path = place / "watcher.toml"
    path.write_bytes(content)
    try:
        loaded = load(path, environ)
    except ConfigRefused as refused:
        show_no_secret((*refused.mistakes, *refused.warnings))
        look_with(path, environ)
        return
    show_no_secret(loaded.warnings)
    start(loaded)
    text = "\n".join(as_toml(shown(loaded.settings)))
    assert CANARY not in text
    assert "null" in text or tomllib.loads(text)  # which JSON can say of a user, and TOML cannot


def show_no_secret(findings: Iterable[Finding | NotSet | str]) -> None:
    for finding in findings:
        assert CANARY not in str(finding)
        assert str(finding).isprintable()


def start(loaded: Loaded) -> None:
    """Do with each part what a worker does with it at first: what cannot be used must not be accepted."""
    settings = loaded.settings
    policy = Policy(settings.egress.allow, settings.egress.allow_http, settings.egress.nat64)
    providers = {name: provider_class(one.kind)(one) for name, one in settings.provider_by_name.items()}
    for account in settings.account_by_name.values():
        assert providers[account.provider].source(account)
        for request in providers[account.provider].requests(account):
            base_url = settings.provider_by_name[account.provider].base_url
            assert URL(base_url + request.path).with_query(request.query).host
            json.dumps(request.json, allow_nan=False)
            assert all(re.fullmatch("[!-~]+( [!-~]+)*", value) for value in request.secret_headers.values())
    for subscription in settings.subscription_by_name.values():
        assert WebhookTarget(subscription, policy).signer.signature("evt_1", 1, b"{}")
