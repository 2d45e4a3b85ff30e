"""A file that is touched while a worker lives, and no longer."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from watcher.observe import liveness
from watcher.observe.liveness import HeartbeatFile, HeartbeatRefused


def made_old(path: Path) -> None:
    os.utime(path, (1, 1))


def is_fresh(path: Path) -> bool:
    return path.exists() and path.stat().st_mtime > time.time() - 60


async def until_touched(path: Path) -> None:
    async with asyncio.timeout(5):
        while not is_fresh(path):  # noqa: ASYNC110 - a file sends no signal
            await asyncio.sleep(0.005)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(liveness, "EVERY_S", 0.01)
    return tmp_path / "heartbeat"


async def test_the_file_is_touched_at_once_and_regularly_and_removed_at_the_end(path: Path) -> None:
    beats = HeartbeatFile(path, dict)
    beats.begin()
    assert is_fresh(path)
    made_old(path)
    running = asyncio.create_task(beats.run())
    await until_touched(path)
    running.cancel()
    beats.end()
    assert not is_fresh(path)
    beats.end()


async def test_while_a_loop_is_stuck_the_file_is_not_touched(path: Path) -> None:
    stuck, looked = {"deliver": 130.0}, asyncio.Event()

    def look() -> dict[str, float]:
        looked.set()
        return stuck

    beats = HeartbeatFile(path, look)
    beats.begin()
    made_old(path)
    running = asyncio.create_task(beats.run())
    for _ in range(3):
        looked.clear()
        await looked.wait()
    assert not is_fresh(path)
    stuck.clear()
    await until_touched(path)
    running.cancel()


async def test_a_missing_directory_ends_the_heartbeat_and_nothing_else(path: Path) -> None:
    folder = path.parent / "run"
    folder.mkdir()
    beats = HeartbeatFile(folder / "heartbeat", dict)
    beats.begin()
    beats.end()
    folder.rmdir()
    running = asyncio.create_task(beats.run())
    await asyncio.sleep(0.05)
    assert not running.done()
    folder.mkdir()
    await until_touched(folder / "heartbeat")
    running.cancel()
    beats.end()


def test_an_unwritable_place_is_refused_at_the_start(tmp_path: Path) -> None:
    beats = HeartbeatFile(tmp_path / "nowhere" / "heartbeat", dict)
    with pytest.raises(HeartbeatRefused, match="cannot be written: No such file") as refused:
        beats.begin()
    assert refused.value.exit_code == 78


@pytest.mark.parametrize("kind", ["a file with something in it", "a directory", "a device"])
def test_another_file_is_refused_and_left_in_place(path: Path, kind: str) -> None:
    if kind == "a directory":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/null")
    else:
        path.write_text("[redis]")
    with pytest.raises(HeartbeatRefused, match="name a new file"):
        HeartbeatFile(path, dict).begin()
    assert path.exists()


def test_a_heartbeat_file_that_a_killed_worker_left_is_taken_over(path: Path) -> None:
    path.touch()
    HeartbeatFile(path, dict).begin()


async def test_a_bug_of_the_heartbeat_is_logged(path: Path) -> None:
    looks = 0

    def look() -> dict[str, float]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise RuntimeError("nobody thought of this")
        return {}

    beats = HeartbeatFile(path, look)
    beats.begin()
    made_old(path)
    with capture_logs() as said:
        running = asyncio.create_task(beats.run())
        await until_touched(path)
    running.cancel()
    assert [(line["event"], line["affected"]) for line in said] == [("bug", "heartbeat file")]
