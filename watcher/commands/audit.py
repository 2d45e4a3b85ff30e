"""`watcher audit`: proves on live data that baseline + effects = state, for every account and asset; with
--store, that all keys of the store agree.

Refuses to fix what disagrees, and to hold up a worker: commits made meanwhile are left out.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING

import click

from watcher.commands._shared import (
    in_a_loop,
    look_options,
    names_like,
    names_of,
    parse_since,
    since_option,
)
from watcher.commands._table import (
    Column,
    Display,
    Fails,
    Progress,
    display_options,
    known,
    say_json,
    say_next,
)
from watcher.durations import since_ms
from watcher.observe.tail import as_json
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.journal.log import Verdict
    from watcher.settings import Settings
    from watcher.store.inventory import Audited

_COLUMNS = (Column("account"), Column("verdict", "whole"), Column("because", "prose", least=24))

_MOST_FINDINGS = 5
"""Findings printed for people per account, or of each kind: one missing record may put every later one out of
place."""

_STEPS = 100
"""Steps of the progress for each shard: its log is read by time."""


@click.command("audit", short_help="Prove that events and state add up.")
@look_options
@since_option
@display_options
@click.option("--json", "is_json", is_flag=True, help="One JSON object per account, or part of Redis.")
@click.option(
    "--store", "is_of_store", is_flag=True, help="Instead, compare all keys in Redis with each other."
)
@click.argument("account", metavar="[ACCOUNT]", required=False, shell_complete=names_of("accounts"))
@in_a_loop
async def command(
    *,
    look: "Look",
    since: str | None,
    display: Display,
    is_json: bool,
    is_of_store: bool,
    account: str | None,
) -> int:
    """Replay the event log and compare it with the state: of every account, or of ACCOUNT (a name or glob).

    The effects of all events must lead from the account's baseline, or from the oldest record kept, to the
    balances published now. With --since, only later records are read, and the balances before the first one
    are taken as given.

    With --store it checks that each event's body is there while anything refers to it, that each queue is in
    its schedule and each schedule in the index, and that every key is watcher's. Workers may go on meanwhile.

    \b
    Examples:
      watcher audit
      watcher audit treasury --since 2h
      watcher audit --store

    Exit codes: 0 all adds up; 1 something is missing, changed, out of place or there twice; 2 a usage
    error, or an unknown name; 69 Redis cannot be reached; 78 no configuration says where it is.
    """
    if is_of_store:
        if account or since:
            raise click.UsageError("--store looks at everything: leave out ACCOUNT and --since")
        return await _audit_store(look.settings, is_json=is_json)
    settings = await known(look)
    names = names_like("account of the configuration", settings.account_by_name, account)
    verdicts = await _audit(settings, names, parse_since(since))
    if is_json:
        lines = [_as_json(name, verdicts[name]) for name in names]
        click.echo("".join(f"{line}\n" for line in lines), nl=False)
    else:
        with display.table(*_COLUMNS) as table:
            is_part = since is not None
            rows = (_rows(name, verdicts[name], display, is_part=is_part) for name in names)
            table.say([*chain.from_iterable(rows)])
    differ = [name for name in names if verdicts[name].findings]
    click.echo(f"{len(names) - len(differ):,} of {many(len(names), 'account')} add up", err=True)
    say_next(f"watcher events --account {differ[0]}" if differ else "watcher check --connect")
    return 1 if differ else 0


def _as_json(name: str, verdict: "Verdict") -> str:
    findings = [
        {"text": finding.text, "asset": finding.asset, "record": finding.record}
        for finding in verdict.findings
    ]
    what = {"account": name, "ok": not findings, "records": verdict.records, "since": verdict.since}
    return as_json({**what, "from_baseline": verdict.from_baseline, "findings": findings})


def _rows(
    name: str, verdict: "Verdict", display: Display, *, is_part: bool
) -> Iterator[tuple[str, str, str]]:
    """Say that an account adds up, and since when, or in which ways it does not; of a part of the log, what
    is taken as given."""
    if not verdict.findings:
        cut = "with its balances then, taken as given" if is_part else "where the log was trimmed"
        first = "with its first: no balance is known yet" if verdict.is_first else cut
        begin = "with its baseline" if verdict.from_baseline else first
        since = display.time(verdict.since or "")
        proof = f"{many(verdict.records, 'record')} since {since}, beginning {begin}"
        nothing = "no record of it since then: nothing to prove" if is_part else "no record of it is kept"
        yield name, "ok", proof if verdict.records else nothing
    for finding in verdict.findings[:_MOST_FINDINGS]:
        asset = f"{printable(finding.asset)}: " if finding.asset else ""
        where = f" (record {finding.record})" if finding.record else ""
        yield name, Fails("DIFFERS"), f"{asset}{printable(finding.text, 500)}{where}"
    if (more := len(verdict.findings) - _MOST_FINDINGS) > 0:
        yield name, Fails("DIFFERS"), f"and in {many(more, 'more way')}; --json lists all"


async def _audit(
    settings: "Settings",
    names: Sequence[str],
    since: datetime | timedelta | None = None,
) -> "dict[str, Verdict]":
    """Read the states first and then the log, of each account only up to the record that led to its state."""
    from watcher.journal.log import Audit, Finding, Verdict
    from watcher.store.history import History, place
    from watcher.store.keys import shard_of
    from watcher.store.opening import open_to_look
    from watcher.store.reader import Reader

    names_by_shard = defaultdict(list)
    for name in names:
        names_by_shard[shard_of(name)].append(name)
    verdicts: dict[str, Verdict] = {}
    async with open_to_look(settings.redis) as store:
        reader, history = Reader(store.pipe, store.keys), History(store.pipe, store.keys)
        start_ms = since_ms(since, await reader.now_ms())
        with Progress("auditing", _STEPS * len(names_by_shard)) as progress:
            for number, (shard, members) in enumerate(names_by_shard.items()):
                providers = {name: settings.account_by_name[name].provider for name in members}
                seen_by_account = {seen.account: seen async for seen in reader.read_states(providers)}
                audits = {name: Audit() for name in members}
                end_ms = max(place(seen.log_end)[0] for seen in seen_by_account.values())
                begin_ms = None
                async for record in history.of_shard(shard, since_ms=start_ms):
                    at = place(record.id)
                    begin_ms = at[0] if begin_ms is None else begin_ms
                    done = (at[0] - begin_ms) / max(1, end_ms - begin_ms)
                    progress.reach(int(_STEPS * (number + min(1, done))))
                    seen = seen_by_account.get(record.account)
                    if seen and at <= place(seen.log_end):
                        audits[record.account].take(record)
                for name, seen in seen_by_account.items():
                    if seen.damage:
                        verdicts[name] = Verdict(
                            audits[name].verdict.records, findings=[Finding(f"its state is {seen.damage}")]
                        )
                    else:
                        audits[name].compare(seen.state)
                        verdicts[name] = audits[name].verdict
                progress.reach(_STEPS * (number + 1))
    return verdicts


async def _audit_store(settings: "Settings", *, is_json: bool) -> int:
    from watcher.store.inventory import StoreAudit
    from watcher.store.keys import SHARDS
    from watcher.store.opening import open_to_look

    parts: list[Audited] = []
    async with open_to_look(settings.redis) as store:
        audit = StoreAudit(store.pipe, store.keys, settings.subscription_by_name)
        if names := await audit.names():
            parts.append(names)
        with Progress("auditing", SHARDS) as progress:
            for shard in range(SHARDS):
                parts += [await audit.of_shard(shard)]
                progress.done()
    if is_json:
        for part in parts:
            counts = {name: value for name, value in asdict(part).items() if name != "flaws"}
            findings = [{**flaw._asdict(), "shard": part.shard} for flaw in part.flaws]
            say_json({**counts, "ok": not findings, "findings": findings})
    else:
        _print_flaws(parts)
    if names is None:
        click.echo("not looked at: keys that nothing names, as this user of Redis may not SCAN", err=True)
    if moving := sum(part.moving for part in parts):
        click.echo(
            f"not judged: {many(moving, 'part')} that workers moved at every look; ask again", err=True
        )
    flaws = sum(len(part.flaws) for part in parts)
    bodies, references, queues, states, records = (
        sum(getattr(part, what) for part in parts)
        for what in ("bodies", "references", "queues", "states", "records")
    )
    what = f"{many(bodies, 'body', 'bodies')} with {many(references, 'reference')}, "
    what += f"{many(queues, 'queue')}, {many(states, 'state')}"
    what += f", {many(records, 'record')} of the directory" if records else ""
    click.echo(f"{what}: {many(flaws, 'disagreement') if flaws else 'nothing disagrees'}", err=True)
    return 1 if flaws else 0


def _print_flaws(parts: "Sequence[Audited]") -> None:
    """Print some of each kind, and what to do."""
    flaws_by_kind = defaultdict(list)
    for part in parts:
        for flaw in part.flaws:
            flaws_by_kind[flaw.kind].append(flaw)
    for flaws in flaws_by_kind.values():
        for flaw in flaws[:_MOST_FINDINGS]:
            where = "" if flaw.shard is None else f"shard {flaw.shard}  "
            click.echo(f"{where}{printable(flaw.about, 300)}: {printable(flaw.text, 500)}")
            click.echo(f"    {printable(flaw.advice, 500)}")
        if (more := len(flaws) - _MOST_FINDINGS) > 0:
            click.echo(f"    and {many(more, 'more of this kind', 'more of this kind')}; --json lists all")
