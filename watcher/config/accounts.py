"""Read every account: [[accounts]] of the file, and the lines of `accounts_file`.

Refuses to let two accounts share a name, or to poll one twice.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

from watcher.config.files import read_lines
from watcher.config.findings import Entry, Findings, Key, did_you_mean
from watcher.config.providers import Providers
from watcher.config.tables import Names, listed_tables, settings_of
from watcher.fields import parse_duration
from watcher.providers.contract import Provider
from watcher.settings import AccountSettings

_SHORTEST_INTERVAL = timedelta(seconds=1)


def read_accounts(
    document: Entry, environ: Mapping[str, str], providers: Providers, findings: Findings
) -> dict[str, AccountSettings]:
    """Read all accounts that are as they should be, by name."""
    account_by_name: dict[str, AccountSettings] = {}
    names, sources = Names("account", findings), _Sources(providers, findings)
    for entry in _entries(document, environ, findings):
        account = _account(entry, providers, findings)
        if names.is_new(entry) and account and sources.is_new(entry, account):
            account_by_name[account.name] = account
    return account_by_name


class _Sources:
    """Remembers who is polled where."""

    def __init__(self, providers: Providers, findings: Findings) -> None:
        self._findings = findings
        self._place_by_source: dict[tuple[str, str], str] = {}
        self._provider_by_name = {
            name: provider(settings)
            for name, settings in providers.settings_by_name.items()
            if (provider := providers.class_by_name[name])
        }

    def is_new(self, entry: Entry, account: AccountSettings) -> bool:
        """Say whether nobody is polled there yet; record the mistake otherwise."""
        provider = self._provider_by_name.get(account.provider)
        if not provider:
            return True
        source = account.provider, provider.source(account)
        if source in self._place_by_source:
            reason = f"is the same account at the same provider as the one at {self._place_by_source[source]}"
            self._findings.mistake(entry.finding((), reason))
            return False
        self._place_by_source[source] = entry.place()
        return True


def _entries(document: Entry, environ: Mapping[str, str], findings: Findings) -> Iterator[Entry]:
    yield from listed_tables(document, "accounts", findings)
    name = document.table.get("accounts_file")
    if name is None:
        return
    key: Key = ("accounts_file",)
    if not isinstance(name, str) or not name:
        findings.mistake(document.finding(key, "must be the path of a file"))
        return
    try:
        yield from read_lines(Path(document.file).parent / name, name, environ, findings)
    except OSError as error:
        findings.mistake(document.finding(key, f"the file cannot be read: {error.strerror}"))
    except ValueError:
        findings.mistake(document.finding(key, "must be the path of a file"))


def _account(entry: Entry, providers: Providers, findings: Findings) -> AccountSettings | None:
    for key in ("interval", "pending_interval"):
        if _is_too_short(entry.table.get(key)):
            findings.mistake(entry.finding((key,), "must be at least 1s"))
    provider = _provider(entry, providers, findings)
    model = provider.Account if provider else AccountSettings
    return settings_of(model, entry, findings, lenient=provider is None)


def _provider(entry: Entry, providers: Providers, findings: Findings) -> type[Provider] | None:
    name = entry.table.get("provider")
    if not isinstance(name, str):
        if name is None:
            findings.mistake(entry.finding(("provider",), "is missing"))
        return None
    if name not in providers.class_by_name:
        meant = did_you_mean(name, providers.class_by_name)
        findings.mistake(entry.finding(("provider",), f"no [providers.NAME] of this name{meant}"))
        return None
    return providers.class_by_name[name]


def _is_too_short(value: object) -> bool:
    try:
        return isinstance(value, str) and parse_duration(value) < _SHORTEST_INTERVAL
    except ValueError:
        return False
