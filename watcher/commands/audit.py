"""`watcher audit`: proves on live data that baseline + effects = state, for every account and asset.

Refuses to fix what does not agree, and to hold up a worker: what it commits meanwhile is left out.
"""

import asyncio
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from watcher.commands._shared import look_options, names_like, names_of
from watcher.commands._table import known, say_next
from watcher.observe.tail import as_json
from watcher.printable import many, printable

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.journal.log import Finding, Record, Verdict
    from watcher.settings import Settings
    from watcher.store.history import History
    from watcher.store.reader import Reader, Seen

_MOST_FINDINGS = 5
"""Told to people of one account: one missing record may put every later one out of place."""

_MANY_ACCOUNTS = 1000
"""From so many on the audit takes long enough to show how far it is."""


@click.command("audit", short_help="Prove that events and state add up.")
@look_options
@click.option("--json", "is_json", is_flag=True, help="One JSON object per account.")
@click.argument("account", metavar="[ACCOUNT]", required=False, shell_complete=names_of("accounts"))
def command(*, look: "Look", is_json: bool, account: str | None) -> int:
    """Replay the event log and compare it with the state: of every account, or of ACCOUNT (a name or glob).

    Exits with 0 if every effect leads from its baseline, or from the oldest record kept, to what is
    published now, and with 1 if anything is missing, changed, out of place or there twice.
    """
    settings = known(look)
    names = names_like("account of the configuration", settings.account_by_name, account)
    verdicts = asyncio.run(_audit(settings, names))
    if lines := [line for name in names for line in _lines(name, verdicts[name], is_json=is_json)]:
        click.echo("\n".join(lines))
    differ = [name for name in names if verdicts[name].findings]
    click.echo(f"{len(names) - len(differ):,} of {many(len(names), 'account')} add up", err=True)
    say_next(f"watcher events --account {differ[0]}" if differ else "watcher check --connect")
    return 1 if differ else 0


async def _audit(settings: "Settings", names: Sequence[str]) -> "dict[str, Verdict]":
    from watcher.store.history import History
    from watcher.store.keys import shard_of
    from watcher.store.opening import open_to_look
    from watcher.store.reader import Reader

    names_by_shard = defaultdict(list)
    for name in names:
        names_by_shard[shard_of(name)].append(name)
    verdicts: dict[str, Verdict] = {}
    async with open_to_look(settings.redis) as store:
        reader, history = Reader(store.pipe, store.keys), History(store.pipe, store.keys)
        for shard in _with_progress([*names_by_shard], is_long=len(names) >= _MANY_ACCOUNTS):
            verdicts |= await _audit_shard(reader, history, shard, names_by_shard[shard])
    return verdicts


def _with_progress(shards: Sequence[int], *, is_long: bool) -> Iterator[int]:
    if not (is_long and sys.stderr.isatty()):
        yield from shards
        return
    with click.progressbar(shards, label="auditing", file=sys.stderr) as progress:
        yield from progress


async def _audit_shard(
    reader: "Reader", history: "History", shard: int, names: Sequence[str]
) -> "dict[str, Verdict]":
    """Read the states first and then the log, but of each account only up to where it led to its state."""
    from watcher.journal.log import Finding, Verdict, audit
    from watcher.store.history import place

    seen_by_account: dict[str, Seen] = {seen.account: seen async for seen in reader.read_states(names)}
    records_by_account: dict[str, list[Record]] = {name: [] for name in names}
    async for record in history.of_shard(shard):
        seen = seen_by_account.get(record.account)
        if seen and place(record.id) <= place(seen.log_end):
            records_by_account[record.account].append(record)
    verdicts = {}
    for name, seen in seen_by_account.items():
        if seen.damage:
            verdicts[name] = Verdict(
                len(records_by_account[name]), findings=[Finding(f"its state is {seen.damage}")]
            )
        else:
            verdicts[name] = audit(records_by_account.pop(name), seen.state)
    return verdicts


def _lines(account: str, verdict: "Verdict", *, is_json: bool) -> Iterator[str]:
    if is_json:
        yield as_json(_as_object(account, verdict))
        return
    if not verdict.findings:
        yield f"{account}  ok  {_proof(verdict)}"
        return
    for finding in verdict.findings[:_MOST_FINDINGS]:
        asset = f"{printable(finding.asset)}: " if finding.asset else ""
        where = f" (record {finding.record})" if finding.record else ""
        yield f"{account}  DIFFERS  {asset}{printable(finding.text, 500)}{where}"
    more = len(verdict.findings) - _MOST_FINDINGS
    if more > 0:
        yield f"{account}  DIFFERS  and in {many(more, 'more way')}; --json lists all"


def _proof(verdict: "Verdict") -> str:
    if not verdict.records:
        return "no record of it is kept"
    begin = "with its baseline" if verdict.from_baseline else "where the log was trimmed"
    return f"{many(verdict.records, 'record')} since {verdict.since}, beginning {begin}"


def _as_object(account: str, verdict: "Verdict") -> dict[str, Any]:
    return {
        "account": account,
        "ok": not verdict.findings,
        "records": verdict.records,
        "since": verdict.since,
        "from_baseline": verdict.from_baseline,
        "findings": [_finding(finding) for finding in verdict.findings],
    }


def _finding(finding: "Finding") -> dict[str, Any]:
    return {"text": finding.text, "asset": finding.asset, "record": finding.record}
