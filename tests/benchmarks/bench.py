"""Measures the worker against a raw aiohttp loop in the same process, to the same server, in the same run.

    python -m tests.benchmarks.bench                       # about four minutes
    python -m tests.benchmarks.bench --rounds 1            # about one
    python -m tests.benchmarks.bench --accounts 1000000    # and so many accounts: some ten minutes more
    python -m tests.benchmarks.bench --quick               # seconds: shows that it runs, figures mean nothing

Prints medians over the rounds, and what they were measured on. Only ratios compare, between machines and
between two minutes of one machine: the worker has one core, the HTTP server another, and Redis what they
leave. While somebody else is busy on the same hardware, the worker loses more than the raw loop, which is
short; what a fixed piece of work takes shows that. The raw loop GETs what an unchanged or a changed poll
GETs, or POSTs what a delivery POSTs.
"""

import argparse
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import NamedTuple

from tests.benchmarks.many import measure_many
from tests.benchmarks.measures import Measured, backlog, changed, held_mib, latencies, unchanged
from tests.benchmarks.raw_loop import Speed, raw_latencies_ms, raw_speed
from tests.benchmarks.stage import Stage, a_stage, on_a_loop, say
from tests.benchmarks.tables import Row, facts, piece_ms, table
from tests.benchmarks.waiting import ASSETS, account_bytes, delivery_bytes, some_deliveries


@dataclass(frozen=True)
class Plan:
    """How much of everything; `many` accounts are measured where they are not 0."""

    rounds: int = 5
    raw_s: float = 1
    polling_s: float = 3
    accounts: int = 1000
    queues: int = 1000
    per_queue: int = 20
    timed: int = 600
    timed_per_second: float = 200
    many: int = 0


QUICK = Plan(1, raw_s=0.1, polling_s=0.1, accounts=20, queues=5, per_queue=20, timed=20, many=2000)


class Goal(NamedTuple):
    """What a figure must be at least, or at most, and what it is to be."""

    at_least: str = ""
    aim: str = ""


NONE = Goal()


class Compared(NamedTuple):
    """A job, and the raw loop right before and after it."""

    ours: Measured
    raw: Speed


class Latency(NamedTuple):
    """Percentiles of ms from commit to receipt, or from sending to receipt."""

    p50: float
    p99: float

    @classmethod
    def of(cls, ordered: Sequence[float]) -> "Latency":
        return cls(*(ordered[len(ordered) * percent // 100] for percent in (50, 99)))


class Round(NamedTuple):
    piece_ms: float
    unchanged: Compared
    changed: Compared
    backlog: Compared
    ours: Latency
    raw: Latency


async def measure(plan: Plan) -> list[Row]:
    rows: list[Row] = []
    rounds = [await _round(plan, number) for number in range(1, plan.rounds + 1)]
    async with a_stage() as stage:
        if rounds:
            say("memory")
            rows = [*_rows(rounds, plan), *await _memory_rows(stage, plan)]
        server = await stage.client.info("server")
        print(*facts(f"{server.get('server_name', 'redis')} {server['redis_version']}, embedded"), sep="\n")
        if rounds:
            alone = [f"{each.piece_ms:.0f}" for each in rounds]
            print(f"a fixed piece of work, ms of processor time in each round: {', '.join(alone)}")
        if plan.many:
            rows += await measure_many(stage.url, plan.many)
    return rows


async def _round(plan: Plan, number: int) -> Round:
    say(f"round {number} of {plan.rounds}")
    (delivery,) = some_deliveries(1)
    alone_ms = piece_ms()

    def get(stage: Stage) -> Awaitable[Speed]:
        return raw_speed("GET", f"{stage.url}/still/api/v3/user/balances?accountId=1", plan.raw_s)

    def post(stage: Stage) -> Awaitable[Speed]:
        return raw_speed("POST", stage.url, plan.raw_s, data=delivery.body)

    compared = (
        await _compared(lambda stage: unchanged(stage, plan.accounts, plan.polling_s), get),
        await _compared(lambda stage: changed(stage, plan.accounts, plan.polling_s), get),
        await _compared(lambda stage: backlog(stage, plan.queues, plan.per_queue), post),
    )
    per_second = plan.timed_per_second
    async with a_stage() as stage:
        ours = Latency.of(await latencies(stage, 100, plan.timed, per_second=per_second))
        raw = Latency.of(await raw_latencies_ms(stage.url, plan.timed, every_s=1 / per_second))
    return Round(alone_ms, *compared, ours, raw)


async def _compared(
    job: Callable[[Stage], Awaitable[Measured]], raw: Callable[[Stage], Awaitable[Speed]]
) -> Compared:
    """Do a job between two raw loops, because the machine changes from one minute to the next; with a server
    of its own, because one that holds what other jobs left answers more slowly."""
    async with a_stage() as stage:
        before, ours, after = await raw(stage), await job(stage), await raw(stage)
    return Compared(ours, Speed(*map(mean, zip(before, after, strict=True))))


def _rows(rounds: list[Round], plan: Plan) -> Iterator[Row]:
    unchanged_jobs = [each.unchanged for each in rounds]
    yield from _job_rows(
        "polls a second, nothing changed",
        unchanged_jobs,
        wall=Goal("≥ 0.8", "≥ 1.2"),
        cpu=Goal("≥ 1.0", "≥ 1.5"),
        server=Goal("≤ 12", "≤ 3"),
    )
    yield from _job_rows(
        "changes a second, each committed and delivered",
        [each.changed for each in rounds],
        cpu=Goal("≥ 0.28", "≥ 0.5"),
        server=Goal("≤ 50", "≤ 25"),
    )
    yield from _job_rows(
        f"deliveries a second, from a backlog of {plan.queues * plan.per_queue:,}",
        [each.backlog for each in rounds],
        cpu=Goal("≥ 0.9", "≥ 1.3"),
        server=Goal("≤ 15", "≤ 8"),
    )
    what = f"ms from commit to receipt at {plan.timed_per_second:.0f} a second"
    for name, goal in (("p50", Goal("≤ 1.5", "≤ 1")), ("p99", Goal("≤ 5", "≤ 3"))):
        ours = [getattr(each.ours, name) for each in rounds]
        raw = [getattr(each.raw, name) for each in rounds]
        ratio = median(mine / theirs for mine, theirs in zip(ours, raw, strict=True))
        yield Row(f"{what}, {name}", f"{median(ours):.2f}", f"{median(raw):.2f}", f"{ratio:.1f}", *goal)


def _job_rows(
    what: str, jobs: list[Compared], *, wall: Goal = NONE, cpu: Goal, server: Goal
) -> Iterator[Row]:
    """Say how fast a job went, and what each item cost the worker and Redis. A ratio above 1 is better than
    the raw loop."""
    yield Row(
        what,
        _median((job.ours.speed.per_second for job in jobs), ",.0f"),
        _median((job.raw.per_second for job in jobs), ",.0f"),
        _median((job.ours.speed.per_second / job.raw.per_second for job in jobs), ".2f"),
        *wall,
    )
    yield Row(
        "- µs of this process for each",
        _median((job.ours.speed.cpu_us for job in jobs), ".0f"),
        _median((job.raw.cpu_us for job in jobs), ".0f"),
        _median((job.raw.cpu_us / job.ours.speed.cpu_us for job in jobs), ".2f"),
        *cpu,
    )
    yield Row(
        "- µs of commands in Redis for each",
        _median((job.ours.server_us for job in jobs), ".1f"),
        "",
        "",
        *server,
    )


def _median(figures: Iterable[float], form: str) -> str:
    return format(median(figures), form)


async def _memory_rows(stage: Stage, plan: Plan) -> list[Row]:
    short = await account_bytes(stage, plan.accounts, [str(number) for number in range(ASSETS)])
    long = await account_bytes(stage, plan.accounts, [f"0x{number:040x}" for number in range(ASSETS)])
    waiting = await delivery_bytes(stage, plan.queues, plan.per_queue)
    held = await held_mib(stage, plan.accounts, plan.queues, plan.per_queue)
    (delivery,) = some_deliveries(1)
    return [
        Row(f"bytes of Redis for an account of {ASSETS} assets", f"{short:,.0f}", "", "", "≤ 700", "≤ 555"),
        Row("- with ids of 42 characters", f"{long:,.0f}"),
        Row(f"- for a waiting delivery with a body of {len(delivery.body)} bytes", f"{waiting:,.0f}"),
        Row("MB that `watcher run` holds at most in such a job", f"{held:.0f}", "", "", "≤ 80", "≤ 60"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measures the worker against a raw aiohttp loop.")
    parser.add_argument("--quick", action="store_true", help="a small form, in seconds")
    parser.add_argument("--rounds", type=int, help="medians of so many rounds (5); 0: none")
    parser.add_argument("--accounts", type=int, default=0, help="measure a worker with so many accounts, too")
    given = parser.parse_args(arguments)
    plan = QUICK if given.quick else replace(Plan(), many=given.accounts)
    plan = plan if given.rounds is None else replace(plan, rounds=given.rounds)
    print("\n".join(table(on_a_loop(measure(plan)))))


if __name__ == "__main__":
    main()
