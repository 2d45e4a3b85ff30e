"""Measures what a partly failing receiver gets of 200 events a second of 100 accounts.

    python -m tests.benchmarks.partly_failing                              # every row, two minutes each
    python -m tests.benchmarks.partly_failing --seconds 30 --workers 3 503 # rows whose names contain 503
    python -m tests.benchmarks.partly_failing --times 0.5 --times 2 bucket # with half and twice the load

Prints a table, and exits 1 where a promise is not kept. Needs a machine with nothing else to do: a worker
that is slow for want of a processor looks like one that waits.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from tests.faults.partly_failing import HEAD, ROWS, Row, line, run


async def measure(rows: Sequence[Row], *, seconds: float | None, workers: int, together: int) -> bool:
    """Print a line for each row, so many of them at the same time; says whether all was kept."""
    print("\n".join(HEAD), flush=True)
    is_kept = True
    for first in range(0, len(rows), together):
        some = rows[first : first + together]
        with redirect_stdout(sys.stderr):  # what the scenes say
            founds = await asyncio.gather(*(run(row, seconds=seconds, workers=workers) for row in some))
        for found in founds:
            print(line(found), flush=True)
            is_kept = is_kept and not found.problems
    return is_kept


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measures what a partly failing receiver gets.")
    parser.add_argument(
        "--seconds", type=float, help="for each row; by default two minutes, or as long as it says"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--together", type=int, default=1, help="so many rows at the same time")
    parser.add_argument("--times", type=float, action="append", help="how many times as much is offered")
    parser.add_argument("--list", action="store_true", help="name the rows and measure nothing")
    parser.add_argument("names", nargs="*", help="parts of names of rows; without one, all of them")
    plan = parser.parse_args(arguments)
    rows = [row for row in ROWS if not plan.names or any(part in row.name for part in plan.names)]
    if plan.times:
        rows = [row.times(factor) for row in rows for factor in plan.times]
    if plan.list:
        print("\n".join(row.name for row in rows))
        return
    is_kept = asyncio.run(measure(rows, seconds=plan.seconds, workers=plan.workers, together=plan.together))
    sys.exit(not is_kept)


if __name__ == "__main__":
    main()
