"""`watcher subscriptions`: the state of each; pauses and resumes them, removes one of the API."""

from typing import TYPE_CHECKING, Any

import click

from watcher.commands._shared import (
    Unknown,
    in_a_loop,
    json_option,
    look_options,
    names_of,
    subscription_named,
    sure_option,
)
from watcher.commands._table import (
    IN_STATE,
    Column,
    Display,
    age_text,
    backlog_text,
    display_options,
    opened,
    rest_texts,
    say_if_idle,
    say_json,
    say_next,
)
from watcher.printable import printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.run.directory import Known

_COLUMNS = (
    Column("subscription"),
    Column("state", "whole"),
    Column("to", rank=1, least=16),
    Column("what is known", "prose", least=24),
)

_Line = dict[str, Any]


@click.command("subscriptions", short_help="The state of subscriptions; pause, resume, remove them.")
@look_options
@display_options
@json_option
@sure_option
@click.argument(
    "action",
    type=click.Choice(["list", "show", "pause", "resume", "remove"]),
    default="list",
    metavar="[ACTION]",
)
@click.argument(
    "name",
    required=False,
    shell_complete=lambda context, *rest: (
        [] if context.params.get("action") == "list" else names_of("subscriptions")(context, *rest)
    ),
)
@in_a_loop
async def command(
    *, look: "Look", display: Display, is_json: bool, is_sure: bool, action: str, name: str | None
) -> None:
    """Show the state of subscriptions, or change it.

    ACTION is list (the default), or show, pause, resume or remove NAME.

    A paused subscription is sent nothing and loses nothing: its events are kept, and are sent in order when
    it is resumed. Running workers notice within a second or two. Resuming also forgets earlier failures: what
    waits for a retry is tried at once.

    Show prints a subscription as a section of the configuration, without its secrets. Remove deletes one that
    came through the API, with everything that waits for it.

    \b
    Examples:
      watcher subscriptions
      watcher subscriptions resume ops

    Exit codes: 0 done; 1 it was not removed; 2 a usage error, or an unknown name; 69 Redis cannot be
    reached; 78 no configuration says where it is.
    """
    from watcher.commands.accounts import remove
    from watcher.commands.export import say_section
    from watcher.observe.views import place_of, remedy_of, subscription_lines
    from watcher.store.queues import Breakers
    from watcher.store.reader import Reader

    if (action == "list") == bool(name):
        raise click.UsageError("what is done to one subscription needs its NAME, and a list has none")
    if name is not None:
        if action == "show":
            await say_section(look, "subscription", name, is_json=is_json)
        elif action == "remove":
            question = f"Remove {name}? What waits for it is not delivered."
            await remove(look, "subscription", name, is_sure=is_sure, question=question)
        else:
            await _switch(look, action, name)
        return
    async with opened(look) as found:
        store, settings = found.store, found.settings
        reader = Reader(store.pipe, store.keys)
        now_ms = await reader.now_ms()
        breakers = await Breakers(store.pipe, store.keys).read()
        lines = await subscription_lines(
            reader, settings, breakers, now_ms, is_whole=look.is_whole, others=breakers
        )
    for line in lines:
        breaker = breakers.get(line["subscription"])
        failing_ms = now_ms - breaker.since_ms if breaker and breaker.since_ms else 0
        line |= {
            "origin": found.origin("subscription", line["subscription"]),
            **record_of(found.subscriptions.get(line["subscription"])),
            "url": place_of(settings, line["subscription"]),
            "failing_s": max(0, failing_ms) // 1000,
        }
        line["todo"] = remedy_of(line)
    if not (lines or is_json):
        click.echo("no subscription is known here", err=True)
    if is_json:
        for line in lines:
            say_json(line)
    else:
        with display.table(*_COLUMNS) as table:
            table.say([_cells(line, display) for line in lines])
    say_next("watcher deliveries")


async def _switch(look: "Look", action: str, name: str) -> None:
    """Pause or resume a subscription that the configuration or, at least, Redis knows. Raises Unknown."""
    from watcher.delivery.queue import pause_by_hand, resume_by_hand
    from watcher.store.queues import Breakers, Queues
    from watcher.store.reader import Reader
    from watcher.store.schedule import Schedule

    async with opened(look) as (_, store, settings, *_):
        configured = settings.subscription_by_name
        if action == "pause" and look.is_whole:
            subscription_named(settings, name)
        breakers = Breakers(store.pipe, store.keys)
        if name not in configured:
            known = {*await breakers.read()}
            if not look.is_whole:
                known.update(await Reader(store.pipe, store.keys).owed_subscriptions())
            if name not in known:
                raise Unknown("subscription of the configuration", name, configured)
        if action == "pause":
            is_new = await pause_by_hand(breakers, name)
            click.echo(f"{name}: {'paused' if is_new else 'was paused already'}; its events are kept")
            say_next(f"watcher subscriptions resume {name}")
            return
        has_changed = await resume_by_hand(breakers, Queues(Schedule(store.pipe), store.keys), name)
        said = "resumed" if has_changed else "was neither paused nor failing"
        click.echo(f"{name}: {said}; what waits is due now")
        await say_if_idle(store, "what waits goes out")
    say_next(f"watcher deliveries --subscription {name}")


def record_of(known: "Known | None") -> _Line:
    """Say what became of a record of the API, and why; of a subscription without one, nothing."""
    from watcher.journal.events import iso

    if known is None:
        return dict.fromkeys(("record", "record_reason", "unverified_since"))
    since_ms = known.unverified_since_ms
    return {
        "record": known.state,
        "record_reason": known.reason or None,
        "unverified_since": iso(since_ms) if since_ms and known.state == "unverified" else None,
    }


def _cells(line: _Line, display: Display) -> list[str]:
    backing_off, pace = rest_texts(line)
    reason = printable(line["reason"] or "")
    if line["paused_at"]:
        state = f"paused since {display.time(line['paused_at'])}: {reason}"
    elif line["failing_since"]:
        since = f"since {display.time(line['failing_since'])} ({age_text(1000 * line['failing_s'])})"
        state = f"failing {since}, circuit breaker {line['breaker']}{backing_off}: {reason}"
    elif backing_off or pace:
        name = "" if line["state"] == "backing off" else line["state"]
        state = f"{name}{backing_off}{pace}: {reason}".removeprefix(", ")
    else:
        state = f"{line['state']}: {reason}" if reason else line["state"]
    where = (line["url"] or "") if line["is_configured"] else "not in the configuration"
    where += f" as {line['format']}" if line["format"] not in (None, "standard") else ""
    if line["origin"] == "api":
        where = f"{where}  (by the API)".strip()
    if line["record"] == "unverified":
        since = f" since {display.time(line['unverified_since'])}" if line["unverified_since"] else ""
        rest = "" if state in ("healthy", "delayed") else f"; {state}"
        error = f" (the last: {printable(line['ping_error'])})" if line["ping_error"] else ""
        state = f"unverified{since}: its events wait until its URL has answered a ping{error}{rest}"
    elif line["record"] in ("shadowed", "unfit", "locked") and line["record_reason"]:
        state = f"{state}; its record of the API is {line['record']}: {printable(line['record_reason'])}"
    backlog = backlog_text(line, f"{line['deliveries']:,} waiting")
    word = "unverified" if line["record"] == "unverified" and line["state"] == "healthy" else line["state"]
    about = "; ".join((backlog,) if state == word else (state.removeprefix(f"{word}: "), backlog))
    if line["todo"]:
        about += f"; what to do: {line['todo']}"
    return [printable(line["subscription"]), IN_STATE.get(word, str)(word), where, about]
