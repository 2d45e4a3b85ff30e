"""Workers of the version before run beside those of this one on one store: up, rolling, killed, and back.

`.ci/run` installs that version as a package in an environment of its own; WATCHER_BEFORE names its Python.
"""

import os

import pytest

from tests.faults.scene import AS_IT_COMES, Scene, a_scene

BEFORE = os.environ.get("WATCHER_BEFORE", "")

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(240),
    pytest.mark.may_skip,
    pytest.mark.skipif(not BEFORE, reason="WATCHER_BEFORE names no Python with that version: see .ci/run"),
]

CHANGES = 60
LEASE_S = 30
"""As the program comes: a poll in the hand of a worker that was killed is free again after so long."""


async def more(scene: Scene) -> None:
    await scene.until_told(CHANGES, within_s=LEASE_S)


async def test_workers_of_the_version_before_and_of_this_one_lose_nothing_beside_each_other() -> None:
    async with a_scene(accounts=60, leases=AS_IT_COMES) as scene:
        killed, ended = await scene.start_workers(2, python=BEFORE)
        await scene.begin(changes_per_second=60)
        await more(scene)  # what lies in the store is of the version before
        await scene.start_workers(1)
        await more(scene)
        await killed.kill()
        await scene.start_workers(1)
        await more(scene)
        assert await ended.terminate() == 0
        await more(scene)
        first, second = scene.running
        await scene.start_workers(1, python=BEFORE)
        await more(scene)
        await first.kill()
        assert await second.terminate() == 0
        await more(scene)  # by the version before alone
        await scene.start_workers(1)
        await more(scene)
        verdict = await scene.verdict(within_s=2 * LEASE_S)
    assert verdict.problems == []
    assert (verdict.lost, verdict.out_of_order) == (0, 0)
