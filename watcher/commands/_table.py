"""What the commands that look share: which accounts, how amounts, ages and rows are shown, what comes next.

Refuses to show text from outside as it came: control characters are escaped.
"""

import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from watcher.commands._shared import Unknown
from watcher.observe.tail import as_json
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.run.directory import Known
    from watcher.settings import Settings, SubscriptionSettings
    from watcher.store.directory import Kind, Record
    from watcher.store.opening import OpenStore

UNKNOWN_INTERVAL = timedelta(days=366)
"""Of an account that only Redis knows: it counts as stale where its workers have emitted so."""

_WIDEST = 40
"""Characters that a column is padded to at most: one uint256 must not push all other rows apart."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters that a spreadsheet takes for the beginning of a formula."""


class NoKey(click.ClickException):
    """What came through the API is sealed, and nothing here opens it."""

    exit_code = 78


class Opened(NamedTuple):
    """Redis, and what is known by it and the configuration. `records` are those of the API, by kind and name:
    where the configuration has the name, too, it counts. `subscriptions` says what became of theirs.
    """

    look: "Look"
    store: "OpenStore"
    settings: "Settings"
    records: "Mapping[tuple[Kind, str], Record]"
    subscriptions: "Mapping[str, Known]"

    def origin(self, kind: "Kind", name: str) -> Literal["file", "api", "redis"]:
        """Say where it comes from; beside a broken file Redis may know it alone."""
        file = self.look.settings
        if name in (file.account_by_name if kind == "account" else file.subscription_by_name):
            return "file"
        return "api" if (kind, name) in self.records else "redis"

    @property
    def targets(self) -> "dict[str, SubscriptionSettings]":
        """The subscriptions of which all is known: not those of the API that are sealed with another key."""
        named = self.settings.subscription_by_name
        return {name: one for name, one in named.items() if one.url.get_secret_value()}

    def target(self, name: str) -> "SubscriptionSettings":
        """Find a subscription of which all is known. Raises Unknown, and NoKey."""
        if name in (targets := self.targets):
            return targets[name]
        if known := self.subscriptions.get(name):
            raise NoKey(f"subscription {name} came through the API: {known.reason}")
        raise Unknown("subscription", name, self.settings.subscription_by_name)


@asynccontextmanager
async def opened(look: "Look") -> AsyncIterator[Opened]:
    """Open Redis to look at it, and add the names of what came through the API to the configuration; to an
    incomplete one the accounts that Redis knows, too.
    """
    from pydantic import SecretStr

    from watcher.settings import AccountSettings, SubscriptionSettings
    from watcher.store.directory import Directory
    from watcher.store.opening import open_to_look
    from watcher.store.reader import Reader

    async with open_to_look(look.settings.redis) as store:
        records: dict[tuple[Kind, str], Record] = {}
        directory = Directory(store.pipe, store.keys)
        if any((await directory.counts()).values()):
            async for held in directory.read_all():
                records.update(((record.kind, record.name), record) for record in held.records)
            records = {place: records[place] for place in sorted(records)}
        accounts, subscriptions = look.settings.account_by_name, look.settings.subscription_by_name
        providers = {} if look.is_whole else await Reader(store.pipe, store.keys).scheduled()
        known: dict[str, Known] = {}
        named: dict[str, SubscriptionSettings] = {}
        if records:
            from watcher.run.directory import Judge  # heavy, and rarely needed

            judge, now_ms = Judge(look.settings), await Reader(store.pipe, store.keys).now_ms()
            known = {
                name: judge.judge(record, now_ms)
                for (kind, name), record in records.items()
                if kind == "subscription"
            }
        providers |= {
            name: str(one.plain.get("provider")) for (kind, name), one in records.items() if kind == "account"
        }
        for name, one in known.items():
            if isinstance(one.settings, SubscriptionSettings):
                named[name] = one.settings
            elif one.state != "shadowed":
                with suppress(ValueError):  # a name that no configuration can have had
                    named[name] = SubscriptionSettings(name=name, url=SecretStr(""))  # its URL takes a key
        more: dict[str, AccountSettings] = {}
        for name in sorted(providers.keys() - accounts.keys()):
            with suppress(ValueError):  # as above
                more[name] = AccountSettings(name=name, provider=providers[name], interval=UNKNOWN_INTERVAL)
        update = {
            "account_by_name": {**accounts, **more},
            "subscription_by_name": {**subscriptions, **named},
        }
        yield Opened(look, store, look.settings.model_copy(update=update), records, known)


async def known(look: "Look") -> "Settings":
    """Return what `opened` knows."""
    async with opened(look) as found:
        return found.settings


def say_json(value: Mapping[str, Any]) -> None:
    """Print one object on one line, of visible ASCII only."""
    click.echo(as_json(value))


def say_next(text: str) -> None:
    """Print the next useful command for people; programs need no advice."""
    if sys.stderr.isatty():
        click.echo(f"next: {text}", err=True)


def age_text(ms: int) -> str:
    """Write how long something lasts, in its two largest units: `45s`, `3m 20s`, `2d 4h`."""
    seconds = max(0, ms) // 1000
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"


def text_of(value: object) -> str:
    """Show text and numbers; any other value is left out, as its repr may be of any size."""
    return printable(str(value)) if isinstance(value, str | int | Decimal) else "-"


def part_of(value: object, *path: str) -> Mapping[str, Any]:
    """Return the object under a name in parsed JSON; an empty one if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def moved_text(effect: Mapping[str, Any]) -> str:
    """Say what an effect moves: `total +12.5, pending_deposit -12.5`."""
    moved = {field: text_of(amount) for field, amount in effect.items() if amount not in ("0", None)}
    return ", ".join(
        f"{printable(field)} {amount if amount.startswith('-') else f'+{amount}'}"
        for field, amount in moved.items()
    )


def about_text(data: Mapping[str, Any]) -> str:
    """Say what an event moves, or else what it is about."""
    if moved := moved_text(part_of(data, "effect")):
        return moved
    if threshold := part_of(data, "threshold"):
        bound = "below" if threshold.get("below") is not None else "above"
        return f"{text_of(threshold.get('field'))} is {bound} {text_of(threshold.get(bound))}"
    if isinstance(balances := data.get("balances"), list):
        return many(len(balances), "asset")
    reason = text_of(data["reason"]) if "reason" in data else ""
    return f"{text_of(data['paused'])} is paused: {reason}" if "paused" in data else reason


def backlog_text(line: Mapping[str, Any], deliveries: str) -> str:
    """Say what waits for a subscription (`deliveries` says how much) and what was given up."""
    waits = "nothing waits"
    if line["queues"]:
        oldest = "" if line["oldest_s"] is None else f", the oldest for {age_text(1000 * line['oldest_s'])}"
        waits = f"{deliveries} in {many(line['queues'], 'queue')}{oldest}"
    is_tried = line["retrying"] and not line["paused_at"]
    retrying = f"; {many(line['retrying'], 'queue')} being tried again" if is_tried else ""
    dead = f"; {many(line['dead'], 'dead letter')}" if line["dead"] else ""
    return f"{waits}{retrying}{dead}"


def rest_texts(line: Mapping[str, Any]) -> tuple[str, str]:
    """Say for how long a subscription is sent nothing, and how fast it is sent what waits; '' for neither."""
    wait_s, per_second = line["backing_off_s"], line["per_second"]
    return (
        f", backing off for {age_text(1000 * wait_s)}" if wait_s else "",
        f", {per_second:g} attempts a second at most" if per_second else "",
    )


def cell_of_sheet(text: str | None) -> str | None:
    """Keep text from outside from being run as a formula where the file is opened."""
    shown = text and printable(text)
    return f"'{shown}" if shown and shown.startswith(_FORMULA) else shown


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
