"""`watcher audit --store` beside busy workers reports nothing that is only in motion."""

import pytest

from tests.faults.scene import BOUNDED, LONG, a_scene
from watcher.store.inventory import StoreAudit
from watcher.store.keys import SHARDS

pytestmark = BOUNDED


@pytest.mark.parametrize(("times", "workers"), [(3, 2), pytest.param(200, 4, marks=LONG)])
async def test_an_audit_of_the_store_beside_workers_finds_nothing(times: int, workers: int) -> None:
    async with a_scene() as scene:
        scene.receiver.fail_every = 20
        await scene.start_workers(workers)
        await scene.begin(changes_per_second=200)
        audit, flaws, references = StoreAudit(scene.pipe, scene.keys), [], 0
        for number in range(times):
            await scene.until_delivered(50, within_s=30)
            if number % 10 == 2:
                await scene.running[0].kill()  # what it had in hand is no flaw
                await scene.start_workers(1)
            parts = [await audit.names(), *[await audit.of_shard(shard) for shard in range(SHARDS)]]
            flaws += [flaw for part in parts if part for flaw in part.flaws]
            references += sum(part.references for part in parts if part)
        verdict = await scene.verdict(within_s=60)
    assert flaws == []
    assert references > 100 * times
    assert verdict.problems == []
