"""`watcher status`: one screen of how everything stands, from the store alone: no worker need run."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from watcher.commands.looking import age_text, say_json, say_next
from watcher.commands.options import config_option, load_or_exit
from watcher.printable import printable

if TYPE_CHECKING:
    from watcher.settings import RedisSettings, Settings

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
    from watcher.overview import account_lines, provider_line, server_line, subscription_line
    from watcher.store.guarantee import guarantee
    from watcher.store.opening import open_to_look
    from watcher.store.standings import Standings
    from watcher.store.survey import Survey

    async with open_to_look(settings.redis) as store:
        survey = Survey(store.pipe, store.keys)
        now_ms = await survey.now_ms()
        server = server_line(await guarantee(store.client), _where(settings.redis))
        failing_by_provider = {name: await survey.failing(name) for name in settings.provider_by_name}
        overdue = {name: await survey.overdue(name) for name in settings.provider_by_name}
        states = survey.read_states([*settings.account_by_name])
        accounts = [line async for line in account_lines(settings, states, failing_by_provider, now_ms)]
        standings = await Standings(store.pipe, store.keys).read()
        backlogs = await survey.backlogs(settings.subscription_by_name)
    providers = [
        provider_line(name, failing, overdue[name], now_ms) for name, failing in failing_by_provider.items()
    ]
    total = {"kind": "accounts", "accounts": len(settings.account_by_name), "in_trouble": len(accounts)}
    subscriptions = [
        subscription_line(
            name, backlog, standings.get(name), now_ms, is_configured=name in settings.subscription_by_name
        )
        for name, backlog in backlogs.items()
    ]
    return [server, *providers, total, *accounts, *subscriptions]


def _where(settings: "RedisSettings") -> str:
    from watcher.store.address import safe_url

    url = safe_url(settings.url.get_secret_value())
    return f"embedded, in {settings.data_dir.absolute()}" if url == "embedded" else url


def _as_text(lines: Sequence[_Line]) -> Iterator[str]:
    yield from _server_text(lines[0])
    for line in lines:
        if line["kind"] == "provider":
            yield from _provider_text(line)
    yield from _accounts_text([line for line in lines if line["kind"] in ("accounts", "account")])
    for line in lines:
        if line["kind"] == "subscription":
            yield from _subscription_text(line)


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
    from watcher.overview import TROUBLES

    total, *in_trouble = lines
    well = total["accounts"] - len(in_trouble)
    yield _entry("accounts", f"{well:,} of {total['accounts']:,} as they should be")
    for trouble in TROUBLES:
        names = [line["account"] for line in in_trouble if trouble in line["troubles"]]
        if names:
            more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
            yield _entry("", f"  {trouble:<12}{len(names):>7,}  {', '.join(names[:_MOST_NAMES])}{more}")


def _subscription_text(line: _Line) -> Iterator[str]:
    waits = "nothing waits"
    if line["lanes"]:
        deliveries = _many(line["deliveries"], "delivery", "deliveries")
        oldest = "" if line["oldest_s"] is None else f", the oldest for {age_text(1000 * line['oldest_s'])}"
        waits = f"{deliveries} in {_many(line['lanes'], 'lane')}{oldest}"
    retrying = f"; {_many(line['retrying'], 'lane')} being tried again" if line["retrying"] else ""
    dead = f"; {_many(line['dead'], 'dead letter')}" if line["dead"] else ""
    unknown = "" if line["is_configured"] else "; not in the configuration"
    yield _entry("subscription", f"{printable(line['subscription'])}: {waits}{retrying}{dead}{unknown}")
    if line["paused_at"]:
        yield _entry("", f"  paused since {line['paused_at']}: {printable(line['reason'])}")
    elif line["failing_since"]:
        held = f", left alone for {age_text(1000 * line['held_s'])}" if line["held_s"] else ""
        yield _entry("", f"  failing since {line['failing_since']}{held}: {printable(line['reason'])}")


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
