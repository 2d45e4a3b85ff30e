"""Finds what is due, of all work, with one look: a worker with nothing to do asks Redis next to nothing.

Refuses to claim: the loops do, where they have room.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

from watcher.observe.log import log
from watcher.pause import pause
from watcher.store.connect import StoreError
from watcher.store.due import Due, DueIndex
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS

LOOK_S = 0.05
"""Between two looks: how late work may start that another worker made due, or did not get to."""

MEND_S = 2.0
"""So often the index is compared with the schedules: workers of the version before keep none of polls."""

_DAMAGED_S = 30.0


class Look:
    """Looks at all shards, and calls `tell` with what may be due. `providers`: those that are polled here."""

    def __init__(
        self, index: DueIndex, providers: Sequence[str], health: StoreHealth, tell: Callable[[Due], None]
    ) -> None:
        self._index = index
        self._providers = providers
        self._health = health
        self._tell = tell
        self._mend_at = 0.0

    async def run(self, stopped: asyncio.Event) -> None:
        """Look until stopped."""
        pause_s = 0.0
        while not await pause(stopped, pause_s):
            try:
                await self.look()
                pause_s = LOOK_S
            except StoreError as trouble:
                pause_s = await self._health.failed(trouble)
            except Exception:
                log.exception("bug", affected="what is due")
                pause_s = _DAMAGED_S

    async def look(self) -> None:
        """Look once; now and then, mend the index first. Raises StoreError."""
        if time.monotonic() >= self._mend_at:
            self._mend_at = time.monotonic() + MEND_S
            mending = (self._index.mend(shard, self._providers) for shard in range(SHARDS))
            await self._health.of_parts(*mending)
        found = await self._health.of_parts(*map(self._index.look, self._index.looks))
        for due in itertools.chain.from_iterable(part or () for part in found):
            self._tell(due)
