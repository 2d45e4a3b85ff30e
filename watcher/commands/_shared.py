"""What commands share: the options that name a configuration, a Redis, names, a time, a token."""

import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import wraps
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from watcher import durations
from watcher.environment import Environment, NotSet, decoded
from watcher.printable import printable

if TYPE_CHECKING:
    from watcher.config.findings import Finding
    from watcher.config.loading import Loaded
    from watcher.recipes import Recipe
    from watcher.settings import Settings, SubscriptionSettings

EXIT_CONFIGURATION = 78

_MOST_LINES = 1000
"""Mistakes printed for people: a generated file may repeat one 100,000 times."""

_T = TypeVar("_T")


def in_a_loop(function: Callable[..., Coroutine[Any, Any, _T]]) -> Callable[..., _T]:
    """Run an async command in an event loop of its own."""

    @wraps(function)
    def command(**given: Any) -> _T:
        import asyncio  # heavy for the commands that need no loop

        return asyncio.run(function(**given))

    return command


@contextmanager
def given_by(option: str) -> Iterator[None]:
    """Blame a ValueError on the option whose value is read inside."""
    try:
        yield
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The configuration; otherwise WATCHER_CONFIG, ./watcher.toml or /etc/watcher/watcher.toml.",
)


def look_options(function: Callable[..., Any], *, is_brief: bool = False) -> Callable[..., Any]:
    """Add the options by which a command that looks finds Redis, and pass the result as `look`; if it
    `is_brief`, only [redis] is read from the file."""

    @config_option
    @click.option(
        "--redis",
        "url",
        metavar="URL",
        help="Look at this Redis, without a configuration. A password is better in REDIS_URL.",
    )
    @click.option("--namespace", metavar="NAME", help="Instead of redis.namespace.")
    @click.option("--data-dir", metavar="PATH", help="Look at the embedded server's data there.")
    @wraps(function)
    def command(
        *, config_path: Path | None, url: str | None, namespace: str | None, data_dir: str | None, **rest: Any
    ) -> Any:
        from watcher.config.findings import ConfigRefused
        from watcher.config.loading import read_to_look

        if data_dir is not None and url is None:
            url = "embedded"
        options = {"url": url, "namespace": namespace, "data_dir": data_dir}
        given = {name: value for name, value in options.items() if value is not None}
        _check(given)
        try:
            look = read_to_look(config_path, os.environ, given, is_brief=is_brief)
        except ConfigRefused as refused:  # where the state lies must be known
            print_findings(refused.mistakes)
            click.get_current_context().exit(EXIT_CONFIGURATION)
        if look.problem:
            click.echo(f"warning: {look.problem}; what it lacks is read from Redis", err=True)
        return function(look=look, **rest)

    return command


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


json_option = click.option("--json", "is_json", is_flag=True, help="One JSON object per line.")
sure_option = click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")


class ListFirst(click.Group):
    """A group whose command `list` may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_said = bool(args) and (not args[0].startswith("-") or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if is_said else ["list", *args])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Where the word is none, nor like one, it is a name perhaps."""
        names, word = self.list_commands(ctx), args[0]
        if not (ctx.resilient_parsing or word in names or get_close_matches(word, names)):
            said = printable(word, 200)
            text = f"'{said}' is none of {', '.join(names)}: do you mean `{ctx.command_path} show {said}`?"
            raise click.UsageError(text, ctx)
        return super().resolve_command(ctx, args)


def load_or_exit(config_path: Path | None, *, is_json: bool = False) -> "Loaded":
    """Load the configuration, or print every mistake in it and end the command with exit code 78."""
    from watcher.config.findings import ConfigRefused
    from watcher.config.loading import load

    try:
        return load(config_path, os.environ)
    except ConfigRefused as refused:
        print_findings(refused.mistakes, is_json=is_json)
        print_findings(refused.warnings, "warning", is_json=is_json)
        click.get_current_context().exit(EXIT_CONFIGURATION)


def print_findings(
    findings: Iterable["Finding"], severity: str = "mistake", *, is_json: bool = False
) -> None:
    """Print findings, one on each line: on stderr, or with --json all of them on stdout, where data goes."""
    if is_json:
        import json

        for found in findings:
            place = {"file": found.file, "line": found.line, "key": found.key}
            click.echo(json.dumps({"severity": severity, **place, "text": found.text}))
        return
    prefix = "warning: " if severity == "warning" else ""
    rest = iter(findings)
    for finding in islice(rest, _MOST_LINES):
        click.echo(f"{prefix}{finding}", err=True)
    if more := sum(1 for _ in rest):
        click.echo(f"and {more} more; `watcher check --json` lists all", err=True)


_MOST_CANDIDATES = 10_000
"""Names that are compared: 100,000 would take seconds."""


def refuse_unknown(kind: str, globs: Iterable[str], known: Iterable[str]) -> None:
    """Raise Unknown for the first glob that matches none of these names."""
    names = [*known]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise Unknown(kind, glob, names)


_LISTED_BY = {
    "account": "watcher accounts",
    "subscription": "watcher subscriptions",
    "recipe": "watcher recipes",
    "kind of provider": "watcher recipes",
    "type of event": "watcher schema events",
}
"""The command that lists the names of a kind."""

_FEW = 12
"""Names of another kind that are printed."""


class Unknown(click.ClickException):
    """Nothing of this kind has this name, or a name that matches this glob."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = [*islice(known, _MOST_CANDIDATES)]
        close = get_close_matches(name[:200], names, n=1)
        hint = next((f"; `{by}` lists all" for begin, by in _LISTED_BY.items() if kind.startswith(begin)), "")
        if not hint and len(names) <= _FEW:
            hint = f"; there is {', '.join(map(printable, names)) or 'none'}"
        if close:
            hint = f"; did you mean '{printable(close[0])}'?"
        super().__init__(f"no {kind} is called '{printable(name, 200)}'{hint}")


def recipe_named(name: str) -> "Recipe":
    """Find a recipe. Raises Unknown, or a usage error for a kind that is code."""
    from watcher import recipes
    from watcher.providers.contract import PLACE_BY_KIND

    if name in PLACE_BY_KIND:
        way = f"`watcher init --provider {name}` writes a section"
        raise click.UsageError(f"'{name}' is code, not a recipe: {way}")
    if name not in recipes.names():
        raise Unknown("recipe", name, recipes.names())
    return recipes.recipe(name)


def subscription_named(settings: "Settings", name: str) -> "SubscriptionSettings":
    """Find a subscription of the configuration. Raises Unknown."""
    subscriptions = settings.subscription_by_name
    if name not in subscriptions:
        raise Unknown("subscription of the configuration", name, subscriptions)
    return subscriptions[name]


def names_like(kind: str, names: Iterable[str], glob: str | None) -> list[str]:
    """Return the names that a glob matches, in their order; without one, all. Raises Unknown for no match."""
    known = [*names]
    found = [name for name in known if glob is None or fnmatchcase(name, glob)]
    if glob is not None and not found:
        raise Unknown(kind, glob, known)
    return found


_MOST_COMPLETED = 1000
"""Names offered to a shell, which takes seconds for more; a part of them might share a prefix that not all
have."""

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def names_of(kind: str) -> Complete:
    """Complete names of "accounts" or "subscriptions" from the text of the configuration, valid or not; no
    names while too many begin like that."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        path = Environment().place_of(context.params.get("config_path"))
        found = [name for name in names_in(path, kind) if name.startswith(incomplete)]
        return found if len(found) <= _MOST_COMPLETED else []

    return complete


def names_in(path: Path | None, kind: str) -> Iterator[str]:
    """Read the names of "accounts", "subscriptions" or "providers" from the text of a configuration, valid or
    not: `watcher check` says what is wrong with it."""
    import json  # few commands ask for it
    import tomllib

    with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError), ExitStack() as stack:
        document = tomllib.loads(decoded(path.read_bytes())) if path else {}
        tables = document.get(kind, ())
        if isinstance(tables, dict):
            tables = [{"name": name} for name in tables]
        if path and kind == "accounts" and "accounts_file" in document:
            lines = stack.enter_context((path.parent / document["accounts_file"]).open("rb"))
            tables = chain(tables, (json.loads(decoded(line)) for line in lines if line.strip()))
        for name in (table.get("name") for table in tables):
            # A shell would take a name with unprintable characters for something else.
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


since_option = click.option(
    "--since", metavar="WHEN", help="As long ago as 1h or 2d, or a time such as 2026-11-20T14:00Z."
)


def parse_since(text: str | None) -> datetime | timedelta | None:
    """Read the given time. Raises click.BadParameter."""
    try:
        return None if text is None else durations.parse_since(text)
    except ValueError:
        message = "write how long ago, as in 1h or 2d (a year at most), or a time: 2026-11-20T14:00Z"
        raise click.BadParameter(message, param_hint="--since") from None


TOKEN_NAME = "WATCHER_HTTP_TOKEN"  # noqa: S105  # the name of a variable


class TokenRefused(click.ClickException):
    """The variable or file that should hold the token is empty."""

    exit_code = 78


_F = TypeVar("_F", bound=Callable[..., object])


def token_option(function: _F) -> _F:
    """Add `--http-token-env` to a command."""
    option = click.option(
        "--http-token-env",
        "token_name",
        metavar="NAME",
        help=f"The variable (or NAME_FILE) with the token for HTTP; {TOKEN_NAME} if that is set.",
    )
    return option(function)


def token_given(name: str | None) -> str | None:
    """Read the token; None if none is set. Raises TokenRefused, which never holds it."""
    try:
        if name:
            return Environment().required(name)
        return Environment().value_of(TOKEN_NAME)
    except NotSet as error:
        raise TokenRefused(str(error)) from None
