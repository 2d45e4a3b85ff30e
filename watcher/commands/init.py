"""`watcher init`: writes a configuration to begin with, and says what to do next.

Refuses to write a secret into the file, and to overwrite anything without --force.
"""

import re
import shlex
from importlib.resources import files
from pathlib import Path

import click

_USUAL = Path("watcher.toml")
_VARIABLE = re.compile(r"\$\{([A-Z_]+)\}")
_FROM, _TO = "# Where balances are asked for", "# Many accounts fit better"
"""How the comments begin between which the example says what is watched."""


@click.command("init", short_help="Write a watcher.toml to begin with.")
@click.argument("path", type=click.Path(path_type=Path), default=_USUAL)
@click.option("--provider", metavar="NAME", help="For one of the APIs that `watcher recipes` lists.")
@click.option("--force", "is_forced", is_flag=True, help="Replace the file if it is there.")
def command(*, path: Path, provider: str | None, is_forced: bool) -> None:
    """Write a commented configuration to PATH (watcher.toml), and say what to do next.

    The commands to go on with are on stdout, with a fresh signing secret in them. It is written nowhere:
    keep it where you keep secrets, and give it to the receiver too.
    """
    from watcher.delivery.signing import new_secret

    text = example() if provider is None else example_with(provider)
    try:
        with path.open("w" if is_forced else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise click.ClickException(f"{path} is there already; --force replaces it") from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None
    if provider is None:
        click.echo("For what needs no key: watcher init --provider ethereum, or esplora (Bitcoin).", err=True)
    click.echo(f"Wrote {path}. Put your accounts and your receiver's URL in it. Then:", err=True)
    option = "" if path == _USUAL else f" --config {shlex.quote(str(path))}"
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    names = dict.fromkeys(_VARIABLE.findall(lines))
    keys = (f"{name}='your-{name.rpartition('_')[2].lower()}'" for name in names)
    wanted = " ".join(key for key in keys if not key.startswith("OPS_SECRET="))
    click.echo(f"export {wanted}{' ' * bool(wanted)}OPS_SECRET={new_secret()}")
    click.echo(f"watcher check{option}")
    click.echo(f"watcher run{option}")


def example() -> str:
    """Read the configuration that `init` writes."""
    return (files("watcher.config") / "example.toml").read_text(encoding="utf-8")


def example_with(provider: str) -> str:
    """Write that configuration with a recipe in it. Raises as `recipe_named` does."""
    from watcher.commands._shared import recipe_named

    comment, section, account = recipe_named(provider).beginning
    before, _, rest = example().partition(_FROM)
    return (
        f"{before}{comment}\n#\n"
        f"# `watcher recipes {provider}` prints all that this section stands for; each key of it may stand\n"
        f"# here too, and then counts instead.\n"
        f"{section}\n\n# What is watched there.\n{account}\n\n{_TO}{rest.partition(_TO)[2]}"
    )
