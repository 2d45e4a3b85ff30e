"""What works, but probably not as intended, is a warning: secrets, thresholds, load. One run finds all."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.builders import SECRET
from watcher.config.findings import ConfigRefused
from watcher.config.loading import load

HEAD = """
[providers.loopring]
api_key = "k"
[providers.shop]
kind = "metakeep"
api_key = "k"
[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 1
[[accounts]]
name = "few"
provider = "loopring"
account_id = 2
tokens = [0, 1]
[[accounts]]
name = "alice"
provider = "shop"
of = { email = "a@b.c" }
currencies = ["0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619"]
[[subscriptions]]
name = "ops"
url = "https://ops.example.com/"
"""
OPS = f'secrets = ["{SECRET}"]\n'

Warned = Callable[..., list[str]]


@pytest.fixture
def warned(tmp_path: Path) -> Warned:
    """The warnings about a configuration, by key."""

    def warned(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
        path = tmp_path / "watcher.toml"
        path.write_text(text)
        loaded = load(path, environ or {})
        return [f"{warning.key}: {warning.text}" for warning in loaded.warnings]

    return warned


# secrets


@pytest.mark.parametrize("value", ['"k-canary"', "'k-canary'", "`k-canary`"])
def test_a_quoted_key_is_a_warning_wherever_it_was_set(warned: Warned, value: str) -> None:
    quoted = [
        "providers.loopring.api_key: is in quotes, which are part of the value: take them off where it is set"
    ]
    assert warned(HEAD.replace('"k"', '"${KEY}"', 1) + OPS, {"KEY": value}) == quoted
    assert warned(HEAD.replace('"k"', f"'''{value}'''", 1) + OPS) == quoted


@pytest.mark.parametrize("value", ["$LOOPRING_API_KEY", "$1x", "${A:-$B}"])
def test_a_key_that_begins_with_an_unbraced_dollar_is_a_warning(warned: Warned, value: str) -> None:
    assert warned(HEAD.replace('"k"', f'"{value}"', 1) + OPS) == [
        "providers.loopring.api_key: holds a '$' without braces, which stays as it is: write ${NAME}"
    ]


@pytest.mark.parametrize(
    ("find", "put", "key"),
    [
        ('"https://ops.example.com/"', '"https://ops.example.com/?token=$TOKEN"', "subscriptions[0].url"),
        (OPS, OPS + 'headers = { x-key = "$KEY" }\n', "subscriptions[0].headers.x-key"),
        (OPS, OPS + 'headers = { x-key = "Bearer $KEY" }\n', "subscriptions[0].headers.x-key"),
        (OPS, OPS + "headers = { x-key = '\"k\"' }\n", "subscriptions[0].headers.x-key"),
        (
            "[providers.loopring]",
            '[redis]\nurl = "redis://:$PASSWORD@127.0.0.1"\n[providers.loopring]',
            "redis.url",
        ),
    ],
)
def test_urls_and_headers_are_checked_like_keys(warned: Warned, find: str, put: str, key: str) -> None:
    (found,) = warned((HEAD + OPS).replace(find, put, 1))
    assert found.startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("url", "service"),
    [
        ("https://hooks.slack.com/services/T/B/x", "Slack"),
        ("https://discord.com/api/webhooks/1/x", "Discord"),
        ("https://acme.webhook.office.com/webhookb2/x", "Teams"),
        ("https://api.telegram.org/bot1:x/sendMessage", "Telegram"),
        ("https://ntfy.sh/x", "ntfy"),
        ("https://events.eu.pagerduty.com/v2/enqueue", "PagerDuty"),
        ("https://notslack.com/hooks.slack.com", None),
        ("https://myhooks.slack.com.example.com/", None),
    ],
)
def test_a_subscriber_that_is_a_chat_service_is_proposed_its_format(
    warned: Warned, url: str, service: str | None
) -> None:
    found = warned((HEAD + OPS).replace("https://ops.example.com/", url))
    text = f"leads to {service}, which does not understand signed events"
    proposed = f'{text}: set format = "{str(service).lower()}"'
    assert found == ([f"subscriptions[0].url: {proposed}"] if service else [])


NOBODY = HEAD.partition("[[subscriptions]]")[0]
CHAT = """
[[subscriptions]]
name = "chat"
url = "https://hooks.slack.com/services/T/B/x"
format = "slack"
"""


@pytest.mark.parametrize(
    ("url", "format_", "found"),
    [
        ("https://hooks.slack.com/services/T/B/x", "slack", []),
        ("https://chat.example.com/hooks/x", "slack", []),
        ("https://discord.com/api/webhooks/1/x", "slack", ["url: leads to Discord, but format is slack"]),
        ("https://prod-1.westus.logic.azure.com/workflows/x", "teams", []),
        ("https://hooks.slack.com/services/T/B/x", "teams", ["url: leads to Slack, but format is teams"]),
    ],
)
def test_a_format_is_compared_with_the_service_of_the_url(
    warned: Warned, url: str, format_: str, found: list[str]
) -> None:
    text = CHAT.replace("https://hooks.slack.com/services/T/B/x", url).replace('"slack"', f'"{format_}"')
    assert warned(NOBODY + text) == [f"subscriptions[0].{one}" for one in found]


def test_a_message_for_people_needs_no_secrets_and_does_not_use_them(warned: Warned) -> None:
    found = warned(NOBODY + CHAT + OPS)
    assert found == ["subscriptions[0].secrets: are not used: a message for people is not signed"]


def test_a_misspelled_format_warns_of_no_secrets(warned: Warned) -> None:
    with pytest.raises(ConfigRefused) as refused:
        warned(NOBODY + CHAT.replace('"slack"', '"slak"') + OPS)
    assert not refused.value.warnings


def test_a_pager_for_every_change_is_a_warning(warned: Warned) -> None:
    pager = CHAT.replace("hooks.slack.com/services/T/B/x", "events.pagerduty.com/v2/enqueue").replace(
        '"slack"', f'"pagerduty"\nrouting_key = "{"a" * 32}"'
    )
    (found,) = warned(NOBODY + pager)
    assert found.startswith("subscriptions[0].events: are every change, and each opens an alert: name ")
    assert warned(NOBODY + pager + 'events = ["account.stale"]\n') == []


def test_a_literal_dollar_is_no_warning(warned: Warned) -> None:
    text = (HEAD + OPS).replace("example.com/", "example.com/$batch?$filter=x&price=5$", 1)
    assert warned(text.replace('"k"', '"a$B"', 1)) == []


@pytest.mark.parametrize("value", [f'"{SECRET}"', "$OPS_SECRET"])
def test_a_signing_secret_that_cannot_sign_for_that_reason_says_so(warned: Warned, value: str) -> None:
    with pytest.raises(ConfigRefused, match=r"in quotes|without braces"):
        warned(HEAD + 'secrets = ["${S}"]\n', {"S": value})
    with pytest.raises(ConfigRefused, match=r"environment: REDIS_URL: is in quotes"):
        warned(HEAD + OPS, {"REDIS_URL": '"redis://localhost"'})


# thresholds


def a_threshold(fields: str, more: str = "") -> str:
    return f"{HEAD}{OPS}{more}\nthresholds = [{{ {fields} }}]\n"


@pytest.mark.parametrize(
    ("more", "fields", "reason"),
    [
        ("", 'asset = "*", below = 1', "asset: can never fire: a threshold is about one asset"),
        ("", 'asset = "L*", below = 1', "asset: can never fire: a threshold is about one asset"),
        ("", 'asset = "lrc", below = 1', "asset: can never fire: upper and lower case count"),
        ('assets = ["USDC"]', 'asset = "Usdc", below = 1', "-- did you mean 'USDC'?"),
        ('accounts = ["few"]', 'asset = "5", below = 1', "no account that the subscription is about asks"),
        ('accounts = ["few"]', 'asset = "USDC", below = 1', "no account that the subscription is about asks"),
        (
            'accounts = ["few"]',
            'asset = "WBTC", below = 1',
            "may never fire: whether the asset is among",
        ),
        ('accounts = ["few"]', f'asset = "0x{"1" * 40}", below = 1', "no account that the subscription is"),
        ('accounts = ["alice"]', f'asset = "0x{"1" * 40}", below = 1', "no account that the subscription is"),
        (
            'accounts = ["alice"]',
            'asset = "MK", field = "pending_deposit", above = 1',
            "field: can never fire: shop knows no pending_deposit",
        ),
        ("", 'asset = "LRC", below = 0', "below: can never fire: at shop no balance is below zero"),
        ("", 'asset = "LRC", below = "-5"', "below: can never fire: at shop no balance is below zero"),
        ("", 'asset = "LRC", below = "0.0", field = "locked"', "below: can never fire"),
    ],
)
def test_a_threshold_that_can_never_fire_is_a_warning(
    warned: Warned, more: str, fields: str, reason: str
) -> None:
    (found,) = warned(a_threshold(fields, more))
    assert found.startswith("subscriptions[0].thresholds[0].")
    assert reason in found


@pytest.mark.parametrize(
    ("more", "fields"),
    [
        ("", 'asset = "LRC", below = 1'),
        ("", 'asset = "5", below = 1'),
        ('accounts = ["few"]', 'asset = "1", below = 1'),
        ('accounts = ["few"]', 'asset = "LRC", below = 1'),
        ('accounts = ["alice"]', 'asset = "0X7CEB23FD6BC0ADD59E62AC25578270CFF1B9F619", below = 1'),
        ('accounts = ["alice"]', 'asset = "stETH", below = 1'),
        ("", 'asset = "LRC", field = "pending_deposit", above = 1'),
        ("", 'asset = "LRC", field = "available", below = 0'),
        ("", 'asset = "LRC", field = "available", below = "-5", clear = "-2.5"'),
        ("", 'asset = "LRC", above = "-5"'),
        ('assets = ["ETH"]', 'asset = "LRC", below = 1'),
        ('events = ["threshold.*"]', 'asset = "LRC", below = 1'),
    ],
)
def test_a_threshold_that_may_fire_is_no_warning(warned: Warned, more: str, fields: str) -> None:
    assert warned(a_threshold(fields, more)) == []


def test_a_bound_that_is_set_twice_is_a_warning(warned: Warned) -> None:
    twice = a_threshold('asset = "LRC", below = 1').replace(
        "}]", '}, { asset = "LRC", below = "1", clear = 2 }]'
    )
    assert warned(twice) == ["subscriptions[0].thresholds[1]: is the bound of thresholds[0]"]


def test_thresholds_whose_events_are_not_asked_for_are_a_warning(warned: Warned) -> None:
    assert warned(a_threshold('asset = "LRC", below = 1', 'events = ["deposit.*"]')) == [
        "subscriptions[0].events: lacks threshold.crossed: no threshold will be reported"
    ]


# load


@pytest.mark.parametrize(
    ("accounts", "interval", "rate", "is_told"),
    [
        (20, "1s", 2, True),
        (20, "10s", 2, True),
        (20, "20s", 2, False),
        (1, "1s", 1, True),
        (18, "10s", 2, False),
    ],
)
def test_polls_that_must_come_late_are_a_warning_before_anything_runs(
    warned: Warned, accounts: int, interval: str, rate: float, is_told: bool
) -> None:
    text = f'[providers.loopring]\napi_key = "k"\nrequests_per_second = {rate}\n' + "".join(
        f'[[accounts]]\nname = "a{n}"\nprovider = "loopring"\naccount_id = {n}\ninterval = "{interval}"\n'
        for n in range(accounts)
    )
    text += f'[[subscriptions]]\nname = "ops"\nurl = "https://ops.example.com/"\n{OPS}'
    found = warned(text)
    assert len(found) == is_told
    if accounts == 20 and is_told:
        assert found[0].startswith(
            "providers.loopring.requests_per_second: 20 accounts at their intervals take 2"
        )


@pytest.mark.parametrize(("timeout", "stale"), [("10s", ""), ("2s", ", and 20 of these accounts are stale")])
def test_accounts_that_must_go_stale_are_counted(warned: Warned, timeout: str, stale: str) -> None:
    text = f'[providers.loopring]\napi_key = "k"\nrequests_per_second = 2\ntimeout = "{timeout}"\n' + "".join(
        f'[[accounts]]\nname = "a{n}"\nprovider = "loopring"\naccount_id = {n}\ninterval = "1s"\n'
        for n in range(20)
    )
    text += f'[[subscriptions]]\nname = "ops"\nurl = "https://ops.example.com/"\n{OPS}'
    (found,) = warned(text)
    assert f"polls are 10.5 intervals apart{stale}; raise it" in found


def test_an_account_of_many_requests_counts_as_many(warned: Warned) -> None:
    currencies = ", ".join(f'"0x{n:040x}"' for n in range(60))
    text = HEAD.replace('"0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619"', currencies)
    text = text.replace('kind = "metakeep"', 'kind = "metakeep"\nrequests_per_second = 0.1') + OPS
    (found,) = warned(text)
    assert "polls are 1.05 intervals apart" in found


# everything at once

BAD = """\
accounts_file = "more.jsonl"

[worker]
drain = 5

[egress]
allow = ["10.0.0.0.0"]

[providers.loopring]
api_key = "${KEY}"
requests_per_second = 0.05

[providers.idle]
kind = "metakeep"
api_key = "$NOT_REPLACED"

[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 1
tokens = [0, 1]
interval = "soon"

[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 2

[[accounts]]
name = "again"
provider = "loopring"
account_id = 1

[[accounts]]
name = "dangling"
provider = "lopring"
acount_id = 3

[[subscriptions]]
name = "ops"
url = "https://ops.example.com/?key=$TOKEN"
secrets = ["${OPS_SECRET}"]
accounts = ["treasury", "broken", "shop-*"]
alerts_to = "opps"
thresholds = [
  { asset = "L*", below = 1 },
  { asset = "LRC", below = "low" },
  { asset = "5", below = 2 },
]

[[subscriptions]]
name = "ops"
url = "http://user:pass@127.0.0.1/"
secrets = ["whsec_c2hvcnQ="]
alerts_to = "ops"
events = ["deposit.*", "depost.cleared", "nothing.*"]
headers = { host = "x", x-key = '"quoted"' }
"""
MORE = """\
{"name": "b", "provider": "loopring", "account_id": 10111, "acount_id": 1}
{"name": "broken", "provider": "loopring", "account_id": 5, "account_id": 6}
{"name": "treasury", "provider": "loopring", "account_id": 1
"""


def test_every_finding_of_every_kind_comes_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.toml").write_text(BAD)
    (tmp_path / "more.jsonl").write_text(MORE)
    with pytest.raises(ConfigRefused) as refused:
        load(Path("w.toml"), {})
    shown = [re.split("( -- |: write|; `|, which)", str(mistake))[0] for mistake in refused.value.mistakes]
    assert shown == [
        "w.toml:4: worker.drain: not a duration",
        "w.toml:7: egress.allow[0]: not a network",
        "w.toml:10: providers.loopring.api_key: the environment has no KEY and no KEY_FILE",
        "w.toml:22: accounts[0].interval: not a duration",
        "w.toml:25: accounts[1].name: is the name of another account, at w.toml:17",
        "w.toml:29: accounts[2]: is the same account at the same provider as the one at w.toml:17",
        "w.toml:36: accounts[3].provider: no [providers.NAME] of this name",
        "w.toml:37: accounts[3].acount_id: unknown key",
        "w.toml:42: subscriptions[0].secrets[0]: the environment has no OPS_SECRET and no OPS_SECRET_FILE",
        "w.toml:44: subscriptions[0].alerts_to: no [[subscriptions]] of this name",
        "w.toml:47: subscriptions[0].thresholds[1].below: not a decimal number in a string",
        "w.toml:52: subscriptions[1].name: is the name of another subscription, at w.toml:39",
        "w.toml:53: subscriptions[1].url: holds a user or a password: use headers for credentials",
        "w.toml:54: subscriptions[1].secrets[0]: whsec_ holds 5 bytes, it must be 24 to 64",
        "w.toml:55: subscriptions[1].alerts_to: is this subscription itself",
        "w.toml:56: subscriptions[1].events[1]: unknown event type",
        "w.toml:57: subscriptions[1].headers.host: is reserved: watcher or the connection sets it",
        "more.jsonl:1: acount_id: unknown key",
        "more.jsonl:2: account_id: is given twice",
        "more.jsonl:3: not valid JSON at column 61",
    ]
    assert [f"{found.file}:{found.line}: {found.key}" for found in refused.value.warnings] == [
        "w.toml:15: providers.idle.api_key",
        "w.toml:41: subscriptions[0].url",
        "w.toml:57: subscriptions[1].headers.x-key",
        "w.toml:13: providers.idle",
        "w.toml:43: subscriptions[0].accounts[2]",
        "w.toml:56: subscriptions[1].events[2]",
        "w.toml:46: subscriptions[0].thresholds[0].asset",
        "w.toml:48: subscriptions[0].thresholds[2].asset",
        "w.toml:11: providers.loopring.requests_per_second",
    ]


def test_two_subscriptions_that_alert_each_other_are_no_warning(warned: Warned) -> None:
    other = HEAD[HEAD.index("[[subscriptions]]") :].replace("ops", "desk")
    assert warned(f'{HEAD}{OPS}alerts_to = "desk"\n{other}{OPS}alerts_to = "ops"\n') == []


def test_a_mistyped_alerts_to_does_not_suggest_the_subscription_itself(
    warned: Warned,
) -> None:
    with pytest.raises(ConfigRefused) as refused:
        warned(f'{HEAD}{OPS}alerts_to = "opz"\n')
    assert "did you mean" not in str(refused.value.mistakes)
