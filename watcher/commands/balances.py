"""`watcher balances`: the last accepted balances, and what is not emitted of them yet."""

import csv
import io
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from watcher.commands._shared import in_a_loop, look_options, names_like, names_of
from watcher.commands._table import (
    Column,
    Display,
    Fails,
    Waits,
    age_text,
    cell_of_sheet,
    display_options,
    moved_text,
    opened,
    say_next,
)
from watcher.observe.tail import as_json
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.settings import Settings
    from watcher.store.reader import Reader

_ROWS_AT_ONCE = 500
_BALANCE = ("total", "locked", "available", "pending_deposit", "pending_withdrawal")
_COLUMNS = (
    Column("account"),
    Column("asset"),
    Column("total", "amount"),
    Column("locked", "amount", rank=4),
    Column("available", "amount", rank=2),
    Column("pending in", "amount", rank=3),
    Column("pending out", "amount", rank=3),
    Column("read", "whole", rank=5),
    Column("not emitted yet", "prose", rank=1, least=24),
)
_CSV_COLUMNS = (
    *("account", "provider", "asset", "symbol", "name", "decimals", *_BALANCE),
    *("pending_confirmation", "confirmation_polls", "suspect", "polled_at", "note"),
)
_NOT_READ = "not read yet"
_Row = dict[str, Any]


@click.command("balances", short_help="The last accepted balances.")
@look_options
@partial(display_options, has_times=False)
@click.option("--json", "is_json", is_flag=True, help="One JSON object per account and asset.")
@click.option("--csv", "is_csv", is_flag=True, help="Comma-separated, with a header.")
@click.argument("account", metavar="[ACCOUNT]", required=False, shell_complete=names_of("accounts"))
@in_a_loop
async def command(
    *, look: "Look", display: Display, is_json: bool, is_csv: bool, account: str | None
) -> None:
    """Show the last accepted balances: of every account, or of ACCOUNT (a name or glob).

    A change that is pending confirmation waits a few successful polls for its other half. A suspect change
    waits for a second poll; if a full listing suddenly names nothing, it waits for a minute. After that the
    change is emitted, or dropped if the polls do not confirm it.

    \b
    Examples:
      watcher balances
      watcher balances 'cold-*' --csv > balances.csv

    Exit codes: 0 done; 2 a usage error, or an unknown name; 69 Redis cannot be reached; 78 no
    configuration says where it is.
    """
    from watcher.store.reader import Reader

    if is_json and is_csv:
        raise click.UsageError("--json and --csv are two ways to write the same: choose one")
    sheet = _Sheet()
    async with opened(look) as (_, store, settings, *_):
        names = names_like("account of the configuration", settings.account_by_name, account)
        with display.table(*_COLUMNS) as table:
            async for rows in _rows(Reader(store.pipe, store.keys), settings, names):
                if is_json:  # an echo per row would flush as often
                    click.echo("".join(f"{as_json(row)}\n" for row in rows), nl=False)
                elif is_csv:
                    click.echo(sheet.text(rows), nl=False)
                else:
                    table.say([_cells(row, display) for row in rows])
    say_next(f"watcher events --account {names[0]}" if len(names) == 1 else "watcher events")


async def _rows(reader: "Reader", settings: "Settings", names: Sequence[str]) -> AsyncIterator[list[_Row]]:
    """Read one row per asset, as --json prints it, some hundred at once; the last part may be empty. An
    account without assets has one row that says why.
    """
    from watcher.journal.events import iso
    from watcher.observe.views import balance_line

    now_ms = await reader.now_ms()
    rows: list[_Row] = []
    provider_by_account = {name: settings.account_by_name[name].provider for name in names}
    async for seen in reader.read_states(provider_by_account):
        state = seen.state
        owner = {"account": seen.account, "provider": provider_by_account[seen.account]}
        if state is None or not state.polled_at_ms:
            rows.append({**owner, "note": seen.damage or _NOT_READ})
        else:
            age_s = max(0, now_ms - state.polled_at_ms) // 1000
            read: _Row = {"polled_at": iso(state.polled_at_ms), "age_s": age_s}
            if state.emptiness:
                read["note"] = f"the listing names nothing since {iso(state.emptiness.since_ms)}"
            lines = [balance_line(entry) for entry in state.suspected.values()]
            rows += [{**owner, **line, **read} for line in lines or [{"note": "holds nothing"}]]
        if len(rows) >= _ROWS_AT_ONCE:
            yield rows
            rows = []
    yield rows


def _cells(row: _Row, display: Display) -> list[str]:
    asset = row.get("asset")
    label = printable(asset["symbol"] or asset["id"]) if asset else "-"
    amounts = ["-" if row.get(field) is None else row[field] for field in _BALANCE]
    age = age_text(1000 * row["age_s"]) if "age_s" in row else "-"
    notes = []
    if pending := row.get("pending_confirmation"):
        polls = many(row["confirmation_polls"], "poll")
        notes.append(f"pending confirmation for {polls}: {moved_text(pending, display.amount)}")
    if suspect := row.get("suspect"):
        odd = ", ".join(
            f"{field} {display.amount(amount)}" for field, amount in suspect.items() if amount != row[field]
        )
        notes.append(f"suspect: {odd or 'what was accepted before'}")
    if note := row.get("note"):
        notes.append(printable(note))
    text = "; ".join(notes)
    is_damaged = "polled_at" not in row and note != _NOT_READ
    says = Fails(text) if is_damaged else Waits(text)
    return [row["account"], label, *amounts, age, says]


class _Sheet:
    """Rows as comma-separated text, in parts; the first part begins with the header."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        self._writer = csv.DictWriter(self._text, _CSV_COLUMNS, lineterminator="\n")
        self._writer.writeheader()

    def text(self, rows: Sequence[_Row]) -> str:
        """Write rows; returns the text of these alone."""
        for row in rows:
            asset = row.get("asset") or {}
            suspect = row.get("suspect") or {}
            kept = {name: value for name, value in row.items() if name in _CSV_COLUMNS}
            written = {
                "asset": cell_of_sheet(asset.get("id")),
                "symbol": cell_of_sheet(asset.get("symbol")),
                "name": cell_of_sheet(asset.get("name")),
                "decimals": asset.get("decimals"),
                "pending_confirmation": moved_text(row.get("pending_confirmation") or {}),
                "suspect": ", ".join(f"{field} {amount}" for field, amount in suspect.items()),
            }
            self._writer.writerow({**kept, **written})
        text = self._text.getvalue()
        self._text.seek(0)
        self._text.truncate()
        return text
