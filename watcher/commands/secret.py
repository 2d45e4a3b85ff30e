"""`watcher secret`: make signing secrets and keys; here too the options by which commands are given one.

Refuses to take a secret as an argument: arguments show in the process list.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from watcher.environment import Environment, NotSet

_F = TypeVar("_F", bound=Callable[..., object])


def secret_options(function: _F) -> _F:
    """Add `--secret-env` and `--secret-file`, each of which may be repeated, to a command."""
    by_file = click.option(
        "--secret-file",
        "secret_files",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file that holds the secret (or several, one a line).",
    )
    by_name = click.option(
        "--secret-env",
        "secret_names",
        multiple=True,
        metavar="NAME",
        help="The variable (or NAME_FILE) that holds the secret (or several, separated by spaces).",
    )
    return by_name(by_file(function))


def secrets_given(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Collect the secrets of `secret_options`. Raises click.UsageError, which never holds one."""
    environment = Environment()
    try:
        texts = [environment.required(name) for name in names]
        texts += [environment.content_of(str(file), str(file)) for file in files]
    except NotSet as error:
        raise click.UsageError(str(error)) from None
    if not all(text.strip() for text in texts):
        raise click.UsageError("a secret holds nothing but white space")
    return [secret for text in texts for secret in text.split()]


def verifying(secrets: Sequence[str]) -> list[str]:
    """Turn each `whsk_…` among `secrets` into the `whpk_…` that verifies it, and check all of them."""
    from watcher.delivery.signing import PRIVATE, BadSecret, public_key
    from watcher.receive import UnusableSecret, check_secrets

    try:
        usable = [public_key(secret) if secret.startswith(PRIVATE) else secret for secret in secrets]
        if usable:
            check_secrets(usable)
    except (BadSecret, UnusableSecret) as error:
        raise click.UsageError(f"secret: {error}") from None
    return usable


@click.group("secret", short_help="Make signing secrets, and keys for the API.")
def command() -> None:
    """Make signing secrets and keys, and print the public part of private secrets.

    \b
    Examples:
      watcher secret new
      watcher secret public --secret-env OPS_KEY

    Exit codes: 0 done; 2 a usage error.
    """


@command.command()
@click.option("--ed25519", is_flag=True, help="A key pair: the receiver gets a key that cannot sign.")
@click.option(
    "--key", is_flag=True, help="A key, wkey_…, for [api] secret_key: it encrypts what comes through the API."
)
def new(*, ed25519: bool, key: bool) -> None:
    """Print a new secret.

    A shared one, whsec_…, goes to both sides. With --ed25519 the sender's private key, whsk_…, goes to
    stdout, and the receiver's public key, whpk_…, to stderr; `watcher secret public` prints it again.

    \b
    Examples:
      watcher secret new
      watcher secret new --ed25519

    Exit codes: 0 done; 2 a usage error.
    """
    from watcher.delivery.signing import new_ed25519, new_secret
    from watcher.encryption import new_key

    if key and ed25519:
        raise click.UsageError("--key and --ed25519 make different things: give one of them")
    if key:
        click.echo(new_key())
        return
    secret = new_ed25519() if ed25519 else new_secret()
    if ed25519:
        click.echo(f"public key, for the receiver: {verifying([secret])[0]}", err=True)
    click.echo(secret)


@command.command()
@secret_options
def public(*, secret_names: tuple[str, ...], secret_files: tuple[Path, ...]) -> None:
    """Print the public key, whpk_…, of a private one, whsk_….

    \b
    Examples:
      watcher secret public --secret-env OPS_KEY
      watcher secret public --secret-file key.txt

    Exit codes: 0 done; 2 a usage error.
    """
    from watcher.delivery.signing import BadSecret, public_key

    secrets = secrets_given(secret_names, secret_files)
    if not secrets:
        raise click.UsageError("give --secret-env or --secret-file")
    for secret in secrets:
        try:
            click.echo(public_key(secret))
        except BadSecret as error:
            raise click.UsageError(f"secret: {error}") from None
