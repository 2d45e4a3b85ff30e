"""The token that guards `watcher run --http`: the option that names its variable, and how it is read.

Refuses to take it as an argument, which would stand in the process list, and to load anything of weight.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

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
    token = _value_of(name or TOKEN_NAME)
    if name and not token:
        raise TokenRefused(f"the environment has no {name} and no {name}_FILE, or it is empty")
    return token or None


def _value_of(name: str) -> str:
    path = os.environ.get(f"{name}_FILE")
    if name in os.environ or not path:
        return os.environ.get(name, "")
    try:
        return Path(path).read_text().removesuffix("\n")
    except OSError as error:
        raise TokenRefused(f"the file that {name}_FILE names cannot be read: {error.strerror}") from None
    except ValueError:
        raise TokenRefused(f"the file that {name}_FILE names is no text") from None
