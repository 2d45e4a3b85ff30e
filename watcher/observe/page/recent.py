"""The last day of the event log, as far as a page shows it, and how each total came to be what it is."""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from watcher.amounts import to_atoms, to_text
from watcher.journal.log import Record
from watcher.store.history import History, place

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


DAY_MS = 24 * 3_600_000
MOST_EVENTS = 50
MOST_RECORDS = 10_000
"""Read at once, and remembered. Not more than the log keeps of each shard, so that what is missing between
two of them was never there."""

_PAGE = 500
"""As many records as `History` reads of one shard at once: with fewer there are no more of any."""

_ROUNDS = 4
_FORGOTTEN_AFTER_S = 60.0
"""Who looks again later than this has missed more than is worth reading forward."""


class Recent:
    """What was told lately. `since_ms`: nothing that came after this is missing. `events`: oldest first."""

    def __init__(self, history: History) -> None:
        self.since_ms = 0
        self.events: deque[Record] = deque(maxlen=MOST_EVENTS)
        self._history = history
        self._steps: deque[tuple[str, Step]] = deque()
        self._ends: list[str] | None = None
        self._read_at = 0.0

    async def read(self, now_ms: int) -> None:
        """Take in what is new; at first, or after a while, the last day. Raises StoreError."""
        if self._ends is None or time.monotonic() - self._read_at > _FORGOTTEN_AFTER_S:
            await self._begin(now_ms - DAY_MS)
        else:
            await self._go_on(self._ends)
        self._read_at = time.monotonic()
        self.since_ms = max(self.since_ms, now_ms - DAY_MS)
        while self._steps and (len(self._steps) > MOST_RECORDS or self._steps[0][1].at_ms < self.since_ms):
            _, step = self._steps.popleft()
            self.since_ms = max(self.since_ms, step.at_ms)

    def steps_by_account(self) -> Mapping[str, list[Step]]:
        """What moved since, oldest first."""
        found: dict[str, list[Step]] = {}
        for account, step in self._steps:
            found.setdefault(account, []).append(step)
        return found

    async def _begin(self, since_ms: int) -> None:
        ends = await self._history.ends()
        steps: deque[tuple[str, Step]] = deque()
        events: list[Record] = []
        count, last_ms = 0, since_ms
        async for record in self._history.in_order(ends, since_ms=since_ms, newest_first=True):
            steps.extendleft(reversed([*_steps(record)]))
            if "id" in record.content and len(events) < MOST_EVENTS:
                events.append(record)
            count, last_ms = count + 1, place(record.id)[0]
            if count == MOST_RECORDS:
                break
            if count % _PAGE == 0:
                await asyncio.sleep(0)  # deliveries do not wait for people who look
        self.since_ms = last_ms if count == MOST_RECORDS else since_ms
        self._steps, self._ends = steps, ends
        self.events = deque(reversed(events), MOST_EVENTS)

    async def _go_on(self, ends: list[str]) -> None:
        for _ in range(_ROUNDS):
            records, ends = await self._history.after(ends)
            self._ends = ends
            for record in records:
                self._steps.extend(_steps(record))
                if "id" in record.content:
                    self.events.append(record)
            if len(records) < _PAGE:
                return
        self._ends = None  # more comes than is read: the next look begins anew


def _steps(record: Record) -> Iterator[tuple[str, Step]]:
    """What a record did to totals. One that cannot be read may have done anything to its account."""
    at_ms, content = place(record.id)[0], record.content
    try:
        if content["type"] == "baseline":
            for asset in content["assets"]:
                yield record.account, Step(at_ms, str(asset), None)
        elif "effect" in content.get("data", {}):
            data = content["data"]
            if moved := to_atoms(data["effect"]["total"]):
                yield record.account, Step(at_ms, str(data["asset"]["id"]), moved)
    except (KeyError, TypeError, ValueError, AttributeError):
        yield record.account, Step(at_ms, None, None)
