from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from watcher import settings
from watcher.fields import Amount, BaseUrl, Name, Network, Size, parse_duration
from watcher.providers.contract import PLACE_BY_KIND, provider_class
from watcher.settings import AccountSettings, KeyedSettings, LogSettings, ProviderSettings, Settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0s", timedelta(0)),
        ("250ms", timedelta(milliseconds=250)),
        ("30s", timedelta(seconds=30)),
        ("5m", timedelta(minutes=5)),
        ("2h", timedelta(hours=2)),
        ("366d", timedelta(days=366)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected
    assert parse_duration(expected) == expected


NO_DURATIONS = """
    5 s 5S 5sec 05s 1.5s -5s +5s 1m30s 1e3s 5µs ٥s inf 367d 999999999d 9999999999s
""".split()  # noqa: SIM905  # a list would take a screen


@pytest.mark.parametrize("text", [*NO_DURATIONS, "", "5 s", " 5s", "5s ", "5s\n", 5, 5.0, None, True, ["5s"]])
def test_anything_else_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match=r"duration|year"):
        parse_duration(text)


def is_valid(kind: Any, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("size", ["16MB", "24mb", "999999MB", "1GB", "2gb"])
def test_a_size_is_a_number_and_a_unit(size: str) -> None:
    assert is_valid(Size, size)


@pytest.mark.parametrize(
    "size",
    ["15MB", "0GB", "1", "1G", "1 GB", "1.5GB", "-1GB", "1000000MB", "1KB", "", "1GB\n", "1٥MB", 5, None],
)
def test_anything_else_is_no_size(size: object) -> None:
    assert not is_valid(Size, size)


@pytest.mark.parametrize("name", ["a", "A.b-c_d", "0", "x" * 64])
def test_a_name_is_safe_in_keys_logs_and_file_names(name: str) -> None:
    assert is_valid(Name, name)


@pytest.mark.parametrize(
    "name", ["", "x" * 65, "-a", ".a", "_a", "a b", "a/b", "a\n", "ä", "a:b", "{a}", "a*", "a\x00", 5]
)
def test_anything_else_is_no_name(name: object) -> None:
    assert not is_valid(Name, name)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api3.loopring.io", "https://api3.loopring.io"),
        ("https://api3.loopring.io/", "https://api3.loopring.io"),
        ("HTTPS://API.example", "HTTPS://API.example"),
        ("http://127.0.0.1:8080/sim", "http://127.0.0.1:8080/sim"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://sandbox_1:80", "http://sandbox_1:80"),
    ],
)
def test_a_base_url_is_a_host_and_perhaps_a_path(url: str, expected: str) -> None:
    assert TypeAdapter(BaseUrl).validate_python(url) == expected


NO_BASE_URLS = r"""
    api //a ftp://a https:// https:///x https://u@a https://u:p@a https://a:1@b https://a?x=1 https://a#x
    https://a:port https://a/%2e https://a\b https://[::1 https://a:123456 https://a:65536 https://[::1::]
""".split()  # noqa: SIM905  # a list would take a screen


@pytest.mark.parametrize("url", [*NO_BASE_URLS, "", "https://a b", "https://a\n"])
def test_anything_else_is_no_base_url(url: str) -> None:
    assert not is_valid(BaseUrl, url)


@pytest.mark.parametrize("network", ["10.0.0.0/8", "10.1.2.3", "fd00::/8", "::1"])
def test_a_network_may_be_one_address(network: str) -> None:
    assert is_valid(Network, network)


@pytest.mark.parametrize(
    "network", ["", "10.1.2.3/8", "10.0.0.0/33", "010.0.0.0/8", "host", 167772160, None, True]
)
def test_anything_else_is_no_network(network: object) -> None:
    assert not is_valid(Network, network)


@pytest.mark.parametrize(("value", "expected"), [("1.50", "1.5"), (10, "10"), ("0", "0")])
def test_an_amount_in_the_file_is_exact(value: object, expected: str) -> None:
    assert TypeAdapter(Amount).validate_python(value) == expected


@pytest.mark.parametrize("value", [0.1, "1e3", "--1", "- 1", "-", -0.5, True, "", None])
def test_anything_else_is_no_amount(value: object) -> None:
    assert not is_valid(Amount, value)


def models_below(model: type[BaseModel]) -> set[type[BaseModel]]:
    return {model}.union(*map(models_below, model.__subclasses__()))


def test_every_setting_says_what_it_is_for() -> None:
    for kind in PLACE_BY_KIND:
        provider_class(kind)
    models = models_below(settings.Section) - {Settings}
    assert len(models) >= 12
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


NEEDED_BY_KIND: dict[str, Any] = {
    "evm": {"base_url": "https://node.example.com", "chain_id": 1},
    "http": {
        "base_url": "https://api.example.com",
        "ask": [{"path": "/balances"}],
        "read": [{"id": "EUR", "total": "amount"}],
    },
}
"""What a section of this kind cannot do without, besides a key."""


@pytest.mark.parametrize("kind", PLACE_BY_KIND)
def test_every_kind_takes_the_keys_that_all_providers_share(kind: str) -> None:
    provider = provider_class(kind)
    assert issubclass(provider.Settings, ProviderSettings)
    assert issubclass(provider.Account, AccountSettings)
    key: dict[str, Any] = {"api_key": "k"} if issubclass(provider.Settings, KeyedSettings) else {}
    given = {"name": "a", "kind": kind, **key, **NEEDED_BY_KIND.get(kind, {})}
    if kind != "exchange":  # it looks into ccxt, which may be missing: test_exchange.py
        assert provider.Settings.model_validate(given).base_url.startswith("https://")
    with pytest.raises(ValidationError, match="not a base URL"):
        provider.Settings.model_validate({**given, "base_url": "https://u:p@h"})


def test_an_unlisted_kind_is_never_imported() -> None:
    with pytest.raises(KeyError):
        provider_class("os:system")


def test_a_boolean_is_no_number() -> None:
    with pytest.raises(ValidationError, match="true or false"):
        provider_class("loopring").Settings.model_validate(
            {"name": "a", "kind": "loopring", "api_key": "k", "settle_polls": True}
        )


def test_the_level_may_be_written_in_capitals() -> None:
    assert LogSettings.model_validate({"level": "WARNING"}).level == "warning"
