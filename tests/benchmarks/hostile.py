"""Measures what hostile subscribers cost: the memory that attempts leave behind, and the time that they take.

    python -m tests.benchmarks.hostile            # about two minutes
    python -m tests.benchmarks.hostile --quick    # the same, small

Each kind gets 1,000 deliveries through one sink, as the worker has it, and again several times. The first
are a warm-up. During the others no cycles are collected, so that what is left in them shows. Exits 1 where
memory grows by 1 MiB or more each time, where more is left than a handful of objects an attempt, or where one
takes longer than its deadline and what a busy machine adds.

Each time, because the allocator keeps what was ever needed at one moment: a round in which more attempts than
ever before read at once grows by their buffers, and no round after it does.
"""

import asyncio
import gc
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.hostile_servers import hostile_servers
from tests.benchmarks.stage import perform, say
from tests.benchmarks.waiting import some_deliveries
from tests.support.builders import a_subscription
from watcher.delivery.egress import Policy
from watcher.delivery.sink import Attempt
from watcher.delivery.webhook import WebhookSink, WebhookTarget

MOST_MIB = 1.0
"""Growth per 1,000 deliveries, or of the fewer that are made."""

MOST_LEFT = 10
"""Objects an attempt: one that is cut off while it connects leaves seven of uvloop's, and nothing else."""

SLACK_MS = 1000
_LOOPBACK = Policy((ip_network("127.0.0.0/8"),), allow_http=True)
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    rounds: int = 3
    deliveries: int = 1000
    in_flight: int = 100
    deadline_s: float = 1.0


QUICK = Plan(4, 64, in_flight=16, deadline_s=0.1)


class Cost(NamedTuple):
    """What one kind of subscriber cost; `left` objects were found when cycles were collected at the end."""

    name: str
    outcomes: set[int | str | None]
    grown_mib: list[float]
    left: int
    duration_ms: list[int]

    def faults(self, plan: Plan) -> Iterator[str]:
        """Name what is not as it must be."""
        if min(self.grown_mib) >= MOST_MIB:
            yield f"{self.name}: memory grew by {min(self.grown_mib):.1f} MiB and more"
        if self.left > MOST_LEFT * len(self.duration_ms):
            yield f"{self.name}: {self.left:,} objects were left for the collector"
        if self.duration_ms[-1] > 1000 * plan.deadline_s + SLACK_MS:
            yield f"{self.name}: an attempt took {self.duration_ms[-1]} ms"


async def measure(plan: Plan) -> list[Cost]:
    with hostile_servers() as ports:
        async with WebhookSink(_LOOPBACK, deadline_s=plan.deadline_s) as sink:
            return [await _cost(plan, sink, name, port) for name, port in ports.items()]


async def _cost(plan: Plan, sink: WebhookSink, name: str, port: int) -> Cost:
    say(name)
    target = WebhookTarget(a_subscription(url=f"http://127.0.0.1:{port}/"), _LOOPBACK)
    await _volley(plan, sink, target)
    gc.collect()
    gc.disable()
    sizes_mib, attempts = [_rss_mib()], []
    for _ in range(plan.rounds):
        attempts += await _volley(plan, sink, target)
        sizes_mib.append(_rss_mib())
    left = gc.collect()
    gc.enable()
    return Cost(
        name,
        {attempt.status or attempt.error for attempt in attempts},
        [after - before for before, after in itertools.pairwise(sizes_mib)],
        left,
        sorted(attempt.duration_ms for attempt in attempts),
    )


async def _volley(plan: Plan, sink: WebhookSink, target: WebhookTarget) -> list[Attempt]:
    deliveries = some_deliveries(plan.deliveries)
    attempts: list[Attempt] = []

    async def queue() -> None:
        for delivery in deliveries:
            attempts.append(await sink.send(target, [delivery], 1))  # noqa: PERF401 -- of many queues

    await asyncio.gather(*(queue() for _ in range(plan.in_flight)))
    return attempts


def _rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_MIB


def table(costs: Sequence[Cost]) -> Iterator[str]:
    yield "| subscriber | outcome | MiB, each time | objects left | p50 ms | longest ms |"
    yield "|---|---|---:|---:|---:|---:|"
    for cost in costs:
        middle, longest = cost.duration_ms[len(cost.duration_ms) // 2], cost.duration_ms[-1]
        outcome = ", ".join(sorted(map(str, cost.outcomes)))
        grown = " ".join(f"{mib:.2f}" for mib in cost.grown_mib)
        yield f"| {cost.name} | {outcome} | {grown} | {cost.left} | {middle} | {longest} |"


def main(arguments: Sequence[str] | None = None) -> None:
    what = "Measures what hostile subscribers cost."
    costs, plan = perform(measure, arguments, what=what, full=Plan(), quick=QUICK)
    print("\n".join(table(costs)))
    if faults := [fault for cost in costs for fault in cost.faults(plan)]:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
