"""Read every [providers.NAME], each in the shape that its kind's module says.

Refuses to make a provider talk: only its module is imported.
"""

from dataclasses import dataclass, field
from functools import cache

from watcher.config.findings import Entry, Findings, did_you_mean
from watcher.config.rules import mask_flaw
from watcher.config.tables import named_tables, settings_of
from watcher.providers.contract import Provider
from watcher.providers.registry import PLACE_BY_KIND, provider_class
from watcher.settings import ProviderSettings

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
