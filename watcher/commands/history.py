"""`watcher history`: what an account held over time, from the event log: as a table, as CSV, or drawn.

Refuses to show text from outside as it came: control characters are escaped.
"""

import csv
import io
import shutil
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from watcher.commands._shared import (
    Unknown,
    in_a_loop,
    look_options,
    names_of,
    parse_since,
    since_ms,
    since_option,
)
from watcher.commands._table import (
    Column,
    Display,
    cell_of_sheet,
    display_options,
    known,
    moved_text,
    say_json,
    say_next,
)
from watcher.printable import printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.journal.log import Moment
    from watcher.store.opening import OpenStore

_FIELDS = ("total", "locked", "available", "pending_deposit", "pending_withdrawal")
_COLUMNS = (
    Column("time", "whole", rank=1),
    Column("asset"),
    Column("event", "whole", rank=2),
    Column("total", "amount"),
    Column("locked", "amount", rank=5),
    Column("available", "amount", rank=3),
    Column("pending in", "amount", rank=6),
    Column("pending out", "amount", rank=6),
    Column("moved", rank=6, least=24),
)
_CSV_COLUMNS = ("timestamp", "account", "asset", "symbol", "event", "sequence", *_FIELDS)
_ROWS_AT_ONCE = 500
_HEIGHT, _WIDTH, _NARROWEST = 8, 100, 20
_EIGHTHS = " ▁▂▃▄▅▆▇█"

_Row = dict[str, Any]


@click.command("history", short_help="A balance over time, from the event log.")
@look_options
@click.option("--asset", "assets", multiple=True, metavar="ASSET", help="Symbol or id; default: all.")
@since_option
@display_options
@click.option("--csv", "is_csv", is_flag=True, help="Comma-separated, with a header; exact amounts.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object per change; exact amounts.")
@click.option("--plot", "is_plot", is_flag=True, help="Draw each asset over time.")
@click.option(
    "--field", type=click.Choice(_FIELDS), default="total", show_default=True, help="What --plot draws."
)
@click.argument("account", metavar="ACCOUNT", shell_complete=names_of("accounts"))
@in_a_loop
async def command(
    *,
    look: "Look",
    display: Display,
    assets: tuple[str, ...],
    since: str | None,
    is_csv: bool,
    is_json: bool,
    is_plot: bool,
    field: str,
    account: str,
) -> None:
    """Show what ACCOUNT held over time: a line for each change that was emitted, and for each start.

    Read from the event log, which keeps the latest records that fit into an eighth of Redis' memory. A line
    says what the account held from that time on.

    \b
    Examples:
      watcher history treasury --since 7d
      watcher history treasury --asset LRC --plot
      watcher history treasury --csv > treasury.csv

    Exit codes: 0 done; 2 a mistake of use, or an unknown name; 69 Redis cannot be reached; 78 no
    configuration says where it is.
    """
    from watcher.store.opening import open_to_look
    from watcher.store.reader import Reader

    if is_csv + is_json + is_plot > 1:
        raise click.UsageError("--csv, --json and --plot are three ways to write the same: choose one")
    async with open_to_look(look.settings.redis) as store:
        now_ms = await Reader(store.pipe, store.keys).now_ms()
        start_ms = since_ms(parse_since(since), now_ms)
        rows = [row async for row in _rows(store, look, account, start_ms)]
    there = {text: None for row in rows for text in (row["symbol"], row["asset"]) if text}
    for asset in assets:
        if asset.lower() not in {text.lower() for text in there}:
            raise Unknown(f"asset of {printable(account)} in the log", asset, there)
    wanted = {asset.lower() for asset in assets}
    rows = [
        row
        for row in rows
        if not wanted or row["asset"].lower() in wanted or (row["symbol"] or "").lower() in wanted
    ]
    if is_plot:
        for lines in _plots(rows, field, until_ms=now_ms):
            click.echo("\n".join(lines))
    elif is_json:
        for row in rows:
            say_json({name: row[name] for name in _CSV_COLUMNS})
    elif is_csv:
        click.echo(_sheet(rows), nl=False)
    else:
        with display.table(*_COLUMNS) as table:
            for begin in range(0, len(rows), _ROWS_AT_ONCE):
                table.say([_cells(row, display) for row in rows[begin : begin + _ROWS_AT_ONCE]])
    if not (rows or is_json or is_csv):
        click.echo("the log holds nothing of it since then", err=True)
    say_next(f"watcher audit {printable(account)}, to prove that it adds up")


async def _rows(store: "OpenStore", look: "Look", account: str, start_ms: int) -> AsyncIterator[_Row]:
    """Read what an account held from each change on; of each asset first what it held when the time asked for
    began."""
    from watcher.amounts import Conversions
    from watcher.journal.events import amounts_of, iso
    from watcher.journal.log import Damaged, moments
    from watcher.store.history import History

    symbols: dict[str, str | None] = {}
    before: dict[str, Moment] = {}
    conversions, is_there = Conversions(), False

    def row(moment: "Moment", *, at_ms: int) -> _Row:
        nothing: Mapping[str, Any] = dict.fromkeys(_FIELDS)
        held = amounts_of(moment.balance, conversions) if moment.balance else nothing
        return {
            "at_ms": at_ms,
            "timestamp": iso(at_ms),
            "account": account,
            "asset": moment.asset,
            "symbol": moment.symbol or symbols.get(moment.asset),
            "event": moment.type,
            "sequence": moment.sequence,
            "effect": moment.effect,
            **held,
        }

    async for record in History(store.pipe, store.keys).records(account):
        is_there = True
        try:
            found = moments(record)
        except Damaged:
            click.echo(
                f"watcher: record {record.id} cannot be read; `watcher audit` says what it affects", err=True
            )
            continue
        for moment in found:
            symbols[moment.asset] = moment.symbol or symbols.get(moment.asset)
            if moment.at_ms < start_ms:
                before[moment.asset] = moment
                continue
            if earlier := before.pop(moment.asset, None):
                yield row(earlier, at_ms=start_ms)
            yield row(moment, at_ms=moment.at_ms)
    for earlier in before.values():
        if earlier.balance:
            yield row(earlier, at_ms=start_ms)
    names = (await known(look)).account_by_name
    if not is_there and account not in names:
        raise Unknown("account", account, names)


def _cells(row: _Row, display: Display) -> list[str]:
    amounts = ["-" if row[field] is None else row[field] for field in _FIELDS]
    moved, at = moved_text(row["effect"] or {}, display.amount), display.time(row["timestamp"])
    return [at, printable(row["symbol"] or row["asset"]), row["event"], *amounts, moved]


def _sheet(rows: Iterable[_Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        named = {name: cell_of_sheet(row[name]) for name in ("asset", "symbol")}
        writer.writerow({**row, **named})
    return text.getvalue()


def _plots(rows: Sequence[_Row], field: str, *, until_ms: int) -> "Iterable[list[str]]":
    """Draw each asset: what it held at the end of each column's time, between its least and its most."""
    by_asset: dict[str, list[_Row]] = {}
    for row in rows:
        by_asset.setdefault(row["asset"], []).append(row)
    for steps in by_asset.values():
        yield [*plot(steps, field, until_ms=until_ms), ""]


def plot(steps: Sequence[_Row], field: str, *, until_ms: int) -> list[str]:
    """Draw one asset's steps as lines of text: a title, the curve beside its axis, and the time below."""
    from watcher.amounts import to_atoms
    from watcher.journal.events import iso

    name = printable(steps[0]["symbol"] or steps[0]["asset"])
    held = [(row["at_ms"], row[field]) for row in steps]
    amounts = {text: to_atoms(text) for _, text in held if text is not None}
    title = f"{name}  {field} {held[-1][1] or 'is not known'}"
    if not amounts:
        return [title]
    least, most = min(amounts, key=amounts.__getitem__), max(amounts, key=amounts.__getitem__)
    labels = [most, *[""] * (_HEIGHT - 2), least]
    margin = max(map(len, labels))
    columns = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns) - margin - 3
    columns = max(_NARROWEST, columns)
    since_ms = held[0][0]
    span_ms, low = max(1, until_ms - since_ms), amounts[least]
    high = max(amounts[most] - low, 1)
    levels, place = [], 0
    for column in range(1, columns + 1):
        end_ms = since_ms + span_ms * column // columns
        while place + 1 < len(held) and held[place + 1][0] <= end_ms:
            place += 1
        text = held[place][1]
        levels.append(None if text is None else 1 + (amounts[text] - low) * (8 * _HEIGHT - 1) // high)
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    is_fine = "utf" in encoding.lower()
    lines = [title]
    for line, label in enumerate(labels):
        floor = 8 * (_HEIGHT - 1 - line)
        filled = [0 if level is None else min(8, max(0, level - floor)) for level in levels]
        drawn = "".join(_EIGHTHS[part] if is_fine else "#" if part > 3 else " " for part in filled)
        axis = "┤" if is_fine else "|"
        lines.append(f"{label:>{margin}} {axis}{drawn.rstrip()}")
    begin, end = iso(since_ms)[:16] + "Z", iso(until_ms)[:16] + "Z"
    room = max(1, columns - len(begin) - len(end))
    lines.append(f"{'':>{margin}}  {begin}{'':>{room}}{end}")
    return lines
