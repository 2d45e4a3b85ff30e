"""`watcher resend`: dead letters, or events of the log, go out again with the same ids."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from watcher.commands._shared import (
    config_option,
    in_a_loop,
    load_or_exit,
    names_of,
    parse_since,
    since_option,
)
from watcher.commands._table import Progress, opened, say_if_idle, say_json, say_next
from watcher.durations import since_ms
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.delivery.resend import Resent, Selection

_MOST_NAMES = 8


@click.command("resend", short_help="Send again: dead letters, or events from the log.")
@config_option
@click.option(
    "--subscription",
    metavar="NAME",
    help="Where to.",
    shell_complete=names_of("subscriptions"),
)
@click.option(
    "--dead", "is_dead", is_flag=True, help="All dead letters of the subscription, or those since WHEN."
)
@since_option
@click.option("--dry-run", "is_preview", is_flag=True, help="Only count what would be sent again.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object per subscription.")
@click.argument("event_id", required=False)
@in_a_loop
async def command(
    *,
    config_path: Path | None,
    subscription: str | None,
    is_dead: bool,
    since: str | None,
    is_preview: bool,
    is_json: bool,
    event_id: str | None,
) -> int:
    """Send again: the event EVENT_ID, dead letters (--dead), or the events of the log (--since).

    An event is sent to the subscriptions that gave it up; if there are none, to all that want it. --since
    without --dead sends everything again that the subscription wants, from the event log. Everything is put
    at the end of its queue, with the same id, and delivered by the workers, in order per account. What still
    waits there is not queued a second time.

    \b
    Examples:
      watcher resend --dead --subscription ops --dry-run
      watcher resend --since 2h --subscription ops
      watcher resend evt_exq2atkfezkrl7uwjqzorlfh

    Exit codes: 0 done; 1 something is left out, or nothing is left of the event; 2 a usage error, or an
    unknown name; 69 Redis cannot be reached; 78 the configuration is not valid.
    """
    from watcher.config.loading import Look
    from watcher.delivery.resend import Selection, send_again, steps_of
    from watcher.store.queues import Breakers
    from watcher.store.reader import Reader

    if bool(event_id) == (is_dead or since is not None):
        raise click.UsageError("say what to send again: EVENT_ID, or --dead, or --since WHEN")
    if subscription is None and not event_id:
        raise click.UsageError("say where to: --subscription NAME")
    moment = parse_since(since)
    settings = load_or_exit(config_path).settings
    async with opened(Look(settings)) as read:
        store = read.store
        wanted = [*read.targets.values()] if subscription is None else [read.target(subscription)]
        now_ms = await Reader(store.pipe, store.keys).now_ms()
        selection = Selection(event_id, is_dead, since_ms(moment, now_ms), now_ms, is_preview)
        with Progress("counting" if is_preview else "queuing", steps_of(selection, wanted)) as progress:
            found = await send_again(store.pipe, store.keys, wanted, selection, done=progress.done)
        breakers = await Breakers(store.pipe, store.keys).read()
        if not is_preview and any(resent.deliveries for resent in found):
            await say_if_idle(store, "they go out")
    paused = {name for name, breaker in breakers.items() if breaker.paused_at_ms}
    for resent in found:
        is_paused = resent.subscription in paused
        if is_json:
            say_json(resent.line(is_paused=is_paused, is_preview=is_preview))
        else:
            _say(resent, selection, is_paused=is_paused)
    if event_id and not found:
        click.echo(
            f"watcher: nothing of {printable(event_id)} is left: no dead letter, no record of it", err=True
        )
        return 1
    say_next("watcher deliveries")
    return 1 if any(resent.unreadable or resent.full for resent in found) else 0


def _say(resent: "Resent", selection: "Selection", *, is_paused: bool) -> None:
    name = resent.subscription
    goes = "would go out again" if selection.is_preview else "queued again"
    if resent.deliveries:
        what = many(resent.deliveries, "dead letter" if selection.is_dead else "event")
        click.echo(f"{name}: {what} of {many(len(resent.accounts), 'account')} {goes}")
    else:
        click.echo(f"{name}: nothing {goes}")
    notes = []
    if is_paused:
        notes.append(f"{name} is paused: they wait for `watcher subscriptions resume {name}`")
    if resent.waiting:
        verb = "waits" if resent.waiting == 1 else "wait"
        notes.append(f"{many(resent.waiting, 'event')} still {verb} there, and would not go out twice")
    if resent.unreadable:
        notes.append(f"{resent.unreadable:,} cannot be read and are left out; `watcher audit` says more")
    if resent.full:
        names = ", ".join(map(printable, sorted(resent.full)[:_MOST_NAMES]))
        notes.append(
            f"no room for more (max_backlog {resent.max_backlog:,}): of {many(len(resent.full), 'account')} "
            f"all or some are left out: {names}"
        )
    for note in notes:
        click.echo(f"watcher: {note}", err=True)
