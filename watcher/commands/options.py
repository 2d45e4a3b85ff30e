"""What commands share: the option `--config`, and how they load what it names.

Refuses to go on with a configuration that has a mistake: all of them go to stderr, and the exit code is 78.
"""

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from watcher.config import Finding, Loaded

EXIT_CONFIGURATION = 78

_MOST_LINES = 1000
"""Mistakes that are told to people: a wrong word in a generated file may be wrong 100,000 times."""

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The configuration; otherwise WATCHER_CONFIG, ./watcher.toml or /etc/watcher/watcher.toml.",
)


def load_or_exit(config_path: Path | None) -> "Loaded":
    """Load the configuration, or tell every mistake in it and end the command with exit code 78."""
    from watcher.config import ConfigRefused, load

    try:
        return load(config_path, os.environ)
    except ConfigRefused as refused:
        tell(refused.mistakes)
        tell(refused.warnings, "warning: ")
        click.get_current_context().exit(EXIT_CONFIGURATION)


def tell(findings: Iterable["Finding"], prefix: str = "") -> None:
    """Print findings on stderr, one a line."""
    rest = iter(findings)
    for finding in islice(rest, _MOST_LINES):
        click.echo(f"{prefix}{finding}", err=True)
    if more := sum(1 for _ in rest):
        click.echo(f"and {more} more; `watcher check --json` tells all", err=True)
