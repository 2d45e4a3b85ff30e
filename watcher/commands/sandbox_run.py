"""`watcher sandbox --run`: the sandbox with a worker and a receiver of its own, told in one stream of lines.

Refuses to begin the script before the worker has read its first balances: what moves earlier is no change.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from watcher.commands.demo import only
from watcher.environment import Environment

if TYPE_CHECKING:
    from watcher.observe.door import Address
    from watcher.receiver import Receiver
    from watcher.sandbox import Sandbox, Step
    from watcher.settings import Settings

_FILE = "watcher.toml"


async def run(sandbox: Sandbox, steps: Iterable[Step], configuration: Callable[..., str]) -> None:
    """Play the steps, and show each webhook that comes of them. Never returns.

    `configuration` writes what watches a sandbox, for a receiver's `url` and `secret`.
    """
    from watcher.demo import go_on, staged
    from watcher.demo.lines import move_line, step_lines, webhook_line
    from watcher.observe.door import Address
    from watcher.observe.log import configure
    from watcher.sandbox import ScriptError
    from watcher.service.exposure import Exposure, exposed

    configure("warning", stream=sys.stderr, color=not Environment().get("NO_COLOR"))
    async with (
        staged(sandbox, partial(_settings, configuration)) as stage,
        exposed(stage.worker, Exposure(Address("127.0.0.1", 0), has_page=True)) as page,
    ):
        await stage.polled(1)
        _echo(_opening_lines(stage.folder, page))
        try:
            await go_on(
                stage,
                steps,
                moved=lambda move: _echo([move_line(move)]),
                made=lambda step: _echo(step_lines(step)),
                heard=lambda receipt: _echo([webhook_line(receipt)]),
            )
        except* ScriptError as errors:
            click.echo(f"{only(errors)}; the script ends here, balances stay as they are", err=True)
            await asyncio.Event().wait()


def _settings(
    configuration: Callable[..., str], sandbox: Sandbox, receiver: Receiver, folder: Path
) -> Settings:
    """Write the configuration where other commands find it, and load it. The environment has no say."""
    from watcher.config import load

    (secret,) = receiver.secrets
    text = configuration(sandbox, url=receiver.url, secret=secret)
    (folder / _FILE).write_text(f'[redis]\ndata_dir = "{folder / "state"}"\n\n{text}')
    return load(folder / _FILE, {}).settings


def _opening_lines(folder: Path, page: Address | None) -> Iterable[str]:
    yield "Two simulated providers, a worker that polls them every second, a receiver that verifies."
    yield f"In a browser:      http://{page}/"
    yield f"In another shell:  watcher status --config {folder / _FILE}"
    yield "A change at a provider, and behind the arrow the webhook that it becomes, until Ctrl-C:"
    yield ""


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
