"""`watcher accounts`: lists and shows accounts, removes one that came through the API, has one begin anew."""

import asyncio
import secrets
import socket
from contextlib import suppress
from functools import partial
from getpass import getuser
from typing import TYPE_CHECKING

import click

from watcher.commands._shared import (
    ListFirst,
    Unknown,
    in_a_loop,
    json_option,
    look_options,
    names_of,
    sure_option,
)
from watcher.commands._table import Column, Display, display_options, opened, say_if_idle, say_json, say_next
from watcher.printable import many
from watcher.snapshot import spoken

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.store.directory import Kind

_POLLS_BETWEEN = 10
"""Polls of the account that may come in between, one after the other."""


@click.group("accounts", cls=ListFirst, short_help="List accounts; show, remove or reset one.")
def command() -> None:
    """List the accounts of the configuration and of the API; show, remove or reset one.

    \b
    Examples:
      watcher accounts
      watcher accounts show treasury

    Exit codes: 0 done; 2 a usage error, or an unknown name; 69 Redis cannot be reached; 78 no
    configuration says where it is.
    """


@command.command("list", short_help="List all, with where each comes from.")
@look_options
@partial(display_options, has_times=False)
@json_option
@in_a_loop
async def list_command(*, look: "Look", display: Display, is_json: bool) -> None:
    """List the accounts: those of the configuration, and those that came through the API.

    \b
    Examples:
      watcher accounts list
      watcher accounts list --json

    Exit codes: 0 done; 2 a usage error, or an unknown name; 69 Redis cannot be reached; 78 no
    configuration says where it is.
    """
    async with opened(look) as found:
        rows = []
        for name, account in found.settings.account_by_name.items():
            origin = found.origin("account", name)
            row = {"account": name, "provider": account.provider, "origin": origin}
            if is_json:
                say_json(row)
            rows.append([name, account.provider, origin])
    if not is_json:
        with display.table(Column("account"), Column("provider"), Column("from", "whole", rank=1)) as table:
            table.say(rows)
        if not rows:
            click.echo("no account is known here", err=True)
    say_next("watcher balances, or watcher accounts show NAME")


@command.command("show", short_help="Print an account as a section of the configuration.")
@look_options
@json_option
@click.argument("name", shell_complete=names_of("accounts"))
@in_a_loop
async def show_command(*, look: "Look", is_json: bool, name: str) -> None:
    """Print the account NAME as a section of the configuration.

    An account that came through the API can only be printed with the key of [api].

    \b
    Examples:
      watcher accounts show treasury
      watcher accounts show treasury --json

    Exit codes: 0 done; 2 a usage error, or an unknown name; 69 Redis cannot be reached; 78 no
    configuration says where it is, or has the key of [api].
    """
    from watcher.commands.export import say_section

    await say_section(look, "account", name, is_json=is_json)
    say_next(f"watcher balances {name}")


@command.command("remove", short_help="Remove an account that came through the API.")
@look_options
@sure_option
@click.argument("name")
@in_a_loop
async def remove_command(*, look: "Look", is_sure: bool, name: str) -> None:
    """Remove the account NAME, which came through the API.

    Workers stop polling it within two seconds, and forget it ten minutes later unless it is put back. Its
    events that wait are still delivered.

    \b
    Examples:
      watcher accounts remove treasury
      watcher accounts remove treasury --yes

    Exit codes: 0 done; 1 it was not removed; 2 a usage error, or an unknown name; 69 Redis cannot be
    reached; 78 no configuration says where it is.
    """
    await remove(look, "account", name, is_sure=is_sure, question=f"Remove {name}? Workers stop polling it.")
    say_next("watcher accounts")


async def remove(look: "Look", kind: "Kind", name: str, *, is_sure: bool, question: str) -> None:
    """Remove what came through the API. Raises Unknown; of the file's, says where it stands."""
    from watcher.run.directory import FOLLOWED_S
    from watcher.store.directory import Directory
    from watcher.store.keeper import Keeper

    async with opened(look) as found:
        names = [one for other, one in found.records if other == kind]
        origin = found.origin(kind, name)
        if name not in names:
            if origin == "file":
                raise click.ClickException(f"{name} stands in {look.path}: take it out there, and reload")
            raise Unknown(f"{kind} of the API", name, names)
        if not is_sure:
            click.confirm(question, abort=True, err=True)
        pipe, keys = found.store.pipe, found.store.keys
        await Directory(pipe, keys).delete(kind, name, is_shadowed=origin == "file")
        if kind == "subscription" and origin != "file":
            await asyncio.sleep(FOLLOWED_S)
            if await Directory(pipe, keys).get(kind, name) is None:
                await Keeper(pipe, keys, "").discard(name)
    rest = f"; the one in {look.path} goes on" if origin == "file" else ""
    click.echo(f"{name}: removed{rest}")


@command.command("reset", short_help="Forget what is known of an account: its next poll is a baseline.")
@look_options
@sure_option
@click.argument("name", shell_complete=names_of("accounts"))
@in_a_loop
async def reset_command(*, look: "Look", is_sure: bool, name: str) -> None:
    """Forget the balances of the account NAME: its next successful poll is a new baseline.

    For a chain that was replaced, or a node that was set back, on purpose. Changes in between are never
    emitted. Workers may go on meanwhile: what waits is delivered, sequences go on rising, and the account is
    polled at once.

    \b
    Examples:
      watcher accounts reset treasury
      watcher accounts reset treasury --yes

    Exit codes: 0 done; 1 it was not reset; 2 a usage error, or an unknown name; 69 Redis cannot be
    reached; 78 no configuration says where it is.
    """
    from watcher.journal.step import reset
    from watcher.store.members import Roster
    from watcher.store.polls import Commit, Polls
    from watcher.store.schedule import Reply, Schedule
    from watcher.store.state import BadState

    async with opened(look) as (_, store, settings, *_):
        if name not in settings.account_by_name:
            raise Unknown("account of the configuration", name, settings.account_by_name)
        if not is_sure:
            question = f"Forget the balances of {name}? What moved until its next poll is never emitted."
            click.confirm(question, abort=True, err=True)
        provider = settings.account_by_name[name].provider
        schedule = Schedule(store.pipe)
        await schedule.read_clock()
        polls = Polls(schedule, store.keys)
        for is_last in (*[False] * _POLLS_BETWEEN, True):
            try:
                state = await polls.read_state(provider, name)
            except BadState as damage:
                raise _NotReset(f"the state of {name} is {damage}: delete {store.keys.state(name)}") from None
            if state is None:
                click.echo(f"{name}: nothing is known of it; its next successful poll is a baseline")
                return
            what = many(len(state.entry_by_asset), "asset")
            step = reset(state, _user_and_host(), version=secrets.token_hex(8), now_ms=schedule.now_ms())
            reply, _ = await polls.commit(Commit(name, provider, None, state.version, step))
            if reply is Reply.LEASE_LOST:
                raise _NotReset(f"{name} is on no schedule of {provider}: start a worker with it first")
            if reply is not Reply.MOVED_ON:
                break
            if is_last:
                raise _NotReset(f"{name}: its state changes all the time; try again")
        await Roster(store.pipe, store.keys).make_due(provider, [name], now_ms=schedule.now_ms())
        click.echo(f"{name}: {what} forgotten; its next successful poll is a baseline, and it is due now")
        await say_if_idle(store, "it is polled")
    say_next(f"watcher events --account {name} --type baseline --follow")


class _NotReset(click.ClickException):
    """Nothing was changed."""


def _user_and_host() -> str:
    """Name who runs this, and where: for the log."""
    user = "unknown"
    with suppress(OSError, KeyError, ImportError):  # a container may have no name for its user
        user = getuser()
    return spoken(f"{user}@{socket.gethostname()}") or user
