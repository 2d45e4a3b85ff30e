"""`watcher check`: finds every mistake in the configuration, before anything runs.

Refuses to talk to anybody: no provider, no subscriber, no Redis. Shows no secret.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from watcher.commands.options import EXIT_CONFIGURATION, config_option, load_or_exit

if TYPE_CHECKING:
    from watcher.config import Finding, Loaded

_MOST_NAMES = 5


@click.command("check", short_help="Find every mistake in the configuration.")
@config_option
@click.option("--show", "is_shown", is_flag=True, help="Print what is in effect, with secrets as ***.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line: mistakes, warnings, summary.")
def command(*, config_path: Path | None, is_shown: bool, is_json: bool) -> None:
    """Find every mistake in the configuration, before anything runs.

    Prints a summary and exits with 0, or tells all mistakes on stderr and exits with 78.
    """
    loaded = _load_as_json(config_path) if is_json else load_or_exit(config_path)
    if is_json:
        _say_findings("warning", loaded.warnings)
    else:
        for warning in loaded.warnings:
            click.echo(f"warning: {warning}", err=True)
    if is_shown:
        _show(loaded, is_json=is_json)
    else:
        _summarize(loaded, is_json=is_json)


def _load_as_json(config_path: Path | None) -> "Loaded":
    """With --json the mistakes are the data that was asked for."""
    from watcher.config import ConfigRefused, load

    try:
        return load(config_path, os.environ)
    except ConfigRefused as refused:
        _say_findings("mistake", refused.mistakes)
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
    from watcher.config.shown import as_toml, shown

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
