"""From a file and the environment to Settings, or to everything that is wrong with them.

Refuses to stop at the first mistake, and to give a part of a configuration as if it were all of it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

from watcher.config.doubts import (
    doubt_egress,
    doubt_globs,
    doubt_idle,
    doubt_load,
    doubt_thresholds,
    doubt_values,
)
from watcher.config.files import find, read_toml
from watcher.config.findings import ConfigRefused, Entry, Finding, Findings
from watcher.config.sections import read_accounts, read_providers, read_sections
from watcher.config.subscriptions import read_subscriptions
from watcher.config.tables import MASK
from watcher.environment import Environment
from watcher.printable import hide
from watcher.settings import (
    EgressSettings,
    LogSettings,
    RedisSettings,
    Settings,
    SubscriptionSettings,
    WorkerSettings,
    secrets_of,
)
from watcher.store.address import safe_url


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used. `warnings` are for the operator: it works, but hardly as meant.

    `files` are those that it was read from, `path` first; the ones that NAME_FILE or ${file:...} name too.
    """

    settings: Settings
    path: Path
    warnings: tuple[Finding, ...]
    files: tuple[Path, ...] = ()


def load(path: Path | None, variables: Mapping[str, str], *, is_running: bool = False) -> Loaded:
    """Read the configuration at `path`, or where one is usually found, and hide its secrets.

    `is_running`: for a process whose environment is what it was at its start. Raises ConfigRefused, with
    everything that was found; a text that is no TOML is one mistake.
    """
    environment = Environment(variables, is_running=is_running)
    found = find(path, environment)
    findings = Findings()
    document = read_toml(found, environment, findings)
    settings = read_settings(document, environment, findings)
    name = document.table.get("accounts_file")
    beside = [found.parent / name] if isinstance(name, str) and name and "\0" not in name else []
    files = (found, *beside, *environment.files)
    if findings.mistakes:
        raise ConfigRefused(findings.mistakes, findings.warnings, files)
    hide(secrets_of(settings))
    return Loaded(settings, found, tuple(findings.warnings), files)


def read_settings(document: Entry, environment: Environment, findings: Findings) -> Settings:
    """Read everything in a file, and say all that is wrong or doubtful about it.

    What has a mistake is left out, or as it is where nothing is said of it.
    """
    sections = read_sections(document, environment, findings)
    providers = read_providers(document, findings)
    accounts = read_accounts(document, environment, providers, findings)
    subscriptions = read_subscriptions(document, sections.egress, findings)
    doubt_values(providers, subscriptions.entries, findings)
    doubt_idle(document, providers, accounts, subscriptions.entries, findings)
    doubt_egress(document, sections.egress, findings)
    doubt_globs(accounts, subscriptions.entries, findings)
    doubt_thresholds(providers, accounts, subscriptions.entries, findings)
    doubt_load(providers, accounts, findings)
    return Settings(
        redis=sections.redis or RedisSettings(),
        worker=sections.worker or WorkerSettings(),
        log=sections.log or LogSettings(),
        egress=sections.egress or EgressSettings(),
        provider_by_name={
            name: provider
            for name, provider in providers.settings_by_name.items()
            if providers.class_by_name[name]
        },
        account_by_name=accounts.by_name,
        subscription_by_name=subscriptions.by_name,
    )


_UNITS = (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


def shown(settings: Settings) -> dict[str, Any]:
    """Give the configuration in the shape of its file, as plain values without a secret."""
    return {
        "redis": _plain(settings.redis),
        "worker": _plain(settings.worker),
        "log": _plain(settings.log),
        "egress": _plain(settings.egress),
        "providers": {
            name: {key: value for key, value in _plain(provider).items() if key != "name"}
            for name, provider in settings.provider_by_name.items()
        },
        "accounts": [_plain(account) for account in settings.account_by_name.values()],
        "subscriptions": [_plain(subscription) for subscription in settings.subscription_by_name.values()],
    }


def as_toml(tree: Mapping[str, Any]) -> Iterator[str]:
    """Write what `shown` gives as lines of TOML."""
    for name, value in tree.items():
        if isinstance(value, list):
            for table in value:
                yield from _table(f"[[{name}]]", table)
        elif name == "providers":
            for provider, table in value.items():
                yield from _table(f"[providers.{_key(provider)}]", table)
        else:
            yield from _table(f"[{name}]", value)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        fields = {name: _plain(getattr(value, name)) for name in type(value).model_fields}
        # Of some a part may be seen; of others the type does not say that they are secret.
        if isinstance(value, RedisSettings):
            fields["url"] = safe_url(value.url.get_secret_value())
        elif isinstance(value, SubscriptionSettings):
            fields["url"] = _origin(value.url.get_secret_value()) + MASK
            fields["headers"] = dict.fromkeys(value.headers, MASK)
        return {name: field for name, field in fields.items() if field is not None}
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, timedelta):
        whole_ms = round(value / timedelta(milliseconds=1))
        unit, size = next((unit, size) for unit, size in _UNITS if whole_ms % size == 0)
        return f"{whole_ms // size}{unit}" if whole_ms else "0s"
    if isinstance(value, dict):
        return {name: _plain(field) for name, field in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _origin(url: str) -> str:
    """Scheme and host: the rest of a subscriber's URL often is a token."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}{port}/" if parts.hostname else ""


def _table(header: str, table: Mapping[str, Any]) -> Iterator[str]:
    yield header
    for name, value in table.items():
        yield f"{_key(name)} = {_value(value)}"
    yield ""


def _value(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "{ " + ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    # JSON's numbers, truth values and quotes are TOML's too; what a terminal might obey is escaped.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text)


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("-", "").replace("_", "").isalnum() else _value(name)
