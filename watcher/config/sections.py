"""Reads the sections of a file: [redis], [worker], [log], [egress] and [api], every provider, every account.

Refuses to let two accounts share a name, or to poll one account twice.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from watcher import recipes
from watcher.config.files import interpolate_all, read_lines
from watcher.config.findings import UNKNOWN, Entry, Findings, Key, did_you_mean
from watcher.config.tables import (
    Names,
    check_list,
    leftover_flaw,
    listed_tables,
    mask_flaw,
    named_tables,
    overridden,
    redis_url_flaw,
    secret_key_flaw,
    section,
    settings_of,
)
from watcher.environment import Environment, NotSet
from watcher.fields import Certificates, parse_duration
from watcher.providers.contract import PLACE_BY_KIND, Provider, Rejected, kinds, provider_class
from watcher.settings import (
    AccountSettings,
    ApiSettings,
    EgressSettings,
    LogSettings,
    ProviderSettings,
    RedisSettings,
    WorkerSettings,
    secrets_in,
)

SECTIONS = (
    *("redis", "worker", "log", "egress", "api"),
    *("providers", "accounts", "accounts_file", "subscriptions"),
)
"""Every key allowed at the top of a file."""

Source = tuple[str, str]
"""A provider, and what is asked for there: two accounts of one source would be polled twice."""

_SHORTEST_INTERVAL = timedelta(seconds=1)


class Sections(NamedTuple):
    """None stands for a section with a mistake in it."""

    redis: RedisSettings | None
    worker: WorkerSettings | None
    log: LogSettings | None
    egress: EgressSettings | None
    api: ApiSettings | None = None
    """None, too, where the file has none."""


def read_sections(document: Entry, environment: Environment, findings: Findings) -> Sections:
    """Read the single sections and refuse unknown ones."""
    for name in document.table.keys() - set(SECTIONS):
        findings.mistake(document.finding((name,), UNKNOWN + did_you_mean(name, SECTIONS)))
    log = section(document, "log", findings)
    names = {"level": "LOG_LEVEL", "format": "LOG_FORMAT", "prefix": "LOG_PREFIX"}
    log = overridden(log, names, environment, findings)
    entry = overridden(section(document, "redis", findings), {"url": "REDIS_URL"}, environment, findings)
    redis = settings_of(RedisSettings, entry, findings)
    if isinstance(url := entry.table.get("url"), str):
        if flaw := redis_url_flaw(url):
            findings.mistake(entry.finding(("url",), flaw))
        elif doubtful := leftover_flaw(url):
            findings.warn(entry.finding(("url",), doubtful))
    return Sections(
        redis=redis,
        worker=settings_of(WorkerSettings, section(document, "worker", findings), findings),
        log=settings_of(LogSettings, log, findings),
        egress=settings_of(EgressSettings, section(document, "egress", findings), findings),
        api=_read_api(document, findings) if "api" in document.table else None,
    )


def _read_api(document: Entry, findings: Findings) -> ApiSettings | None:
    entry = section(document, "api", findings)
    given = entry.table.get("secret_key")
    if isinstance(given, str):
        if flaw := secret_key_flaw(given):
            findings.mistake(entry.finding(("secret_key",), flaw))
    else:
        check_list(entry, "secret_key", secret_key_flaw, findings)
    return settings_of(ApiSettings, entry, findings)


_STAND_IN: Mapping[str, object] = {
    "kind": "unknown",
    "base_url": "https://unknown.invalid",
    "api_key": "unknown",
    "read": ({"id": "unknown", "total": "@"},),
}
"""Replaces a missing or wrong value of a provider, so that its accounts can be checked before it is
refused."""


@dataclass(frozen=True)
class Providers:
    """The providers of the file, as far as they are right. `class_by_name` has None for an unknown kind, and
    every name; `entry_by_name` says where each is written."""

    class_by_name: dict[str, type[Provider] | None] = field(default_factory=dict)
    settings_by_name: dict[str, ProviderSettings] = field(default_factory=dict)
    entry_by_name: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, settings_by_name: Mapping[str, ProviderSettings]) -> "Providers":
        """Take providers that were read before."""
        classes = {name: provider_class(settings.kind) for name, settings in settings_by_name.items()}
        return cls(dict(classes), dict(settings_by_name))

    @cached_property
    def asked_by_name(self) -> dict[str, Provider]:
        """Those whose requests are known, once all are read."""
        return {
            name: provider(settings)
            for name, settings in self.settings_by_name.items()
            if (provider := self.class_by_name[name])
        }


def read_providers(document: Entry, environment: Environment, findings: Findings) -> Providers:
    """Read all providers. One whose kind is a recipe is laid over it."""
    providers = Providers()
    for name, entry in named_tables(document, "providers", findings):
        kind = entry.table.get("kind", name)
        provider = provider_class(kind) if isinstance(kind, str) and kind in kinds() else None
        if isinstance(kind, str) and kind in recipes.names():
            entry = _over_recipe(entry, kind, environment, findings)
        entry = _with_certificates(entry, environment, findings)
        providers.entry_by_name[name] = entry
        providers.class_by_name[name] = provider
        if isinstance(kind, str) and not provider:
            is_given = "kind" in entry.table
            reason = "unknown kind; the kinds are" if is_given else "is missing, and the name is none of"
            known = f"{', '.join(PLACE_BY_KIND)}, and the recipes {', '.join(recipes.names())}"
            findings.mistake(entry.finding(("kind",), f"{reason} {known}{did_you_mean(kind, kinds())}"))
        # Only a kind knows its own address: what is no mistake in any kind is none in an unknown one.
        assumed = {"kind": kind} if provider else {"kind": kind, "base_url": _STAND_IN["base_url"]}
        shape = provider.Settings if provider else ProviderSettings
        settings = settings_of(
            shape,
            replace(entry, table={**assumed, **entry.table}),
            findings,
            given={"name": name},
            may_hold=() if provider else _keys_of_any_kind("Settings"),
            stand_ins={key: value for key, value in _STAND_IN.items() if key in shape.model_fields},
        )
        if settings:
            providers.settings_by_name[name] = settings
            for path, secret in secrets_in(settings):
                if flaw := mask_flaw(secret):
                    findings.mistake(entry.finding(path, flaw))
    return providers


def _with_certificates(entry: Entry, environment: Environment, findings: Findings) -> Entry:
    """Read the file that `ca` names. Its contents are part of the settings: a reload sees a change."""
    said = entry.table.get("ca")
    if not isinstance(said, str):
        return entry
    import ssl  # heavy: only where a section names a file

    table = {key: value for key, value in entry.table.items() if key != "ca"}
    try:
        pem = environment.content_of(str(Path(entry.file).parent / said), "the file")
        ssl.create_default_context(cadata=pem)
    except NotSet as error:
        findings.mistake(entry.finding(("ca",), str(error)))
    except (ValueError, ssl.SSLError):
        findings.mistake(entry.finding(("ca",), "the file holds no certificates as PEM"))
    else:
        table["ca"] = Certificates(said, pem)
        if str(table.get("base_url", "")).lower().startswith("http:"):
            findings.warn(entry.finding(("ca",), "base_url is http://, which shows no certificate"))
    return replace(entry, table=table)


def _over_recipe(entry: Entry, kind: str, environment: Environment, findings: Findings) -> Entry:
    """Lay a section over the recipe of its kind: a variable that the recipe names and that is not set is
    missing from the section, unless the section says something else there."""

    def refuse(key: Key, reason: str) -> None:
        said: Any = entry.table
        for part in key:
            said = said.get(part) if isinstance(said, dict) else said
        if said is None:
            findings.mistake(entry.finding(key, reason))

    base = interpolate_all(recipes.recipe(kind).section, environment, refuse)
    return replace(entry, table={**recipes.laid_over(base, entry.table), "kind": kind})


@cache
def _keys_of_any_kind(shape: Literal["Settings", "Account"]) -> frozenset[str]:
    classes = map(provider_class, PLACE_BY_KIND)
    return frozenset(name for provider in classes for name in getattr(provider, shape).model_fields)


@dataclass(slots=True)
class Accounts:
    """The accounts of the configuration. `by_name` holds those that are right. `count`, `names` and
    `providers` are of all that are written, with mistakes too; `is_whole` says whether these are all there
    are: not if one could not be read, or if [api] lets programs add more."""

    by_name: dict[str, AccountSettings] = field(default_factory=dict)
    count: int = 0
    names: set[str] = field(default_factory=set)
    providers: set[str] = field(default_factory=set)
    is_whole: bool = True


def read_accounts(
    document: Entry, environment: Environment, providers: Providers, findings: Findings
) -> Accounts:
    """Read all accounts: [[accounts]] of the file, and the lines of `accounts_file`."""
    accounts, names = Accounts(is_whole="api" not in document.table), Names("account", findings)
    place_by_source: dict[Source, str] = {}
    listed = listed_tables(document, "accounts", findings)
    for entry in chain(listed, read_lines(document, "accounts_file", environment, findings)):
        if not isinstance(entry, Entry):
            accounts.names.update([entry] if entry else ())
            accounts.is_whole = accounts.is_whole and entry is not None
            continue
        account, source = read_account(entry, providers, findings)
        name, provider = entry.table.get("name"), entry.table.get("provider")
        accounts.count += 1
        accounts.names.update([name] if isinstance(name, str) else ())
        accounts.providers.update([provider] if isinstance(provider, str) else ())
        if not names.is_new(entry) or not account:
            continue
        if source in place_by_source:
            reason = f"is the same account at the same provider as the one at {place_by_source[source]}"
            findings.mistake(entry.finding((), reason))
            continue
        if source:
            place_by_source[source] = entry.place()
        accounts.by_name[account.name] = account
    return accounts


def read_account(
    entry: Entry, providers: Providers, findings: Findings
) -> tuple[AccountSettings | None, Source | None]:
    """Read one account, and its source: None if that is unknown. No account if its provider cannot ask for
    it; an account with mistakes is returned as far as it is right."""
    before = findings.count
    account = _account(entry, providers, findings)
    if not account or not (asked := providers.asked_by_name.get(account.provider)):
        return account, None
    try:
        return account, (account.provider, asked.source(account))
    except Rejected as unfit:
        if findings.count == before:  # what stands in for a mistake fits nowhere
            address = min(type(account).model_fields.keys() - AccountSettings.model_fields.keys())
            findings.mistake(entry.finding((address,), unfit.words))
        return None, None


def _account(entry: Entry, providers: Providers, findings: Findings) -> AccountSettings | None:
    for key in ("interval", "pending_interval"):
        value = entry.table.get(key)
        with suppress(ValueError):  # no duration at all: its shape says so
            if isinstance(value, str) and parse_duration(value) < _SHORTEST_INTERVAL:
                findings.mistake(entry.finding((key,), "must be at least 1s"))
    name, provider = entry.table.get("provider"), None
    if name is None:
        findings.mistake(entry.finding(("provider",), "is missing"))
    elif isinstance(name, str) and name not in providers.class_by_name:
        meant = did_you_mean(name, providers.class_by_name)
        findings.mistake(entry.finding(("provider",), f"no [providers.NAME] of this name{meant}"))
    elif isinstance(name, str):
        provider = providers.class_by_name[name]
    if provider:
        return settings_of(provider.Account, entry, findings, stand_ins={})
    may_hold = _keys_of_any_kind("Account")
    return settings_of(AccountSettings, entry, findings, may_hold=may_hold, stand_ins={})
