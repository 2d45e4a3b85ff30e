"""A dead subscription beside a live one, on a server with little memory: the live one is not affected."""

import asyncio
import time
from typing import NamedTuple

import pytest

from tests.faults.scene import AS_IT_COMES, BOUNDED, LONG, SUBSCRIPTION, a_scene
from tests.support.servers import a_free_port
from watcher.store.keeper import LEAST_BACKLOG, memory_of
from watcher.store.reader import Reader

pytestmark = [pytest.mark.fault, BOUNDED]

_DEAD = """
[[subscriptions]]
name = "dead"
url = "http://127.0.0.1:{port}/"
secrets = ["${{SECRET}}"]
"""


class Form(NamedTuple):
    """How much memory there is, how much of it another program has taken, how fast balances move, and for how
    many seconds after memory got short."""

    megabytes: int
    ballast: int
    changes_per_second: float
    seconds: float


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(Form(8, 3, 200, 4), id="short"),
        pytest.param(Form(24, 0, 200, 120), marks=LONG, id="long"),
    ],
)
async def test_a_dead_subscription_that_fills_a_small_store_does_not_harm_a_live_one(form: Form) -> None:
    flags = ("--maxmemory", f"{form.megabytes}mb", "--maxmemory-policy", "noeviction")
    async with a_scene(leases=AS_IT_COMES, flags=flags) as scene:
        await scene.redis.set("ballast", bytes(form.ballast << 20))
        file = scene.directory / "watcher.toml"
        file.write_text(file.read_text() + _DEAD.format(port=a_free_port()))
        (worker,) = await scene.start_workers(1)
        await scene.begin(form.changes_per_second)
        await asyncio.sleep(1)

        def far() -> tuple[int, int]:
            return scene.receiver.taken, scene.provider.changes

        begun_at, used, full_at, changes = time.monotonic(), 0, 0.0, list[tuple[float, int]]()
        async with asyncio.timeout(20 * form.seconds):
            while not full_at or time.monotonic() < full_at + form.seconds:
                await asyncio.sleep(0.1)
                used = max(used, (await memory_of(scene.redis))[0])
                changes.append((time.monotonic(), scene.provider.changes))
                if not full_at and worker.lines("store.relieved"):
                    full_at, full = time.monotonic(), far()
        end = far()
        # A change is delivered a little after it was made: of those of the last second nothing is said.
        due = max(count for at, count in changes if at < time.monotonic() - 1)
        share = (end[0] - full[0]) / (due - full[1])
        print(f"nearly full after {full_at - begun_at:.0f} s, then {share:.1%} of the changes were delivered")
        print(f"{used / 2**20:.1f} MB used at most")
        assert share >= 0.95
        assert used < form.megabytes * 2**20
        relieved, overflowed = worker.lines("store.relieved"), worker.lines("subscription.overflowed")
        print(relieved[-1], len(relieved), overflowed[-1:], len(overflowed))
        assert {line["subscription"] for line in overflowed} == {"dead"}
        assert not worker.lines("store.refusing")
        waiting = await Reader(scene.pipe, scene.keys).waiting(["dead", SUBSCRIPTION])
        assert waiting["dead"].deliveries >= LEAST_BACKLOG
        assert (await scene.verdict()).problems == []
        last: dict[str, int] = {}
        for arrival in scene.receiver.arrivals:
            previous = arrival.event["subscription"]["previous_sequence"]
            assert previous == last.get(arrival.account), "the live subscription gave up nothing"
            last[arrival.account] = arrival.event["data"]["sequence"]
