"""`watcher init`: writes a configuration to begin with, and says what to do next.

Refuses to write a secret into the file, and to overwrite anything without --force.
"""

import re
import shlex
import sys
import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from secrets import token_hex
from typing import Any

import click

from watcher import recipes
from watcher.commands._shared import Unknown

_USUAL = Path("watcher.toml")
_VARIABLE = re.compile(r"\$\{([A-Z_]+)\}")
_FROM, _MANY, _SENT = (
    "# Where balances are asked for",
    "# Many accounts fit better",
    "# Where events are sent",
)
"""How the comments of the example begin that open its parts: what is watched, a note, where events go."""


@click.command("init", short_help="Write a watcher.toml to begin with.")
@click.argument("path", type=click.Path(path_type=Path), default=_USUAL)
@click.option(
    "--provider",
    metavar="NAME",
    help="Where balances come from: a name that `watcher recipes` lists, or evm, exchange, http, loopring, "
    "metakeep.",
    shell_complete=lambda _, __, text: [name for name in sources() if name.startswith(text)],
)
@click.option(
    "--to",
    metavar="NAME",
    help="Where events go: standard (signed webhooks), the name of a chat service, or none.",
    shell_complete=lambda _, __, text: [name for name in destinations() if name.startswith(text)],
)
@click.option("--force", "is_forced", is_flag=True, help="Replace the file if it is there.")
def command(*, path: Path, provider: str | None, to: str | None, is_forced: bool) -> None:
    """Write a commented configuration to PATH (watcher.toml), and say what to do next.

    On a terminal it asks for what --provider and --to leave open. It prints the next commands on stdout. They
    contain a new signing secret, which is stored nowhere else: keep it with your secrets, and give it to the
    receiver.

    \b
    Examples:
      watcher init
      watcher init --provider ethereum --to slack

    Exit codes: 0 it is written; 1 there is a file already, or it cannot be written; 2 a usage error.
    """
    if not is_forced and path.exists():  # before anything is asked
        raise _there_already(path)
    if sys.stdin.isatty() and sys.stderr.isatty():
        provider = provider or _asked("Balances of", "--provider", sources(), "ethereum")
        to = to or _asked("Events go to", "--to", destinations(), "standard")
    text = example_with(provider, to)
    try:
        with path.open("w" if is_forced else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise _there_already(path) from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None
    if provider is None:
        click.echo("For what needs no key: watcher init --provider ethereum, or esplora (Bitcoin).", err=True)
    is_own = to in (None, "standard")
    what = "your accounts and your receiver's URL" if is_own else "your accounts"
    click.echo(f"Wrote {path}. Put {what} in it. Then:", err=True)
    names = variables_of(text)
    for name in names:
        click.echo(f"  {name}: {_about(name)[1]}", err=True)
    option = "" if path == _USUAL else f" --config {shlex.quote(str(path))}"
    if names:
        click.echo(f"export {' '.join(map(stand_in, names))}")
    click.echo(f"watcher check{option}")
    if to not in (None, "none"):
        click.echo(f"watcher ping ops{option}")
    click.echo(f"watcher run{option}")


def _there_already(path: Path) -> click.ClickException:
    return click.ClickException(
        f"{path} is there already: name another file (watcher init other.toml), or replace it with --force"
    )


def _asked(question: str, option: str, choices: dict[str, str], usual: str) -> str:
    """Let a person choose one of them by its name."""
    width = max(map(len, choices))
    click.echo(f"{question} ({option}):", err=True)
    for name, about in choices.items():
        click.echo(f"  {name:<{width}}  {about}", err=True)

    def named(text: str) -> str:
        if text not in choices:
            raise click.UsageError(Unknown("one of them", text, choices).message)
        return text

    answer: str = click.prompt("name", default=usual, value_proc=named, err=True)
    return answer


@cache
def _beginnings() -> dict[str, Any]:
    """Read what a configuration can begin with."""
    return tomllib.loads((files("watcher.config") / "beginnings.toml").read_text(encoding="utf-8"))


def sources() -> dict[str, str]:
    """Name everything that `--provider` can be, and what it reads."""
    known = {name: recipes.recipe(name).reads for name in recipes.names()}
    return dict(
        sorted({**known, **{name: of["reads"] for name, of in _beginnings()["sources"].items()}}.items())
    )


def destinations() -> dict[str, str]:
    """Name everything that `--to` can be, and what it is."""
    return {name: of["takes"] for name, of in _beginnings()["destinations"].items()}


def variables_of(text: str) -> list[str]:
    """Name the variables that a configuration needs, in their order."""
    return [
        *dict.fromkeys(_VARIABLE.findall("\n".join(line.partition("#")[0] for line in text.splitlines())))
    ]


def stand_in(variable: str) -> str:
    """Write an assignment for a line of a shell: what to replace, or a fresh secret."""
    from watcher.delivery.signing import new_secret

    value = _about(variable)[0].replace("{random}", token_hex(8))
    return f"{variable}={new_secret()}" if value == "{secret}" else f"{variable}='{value}'"


def _about(variable: str) -> tuple[str, str]:
    """Return what stands for its value, and where that comes from."""
    value, origin = _beginnings()["variables"][variable]
    return value, origin


def example() -> str:
    """Read the configuration that `init` writes if it is not asked for a provider."""
    return (files("watcher.config") / "example.toml").read_text(encoding="utf-8")


def example_with(provider: str | None, to: str | None) -> str:
    """Write that configuration for one of `sources()` and one of `destinations()`. Raises Unknown."""
    text = example()
    if provider is not None:
        before, _, rest = text.partition(_FROM)
        text = f"{before}{_source(provider)}\n\n{_MANY}{rest.partition(_MANY)[2]}"
    if to is None or to == "standard":
        return text
    if to not in destinations():
        raise Unknown("destination", to, destinations())
    section = _beginnings()["destinations"][to]["text"].lstrip()
    origins = "".join(f"# {name}: {_about(name)[1]}\n" for name in variables_of(section))
    return f"{text.partition(_SENT)[0]}{origins}{section}"


def _source(name: str) -> str:
    """Write the section of a source, and an account of it. Raises Unknown."""
    if name not in sources():
        raise Unknown("kind of provider", name, sources())
    if name not in recipes.names():
        return str(_beginnings()["sources"][name]["text"]).strip()
    comment, section, account = recipes.recipe(name).beginning
    return (
        f"{comment}\n#\n"
        f"# `watcher recipes {name}` prints all that this section stands for; each key of it may stand\n"
        f"# here too, and then counts instead.\n"
        f"{section}\n\n# What is watched there.\n{account}"
    )
