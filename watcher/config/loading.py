"""From a file and the environment to Settings, or to everything that is wrong with them.

Refuses to stop at the first mistake, and to give a part of a configuration as if it were all of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from watcher.config.accounts import read_accounts
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
from watcher.config.sections import read_providers, read_sections
from watcher.config.subscriptions import read_subscriptions
from watcher.environment import Environment
from watcher.printable import hide
from watcher.settings import (
    EgressSettings,
    LogSettings,
    RedisSettings,
    Settings,
    WorkerSettings,
    secrets_of,
)


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
    files = (found, *_beside(document, found), *environment.files)
    if findings.mistakes:
        raise ConfigRefused(findings.mistakes, findings.warnings, files)
    hide(secrets_of(settings))
    return Loaded(settings, found, tuple(findings.warnings), files)


def _beside(document: Entry, path: Path) -> list[Path]:
    name = document.table.get("accounts_file")
    return [path.parent / name] if isinstance(name, str) and name and "\0" not in name else []


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
