"""What a shell completes: names that stand in the configuration, read as text and without judging it.

Refuses to fail, and to say anything: nothing is completed where the configuration is broken or missing.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from watcher.environment import Environment, decoded
from watcher.places import place_of

_MOST_NAMES = 1000
"""A shell takes seconds for more; and a part of them would have in common what all of them have not."""

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def names_of(kind: str) -> Complete:
    """Complete names of "accounts" or "subscriptions"; none as long as too many begin like that."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        found: list[str] = []
        with suppress(Exception):  # a prompt is no place to learn of a mistake: `watcher check` is
            names = _names(kind, place_of(context.params.get("config_path"), Environment()))
            found = [name for name in names if name.startswith(incomplete)]
        return found if len(found) <= _MOST_NAMES else []

    return complete


def _names(kind: str, path: Path | None) -> Iterator[str]:
    import json  # only a shell asks for it
    import tomllib

    if path is None:
        return
    document = tomllib.loads(decoded(path.read_bytes()))
    for table in document.get(kind, ()):
        yield from _name(table)
    if kind == "accounts" and "accounts_file" in document:
        with (path.parent / document["accounts_file"]).open("rb") as lines:
            for line in lines:
                yield from _name(json.loads(decoded(line)) if line.strip() else {})


def _name(table: Any) -> Iterator[str]:
    """One that cannot be seen, or that a shell would take for something else, is left out."""
    name = table.get("name")
    if isinstance(name, str) and name.isprintable():
        yield name


accounts_option = click.option(
    "--account",
    "accounts",
    multiple=True,
    metavar="GLOB",
    help="Account names.",
    shell_complete=names_of("accounts"),
)
"""For commands that filter by any number of globs."""
