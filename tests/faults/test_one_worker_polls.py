"""One worker makes all polls, and so all commits: it leases what it can deliver, others do the rest."""

import asyncio
from collections import Counter

import pytest

from tests.faults.scene import BOUNDED, LONG, SOON, a_scene

pytestmark = BOUNDED

MOST_IN_FLIGHT = 4
ANSWER_S = 0.05
"""So one worker delivers 80 events a second at most."""

CHANGES_PER_S = 150


@pytest.mark.parametrize("for_s", [4, pytest.param(60, marks=LONG)])
async def test_other_workers_deliver_what_the_polling_worker_cannot(for_s: float) -> None:
    async with a_scene(retries=f"{SOON}\nmax_in_flight = {MOST_IN_FLIGHT}") as scene:
        scene.receiver.delay_s = ANSWER_S
        (polling,) = await scene.start_workers(1)
        others = await scene.start_workers(2, polls_nothing=True)
        await scene.begin(CHANGES_PER_S)
        await asyncio.sleep(for_s)
        verdict = await scene.verdict()
        polls = [len(worker.lines("event.created")) > 0 for worker in (polling, *others)]
    by_worker = Counter(arrival.worker for arrival in scene.receiver.arrivals)
    print(by_worker)
    assert verdict.problems == []
    assert verdict.repeats == 0
    assert polls == [True, False, False]
    for worker in (polling, *others):
        assert by_worker[worker.name] > verdict.committed / 6, "each takes nearly a third"
    assert scene.receiver.most_in_flight <= 3 * MOST_IN_FLIGHT, "none leases more than its capacity"
