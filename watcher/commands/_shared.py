"""What commands share: the options that name a configuration, a store, a time, a token."""

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
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from watcher.printable import printable

if TYPE_CHECKING:
    from watcher.settings import Settings, SubscriptionSettings
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from watcher.environment import Environment, NotSet

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

    from watcher.config.tables import redis_url_flaw
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


_MOST_CANDIDATES = 10_000
"""Names that are compared; of 100,000 it would take seconds."""


def refuse_unknown(kind: str, globs: Iterable[str], known: Iterable[str]) -> None:
    """Raise Unknown for the first glob that matches none of the names that there are."""
    names = [*known]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise Unknown(kind, glob, names)


class Unknown(click.ClickException):
    """Nothing of this kind has this name, or one that matches this glob."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        close = get_close_matches(name[:200], islice(known, _MOST_CANDIDATES), n=1)
        hint = f"; did you mean '{printable(close[0])}'?" if close else ""
        super().__init__(f"no {kind} is called '{printable(name, 200)}'{hint}")


def subscription_named(settings: "Settings", name: str) -> "SubscriptionSettings":
    """Find a subscription of the configuration. Raises Unknown."""
    subscriptions = settings.subscription_by_name
    if name not in subscriptions:
        raise Unknown("subscription of the configuration", name, subscriptions)
    return subscriptions[name]


def subscriptions_like(settings: "Settings", others: Iterable[str], glob: str | None) -> list[str]:
    """Name the subscriptions that a glob matches, those of the configuration first; without one, all."""
    names = [*dict.fromkeys([*settings.subscription_by_name, *others])]
    found = [name for name in names if glob is None or fnmatchcase(name, glob)]
    if glob is not None and not found:
        raise Unknown("subscription", glob, names)
    return found


since_option = click.option(
    "--since", metavar="WHEN", help="As long ago as 1h or 2d, or a time such as 2026-11-20T14:00Z."
)


def parse_since(text: str | None) -> datetime | timedelta | None:
    """Read what was given. Raises click.BadParameter."""
    from watcher.durations import parse_duration

    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            return parse_duration(text)
        except ValueError:
            message = "write how long ago, as in 1h or 2d, or a time, as in 2026-11-20T14:00Z"
            raise click.BadParameter(message, param_hint="--since") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def since_ms(since: datetime | timedelta | None, now_ms: int) -> int:
    """Say which time that is (Unix ms of the server); without one, the beginning."""
    if since is None:
        return 0
    if isinstance(since, timedelta):
        return max(0, now_ms - since // timedelta(milliseconds=1))
    return max(0, int(1000 * since.timestamp()))


TOKEN_NAME = "WATCHER_HTTP_TOKEN"  # noqa: S105  # the name of a variable


class TokenRefused(click.ClickException):
    """There is no token where one was said to be."""

    exit_code = 78


_F = TypeVar("_F", bound=Callable[..., object])


def token_option(function: _F) -> _F:
    """Add `--http-token-env` to a command."""
    option = click.option(
        "--http-token-env",
        "token_name",
        metavar="NAME",
        help=f"The variable (or NAME_FILE) with the token for HTTP; {TOKEN_NAME} where that is set.",
    )
    return option(function)


def token_given(name: str | None) -> str | None:
    """Read the token; None where nobody set one. Raises TokenRefused, which never holds it."""
    try:
        if name:
            return Environment().required(name)
        return Environment().value_of(TOKEN_NAME)
    except NotSet as error:
        raise TokenRefused(str(error)) from None
