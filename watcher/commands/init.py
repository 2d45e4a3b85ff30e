"""`watcher init`: writes a configuration to begin with, and says what to do next.

Refuses to write a secret into the file, and to overwrite anything without --force.
"""

import shlex
from importlib.resources import files
from pathlib import Path

import click

_USUAL = Path("watcher.toml")


@click.command("init", short_help="Write a watcher.toml to begin with.")
@click.argument("path", type=click.Path(path_type=Path), default=_USUAL)
@click.option("--force", "is_forced", is_flag=True, help="Replace the file if it is there.")
def command(*, path: Path, is_forced: bool) -> None:
    """Write a commented configuration to PATH (watcher.toml), and say what to do next.

    The commands to go on with are on stdout, with a fresh signing secret in them. It is written nowhere:
    keep it where you keep secrets, and give it to the receiver too.
    """
    from watcher.delivery.signing import new_secret

    try:
        with path.open("w" if is_forced else "x", encoding="utf-8") as file:
            file.write(example())
    except FileExistsError:
        raise click.ClickException(f"{path} is there already; --force replaces it") from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"Wrote {path}. Put your accounts and your receiver's URL in it. Then:", err=True)
    option = "" if path == _USUAL else f" --config {shlex.quote(str(path))}"
    click.echo(f"export LOOPRING_API_KEY='your-API-key' OPS_SECRET={new_secret()}")
    click.echo(f"watcher check{option}")
    click.echo(f"watcher run{option}")


def example() -> str:
    """Read the configuration that `init` writes."""
    return (files("watcher.config") / "example.toml").read_text(encoding="utf-8")
