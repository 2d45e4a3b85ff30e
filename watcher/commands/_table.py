"""What the commands that look share: which accounts, how amounts, ages and rows are shown, what comes next.

Refuses to show text from outside as it came: control characters are escaped.
"""

import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from watcher.observe.tail import as_json
from watcher.printable import printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.settings import Settings

UNKNOWN_INTERVAL = timedelta(days=366)
"""Of an account that only the store knows. Whether it is stale its workers have said, if so."""

_WIDEST = 40
"""Characters that a column is padded to at most: one uint256 must not push all other rows apart."""


def known(look: "Look") -> "Settings":
    """Give the configuration, and add to one that is not whole the accounts that the store knows."""
    return look.settings if look.is_whole else asyncio.run(_with_accounts_of_the_store(look.settings))


async def _with_accounts_of_the_store(settings: "Settings") -> "Settings":
    from watcher.settings import AccountSettings
    from watcher.store.opening import open_to_look
    from watcher.store.reader import Reader

    async with open_to_look(settings.redis) as store:
        provider_by_account = await Reader(store.pipe, store.keys).scheduled()
    accounts = dict(settings.account_by_name)
    for name in sorted(provider_by_account.keys() - accounts.keys()):
        with suppress(ValueError):  # a name that no configuration can have had
            accounts[name] = AccountSettings(
                name=name, provider=provider_by_account[name], interval=UNKNOWN_INTERVAL
            )
    return settings.model_copy(update={"account_by_name": accounts})


def say_json(value: Mapping[str, Any]) -> None:
    """Print one object on one line, of visible ASCII only."""
    click.echo(as_json(value))


def say_next(text: str) -> None:
    """Tell people the next useful command; programs need no advice."""
    if sys.stderr.isatty():
        click.echo(f"next: {text}", err=True)


def age_text(ms: int) -> str:
    """Say how long something lasts, in its two largest units: `45s`, `3m 20s`, `2d 4h`."""
    seconds = max(0, ms) // 1000
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"


def moved_text(effect: Mapping[str, Any]) -> str:
    """Say what an effect moves: `total +12.5, pending_deposit -12.5`."""
    moved = {field: str(amount) for field, amount in effect.items() if amount not in ("0", None)}
    return ", ".join(f"{printable(field)} {_signed(printable(amount))}" for field, amount in moved.items())


class Columns:
    """Rows in columns that only ever get wider, so that a long list can be printed in parts."""

    def __init__(self, *header: str, numbers: Iterable[int] = ()) -> None:
        self._header: Sequence[str] | None = header
        self._numbers = frozenset(numbers)
        self._widths = [len(title) for title in header]

    def say(self, rows: Sequence[Sequence[str]]) -> None:
        """Print rows, the first time with the header above them."""
        for row in rows:
            self._widths = [
                max(width, min(len(cell), _WIDEST)) for width, cell in zip(self._widths, row, strict=True)
            ]
        if rows and self._header:
            click.echo(self._line(self._header))
            self._header = None
        for row in rows:
            click.echo(self._line(row))

    def _line(self, row: Sequence[str]) -> str:
        cells = zip(row, self._widths, strict=True)
        return "  ".join(
            cell.rjust(width) if i in self._numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(cells)
        ).rstrip()


def _signed(amount: str) -> str:
    return amount if amount.startswith("-") else f"+{amount}"
