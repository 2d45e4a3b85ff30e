"""`watcher status`: one screen of how everything stands, from the store alone: no worker need run."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from watcher.commands.looking import age_text, say_json, say_next
from watcher.commands.options import config_option, load_or_exit
from watcher.printable import printable

if TYPE_CHECKING:
    from watcher.settings import AccountSettings, Settings
    from watcher.store.guarantee import Guarantee
    from watcher.store.survey import Backlog, Failing, Overdue, Seen

TROUBLES = ("quarantined", "never read", "stale", "failing", "doubted", "held")
"""What may be the matter with an account, the worst first. What is held or doubted is merely not told yet."""

_LATE_MS = 10_000
"""A worker claims what is due within a tenth of a second, unless it keeps to a rate limit."""

_MOST_NAMES = 8
_MARGIN = 14

_Line = dict[str, Any]


@click.command("status", short_help="How everything stands, on one screen.")
@config_option
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line, with its `kind`.")
def command(*, config_path: Path | None, is_json: bool) -> None:
    """How everything stands: the server and what it promises, who fails, what is held, what waits.

    Reads the store alone: no worker need run. With --json, only accounts with something the matter have a
    line. Exits with 0 however it stands.
    """
    settings = load_or_exit(config_path).settings
    lines = asyncio.run(_survey(settings))
    if is_json:
        for line in lines:
            say_json(line)
    else:
        for text in _as_text(lines):
            click.echo(text.rstrip())
    say_next(_next(lines))


async def _survey(settings: "Settings") -> list[_Line]:
    from watcher.store.connect import safe_url
    from watcher.store.guarantee import guarantee
    from watcher.store.opening import open_to_look
    from watcher.store.survey import Survey

    async with open_to_look(settings.redis) as store:
        survey = Survey(store.pipe, store.keys)
        now_ms = await survey.now_ms()
        server = _server(await guarantee(store.client), safe_url(settings.redis.url.get_secret_value()))
        failing_by_provider = {name: await survey.failing(name) for name in settings.provider_by_name}
        overdue = {name: await survey.overdue(name) for name in settings.provider_by_name}
        states = survey.read_states([*settings.account_by_name])
        accounts = [line async for line in _accounts(settings, states, failing_by_provider, now_ms)]
        backlogs = await survey.backlogs(settings.subscription_by_name)
    providers = [
        _provider(name, failing, overdue[name], now_ms) for name, failing in failing_by_provider.items()
    ]
    total = {"kind": "accounts", "accounts": len(settings.account_by_name), "in_trouble": len(accounts)}
    subscriptions = [
        _subscription(name, backlog, now_ms, is_configured=name in settings.subscription_by_name)
        for name, backlog in backlogs.items()
    ]
    return [server, *providers, total, *accounts, *subscriptions]


def _server(found: "Guarantee", at: str) -> _Line:
    return {
        "kind": "server",
        "server": f"{found.engine} {found.version}",
        "at": at,
        "persistence": found.persistence,
        "eviction": found.eviction,
        "guarantee": found.sentence,
        "warnings": [*found.warnings],
    }


def _provider(name: str, failing: "Mapping[str, Failing]", overdue: "Overdue", now_ms: int) -> _Line:
    from watcher.events import iso

    groups: dict[tuple[str, str], list[int]] = {}
    for found in failing.values():
        groups.setdefault((found.trouble, found.reason), []).append(found.since_ms)
    largest_first = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    late_ms = now_ms - overdue.first_due_ms if overdue.first_due_ms is not None else 0
    return {
        "kind": "provider",
        "provider": name,
        "accounts": overdue.accounts,
        "failing": len(failing),
        "troubles": [
            {"trouble": trouble, "reason": reason, "accounts": len(since), "since": iso(min(since))}
            for (trouble, reason), since in largest_first
        ],
        "late_s": late_ms // 1000 if late_ms >= _LATE_MS else 0,
    }


async def _accounts(
    settings: "Settings",
    states: "AsyncIterator[Seen]",
    failing_by_provider: "Mapping[str, Mapping[str, Failing]]",
    now_ms: int,
) -> AsyncIterator[_Line]:
    """Find the accounts that something is the matter with."""
    from watcher.events import iso

    async for seen in states:
        account = settings.account_by_name[seen.account]
        failing = failing_by_provider[account.provider].get(account.name)
        troubles = _troubles(account, seen, failing, now_ms)
        if not troubles:
            continue
        state = seen.state
        yield {
            "kind": "account",
            "account": account.name,
            "provider": account.provider,
            "troubles": troubles,
            "polled_at": iso(state.polled_at_ms) if state and state.polled_at_ms else None,
            "reason": seen.damage or (failing.reason if failing else None),
            "refusals": failing.refusals if failing else 0,
            "refused_since": iso(failing.since_ms) if failing else None,
        }


def _troubles(account: "AccountSettings", seen: "Seen", failing: "Failing | None", now_ms: int) -> list[str]:
    from watcher.silence import STALE_INTERVALS

    state = seen.state
    entries = [*state.entry_by_asset.values()] if state else []
    polled_at_ms = state.polled_at_ms if state else 0
    is_quarantined = bool(seen.damage) or (failing is not None and failing.trouble == "quarantined")
    stale_ms = 1000 * STALE_INTERVALS * account.interval.total_seconds()
    claims = (
        is_quarantined,
        not polled_at_ms and not seen.damage,
        bool(polled_at_ms) and now_ms - polled_at_ms >= stale_ms,
        failing is not None and not is_quarantined,
        any(entry.doubted for entry in entries),
        any(entry.held_polls for entry in entries),
    )
    return [trouble for trouble, is_so in zip(TROUBLES, claims, strict=True) if is_so]


def _subscription(name: str, backlog: "Backlog", now_ms: int, *, is_configured: bool) -> _Line:
    oldest = backlog.oldest_sequence
    return {
        "kind": "subscription",
        "subscription": name,
        "is_configured": is_configured,
        "lanes": backlog.lanes,
        "deliveries": backlog.deliveries,
        "retrying": backlog.retrying,
        "dead": backlog.dead,
        "oldest_s": None if oldest is None else max(0, now_ms - oldest) // 1000,
    }


def _as_text(lines: Sequence[_Line]) -> Iterator[str]:
    yield from _server_text(lines[0])
    for line in lines:
        if line["kind"] == "provider":
            yield from _provider_text(line)
    yield from _accounts_text([line for line in lines if line["kind"] in ("accounts", "account")])
    for line in lines:
        if line["kind"] == "subscription":
            yield _entry("subscription", f"{printable(line['subscription'])}: {_backlog_text(line)}")


def _server_text(line: _Line) -> Iterator[str]:
    yield _entry("server", line["at"])
    yield _entry("", line["guarantee"])
    for warning in line["warnings"]:
        yield _entry("", f"warning: {warning}")


def _provider_text(line: _Line) -> Iterator[str]:
    failing = f", {line['failing']:,} failing" if line["failing"] else ""
    yield _entry("provider", f"{line['provider']}: {_many(line['accounts'], 'account')} scheduled{failing}")
    for found in line["troubles"][:_MOST_NAMES]:
        reason = f"{printable(found['trouble'])}: {printable(found['reason'])}"
        yield _entry("", f"  {found['accounts']:,} {reason}, since {found['since']}")
    if line["late_s"]:
        late = age_text(1000 * line["late_s"])
        yield _entry("", f"  the next poll is {late} late: does a worker run, and keep up?")


def _accounts_text(lines: Sequence[_Line]) -> Iterator[str]:
    total, *in_trouble = lines
    well = total["accounts"] - len(in_trouble)
    yield _entry("accounts", f"{well:,} of {total['accounts']:,} as they should be")
    for trouble in TROUBLES:
        names = [line["account"] for line in in_trouble if trouble in line["troubles"]]
        if names:
            more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
            yield _entry("", f"  {trouble:<12}{len(names):>7,}  {', '.join(names[:_MOST_NAMES])}{more}")


def _backlog_text(line: _Line) -> str:
    waits = "nothing waits"
    if line["lanes"]:
        oldest = "" if line["oldest_s"] is None else f", the oldest for {age_text(1000 * line['oldest_s'])}"
        waits = (
            f"{_many(line['deliveries'], 'delivery', 'deliveries')} in {_many(line['lanes'], 'lane')}{oldest}"
        )
    retrying = f"; {_many(line['retrying'], 'lane')} being tried again" if line["retrying"] else ""
    dead = f"; {_many(line['dead'], 'dead letter')}" if line["dead"] else ""
    unknown = "" if line["is_configured"] else "; not in the configuration"
    return waits + retrying + dead + unknown


def _next(lines: Sequence[_Line]) -> str:
    if any(line.get("late_s") for line in lines):
        return "watcher run"
    if any(
        {"doubted", "held"} & set(line.get("troubles", ())) for line in lines if line["kind"] == "account"
    ):
        return "watcher balances"
    return "watcher events --follow"


def _entry(title: str, text: str) -> str:
    return f"{title:<{_MARGIN}}{text}"


def _many(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
