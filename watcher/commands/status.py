"""`watcher status`: one screen of how everything stands, from the store alone: no worker need run."""

import asyncio
from typing import TYPE_CHECKING, Any

import click

from watcher.commands._shared import look_options
from watcher.commands._table import known, say_json, say_next

if TYPE_CHECKING:
    from watcher.config.loading import Look
    from watcher.settings import RedisSettings, Settings
    from watcher.store.exceptions import StoreError
    from watcher.store.guarantee import Guarantee
    from watcher.store.pipe import Pipe

_Line = dict[str, Any]


@click.command("status", short_help="How everything stands, on one screen.")
@look_options
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line, with its `kind`.")
def command(*, look: "Look", is_json: bool) -> None:
    """How everything stands: the server and what it promises, workers, providers, accounts, subscriptions.

    Reads the store alone: no worker need run. With --json, only accounts with something the matter have a
    line. Exits with 0 however it stands.
    """
    from watcher.commands._status_text import as_text, next_command  # heavy

    lines = asyncio.run(_survey(known(look), is_whole=look.is_whole))
    if is_json:
        for line in lines:
            say_json(line)
    else:
        for text in as_text(lines):
            click.echo(text.rstrip())
    say_next(next_command(lines))


async def _survey(settings: "Settings", *, is_whole: bool) -> list[_Line]:
    from watcher.observe.views import (
        account_lines,
        configuration_lines,
        provider_line,
        providers_of,
        rate_line,
        server_line,
        subscription_line,
        worker_line,
    )
    from watcher.store.members import Configurations, Workers
    from watcher.store.opening import open_to_look
    from watcher.store.queues import Breakers
    from watcher.store.reader import Reader

    async with open_to_look(settings.redis) as store:
        reader = Reader(store.pipe, store.keys)
        now_ms = await reader.now_ms()
        server = server_line(await _found(store.pipe), _where(settings.redis))
        workers = await Workers(store.pipe, store.keys).read()
        configurations = Configurations(store.pipe, store.keys)
        found = {
            one: await configurations.read(one) for one in {each.configuration for each in workers} - {""}
        }
        names = providers_of(settings)
        failing_by_provider = {name: await reader.failing(name) for name in names}
        overdue = {name: await reader.overdue(name) for name in names}
        states = reader.read_states([*settings.account_by_name])
        accounts = [line async for line in account_lines(settings, states, failing_by_provider, now_ms)]
        breakers = await Breakers(store.pipe, store.keys).read()
        backlogs = await reader.backlogs(settings.subscription_by_name)
    providers = [
        {
            **provider_line(name, failing, overdue[name], now_ms),
            **rate_line(settings, name, workers, now_ms),
        }
        for name, failing in failing_by_provider.items()
    ]
    total = {"kind": "accounts", "accounts": len(settings.account_by_name), "in_trouble": len(accounts)}
    subscriptions = [
        subscription_line(
            name,
            backlog,
            breakers.get(name),
            now_ms,
            is_configured=name in settings.subscription_by_name or not is_whole,
        )
        for name, backlog in backlogs.items()
    ]
    present = [worker_line(one, now_ms) for one in workers]
    known = {digest: one for digest, one in found.items() if one}
    differing = configuration_lines(workers, known, now_ms)
    return [server, *present, *differing, *providers, total, *accounts, *subscriptions]


async def _found(pipe: "Pipe") -> "Guarantee | StoreError":
    from watcher.store.exceptions import StoreError
    from watcher.store.guarantee import guarantee_of_all

    try:
        return await guarantee_of_all(pipe)
    except StoreError as refused:
        return refused


def _where(settings: "RedisSettings") -> str:
    from watcher.store.address import safe_url

    url = safe_url(settings.url.get_secret_value())
    return f"embedded, in {settings.data_dir.absolute()}" if url == "embedded" else url
