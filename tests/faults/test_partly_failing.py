"""What a partly failing receiver gets: requests that fail or hang, a rate limit, accounts that fail.

The short forms offer a quarter of it, to several receivers at the same time, each with a worker and a server
of its own. In so short a time a tenth less is enough, and queues that need not wait may take twice as long.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.faults.partly_failing import HANG_S, HEAD, ROW_BY_NAME, ROWS, Row, line, run, some
from tests.faults.recording_receiver import Said
from tests.faults.scene import BOUNDED, LONG

pytestmark = BOUNDED

SHORT_S = 6
AFTER_S = 2

HANGS = replace(ROW_BY_NAME["hang 0.2%"], mood=some(0.01, Said(200, 2 * HANG_S)))
"""Often enough to happen in a few seconds."""


@pytest.mark.parametrize(
    "rows",
    [
        [ROW_BY_NAME[name] for name in ("503 20%", "reset 33%")],
        [HANGS, *(ROW_BY_NAME[name] for name in ("bucket 20/s", "503 for 33", "503 rests 60 s, 1%"))],
    ],
    ids=["at random", "some wait"],
)
async def test_a_partly_failing_receiver_gets_what_is_promised(rows: Sequence[Row]) -> None:
    less = [
        replace(row.times(0.25), share=0.9 * row.share, others_p99_s=2 * row.others_p99_s) for row in rows
    ]
    founds = await asyncio.gather(*(run(row, seconds=SHORT_S, after_s=AFTER_S) for row in less))
    print("\n".join([*HEAD, *map(line, founds)]))
    assert [found.problems for found in founds] == [[] for _ in rows]


@pytest.mark.parametrize("workers", [pytest.param(count, marks=LONG) for count in (1, 3)])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_partly_failing_receiver_gets_what_is_promised_for_long(row: Row, workers: int) -> None:
    found = await run(row, workers=workers)
    print("\n".join([*HEAD, line(found)]))
    assert found.problems == []


@pytest.mark.parametrize("workers", [pytest.param(count, marks=LONG) for count in (1, 3)])
@pytest.mark.parametrize("name", ["503 20%", "bucket 100/s"])
async def test_more_load_never_means_fewer_deliveries(name: str, workers: int) -> None:
    founds = [await run(ROW_BY_NAME[name].times(factor), workers=workers) for factor in (0.5, 1, 2)]
    print("\n".join([*HEAD, *map(line, founds)]))
    delivered = [found.delivered for found in founds]
    assert all(more >= 0.95 * less for less, more in pairwise(delivered)), delivered
