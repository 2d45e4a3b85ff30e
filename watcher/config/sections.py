"""Read what stands once in a file: [redis], [worker], [log], [egress]; and every [providers.NAME]."""

from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from watcher.config.findings import UNKNOWN, Entry, Findings, did_you_mean
from watcher.config.tables import (
    leftover_flaw,
    mask_flaw,
    named_tables,
    overridden,
    redis_url_flaw,
    section,
    settings_of,
)
from watcher.environment import Environment
from watcher.providers.contract import PLACE_BY_KIND, Provider, provider_class
from watcher.settings import EgressSettings, LogSettings, ProviderSettings, RedisSettings, WorkerSettings

SECTIONS = ("redis", "worker", "log", "egress", "providers", "accounts", "accounts_file", "subscriptions")
"""Every key that may stand at the top of a file."""


class Sections(NamedTuple):
    """None stands for a section with a mistake in it."""

    redis: RedisSettings | None
    worker: WorkerSettings | None
    log: LogSettings | None
    egress: EgressSettings | None


def read_sections(document: Entry, environment: Environment, findings: Findings) -> Sections:
    """Read the single sections and refuse unknown ones."""
    for name in document.table.keys() - set(SECTIONS):
        findings.mistake(document.finding((name,), UNKNOWN + did_you_mean(name, SECTIONS)))
    log = section(document, "log", findings)
    names = {"level": "LOG_LEVEL", "format": "LOG_FORMAT", "prefix": "LOG_PREFIX"}
    log = overridden(log, names, environment, findings)
    return Sections(
        redis=read_redis(document, environment, findings),
        worker=settings_of(WorkerSettings, section(document, "worker", findings), findings),
        log=settings_of(LogSettings, log, findings),
        egress=settings_of(EgressSettings, section(document, "egress", findings), findings),
    )


def read_redis(document: Entry, environment: Environment, findings: Findings) -> RedisSettings | None:
    """Read [redis] alone."""
    entry = overridden(section(document, "redis", findings), {"url": "REDIS_URL"}, environment, findings)
    redis = settings_of(RedisSettings, entry, findings)
    url = entry.table.get("url")
    flaw = redis_url_flaw(url) if isinstance(url, str) else None
    if flaw:
        findings.mistake(entry.finding(("url",), flaw))
    elif isinstance(url, str) and (doubtful := leftover_flaw(url)):
        findings.warn(entry.finding(("url",), doubtful))
    return redis


_STAND_IN = {"kind": "unknown", "base_url": "https://unknown.invalid", "api_key": "unknown"}
"""For what a provider lacks, or has wrong: it is refused all the same, after its accounts were looked at."""


@dataclass(frozen=True, slots=True)
class Providers:
    """What the file says of providers, as far as it is right.

    `class_by_name` has None for an unknown kind, and every name; `entry_by_name` says where each is written.
    """

    class_by_name: dict[str, type[Provider] | None] = field(default_factory=dict)
    settings_by_name: dict[str, ProviderSettings] = field(default_factory=dict)
    entry_by_name: dict[str, Entry] = field(default_factory=dict)

    @property
    def asked_by_name(self) -> dict[str, Provider]:
        """Those of which it is known how they are asked."""
        return {
            name: provider(settings)
            for name, settings in self.settings_by_name.items()
            if (provider := self.class_by_name[name])
        }


def read_providers(document: Entry, findings: Findings) -> Providers:
    """Read all providers."""
    providers = Providers()
    for name, entry in named_tables(document, "providers", findings):
        kind = entry.table.get("kind", name)
        providers.entry_by_name[name] = entry
        providers.class_by_name[name] = _class(kind, entry, findings)
        settings = _settings(name, kind, providers.class_by_name[name], entry, findings)
        if settings:
            providers.settings_by_name[name] = settings
    return providers


def _class(kind: object, entry: Entry, findings: Findings) -> type[Provider] | None:
    if not isinstance(kind, str):
        return None
    if kind in PLACE_BY_KIND:
        return provider_class(kind)
    known = ", ".join(PLACE_BY_KIND)
    meant = did_you_mean(kind, PLACE_BY_KIND)
    if "kind" in entry.table:
        findings.mistake(entry.finding(("kind",), f"unknown kind, known are {known}{meant}"))
    else:
        findings.mistake(entry.finding(("kind",), f"is missing, and the name is none of {known}{meant}"))
    return None


def _settings(
    name: str, kind: object, provider: type[Provider] | None, entry: Entry, findings: Findings
) -> ProviderSettings | None:
    model = provider.Settings if provider else ProviderSettings
    # Only a kind knows its own address: what is no mistake in any kind is none in an unknown one.
    assumed = {"kind": kind} if provider else {"kind": kind, "base_url": _STAND_IN["base_url"]}
    spelled = Entry({**assumed, **entry.table}, entry.file, entry.key, entry.line_of)
    settings = settings_of(
        model,
        spelled,
        findings,
        given={"name": name},
        may_hold=() if provider else _keys_of_any_kind(),
        stand_ins=_STAND_IN,
    )
    api_key = entry.table.get("api_key")
    flaw = mask_flaw(api_key) if isinstance(api_key, str) else None
    if flaw:
        findings.mistake(entry.finding(("api_key",), flaw))
    return settings


@cache
def _keys_of_any_kind() -> frozenset[str]:
    return frozenset(name for kind in PLACE_BY_KIND for name in provider_class(kind).Settings.model_fields)
