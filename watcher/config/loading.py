"""From a file and the environment to Settings, or to everything that is wrong with them.

Refuses to stop at the first mistake, and to give a part of a configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from watcher.config.accounts import read_accounts
from watcher.config.doubts import doubt
from watcher.config.files import find, read_toml
from watcher.config.findings import ConfigRefused, Entry, Finding, Findings
from watcher.config.providers import read_providers
from watcher.config.sections import read_sections
from watcher.config.subscriptions import read_subscriptions
from watcher.printable import hide
from watcher.settings import Settings, secrets_of


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used. `warnings` are for the operator: it works, but hardly as meant.

    `files` are those that it was read from, `path` first; the ones that NAME_FILE names are not among them.
    """

    settings: Settings
    path: Path
    warnings: tuple[Finding, ...]
    files: tuple[Path, ...] = ()


def load(path: Path | None, environ: Mapping[str, str]) -> Loaded:
    """Read the configuration at `path`, or where one is usually found, and hide its secrets.

    Raises ConfigRefused, with every mistake in it; a text that is no TOML is one mistake.
    """
    found = find(path, environ)
    findings = Findings()
    document = read_toml(found, environ, findings)
    settings = _settings(document, environ, findings)
    if settings is None or findings.mistakes:
        raise ConfigRefused(findings.mistakes)
    hide(secrets_of(settings))
    accounts_file = document.table.get("accounts_file")
    files = (found, found.parent / accounts_file) if accounts_file else (found,)
    return Loaded(settings, found, tuple(findings.warnings), files)


def _settings(document: Entry, environ: Mapping[str, str], findings: Findings) -> Settings | None:
    redis, worker, log, egress = read_sections(document, environ, findings)
    providers = read_providers(document, findings)
    accounts = read_accounts(document, environ, providers, findings)
    subscriptions = read_subscriptions(document, egress, findings)
    if findings.mistakes or not (redis and worker and log and egress):
        return None
    settings = Settings(
        redis=redis,
        worker=worker,
        log=log,
        egress=egress,
        provider_by_name=providers.settings_by_name,
        account_by_name=accounts,
        subscription_by_name={name: read for name, (read, _) in subscriptions.items()},
    )
    doubt(settings, document, {name: entry for name, (_, entry) in subscriptions.items()}, findings)
    return settings
