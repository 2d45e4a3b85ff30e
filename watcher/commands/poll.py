"""`watcher poll`: accounts are due now, whatever their interval, and what becomes of each in words.

Reads [redis] of the configuration alone, so that a hook that calls it often starts it quickly.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from watcher.commands._shared import Unknown, in_a_loop, look_options, names_in, names_of
from watcher.commands._table import age_text, say_if_idle, say_json, say_next
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.store.members import Woken
    from watcher.store.opening import OpenStore

_SOON_MS = 1000
"""A turn at the rate limit that is further off is worth a word."""

_UNSCHEDULED = "no worker has it on its schedule yet; its first poll follows as soon as a worker has it"


@click.command("poll", short_help="Poll accounts now.")
@partial(look_options, is_brief=True)
@click.option("--provider", metavar="NAME", help="All accounts of a provider.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object per account.")
@click.argument("accounts", nargs=-1, metavar="[ACCOUNT]...", shell_complete=names_of("accounts"))
@in_a_loop
async def command(*, look: "Look", provider: str | None, is_json: bool, accounts: tuple[str, ...]) -> int:
    """Make workers poll accounts now, whatever their interval: within a tenth of a second, if a worker is
    free.

    However often it is called, an account is polled once a second at most, and the rate limit of its provider
    holds. An account that waits for a retry goes on waiting.

    \b
    Examples:
      watcher poll treasury
      watcher poll --provider loopring

    Exit codes: 0 they are due; 1 no worker has scheduled an account yet; 2 a usage error, or an unknown name;
    69 Redis cannot be reached; 78 no configuration says where it is.
    """
    from watcher.store.members import WOKEN, Roster, woken_line
    from watcher.store.opening import open_to_look
    from watcher.store.reader import Reader

    if bool(accounts) == (provider is not None):
        raise click.UsageError("name the accounts to poll, or all of a provider: --provider NAME")
    names: Sequence[str] = [*dict.fromkeys(accounts)]
    async with open_to_look(look.settings.redis) as store:
        if provider is not None:
            scheduled = await Reader(store.pipe, store.keys).scheduled()
            names = sorted(name for name, at in scheduled.items() if at == provider)
            known = {*scheduled.values(), *names_in(look.path, "providers")}
            if provider not in known:
                raise Unknown("provider", provider, sorted(known))
        woken = await Roster(store.pipe, store.keys).wake(names)
        found = [one for one in woken if provider in (None, one.provider)]
        place_by_name = {name: place for place, name in enumerate(names)}
        for one in sorted(found, key=lambda one: place_by_name[one.account]):
            if is_json:
                say_json(woken_line(one))
            else:
                click.echo(f"{one.account}: {_text(one)}")
        left = sorted({*names}.difference(one.account for one in found), key=place_by_name.__getitem__)
        await _explain(store, found)
        if left:
            configured = {*names_in(look.path, "accounts")}
            for name in left:
                if name not in configured:
                    known = {*await Reader(store.pipe, store.keys).scheduled(), *configured}
                    raise Unknown("account", name, sorted(known))
                if is_json:
                    say_json({**dict.fromkeys(WOKEN), "account": name, "state": "unscheduled"})
                else:
                    click.echo(f"{printable(name)}: {_UNSCHEDULED}")
    if not names:
        click.echo(f"no account of {printable(str(provider))} is on a schedule yet", err=True)
    say_next("watcher tail, or watcher events")
    return 1 if left or not names else 0


async def _explain(store: "OpenStore", woken: "Sequence[Woken]") -> None:
    """Say on stderr what else the polls may have to wait for."""
    from watcher.store.polls import Polls
    from watcher.store.reader import Reader
    from watcher.store.schedule import Schedule

    reader, polls = Reader(store.pipe, store.keys), Polls(Schedule(store.pipe), store.keys)
    if woken:
        await say_if_idle(store, "what is due is polled")
    for provider in sorted({one.provider for one in woken if one.waits_for == "turn"}):
        if (wait_ms := await polls.next_turn_ms(provider)) > _SOON_MS:
            held = (
                f"its rate limit, or a Retry-After, lets the next request begin in {age_text(int(wait_ms))}"
            )
            click.echo(f"watcher: {provider}: {held}", err=True)
        if (failing := await reader.count_failing(provider)) > 1:
            held = "where its circuit breaker is open, polls wait until the provider answers"
            click.echo(f"watcher: {provider}: {many(failing, 'account')} fail; {held}", err=True)


def _text(one: "Woken") -> str:
    if one.waits_for == "poll":
        return "a poll is under way, and one more follows it"
    if one.waits_for == "turn":
        return f"due in {one.in_ms} ms: it was polled a moment ago" if one.in_ms else "due now"
    why = "a worker could not poll it"
    if failed := one.failing:
        rejections = many(failed.rejections, "rejected poll")
        why = f"{rejections} in a row ({failed.error_class}: {printable(failed.reason)})"
    return f"backing off, and due in {age_text(one.in_ms)}: {why}"
