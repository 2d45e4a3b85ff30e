"""`watcher check`: finds every mistake in the configuration, before anything runs.

Refuses to talk to anybody unless it is asked to by --connect: no provider, no subscriber, no Redis. Shows no
secret.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from watcher.commands._shared import EXIT_CONFIGURATION, config_option, load_or_exit, tell

if TYPE_CHECKING:
    from watcher.config import Finding, Loaded
    from watcher.preflight import Tried
    from watcher.settings import Settings

_MOST_NAMES = 5


@click.command("check", short_help="Find every mistake in the configuration.")
@config_option
@click.option("--show", "is_shown", is_flag=True, help="Print what is in effect, with secrets as ***.")
@click.option("--connect", "is_trying", is_flag=True, help="Try Redis, providers and subscribers too.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line: mistakes, warnings, summary.")
def command(*, config_path: Path | None, is_shown: bool, is_trying: bool, is_json: bool) -> int:
    """Find every mistake in the configuration, before anything runs.

    Prints a summary and exits with 0, or tells all mistakes on stderr and exits with 78.

    With --connect it also tries Redis and the rights there, polls one account of each provider, compares the
    clocks, and goes as far as the TLS of each subscriber: nothing is written, nothing is sent. It exits with
    1 if anything fails. A Redis whose certificate is self-signed needs ?ssl_ca_certs=/path/ca.pem in
    redis.url.
    """
    loaded = _load_as_json(config_path) if is_json else load_or_exit(config_path)
    if is_json:
        _say_findings("warning", loaded.warnings)
    else:
        tell(loaded.warnings, "warning: ")
    if is_shown:
        _show(loaded, is_json=is_json)
    else:
        _summarize(loaded, is_json=is_json)
    return _try(loaded.settings, is_json=is_json) if is_trying else 0


def _try(settings: "Settings", *, is_json: bool) -> int:
    """Try what the configuration leads to; returns the exit code."""
    import asyncio

    from watcher import preflight

    found = preflight.trials(settings)
    is_hidden = not sys.stderr.isatty()
    with click.progressbar(length=len(found), label="trying", file=sys.stderr, hidden=is_hidden) as progress:
        lines = asyncio.run(preflight.try_all(found, done=lambda: progress.update(1)))
    if is_json:
        for line in lines:
            _say(line._asdict())
    else:
        _say_tried(lines)
    return 1 if any(line.verdict == "failed" for line in lines) else 0


def _say_tried(lines: "Sequence[Tried]") -> None:
    from watcher.printable import printable, without_secrets

    for line in lines:
        text = printable(without_secrets(line.text))
        click.echo(f"{line.kind:<13} {line.verdict:<8} {line.name}: {text}")
        if line.todo:
            click.echo(f"{'':<13} {'':<8} what to do: {printable(without_secrets(line.todo))}")


def _load_as_json(config_path: Path | None) -> "Loaded":
    """With --json the mistakes are the data that was asked for."""
    from watcher.config import ConfigRefused, load

    try:
        return load(config_path, os.environ)
    except ConfigRefused as refused:
        _say_findings("mistake", refused.mistakes)
        _say_findings("warning", refused.warnings)
        click.get_current_context().exit(EXIT_CONFIGURATION)


def _say_findings(severity: str, findings: Iterable["Finding"]) -> None:
    for found in findings:
        _say(
            {
                "severity": severity,
                "file": found.file,
                "line": found.line,
                "key": found.key,
                "text": found.text,
            }
        )


def _show(loaded: "Loaded", *, is_json: bool) -> None:
    from watcher.config.loading import as_toml, shown

    tree = shown(loaded.settings)
    if is_json:
        _say(tree)
        return
    for line in as_toml(tree):
        click.echo(line)


def _summarize(loaded: "Loaded", *, is_json: bool) -> None:
    settings = loaded.settings
    accounts = Counter(account.provider for account in settings.account_by_name.values())
    if is_json:
        providers = {
            name: {"kind": provider.kind, "accounts": accounts[name]}
            for name, provider in settings.provider_by_name.items()
        }
        _say(
            {
                "file": str(loaded.path),
                "providers": providers,
                "subscriptions": [*settings.subscription_by_name],
            }
        )
        return
    click.echo(f"{loaded.path} is good")
    click.echo(_row("providers", settings.provider_by_name))
    click.echo(_row("accounts", settings.account_by_name))
    click.echo(_row("subscriptions", settings.subscription_by_name))


def _row(title: str, names: Collection[str]) -> str:
    listed = ", ".join([*names][:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
    return f"{title:<13} {len(names):>7,}  {listed}".rstrip()


def _say(value: object) -> None:
    click.echo(json.dumps(value))
