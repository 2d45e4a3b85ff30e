"""`watcher health`: whether a worker on this machine lives, by its heartbeat file or by its /livez.

Refuses to load anything of weight: a container's health check runs it every few seconds.
"""

import time
from contextlib import closing
from pathlib import Path

import click

from watcher.commands._shared import given_by, token_given, token_option
from watcher.durations import parse_duration
from watcher.printable import printable

_TIMEOUT_S = 5.0
_ANSWER_BYTES = 4096
_AHEAD_S = 5.0
"""A file with a time in the future was touched before the clock was set back: its age is unknown."""


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
    """Say whether a worker lives, and if not, why.

    With --file it looks at the age of the worker's heartbeat file; without, it asks /livez. A worker counts
    as alive while its Redis is down, but not while one of its loops is stuck.

    \b
    Examples:
      watcher health
      watcher health --file /run/watcher/heartbeat

    Exit codes: 0 it lives; 1 it does not, and why; 2 a usage error; 78 the token's variable holds none.
    """
    problem: str | None
    if path and not url:
        with given_by("--max-age"):
            longest_s = parse_duration(max_age).total_seconds()
        try:
            age_s = time.time() - path.stat().st_mtime
        except OSError as error:
            problem = f"{path}: {error.strerror}; is a worker running with --heartbeat-file?"
        else:
            is_recent = -_AHEAD_S <= age_s <= longest_s
            stuck = f"{path} was touched {age_s:.0f} s ago: the worker is stuck or gone"
            problem = None if is_recent else stuck
    else:
        problem = _problem_at(url or "http://127.0.0.1:8787", token_given(token_name))
    click.echo(problem or "ok", err=bool(problem))
    return 1 if problem else 0


def _problem_at(url: str, token: str | None) -> str | None:
    """Say what is wrong with the worker that listens at a URL; None if nothing is. Follows no redirect."""
    from http.client import HTTPConnection, HTTPException, HTTPSConnection
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in ("http", "https") or parts.username or parts.query:
        raise click.BadParameter("must be http://HOST:PORT", param_hint="--url")
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(host, port, timeout=_TIMEOUT_S)
    try:
        with closing(connection):
            headers = {"authorization": f"Bearer {token}"} if token else {}
            connection.request("GET", f"{parts.path.rstrip('/')}/livez", headers=headers)
            answer = connection.getresponse()
            body = answer.read(_ANSWER_BYTES)
    except (OSError, HTTPException, UnicodeError) as error:  # the last: what is no host name
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"nothing answers at {url}: {reason}"
    if answer.status == 200:
        return None
    text = printable("; ".join(body.decode(errors="replace").split("\n")).strip("; "))
    return f"{url} answers {answer.status}: {text}"
