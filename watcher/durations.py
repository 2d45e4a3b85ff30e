"""Durations and times as people write them (`"30s"`, `"2026-11-20T14:00Z"`) and as a Retry-After header does.

Light enough for the smallest command. Refuses to repeat a text in the message about it: it may be a secret
that stands in the wrong place.
"""

import re
from datetime import UTC, datetime, timedelta

_DURATION = re.compile(r"(0|[1-9][0-9]{0,8})(ms|s|m|h|d)\Z", re.ASCII)
_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = timedelta(days=366)
_SECONDS = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?\Z", re.ASCII)
_LONGEST_DATE = 64


def parse_duration(value: object) -> timedelta:
    """Read `"30s"`, `"5m"`, `"1h"`, `"250ms"`, `"2d"`. Raises ValueError without the text in it."""
    if isinstance(value, timedelta):
        return value
    match = _DURATION.match(value) if isinstance(value, str) else None
    if not match:
        raise ValueError('not a duration: write a whole number and a unit, such as "30s", "5m" or "2h"')
    duration = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if duration > _LONGEST:
        raise ValueError("longer than a year")
    return duration


_SIZES = (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


def duration_text(duration: timedelta) -> str:
    """Write a duration as `parse_duration` reads it."""
    whole_ms = round(duration / timedelta(milliseconds=1))
    unit, size = next((unit, size) for unit, size in _SIZES if whole_ms % size == 0)
    return f"{whole_ms // size}{unit}" if whole_ms else "0s"


def retry_after_s(text: str | None, now: datetime, *, most_s: float) -> float | None:
    """Read seconds or an HTTP date as seconds from `now`, 0 to `most_s`. Garbage and no header are None."""
    from email.utils import parsedate_to_datetime  # much to load, and `watcher health` never needs it

    if text is None or len(text) > _LONGEST_DATE:
        return None
    if _SECONDS.match(text):
        return min(float(text), most_s)
    try:
        at = parsedate_to_datetime(text)
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):  # all of them seen for odd dates
        return None
    return min(max((at - now).total_seconds(), 0.0), most_s)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def unix_ms(moment: datetime) -> int:
    """Return an aware time as Unix ms, exactly: a float of seconds may be one ms off."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def parse_since(text: str) -> datetime | timedelta:
    """Read a time, in UTC unless it says otherwise, or how long ago it was. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return parse_duration(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def since_ms(since: datetime | timedelta | None, now_ms: int) -> int:
    """Return what `parse_since` read as Unix ms; without one, the beginning."""
    if since is None:
        return 0
    if isinstance(since, timedelta):
        return max(0, now_ms - since // timedelta(milliseconds=1))
    return max(0, unix_ms(since))
