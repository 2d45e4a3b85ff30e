"""Partly failing receivers, the load that they are offered, and the result.

Pure but for `run`, which sets the scene of one row. Everything is judged at the receiver: what it was asked,
when, and what it took.
"""

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

from tests.faults.recording_receiver import Answered, Arrival, RecordingReceiver, Said
from tests.faults.restless_provider import account_name
from tests.faults.scene import AS_IT_COMES, SUBSCRIPTION, a_scene

ANSWER_S = 0.005
"""What an answer takes a receiver that is well."""

HANG_S = 20.0
"""How long an attempt is waited for: the worker's own time-out."""

CAUGHT_UP_S = 5.0
"""A queue that had to wait has caught up after so long."""

NOTICED_S = 1.0
"""After so long every worker knows of a receiver's Retry-After."""

_WARM_UP_S = 2.0

UNDER_WAY_S = 1.0
"""What was made so shortly before the end may still be under way."""

Mood = Callable[[Arrival], Said]


class Bucket:
    """A rate limit as receivers have it: a bucket one second deep, and 429 with Retry-After beyond it."""

    def __init__(self, per_second: float) -> None:
        self._per_second = self._left = per_second
        self._at = time.monotonic()

    def __call__(self, _: Arrival) -> Said:
        now = time.monotonic()
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return Said(429, ANSWER_S, retry_after_s=1)
        self._left -= 1
        return Said(200, ANSWER_S)


def some(share: float, bad: Said) -> Callable[[Random], Mood]:
    """Answer so many of the requests badly, at random."""

    def mood(random: Random) -> Mood:
        return lambda _: bad if random.random() < share else Said(200, ANSWER_S)

    return mood


def of_some_accounts(count: int, bad: Said) -> Callable[[Random], Mood]:
    """Answer badly to all that is of the first so many accounts."""
    failing = frozenset(account_name(1 + number) for number in range(count))
    return lambda _: lambda arrival: bad if arrival.account in failing else Said(200, ANSWER_S)


@dataclass(frozen=True)
class Row:
    """A receiver, and what is promised of it.

    `share` of what is offered is delivered meanwhile, and the p99 of what is delivered is within `p99_s`. The
    p99 of all events is within `others_p99_s` where the receiver does not make the queue wait. One that takes
    `takes_per_second` gets `share` of that instead, and answers at most a tenth of the requests 429.
    """

    name: str
    mood: Callable[[Random], Mood] = field(repr=False)
    share: float = 0
    p99_s: float = 1e9
    others_p99_s: float = 1e9
    takes_per_second: float | None = None
    failing: int = 0
    """So many accounts, the first ones, always wait."""

    accounts: int = 100
    each_per_second: float = 2
    seconds: float = 120
    """In its long form."""

    @property
    def offered(self) -> float:
        return self.accounts * self.each_per_second

    def times(self, factor: float) -> "Row":
        """Offer so many times as much."""
        return replace(self, name=f"{self.name}, × {factor:g}", each_per_second=factor * self.each_per_second)


PROMISED = {0.01: (0.98, 1), 0.05: (0.97, 1.5), 0.2: (0.92, 8), 0.33: (0.8, 60)}
"""By the share of requests that fail at random: the least share that is delivered, and the p99 in seconds."""

BAD = {"503": Said(503, ANSWER_S), "500": Said(500, ANSWER_S), "reset": Said(0, ANSWER_S)}

ROWS: Sequence[Row] = (
    *(
        Row(f"{bad} {share:.0%}", some(share, said), *promised)
        for bad, said in BAD.items()
        for share, promised in PROMISED.items()
    ),
    Row("hang 0.2%", some(0.002, Said(200, 1.25 * HANG_S)), others_p99_s=1),
    *(
        Row(f"bucket {rate}/s", lambda _, rate=rate: Bucket(rate), share=0.85, takes_per_second=rate)  # type: ignore[misc]
        for rate in (20, 100)
    ),
    *(
        Row(f"{bad} for 33", of_some_accounts(33, BAD[bad]), failing=33, others_p99_s=1)
        for bad in ("503", "500")
    ),
    Row("503 rests 60 s, 1%", some(0.01, Said(503, ANSWER_S, retry_after_s=60)), others_p99_s=1),
    Row("429 rests 2 s, 0.05%", some(0.0005, Said(429, ANSWER_S, retry_after_s=2)), share=0.6),
    *(
        Row(f"quiet, {bad} 33%", some(0.33, said), share=0.95, accounts=10, each_per_second=0.2, seconds=1200)
        for bad, said in BAD.items()
    ),
)

ROW_BY_NAME = {row.name: row for row in ROWS}


class Found(NamedTuple):
    """What one row brought. `problems` names what was not kept of order, ids, bytes and of the row."""

    row: Row
    workers: int
    seconds: float
    offered: int
    missing: int
    """Of what was offered, delivered too late."""

    delivered: int
    requests: int
    said: Counter[int]
    lags_s: list[float]
    others_s: list[float]
    most_in_flight: int
    problems: list[str]

    @property
    def share(self) -> float:
        """Of what is promised."""
        if limit := self.row.takes_per_second:
            return self.delivered / (limit * self.seconds)
        return 1 - self.missing / max(1, self.offered)

    @property
    def slowed(self) -> float:
        """Which part of the requests was answered 429."""
        return self.said[429] / max(1, self.requests)


def judge(
    row: Row, receiver: RecordingReceiver, *, since: float, until: float, workers: int, kept: Sequence[str]
) -> Found:
    """Say what was offered between two times (Unix seconds), and what of it was taken until the second.

    To be called when all is delivered. Of the others, what came too late has waited until the second time at
    least. `kept` are the problems that the verdict of the scene found.
    """
    taken_at: dict[str, float] = {}
    for one in receiver.answered:
        if one.said.status == 200 and one.at - one.arrival.at < HANG_S:
            taken_at.setdefault(one.arrival.id, one.at)
    waits = _waits(row, receiver.answered)
    lags, others, offered, missing = list[float](), list[float](), 0, 0
    for arrival in {arrival.id: arrival for arrival in reversed(receiver.arrivals)}.values():
        made_at, at = arrival.event["data"]["sequence"] / 1000, taken_at.get(arrival.id, 1e12)
        if since <= at < until:
            lags.append(at - made_at)
        if since <= made_at < until:
            offered += 1
            missing += made_at < until - UNDER_WAY_S and at >= until
            if not any(begin < at and made_at < end for begin, end in waits[arrival.account]):
                others.append(min(at, until) - made_at)
    asked = [arrival for arrival in receiver.arrivals if since <= arrival.at < until]
    said = Counter(one.said.status for one in receiver.answered if since <= one.arrival.at < until)
    found = Found(
        row,
        workers,
        until - since,
        offered,
        missing,
        len(lags),
        len(asked),
        said,
        sorted(lags),
        sorted(others),
        receiver.most_in_flight,
        [*kept],
    )
    found.problems.extend(_broken(found))
    found.problems.extend(_too_early(receiver, until=until))
    return found


def quantile(values: Sequence[float], part: float) -> float:
    """Return what so large a part of sorted values is not above; 0 without any."""
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0


def _waits(row: Row, answered: Sequence[Answered]) -> dict[str, list[tuple[float, float]]]:
    """By account, from when until when the receiver made its queue wait, and until it had caught up."""
    waits = defaultdict[str, list[tuple[float, float]]](list)
    for number in range(row.failing):
        waits[account_name(1 + number)].append((0, 1e12))
    for arrival, said, at in answered:
        if said.after_s > 1:
            waits[arrival.account].append((arrival.at, arrival.at + HANG_S + CAUGHT_UP_S))
        elif said.retry_after_s and said.status != 429:
            waits[arrival.account].append((arrival.at, at + said.retry_after_s + CAUGHT_UP_S))
    return waits


def _broken(found: Found) -> Iterator[str]:
    """Name the promises of the row that were not kept."""
    row = found.row
    if found.offered < 0.7 * row.offered * found.seconds:
        yield f"only {found.offered} events were offered in {found.seconds:.0f} s"
    if found.share < row.share:
        yield f"{found.share:.1%} delivered, of {row.share:.0%}"
    if (p99 := quantile(found.lags_s, 0.99)) > row.p99_s:
        yield f"p99 {p99:.2f} s, of {row.p99_s} s"
    if row.others_p99_s < 1e9:
        if (p99 := quantile(found.others_s, 0.99)) > row.others_p99_s:
            yield f"p99 of the others {p99:.2f} s, of {row.others_p99_s} s"
        if len(found.others_s) < found.offered / 10:
            yield f"only {len(found.others_s)} events had not to wait"
    if row.takes_per_second and found.slowed > 0.1:
        yield f"{found.slowed:.1%} answered 429"


def _too_early(receiver: RecordingReceiver, *, until: float) -> Iterator[str]:
    """Name requests within a Retry-After of the receiver: for one queue, or with 429 for all. From
    `until` on that may be: the subscription was resumed."""
    arrivals = sorted(receiver.arrivals, key=lambda arrival: arrival.at)
    times = [arrival.at for arrival in arrivals]
    early = Counter[int]()
    for arrival, said, at in receiver.answered:
        if not (rest_s := said.retry_after_s):
            continue
        begin = bisect_right(times, at + (NOTICED_S if said.status == 429 else 0))
        for other in arrivals[begin : bisect_left(times, min(until, at + rest_s - 0.01))]:
            early[said.status] += said.status == 429 or other.account == arrival.account
    for status, count in early.items():
        if count:
            yield f"{count} requests came within the Retry-After of a {status}"


async def run(row: Row, *, seconds: float | None = None, after_s: float = 0, workers: int = 1) -> Found:
    """Let workers deliver to such a receiver for so long, then let it recover, and judge what it got.

    `after_s` it began: a short form leaves out how the receiver's limit is found.
    """
    seconds = seconds or row.seconds
    async with a_scene(accounts=row.accounts, leases=AS_IT_COMES, retries="") as scene:
        receiver = scene.receiver
        receiver.respond = lambda _: Said(200, ANSWER_S)
        await scene.start_workers(workers)
        await scene.begin(changes_per_second=row.offered)
        await asyncio.sleep(_WARM_UP_S)
        receiver.most_in_flight = 0
        receiver.respond = row.mood(scene.random)
        await asyncio.sleep(after_s)
        since = time.time()
        await asyncio.sleep(seconds)
        until = time.time()
        receiver.respond = lambda _: Said(200, ANSWER_S)
        receiver.is_hung_no_more.set()
        most = receiver.most_in_flight
        code, _, errors = await scene.command("subscriptions", "resume", SUBSCRIPTION)
        assert code == 0, errors
        verdict = await scene.verdict(within_s=max(30, 2 * seconds))
        receiver.most_in_flight = most
    return judge(row, receiver, since=since, until=until, workers=workers, kept=verdict.problems)


HEAD = (
    "| receiver | workers | offered/s | delivered/s | share "
    "| p50 s | p99 s | others p99 s | requests/s | 429 | in flight | |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
)


def line(found: Found) -> str:
    """Write one row of the table."""
    per_second = [
        f"{count / found.seconds:.1f}" for count in (found.offered, found.delivered, found.requests)
    ]
    lags = [quantile(found.lags_s, 0.5), quantile(found.lags_s, 0.99), quantile(found.others_s, 0.99)]
    p50, p99, others = (f"{lag:.2f}" for lag in lags)
    cells = (
        found.row.name,
        found.workers,
        per_second[0],
        per_second[1],
        f"{found.share:.1%}",
        p50,
        p99,
        others,
        per_second[2],
        f"{found.slowed:.1%}",
        found.most_in_flight,
        "; ".join(found.problems) or "kept",
    )
    return "| " + " | ".join(map(str, cells)) + " |"
