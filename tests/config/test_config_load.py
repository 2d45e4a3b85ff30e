import json
import time
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest

from watcher.commands.init import example
from watcher.config import subscriptions
from watcher.config.findings import ConfigRefused
from watcher.config.loading import Loaded, load
from watcher.delivery.signing import new_secret
from watcher.encryption import new_key
from watcher.providers.loopring import LoopringAccount, LoopringSettings
from watcher.providers.metakeep import MetaKeepAccount
from watcher.settings import LogSettings

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

README_EXAMPLE = """
[redis]
url = "embedded"
namespace = "watcher"
data_dir = ".watcher"

[worker]
drain = "25s"

[egress]
allow = []
allow_http = false

[providers.loopring]
base_url = "https://api3.loopring.io"
api_key = "${LOOPRING_API_KEY}"
requests_per_second = 4
timeout = "10s"
withdrawals = "outside"

[providers.shop]
kind = "metakeep"
api_key = "${METAKEEP_API_KEY}"

[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 10110
tokens = [0, 1]
interval = "30s"

[[accounts]]
name = "alice"
provider = "shop"
of = { email = "alice@example.com" }
currencies = ["0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619"]

[[subscriptions]]
name = "ops"
url = "https://ops.example.com/hooks/balances"
secrets = ["${OPS_SECRET}"]
accounts = ["treasury", "ali*"]
events = ["deposit.*", "locked.*"]
assets = ["LRC", "0x7ceb…"]
retries = ["0s", "5s", "5m", "30m", "2h"]
"""
README_ENVIRON = {"LOOPRING_API_KEY": "k1", "METAKEEP_API_KEY": "k2", "OPS_SECRET": SECRET}
SMALL = """
[providers.loopring]
api_key = "k"
[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 1
[[subscriptions]]
name = "ops"
url = "https://ops.example.com/"
secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "watcher.toml", encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding=encoding)
        return path

    return write


def warnings_of(loaded: Loaded) -> list[str]:
    return [str(warning).removeprefix(f"{loaded.path}:") for warning in loaded.warnings]


def test_the_example_of_the_readme_loads(write: Write) -> None:
    loaded = load(write(README_EXAMPLE), README_ENVIRON)
    settings = loaded.settings
    provider, account = settings.provider_by_name["loopring"], settings.account_by_name["treasury"]
    assert isinstance(provider, LoopringSettings)
    assert provider.api_key.get_secret_value() == "k1"
    assert isinstance(account, LoopringAccount)
    assert account.tokens == (0, 1)
    alice = settings.account_by_name["alice"]
    assert isinstance(alice, MetaKeepAccount)
    assert alice.of == {"email": "alice@example.com"}
    assert settings.provider_by_name["shop"].kind == "metakeep"
    assert settings.subscription_by_name["ops"].retries[2] == timedelta(minutes=5)
    assert loaded.warnings == ()


def test_the_example_that_init_writes_loads_when_its_variables_are_set(write: Write) -> None:
    path = write(example())
    with pytest.raises(ConfigRefused) as refused:
        load(path, {})
    assert [mistake.text for mistake in refused.value.mistakes] == [
        "the environment has no LOOPRING_API_KEY and no LOOPRING_API_KEY_FILE",
        "the environment has no OPS_SECRET and no OPS_SECRET_FILE",
    ]
    assert load(path, {"LOOPRING_API_KEY": "k", "OPS_SECRET": SECRET}).warnings == ()


def test_the_commented_settings_of_the_example_are_valid_too(write: Write) -> None:
    lines = [
        line.removeprefix("# ") if " = " in line or line.startswith("# [") else line
        for line in example().splitlines()
        if "accounts_file" not in line
    ]
    environ = README_ENVIRON | {"OPS_TOKEN": "t"}
    settings = load(write("\n".join(lines)), environ).settings
    assert [*settings.account_by_name] == ["treasury", "alice"]
    assert settings.egress.allow_http


def test_defaults_are_those_of_the_contract(write: Write) -> None:
    settings = load(write(SMALL), {}).settings
    assert settings.redis.url.get_secret_value() == "embedded"
    assert settings.redis.namespace == "watcher"
    assert settings.worker.drain == timedelta(seconds=25)
    assert (settings.log.level, settings.log.format) == ("info", "auto")
    provider = settings.provider_by_name["loopring"]
    assert provider.base_url == "https://api3.loopring.io"
    assert (provider.withdrawals, provider.settle_polls) == ("outside", 2)
    account = settings.account_by_name["treasury"]
    assert (account.interval, account.pending_interval) == (timedelta(seconds=30), timedelta(seconds=10))
    assert settings.subscription_by_name["ops"].accounts == ("*",)


def test_the_file_is_looked_for_in_the_order_of_the_contract(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    option, variable = write(SMALL, "option.toml"), write(SMALL, "variable.toml")
    here, etc = write(SMALL, "watcher.toml"), write(SMALL, "etc.toml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("watcher.environment.Environment.PLACES", (Path("watcher.toml"), etc))
    environ = {"WATCHER_CONFIG": str(variable)}
    assert load(option, environ).path == option
    assert load(None, environ).path == variable
    assert load(None, {"WATCHER_CONFIG": ""}).path == Path("watcher.toml")
    here.unlink()
    assert load(None, {}).path == etc


def test_an_unreadable_place_counts_as_having_no_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo -u watcher watcher status` in a home that is closed to that user: a file there is none for it."""
    etc = write(SMALL, "etc.toml")
    monkeypatch.setattr("watcher.environment.Environment.PLACES", (Path("x" * 5000), etc))
    assert load(None, {}).path == etc


def test_the_environment_wins_over_the_file(write: Write, tmp_path: Path) -> None:
    path = write('[redis]\nurl = "redis://file/0"\n[log]\nlevel = "error"\nformat = "json"\n' + SMALL)
    environ = {
        "REDIS_URL": "redis://:pw@env/1",
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "pretty",
        "LOG_PREFIX": "watcher_",
    }
    settings = load(path, environ).settings
    assert settings.redis.url.get_secret_value() == "redis://:pw@env/1"
    assert settings.log == LogSettings(level="debug", format="pretty", prefix="watcher_")
    settings = load(path, {"REDIS_URL": "", "LOG_LEVEL": "", "LOG_PREFIX": ""}).settings
    assert settings.redis.url.get_secret_value() == "redis://file/0"
    assert (settings.log.level, settings.log.prefix) == ("error", "")
    secret = tmp_path / "redis_url"
    secret.write_text("unix:///run/redis.sock\n")
    settings = load(path, {"REDIS_URL_FILE": str(secret)}).settings
    assert settings.redis.url.get_secret_value() == "unix:///run/redis.sock"


@pytest.mark.parametrize("file", ['[redis]\nurl = "embedded"\n', ""])
def test_a_bad_file_of_the_redis_url_never_means_the_embedded_server(
    write: Write, tmp_path: Path, file: str
) -> None:
    path, named = write(file + SMALL), tmp_path / "redis_url"
    environ = {"REDIS_URL": "", "REDIS_URL_FILE": str(named)}
    named.write_bytes(b"\xef\xbb\xbfredis://there/3\r\n")
    assert load(path, environ).settings.redis.url.get_secret_value() == "redis://there/3"
    for content, reason in ((b"", "is empty"), (b"\n", "is empty"), (b"\xff\xfer\0", "is UTF-16")):
        named.write_bytes(content)
        with pytest.raises(ConfigRefused, match=f"REDIS_URL: the file that REDIS_URL_FILE names {reason}"):
            load(path, environ)
    named.unlink()
    with pytest.raises(ConfigRefused, match="REDIS_URL_FILE names cannot be read"):
        load(path, environ)
    assert load(path, {"REDIS_URL_FILE": ""}).settings.redis.url.get_secret_value() == "embedded"


def test_an_empty_variable_overrides_nothing(write: Write, tmp_path: Path) -> None:
    path = write('[log]\nlevel = "error"\n' + SMALL)
    (tmp_path / "empty").touch()
    loaded = load(path, {"LOG_LEVEL": "", "LOG_FORMAT": "", "LOG_LEVEL_FILE": str(tmp_path / "empty")})
    assert (loaded.settings.log.level, loaded.settings.log.format) == ("error", "auto")
    (warning,) = loaded.warnings
    assert str(warning) == "environment: LOG_LEVEL: the file that LOG_LEVEL_FILE names is empty"


def test_all_files_of_a_configuration_are_known_those_of_secrets_too(write: Write, tmp_path: Path) -> None:
    write('{"name": "a", "provider": "loopring", "account_id": 2}', "accounts.jsonl")
    (tmp_path / "key").write_text("k")
    (tmp_path / "ops").write_text(SECRET)
    text = SMALL.replace('"k"', '"${KEY}"').replace(f'"{SECRET}"', f'"${{file:{tmp_path}/ops}}"')
    path = write('accounts_file = "accounts.jsonl"\n' + text)
    files = (path, tmp_path / "accounts.jsonl", tmp_path / "key", tmp_path / "ops")
    environ = {"KEY_FILE": str(tmp_path / "key")}
    assert load(path, environ).files == files
    (tmp_path / "ops").unlink()
    with pytest.raises(ConfigRefused) as refused:
        load(path, environ)
    assert refused.value.files == files


def test_a_variable_or_a_file_may_hold_several_secrets_one_a_line(write: Write) -> None:
    others = [new_secret() for _ in range(3)]
    path = write(SMALL.replace(f'"{SECRET}"', f'"${{S}}", "{SECRET}"'))
    settings = load(path, {"S": f"{others[0]}\r\n\n{others[1]}\n{others[2]}\n"}).settings
    found = [secret.get_secret_value() for secret in settings.subscription_by_name["ops"].secrets]
    assert found == [*others, SECRET]
    with pytest.raises(ConfigRefused, match=r"secrets\[0\]: has white space around it"):
        load(path, {"S": f"{others[0]}\n {others[1]}"})


def test_numbers_and_booleans_may_come_from_the_environment(write: Write) -> None:
    path = write(
        '[egress]\nallow = ["${NET}"]\nallow_http = "${HTTP:-true}"\n'
        + SMALL.replace('api_key = "k"', 'api_key = "k"\nrequests_per_second = "${RATE}"')
    )
    settings = load(path, {"NET": "10.0.0.0/8", "RATE": "2.5"}).settings
    assert settings.egress.allow == (ip_network("10.0.0.0/8"),)
    assert settings.egress.allow_http
    assert settings.provider_by_name["loopring"].requests_per_second == 2.5


def test_a_rate_too_low_for_any_poll_is_refused(write: Write) -> None:
    path = write(SMALL.replace('api_key = "k"', 'api_key = "k"\nrequests_per_second = 1e-320'))
    with pytest.raises(ConfigRefused, match="requests_per_second"):
        load(path, {})


def test_a_file_with_a_byte_order_mark_loads(write: Write) -> None:
    assert load(write(SMALL, encoding="utf-8-sig"), {}).settings.account_by_name


def test_accounts_of_the_accounts_file_join_those_of_the_configuration(write: Write) -> None:
    write(
        '{"name": "a", "provider": "loopring", "account_id": 2, "interval": "5s"}\n\n'
        '{"name": "${B}", "provider": "loopring", "address": "0x1111111111111111111111111111111111111111"}',
        "accounts.jsonl",
    )
    settings = load(write('accounts_file = "accounts.jsonl"\n' + SMALL), {"B": "b"}).settings
    assert [*settings.account_by_name] == ["treasury", "a", "b"]
    assert settings.account_by_name["a"].interval == timedelta(seconds=5)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x85\n", "\u2028\n", " \r\r\n"])
def test_accounts_come_from_a_file_of_any_editor(write: Write, tmp_path: Path, end: str) -> None:
    lines = [
        f'{{"name": "{name}", "provider": "loopring", "account_id": {n}}}' for n, name in enumerate("ab", 2)
    ]
    marked = "".join(f"\ufeff{line}{end}" for line in lines)  # as of two files that were joined
    (tmp_path / "accounts.jsonl").write_bytes(marked.encode())
    settings = load(write('accounts_file = "accounts.jsonl"\n' + SMALL), {}).settings
    assert [*settings.account_by_name] == ["treasury", "a", "b"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"name": "a"}'.encode("utf-16"), "accounts.jsonl:1: UTF-16, not UTF-8: save it as UTF-8"),
        ('{"name": "a"}'.encode("utf-16-be"), "accounts.jsonl:1: UTF-16, not UTF-8: save it as UTF-8"),
        (b'\n{"name": "\xff"}', "accounts.jsonl:2: not UTF-8 text at column 11"),
        (b'{"account_id": 1, "account_id": 2}', "accounts.jsonl:1: account_id: is given twice"),
        (b'{"of": {"email": "a", "email": "a"}}', "accounts.jsonl:1: email: is given twice"),
        (b'{"a": NaN}', "accounts.jsonl:1: not valid JSON at column 7"),
    ],
)
def test_an_invalid_line_of_the_accounts_file_is_reported(
    write: Write, tmp_path: Path, content: bytes, expected: str
) -> None:
    (tmp_path / "accounts.jsonl").write_bytes(content)
    with pytest.raises(ConfigRefused) as refused:
        load(write('accounts_file = "accounts.jsonl"\n' + SMALL), {})
    assert str(refused.value) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_configuration_saved_as_utf_16_is_named_as_such(write: Write, encoding: str) -> None:
    with pytest.raises(ConfigRefused, match=r"toml:1: not valid TOML: UTF-16, not UTF-8: save it as UTF-8"):
        load(write(SMALL, encoding=encoding), {})


def test_a_value_exactly_at_its_limit_is_allowed(write: Write) -> None:
    headers = {f"x-{n}": "v" for n in range(31)}
    headers["x-long"] = "v" * (4096 - len("x-long") - sum(len(name) + 1 for name in headers))
    text = SMALL.replace("account_id = 1", 'account_id = 1\ninterval = "1s"\npending_interval = "1s"')
    text += "[subscriptions.headers]\n" + "".join(f'{name} = "{value}"\n' for name, value in headers.items())
    settings = load(write(text), {}).settings
    assert settings.subscription_by_name["ops"].headers == headers
    assert settings.account_by_name["treasury"].interval == timedelta(seconds=1)


def test_more_subscriptions_of_one_account_than_one_commit_can_serve_are_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "MOST_OF_AN_ACCOUNT", 2)
    one = '[[subscriptions]]\nname = "{}"\nurl = "https://ops.example.com/"\n' + f'secrets = ["{SECRET}"]\n'
    elsewhere = 'accounts = ["tr"]\n'
    three = write(SMALL + one.format("a") + one.format("b") + elsewhere)
    assert len(load(three, {}).settings.subscription_by_name) == 3
    with pytest.raises(ConfigRefused, match=r"subscriptions: 3 are for account treasury, 2 at most can be"):
        load(write(SMALL + one.format("a") + one.format("b")), {})


def test_an_egress_mistake_is_not_followed_by_urls_that_it_would_have_allowed(write: Write) -> None:
    text = SMALL.replace("https://ops.example.com/", "http://10.1.2.3/") + '[egress]\nallow = ["10.0.0.0"]\n'
    egress = 'allow = ["10.0.0.0/8"]\nallow_http = true'
    assert load(write(text.replace('allow = ["10.0.0.0"]', egress)), {}).settings
    with pytest.raises(ConfigRefused) as refused:
        load(write(text.replace('allow = ["10.0.0.0"]', egress.replace("true", '"?"'))), {})
    assert [mistake.key for mistake in refused.value.mistakes] == ["egress.allow_http"]


def test_a_subscription_that_matches_nothing_is_a_warning(write: Write) -> None:
    text = SMALL + 'accounts = [\n"treasure",\n"shop-*",\n"treasury"]\nevents = ["deposits.*"]\n'
    assert warnings_of(load(write(text), {})) == [
        "13: subscriptions[0].accounts[0]: matches no account -- did you mean 'treasury'?",
        "14: subscriptions[0].accounts[1]: matches no account",
        "16: subscriptions[0].events[0]: matches no event",
    ]


def test_with_the_api_a_subscription_that_matches_nothing_yet_is_no_warning(write: Write) -> None:
    api = f'[api]\nsecret_key = "{new_key()}"\n'
    idle = '[providers.shop]\nkind = "metakeep"\napi_key = "k"\n'
    globs = 'accounts = ["shop-*", "user-1"]\nthresholds = [{ asset = "0xAb", below = "1" }]\n'
    subscription = SMALL[SMALL.index("[[subscriptions]]") :]
    for text in (api, idle + api, f"{idle}{subscription}{globs}{api}"):
        assert warnings_of(load(write(text), {})) == []


def test_a_setting_without_effect_is_a_warning(write: Write) -> None:
    assert warnings_of(load(write(""), {})) == ["1: no [[accounts]]: nothing will be polled"]
    idle = '[egress]\nallow = ["0.0.0.0/0"]\n[providers.shop]\nkind = "metakeep"\napi_key = "k"\n' + SMALL
    idle = idle[: idle.index("[[subscriptions]]")]
    assert warnings_of(load(write(idle), {})) == [
        "1: no [[subscriptions]]: no event will be sent",
        "3: providers.shop: no account is polled there",
        "2: egress.allow[0]: allows every address: subscriber URLs may reach this host",
    ]


@pytest.mark.slow
def test_a_hundred_thousand_accounts_load_in_seconds(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (
        json.dumps({"name": f"account-{n}", "provider": "loopring", "account_id": n, "tokens": [0, 1]})
        for n in range(2, 100_002)
    )
    write("\n".join(lines), "accounts.jsonl")
    path = write('accounts_file = "accounts.jsonl"\n' + SMALL)
    started = time.process_time()
    settings = load(path, {}).settings
    spent_s = time.process_time() - started
    with capsys.disabled():
        print(f"\n100,000 accounts of a file: {spent_s:.1f} s of CPU")
    assert len(settings.account_by_name) == 100_001
    assert spent_s < 30
