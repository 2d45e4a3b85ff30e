"""`watcher accounts`: has an account begin anew."""

import secrets
import socket
from contextlib import suppress
from getpass import getuser
from typing import TYPE_CHECKING

import click

from watcher.commands._shared import Unknown, in_a_loop, look_options, names_of
from watcher.commands._table import known, say_next
from watcher.printable import many
from watcher.snapshot import spoken

if TYPE_CHECKING:
    from watcher.config.loading import Look

_POLLS_BETWEEN = 10
"""Polls of the account that may come in between, one after the other."""


@click.group("accounts", short_help="Let an account begin anew, with a baseline.")
def command() -> None:
    """What is done to one account."""


@command.command("reset", short_help="Forget what is known of an account: its next poll is a baseline.")
@look_options
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.argument("name", shell_complete=names_of("accounts"))
@in_a_loop
async def reset_command(*, look: "Look", is_sure: bool, name: str) -> None:
    """Forget what was accepted of the account NAME: what its next successful poll says is a baseline.

    For a chain that was replaced, or a node that was set back, on purpose. What moved in between is never
    emitted. Workers may go on meanwhile: what waits is delivered, sequences rise on, and the account is
    polled at once.
    """
    from watcher.journal.step import reset
    from watcher.store.members import Roster
    from watcher.store.opening import open_to_look
    from watcher.store.polls import Commit, Polls
    from watcher.store.schedule import Reply, Schedule
    from watcher.store.state import BadState

    settings = await known(look)
    if name not in settings.account_by_name:
        raise Unknown("account of the configuration", name, settings.account_by_name)
    if not is_sure:
        question = f"Forget the balances of {name}? What moved until its next poll is never emitted."
        click.confirm(question, abort=True, err=True)
    provider = settings.account_by_name[name].provider
    async with open_to_look(settings.redis) as store:
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
            step = reset(state, _who(), version=secrets.token_hex(8), now_ms=schedule.now_ms())
            reply, _ = await polls.commit(Commit(name, provider, None, state.version, step))
            if reply is Reply.LEASE_LOST:
                raise _NotReset(f"{name} is on no schedule of {provider}: start a worker with it first")
            if reply is not Reply.MOVED_ON:
                break
            if is_last:
                raise _NotReset(f"{name}: its state changes all the time; try again")
        await Roster(store.pipe, store.keys).make_due(provider, [name], now_ms=schedule.now_ms())
    click.echo(f"{name}: {what} forgotten; its next successful poll is a baseline, and it is polled now")
    say_next(f"watcher events --account {name} --type baseline --follow")


class _NotReset(click.ClickException):
    """Nothing was changed."""


def _who() -> str:
    """Name who runs this, and where: for the log."""
    user = "unknown"
    with suppress(OSError, KeyError, ImportError):  # a container may have no name for its user
        user = getuser()
    return spoken(f"{user}@{socket.gethostname()}") or user
