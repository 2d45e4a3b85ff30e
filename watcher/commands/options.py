"""What commands share: the options that name a configuration or a store, and how they read what these name.

Refuses to act by a configuration that has a mistake: all of them go to stderr, and the exit code is 78. To
look, [redis] is enough.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from watcher.config import Finding, Loaded
    from watcher.config.looking import Look

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


def look_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options by which a command that looks finds the store, and give it a `look` instead."""

    @config_option
    @click.option(
        "--redis",
        "url",
        metavar="URL",
        help="Look at this store, without a configuration. A password is better in REDIS_URL.",
    )
    @click.option("--namespace", metavar="NAME", help="Instead of redis.namespace.")
    @click.option("--data-dir", metavar="PATH", help="Look at the embedded store that lies there.")
    @wraps(function)
    def command(
        *, config_path: Path | None, url: str | None, namespace: str | None, data_dir: str | None, **rest: Any
    ) -> Any:
        if data_dir is not None and url is None:
            url = "embedded"
        given = {"url": url, "namespace": namespace, "data_dir": data_dir}
        return function(look=_look(config_path, {k: v for k, v in given.items() if v is not None}), **rest)

    return command


def _look(config_path: Path | None, given: Mapping[str, str]) -> "Look":
    """Read what can be read, and say in one line if it is not all. Where the state lies must be known."""
    from watcher.config import ConfigRefused
    from watcher.config.looking import read_to_look

    _check(given)
    try:
        look = read_to_look(config_path, os.environ, given)
    except ConfigRefused as refused:
        tell(refused.mistakes)
        click.get_current_context().exit(EXIT_CONFIGURATION)
    if look.trouble:
        click.echo(f"warning: {look.trouble}; what it lacks is read from the store", err=True)
    return look


def _check(given: Mapping[str, str]) -> None:
    """Raises click.BadParameter, which never holds a URL."""
    from pydantic import ValidationError

    from watcher.config.rules import redis_url_flaw
    from watcher.settings import RedisSettings

    if "url" in given and (flaw := redis_url_flaw(given["url"])):
        raise click.BadParameter(flaw, param_hint="--redis")
    try:
        RedisSettings.model_validate(given)
    except ValidationError as error:
        detail = error.errors(include_input=False)[0]
        option = f"--{str(detail['loc'][0]).replace('_', '-')}"
        raise click.BadParameter(detail["msg"].removeprefix("Value error, "), param_hint=option) from None


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
