"""The token that guards `watcher run --http`: the option that names its variable, and how it is read.

Refuses to take it as an argument, which would stand in the process list, and to load anything of weight.
"""

from collections.abc import Callable
from typing import TypeVar

import click

from watcher.environment import Environment, NotSet

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
