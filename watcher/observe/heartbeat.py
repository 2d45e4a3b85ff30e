"""A file that a worker touches every few seconds while all its loops turn: `watcher health` looks at it.

Refuses to keep up appearances: with one loop stuck it is touched no more.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from watcher.observe.log import log

EVERY_S = 5.0


class HeartbeatRefused(Exception):
    """The heartbeat file cannot be written where it was asked for: nobody could see the worker live."""

    exit_code = 78


class HeartbeatFile:
    """The heartbeat of one worker. `stuck()` names the loops that no longer turn."""

    def __init__(self, path: Path, stuck: Callable[[], Collection[str]]) -> None:
        self._path = path
        self._stuck = stuck

    def begin(self) -> None:
        """Touch the file for the first time. Raises HeartbeatRefused."""
        try:
            if self._path.exists() and (not self._path.is_file() or self._path.stat().st_size):
                raise HeartbeatRefused(
                    f"the heartbeat file {self._path} is something else already, and would be removed at the "
                    "end: name a new file"
                )
            self._touch()
        except OSError as error:
            raise HeartbeatRefused(
                f"the heartbeat file {self._path} cannot be written: {error.strerror}"
            ) from error

    async def run(self) -> None:
        """Beat until cancelled. A disk that fails or hangs stops the heartbeat, and nothing else."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                if not self._stuck():
                    await asyncio.to_thread(self._touch)
            except OSError:
                pass  # whoever looks finds the file too old, or gone
            except Exception:  # must not end all beats to come
                log.exception("bug", affected="heartbeat file")

    def end(self) -> None:
        """Take the file away: a worker that has ended does not live."""
        with suppress(OSError):
            self._path.unlink()

    def _touch(self) -> None:
        self._path.touch(mode=0o644)
