"""Builders for tests: a call shows all that matters, the rest has a default."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pydantic import SecretStr

from watcher.journal.account import AccountState, Entry
from watcher.settings import AccountSettings, ProviderSettings, SubscriptionSettings
from watcher.snapshot import Asset, Balance, Row, Snapshot

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def a_balance(
    total: str = "0",
    locked: str = "0",
    pending_deposit: str | None = "0",
    pending_withdrawal: str | None = "0",
) -> Balance:
    return Balance(total, locked, pending_deposit, pending_withdrawal)


def a_row(asset: str | Asset, balance: Balance | str, *, locked_absent: bool = False) -> Row:
    asset = asset if isinstance(asset, Asset) else Asset(asset, decimals=0)
    return Row(asset, balance if isinstance(balance, Balance) else a_balance(balance), locked_absent)


def a_snapshot(
    balance_by_asset: Mapping[str, Balance | str] | None = None,
    *,
    watched: tuple[str, ...] | None = None,
    absent_is_zero: bool | None = None,
    **balances: Balance | str,
) -> Snapshot:
    """A full listing by default; with `watched` a filtered one, where absence says nothing."""
    rows = {
        asset: a_row(asset, balance) for asset, balance in {**(balance_by_asset or {}), **balances}.items()
    }
    return Snapshot(rows, watched, watched is None if absent_is_zero is None else absent_is_zero)


def a_state(
    balance_by_asset: Mapping[str, Balance | str] | None = None,
    *,
    source: str = "here",
    watched: tuple[str, ...] | None = None,
    version: str = "v1",
    sequence: int = 1,
    **balances: Balance | str,
) -> AccountState:
    entries = {}
    for asset, shown in {**(balance_by_asset or {}), **balances}.items():
        balance = shown if isinstance(shown, Balance) else a_balance(shown)
        entries[asset] = Entry(Asset(asset, decimals=0), balance, balance)
    return AccountState(source, watched, entries, version, sequence, 1_000)


def a_subscription(
    name: str = "ops", url: str = "https://ops.example.com/in", **fields: Any
) -> SubscriptionSettings:
    return SubscriptionSettings(name=name, url=SecretStr(url), secrets=(SecretStr(SECRET),), **fields)


def an_account(name: str = "treasury", provider: str = "loopring", **fields: Any) -> AccountSettings:
    return AccountSettings(name=name, provider=provider, **fields)


def a_provider(name: str = "loopring", **fields: Any) -> ProviderSettings:
    defaults: dict[str, Any] = {"kind": name, "base_url": "http://127.0.0.1:1"}
    return ProviderSettings(name=name, **{**defaults, **fields})


def seconds(*numbers: float) -> tuple[timedelta, ...]:
    return tuple(timedelta(seconds=number) for number in numbers)
