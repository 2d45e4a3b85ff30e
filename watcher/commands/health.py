"""`watcher health`: whether a worker on this machine lives, by its heartbeat file or by its /livez.

Refuses to load anything of weight: a container's health check runs it every few seconds.
"""

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from watcher.commands._shared import token_given, token_option
from watcher.durations import parse_duration

if TYPE_CHECKING:
    from http.client import HTTPConnection

_TIMEOUT_S = 5.0
_ANSWER_BYTES = 4096
_AHEAD_S = 5.0
"""A file of the future was touched before the clock was set back: nobody knows when."""


@click.command("health", short_help="Say whether a worker lives.")
@click.option(
    "--file",
    "path",
    envvar="WATCHER_HEARTBEAT_FILE",
    show_envvar=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The heartbeat file of `watcher run --heartbeat-file`.",
)
@click.option("--max-age", default="30s", show_default=True, help="How long ago it may have been touched.")
@click.option(
    "--url", metavar="URL", help="Where `watcher run --http` listens.  [default: http://127.0.0.1:8787]"
)
@token_option
def command(*, path: Path | None, max_age: str, url: str | None, token_name: str | None) -> int:
    """Say whether a worker lives: exit code 0, or 1 and the reason.

    With --file, by how long ago its heartbeat file was touched; else by asking /livez. A worker whose Redis
    is down lives; one with a loop that is stuck does not.
    """
    if path and not url:
        trouble = _trouble_of_file(path, _duration(max_age), time.time())
    else:
        trouble = _trouble_at(url or "http://127.0.0.1:8787", token_given(token_name))
    click.echo(trouble or "ok", err=bool(trouble))
    return 1 if trouble else 0


def _trouble_of_file(path: Path, max_age: timedelta, now: float) -> str | None:
    """Say what speaks against the worker that touches a file; None if nothing does."""
    try:
        age_s = now - path.stat().st_mtime
    except OSError as error:
        return f"{path}: {error.strerror}; is a worker running with --heartbeat-file?"
    if -_AHEAD_S <= age_s <= max_age.total_seconds():
        return None
    return f"{path} was touched {age_s:.0f} s ago: the worker is stuck or gone"


def _trouble_at(url: str, token: str | None) -> str | None:
    """Say what speaks against the worker that listens at a URL; None if nothing does."""
    from http.client import HTTPException

    try:
        status, text = _ask(url, token)
    except (OSError, HTTPException, UnicodeError) as error:  # the last: what is no host name
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"nobody answers at {url}: {reason}"
    return None if status == 200 else f"{url} answers {status}: {text}"


def _ask(url: str, token: str | None) -> tuple[int, str]:
    """GET /livez, without following anything. Raises OSError and HTTPException."""
    connection, path = _connection(url)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request("GET", f"{path}/livez", headers=headers)
        answer = connection.getresponse()
        return answer.status, _shown(answer.read(_ANSWER_BYTES))
    finally:
        connection.close()


def _connection(url: str) -> "tuple[HTTPConnection, str]":
    """Take the URL apart; nothing is sent yet."""
    from http.client import HTTPConnection, HTTPSConnection
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in ("http", "https") or parts.username or parts.query:
        raise click.BadParameter("must be http://HOST:PORT", param_hint="--url")
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    return connect(host, port, timeout=_TIMEOUT_S), parts.path.rstrip("/")


def _shown(body: bytes) -> str:
    from watcher.printable import printable

    return printable("; ".join(body.decode(errors="replace").split("\n")).strip("; "))


def _duration(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--max-age") from None
