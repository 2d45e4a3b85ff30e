"""`watcher store layout`: shows how everything is laid out in Redis, and moves it to another layout, or
back."""

import asyncio
import os
import secrets
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from watcher.commands._shared import in_a_loop, look_options
from watcher.commands._table import (
    Column,
    Display,
    Progress,
    Waits,
    age_text,
    display_options,
    say_json,
    say_next,
)
from watcher.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from watcher.config.loading import Look
    from watcher.store.layout import Layout, Numbers
    from watcher.store.members import Presence
    from watcher.store.opening import OpenStore

_LOOK_S = 0.5


@click.group("store", short_help="Show the layout of Redis, or move it to another version's.")
def command() -> None:
    """Show the layout of the data in Redis, or move it to another version's.

    Version 0.1 works in layout 1, this one in layout 2. A worker of this version that finds layout 1 stands
    by until the last worker of 0.1 has ended, and then moves Redis to layout 2. During the move nothing is
    polled or sent, and nothing is lost.

    \b
    Examples:
      watcher store layout
      watcher store layout --to 2

    Exit codes: 0 done; 2 a usage error, or an unknown name; 69 Redis cannot be reached; 78 no
    configuration says where it is.
    """


@command.command("layout", short_help="Show the layout; with --to, move Redis to it.")
@look_options
@partial(display_options, has_times=False)
@click.option("--json", "is_json", is_flag=True, help="One JSON object.")
@click.option("--to", type=click.Choice(["1", "2"]), help="Move Redis to this layout.")
@in_a_loop
async def layout_command(*, look: "Look", display: Display, is_json: bool, to: str | None) -> None:
    """Show which layout Redis is in, which one is wanted, and which workers run.

    With --to 1, workers of this version finish what they have in hand and stand by, and Redis is moved back
    for version 0.1; they work again after --to 2. With --to 2, Redis is moved as soon as the workers of 0.1
    have ended. The command waits for that. You may end it at any time: run it again, or leave the rest to a
    worker that stands by.

    \b
    Examples:
      watcher store layout
      watcher store layout --to 1

    Exit codes: 0 done; 2 a usage error, or an unknown name; 69 Redis cannot be reached; 78 no
    configuration says where it is.
    """
    from watcher.store.opening import open_to_look

    async with open_to_look(look.settings.redis, in_any_layout=True) as store:
        if to is not None:
            await _move(look, store, int(to))
        await _show(store, display, is_json=is_json)


async def _move(look: "Look", store: "OpenStore", to: int) -> None:
    """Wait until the store is in a layout, and move it there once no worker is in the way."""
    from watcher.run.members import names_by_provider
    from watcher.store.exceptions import StoreUnreachable
    from watcher.store.keys import SHARDS
    from watcher.store.layout import Layout, in_the_way
    from watcher.store.members import Workers
    from watcher.store.move import Mover

    layout, workers, said = Layout(store.pipe, store.keys), Workers(store.pipe, store.keys), ""
    mover = Mover(
        store.pipe,
        store.keys,
        f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}",
        accounts=names_by_provider(look.settings),
        subscriptions=look.settings.subscription_by_name,
    )
    if (await layout.read()).wanted != to:
        await layout.want(to)
    with Progress(f"to layout {to}", SHARDS, is_long=True) as progress:
        beside = [asyncio.create_task(each) for each in (store.pipe.run(), store.pipe.run())]  # ended below
        beside.append(asyncio.create_task(_follow(progress, store, layout)))
        try:
            while not ((numbers := await layout.read()).rests and numbers.at == to):
                if numbers.rests and numbers.wanted != to:
                    raise StoreUnreachable(
                        f"layout {numbers.wanted} is wanted now: `watcher store layout --to "
                        f"{numbers.wanted}` was said meanwhile"
                    )
                there = await workers.read()
                text = _waiting(numbers, in_the_way(there, numbers.target, int(await store.pipe.ask_clock())))
                if text != said:
                    click.echo(text, err=True)
                    said = text
                if await mover.advance() is None:
                    await asyncio.sleep(_LOOK_S)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)


async def _follow(progress: Progress, store: "OpenStore", layout: "Layout") -> None:
    """Show how many shards are moved, whichever process does so."""
    from watcher.store.exceptions import StoreError
    from watcher.store.move import read_progress

    while True:
        await asyncio.sleep(_LOOK_S)
        with suppress(StoreError):  # which the mover meets as well
            turn = (await layout.read()).turn
            shards = await read_progress(store.pipe, store.keys)
            progress.reach(sum(one.is_done and one.turn == turn for one in shards))


def _waiting(numbers: "Numbers", waits_for: "Sequence[Presence]") -> str:
    """Say what a move waits for."""
    if not numbers.rests:
        return f"Redis is being moved from layout {numbers.at} to {numbers.to}"
    if not waits_for:
        return f"Redis is to be moved from layout {numbers.at} to {numbers.wanted}"
    names = ", ".join(f"{printable(one.worker)} ({printable(one.version)})" for one in waits_for)
    wish = "end them" if numbers.wanted > numbers.at else "they stand by in a moment, or end them"
    return f"waiting for workers of version {printable(waits_for[0].version)}: {names}; {wish}"


async def _show(store: "OpenStore", display: Display, *, is_json: bool) -> None:
    from watcher.store.layout import Layout

    numbers = await Layout(store.pipe, store.keys).read()
    line = await _seen(store, numbers)
    if is_json:
        say_json(line)
        return
    if numbers.rests:
        state = ", as wanted" if numbers.at == numbers.wanted else f"; layout {numbers.wanted} is wanted"
    else:
        state = f", being moved to layout {numbers.to}"
    click.echo(f"layout {numbers.at}{state}")
    counted = [Column(name.replace("_", " "), "number", rank=1) for name in _COUNTED]
    with display.table(Column("shard", "number"), Column("state"), *counted) as table:
        table.say(
            [
                (
                    str(one["shard"]),
                    "moved" if one["is_moved"] else "",
                    *(f"{one[name]:,}" for name in _COUNTED),
                )
                for one in line["shards"]
            ]
        )
    columns = (Column("worker"), Column("version"), Column("layout"), Column("seen", rank=1), Column("state"))
    with display.table(*columns) as table:
        rows = [
            (
                printable(one["worker"]),
                printable(one["version"]),
                ", ".join(map(str, one["layouts"])),
                f"{age_text(1000 * one['seen_s'])} ago",
                Waits("in the way" if one["in_the_way"] else "stands by" if one["stands_by"] else ""),
            )
            for one in line["workers"]
        ]
        table.say(rows)
    say_next("watcher status" if numbers.is_ready else "watcher store layout --to 2")


async def _seen(store: "OpenStore", numbers: "Numbers") -> dict[str, Any]:
    """Read what there is to show beside the numbers, as `--json` prints it."""
    from watcher.store.layout import Layout, in_the_way
    from watcher.store.members import Workers
    from watcher.store.move import read_progress

    now_ms = int(await store.pipe.ask_clock())
    workers = await Workers(store.pipe, store.keys).read()
    blocking = {one.worker for one in in_the_way(workers, numbers.target, now_ms)}
    shards = [] if numbers.rests else await read_progress(store.pipe, store.keys)
    return {
        "layout": numbers.at,
        "wanted": numbers.wanted,
        "moving_to": None if numbers.rests else numbers.to,
        "mover": await Layout(store.pipe, store.keys).holder(),
        "shards": [
            {
                "shard": one.shard,
                "is_moved": one.is_done and one.turn == numbers.turn,
                **(one.counts if one.turn == numbers.turn else type(one.counts)())._asdict(),
            }
            for one in shards
        ],
        "workers": [
            {
                "worker": one.worker,
                "version": one.version,
                "layouts": [*one.layouts],
                "stands_by": one.stands_by,
                "seen_s": max(0, now_ms - one.seen_ms) // 1000,
                "in_the_way": numbers.target != numbers.at and one.worker in blocking,
            }
            for one in workers
            if one.is_there(now_ms)
        ],
    }


_COUNTED = ("accounts", "records", "dead_letters", "deliveries")
