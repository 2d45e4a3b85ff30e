"""Durations as people write them: `"30s"`, `"5m"`, `"250ms"`. Light enough for the smallest command.

Refuses to repeat a text in the message about it: it may be a secret that stands in the wrong place.
"""

import re
from datetime import timedelta

_DURATION = re.compile(r"(0|[1-9][0-9]{0,8})(ms|s|m|h|d)\Z", re.ASCII)
_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = timedelta(days=366)


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
