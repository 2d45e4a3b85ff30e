"""Counts and times as they lie in Redis, where damage may have made anything of them.

Refuses to guess: what is no count is a ValueError. A time in a schedule always means something: how soon.
"""

MOST = 10**14
"""Above every count and every time in ms (until the year 5138): what is larger is damage."""


def read_count(digits: bytes) -> int:
    """Read a count, or a time in ms. Raises ValueError."""
    if not digits.isdigit() or len(digits) > len(str(MOST)):  # int() would read `1_0` too
        raise ValueError("not a count")
    return check_count(int(digits))


def check_count(value: object) -> int:
    """Take a number for a count. Raises ValueError."""
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError("not a count")
    return value


def read_score(score: bytes) -> int:
    """Read when a member of a schedule is due, in ms; what lies beyond all times is as late as can be."""
    return int(min(max(float(score), 0.0), MOST - 1))
