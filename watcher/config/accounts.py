"""Read every account: [[accounts]] of the file, and the lines of `accounts_file`.

Refuses to let two accounts share a name, or to poll one twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path

from watcher.config.files import read_lines
from watcher.config.findings import Entry, Findings, Key, did_you_mean
from watcher.config.sections import Providers
from watcher.config.tables import Names, listed_tables, settings_of
from watcher.environment import Environment
from watcher.fields import parse_duration
from watcher.providers.contract import PLACE_BY_KIND, Provider, provider_class
from watcher.settings import AccountSettings

_SHORTEST_INTERVAL = timedelta(seconds=1)


@dataclass(slots=True)
class Accounts:
    """What the configuration says of accounts. `by_name` holds them as far as they are right.

    `count`, `names` and `providers` are of all that are written, with mistakes too; `is_whole` says whether
    all could be read.
    """

    by_name: dict[str, AccountSettings] = field(default_factory=dict)
    count: int = 0
    names: set[str] = field(default_factory=set)
    providers: set[str] = field(default_factory=set)
    is_whole: bool = True


def read_accounts(
    document: Entry, environment: Environment, providers: Providers, findings: Findings
) -> Accounts:
    """Read all accounts."""
    accounts = Accounts()
    names, sources = Names("account", findings), _Sources(providers, findings)
    for entry in _entries(document, environment, findings):
        if not isinstance(entry, Entry):
            accounts.names.update([entry] if entry else ())
            accounts.is_whole = accounts.is_whole and entry is not None
            continue
        account = _account(entry, providers, findings)
        _note(accounts, entry)
        if names.is_new(entry) and account and sources.is_new(entry, account):
            accounts.by_name[account.name] = account
    return accounts


class _Sources:
    """Remembers who is polled where."""

    def __init__(self, providers: Providers, findings: Findings) -> None:
        self._findings = findings
        self._provider_by_name = providers.asked_by_name
        self._place_by_source: dict[tuple[str, str], str] = {}

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


def _note(accounts: Accounts, entry: Entry) -> None:
    accounts.count += 1
    name, provider = entry.table.get("name"), entry.table.get("provider")
    if isinstance(name, str):
        accounts.names.add(name)
    if isinstance(provider, str):
        accounts.providers.add(provider)


def _entries(document: Entry, environment: Environment, findings: Findings) -> Iterator[Entry | str | None]:
    """Give every account: its name alone, or None, where the rest cannot be read."""
    yield from listed_tables(document, "accounts", findings)
    name = document.table.get("accounts_file")
    if name is None:
        return
    key: Key = ("accounts_file",)
    if not isinstance(name, str) or not name:
        findings.mistake(document.finding(key, "must be the path of a file"))
        yield None
        return
    try:
        yield from read_lines(Path(document.file).parent / name, name, environment, findings)
    except OSError as error:
        findings.mistake(document.finding(key, f"the file cannot be read: {error.strerror}"))
        yield None
    except ValueError:
        findings.mistake(document.finding(key, "must be the path of a file"))
        yield None


def _account(entry: Entry, providers: Providers, findings: Findings) -> AccountSettings | None:
    for key in ("interval", "pending_interval"):
        if _is_too_short(entry.table.get(key)):
            findings.mistake(entry.finding((key,), "must be at least 1s"))
    provider = _provider(entry, providers, findings)
    if provider:
        return settings_of(provider.Account, entry, findings, stand_ins={})
    return settings_of(AccountSettings, entry, findings, may_hold=_keys_of_any_kind(), stand_ins={})


@cache
def _keys_of_any_kind() -> frozenset[str]:
    return frozenset(name for kind in PLACE_BY_KIND for name in provider_class(kind).Account.model_fields)


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
