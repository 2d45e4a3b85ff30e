"""`watcher deliveries`: the deliveries that wait, dead letters and attempts of each subscription; gives up by
hand.

Refuses to show text from outside as it came: control characters are escaped.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from watcher.commands._shared import (
    in_a_loop,
    look_options,
    names_like,
    names_of,
    parse_since,
    refuse_unknown,
    since_option,
)
from watcher.commands._table import (
    Column,
    Display,
    Fails,
    Waits,
    age_text,
    display_options,
    known,
    opened,
    say_json,
    say_next,
    text_of,
)
from watcher.durations import since_ms
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.journal.events import Delivery
    from watcher.settings import Settings
    from watcher.store.queues import Breaker
    from watcher.store.reader import DeadLetter, Queue, Reader, Tried

_OWNER = (Column("subscription"), Column("account", rank=1))
_EVENT = (
    Column("event", "whole", rank=2),
    Column("type", "whole", rank=4),
    Column("sequence", "number", rank=6),
)
_COLUMNS_BY_KIND = {
    "waiting": (
        *_OWNER,
        Column("place", "number", rank=5),
        *_EVENT,
        Column("age", "whole"),
        Column("failed", "number", rank=3),
        Column("due", "whole"),
    ),
    "dead": (*_OWNER, *_EVENT, Column("given up", "whole", rank=3), Column("reason", "prose", least=24)),
    "attempts": (
        *_OWNER,
        Column("event", "whole", rank=3),
        Column("attempt", "number", rank=4),
        Column("when", "whole", rank=2),
        Column("took", "number", rank=5),
        Column("outcome", "whole"),
        Column("answer", "prose", least=24),
    ),
}

_OUTCOME = {"refused": "given up"}
"""As the page and `--dead` call it."""

_NONE_BY_KIND = {
    "waiting": "nothing waits",
    "dead": "no dead letters",
    "attempts": "no attempt that failed is remembered",
}

_EXIT_NO = 1

_Row = dict[str, Any]


class _Wanted(NamedTuple):
    kind: str
    subscription: str | None
    account: str | None
    limit: int
    since: datetime | timedelta | None = None
    start_ms: int = 0

    def takes(self, entry: "DeadLetter | Tried | Queue") -> bool:
        return self.account is None or fnmatchcase(entry.account, self.account)

    def takes_late(self, entry: "DeadLetter | Tried") -> bool:
        from watcher.store.history import place

        return place(entry.id)[0] >= self.start_ms and self.takes(entry)


@click.command("deliveries", short_help="What waits, dead letters, and failed attempts.")
@look_options
@click.option(
    "--waiting", "kind", flag_value="waiting", default=True, help="Deliveries that wait. The default."
)
@click.option(
    "--dead", "kind", flag_value="dead", help="Dead letters: given up, kept, and can be sent again."
)
@click.option("--attempts", "kind", flag_value="attempts", help="Attempts that failed, and what followed.")
@click.option(
    "--subscription", metavar="GLOB", help="Subscription names.", shell_complete=names_of("subscriptions")
)
@click.option("--account", metavar="GLOB", help="Account names.", shell_complete=names_of("accounts"))
@since_option
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N")
@partial(display_options, has_times=False)
@click.option("--json", "is_json", is_flag=True, help="One JSON object per delivery or attempt.")
@click.argument("action", type=click.Choice(["list", "give-up"]), default="list", metavar="[ACTION]")
@click.argument("event_id", required=False)
@in_a_loop
async def command(
    *,
    look: "Look",
    display: Display,
    kind: str,
    subscription: str | None,
    account: str | None,
    since: str | None,
    limit: int,
    is_json: bool,
    action: str,
    event_id: str | None,
) -> int:
    """Show the deliveries that wait, queue by queue; or dead letters; or attempts.

    Of waiting deliveries the first N are shown, the queue that is due first on top; a queue that is being
    worked on is due when its lease ends. Of dead letters and attempts the latest N are shown, oldest first.
    An attempt that delivered at once is only in the log. With --since, only what was queued, given up or
    tried since then is shown.

    ACTION is list (the default) or give-up EVENT_ID. Giving up makes an event at the head of its queue a dead
    letter, which can be sent again; what is behind it is sent at once. An attempt that is under way ends
    first. If the event waits for several subscriptions, name one.

    \b
    Examples:
      watcher deliveries --subscription ops
      watcher deliveries --dead --since 1d
      watcher deliveries give-up evt_exq2atkfezkrl7uwjqzorlfh --subscription ops

    Exit codes: 0 done; 1 the event could not be given up; 2 a usage error, or an unknown name; 69 Redis
    cannot be reached; 78 no configuration says where it is.
    """
    if (action == "give-up") != bool(event_id):
        raise click.UsageError("give-up needs the EVENT_ID of what waits, and only it does")
    wanted = _Wanted(kind, subscription, account, limit, parse_since(since))
    if event_id:
        return await _give_up(look, wanted, event_id, is_json=is_json)
    rows = await _read(look, wanted)
    if account and not rows:
        refuse_unknown("account", [account], (await known(look)).account_by_name)
    shown = rows[:limit] if kind == "waiting" else rows[-limit:]
    if is_json:
        for row in shown:
            say_json(row)
    elif shown:
        with display.table(*_COLUMNS_BY_KIND[kind]) as table:
            table.say([cells(row) for row in shown])
    else:
        click.echo(_NONE_BY_KIND[kind], err=True)
    if len(rows) > limit:
        click.echo(f"watcher: there are more; --limit shows more than {limit:,}", err=True)
    if kind == "waiting":
        say_next("watcher deliveries --attempts")
    elif shown:
        name = printable(shown[-1]["subscription"])
        say_next(f"watcher resend --dead --subscription {name}" if kind == "dead" else f"watcher ping {name}")
    return 0


async def _read(look: "Look", wanted: _Wanted) -> list[_Row]:
    """Read the rows that are wanted, and one more if there are more."""
    from watcher.observe.views import attempt_line, dead_letter_line
    from watcher.store.history import place
    from watcher.store.queues import Breakers
    from watcher.store.reader import DeadLetter, Reader

    most = wanted.limit + 1
    async with opened(look) as (_, store, settings, *_):
        reader = Reader(store.pipe, store.keys)
        now_ms = await reader.now_ms()
        wanted = wanted._replace(start_ms=since_ms(wanted.since, now_ms))
        names = await _names(reader, settings, wanted)
        if wanted.kind == "waiting":
            breakers = await Breakers(store.pipe, store.keys).read()
            rows: list[_Row] = []
            async for row in _waiting(reader, names, wanted, breakers, now_ms):
                rows.append(row)
                if len(rows) == most:
                    break
            return rows
        found: list[tuple[str, DeadLetter | Tried]] = []
        for name in names:
            latest = reader.dead_letters if wanted.kind == "dead" else reader.attempts
            found += [(name, entry) for entry in await latest(name, most, wanted.takes_late)]
    return [
        dead_letter_line(name, entry, now_ms)
        if isinstance(entry, DeadLetter)
        else attempt_line(name, entry, now_ms)
        for name, entry in sorted(found, key=lambda one: place(one[1].id))[-most:]  # of all subscriptions
    ]


async def _names(reader: "Reader", settings: "Settings", wanted: _Wanted) -> Sequence[str]:
    """Return the wanted subscriptions, of those that are configured or have a backlog."""
    known_here = dict.fromkeys([*settings.subscription_by_name, *await reader.owed_subscriptions()])
    return names_like("subscription", known_here, wanted.subscription)


async def _waiting(
    reader: "Reader",
    names: Iterable[str],
    wanted: _Wanted,
    breakers: "Mapping[str, Breaker]",
    now_ms: int,
) -> AsyncIterator[_Row]:
    """Yield what waits at each position of a queue, counted from 1; the queue waits for the first one."""
    from watcher.observe.views import waiting_line

    for name in names:
        for queue in filter(wanted.takes, await reader.queues(name)):
            position = 0
            async for delivery in reader.deliveries(name, queue.account):
                position += 1
                if delivery and delivery.sequence < wanted.start_ms:
                    continue
                yield waiting_line(name, queue, position, delivery, breakers.get(name), now_ms)


class _Found(NamedTuple):
    """Where an event waits: its position in its queue, counted from 1, and which event is at the head."""

    subscription: str
    account: str
    position: int
    delivery: "Delivery"
    front: "Delivery | None"


async def _give_up(look: "Look", wanted: _Wanted, event_id: str, *, is_json: bool) -> int:
    """Give up an event that is at the head of its queue, or say what is. Returns the exit code."""
    from watcher.observe.views import event_of
    from watcher.store.layout import Layout, check_numbers
    from watcher.store.queues import Queues
    from watcher.store.reader import Reader
    from watcher.store.schedule import Schedule

    async with opened(look) as (_, store, settings, *_):
        check_numbers(
            await Layout(store.pipe, store.keys).read()
        )  # no worker would find it in another layout
        reader, queues = Reader(store.pipe, store.keys), Queues(Schedule(store.pipe), store.keys)
        found: list[_Found] = []
        for name in await _names(reader, settings, wanted):
            for queue in filter(wanted.takes, await reader.queues(name)):
                position, front = 0, None
                async for delivery in reader.deliveries(name, queue.account):
                    position += 1
                    front = delivery if position == 1 else front
                    if delivery and delivery.event_id == event_id:
                        found.append(_Found(name, queue.account, position, delivery, front))
                        break
        if len(found) > 1 and wanted.subscription is None:
            them = ", ".join(printable(place.subscription) for place in found)
            click.echo(f"watcher: it waits for {them}: say which, with --subscription", err=True)
            return _EXIT_NO
        if not found:
            click.echo(
                f"watcher: {printable(event_id)} waits nowhere: it was delivered, or given up (--dead)",
                err=True,
            )
        has_failed = not found
        for name, account, position, delivery, front in found:
            left = None
            if position == 1:
                left = await queues.give_up(name, account, delivery.entry, reason="by hand")
            has_failed = has_failed or left is None
            if is_json:
                line = {"kind": "given up", "subscription": name, "account": account, "position": position}
                in_front = front.event_id if front and position > 1 else None
                say_json(
                    {
                        **line,
                        **event_of(delivery),
                        "given_up": left is not None,
                        "in_front": in_front,
                        "left": left,
                    }
                )
                continue
            owner = f"{printable(name)}: {printable(event_id)} of {printable(account)}"
            if left is not None:
                click.echo(
                    f"{owner} is a dead letter now; {many(left, 'delivery', 'deliveries')} left in its queue"
                )
            elif position == 1:
                click.echo(f"{owner} went out or was given up meanwhile", err=True)
            else:
                what = (
                    f"{front.event_id} ({front.type})"
                    if front
                    else "what cannot be read, and is given up by itself"
                )
                click.echo(f"{owner} is number {position:,} of its queue; in front is {what}", err=True)
    say_next("watcher deliveries --dead")
    return _EXIT_NO if has_failed else 0


def cells(row: _Row) -> list[str]:
    """Write a row into the columns of its kind."""
    owner = [printable(row["subscription"]), printable(row["account"])]
    age = "-" if row["age_s"] is None else age_text(1000 * row["age_s"])
    if row["kind"] == "attempt":
        answer = text_of(row["status"] if row["error"] is None else row["error"])
        says = f": {text_of(row['answer'])}" if row["answer"] else ""
        took = f"{text_of(row['duration_ms'])} ms"
        more = f" and {row['deliveries'] - 1} more" if row["deliveries"] > 1 else ""
        event = [f"{text_of(row['event_id'])}{more}", text_of(row["attempt"])]
        outcome = _OUTCOME.get(text_of(row["outcome"]), text_of(row["outcome"]))
        shown = Fails(outcome) if outcome == "given up" else Waits(outcome)
        return [*owner, *event, f"{age} ago", took, shown, f"{answer}{says}"]
    event = [text_of(row[key]) for key in ("event_id", "event_type", "sequence")]
    if row["kind"] == "dead":
        return [*owner, *event, f"{age} ago", Fails(printable(row["reason"]))]
    if row["position"] > 1:
        due = ""
    elif row["paused"]:
        due = Fails("paused")
    else:
        due = Waits(f"in {age_text(1000 * row['due_in_s'])}") if row["due_in_s"] else "now"
    return [*owner, str(row["position"]), *event, age, str(row["failed_attempts"] or ""), due]
