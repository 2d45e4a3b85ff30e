"""`watcher tail`: shows structured log lines to people, with filters."""

import sys
import time
from contextlib import ExitStack

import click

from watcher.commands._shared import accounts_option, names_of
from watcher.observe.tail import LEVELS, Filter, as_json, follow, harmless, joined, lines_of, parse, pretty

_LOOK_EVERY_S = 0.2


@click.command()
@click.argument(
    "files", metavar="[FILE]...", nargs=-1, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option("--level", type=click.Choice(LEVELS), default="debug", help="This level and above.")
@click.option("--event", "events", multiple=True, metavar="GLOB", help="Event names, such as 'delivery.*'.")
@accounts_option
@click.option(
    "--subscription",
    "subscriptions",
    multiple=True,
    metavar="GLOB",
    help="Subscription names.",
    shell_complete=names_of("subscriptions"),
)
@click.option(
    "-f", "--follow", "is_followed", is_flag=True, help="Keep printing as files grow or are rotated."
)
@click.option("--color/--no-color", default=None, help="Colours; by default on a terminal.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line; foreign lines go to stderr.")
@click.pass_context
def command(
    context: click.Context,
    *,
    files: tuple[str, ...],
    level: str,
    events: tuple[str, ...],
    accounts: tuple[str, ...],
    subscriptions: tuple[str, ...],
    is_followed: bool,
    color: bool | None,
    is_json: bool,
) -> None:
    """Show structured log lines to people, with filters.

    Reads FILEs or standard input, and removes what platforms put before or around a line: prefixes, the JSON
    of journald, docker, Loki and Google Cloud, and log.prefix. Lines that are not watcher's are printed as
    they are, unless --event, --account or --subscription is given.

    \b
    Examples:
      watcher run | watcher tail --level warning
      heroku logs --tail | watcher tail --event 'delivery.*'
      docker compose logs -f | watcher tail --account treasury

    Exit codes: 0 the input has ended; 2 a usage error.
    """
    if is_followed and "-" in files:
        raise click.UsageError("--follow goes by the names of files; standard input is followed anyway")
    wanted = Filter(level, events, accounts, subscriptions)
    is_colored = sys.stdout.isatty() and context.color is not False if color is None else color
    with ExitStack() as stack:
        if is_followed and files:
            texts = follow(files, wait=lambda: time.sleep(_LOOK_EVERY_S))
        else:
            opened = (stack.enter_context(click.open_file(file, "rb")) for file in files or ("-",))
            texts = (text for file in opened for text in lines_of(file))
        for text in joined(texts):
            line = parse(text)
            if line is None and wanted.wants_foreign():
                print(harmless(text), file=sys.stderr if is_json else sys.stdout, flush=True)
            elif line is not None and wanted.wants(line):
                print(as_json(line) if is_json else pretty(line, color=is_colored), flush=True)
