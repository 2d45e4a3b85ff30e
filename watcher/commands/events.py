"""`watcher events`: what was emitted, from the event log.

Refuses to show text from outside as it came: control characters are escaped.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

import click

from watcher.commands._shared import (
    accounts_option,
    in_a_loop,
    look_options,
    parse_since,
    refuse_unknown,
    since_option,
)
from watcher.commands._table import (
    Column,
    Display,
    Fails,
    about_text,
    as_they_come,
    display_options,
    known,
    part_of,
    say_json,
    say_next,
    text_of,
)
from watcher.durations import since_ms
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.journal.log import Record
    from watcher.store.opening import OpenStore

_COLUMNS = (
    Column("time", "whole", rank=2),
    Column("account"),
    Column("type", "whole"),
    Column("amount", "amount", rank=1),
    Column("asset"),
    Column("moved", rank=6, least=24),
    Column("sequence", "number", rank=5),
    Column("event", "whole", rank=3),
)
_FAILURES = ("subscription.paused", "account.stale")
"""Events that are red: what they are about does not go on by itself."""

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
        is_wanted = _any(type_, self.types) if self.types else "id" in record.content
        return is_wanted and (not self.accounts or _any(record.account, self.accounts))


@click.command("events", short_help="What was emitted, from the event log.")
@look_options
@accounts_option
@click.option("--type", "types", multiple=True, metavar="GLOB", help="Event types, such as 'deposit.*'.")
@since_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The N latest only.")
@click.option("-f", "--follow", "is_followed", is_flag=True, help="Keep printing new events.")
@display_options
@click.option("--json", "is_json", is_flag=True, help="One JSON object per event: the body, as it was sent.")
@in_a_loop
async def command(
    *,
    look: "Look",
    display: Display,
    accounts: tuple[str, ...],
    types: tuple[str, ...],
    since: str | None,
    limit: int | None,
    is_followed: bool,
    is_json: bool,
) -> None:
    """Show what was emitted, from the event log, oldest first.

    The log keeps the latest records that fit into an eighth of Redis' memory. `--type baseline` and
    `--type forgotten` show what else is in it: where balances start and end.

    \b
    Examples:
      watcher events --account treasury --since 2h
      watcher events --type 'deposit.*' --follow --json

    Exit codes: 0 done; 2 a usage error, or an unknown name; 69 Redis cannot be reached; 78 no
    configuration says where it is.
    """
    from watcher.settings import CHANGE_EVENTS, SERVICE_EVENTS
    from watcher.store.opening import open_to_look

    if is_followed and since is None and limit is None:
        limit = _BEFORE_FOLLOWING
    wanted = _Wanted(accounts, types, parse_since(since), limit)
    refuse_unknown("type of event", types, (*CHANGE_EVENTS, *SERVICE_EVENTS, "baseline", "forgotten"))
    if is_followed:
        await _refuse_unknown(look, wanted)
    is_any = False
    async with open_to_look(look.settings.redis) as store:
        with display.table(*_COLUMNS) as table:
            async for records in _records(store, wanted, is_followed=is_followed):
                if is_json:
                    for record in records:
                        owner = {} if "id" in record.content else {"account": record.account}
                        say_json({**owner, **record.content})
                else:
                    table.say([_cells(record, display) for record in records])
                is_any = is_any or bool(records)
    if not is_any:
        # An account that was removed may still be in the log: a name that is found there was not mistyped.
        await _refuse_unknown(look, wanted)
        if not is_json:
            click.echo("no such event in the log", err=True)
    about = f"watcher deliveries --account '{printable(accounts[0])}'" if accounts else ""
    say_next(about or "watcher audit, to prove that they add up")


async def _refuse_unknown(look: "Look", wanted: _Wanted) -> None:
    if wanted.accounts:
        refuse_unknown("account", wanted.accounts, (await known(look)).account_by_name)


async def _records(
    store: "OpenStore", wanted: _Wanted, *, is_followed: bool
) -> "AsyncIterator[list[Record]]":
    """Read the records there are, or the latest of them, in parts; with --follow then also those added, for
    ever."""
    from watcher.store.exceptions import StoreError
    from watcher.store.history import History
    from watcher.store.reader import Reader

    history = History(store.pipe, store.keys)
    start_ms = since_ms(wanted.since, await Reader(store.pipe, store.keys).now_ms())
    ends = await history.ends()
    is_limited = wanted.limit is not None
    read = history.in_order(ends, since_ms=start_ms, newest_first=is_limited)
    found = (record async for record in read if wanted.takes(record))
    if is_limited:
        latest: list[Record] = []
        async for record in found:
            latest.append(record)
            if len(latest) == wanted.limit:
                break
        yield latest[::-1]
    else:
        async for part in as_they_come(found):
            yield part
    is_away = False
    while is_followed:
        await asyncio.sleep(_LOOK_EVERY_S)
        try:
            records, ends = await history.after(ends)
        except StoreError as error:
            if not is_away:
                click.echo(f"watcher: {error} Waiting for it.", err=True)
            is_away = True
            continue
        is_away = False
        yield [*filter(wanted.takes, records)]


def _cells(record: "Record", display: Display) -> list[str]:
    content = record.content
    data = part_of(content, "data")
    asset = part_of(data, "asset")
    assets = content.get("assets")  # of a record that is no event
    about = about_text(data, display.amount)
    if isinstance(assets, dict | list):
        about = many(len(assets), "asset")
    if "by" in content:
        about += f", reset by {text_of(content['by'])}"
    type_ = text_of(content.get("type"))
    return [
        display.time(text_of(content.get("timestamp"))),
        printable(record.account),
        Fails(type_) if type_ in _FAILURES else type_,
        text_of(data.get("amount")) if asset else "",
        text_of(asset.get("symbol") or asset.get("id")) if asset else "",
        about,
        f"#{text_of(data.get('sequence', content.get('sequence')))}",
        text_of(content["id"]) if "id" in content else "",
    ]


def _any(text: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, glob) for glob in globs)
