"""`watcher history`: the balances of an account over time, from the event log: as a table, as CSV, or drawn.

Refuses to show text from outside as it came: control characters are escaped.
"""

import csv
import io
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from watcher.commands._shared import (
    Unknown,
    in_a_loop,
    look_options,
    names_of,
    parse_since,
    since_option,
)
from watcher.commands._table import (
    Column,
    Display,
    as_they_come,
    cell_of_sheet,
    display_options,
    known,
    moved_text,
    say_next,
)
from watcher.durations import since_ms
from watcher.observe.tail import as_json
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
_HEIGHT, _WIDTH, _NARROWEST = 8, 100, 20
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_PARTS = 1000

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
@click.argument("named", nargs=-1, metavar="[ASSET]...")
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
    named: tuple[str, ...],
) -> None:
    """Show the balances of ACCOUNT over time: a line for each change that was emitted, and for each baseline.
    An ASSET after it is the same as with --asset.

    Read from the event log, which keeps the latest records that fit into an eighth of Redis' memory. A line
    shows the balances from that time on. With --since, the first line of an asset may say `start`: what was
    there when that time began.

    \b
    Examples:
      watcher history treasury --since 7d
      watcher history treasury --asset LRC --plot
      watcher history treasury --csv > treasury.csv

    Exit codes: 0 done; 2 a usage error, or an unknown name; 69 Redis cannot be reached; 78 no
    configuration says where it is.
    """
    from watcher.store.opening import open_to_look
    from watcher.store.reader import Reader

    if is_csv + is_json + is_plot > 1:
        raise click.UsageError("--csv, --json and --plot are three ways to write the same: choose one")
    assets = (*assets, *named)
    sought = {asset.lower() for asset in assets}
    there: dict[str, None] = {}
    curves: dict[str, Curve] = {}
    is_any, sheet = False, _Sheet()
    async with open_to_look(look.settings.redis) as store:
        now_ms = await Reader(store.pipe, store.keys).now_ms()
        start_ms = since_ms(parse_since(since), now_ms)
        with display.table(*_COLUMNS) as table:
            async for found in as_they_come(_rows(store, look, account, start_ms)):
                there.update((text, None) for row in found for text in _called(row))
                rows = [row for row in found if not sought or sought & {*map(str.lower, _called(row))}]
                is_any = is_any or bool(rows)
                if is_plot:
                    for row in rows:
                        if row["asset"] not in curves:
                            curves[row["asset"]] = Curve(field, since_ms=row["at_ms"], until_ms=now_ms)
                        curves[row["asset"]].add(row)
                elif is_json:
                    lines = (as_json({name: row[name] for name in _CSV_COLUMNS}) for row in rows)
                    click.echo("".join(f"{line}\n" for line in lines), nl=False)
                elif is_csv:
                    click.echo(sheet.text(rows), nl=False)
                else:
                    table.say([_cells(row, display) for row in rows])
    for asset in assets:
        if asset.lower() not in {text.lower() for text in there}:
            raise Unknown(f"asset of {printable(account)} in the log", asset, there)
    for curve in curves.values():
        click.echo("\n".join([*curve.lines(), ""]))
    if is_csv and not is_any:
        click.echo(sheet.text(()), nl=False)
    if not (is_any or is_json or is_csv):
        click.echo("the log holds nothing of it since then", err=True)
    say_next(f"watcher audit {printable(account)}, to prove that it adds up")


async def _rows(store: "OpenStore", look: "Look", account: str, start_ms: int) -> AsyncIterator[_Row]:
    """Read an account's balances from each change on; first, as `start`, those of each asset when the time
    asked for began."""
    from watcher.journal.events import amounts_of, iso
    from watcher.journal.log import Damaged, moments
    from watcher.store.history import History

    name_of = await _names(store, look, account)
    before: dict[str, Moment] = {}
    is_there = False

    async def row(moment: "Moment") -> _Row:
        is_start, at_ms = moment.at_ms < start_ms, max(moment.at_ms, start_ms)
        nothing: Mapping[str, Any] = dict.fromkeys(_FIELDS)
        held = amounts_of(moment.balance) if moment.balance else nothing
        return {
            "at_ms": at_ms,
            "timestamp": iso(at_ms),
            "account": account,
            "asset": moment.asset,
            "symbol": moment.symbol or await name_of(moment.asset),
            "event": "start" if is_start else moment.type,
            "sequence": moment.sequence,
            "effect": None if is_start else moment.effect,
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
            if moment.at_ms < start_ms:
                before[moment.asset] = moment
                continue
            for earlier in before.values():
                if earlier.balance:
                    yield await row(earlier)
            before.clear()
            yield await row(moment)
    for earlier in before.values():
        if earlier.balance:
            yield await row(earlier)
    names = () if is_there else (await known(look)).account_by_name
    if not is_there and account not in names:
        raise Unknown("account", account, names)


async def _names(store: "OpenStore", look: "Look", account: str) -> "Callable[[str], Awaitable[str | None]]":
    """Find the symbols that the account's provider gave to assets: a baseline does not have them."""
    from watcher.store.directory import BadRecord, Directory
    from watcher.store.state import UNKNOWN, Names

    names, provider = Names(store.pipe, store.keys), None
    if configured := look.settings.account_by_name.get(account):
        provider = configured.provider
    with suppress(BadRecord):
        if not configured and (record := await Directory(store.pipe, store.keys).get("account", account)):
            provider = str(record.plain.get("provider"))

    async def name_of(asset: str) -> str | None:
        called = (await names.of(provider, [asset])).get(asset, UNKNOWN) if provider else UNKNOWN
        return called[0]

    return name_of


def _called(row: _Row) -> list[str]:
    """Return the names by which an asset may be asked for."""
    return [text for text in (row["symbol"], row["asset"]) if text]


def _cells(row: _Row, display: Display) -> list[str]:
    amounts = ["-" if row[field] is None else row[field] for field in _FIELDS]
    moved, at = moved_text(row["effect"] or {}, display.amount), display.time(row["timestamp"])
    return [at, printable(row["symbol"] or row["asset"]), row["event"], *amounts, moved]


class _Sheet:
    """Rows as comma-separated text, in parts; the first part begins with the header."""

    def __init__(self) -> None:
        self._is_begun = False

    def text(self, rows: Iterable[_Row]) -> str:
        """Write rows; returns the text of these alone."""
        text = io.StringIO()
        writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n", extrasaction="ignore")
        if not self._is_begun:
            writer.writeheader()
        self._is_begun = True
        for row in rows:
            named = {name: cell_of_sheet(row[name]) for name in ("asset", "symbol")}
            writer.writerow({**row, **named})
        return text.getvalue()


class Curve:
    """A field of one asset over time: its value at the end of each thousandth of the time, so that a long log
    takes no more memory than a short one."""

    def __init__(self, field: str, *, since_ms: int, until_ms: int) -> None:
        self._field, self._since_ms, self._until_ms = field, since_ms, until_ms
        self._held: dict[int, tuple[int, str | None]] = {}
        self._least: tuple[int, str] | None = None
        self._most: tuple[int, str] | None = None
        self._name = self._last = ""

    @property
    def _span_ms(self) -> int:
        return max(1, self._until_ms - self._since_ms)

    def add(self, row: _Row) -> None:
        """Take its value from a later time on."""
        from watcher.amounts import to_atoms

        at_ms, text = row["at_ms"], row[self._field]
        self._held[_PARTS * (at_ms - self._since_ms) // self._span_ms] = at_ms, text
        self._name, self._last = printable(row["symbol"] or row["asset"]), text or "is not known"
        if text is not None:
            amount = to_atoms(text), text
            self._least = min(self._least or amount, amount)
            self._most = max(self._most or amount, amount)

    def lines(self) -> list[str]:
        """Draw it: a title, the curve beside its axis, and the time below. A column shows the value at the
        end of its time."""
        from watcher.amounts import to_atoms
        from watcher.journal.events import iso

        title = f"{self._name}  {self._field} {self._last}"
        if self._least is None or self._most is None:
            return [title]
        labels = [self._most[1], *[""] * (_HEIGHT - 2), self._least[1]]
        margin = max(map(len, labels))
        columns = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns) - margin - 3
        columns = max(_NARROWEST, columns)
        low = self._least[0]
        high = max(self._most[0] - low, 1)
        held = sorted(self._held.values(), key=itemgetter(0))
        levels, place = [], 0
        for column in range(1, columns + 1):
            end_ms = self._since_ms + self._span_ms * column // columns
            while place + 1 < len(held) and held[place + 1][0] <= end_ms:
                place += 1
            text = held[place][1]
            levels.append(None if text is None else 1 + (to_atoms(text) - low) * (8 * _HEIGHT - 1) // high)
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        is_fine = "utf" in encoding.lower()
        lines = [title]
        for line, label in enumerate(labels):
            floor = 8 * (_HEIGHT - 1 - line)
            filled = [0 if level is None else min(8, max(0, level - floor)) for level in levels]
            drawn = "".join(_EIGHTHS[part] if is_fine else "#" if part > 3 else " " for part in filled)
            axis = "┤" if is_fine else "|"
            lines.append(f"{label:>{margin}} {axis}{drawn.rstrip()}")
        begin, end = iso(self._since_ms)[:16] + "Z", iso(self._until_ms)[:16] + "Z"
        room = max(1, columns - len(begin) - len(end))
        lines.append(f"{'':>{margin}}  {begin}{'':>{room}}{end}")
        return lines
