"""What the commands that look share: which accounts, how amounts, ages and rows are shown, and the next
command.

Refuses to show text from outside as it came: control characters are escaped.
"""

import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import wraps
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar
from unicodedata import category, east_asian_width

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

T = TypeVar("T")

UNKNOWN_INTERVAL = timedelta(days=366)
"""The interval of an account that only Redis knows: it counts as stale if its workers have emitted that."""

_WIDEST = 40
"""Characters that a column is padded to at most: one uint256 must not push all other rows apart."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters that a spreadsheet takes for the beginning of a formula."""


class NoKey(click.ClickException):
    """What came through the API is encrypted, and there is no key here that decrypts it."""

    exit_code = 78


class Opened(NamedTuple):
    """Redis, and what Redis and the configuration know. `records` are those of the API, by kind and name: if
    the configuration has the name as well, the configuration counts. `subscriptions` has the states of their
    records."""

    look: "Look"
    store: "OpenStore"
    settings: "Settings"
    records: "Mapping[tuple[Kind, str], Record]"
    subscriptions: "Mapping[str, Known]"

    def origin(self, kind: "Kind", name: str) -> Literal["file", "api", "redis"]:
        """Say where a name comes from; beside a broken file, perhaps only Redis knows it."""
        file = self.look.settings
        if name in (file.account_by_name if kind == "account" else file.subscription_by_name):
            return "file"
        return "api" if (kind, name) in self.records else "redis"

    @property
    def targets(self) -> "dict[str, SubscriptionSettings]":
        """The subscriptions whose settings are known: not those that are encrypted with another key."""
        named = self.settings.subscription_by_name
        return {name: one for name, one in named.items() if one.url.get_secret_value()}

    def target(self, name: str) -> "SubscriptionSettings":
        """Find a subscription whose settings are known. Raises Unknown, and NoKey."""
        if name in (targets := self.targets):
            return targets[name]
        if known := self.subscriptions.get(name):
            raise NoKey(f"subscription {name} came through the API: {known.reason}")
        raise Unknown("subscription", name, self.settings.subscription_by_name)


@asynccontextmanager
async def opened(look: "Look") -> AsyncIterator[Opened]:
    """Open Redis to look at it, and add the names of what came through the API to the configuration; if that
    is incomplete, also the accounts that Redis knows."""
    from pydantic import SecretStr

    from watcher.settings import AccountSettings, SubscriptionSettings
    from watcher.store.directory import Directory
    from watcher.store.keys import SHARDS
    from watcher.store.opening import open_to_look
    from watcher.store.reader import Reader

    async with open_to_look(look.settings.redis) as store:
        records: dict[tuple[Kind, str], Record] = {}
        directory = Directory(store.pipe, store.keys)
        if any((await directory.counts()).values()):
            with Progress("reading", SHARDS) as progress:
                async for held in directory.read_all():
                    records.update(((record.kind, record.name), record) for record in held.records)
                    progress.done()
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


_ROWS_AT_ONCE, _WITHIN_S = 500, 0.5


async def as_they_come(rows: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    """Gather what is read into parts to be printed together: of some hundred rows, or of half a second."""
    part: list[T] = []
    begun = time.monotonic()
    async for row in rows:
        part.append(row)
        if len(part) == _ROWS_AT_ONCE or time.monotonic() - begun > _WITHIN_S:
            yield part
            part, begun = [], time.monotonic()
    if part:
        yield part


def say_next(text: str) -> None:
    """Print the next useful command for people; programs need no advice."""
    if sys.stderr.isatty():
        click.echo(f"next: {text}", err=True)


async def say_if_idle(store: "OpenStore", what: str) -> None:
    """If no worker runs, say so on stderr, and say what waits for one."""
    from watcher.store.members import Workers
    from watcher.store.reader import Reader

    now_ms = await Reader(store.pipe, store.keys).now_ms()
    if not any(one.is_there(now_ms) for one in await Workers(store.pipe, store.keys).read()):
        click.echo(f"watcher: no worker runs: {what} once one is started", err=True)


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


def moved_text(effect: Mapping[str, Any], shorten: Callable[[str], str] = str) -> str:
    """Write what an effect moves: `total +12.5, pending_deposit -12.5`."""
    moved = {field: shorten(text_of(amount)) for field, amount in effect.items() if amount not in ("0", None)}
    return ", ".join(
        f"{printable(field)} {amount if amount.startswith('-') else f'+{amount}'}"
        for field, amount in moved.items()
    )


def about_text(data: Mapping[str, Any], shorten: Callable[[str], str] = str) -> str:
    """Write what an event moves, or else what it is about."""
    if moved := moved_text(part_of(data, "effect"), shorten):
        return moved
    if threshold := part_of(data, "threshold"):
        bound = "below" if threshold.get("below") is not None else "above"
        return f"{text_of(threshold.get('field'))} is {bound} {text_of(threshold.get(bound))}"
    if isinstance(balances := data.get("balances"), list):
        return many(len(balances), "asset")
    reason = text_of(data["reason"]) if "reason" in data else ""
    return f"{text_of(data['paused'])} is paused: {reason}" if "paused" in data else reason


def backlog_text(line: Mapping[str, Any], deliveries: str) -> str:
    """Write what waits for a subscription (`deliveries` says how much) and how many dead letters it has."""
    waits = "nothing waits"
    if line["queues"]:
        oldest = "" if line["oldest_s"] is None else f", the oldest for {age_text(1000 * line['oldest_s'])}"
        waits = f"{deliveries} in {many(line['queues'], 'queue')}{oldest}"
    is_tried = line["retrying"] and not line["paused_at"]
    retrying = f"; {many(line['retrying'], 'queue')} being tried again" if is_tried else ""
    dead = f"; {many(line['dead'], 'dead letter')}" if line["dead"] else ""
    return f"{waits}{retrying}{dead}"


def rest_texts(line: Mapping[str, Any]) -> tuple[str, str]:
    """Write for how long a subscription is sent nothing, and how fast its backlog is sent; '' for neither."""
    wait_s, per_second = line["backing_off_s"], line["per_second"]
    return (
        f", backing off for {age_text(1000 * wait_s)}" if wait_s else "",
        f", {per_second:g} attempts a second at most" if per_second else "",
    )


def cell_of_sheet(text: str | None) -> str | None:
    """Keep text from outside from being run as a formula by a spreadsheet."""
    shown = text and printable(text)
    return f"'{shown}" if shown and shown.startswith(_FORMULA) else shown


_MOST_DECIMALS, _LONGEST_AMOUNT = 8, 31
"""Of an amount for the eye: its significant decimals, and its characters in all."""

_NOTHING = {"", "-"}
_GAP = "  "


_SHOWN_AFTER_S, _DRAW_EVERY_S = 1.0, 0.1


class Fails(str):
    """A cell about a failure: red on a terminal. Its words say so as well."""

    __slots__ = ()


class Waits(str):
    """A cell about something that waits or is uncertain: yellow on a terminal. Its words say so as well."""

    __slots__ = ()


IN_STATE: Mapping[str, type[str]] = {
    "paused": Fails,
    "failing": Fails,
    "backing off": Waits,
    "delayed": Waits,
    "unverified": Waits,
}
"""How the states of a subscription are shown."""

_COLOR_BY_TYPE: Mapping[type, str] = {Fails: "red", Waits: "yellow"}


def width_of(text: str) -> int:
    """Count the columns of a terminal that a text takes: two for most of East Asia and for emoji, none for
    marks upon other characters."""
    if text.isascii():
        return len(text)
    return sum(0 if category(one) in ("Mn", "Me") else 1 + (east_asian_width(one) in "WF") for one in text)


def cut(text: str, width: int) -> str:
    """Cut a text to so many columns; then it ends with …."""
    if width_of(text) <= width:
        return text
    return _head(text, width - 1) + "…"


def _head(text: str, width: int) -> str:
    ends = accumulate(map(width_of, text))
    return text[: sum(1 for _ in takewhile(lambda end: end <= width, ends))]


def amount_text(text: str, width: int = _LONGEST_AMOUNT) -> str:
    """Cut an amount for the eye: to eight significant decimals, or fewer if the width takes no more.

    It is never rounded, and has … where digits are left out; a huge or tiny one becomes `1.2345…e30`.
    """
    if len(text) <= min(width, _MOST_DECIMALS + 1):
        return text
    if not text.isascii():
        return cut(text, width)
    whole, _, decimals = text.partition(".")
    zeros = 0 if whole.strip("+-0") else len(decimals) - len(decimals.lstrip("0"))
    for most in range(_MOST_DECIMALS, 0, -1):
        kept = decimals[: zeros + most]
        shown = f"{whole}.{kept}…" if len(kept) < len(decimals) else text
        if len(shown) <= width:
            return shown
    sign, digits = whole[: len(whole) - len(whole.lstrip("+-"))], whole.lstrip("+-0")
    power = len(digits) - 1 if digits else -zeros - 1
    digits = (digits + decimals if digits else decimals.lstrip("0")).rstrip("0")
    if not digits.isdigit():
        return cut(text, width)
    tail = f"e{power}"
    room = max(0, min(width - len(f"{sign}1.…{tail}"), _MOST_DECIMALS))
    more = "" if len(digits) <= 1 + room else "…"
    return f"{sign}{digits[0]}{'.' if digits[1 : 1 + room] else ''}{digits[1 : 1 + room]}{more}{tail}"


class Column(NamedTuple):
    """A text that may be cut; a `whole` text that is not; a number; an amount; or, last, prose that wraps. If
    the terminal is too narrow, texts are cut, to `least` columns; then columns are left out, but none of rank
    0: first those that hold nothing, then those with the highest `rank`."""

    title: str
    kind: Literal["text", "whole", "number", "amount", "prose"] = "text"
    rank: int = 0
    least: int = 8

    @property
    def is_right(self) -> bool:
        return self.kind in ("number", "amount")

    def needs(self, cells: Sequence[str]) -> int:
        """The width below which the cells say too little. The title of a column that is not cut is not cut
        either."""
        if self.kind in ("whole", "number"):
            return max(map(width_of, (self.title, *cells)))
        if self.kind == "amount":
            return max(len(self.title), *(len(amount_text(cell, self.least + 2)) for cell in cells))
        return min(self.least, max(map(width_of, (self.title, *cells))))


class Table:
    """Rows in columns that fit a `width`, if there is one, and only ever become wider, so that a long list
    can be printed in parts. The first part decides which columns fit; what is left out is named at the end.
    If it `is_wide`, nothing is cut."""

    def __init__(self, *columns: Column, width: int | None = None, is_wide: bool = False) -> None:
        self._columns, self._width, self._is_wide = columns, width, is_wide
        self._places = [*range(len(columns))]
        self._widths: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        left_out = [one.title for i, one in enumerate(self._columns) if i not in self._places]
        if left_out and error[0] is None:
            click.echo(f"no room for {', '.join(left_out)}: --wide shows all", err=True)

    def say(self, rows: Sequence[Sequence[str]]) -> None:
        """Print rows, the first time with the header above them."""
        if not rows:
            return
        lines: list[str] = []
        if not self._widths:
            self._choose(rows)
            self._widen(rows)
            lines += self._lines([one.title for one in self._columns])
        else:
            self._widen(rows)
        for row in rows:
            lines += self._lines(row)
        click.echo("\n".join(lines))

    def _choose(self, rows: Sequence[Sequence[str]]) -> None:
        """Leave columns out until the others fit."""
        cells = [*zip(*rows, strict=True)]
        leasts = [one.needs(cells[i]) for i, one in enumerate(self._columns)]
        self._widths = [width_of(one.title) if one.kind != "text" else 1 for one in self._columns]
        if self._width is None:
            return
        while self._sum(leasts) > self._width:
            places = [i for i in self._places if self._columns[i].rank]
            if not places:
                break
            empty = [i for i in places if not {*cells[i]} - _NOTHING]
            self._places.remove(max(empty or places, key=lambda i: (self._columns[i].rank, i)))
        for i in sorted(self._places, key=leasts.__getitem__, reverse=True):  # no more can be left out
            if self._columns[i].kind != "whole":
                leasts[i] = max(4, leasts[i] - max(0, self._sum(leasts) - self._width))
        self._widths = leasts

    def _widen(self, rows: Sequence[Sequence[str]]) -> None:
        """Give each column what its cells need, as far as the width allows; the narrowest needs first."""
        needs = {}
        for i in self._places:
            column = self._columns[i]
            cells = [self._shown(row[i], column) for row in rows] + [column.title]
            needs[i] = max(map(width_of, cells))
        for i in sorted(needs, key=needs.__getitem__):
            more = max(0, needs[i] - self._widths[i])
            if self._width is None:  # but one cell of many digits must not push all other rows apart
                self._widths[i] = max(self._widths[i], min(needs[i], _WIDEST))
            else:
                self._widths[i] += min(more, max(0, self._width - self._sum(self._widths)))

    def _sum(self, widths: Sequence[int]) -> int:
        total: int = sum(widths[i] for i in self._places)
        return total + len(_GAP) * (len(self._places) - 1)

    def _shown(self, cell: str, column: Column) -> str:
        return amount_text(cell) if column.kind == "amount" and not self._is_wide else cell

    def _lines(self, row: Sequence[str]) -> list[str]:
        """Write a row: one line, or more if its prose has to be wrapped."""
        cells, more = [], []
        for i in self._places:
            column, cell, width = self._columns[i], row[i], self._widths[i]
            text = self._shown(cell, column)
            if self._width is not None and not self._is_wide:
                if column.kind == "prose":
                    text, *more = wrapped(text, width)
                elif column.kind == "amount" and text != column.title:
                    text = amount_text(text, width)
                elif column.kind in ("text", "amount"):
                    text = cut(text, width)
            pad = " " * max(0, width - width_of(text))
            shown = colored(text, cell)
            is_last = i == self._places[-1]
            cells.append(f"{pad}{shown}" if column.is_right else shown if is_last else f"{shown}{pad}")
        margin = " " * (self._sum(self._widths) - self._widths[self._places[-1]])
        return [_GAP.join(cells).rstrip(), *(f"{margin}{line}" for line in more)]


def colored(text: str, cell: str) -> str:
    """Write a text in the colour of its cell."""
    color = _COLOR_BY_TYPE.get(type(cell))
    return click.style(text, fg=color) if color else text


def wrapped(text: str, width: int) -> list[str]:
    """Break a text into lines of so many columns of a terminal, between words if possible."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and width_of(lines[-1]) + 1 + width_of(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
        while width_of(lines[-1]) > width:
            head = _head(lines[-1], width) or lines[-1][0]
            lines[-1:] = [head, lines[-1][len(head) :]]
    return lines


class Display(NamedTuple):
    """How people want to see it: with nothing cut or left out, and with this machine's times."""

    is_wide: bool = False
    is_local: bool = False

    def table(self, *columns: Column) -> Table:
        return Table(*columns, width=None if self.is_wide else terminal_width(), is_wide=self.is_wide)

    def say(self, text: str, *, margin: int) -> None:
        """Print a line that is no row: wrapped to the terminal, indented below where its text begins."""
        width = None if self.is_wide else terminal_width()
        indent = max(margin, len(text) - len(text.lstrip()))
        first, *rest = [text[indent:]] if width is None else wrapped(text[indent:], max(20, width - indent))
        lines = [text[:indent] + colored(first, text), *(" " * indent + colored(one, text) for one in rest)]
        click.echo("\n".join(line.rstrip() for line in lines))

    def amount(self, text: str) -> str:
        return text if self.is_wide else amount_text(text)

    def time(self, text: str) -> str:
        """Write a time, given as `2026-11-20T11:45:55.846Z`, as --since takes it: to the second, or wide."""
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return text_of(text)
        spec = "milliseconds" if self.is_wide else "seconds"
        moment = moment.astimezone() if self.is_local else moment.astimezone(UTC)
        return moment.isoformat(timespec=spec).replace("+00:00", "Z")


def terminal_width() -> int | None:
    """The width of the terminal that stdout is; None if it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def display_options(function: Callable[..., Any], *, has_times: bool = True) -> Callable[..., Any]:
    """Add --wide and, for a command that shows times, --local; passes the choice as `display`."""

    @click.option("--wide", "is_wide", is_flag=True, help="All columns and digits, however wide.")
    @wraps(function)
    def command(*, is_wide: bool, is_local: bool = False, **rest: Any) -> Any:
        return function(display=Display(is_wide, is_local), **rest)

    local = click.option("--local", "is_local", is_flag=True, help="Times of this machine's zone, not UTC.")
    return local(command) if has_times else command


class Progress:
    """The progress of long work, with an estimate of the time left, on stderr if that is a terminal: once the
    work has taken a second, or at once if it is known to be long."""

    def __init__(self, label: str, length: int, *, is_long: bool = False) -> None:
        left = shutil.get_terminal_size().columns - len(label) - len("  []  100%  00:00:00 ")
        width = min(36, max(4, left))
        self._bar: Any = click.progressbar(
            length=length, label=label, file=sys.stderr, hidden=True, width=width
        )
        self._is_wanted = sys.stderr.isatty() and length > 0
        self._show_at = time.monotonic() + (0 if is_long else _SHOWN_AFTER_S)
        self._steps, self._draw_at = 0, 0.0
        self.done(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.reach(self._bar.length)
        self._end()

    def reach(self, position: int) -> None:
        """Note that everything up to a position is done."""
        if position > self._steps:
            self.done(position - self._steps)

    def done(self, steps: int = 1) -> None:
        """Note that so many more steps are done. Drawn ten times a second at most."""
        self._steps += steps
        now, is_over = time.monotonic(), self._steps >= self._bar.length
        if not is_over and now < self._draw_at:
            return
        self._draw_at = now + _DRAW_EVERY_S
        if self._is_wanted and self._bar.hidden and now >= self._show_at:
            self._bar.hidden = False
        self._bar.update(self._steps - self._bar.pos)
        if is_over:
            self._end()

    async def over(self, rows: AsyncIterator[T]) -> AsyncIterator[T]:
        """Yield what is read; each item is a step."""
        async for row in rows:
            self.done()
            yield row

    def _end(self) -> None:
        if not self._bar.hidden:
            self._bar.render_finish()
        self._bar.hidden, self._is_wanted = True, False
