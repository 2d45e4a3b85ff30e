"""An operator's commands and reloads, while workers and their server are killed."""

import asyncio
import signal
import time
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import pytest

from tests.faults.scene import AS_IT_COMES, BOUNDED, LONG, SHORT_LEASES, SOON, SUBSCRIPTION, Scene, a_scene

pytestmark = BOUNDED

WORKERS = 3
RETRIES = f"{SOON}\nmax_in_flight = 21"
COMMANDS = ("resend", "pause", "reload", "resume")
_CHANGED = ('timeout = "1s"', 'timeout = "2s"', "max_in_flight = 21", "max_in_flight = 12")


@pytest.mark.parametrize(
    ("kills", "server_kills", "leases"),
    [(4, 1, SHORT_LEASES), pytest.param(20, 6, AS_IT_COMES, marks=LONG)],
)
async def test_resends_pauses_and_reloads_beside_crashes_lose_and_reorder_nothing(
    kills: int, server_kills: int, leases: Mapping[str, Any]
) -> None:
    async with a_scene(accounts=60, leases=leases, flags=("--appendfsync", "no"), retries=RETRIES) as scene:
        await scene.start_workers(WORKERS)
        await scene.begin(changes_per_second=60)
        commands = cycle(COMMANDS)
        codes = []
        for number in range(kills):
            command = asyncio.create_task(_command(scene, next(commands)))
            await asyncio.sleep(scene.random.uniform(0.1, 1))  # it starts, is under way, or has just ended
            await scene.random.choice(scene.running).kill()
            if number * server_kills // kills != (number + 1) * server_kills // kills:
                scene.server.kill()
                await asyncio.sleep(scene.random.uniform(0.1, 1))
                scene.server.start()
            worker = await scene.start_worker()
            await worker.logged("worker.started")  # one that meets no server at its start ends, as it should
            codes.append(await command)
        assert await _command(scene, "resume") == 0
        assert await _command(scene, "resend") == 0  # those before may all have met a server that was away
        verdict = await scene.verdict(within_s=60)
    assert verdict.problems == []
    assert verdict.repeats, "nothing was sent again"
    assert set(codes) <= {0, 69}, "done, or Redis was unreachable"


async def _command(scene: Scene, name: str) -> int | None:
    """Give one of the commands; returns its exit code."""
    if name == "reload":
        # The subscription and the provider both change: another target, another client.
        file = scene.directory / "watcher.toml"
        text, other = file.read_text(), str.maketrans("12", "21")
        changed = [line.translate(other) if line in _CHANGED else line for line in text.splitlines()]
        file.write_text("\n".join(changed))
        for worker in scene.running:
            if worker.handles(signal.SIGHUP):
                worker.send(signal.SIGHUP)
        return 0
    arguments = {
        "resend": ("resend", "--subscription", SUBSCRIPTION, "--since", "15s"),
        "pause": ("subscriptions", "pause", SUBSCRIPTION),
        "resume": ("subscriptions", "resume", SUBSCRIPTION),
    }[name]
    code, _, errors = await scene.command(*arguments)
    print(f"{time.time():.1f} {name}: {code} {errors.strip()[-200:]}")
    return code
