"""Turns a file and the environment into Settings, or into everything that is wrong with them.

Refuses to stop at the first mistake, and to return a part of a configuration as if it were all of it.
Commands that only look need less: where Redis is, and whatever else can be read.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

from watcher.config.files import find, read_partly, read_toml
from watcher.config.findings import UNKNOWN, ConfigRefused, Entry, Finding, Findings
from watcher.config.sections import SECTIONS, read_accounts, read_providers, read_sections
from watcher.config.subscriptions import read_subscriptions, refuse_fan_out
from watcher.config.tables import MASK
from watcher.config.warnings import (
    warn_of_egress,
    warn_of_globs,
    warn_of_idle,
    warn_of_load,
    warn_of_thresholds,
    warn_of_values,
)
from watcher.durations import duration_text
from watcher.environment import Environment, NotSet
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
    """A configuration that can be used. `warnings` are for the operator: it works, but is probably not meant.
    `files` are those that it was read from, `path` first, including those that NAME_FILE or ${file:...}
    name."""

    settings: Settings
    path: Path
    warnings: tuple[Finding, ...]
    files: tuple[Path, ...] = ()


def load(path: Path | None, variables: Mapping[str, str], *, is_running: bool = False) -> Loaded:
    """Read the configuration at `path`, or where one is usually found, and hide its secrets.

    `is_running`: for a process whose environment is what it was at its start. Raises ConfigRefused with
    everything that was found; a text that is not TOML is one mistake.
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
    """Read everything in a file, and find all mistakes and warnings. A value with a mistake is left out, or
    kept as it is if nothing depends on it."""
    sections = read_sections(document, environment, findings)
    providers = read_providers(document, environment, findings)
    accounts = read_accounts(document, environment, providers, findings)
    subscriptions = read_subscriptions(document, sections.egress, findings)
    refuse_fan_out(document, accounts.by_name, subscriptions, findings)
    warn_of_values(providers, subscriptions.entries, findings)
    warn_of_idle(document, providers, accounts, subscriptions.entries, findings)
    warn_of_egress(document, sections.egress, findings)
    warn_of_globs(accounts, subscriptions.entries, findings)
    warn_of_thresholds(providers, accounts, subscriptions.entries, findings)
    warn_of_load(providers, accounts, findings)
    return Settings(
        redis=sections.redis or RedisSettings(),
        worker=sections.worker or WorkerSettings(),
        log=sections.log or LogSettings(),
        egress=sections.egress or EgressSettings(),
        api=sections.api,
        provider_by_name={
            name: provider
            for name, provider in providers.settings_by_name.items()
            if providers.class_by_name[name]
        },
        account_by_name=accounts.by_name,
        subscription_by_name=subscriptions.by_name,
    )


_VITAL = ("url", "namespace", "data_dir", "max_memory")
"""The keys of [redis]: if one of them has a mistake, it is unknown where the state is."""


@dataclass(frozen=True, slots=True)
class Look:
    """A configuration for commands that look. Unless it `is_whole`, names that it lacks may be in Redis.
    `problem` says in one line what is wrong with it. `path` is the file that it was read from."""

    settings: Settings
    is_whole: bool = True
    problem: str | None = None
    path: Path | None = None


def read_to_look(
    path: Path | None, variables: Mapping[str, str], given: Mapping[str, str], *, is_brief: bool = False
) -> Look:
    """Read what can be read. `given` are values of [redis] that win over those of the file. `is_brief`: read
    nothing but [redis], however many accounts there are.

    With a `url` among them, no file is looked for unless `path` names one. Raises ConfigRefused if nothing
    says where the state is.
    """
    if "url" in given:
        variables = {name: value for name, value in variables.items() if not name.startswith("REDIS_URL")}
    environment, findings = Environment(variables), Findings()
    try:
        is_overridden = environment.value_of("REDIS_URL") is not None
    except NotSet:
        is_overridden = True  # and what is wrong with it is a mistake, found below
    is_located = "url" in given or is_overridden
    is_alone = "url" in given and path is None
    file = None if is_alone else environment.place_of(path)
    if file is None and not is_located:
        find(None, environment)
    document, broken = read_partly(file, environment, findings) if file else (None, ())
    if file and document is None and not is_located:
        raise ConfigRefused(broken)
    document = document or Entry({}, str(file or "watcher"), (), lambda _: None)
    redis = document.table.get("redis", {})
    redis = {**redis, **given} if isinstance(redis, dict) else redis
    # An unknown section is kept: it may be [redis], misspelled.
    rest = {name: part for name, part in document.table.items() if not is_brief or name not in SECTIONS}
    settings = read_settings(replace(document, table={**rest, "redis": redis}), environment, findings)
    settled = {*given, "url"} if is_overridden else {*given}
    vital = {"REDIS_URL", "redis", *(f"redis.{key}" for key in _VITAL if key not in settled)}
    is_named = is_overridden or (isinstance(redis, dict) and "url" in redis)
    for found in findings.mistakes:
        # An unknown name may be [redis] or its url, misspelled.
        may_be_url = found.text.startswith(UNKNOWN) and (
            "." not in found.key or found.key.startswith("redis.")
        )
        if found.key in vital or (may_be_url and not is_named):
            raise ConfigRefused([*broken, *findings.mistakes])
    hide(secrets_of(settings))
    if file is None:
        return Look(settings, is_whole=False, problem=None if is_alone else "there is no configuration")
    mistakes = broken or findings.mistakes
    if not mistakes:
        return Look(settings, is_whole=not is_brief, path=file)
    others = f" (and {len(mistakes) - 1:,} more: `watcher check`)" if len(mistakes) > 1 else ""
    return Look(settings, is_whole=False, problem=f"{mistakes[0]}{others}", path=file)


def shown(settings: Settings) -> dict[str, Any]:
    """Return the configuration in the shape of its file, as plain values without a secret."""
    return {
        "redis": masked(settings.redis),
        "worker": masked(settings.worker),
        "log": masked(settings.log),
        "egress": masked(settings.egress),
        **({"api": masked(settings.api)} if settings.api else {}),
        "providers": {
            name: {key: value for key, value in masked(provider).items() if key != "name"}
            for name, provider in settings.provider_by_name.items()
        },
        "accounts": [masked(account) for account in settings.account_by_name.values()],
        "subscriptions": [masked(subscription) for subscription in settings.subscription_by_name.values()],
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


def masked(value: Any) -> Any:
    """Return a section as plain values: as it would be written in a file, without a secret."""
    if isinstance(value, BaseModel):
        named = type(value).model_fields.items()
        fields = {field.alias or name: masked(getattr(value, name)) for name, field in named}
        # Some may be shown in part; of others the type does not say that they are secret.
        if isinstance(value, RedisSettings):
            fields["url"] = safe_url(value.url.get_secret_value())
        elif isinstance(value, SubscriptionSettings):
            fields["url"] = MASK
            with suppress(ValueError):  # scheme and host: the rest of a subscriber's URL often is a token
                parts = urlsplit(value.url.get_secret_value())
                port = f":{parts.port}" if parts.port else ""
                fields["url"] = f"{parts.scheme}://{parts.hostname}{port}/{MASK}" if parts.hostname else MASK
            fields["headers"] = dict.fromkeys(value.headers, MASK)
        return {name: field for name, field in fields.items() if field is not None}
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, dict):
        return {name: masked(field) for name, field in value.items()}
    if isinstance(value, tuple | list):
        return [masked(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


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
