"""`watcher run`: the worker, until told to stop."""

from typing import TYPE_CHECKING

import click

from watcher.commands.options import config_option, load_or_exit

if TYPE_CHECKING:
    from pathlib import Path


@click.command("run", short_help="Poll, compare and deliver.")
@config_option
@click.option("--once", is_flag=True, help="Poll every account once, deliver what is due, and end.")
def command(*, config_path: "Path | None", once: bool) -> int:
    """Poll, compare and deliver, until told to stop.

    SIGTERM and Ctrl-C finish what is in hand, within worker.drain; a second one ends at once. SIGHUP reads
    the configuration again. Start as many as you like: they share the work through Redis.
    """
    from watcher.service import serve  # heavy

    return serve(load_or_exit(config_path), config_path, once=once)
