"""`watcher run`: the worker, until it is asked to stop."""

from pathlib import Path

import click

from watcher.commands._shared import config_option, given_by, load_or_exit, token_given, token_option
from watcher.commands._table import Progress

_PERCENT = 100


@click.command("run", short_help="Poll, compare and deliver.")
@config_option
@click.option("--once", is_flag=True, help="Poll every account once, deliver what is due, and end.")
@click.option(
    "--watch",
    "is_watching",
    is_flag=True,
    help="Reload when the configuration's files change, those with secrets too.",
)
@click.option(
    "--http",
    "address",
    metavar="HOST:PORT",
    help="Serve /metrics, /livez and /readyz; beyond loopback with a token only.",
)
@token_option
@click.option("--page", "has_page", is_flag=True, help="With --http: a page for people, too, at /.")
@click.option(
    "--api",
    "has_api",
    is_flag=True,
    help="With --http: accounts and subscriptions can be read and changed under /v1, with a token.",
)
@click.option(
    "--heartbeat-file",
    envvar="WATCHER_HEARTBEAT_FILE",
    show_envvar=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Touch this file while all is well, for `watcher health`.",
)
def command(
    *,
    config_path: Path | None,
    once: bool,
    is_watching: bool,
    address: str | None,
    token_name: str | None,
    has_page: bool,
    has_api: bool,
    heartbeat_file: Path | None,
) -> int:
    """Poll, compare and deliver, until it is asked to stop.

    SIGTERM and Ctrl-C finish what is in hand, within worker.drain; a second Ctrl-C, or a second SIGTERM
    after 5 s, ends at once. SIGHUP reads the configuration again. Start as many as you like: they share the
    work through Redis.

    \b
    Examples:
      watcher run --http 127.0.0.1:8787 --page
      watcher run --once

    Exit codes: 0 it ended as it was asked to; 1 with --once, an account could not be read; 2 a usage
    error; 69 Redis cannot be reached, with --once; 70 a bug; 78 the configuration is not valid; 130 or 143 a
    second signal ended it.
    """
    if has_page and not address:
        raise click.UsageError("--page needs an address to serve it at: --http 127.0.0.1:8787")
    if has_api and not address:
        raise click.UsageError("--api needs an address to serve it at: --http 127.0.0.1:8787")
    at = token = None
    if address:
        from watcher.api.access import parse_address  # heavy

        with given_by("--http"):
            at = parse_address(address)
    loaded = load_or_exit(config_path)
    if at:
        from watcher.api.access import Door, check_api

        token = token_given(token_name)
        Door(at, token)  # refuses what would be open to all
        if has_api:
            check_api(token, has_key=loaded.settings.api is not None)
    from watcher.service.exposure import Exposure
    from watcher.service.serve import serve  # heavy

    exposure = Exposure(at, token, has_page=has_page, has_api=has_api, heartbeat_file=heartbeat_file)
    progress = Progress("putting accounts on the schedule", _PERCENT)
    return serve(
        loaded,
        config_path,
        once=once,
        is_watching=is_watching,
        exposure=exposure,
        on_enrolling=lambda part, parts: progress.reach(_PERCENT * part // parts),
    )
