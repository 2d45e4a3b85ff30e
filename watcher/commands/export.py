"""`watcher export`: writes what came through the API as files that a worker without the API can use, too.

Refuses to write a secret unless it is asked to, and to overwrite anything.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO
from urllib.parse import urlsplit

import click

from watcher.commands._shared import Unknown, in_a_loop, json_option, look_options
from watcher.commands._table import NoKey, Progress, opened, say_json, say_next
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.encryption import Keyring
    from watcher.store.directory import Kind, Record

Table = dict[str, Any]

SUBSCRIPTIONS, ACCOUNTS, STATE = "subscriptions.toml", "accounts.jsonl", "state.jsonl"

STATE_KEYS = ("tokens", "verified", "unverified_since_ms")
"""What a record of a subscription holds besides its settings and secrets."""

_HEADER = """\
# Subscriptions that came through the API: `watcher import` takes them back. For a worker without the API,
# append this to watcher.toml, and write accounts_file = "accounts.jsonl" above its first [section].

"""

_SECRET_KEYS = ("url", "secrets", "headers", "routing_key")

_LONGEST_STEM = 100
"""Characters of a variable's name."""


class Exported(NamedTuple):
    """A subscription: `table` is its section, `state` what a section cannot hold, and `variables` says what
    each variable of the table stands for."""

    table: Table
    state: Table
    variables: Mapping[str, str]


@click.command("export", short_help="Write accounts and subscriptions of the API into files.")
@look_options
@click.option(
    "--to",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The folder for the files; it is created if it is missing.",
)
@click.option(
    "--secrets",
    "has_secrets",
    is_flag=True,
    help="Write URLs, headers, signing secrets and hashes of tokens, too: the files are secrets then.",
)
@json_option
@in_a_loop
async def command(*, look: "Look", folder: Path, has_secrets: bool, is_json: bool) -> int:
    """Write the accounts and subscriptions that came through the API into files.

    With these files you can go on after a loss of Redis, or with a version without the API. DIR gets
    subscriptions.toml (for watcher.toml), accounts.jsonl (for accounts_file) and, with --secrets, state.jsonl
    (tokens, and what is verified). Without --secrets, a variable stands for each secret, and the command
    lists these variables. It needs the key of [api].

    \b
    Examples:
      watcher export --to backup
      watcher export --to backup --secrets

    Exit codes: 0 done; 1 a record had to be left out, or a file is there already; 2 a usage error; 69
    Redis cannot be reached; 78 no configuration, or none with the key of [api].
    """
    from watcher.config.loading import as_toml
    from watcher.encryption import Undecryptable
    from watcher.store.reader import Reader

    keyring = keyring_of(look)
    async with opened(look) as found:
        now_ms = await Reader(found.store.pipe, found.store.keys).now_ms()
    counts = dict.fromkeys(("account", "subscription"), 0)
    left_out: list[str] = []
    variables: dict[str, str] = {}
    with ExitStack() as stack:
        names = (SUBSCRIPTIONS, ACCOUNTS, STATE) if has_secrets else (SUBSCRIPTIONS, ACCOUNTS)
        files = {name: stack.enter_context(_made(folder, name)) for name in names}
        files[SUBSCRIPTIONS].write(_HEADER)
        progress = stack.enter_context(Progress("writing", len(found.records)))
        for (kind, name), record in found.records.items():
            progress.done()
            try:
                content = keyring.decrypt(kind, name, record.plain, record.encrypted)
            except Undecryptable as error:
                left_out.append(f"{kind} {name}: {error}")
                continue
            counts[kind] += 1
            if kind == "account":
                table = {"name": name, **record.plain, **content["settings"]}
                files[ACCOUNTS].write(f"{json.dumps(escaped(table), ensure_ascii=False)}\n")
                continue
            one = exported(record, content, now_ms, has_secrets=has_secrets, taken=variables)
            variables |= one.variables
            files[SUBSCRIPTIONS].writelines(f"{line}\n" for line in as_toml({"subscriptions": [one.table]}))
            if has_secrets:
                files[STATE].write(f"{json.dumps(one.state)}\n")
    for variable, what in variables.items():
        line = {"variable": variable, "stands_for": what}
        say_json(line) if is_json else click.echo(f"{variable}  {printable(what)}")
    if variables:
        click.echo(
            "These variables have to be set where the files are used, or export with --secrets.", err=True
        )
    for text in left_out:
        click.echo(f"watcher: left out: {printable(text, 300)}", err=True)
    what = f"{many(counts['account'], 'account')}, {many(counts['subscription'], 'subscription')}"
    click.echo(f"{what} written to {folder}{': secrets, keep them so' if has_secrets else ''}", err=True)
    say_next(f"watcher import {folder}/*")
    return 1 if left_out else 0


def keyring_of(look: "Look") -> "Keyring":
    """Read the keys of [api]. Raises NoKey."""
    from watcher.encryption import Keyring

    if look.settings.api is None:
        raise NoKey(
            "what came through the API is encrypted: this needs a configuration with [api] secret_key"
            " (with --redis or --data-dir, --config has to name it)"
        )
    keys = [key.get_secret_value() for key in look.settings.api.secret_key]
    return Keyring(keys, look.settings.redis.namespace)


def _made(folder: Path, name: str) -> TextIO:
    """Create a file that no other user may read. Raises click.ClickException, also if it exists."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.ClickException(f"{folder / name} is there already: name another folder") from None
    except OSError as error:
        raise click.ClickException(f"{folder / name} cannot be written: {error.strerror}") from None
    return os.fdopen(handle, "w", encoding="utf-8")


def exported(
    record: "Record", content: Table, now_ms: int, *, has_secrets: bool, taken: Collection[str]
) -> Exported:
    """Write a subscription as a section. Without `has_secrets` it gets variables whose names are not
    `taken`."""
    secrets = [one for one in content["secrets"] if (one["until_ms"] or now_ms + 1) > now_ms]
    table = escaped({"name": record.name, **content["settings"], **record.plain})
    if secrets:
        table["secrets"] = [one["secret"] for one in secrets]
    state = {"subscription": record.name, "secrets_until_ms": [one["until_ms"] for one in secrets]}
    state |= {key: content[key] for key in STATE_KEYS}
    if has_secrets:
        return Exported(table, state, {})
    variables: dict[str, str] = {}

    def variable(end: str, what: str) -> str:
        stem = re.sub(r"\W", "_", f"{record.name}_{end}".upper(), flags=re.ASCII)[:_LONGEST_STEM]
        stem = f"_{stem}" if stem[0].isdigit() else stem
        name, number = stem, 1
        while name in taken or name in variables:
            number += 1
            name = f"{stem}_{number}"
        variables[name] = f"{what} of {record.name}"
        return f"${{{name}}}"

    for key in _SECRET_KEYS:
        if key == "headers":
            table |= {key: {header: variable(header, f"header {header}") for header in table.get(key, ())}}
        elif key in table:
            text = variable(key.removesuffix("s"), key)
            table[key] = [text] if key == "secrets" else text
    if not table["headers"]:
        del table["headers"]
    return Exported(table, state, variables)


def escaped(value: Any) -> Any:
    """Escape texts for a file, where `${` begins a variable. What is null is left out."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: escaped(one) for key, one in value.items() if one is not None}
    return [escaped(one) for one in value] if isinstance(value, list) else value


async def say_section(look: "Look", kind: "Kind", name: str, *, is_json: bool) -> None:
    """Print an account or a subscription as a section of the configuration, without secrets. Raises Unknown,
    and NoKey for one of the API."""
    from watcher.config.loading import as_toml, shown
    from watcher.config.tables import MASK
    from watcher.encryption import Undecryptable

    section = f"{kind}s"
    async with opened(look) as found:
        origin = found.origin(kind, name)
    if origin == "file":
        (table,) = (one for one in shown(look.settings)[section] if one["name"] == name)
    elif origin == "api":
        record = found.records[kind, name]
        try:
            content = keyring_of(look).decrypt(kind, name, record.plain, record.encrypted)
        except Undecryptable as error:
            raise NoKey(f"{kind} {name}: {error}") from None
        table = {"name": name, **record.plain, **content["settings"]}
        if kind == "subscription":
            parts = urlsplit(table["url"])
            table["url"] = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{MASK}"
            table |= {key: MASK for key in ("routing_key",) if key in table}
            table |= {"headers": dict.fromkeys(table["headers"], MASK)} if "headers" in table else {}
            table |= {"secrets": [MASK for _ in content["secrets"]]} if content["secrets"] else {}
    else:
        names = found.settings.account_by_name if kind == "account" else found.settings.subscription_by_name
        raise Unknown(kind, name, names)
    if is_json:
        say_json({**table, "origin": origin})
        return
    click.echo("# It came through the API." if origin == "api" else f"# It stands in {look.path}.")
    click.echo("\n".join(as_toml({section: [table]})))
