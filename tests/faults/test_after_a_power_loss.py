"""Workers on an embedded server whose append-only file a power loss left with a bad end.

What was cut off may be the end of a poll: its lease is back then, and half a minute passes until it is over.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.run.test_worker import baselines
from tests.support.rig import ALICE, MK, TREASURY, Rig, a_rig

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="watcher-") as directory:
        yield Path(directory) / "state"


def moved(rig: Rig, account: str) -> Decimal:
    """What an account's total has moved by from the first event on, as the last one says."""
    events = [event["data"] for event in rig.receiver.events if event["data"]["account"]["name"] == account]
    if not events:
        return Decimal(0)
    return Decimal(events[-1]["after"]["total"]) - Decimal(events[0]["before"]["total"])


async def test_whatever_the_end_of_the_file_no_event_is_missed_and_the_journal_reconciles(
    data_dir: Path,
) -> None:
    random = Random(59)
    async with a_rig("unix:///nowhere", "power") as rig:
        redis = rig.settings.redis.model_copy(update={"url": SecretStr("embedded"), "data_dir": data_dir})
        rig.settings = rig.settings.model_copy(update={"redis": redis})
        async with rig.worker():
            await baselines(rig)
        for number, zeros in enumerate((0, 1, 4096, 100_000), 1):
            with capture_logs() as lines:
                async with rig.worker(), asyncio.timeout(60):
                    rig.sandbox.world.credit(TREASURY, "ETH", "1")
                    rig.sandbox.world.credit(ALICE, MK, "2")
                    for account, expected in (("treasury", number), ("alice", 2 * number)):
                        while moved(rig, account) != expected:  # noqa: ASYNC110 - a list sends no signal
                            await asyncio.sleep(0.01)
            said = [line["event"] for line in lines]
            assert not {"bug", "state.lost", "account.baseline"} & {*said}
            assert said.count("store.repaired") == (number > 1)
            (file,) = (data_dir / "appendonlydir").glob("*.incr.aof")
            content = file.read_bytes()
            file.write_bytes(content[: len(content) - random.randint(1, 400)] + bytes(zeros))
