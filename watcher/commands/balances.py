"""`watcher balances`: the last accepted balances, and what is not emitted of them yet."""

import asyncio
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from watcher.commands._shared import look_options, names_like, names_of
from watcher.commands._table import Columns, age_text, known, moved_text, say_next
from watcher.observe.tail import as_json
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.settings import Settings
    from watcher.store.reader import Seen

_ROWS_AT_ONCE = 500
_BALANCE = ("total", "locked", "available", "pending_deposit", "pending_withdrawal")
_COLUMNS = ("account", "asset", *_BALANCE, "read", "not emitted yet")
_CSV_COLUMNS = (
    *("account", "provider", "asset", "symbol", "name", "decimals", *_BALANCE),
    *("held", "held_polls", "suspect", "polled_at", "note"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""

_Row = dict[str, Any]
_Say = Callable[[Sequence[_Row]], None]


@click.command("balances", short_help="The last accepted balances.")
@look_options
@click.option("--json", "is_json", is_flag=True, help="One JSON object per account and asset.")
@click.option("--csv", "is_csv", is_flag=True, help="Comma-separated, with a header.")
@click.argument("account", metavar="[ACCOUNT]", required=False, shell_complete=names_of("accounts"))
def command(*, look: "Look", is_json: bool, is_csv: bool, account: str | None) -> None:
    """The last accepted balances: of every account, or of ACCOUNT (a name or glob).

    What is held waits for its other half for a few good polls; what is suspect waits for a second opinion.
    Both are told then, or turn out to be nothing.
    """
    if is_json and is_csv:
        raise click.UsageError("--json and --csv are two ways to write the same: choose one")
    settings = known(look)
    names = names_like("account of the configuration", settings.account_by_name, account)
    say = _say_json if is_json else _csv_sayer() if is_csv else _text_sayer()
    asyncio.run(_show(settings, names, say))
    say_next(f"watcher events --account {names[0]}" if len(names) == 1 else "watcher events")


async def _show(settings: "Settings", names: Sequence[str], say: _Say) -> None:
    from watcher.store.opening import open_to_look
    from watcher.store.reader import Reader

    async with open_to_look(settings.redis) as store:
        reader = Reader(store.pipe, store.keys)
        now_ms = await reader.now_ms()
        rows: list[_Row] = []
        async for seen in reader.read_states(names):
            rows += _rows(seen, settings.account_by_name[seen.account].provider, now_ms)
            if len(rows) >= _ROWS_AT_ONCE:
                say(rows)
                rows = []
        say(rows)


def _rows(seen: "Seen", provider: str, now_ms: int) -> Iterator[_Row]:
    """One row per asset, as --json prints it; an account without any has one row that says why."""
    from watcher.journal.events import iso
    from watcher.observe.views import balance_line

    owner = {"account": seen.account, "provider": provider}
    state = seen.state
    if state is None or not state.polled_at_ms:
        yield {**owner, "note": seen.damage or "not read yet"}
        return
    read = {"polled_at": iso(state.polled_at_ms), "age_s": max(0, now_ms - state.polled_at_ms) // 1000}
    if not state.entry_by_asset:
        yield {**owner, "note": "holds nothing", **read}
    for entry in state.entry_by_asset.values():
        yield {**owner, **balance_line(entry), **read}


def _say_json(rows: Sequence[_Row]) -> None:
    if rows:
        click.echo("\n".join(map(as_json, rows)))  # an echo per row would flush as often


def _text_sayer() -> _Say:
    columns = Columns(*_COLUMNS, numbers=range(2, 8))
    return lambda rows: columns.say([_cells(row) for row in rows])


def _cells(row: _Row) -> list[str]:
    asset = row.get("asset")
    label = printable(asset["symbol"] or asset["id"]) if asset else "-"
    age = age_text(1000 * row["age_s"]) if "age_s" in row else "-"
    amounts = ["-" if row.get(field) is None else row[field] for field in _BALANCE]
    return [row["account"], label, *amounts, age, "; ".join(_notes(row))]


def _notes(row: _Row) -> Iterator[str]:
    if held := row.get("held"):
        polls = row["held_polls"]
        yield f"held for {many(polls, 'poll')}: {moved_text(held)}"
    if suspect := row.get("suspect"):
        odd = ", ".join(f"{field} {amount}" for field, amount in suspect.items() if amount != row[field])
        yield f"suspect: {odd or 'what was accepted before'}"
    if note := row.get("note"):
        yield printable(note)


def _csv_sayer() -> _Say:
    is_first = True

    def say(rows: Sequence[_Row]) -> None:
        nonlocal is_first
        text = io.StringIO()
        writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n")
        if is_first:
            writer.writeheader()
            is_first = False
        writer.writerows(map(_csv_row, rows))
        click.echo(text.getvalue(), nl=False)

    return say


def _csv_row(row: _Row) -> _Row:
    asset = row.get("asset") or {}
    kept = {name: value for name, value in row.items() if name in _CSV_COLUMNS}
    spoken = {name: _cell(asset.get(name)) for name in ("symbol", "name")}
    return {
        **kept,
        **spoken,
        "asset": _cell(asset.get("id")),
        "decimals": asset.get("decimals"),
        "held": moved_text(row.get("held") or {}),
        "suspect": ", ".join(f"{field} {amount}" for field, amount in (row.get("suspect") or {}).items()),
    }


def _cell(text: str | None) -> str | None:
    """Keep text from outside from being run as a formula where the file is opened."""
    shown = text and printable(text)
    return f"'{shown}" if shown and shown.startswith(_FORMULA) else shown
