"""`watcher recipes`: lists the APIs that come described as data, and prints one to copy and edit."""

import json
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from watcher import recipes
from watcher.commands._shared import EXIT_CONFIGURATION, Unknown, print_findings, recipe_named
from watcher.commands._table import Column, Display, Table, display_options, say_json, say_next
from watcher.environment import Environment
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.findings import Finding
    from watcher.providers.contract import Provider, Request
    from watcher.settings import AccountSettings, ProviderSettings
    from watcher.snapshot import Snapshot

_COLUMNS = (
    Column("recipe", "whole"),
    Column("locked", "whole", rank=2),
    Column("pending", "whole", rank=2),
    Column("ran against", rank=1),
    Column("reads", "prose", least=24),
)


@click.command("recipes", short_help="The built-in recipes of APIs.")
@click.argument(
    "name",
    required=False,
    shell_complete=lambda _, __, text: [name for name in recipes.names() if name.startswith(text)],
)
@partial(display_options, has_times=False)
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line.")
def command(*, name: str | None, display: Display, is_json: bool) -> None:
    """List the built-in recipes, which describe APIs as data, or print the recipe NAME.

    A section of the configuration uses one by its name: [providers.NAME], or any name and kind = "NAME". What
    is printed is a configuration of kind http that does the same, to copy and edit.

    \b
    Examples:
      watcher recipes
      watcher recipes bitcoin-core > bitcoin-core.toml

    Exit codes: 0 done; 2 a usage error, or an unknown recipe.
    """
    if name is not None:
        click.echo(recipe_named(name).text)
        return
    listed = [*map(recipes.recipe, recipes.names())]
    if is_json:
        for recipe in listed:
            about = {"kind": recipe.kind, "fields": [*recipe.fields]}
            say_json({"name": recipe.name, **about, "ran_against": recipe.ran_against, "reads": recipe.reads})
        return
    rows = [(recipe.name, *known(recipe), recipe.ran_against, recipe.reads) for recipe in listed]
    with display.table(*_COLUMNS) as table:
        table.say(rows)
    say_next("watcher init --provider NAME, or watcher recipes NAME")


def known(recipe: recipes.Recipe) -> tuple[str, str]:
    """Say what a recipe knows besides the total: of locks, and of what is pending in which direction."""
    pending = [field.removeprefix("pending_") for field in recipe.fields if field.startswith("pending_")]
    both = {"deposit": "in", "withdrawal": "out"}
    return "yes" if "locked" in recipe.fields else "-", ", ".join(map(both.__getitem__, pending)) or "-"


class _StandIns(Environment):
    """Gives each variable that is needed its own name as its value: what is read so is shown, never sent."""

    def value_of(self, name: str) -> None:
        return None

    def required(self, name: str) -> str:
        return name


def read_answers(place: str, files: Sequence[BinaryIO], *, is_json: bool) -> int:
    """Print what answers say, by the recipe or the file at `place`, and what events two polls would make.

    Returns the exit code: 1 if a poll would reject an answer.
    """
    from watcher.commands.explain import say_rounds
    from watcher.journal.account import Rules
    from watcher.preview import MoreAsked, polls, preview
    from watcher.providers.contract import Rejected
    from watcher.providers.declared import Http

    provider, settings, account = _read(place, is_json=is_json)
    if not files:
        for request in provider.requests(account):
            line = asked(request)
            say_json({"asks": line}) if is_json else click.echo(printable(line, 1000))
        return 0
    seen: list[Snapshot] = []
    try:
        for snapshot, answers in polls(provider, account, [file.read() for file in files]):
            seen.append(snapshot)
            for path in provider.unled(account, answers) if isinstance(provider, Http) else ():
                click.echo(f"note: {path} finds nothing, so there is no further page. Is that so?", err=True)
            if not is_json and len(files) > 1:
                click.echo(f"poll {len(seen)}")
            _say_rows(snapshot, is_json=is_json)
    except Rejected as refused:
        why = {"error_class": refused.error_class, "reason": refused.reason}
        text = f"poll {len(seen) + 1} is rejected, {refused.error_class}: {refused.reason}"
        say_json({"kind": "rejected", "poll": len(seen) + 1, **why}) if is_json else click.echo(text)
        return 1
    except MoreAsked as more:
        lines = "".join(f"\n  {printable(asked(request), 400)}" for request in more.requests)
        wanted = many(len(more.requests), "more --answer", "more --answers")
        raise click.UsageError(f"poll {len(seen) + 1} takes {wanted}, of what it asks next:{lines}") from None
    for before, after in pairwise(seen):
        say_rounds(
            preview(before, after, Rules(settings.withdrawals, settings.settle_polls)), is_json=is_json
        )
    return 0


def _read(place: str, *, is_json: bool) -> "tuple[Provider, ProviderSettings, AccountSettings]":
    """Read the first account of a file and its provider, or end the command with exit code 78."""
    from pydantic import SecretStr

    from watcher.config.files import read_toml
    from watcher.config.findings import ConfigRefused, Findings
    from watcher.config.sections import read_accounts, read_providers
    from watcher.providers.contract import provider_class
    from watcher.settings import secrets_in

    path = recipes.HERE / f"{place}.toml" if place in recipes.names() else Path(place)
    if path.suffix != ".toml" and not path.exists():
        raise Unknown("recipe, and no file,", place, recipes.names())
    environment, findings = _StandIns(), Findings()
    try:
        document = read_toml(path, environment, findings)
        providers = read_providers(document, environment, findings)
        accounts = read_accounts(document, environment, providers, findings)
        mistakes: Sequence[Finding] = findings.mistakes
    except ConfigRefused as refused:
        mistakes = refused.mistakes
    if mistakes:
        print_findings(mistakes, is_json=is_json)
        click.get_current_context().exit(EXIT_CONFIGURATION)
    for account in accounts.by_name.values():
        settings = providers.settings_by_name[account.provider]
        # What is asked is shown: each secret is its own name in it.
        named: dict[str, Any] = {}
        for (field, *below), _ in secrets_in(settings):
            if below:
                named.setdefault(str(field), {})[below[0]] = SecretStr(str(below[0]))
            else:
                named[str(field)] = SecretStr(str(field))
        settings = settings.model_copy(update=named)
        return provider_class(settings.kind)(settings), settings, account
    raise click.ClickException(
        f"{path} has no [[accounts]]: one of them says what fills the slots of the asks"
    )


def asked(request: "Request") -> str:
    """Write a request as one line, without what is secret in its headers."""
    query = "&".join(f"{name}={value}" for name, value in sorted(request.query.items()))
    body = json.dumps(request.json, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    parts = [request.method, f"{request.path}?{query}" if query else request.path]
    return " ".join([*parts, body] if request.json is not None else parts)


def _say_rows(snapshot: "Snapshot", *, is_json: bool) -> None:
    amounts_of = ("total", "locked", "pending in", "pending out", "decimals")
    table = Table(Column("asset"), *(Column(title, "number") for title in amounts_of))
    cells: list[list[str]] = []
    for row in snapshot.row_by_asset.values():
        if is_json:
            say_json({"kind": "row", "asset": row.asset._asdict(), **row.balance._asdict()})
        label = row.asset.id if row.asset.symbol is None else f"{row.asset.symbol} {row.asset.id}"
        amounts = ["-" if amount is None else amount for amount in row.balance]
        decimals = "-" if row.asset.decimals is None else str(row.asset.decimals)
        cells.append([printable(label), *amounts, decimals])
    if not is_json:
        table.say(cells)
        if not cells:
            click.echo("no asset")
        if snapshot.height is not None:
            click.echo(f"height {snapshot.height}")
