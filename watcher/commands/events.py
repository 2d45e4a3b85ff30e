"""`watcher events`: what was emitted, from the event log.

Refuses to show text from outside as it came: control characters are escaped.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from watcher.commands._shared import (
    accounts_option,
    look_options,
    parse_since,
    refuse_unknown,
    since_ms,
    since_option,
)
from watcher.commands._table import known, moved_text, say_json, say_next
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.journal.log import Record
    from watcher.settings import RedisSettings
    from watcher.store.history import History

_LOOK_EVERY_S = 0.3
_BEFORE_FOLLOWING = 10
"""Events that --follow begins with, as `tail -f` begins with ten lines."""


class _Wanted(NamedTuple):
    """Which records to show. Without a type: all that are events, not the log's own bookkeeping."""

    accounts: tuple[str, ...]
    types: tuple[str, ...]
    since: datetime | timedelta | None
    limit: int | None

    def takes(self, record: "Record") -> bool:
        if not record.content:
            click.echo(
                f"watcher: record {record.id} cannot be read; `watcher audit` says what it affects", err=True
            )
            return False
        type_ = str(record.content.get("type"))
        # The log says once what `account.baseline` says, as its own record of a start.
        names = ("baseline", "account.baseline") if type_ == "baseline" else (type_,)
        is_wanted = any(_any(name, self.types) for name in names) if self.types else "id" in record.content
        return is_wanted and (not self.accounts or _any(record.account, self.accounts))


@click.command("events", short_help="What was emitted, from the event log.")
@look_options
@accounts_option
@click.option("--type", "types", multiple=True, metavar="GLOB", help="Event types, such as 'deposit.*'.")
@since_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The N latest only.")
@click.option("-f", "--follow", "is_followed", is_flag=True, help="Go on as more is emitted.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object per event: the body, as it was sent.")
def command(
    *,
    look: "Look",
    accounts: tuple[str, ...],
    types: tuple[str, ...],
    since: str | None,
    limit: int | None,
    is_followed: bool,
    is_json: bool,
) -> None:
    """What was emitted, from the event log, oldest first.

    The log keeps the last ten thousand records of each of its 16 parts. `--type baseline` and
    `--type forgotten` show what else is in it: where balances start and end.
    """
    if is_followed and since is None and limit is None:
        limit = _BEFORE_FOLLOWING
    wanted = _Wanted(accounts, types, parse_since(since), limit)
    if is_followed:
        _refuse_unknown(look, wanted)
    if not asyncio.run(_show(look.settings.redis, wanted, is_followed=is_followed, is_json=is_json)):
        # An account that is configured no more may still be in the log: what is found was not mistyped.
        _refuse_unknown(look, wanted)
        if not is_json:
            click.echo("no such event in the log", err=True)
    about = f"watcher deliveries --account '{printable(accounts[0])}'" if accounts else ""
    say_next(about or "watcher audit, to prove that they add up")


def _refuse_unknown(look: "Look", wanted: _Wanted) -> None:
    from watcher.settings import CHANGE_EVENTS, SERVICE_EVENTS

    if wanted.accounts:
        refuse_unknown("account", wanted.accounts, known(look).account_by_name)
    refuse_unknown("type of event", wanted.types, (*CHANGE_EVENTS, *SERVICE_EVENTS, "baseline", "forgotten"))


async def _show(settings: "RedisSettings", wanted: _Wanted, *, is_followed: bool, is_json: bool) -> bool:
    """Show what is wanted, and say whether there was any."""
    from watcher.store.history import History
    from watcher.store.opening import open_to_look
    from watcher.store.reader import Reader

    async with open_to_look(settings) as store:
        history = History(store.pipe, store.keys)
        start_ms = since_ms(wanted.since, await Reader(store.pipe, store.keys).now_ms())
        ends = await history.ends()
        is_any = False
        async for record in _past(history, ends, wanted, start_ms):
            _say(record, is_json=is_json)
            is_any = True
        if is_followed:
            async for record in _news(history, ends):
                if wanted.takes(record):
                    _say(record, is_json=is_json)
    return is_any


async def _past(
    history: "History", ends: "Sequence[str]", wanted: _Wanted, start_ms: int
) -> "AsyncIterator[Record]":
    """Read what is there already: all of it, or backwards until the limit is reached."""
    if wanted.limit is None:
        async for record in history.in_order(ends, since_ms=start_ms):
            if wanted.takes(record):
                yield record
        return
    latest: list[Record] = []
    async for record in history.in_order(ends, since_ms=start_ms, newest_first=True):
        if wanted.takes(record):
            latest.append(record)
        if len(latest) == wanted.limit:
            break
    for record in reversed(latest):
        yield record


async def _news(history: "History", ends: "Sequence[str]") -> "AsyncIterator[Record]":
    """Read what comes after `ends`, for ever; a server that is away is waited for."""
    from watcher.store.exceptions import StoreError

    is_away = False
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        try:
            records, ends = await history.after(ends)
        except StoreError as trouble:
            if not is_away:
                click.echo(f"watcher: {trouble} Waiting for it.", err=True)
            is_away = True
            continue
        is_away = False
        for record in records:
            yield record


def _say(record: "Record", *, is_json: bool) -> None:
    if is_json:
        owner = {} if "id" in record.content else {"account": record.account}
        say_json({**owner, **record.content})
    else:
        click.echo(_as_text(record))


def _as_text(record: "Record") -> str:
    content = record.content
    data = _part(content, "data")
    asset = _part(data, "asset")
    amount = f"{_text(data.get('amount'))} {_text(asset.get('symbol') or asset.get('id'))}" if asset else ""
    columns = [
        _text(content.get("timestamp")),
        f"{printable(record.account):<16}",
        f"{_text(content.get('type')):<20}",
        f"{amount:>20}",
        f"{moved_text(_part(data, 'effect')) or _note(content, data):<32}",
        f"#{_text(data.get('sequence', content.get('sequence')))}",
        _text(content["id"]) if "id" in content else "",
    ]
    return "  ".join(columns).rstrip()


def _note(content: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Say what an event is about that moves nothing."""
    if isinstance(assets := content.get("assets", data.get("balances")), dict | list):
        return many(len(assets), "asset")
    return _text(data.get("reason")) if "reason" in data else ""


def _any(text: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, glob) for glob in globs)


def _part(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = said.get(name)
    return part if isinstance(part, dict) else {}


def _text(value: object) -> str:
    return printable(str(value)) if isinstance(value, str | int) else "-"
