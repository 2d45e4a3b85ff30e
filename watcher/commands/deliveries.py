"""`watcher deliveries`: what waits for each subscription, what was given up, what was tried.

Refuses to show text from outside as it came: control characters are escaped.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

import click

from watcher.commands._shared import look_options, names_like, names_of, refuse_unknown
from watcher.commands._table import Columns, known, say_json, say_next
from watcher.printable import printable

if TYPE_CHECKING:
    from watcher.commands._delivery_rows import Row
    from watcher.config.loading import Look
    from watcher.settings import Settings
    from watcher.store.opening import OpenStore
    from watcher.store.queues import Breaker
    from watcher.store.reader import DeadLetter, Queue, Tried

_NONE_BY_KIND = {
    "waiting": "nothing waits",
    "dead": "no dead letters",
    "attempts": "no attempt that failed is remembered",
}


class _Wanted(NamedTuple):
    kind: str
    subscription: str | None
    account: str | None
    limit: int

    def takes(self, entry: "DeadLetter | Tried | Queue") -> bool:
        return self.account is None or fnmatchcase(entry.account, self.account)


@click.command("deliveries", short_help="What waits, what was given up, what was tried.")
@look_options
@click.option(
    "--waiting", "kind", flag_value="waiting", default=True, help="What is still owed. The default."
)
@click.option("--dead", "kind", flag_value="dead", help="Dead letters: given up, kept, resendable.")
@click.option("--attempts", "kind", flag_value="attempts", help="Attempts that failed, and what followed.")
@click.option(
    "--subscription", metavar="GLOB", help="Subscription names.", shell_complete=names_of("subscriptions")
)
@click.option("--account", metavar="GLOB", help="Account names.", shell_complete=names_of("accounts"))
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N")
@click.option("--json", "is_json", is_flag=True, help="One JSON object per delivery or attempt.")
def command(
    *,
    look: "Look",
    kind: str,
    subscription: str | None,
    account: str | None,
    limit: int,
    is_json: bool,
) -> None:
    """What waits for each subscription, queue by queue; what was given up; what was tried.

    Of what waits, the first N are shown, the queue that is due first above; one that is being worked on is
    due when its lease ends. Of the rest the latest N are shown, oldest first. An attempt that delivered at
    once is not remembered: the log has it.
    """
    wanted = _Wanted(kind, subscription, account, limit)
    rows = asyncio.run(_read(look.settings, wanted))
    if account and not rows:
        refuse_unknown("account", [account], known(look).account_by_name)
    shown = rows[:limit] if kind == "waiting" else rows[-limit:]
    if is_json:
        for row in shown:
            say_json(row)
    elif shown:
        _say(kind, shown)
    else:
        click.echo(_NONE_BY_KIND[kind], err=True)
    if len(rows) > limit:
        click.echo(f"watcher: there are more; --limit shows more than {limit:,}", err=True)
    if kind == "waiting":
        say_next("watcher deliveries --attempts")
    elif shown:
        name = printable(shown[-1]["subscription"])
        say_next(f"watcher resend --dead --subscription {name}" if kind == "dead" else f"watcher ping {name}")


async def _read(settings: "Settings", wanted: _Wanted) -> "list[Row]":
    """Read the rows that are wanted, and one more if there are more."""
    from watcher.store.opening import open_to_look
    from watcher.store.reader import Reader

    async with open_to_look(settings.redis) as store:
        now_ms = await Reader(store.pipe, store.keys).now_ms()
        letters = Reader(store.pipe, store.keys)
        known_here = dict.fromkeys([*settings.subscription_by_name, *await letters.owed_subscriptions()])
        names = names_like("subscription", known_here, wanted.subscription)
        if wanted.kind == "waiting":
            return await _waiting(store, names, wanted, now_ms)
        found: list[tuple[str, DeadLetter | Tried]] = []
        for name in names:
            latest = letters.dead_letters if wanted.kind == "dead" else letters.attempts
            found += [(name, entry) for entry in await latest(name, wanted.limit + 1, wanted.takes)]
    return _latest(found, wanted.limit + 1, now_ms)


async def _waiting(store: "OpenStore", names: Sequence[str], wanted: _Wanted, now_ms: int) -> "list[Row]":
    from watcher.store.queues import Breakers

    breakers = await Breakers(store.pipe, store.keys).read()
    rows: list[Row] = []
    for name in names:
        async for row in _waiting_for(store, name, breakers.get(name), wanted, now_ms):
            rows.append(row)
            if len(rows) > wanted.limit:
                return rows
    return rows


async def _waiting_for(
    store: "OpenStore", name: str, breaker: "Breaker | None", wanted: _Wanted, now_ms: int
) -> "AsyncIterator[Row]":
    from watcher.commands._delivery_rows import waiting_row
    from watcher.store.reader import Reader

    waiting = Reader(store.pipe, store.keys)
    for queue in filter(wanted.takes, await waiting.queues(name)):
        position = 0
        async for delivery in waiting.deliveries(name, queue.account):
            position += 1
            yield waiting_row(name, queue, position, delivery, breaker=breaker, now_ms=now_ms)


def _latest(found: "Sequence[tuple[str, DeadLetter | Tried]]", most: int, now_ms: int) -> "list[Row]":
    """Put what was found at all subscriptions in the order of time, and keep the latest of it."""
    from watcher.commands._delivery_rows import letter_row
    from watcher.observe.views import attempt_line
    from watcher.store.history import place
    from watcher.store.reader import DeadLetter

    latest = sorted(found, key=lambda one: place(one[1].id))[-most:]
    return [
        letter_row(name, entry, now_ms)
        if isinstance(entry, DeadLetter)
        else attempt_line(name, entry, now_ms)
        for name, entry in latest
    ]


def _say(kind: str, rows: "Sequence[Row]") -> None:
    from watcher.commands._delivery_rows import COLUMNS_BY_KIND, NUMBERS_BY_KIND, cells

    columns = Columns(*COLUMNS_BY_KIND[kind], numbers=NUMBERS_BY_KIND[kind])
    columns.say([cells(row) for row in rows])
