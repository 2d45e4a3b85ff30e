"""Warn of what is valid, but hardly what was meant: a subscription that will never hear anything.

Refuses to stop anybody: tomorrow's account may have the name that matches nothing today.
"""

from collections.abc import Collection

from watcher.config.findings import Entry, Findings, did_you_mean
from watcher.config.rules import EVENTS, is_glob, matches
from watcher.settings import Settings


def doubt(
    settings: Settings, document: Entry, entry_by_subscription: dict[str, Entry], findings: Findings
) -> None:
    """Add every warning about a valid configuration to `findings`."""
    _doubt_idle(settings, document, findings)
    _doubt_egress(settings, document, findings)
    for name, entry in entry_by_subscription.items():
        subscription = settings.subscription_by_name[name]
        _doubt_globs("accounts", subscription.accounts, settings.account_by_name, entry, findings)
        _doubt_globs("events", subscription.events, EVENTS, entry, findings)


def _doubt_idle(settings: Settings, document: Entry, findings: Findings) -> None:
    if not settings.account_by_name:
        findings.warn(document.finding((), "no [[accounts]]: nothing will be polled"))
    elif not settings.subscription_by_name:
        findings.warn(document.finding((), "no [[subscriptions]]: nobody will be told"))
    used = {account.provider for account in settings.account_by_name.values()}
    for name in sorted(settings.provider_by_name.keys() - used):
        findings.warn(document.finding(("providers", name), "no account is polled there"))


def _doubt_egress(settings: Settings, document: Entry, findings: Findings) -> None:
    for index, network in enumerate(settings.egress.allow):
        if network.prefixlen == 0:
            key = ("egress", "allow", index)
            findings.warn(document.finding(key, "allows every address: subscriber URLs may reach this host"))


def _doubt_globs(
    field: str, globs: tuple[str, ...], names: Collection[str], entry: Entry, findings: Findings
) -> None:
    for index, glob in enumerate(globs):
        found = matches(glob, names) if is_glob(glob) else glob in names
        if not found:
            meant = "" if is_glob(glob) else did_you_mean(glob, names)
            findings.warn(entry.finding((field, index), f"matches no {field.removesuffix('s')}{meant}"))
