"""Warn of what is valid, but hardly what was meant: a subscription that will never hear anything.

It goes by what is written, so that it finds all of it beside mistakes too. Refuses to stop anybody:
tomorrow's account may have the name that matches nothing today.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from urllib.parse import urlsplit

from watcher.config.accounts import Accounts
from watcher.config.findings import Entry, Findings, Key, did_you_mean
from watcher.config.providers import Providers
from watcher.config.rules import EVENTS, is_glob, leftover_flaw, matches
from watcher.plurals import many
from watcher.providers.contract import USABLE, requests_needed
from watcher.settings import AccountSettings, EgressSettings

_CHAT_SERVICES = {
    "hooks.slack.com": "Slack",
    "discord.com": "Discord",
    "discordapp.com": "Discord",
    "webhook.office.com": "Teams",
    "api.telegram.org": "Telegram",
    "ntfy.sh": "ntfy",
    "events.pagerduty.com": "PagerDuty",
}


def doubt_idle(
    document: Entry,
    providers: Providers,
    accounts: Accounts,
    subscriptions: Collection[Entry],
    findings: Findings,
) -> None:
    """Warn of what does nothing."""
    if not accounts.is_whole:
        return
    if not accounts.count:
        findings.warn(document.finding((), "no [[accounts]]: nothing will be polled"))
    elif not subscriptions:
        findings.warn(document.finding((), "no [[subscriptions]]: nobody will be told"))
    for name in sorted(providers.entry_by_name.keys() - accounts.providers):
        findings.warn(document.finding(("providers", name), "no account is polled there"))


def doubt_egress(document: Entry, egress: EgressSettings | None, findings: Findings) -> None:
    """Warn of a guard that lets everything through."""
    for index, network in enumerate(egress.allow if egress else ()):
        if network.prefixlen == 0:
            key = ("egress", "allow", index)
            findings.warn(document.finding(key, "allows every address: subscriber URLs may reach this host"))


def doubt_globs(accounts: Accounts, subscriptions: Collection[Entry], findings: Findings) -> None:
    """Warn of names and patterns that match nothing."""
    for entry in subscriptions:
        if accounts.is_whole:
            _doubt_globs("accounts", accounts.names, entry, findings)
        _doubt_globs("events", EVENTS, entry, findings)


def doubt_values(providers: Providers, subscriptions: Collection[Entry], findings: Findings) -> None:
    """Warn of secrets, URLs and headers that hold what should have been taken off or replaced."""
    for entry in providers.entry_by_name.values():
        _doubt_text(entry.table.get("api_key"), entry, ("api_key",), findings)
    for entry in subscriptions:
        _doubt_text(entry.table.get("url"), entry, ("url",), findings)
        if service := _chat_service(entry.table.get("url")):
            text = f"leads to {service}, which shows messages and does not understand signed events"
            findings.warn(entry.finding(("url",), text))
        for index, secret in texts_in(entry, "secrets"):
            _doubt_text(secret, entry, ("secrets", index), findings)
        headers = entry.table.get("headers")
        for name, value in headers.items() if isinstance(headers, dict) else ():
            _doubt_text(value, entry, ("headers", name), findings)


def doubt_load(providers: Providers, accounts: Accounts, findings: Findings) -> None:
    """Warn where a provider's rate limit cannot bear the polls of its accounts at their intervals."""
    accounts_by_provider: dict[str, list[AccountSettings]] = defaultdict(list)
    for account in accounts.by_name.values():
        accounts_by_provider[account.provider].append(account)
    for name, provider in providers.asked_by_name.items():
        here = accounts_by_provider[name]
        most, needed = providers.settings_by_name[name].requests_per_second, requests_needed(provider, here)
        made = USABLE * most
        if needed > made:
            text = (
                f"{many(len(here), 'account')} at their intervals take {needed:.3g} requests/s, "
                f"{made:.3g} can be made: polls are {needed / made:.3g} intervals apart (stale from 3 on); "
                "raise it, or the intervals"
            )
            findings.warn(providers.entry_by_name[name].finding(("requests_per_second",), text))


def _doubt_globs(field: str, names: Collection[str], entry: Entry, findings: Findings) -> None:
    for index, glob in texts_in(entry, field):
        found = matches(glob, names) if is_glob(glob) else glob in names
        if not found:
            meant = "" if is_glob(glob) else did_you_mean(glob, names)
            findings.warn(entry.finding((field, index), f"matches no {field.removesuffix('s')}{meant}"))


def texts_in(entry: Entry, field: str) -> Iterator[tuple[int, str]]:
    """Give each text of a list, with its place in it."""
    values = entry.table.get(field)
    for index, value in enumerate(values if isinstance(values, list) else ()):
        if isinstance(value, str):
            yield index, value


def _doubt_text(value: object, entry: Entry, key: Key, findings: Findings) -> None:
    if isinstance(value, str) and (flaw := leftover_flaw(value)):
        findings.warn(entry.finding(key, flaw))


def _chat_service(url: object) -> str | None:
    try:
        host = urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:
        return None
    found = (name for end, name in _CHAT_SERVICES.items() if f".{host or ''}".endswith(f".{end}"))
    return next(found, None)
