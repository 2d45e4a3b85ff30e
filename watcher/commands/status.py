"""`watcher status`: one screen of how everything stands, from the store alone: no worker need run."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from watcher.commands.looking import age_text, say_json, say_next
from watcher.commands.options import config_option, load_or_exit
from watcher.printable import printable

if TYPE_CHECKING:
    from watcher.settings import Settings
    from watcher.store.guarantee import Guarantee
    from watcher.store.survey import Backlog, Failing, Seen, Survey

STALE_INTERVALS = 3
"""An account without a good poll for so many intervals is stale."""

_LATE_MS = 10_000
"""Polls that have been due for so long are claimed by nobody: a worker claims within a tenth of a second."""

_MOST_NAMES = 8
_TITLE = 15

_Line = dict[str, Any]


@click.command("status", short_help="How everything stands, on one screen.")
@config_option
@click.option("--json", "is_json", is_flag=True, help="One JSON object per server, provider, account in trouble, subscription.")
def command(*, config_path: Path | None, is_json: bool) -> None:
    """How everything stands: the server and what it promises, what fails, what is held, what waits.

    Reads the store alone, so that no worker need run. Exits with 0 however it stands; `watcher health`
    judges.
    """
    settings = load_or_exit(config_path).settings
    lines = asyncio.run(_survey(settings))
    if is_json:
        for line in lines:
            say_json(line)
    else:
        for text in _as_text(lines):
            click.echo(text)
    say_next(_next(lines))
