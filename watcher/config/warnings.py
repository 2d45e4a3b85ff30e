"""Warns of what is valid but probably not meant: a subscription or a threshold that can never fire."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from watcher.amounts import NotAnAmount, from_decimal, to_atoms
from watcher.config.findings import Entry, Findings, Key, did_you_mean
from watcher.config.sections import Accounts, Providers
from watcher.config.tables import EVENTS, is_glob, leftover_flaw, matches
from watcher.polling.cadence import patience_ms
from watcher.printable import many
from watcher.providers.contract import USABLE, requests_needed
from watcher.settings import FORMATS, AccountSettings, EgressSettings, secrets_in
from watcher.snapshot import asset_id

_CHAT_SERVICES = {
    "hooks.slack.com": ("slack", "Slack"),
    "hooks.slack-gov.com": ("slack", "Slack"),
    "discord.com": ("discord", "Discord"),
    "discordapp.com": ("discord", "Discord"),
    "webhook.office.com": ("teams", "Teams"),
    "api.telegram.org": ("telegram", "Telegram"),
    "ntfy.sh": ("ntfy", "ntfy"),
    "events.pagerduty.com": ("pagerduty", "PagerDuty"),
    "events.eu.pagerduty.com": ("pagerduty", "PagerDuty"),
}
"""By the end of a host: the format that it accepts, and its name for people."""


def warn_of_idle(
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
        findings.warn(document.finding((), "no [[subscriptions]]: no event will be sent"))
    for name in sorted(providers.entry_by_name.keys() - accounts.providers):
        findings.warn(document.finding(("providers", name), "no account is polled there"))


def warn_of_egress(document: Entry, egress: EgressSettings | None, findings: Findings) -> None:
    """Warn of an egress policy that lets everything through."""
    for index, network in enumerate(egress.allow if egress else ()):
        if network.prefixlen == 0:
            key = ("egress", "allow", index)
            findings.warn(document.finding(key, "allows every address: subscriber URLs may reach this host"))


def warn_of_globs(accounts: Accounts, subscriptions: Collection[Entry], findings: Findings) -> None:
    """Warn of names and patterns that match nothing."""
    for entry in subscriptions:
        if accounts.is_whole:
            _warn_of_globs("accounts", accounts.names, entry, findings)
        _warn_of_globs("events", EVENTS, entry, findings)


def warn_of_values(providers: Providers, subscriptions: Collection[Entry], findings: Findings) -> None:
    """Warn of secrets, URLs and headers with something that should have been removed or replaced."""
    for name, settings in providers.settings_by_name.items():
        for path, secret in secrets_in(settings):
            _warn_of_text(secret, providers.entry_by_name[name], path, findings)
    for entry in subscriptions:
        _warn_of_text(entry.table.get("url"), entry, ("url",), findings)
        _warn_of_text(entry.table.get("routing_key"), entry, ("routing_key",), findings)
        _warn_of_format(entry, findings)
        for index, secret in texts_in(entry, "secrets"):
            _warn_of_text(secret, entry, ("secrets", index), findings)
        headers = entry.table.get("headers")
        for name, value in headers.items() if isinstance(headers, dict) else ():
            _warn_of_text(value, entry, ("headers", name), findings)


def _warn_of_format(entry: Entry, findings: Findings) -> None:
    """Warn of a format that the URL's service does not accept, and of one that would alert people to every
    change."""
    format_, url, host = entry.table.get("format", "standard"), entry.table.get("url"), None
    with suppress(ValueError):
        host = urlsplit(url).hostname if isinstance(url, str) else None
    found = (known for end, known in _CHAT_SERVICES.items() if f".{host}".endswith(f".{end}"))
    taken, service = next(found, (format_, ""))
    if format_ == "standard" != taken:
        text = f"leads to {service}, which does not understand signed events: set format = {taken!r}"
        findings.warn(entry.finding(("url",), text.replace("'", '"')))
    elif format_ in FORMATS and format_ != taken:
        findings.warn(entry.finding(("url",), f"leads to {service}, but format is {format_}"))
    if format_ == "pagerduty" and not entry.table.get("events"):
        text = f"are every change, and each opens an alert: name {', '.join(_ALARMS)}, for example"
        findings.warn(entry.finding(("events",), text))


_ALARMS = ("account.stale", "account.recovered", "threshold.crossed", "subscription.paused")


def warn_of_load(providers: Providers, accounts: Accounts, findings: Findings) -> None:
    """Warn if a provider's rate limit cannot bear the polls of its accounts at their intervals."""
    accounts_by_provider: dict[str, list[AccountSettings]] = defaultdict(list)
    for account in accounts.by_name.values():
        if account.interval:  # none is a mistake, which is among the findings
            accounts_by_provider[account.provider].append(account)
    for name, provider in providers.asked_by_name.items():
        here = accounts_by_provider[name]
        settings, needed = providers.settings_by_name[name], requests_needed(provider, here)
        made = USABLE * settings.requests_per_second
        if needed > made:
            apart = needed / made
            stale = sum(
                apart * 1000 * one.interval.total_seconds() >= patience_ms(one, settings.timeout)
                for one in here
            )
            text = (
                f"{many(len(here), 'account')} at their intervals take {needed:.3g} requests/s, "
                f"{made:.3g} can be made: polls are {apart:.3g} intervals apart"
                f"{f', and {stale:,} of these accounts are stale' if stale else ''}; "
                "raise it, or the intervals"
            )
            findings.warn(providers.entry_by_name[name].finding(("requests_per_second",), text))


def _warn_of_globs(field: str, names: Collection[str], entry: Entry, findings: Findings) -> None:
    for index, glob in texts_in(entry, field):
        found = matches(glob, names) if is_glob(glob) else glob in names
        if not found:
            meant = "" if is_glob(glob) else did_you_mean(glob, names)
            findings.warn(entry.finding((field, index), f"matches no {field.removesuffix('s')}{meant}"))


def texts_in(entry: Entry, field: str) -> Iterator[tuple[int, str]]:
    """Return each text of a list, with its place in the list."""
    values = entry.table.get(field)
    for index, value in enumerate(values if isinstance(values, list) else ()):
        if isinstance(value, str):
            yield index, value


def _warn_of_text(value: object, entry: Entry, key: Key, findings: Findings) -> None:
    if isinstance(value, str) and (flaw := leftover_flaw(value)):
        findings.warn(entry.finding(key, flaw))


_ASKED_FOR = "threshold.crossed"
_LONGEST_TICKER = 10
_MAY_BE_NEGATIVE = ("total", "available")
"""An account may be overdrawn, and more may be locked than there is."""


def warn_of_thresholds(
    providers: Providers, accounts: Accounts, subscriptions: Collection[Entry], findings: Findings
) -> None:
    """Warn of every threshold that can never fire, and say why."""
    for entry in subscriptions:
        listed = entry.table.get("thresholds")
        listed = enumerate(listed if isinstance(listed, list) else ())
        thresholds = {index: threshold for index, threshold in listed if isinstance(threshold, dict)}
        for key, reason in _warnings(thresholds, entry):
            findings.warn(entry.finding(key, reason))
        if not accounts.is_whole:
            continue
        globs = [text for _, text in texts_in(entry, "accounts")] or ["*"]
        for index, threshold in thresholds.items():
            asset = str(threshold.get("asset", "*"))
            about = (
                account
                for name, account in accounts.by_name.items()
                if any(glob in ("*", name) or matches(glob, [name]) for glob in globs)
            )
            if not is_glob(asset) and (found := _unreachable(threshold, about, providers)):
                wrong, reason = found
                findings.warn(entry.finding(("thresholds", index, wrong), reason))


def _warnings(thresholds: Mapping[int, Mapping[str, Any]], entry: Entry) -> Iterator[tuple[Key, str]]:
    """Return what is wrong with thresholds by themselves."""
    types = [text for _, text in texts_in(entry, "events")]
    if thresholds and types and not any(matches(glob, [_ASKED_FOR]) for glob in types):
        yield ("events",), f"lacks {_ASKED_FOR}: no threshold will be reported"
    spellings = [text for _, text in texts_in(entry, "assets")]
    spelling_by_lower = {text.lower(): text for text in reversed(spellings)}
    index_by_bound: dict[tuple[str, ...], int] = {}
    for index, threshold in thresholds.items():
        asset, field, below = threshold.get("asset"), threshold.get("field", "total"), threshold.get("below")
        # Two that differ only in `clear` are the same one.
        bound = asset_id(str(asset)), str(field), str(below), str(threshold.get("above"))
        if (first := index_by_bound.setdefault(bound, index)) != index:
            yield ("thresholds", index), f"is the bound of thresholds[{first}]"
        if isinstance(asset, str) and is_glob(asset):
            reason = "a threshold is about one asset, by its symbol or id, not about a pattern"
            yield ("thresholds", index, "asset"), f"can never fire: {reason}"
        elif isinstance(asset, str) and asset not in spellings and asset[:2].lower() != "0x":
            # As `assets` writes it, or in upper case, as tickers are.
            ticker = asset.upper() if asset.islower() and len(asset) <= _LONGEST_TICKER else None
            if meant := spelling_by_lower.get(asset.lower()) or ticker:
                reason = f"upper and lower case count in a symbol -- did you mean '{meant}'?"
                yield ("thresholds", index, "asset"), f"can never fire: {reason}"
        if field not in _MAY_BE_NEGATIVE and _is_debt(below):
            yield ("thresholds", index, "below"), "can never fire: no balance is below zero"


def _is_debt(below: object) -> bool:
    """Say whether only a balance below zero is below this bound."""
    with suppress(NotAnAmount):
        return below is not None and to_atoms(from_decimal(str(below), signed=True)) <= 0
    return False


def _unreachable(
    threshold: Mapping[str, Any], accounts: Iterable[AccountSettings], providers: Providers
) -> tuple[str, str] | None:
    """Return why none of these accounts can fire a threshold; None if one may."""
    asset, field = str(threshold.get("asset", "*")), str(threshold.get("field", "total"))
    is_of_debt = field == "total" and _is_debt(threshold.get("below"))
    found = None
    for account in accounts:
        provider = providers.asked_by_name.get(account.provider)
        may_hold = provider.may_hold(account, asset) if provider else True
        if provider and may_hold is not False and field in provider.unknown_fields:
            found = "field", f"can never fire: {account.provider} knows no {field}"
        elif is_of_debt and provider and not providers.settings_by_name[account.provider].can_be_overdrawn:
            found = "below", f"can never fire: at {account.provider} no balance is below zero"
        elif may_hold:
            return None
        elif may_hold is None:
            found = (
                "asset",
                "may never fire: whether the asset is among the tokens is not known yet; give its id",
            )
        else:
            reason = "can never fire: no account that the subscription is about asks for this asset"
            found = found or ("asset", reason)
    return found
