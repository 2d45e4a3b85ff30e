"""The option `--since`, shared by commands that look back: how long ago, or a point in time."""

from datetime import UTC, datetime, timedelta

import click

since_option = click.option(
    "--since", metavar="WHEN", help="As long ago as 1h or 2d, or a time such as 2026-11-20T14:00Z."
)


def parse_since(text: str | None) -> datetime | timedelta | None:
    """Read what was given. Raises click.BadParameter."""
    from watcher.durations import parse_duration

    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            return parse_duration(text)
        except ValueError:
            message = "write how long ago, as in 1h or 2d, or a time, as in 2026-11-20T14:00Z"
            raise click.BadParameter(message, param_hint="--since") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def since_ms(since: datetime | timedelta | None, now_ms: int) -> int:
    """Say which time that is (Unix ms of the server); without one, the beginning."""
    if since is None:
        return 0
    if isinstance(since, timedelta):
        return max(0, now_ms - since // timedelta(milliseconds=1))
    return max(0, int(1000 * since.timestamp()))
