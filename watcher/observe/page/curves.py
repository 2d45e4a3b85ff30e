"""How the total of an asset came to be what it is: backwards from it, by the effects of what was told since.

Pure. Refuses to guess: a curve begins where the log does, or where the asset was first read.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from watcher.amounts import to_text

MOST_POINTS = 48
"""A point every half hour of a day: what a line of the width of a word can show."""


class Step(NamedTuple):
    """What one record of the log did to a total, in atoms. None: it starts here, whatever was before.

    `asset` is None for what may have done anything to any asset of its account.
    """

    at_ms: int
    asset: str | None
    moved: int | None


class Point(NamedTuple):
    """The total from a time on, in atoms."""

    at_ms: int
    total: int


def curve(published: int, steps: Sequence[Step], *, since_ms: int) -> list[Point]:
    """Follow a total back from what was published last; `steps` are those of its asset, oldest first."""
    points, total = [], published
    for step in reversed(steps):
        points.append(Point(step.at_ms, total))
        if step.moved is None:
            return points[::-1]
        total -= step.moved
    return [Point(since_ms, total), *reversed(points)]


def thinned(points: Sequence[Point], *, since_ms: int, until_ms: int) -> list[tuple[int, str]]:
    """Keep the first point, and the last one of each part of the time, as exact text."""
    part_ms = max(1, (until_ms - since_ms) // MOST_POINTS)
    last_by_part = {(point.at_ms - since_ms) // part_ms: point for point in points[1:]}
    return [(at_ms, to_text(total)) for at_ms, total in [*points[:1], *last_by_part.values()]]


def of_asset(steps: Iterable[Step], asset: str) -> list[Step]:
    """Find the steps of one asset among those of its account."""
    return [step for step in steps if step.asset in (asset, None)]
