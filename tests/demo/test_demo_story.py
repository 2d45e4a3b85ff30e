"""The story of the demo shows what it should, on a real stage, and fails where it must."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from watcher.delivery.signing import new_secret
from watcher.demo.judge import Arrival, Made
from watcher.demo.stage import STORY, Scene, Stage, a_stage, play
from watcher.sandbox.script import Step, default_script
from watcher.sandbox.world import ALICE, TREASURY, default_world
from watcher.settings import CHANGE_EVENTS

OFTEN = timedelta(milliseconds=20)
PATIENCE_S = 0.5


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with a_stage(OFTEN) as stage:
        yield stage


def ignored(scene: Scene, made: Made | None, heard: Arrival | None) -> None:
    """See a scene and say nothing."""


def test_the_story_has_both_providers_every_kind_of_movement_and_thirty_digits() -> None:
    steps = [scene.step for scene in STORY]
    assert {step.account for step in steps} == {TREASURY, ALICE, None}
    found = {scene.event for scene in STORY}
    assert found - {None} <= set(CHANGE_EVENTS)
    assert {"deposit.cleared", "withdrawal.cleared", "withdrawal.returned", "locked.decreased"} <= found
    assert any(step.options.get("split") for step in steps)
    assert any(sum(map(str.isdigit, str(step.amount))) == 30 for step in steps)


def test_the_sandboxs_script_can_follow_the_story_endlessly() -> None:
    world = default_world()
    followed = default_script().steps * 3
    for step in (*(scene.step for scene in STORY), *followed):
        if step.account is not None:
            step.make(world, {})  # raises Impossible
            world.settle(step.account)


async def test_an_unplanned_change_is_delivered_and_found(stage: Stage) -> None:
    def meddle(scene: Scene, made: Made | None, heard: Arrival | None) -> None:
        stage.sandbox.world.debit(TREASURY, "ETH", "1")

    verdict = await play(stage, show=meddle, story=STORY[:1], patience_s=PATIENCE_S)
    assert (verdict.made, verdict.verified) == (1, 2)
    (broken,) = verdict.broken
    assert broken.startswith("reported, but no such change was made: treasury total.decreased 1 ETH (evt_")


async def test_a_change_with_another_event_is_found(stage: Stage) -> None:
    verdict = await play(
        stage, show=ignored, story=[STORY[0]._replace(event="total.increased")], patience_s=PATIENCE_S
    )
    assert "not reported: treasury deposit.seen 12.5 LRC, as total.increased" in verdict.broken


async def test_signatures_by_another_secret_fail_the_story(stage: Stage) -> None:
    stage.receiver.secrets = [new_secret()]
    shown: list[Arrival | None] = []
    verdict = await play(stage, show=lambda _scene, _made, heard: shown.append(heard), patience_s=PATIENCE_S)
    assert verdict.verified == 0
    assert verdict.broken[0].startswith(f"only {verdict.made} of ")
    assert verdict.broken[1].startswith("not verified: no signature matches")
    # The refused event is tried again, after longer and longer waits: until none comes in time.
    *refused, last = (heard and heard.receipt.is_verified for heard in shown)
    assert {*refused} == {False}
    assert last is None


async def test_a_failing_provider_moves_nothing(stage: Stage) -> None:
    fault = Scene(Step(0, "fault", options={"provider": "loopring", "fault": "unavailable"}), None)
    verdict = await play(stage, show=ignored, story=[STORY[0], fault, STORY[1]], patience_s=4 * PATIENCE_S)
    assert verdict.is_good
    assert stage.worker.counters.rejected == 1
    assert [one.receipt.event and one.receipt.event["type"] for one in stage.arrivals] == [
        "deposit.pending",
        "deposit.cleared",
    ]


async def test_a_stage_leaves_nothing_behind() -> None:
    async with a_stage(OFTEN) as stage:
        data_dir = stage.worker.settings.redis.data_dir
        await stage.polled(1)
        assert (data_dir / "server.sock").exists()
    assert not data_dir.exists()
