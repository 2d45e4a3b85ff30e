"""`watcher explain`: what events two answers of a provider would make.

Refuses to need anything but the two files: no configuration, no Redis, no network.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from watcher.commands._table import moved_text, say_json, say_next
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.preview import Kind, Round
    from watcher.providers.contract import Catalogue, Rejected
    from watcher.snapshot import Snapshot

_Line = dict[str, Any]


class _Unread(Exception):
    """A file that no poll would take."""

    def __init__(self, file: BinaryIO, refused: "Rejected") -> None:
        super().__init__(refused.reason)
        self.line = {
            "kind": "rejected",
            "file": Path(file.name).name,
            "error_class": refused.error_class,
            "reason": refused.reason,
        }


@click.command("explain", short_help="What events two answers would make.")
@click.argument("before", metavar="BEFORE.json", type=click.File("rb"))
@click.argument("after", metavar="AFTER.json", type=click.File("rb"))
@click.option(
    "--kind",
    type=click.Choice(["loopring", "metakeep"]),
    help="The provider; otherwise recognised by the shape of the answers.",
)
@click.option(
    "--withdrawals",
    type=click.Choice(["outside", "inside"]),
    default="outside",
    show_default=True,
    help="Whether a pending withdrawal has left `total` already.",
)
@click.option(
    "--settle-polls",
    type=click.IntRange(0, 100),
    default=2,
    show_default=True,
    help="Successful polls that half of a movement waits for its other half.",
)
@click.option(
    "--tokens", metavar="TOKENS.json", type=click.File("rb"), help="Loopring's list of tokens, for decimals."
)
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line, with its `kind`.")
def command(
    *,
    before: BinaryIO,
    after: BinaryIO,
    kind: "Kind | None",
    withdrawals: Any,
    settle_polls: int,
    tokens: BinaryIO | None,
    is_json: bool,
) -> int:
    """Say what events two answers of a provider would make: the bodies of two polls, one after the other.

    Says what is emitted at once, what is pending confirmation or suspect and why, and what becomes of it if
    further polls answer the same.

    \b
    Examples:
      watcher explain before.json after.json
      watcher explain before.json after.json --tokens tokens.json --settle-polls 0

    Exit codes: 0 done; 1 a poll would reject one of the files; 2 a usage error.
    """
    from watcher.journal.account import Rules
    from watcher.preview import preview

    try:
        snapshots = _snapshots(before, after, kind, tokens)
    except _Unread as unread:
        if is_json:
            say_json(unread.line)
        else:
            click.echo("{file} is rejected, {error_class}: {reason}".format_map(unread.line))
        return 1
    say_rounds(preview(*snapshots, Rules(withdrawals, settle_polls)), is_json=is_json)
    say_next("watcher schema events, for what an event says in full")
    return 0


def say_rounds(rounds: "Iterable[Round]", *, is_json: bool) -> None:
    """Print what polls emit and keep back, each once."""
    lines = _lines(rounds)
    for line in lines:
        if is_json:
            say_json(line)
            continue
        asset = printable(line["asset"]["symbol"] or line["asset"]["id"])
        if line["kind"] == "event":
            when = f"after {many(line['polls'], 'more poll')}" if line["polls"] else "at once"
            moved = moved_text(line["effect"])
            click.echo(f"{when:<22}{line['type']:<22}{line['amount']} {asset}  {moved}")
        else:
            pending = line.get("pending_confirmation")
            moved = f"  {moved_text(pending)}" if pending else ""
            fate = "starts anew" if line["kind"] == "baseline" else line["kind"].replace("_", " ")
            click.echo(f"{fate:<22}{asset}{moved}: {line['why']}")
    if not lines and not is_json:
        click.echo("nothing moved")


def _snapshots(
    before: BinaryIO, after: BinaryIO, kind: "Kind | None", tokens: BinaryIO | None
) -> "tuple[Snapshot, Snapshot]":
    """Read both files as polls of one account. Raises _Unread."""
    from watcher.preview import Reader, kind_of, parsed

    with _reading(before):
        first = parsed(before.read())
    with _reading(after):
        second = parsed(after.read())
    kind = kind or kind_of(first) or kind_of(second)
    if kind is None:
        raise click.UsageError("neither file looks like a provider's answer; if it is one, say --kind")
    reader = Reader(kind, (first, second))
    catalogue: Catalogue = {}
    if tokens:
        with _reading(tokens):
            catalogue = reader.read_catalogue(parsed(tokens.read()))
    with _reading(before):
        old = reader.read(first, catalogue)
    with _reading(after):
        new = reader.read(second, catalogue)
    if kind == "loopring" and not (old.row_by_asset.keys() | new.row_by_asset.keys()) <= catalogue.keys():
        click.echo("amounts are in the smallest unit of a token unless --tokens knows it", err=True)
    return old, new


@contextmanager
def _reading(file: BinaryIO) -> Iterator[None]:
    from watcher.providers.contract import Rejected

    try:
        yield
    except Rejected as refused:
        raise _Unread(file, refused) from None


def _lines(rounds: "Iterable[Round]") -> list[_Line]:
    """What the polls emit, as --json prints it, and once each what they keep back, and why."""
    from watcher.journal.events import drafts_of
    from watcher.journal.explain import in_atoms, in_text

    lines: list[_Line] = []
    for polls, step in rounds:
        for draft in drafts_of(step.moved):
            about = {"type": draft.type, "asset": draft.asset and draft.asset._asdict()}
            lines.append({"kind": "event", "polls": polls, **about, "amount": draft.amount, **draft.says})
        said = [{**line, "polls": 0} for line in lines]
        assets = {asset_id: entry.asset._asdict() for asset_id, entry in step.entry_by_asset.items()}
        waiting: list[_Line] = [
            {"kind": "baseline", "asset": assets[asset_id], "why": why}
            for asset_id, why in step.baselined.items()
        ]
        for asset_id, reasons in step.pending_confirmation.items():
            entry = step.entry_by_asset[asset_id]
            pending = in_text(in_atoms(entry.seen) - in_atoms(entry.published), entry.seen)._asdict()
            about = {"asset": assets[asset_id], "pending_confirmation": pending}
            waiting.append({"kind": "pending_confirmation", **about, "why": "; ".join(reasons)})
        waiting += [
            {"kind": "suspect", "asset": assets[asset_id], "why": reason}
            for asset_id, reason in step.suspect.items()
        ]
        lines += [{"polls": polls, **line} for line in waiting if {**line, "polls": 0} not in said]
    return lines
