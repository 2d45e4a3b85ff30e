"""`watcher check`: finds every mistake in the configuration, before anything runs.

Refuses to connect to any provider, subscriber or Redis without --connect, and to show a secret.
"""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from watcher.commands._shared import config_option, load_or_exit, print_findings

if TYPE_CHECKING:
    from watcher.settings import Settings

_MOST_NAMES = 5
_LONGEST = 600
"""Characters of what was found, or of what to do: these texts are our own, and their ends say most."""


@click.command("check", short_help="Find every mistake in the configuration.")
@config_option
@click.option("--show", "is_shown", is_flag=True, help="Print the settings in effect, with secrets as ***.")
@click.option("--connect", "is_trying", is_flag=True, help="Try Redis, providers and subscribers too.")
@click.option("--recipe", metavar="FILE|NAME", help="Instead: read answers by a recipe, or by such a file.")
@click.option(
    "--answer",
    "answers",
    metavar="ANSWER.json",
    multiple=True,
    type=click.File("rb"),
    help="With --recipe: the body of an answer, in the order in which they are asked for.",
)
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line: mistakes, warnings, summary.")
def command(
    *,
    config_path: Path | None,
    is_shown: bool,
    is_trying: bool,
    recipe: str | None,
    answers: "tuple[BinaryIO, ...]",
    is_json: bool,
) -> int:
    """Find every mistake in the configuration, before anything runs.

    Prints a summary, or all mistakes.

    With --connect it also tries Redis and the rights there, polls one account of each provider, compares the
    clocks, and connects to each subscriber, up to the TLS handshake: nothing is written, nothing is sent. A
    Redis with a self-signed certificate needs ?ssl_ca_certs=/path/ca.pem in redis.url.

    With --recipe and --answer it prints the balances that the answers give for the first account of that
    file, and, with the answers of a second poll, the events. Without --answer it prints the requests.

    \b
    Examples:
      watcher check
      watcher check --connect
      watcher check --recipe bitcoin-core --answer answer.json

    Exit codes: 0 it is valid; 1 something failed that --connect tried, or a poll would reject an answer; 2 a
    usage error; 78 there are mistakes, all of them on stderr.
    """
    if recipe is not None:
        from watcher.commands.recipes import read_answers

        return read_answers(recipe, answers, is_json=is_json)
    if answers:
        raise click.UsageError("--answer needs --recipe: a file, or a name that `watcher recipes` lists")
    loaded = load_or_exit(config_path, is_json=is_json)
    print_findings(loaded.warnings, "warning", is_json=is_json)
    settings = loaded.settings
    if is_shown:
        from watcher.config.loading import as_toml, shown

        tree = shown(settings)
        for line in [json.dumps(tree)] if is_json else as_toml(tree):
            click.echo(line)
    elif is_json:
        accounts = Counter(account.provider for account in settings.account_by_name.values())
        providers = {
            name: {"kind": provider.kind, "accounts": accounts[name]}
            for name, provider in settings.provider_by_name.items()
        }
        subscriptions = [*settings.subscription_by_name]
        summary = {"file": str(loaded.path), "providers": providers, "subscriptions": subscriptions}
        click.echo(json.dumps(summary))
    else:
        click.echo(f"{loaded.path} is good")
        for title, by_name in (
            ("providers", settings.provider_by_name),
            ("accounts", settings.account_by_name),
            ("subscriptions", settings.subscription_by_name),
        ):
            names = ", ".join(islice(by_name, _MOST_NAMES)) + (", …" if len(by_name) > _MOST_NAMES else "")
            click.echo(f"{title:<13} {len(by_name):>7,}  {names}".rstrip())
    return _try(settings, is_json=is_json) if is_trying else 0


def _try(settings: "Settings", *, is_json: bool) -> int:
    """Try what the configuration leads to; returns the exit code."""
    import asyncio

    from watcher import preflight
    from watcher.commands._table import Display, Fails, Progress, Waits
    from watcher.printable import printable, without_secrets

    found, display = preflight.trials(settings), Display()
    with Progress("trying", len(found), is_long=True) as progress:
        lines = asyncio.run(preflight.try_all(found, done=progress.done))
    for line in lines:
        if is_json:
            click.echo(json.dumps(line._asdict()))
            continue
        text = printable(without_secrets(line.text), _LONGEST)
        says: type[str] = Fails if line.verdict == "failed" else Waits if line.verdict == "warning" else str
        head = f"{line.kind:<13} {line.verdict:<8} "
        display.say(says(f"{head}{line.name}: {text}"), margin=len(head))
        if line.todo:
            todo = printable(without_secrets(line.todo), _LONGEST)
            display.say(f"{'':<{len(head)}}what to do: {todo}", margin=len(head))
    return 1 if any(line.verdict == "failed" for line in lines) else 0
