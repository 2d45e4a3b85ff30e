"""Tries one provider: one poll of its first account, read like any other, and how its clock differs.

Refuses to keep what it read.
"""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from watcher.plurals import many
from watcher.preflight.tried import Tried, Verdict
from watcher.providers.client import ProviderClient
from watcher.providers.contract import ErrorClass, Rejected
from watcher.providers.registry import provider_class
from watcher.settings import AccountSettings, ProviderSettings

_SKEWED_S = 30
_FAR_OFF_S = 300
"""Receivers refuse a signature whose timestamp is further off than this."""

_TODO: dict[ErrorClass, str] = {
    "auth": "look at api_key in [providers.{name}]",
    "configuration": "look at how [[accounts]] {account} is addressed",
    "rate": "lower requests_per_second in [providers.{name}], or wait: others use the same key",
    "transient": "try again; if it stays so, look at base_url in [providers.{name}]",
    "malformed": "look whether base_url in [providers.{name}] leads to this provider, past any proxy",
    "gone": "look at base_url in [providers.{name}], and whether this machine can reach it",
}


async def try_provider(settings: ProviderSettings, account: AccountSettings | None) -> AsyncIterator[Tried]:
    """Say what came of one poll, and, if anybody answered, how far the clocks are apart."""
    name = settings.name
    if account is None:
        yield Tried("provider", name, "warning", "not polled", "no account names it: add one, or remove it")
        return
    async with ProviderClient(provider_class(settings.kind)(settings), settings) as client:
        yield await _poll(client, settings, account)
        if client.dated:
            yield clock(name, *client.dated)


async def _poll(client: ProviderClient, settings: ProviderSettings, account: AccountSettings) -> Tried:
    started = time.monotonic()
    try:
        snapshot = await client.read(account, await client.ask(account))
    except Rejected as refused:
        status = f" (status {refused.status})" if refused.status else ""
        todo = refused.mend or _TODO[refused.error_class].format(name=settings.name, account=account.name)
        verdict: Verdict = "warning" if refused.error_class == "rate" else "failed"
        text = f"{refused.error_class}: {refused.words}{status}"
        return Tried("provider", settings.name, verdict, text, todo)
    took_ms = 1000 * (time.monotonic() - started)
    assets = len(snapshot.row_by_asset)
    text = f"a poll of {account.name} took {took_ms:.0f} ms and found {many(assets, 'asset')}"
    return Tried("provider", settings.name, "ok", text)


def clock(name: str, date: str, here: datetime) -> Tried:
    """Compare our time with the `Date` of an answer: whole seconds, and as old as its way here was long."""
    try:
        there = parsedate_to_datetime(date)
    except ValueError:
        return Tried("clock", name, "warning", "its Date cannot be read", "compare the clocks by hand")
    apart_s = (here - (there if there.tzinfo else there.replace(tzinfo=UTC))).total_seconds()
    text = f"this machine's clock is {abs(apart_s):.0f} s {'ahead of' if apart_s > 0 else 'behind'} its Date"
    if abs(apart_s) < _SKEWED_S:
        return Tried("clock", name, "ok", text)
    verdict: Verdict = "failed" if abs(apart_s) >= _FAR_OFF_S else "warning"
    return Tried("clock", name, verdict, text, "set the clock (NTP): receivers refuse what is 5 minutes off")
