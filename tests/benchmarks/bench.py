"""Measures the worker against a raw aiohttp loop in the same process, to the same server, in the same run.

    python -m tests.benchmarks.bench            # about a minute and a half
    python -m tests.benchmarks.bench --quick    # seconds: shows that it runs, its figures mean nothing

Prints medians over the rounds. Only ratios compare, between machines and between two minutes of one
machine: the worker has one core, the HTTP server another, and Redis what they leave. The goals are for
the ratios, for µs of Redis, and for what is in ms and MB.
"""

import resource
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import NamedTuple

from tests.benchmarks.measures import Measured, backlog, changed, latencies, unchanged
from tests.benchmarks.raw_loop import Speed, raw_latencies_ms, raw_speed
from tests.benchmarks.stage import Stage, a_stage, perform, say
from tests.benchmarks.waiting import ASSETS, account_bytes, delivery_bytes, some_deliveries


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    rounds: int = 3
    raw_s: float = 1
    polling_s: float = 3
    accounts: int = 1000
    queues: int = 1000
    per_queue: int = 20
    timed: int = 1000
    timed_per_second: float = 200


QUICK = Plan(1, raw_s=0.1, polling_s=0.1, accounts=20, queues=5, per_queue=20, timed=20)


class Row(NamedTuple):
    """A line of the table; `raw` is the same figure of the raw loop."""

    what: str
    ours: str
    raw: str = ""
    ratio: str = ""
    goal: str = ""


class Compared(NamedTuple):
    """A job, and the raw loop right before and after it."""

    ours: Measured
    raw: Speed


class Round(NamedTuple):
    unchanged: Compared
    changed: Compared
    backlog: Compared


async def measure(plan: Plan) -> list[Row]:
    async with a_stage() as stage:
        rounds = [await _round(stage, plan, number) for number in range(1, plan.rounds + 1)]
        say("latency")
        latency = await _latency_rows(stage, plan)
        say("memory")
        memory = await _memory_rows(stage, plan)
    return [*_speed_rows(rounds), *latency, *memory, _process_row()]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table, as markdown."""
    cells = [Row("", "worker", "raw loop", "ratio", "goal"), *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_line(row, widths) for row in cells]
    yield from (lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:])


def _line(row: Row, widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return (
        "| " + " | ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]) + " |"
    )


async def _round(stage: Stage, plan: Plan, number: int) -> Round:
    say(f"round {number} of {plan.rounds}")
    (delivery,) = some_deliveries(1)

    def get() -> Awaitable[Speed]:
        return raw_speed("GET", f"{stage.url}/still/api/v3/user/balances?accountId=1", plan.raw_s)

    def post() -> Awaitable[Speed]:
        return raw_speed("POST", stage.url, plan.raw_s, data=delivery.body)

    return Round(
        await _compared(unchanged(stage, plan.accounts, plan.polling_s), get),
        await _compared(changed(stage, plan.accounts, plan.polling_s), get),
        await _compared(backlog(stage, plan.queues, plan.per_queue), post),
    )


async def _compared(job: Awaitable[Measured], raw: Callable[[], Awaitable[Speed]]) -> Compared:
    """Do a job between two raw loops: the machine changes from one minute to the next."""
    before, ours, after = await raw(), await job, await raw()
    return Compared(ours, Speed(*map(mean, zip(before, after, strict=True))))


def _speed_rows(rounds: list[Round]) -> Iterator[Row]:
    yield from _job_rows("polls a second, nothing changed", [r.unchanged for r in rounds], "≥ 0.60", "≤ 3")
    yield from _job_rows("changes a second, each delivered", [r.changed for r in rounds], "≥ 0.22", "≤ 25")
    yield from _job_rows("deliveries a second, from a backlog", [r.backlog for r in rounds], "≥ 0.60", "≤ 8")


def _job_rows(what: str, jobs: list[Compared], ratio: str, server_us: str) -> Iterator[Row]:
    yield Row(
        what,
        _median((job.ours.speed.per_second for job in jobs), ",.0f"),
        _median((job.raw.per_second for job in jobs), ",.0f"),
        _median((job.ours.speed.per_second / job.raw.per_second for job in jobs), ".2f"),
        ratio,
    )
    yield Row(
        "- µs of this process for each",
        _median((job.ours.speed.cpu_us for job in jobs), ".0f"),
        _median((job.raw.cpu_us for job in jobs), ".0f"),
        _median((job.raw.cpu_us / job.ours.speed.cpu_us for job in jobs), ".2f"),
    )
    yield Row(
        "- µs of commands in Redis for each",
        _median((job.ours.server_us for job in jobs), ".1f"),
        goal=server_us,
    )


async def _latency_rows(stage: Stage, plan: Plan) -> list[Row]:
    raw = await raw_latencies_ms(stage.url, plan.timed, every_s=1 / plan.timed_per_second)
    ours = await latencies(stage, 100, plan.timed, per_second=plan.timed_per_second)
    what = f"ms from commit to receipt at {plan.timed_per_second:.0f} a second"
    return [
        Row(
            f"{what}, p{percent}",
            f"{_percentile(ours, percent):.2f}",
            f"{_percentile(raw, percent):.2f}",
            f"{_percentile(ours, percent) / _percentile(raw, percent):.1f}",
            goal,
        )
        for percent, goal in ((50, ""), (99, "≤ 5"))
    ]


async def _memory_rows(stage: Stage, plan: Plan) -> list[Row]:
    short = await account_bytes(stage, plan.accounts, [str(number) for number in range(ASSETS)])
    long = await account_bytes(stage, plan.accounts, [f"0x{number:040x}" for number in range(ASSETS)])
    waiting = await delivery_bytes(stage, plan.queues, plan.per_queue)
    (delivery,) = some_deliveries(1)
    return [
        Row(f"bytes of Redis for an account of {ASSETS} assets", f"{short:,.0f}"),
        Row("- with ids of 42 characters", f"{long:,.0f}"),
        Row(f"- for a waiting delivery with a body of {len(delivery.body)} bytes", f"{waiting:,.0f}"),
    ]


def _process_row() -> Row:
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Row("MB of this process at most, this program included", f"{peak_mb:.0f}", goal="≤ 80")


def _median(figures: Iterable[float], form: str) -> str:
    return format(median(figures), form)


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[len(ordered) * percent // 100]


def main(arguments: Sequence[str] | None = None) -> None:
    what = "Measures the worker against a raw aiohttp loop."
    rows, _ = perform(measure, arguments, what=what, full=Plan(), quick=QUICK)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
