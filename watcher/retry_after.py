"""Reads a Retry-After header: for how long the other side asks not to be asked again, within reason."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"[0-9]{1,18}\Z", re.ASCII)
_LONGEST_DATE = 64


def retry_after_s(text: str | None, now: datetime, *, most_s: float) -> float | None:
    """Read seconds or an HTTP date as seconds from `now`, 0 to `most_s`. Garbage and no header are None."""
    if text is None:
        return None
    if _SECONDS.match(text):
        return min(float(text), most_s)
    at = _date(text)
    return None if at is None else min(max((at - now).total_seconds(), 0.0), most_s)


def _date(text: str) -> datetime | None:
    if len(text) > _LONGEST_DATE:
        return None
    try:
        at = parsedate_to_datetime(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):  # all of them seen for odd dates
        return None
