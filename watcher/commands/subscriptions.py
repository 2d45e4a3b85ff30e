"""`watcher subscriptions`: how each one stands with its receiver, and the switch to pause and resume it."""

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from watcher.commands._shared import Unknown, look_options, names_of, subscription_named
from watcher.commands._table import age_text, say_json, say_next
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.store.opening import OpenStore
    from watcher.store.queues import Queues

_BY_HAND = "by hand"
_MARGIN = 14

_Line = dict[str, Any]


def _complete_name(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    is_asked_for = context.params.get("action") != "list"
    return names_of("subscriptions")(context, parameter, incomplete) if is_asked_for else []


@click.command("subscriptions", short_help="How subscriptions stand; pause and resume them.")
@look_options
@click.option("--json", "is_json", is_flag=True, help="One JSON object per subscription.")
@click.argument("action", type=click.Choice(["list", "pause", "resume"]), default="list", metavar="[ACTION]")
@click.argument("name", required=False, shell_complete=_complete_name)
def command(*, look: "Look", is_json: bool, action: str, name: str | None) -> None:
    """How subscriptions stand: ACTION is list (the default), pause NAME, or resume NAME.

    A paused subscription is sent nothing and loses nothing: its events are kept, and go out in order when it
    is resumed. Workers that run notice within a second or two. Resuming also forgets earlier failures, and
    lets what waits for a retry be tried at once.
    """
    if (action == "list") == bool(name):
        raise click.UsageError("pause and resume need the NAME of a subscription, and only they do")
    if name and action == "pause" and look.is_whole:
        subscription_named(look.settings, name)
    asyncio.run(_show(look, is_json=is_json) if name is None else _switch(look, action, name))


async def _switch(look: "Look", action: str, name: str) -> None:
    from watcher.engine.breaker import paused
    from watcher.store.opening import open_to_look
    from watcher.store.queues import Breakers, Queues
    from watcher.store.schedule import Schedule

    async with open_to_look(look.settings.redis) as store:
        breakers = Breakers(store.pipe, store.keys)
        if name not in look.settings.subscription_by_name:
            await _check_known(name, look, store)
        if action == "pause":
            before, _ = await breakers.change(name, partial(paused, reason=_BY_HAND))
            is_new = before is None or not before.paused_at_ms
            click.echo(f"{name}: {'paused' if is_new else 'was paused already'}; its events are kept")
            say_next(f"watcher subscriptions resume {name}")
            return
        has_changed = await breakers.resume(name)
        await _hasten(Queues(Schedule(store.pipe), store.keys), name)
    said = "resumed" if has_changed else "was neither paused nor failing"
    click.echo(f"{name}: {said}; what waits goes out now")
    say_next(f"watcher deliveries --subscription {name}")


async def _check_known(name: str, look: "Look", store: "OpenStore") -> None:
    """Make sure that the store, at least, knows a subscription. Raises Unknown."""
    from watcher.store.queues import Breakers
    from watcher.store.reader import Reader

    configured = look.settings.subscription_by_name
    known = {*configured, *await Breakers(store.pipe, store.keys).read()}
    if not look.is_whole:
        known.update(await Reader(store.pipe, store.keys).owed_subscriptions())
    if name not in known:
        raise Unknown("subscription of the configuration", name, configured)


async def _hasten(queues: "Queues", name: str) -> None:
    """Let everything that waits be tried at once, in the order of its queue."""
    from watcher.delivery.queue import LONGEST_LEASE_MS
    from watcher.store.keys import SHARDS

    for shard in range(SHARDS):
        await queues.make_due(name, shard, lease_ms=LONGEST_LEASE_MS)


async def _show(look: "Look", *, is_json: bool) -> None:
    lines = await _survey(look)
    if not (lines or is_json):
        click.echo("no subscription is known here", err=True)
    for line in lines:
        if is_json:
            say_json(line)
        else:
            for text in _as_text(line):
                click.echo(text)
    say_next("watcher deliveries")


async def _survey(look: "Look") -> list[_Line]:
    from watcher.observe.views import place_of, subscription_line
    from watcher.store.opening import open_to_look
    from watcher.store.queues import Breakers
    from watcher.store.reader import Backlog, Reader

    settings = look.settings
    async with open_to_look(settings.redis) as store:
        reader = Reader(store.pipe, store.keys)
        now_ms = await reader.now_ms()
        breakers = await Breakers(store.pipe, store.keys).read()
        backlogs = await reader.backlogs(settings.subscription_by_name)
    lines = []
    for name in dict.fromkeys([*backlogs, *breakers]):
        is_configured = name in settings.subscription_by_name or not look.is_whole
        breaker, backlog = breakers.get(name), backlogs.get(name, Backlog())
        line = subscription_line(name, backlog, breaker, now_ms, is_configured=is_configured)
        failing_ms = now_ms - breaker.since_ms if breaker and breaker.since_ms else 0
        lines.append(
            {
                **line,
                "url": place_of(settings, name),
                "failures": breaker.failures if breaker else 0,
                "failing_s": max(0, failing_ms) // 1000,
            }
        )
    return lines


def _as_text(line: _Line) -> Iterator[str]:
    where = (line["url"] or "") if line["is_configured"] else "not in the configuration"
    yield f"{printable(line['subscription']):<{_MARGIN}}{where}".rstrip()
    for text in (_standing_text(line), _backlog_text(line)):
        yield f"{'':<{_MARGIN}}{text}"


def _standing_text(line: _Line) -> str:
    reason = printable(line["reason"] or "")
    if line["paused_at"]:
        return f"paused since {line['paused_at']}: {reason}"
    held = f", backing off for {age_text(1000 * line['held_s'])}" if line["held_s"] else ""
    if not line["failures"]:
        return f"well{held}" + (f": {reason}" if held else "")
    since = f"since {line['failing_since']} ({age_text(1000 * line['failing_s'])})"
    return f"failing {since}, {line['failures']:,} in a row{held}: {reason}"


def _backlog_text(line: _Line) -> str:
    waits = "nothing waits"
    if line["queues"]:
        oldest = "" if line["oldest_s"] is None else f", the oldest for {age_text(1000 * line['oldest_s'])}"
        waits = f"{line['deliveries']:,} waiting in {many(line['queues'], 'queue')}{oldest}"
    retrying = f"; {many(line['retrying'], 'queue')} being tried again" if line["retrying"] else ""
    dead = f"; {many(line['dead'], 'dead letter')}" if line["dead"] else ""
    return f"{waits}{retrying}{dead}"
