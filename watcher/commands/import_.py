"""`watcher import`: writes what was exported into the directory, where the API would have put it.

Refuses to write anything while one of the files has a mistake, and to write what the configuration file
defines.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import Field

from watcher.commands._shared import (
    EXIT_CONFIGURATION,
    config_option,
    in_a_loop,
    json_option,
    load_or_exit,
    print_findings,
)
from watcher.commands._table import NoKey, Progress, say_json, say_next
from watcher.fields import Name
from watcher.printable import many, printable
from watcher.settings import Section

if TYPE_CHECKING:
    from watcher.config.findings import Entry, Findings
    from watcher.config.sections import Source
    from watcher.journal.interest import Interest
    from watcher.run.edits import Content, Edited
    from watcher.settings import Settings
    from watcher.store.directory import Kind
    from watcher.store.opening import OpenStore

_BY = "watcher import"
"""The name of this command in the audit trail."""

_AT_ONCE = 500
"""Accounts that are written together."""

Table = dict[str, Any]


class Token(Section):
    hash: str = Field(pattern=r"[0-9a-f]{64}\Z", description="SHA-256, in hex")
    until_ms: int | None = Field(description="when it ends (Unix ms)")


class State(Section):
    """A line of state.jsonl: what `watcher export --secrets` writes of a subscription besides its section."""

    subscription: Name = Field(description="its name")
    secrets_until_ms: tuple[int | None, ...] = Field(description="when each of its secrets ends (Unix ms)")
    tokens: tuple[Token, ...] = Field(max_length=10, description="its tokens")
    verified: str | None = Field(description="the scheme, host and port that answered a ping")
    unverified_since_ms: int | None = Field(description="since when none has (Unix ms)")


@dataclass(slots=True)
class Given:
    """The contents of the files. `states` are by the names of subscriptions."""

    accounts: "list[Entry]" = field(default_factory=list)
    subscriptions: "list[Entry]" = field(default_factory=list)
    states: "dict[str, Entry]" = field(default_factory=dict)


@click.command("import", short_help="Write exported accounts and subscriptions into Redis.")
@config_option
@click.option(
    "--dry-run", "is_preview", is_flag=True, help="Only say what is wrong with the files, if anything."
)
@json_option
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@in_a_loop
async def command(
    *, config_path: Path | None, is_preview: bool, is_json: bool, files: tuple[Path, ...]
) -> int:
    """Write the accounts and subscriptions in FILES into Redis, as if they had come through the API.

    FILES are those of `watcher export`: .toml with [[subscriptions]] and [[accounts]], .jsonl with an account
    on each line. They are checked as the API checks them; if anything is wrong, nothing is written. An
    identical entry that is there already is left as it is, so the command can be repeated. Running workers
    follow within two seconds. A subscription whose state.jsonl is given keeps its tokens and needs no ping;
    any other waits until its URL has answered one. It needs the key of [api].

    \b
    Examples:
      watcher import backup/accounts.jsonl backup/subscriptions.toml --dry-run
      watcher import backup/accounts.jsonl backup/subscriptions.toml backup/state.jsonl

    Exit codes: 0 done; 1 something had to be left out; 2 a usage error; 69 Redis cannot be reached; 78
    there are mistakes, and nothing was written.
    """
    from watcher.config.findings import ConfigRefused, Findings
    from watcher.store.opening import open_to_look

    settings = load_or_exit(config_path).settings
    if settings.api is None:
        raise NoKey(
            "what is imported gets encrypted: this needs a configuration with [api] secret_key"
            " (with --redis or --data-dir, --config has to name it)"
        )
    findings = Findings()
    try:
        given = read(files, findings)
    except ConfigRefused as refused:
        print_findings(refused.mistakes, is_json=is_json)
        return EXIT_CONFIGURATION
    async with open_to_look(settings.redis) as store:
        in_force = await Beside.read(settings, store)
        check(given, in_force, findings)
        if findings.mistakes:
            print_findings(findings.mistakes, is_json=is_json)
            click.echo("nothing was imported", err=True)
            return EXIT_CONFIGURATION
        what = f"{many(len(given.accounts), 'account')}, {many(len(given.subscriptions), 'subscription')}"
        if is_preview:
            found = {"accounts": len(given.accounts), "subscriptions": len(given.subscriptions)}
            say_json(found) if is_json else click.echo(f"{what}: all of it can be imported")
            return 0
        counts, refusals, unaware = await _write(given, in_force, store)
    for refusal in refusals:
        click.echo(f"watcher: left out: {refusal}", err=True)
    changes = ("created", "changed", "unchanged")
    if is_json:
        say_json({**{change: counts[change] for change in changes}, "left_out": len(refusals)})
    for change in () if is_json else changes:
        click.echo(f"{change:<10} {counts[change]:>9,}")
    if unaware:
        click.echo(
            f"{many(unaware, 'subscription')} without a token: POST /v1/subscriptions/NAME/token makes one",
            err=True,
        )
    say_next("watcher accounts, or watcher subscriptions")
    return 1 if refusals else 0


def read(files: "Sequence[Path]", findings: "Findings") -> Given:
    """Read all files. Raises ConfigRefused for one that is not TOML."""
    from watcher.config.files import read_lines, read_toml
    from watcher.config.findings import Entry
    from watcher.config.tables import listed_tables
    from watcher.environment import Environment

    given, environment = Given(), Environment()
    for path in files:
        if path.suffix == ".toml":
            document = read_toml(path, environment, findings)
            given.accounts += listed_tables(document, "accounts", findings)
            given.subscriptions += listed_tables(document, "subscriptions", findings)
            continue
        here = Entry({"FILE": str(path.absolute())}, str(path), (), lambda _: None)
        for line in read_lines(here, "FILE", environment, findings):
            if not isinstance(line, Entry):
                continue  # what is wrong with it is among the findings
            if "subscription" in line.table:
                given.states[str(line.table["subscription"])] = line
            else:
                given.accounts.append(line)
    return given


class Beside:
    """The configuration in force, read once: what the file defines, what the API made, and what is to be
    imported."""

    def __init__(self, settings: "Settings", interest: "Interest", names: "dict[Source, str]") -> None:
        from watcher.config.sections import Providers

        self.providers = Providers.of(settings.provider_by_name)
        self.file = settings
        self.settings = settings
        self.interest = interest
        self.names = names

    @classmethod
    async def read(cls, file: "Settings", store: "OpenStore") -> "Beside":
        """Read the directory, as far as it can be decrypted."""
        from watcher.journal.interest import Interest
        from watcher.run.directory import Judge
        from watcher.settings import AccountSettings, SubscriptionSettings
        from watcher.store.directory import Directory
        from watcher.store.keys import SHARDS
        from watcher.store.reader import Reader

        judge, now_ms = Judge(file), await Reader(store.pipe, store.keys).now_ms()
        accounts, subscriptions = dict(file.account_by_name), dict(file.subscription_by_name)
        interest, names = Interest(file.subscription_by_name), judge.sources()
        with Progress("reading", SHARDS) as progress:
            async for held in Directory(store.pipe, store.keys).read_all():
                known = [judge.judge(record, now_ms) for record in held.records]
                interest.change({one.record.name: one.filters for one in known if one.filters})
                names.update((one.source, one.record.name) for one in known if one.source)
                for one in known:
                    if isinstance(one.settings, AccountSettings):
                        accounts[one.record.name] = one.settings
                    elif isinstance(one.settings, SubscriptionSettings):
                        subscriptions[one.record.name] = one.settings
                progress.done()
        beside = cls(file, interest, names)
        beside.settings = file.model_copy(
            update={"account_by_name": accounts, "subscription_by_name": subscriptions}
        )
        return beside

    def defines(self, kind: "Kind", name: str) -> bool:
        """Say whether the file has something of that name."""
        return name in (self.file.account_by_name if kind == "account" else self.file.subscription_by_name)

    def holder(self, source: "Source") -> str | None:
        """Return the account that polls a source, or is to poll it."""
        return self.names.get(source)

    def leave(self, name: str) -> None:
        """Do nothing: an import deletes nothing."""

    async def forget(self, name: str) -> None:
        """Do nothing: what is stored for a subscription is what the import brings back."""

    async def follow_now(self) -> None:
        """Do nothing: workers follow by themselves."""


def check(given: Given, in_force: Beside, findings: "Findings") -> None:
    """Find all mistakes in what is to be imported, and count it as in force from then on."""
    from watcher.config.sections import read_account
    from watcher.config.subscriptions import read_subscription, refuse_alerts
    from watcher.config.tables import Names, settings_of
    from watcher.delivery.egress import Policy

    names: dict[Kind, Names] = {kind: Names(kind, findings) for kind in ("account", "subscription")}
    of_kinds: list[tuple[Kind, list[Entry]]] = [
        ("account", given.accounts),
        ("subscription", given.subscriptions),
    ]
    for kind, entries in of_kinds:
        for entry in entries:
            names[kind].is_new(entry)
            if in_force.defines(kind, str(entry.table.get("name"))):
                text = "is defined in the configuration file, which wins: take it out of one of them"
                findings.mistake(entry.finding(("name",), text))
    with Progress("checking", len(given.accounts)) as progress:
        for entry in given.accounts:
            account, source = read_account(entry, in_force.providers, findings)
            progress.done()
            if not (account and source):
                continue
            other = in_force.names.setdefault(source, account.name)
            if other != account.name:
                findings.mistake(entry.finding((), f"is the same account at the same provider as {other}"))
    policy, filters = Policy.of(in_force.file.egress), {}
    for entry in given.subscriptions:
        if subscription := read_subscription(entry, policy, findings):
            filters[subscription.name] = subscription
    subscriptions = {**in_force.settings.subscription_by_name, **filters}
    for entry in given.subscriptions:
        refuse_alerts(entry, subscriptions, findings)
    for name, entry in given.states.items():
        state = settings_of(State, entry, findings)
        if name not in filters:
            findings.mistake(entry.finding(("subscription",), "none of the [[subscriptions]] has this name"))
        elif state and len(state.secrets_until_ms) != len(filters[name].secrets):
            text = f"says of another number of secrets than [[subscriptions]] {name} has"
            findings.mistake(entry.finding(("secrets_until_ms",), text))
    in_force.interest.change(filters)
    in_force.settings = in_force.settings.model_copy(update={"subscription_by_name": subscriptions})


async def _write(given: Given, in_force: Beside, store: "OpenStore") -> "tuple[Counter[str], list[str], int]":
    """Write everything. Returns how often there was each kind of change, what was refused after all, and how
    many new subscriptions have no token."""
    from watcher.config.bodies import BodyRefused
    from watcher.config.subscriptions import lines_of
    from watcher.encryption import Keyring
    from watcher.observe.log import configure
    from watcher.run.edits import Edited, Editor, EditRefused
    from watcher.store.directory import Directory
    from watcher.store.pipe import in_parts
    from watcher.store.schedule import Schedule

    configure("warning", stream=sys.stderr)  # the lines below are the audit of a command
    schedule = Schedule(store.pipe)
    await schedule.read_clock()
    assert in_force.file.api
    keys = [key.get_secret_value() for key in in_force.file.api.secret_key]
    keyring = Keyring(keys, in_force.file.redis.namespace)
    directory = Directory(store.pipe, store.keys)
    editor = Editor(directory, keyring, in_force, now_ms=schedule.now_ms)
    counts, refusals, unaware = Counter[str](), list[str](), 0

    def note(kind: str, name: object, made: "Edited | BodyRefused | EditRefused") -> None:
        if isinstance(made, Edited):
            counts[made.change] += 1
        else:
            refusals.append(printable(f"{kind} {name}: {made}", 500))

    with Progress("importing", len(given.accounts) + len(given.subscriptions)) as progress:
        # Subscriptions first: they may want the baselines of these accounts.
        for entry in given.subscriptions:
            table = {**entry.table}
            name = table["name"]
            kept: Content = {"secrets": [], "tokens": [], "verified": None, "unverified_since_ms": None}
            secrets = [*chain.from_iterable(map(lines_of, table.get("secrets", ())))]
            if name in given.states:
                state = State.model_validate(given.states[name].table).model_dump()
                kept |= {key: state[key] for key in ("tokens", "verified", "unverified_since_ms")}
                kept["tokens"] = [*kept["tokens"]]
                pairs = zip(secrets, state["secrets_until_ms"], strict=True)
                kept["secrets"] = [{"secret": secret, "until_ms": until_ms} for secret, until_ms in pairs]
                secrets = [one["secret"] for one in kept["secrets"] if one["until_ms"] is None]
            if secrets:
                table["secrets"] = secrets
            try:
                made: Edited | BodyRefused | EditRefused = await editor.put_subscription(
                    table, by=_BY, kept=kept
                )
            except (BodyRefused, EditRefused) as refused:
                made = refused
            note("subscription", name, made)
            unaware += isinstance(made, Edited) and made.change == "created" and not kept["tokens"]
            progress.done()
        for some in in_parts([dict(entry.table) for entry in given.accounts], _AT_ONCE):
            for table, made in zip(some, await editor.put_accounts(some, by=_BY), strict=True):
                note("account", table["name"], made)
            progress.done(len(some))
    return counts, refusals, unaware
