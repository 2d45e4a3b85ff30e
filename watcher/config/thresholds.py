"""Warn of thresholds that can never fire: nobody misses an alert that was never told.

Refuses to know what accounts hold: a symbol may be that of any asset, until an account was read.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from watcher.amounts import NotAnAmount, from_decimal, to_atoms
from watcher.config.accounts import Accounts
from watcher.config.doubts import texts_in
from watcher.config.findings import Entry, Findings, Key
from watcher.config.providers import Providers
from watcher.config.rules import is_glob, matches
from watcher.providers.contract import Provider
from watcher.settings import AccountSettings
from watcher.snapshot import asset_id

_ASKED_FOR = "threshold.crossed"
_LONGEST_TICKER = 10
_MAY_BE_NEGATIVE = ("available",)
"""More may be locked than there is; at neither provider can an account be overdrawn."""

_Doubt = tuple[Key, str]


def doubt_thresholds(
    providers: Providers, accounts: Accounts, subscriptions: Collection[Entry], findings: Findings
) -> None:
    """Warn of every threshold that can never fire, and say why."""
    asked_by_name = providers.asked_by_name
    for entry in subscriptions:
        listed = entry.table.get("thresholds")
        listed = enumerate(listed if isinstance(listed, list) else ())
        thresholds = {index: threshold for index, threshold in listed if isinstance(threshold, dict)}
        doubts = [*_doubts(thresholds, entry)]
        if accounts.is_whole:
            doubts += _unreachable(thresholds, entry, accounts, asked_by_name)
        for key, reason in doubts:
            findings.warn(entry.finding(key, reason))


def _doubts(thresholds: Mapping[int, Mapping[str, Any]], entry: Entry) -> Iterator[_Doubt]:
    """Say what speaks against thresholds by themselves."""
    types = [text for _, text in texts_in(entry, "events")]
    if thresholds and types and not any(matches(glob, [_ASKED_FOR]) for glob in types):
        yield ("events",), f"lacks {_ASKED_FOR}: no threshold will be told"
    index_by_bound: dict[tuple[str, ...], int] = {}
    for index, threshold in thresholds.items():
        if (first := index_by_bound.setdefault(_bound(threshold), index)) != index:
            yield ("thresholds", index), f"is the bound of thresholds[{first}]"
        for field, reason in _flaws(threshold, entry):
            yield ("thresholds", index, field), f"can never fire: {reason}"


def _bound(threshold: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what makes a threshold the same as another one: all but where it is cleared."""
    asset, field = str(threshold.get("asset")), str(threshold.get("field", "total"))
    return asset_id(asset), field, str(threshold.get("below")), str(threshold.get("above"))


def _flaws(threshold: Mapping[str, Any], entry: Entry) -> Iterator[tuple[str, str]]:
    """Say what is wrong with a threshold by itself."""
    asset, below = threshold.get("asset"), threshold.get("below")
    if isinstance(asset, str) and is_glob(asset):
        yield "asset", "a threshold is about one asset, by its symbol or id, not about a pattern"
    elif isinstance(asset, str) and (meant := _other_case(asset, entry)):
        yield "asset", f"upper and lower case count in a symbol -- did you mean '{meant}'?"
    if threshold.get("field", "total") not in _MAY_BE_NEGATIVE:
        with suppress(NotAnAmount):
            if below is not None and to_atoms(from_decimal(str(below))) <= 0:
                yield "below", "no balance is below zero"


def _other_case(asset: str, entry: Entry) -> str | None:
    """Give the spelling that was probably meant: that of `assets`, or, as tickers are written, upper case."""
    if asset[:2].lower() == "0x":
        return None
    spellings = [text for _, text in texts_in(entry, "assets")]
    if asset in spellings:
        return None
    near = next((text for text in spellings if text.lower() == asset.lower()), None)
    return near or (asset.upper() if asset.islower() and len(asset) <= _LONGEST_TICKER else None)


def _unreachable(
    thresholds: Mapping[int, Mapping[str, Any]],
    entry: Entry,
    accounts: Accounts,
    asked_by_name: Mapping[str, Provider],
) -> Iterator[_Doubt]:
    """Say which thresholds no account that the subscription is about is known to fire."""
    for index, threshold in thresholds.items():
        asset, field = str(threshold.get("asset", "*")), str(threshold.get("field", "total"))
        found = None if is_glob(asset) else _reason(asset, field, _about(entry, accounts), asked_by_name)
        if found:
            key, reason = found
            yield ("thresholds", index, key), reason


def _about(entry: Entry, accounts: Accounts) -> Iterator[AccountSettings]:
    globs = [text for _, text in texts_in(entry, "accounts")] or ["*"]
    return (
        account
        for name, account in accounts.by_name.items()
        if any(glob in ("*", name) or matches(glob, [name]) for glob in globs)
    )


def _reason(
    asset: str, field: str, accounts: Iterable[AccountSettings], asked_by_name: Mapping[str, Provider]
) -> tuple[str, str] | None:
    found = None
    for account in accounts:
        provider = asked_by_name.get(account.provider)
        may_hold = provider.may_hold(account, asset) if provider else True
        if provider and may_hold is not False and field in provider.unknown_fields:
            found = "field", f"can never fire: {account.provider} knows no {field}"
        elif may_hold:
            return None
        elif may_hold is None:
            found = "asset", "may never fire: nobody knows yet whether it is among the tokens: give its id"
        else:
            reason = "can never fire: no account that the subscription is about asks for this asset"
            found = found or ("asset", reason)
    return found
