"""Holds one queue while it is worked on: an attempt that is not quick keeps it until the attempt must be
over.

Most attempts take milliseconds. So a lease is short at first, and what a dead worker had in hand is soon
free. Refuses to leave in doubt until when the queue is ours: who settles must know.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from watcher.delivery.damage import survived
from watcher.store.connect import StoreError
from watcher.store.schedule import Lease

QUICK_S = 2.0
"""Most attempts take no longer."""

T = TypeVar("T")


class Hold:
    """`lease` is what holds now. `stretch(lease)` makes it longer and returns what holds then; it runs beside
    the attempt, and is waited for.
    """

    def __init__(self, lease: Lease, *, stretch: Callable[[Lease], Awaitable[Lease]]) -> None:
        self.lease = lease
        self._stretch = stretch
        self._stretching: asyncio.Task[None] | None = None

    async def during(self, attempt: Awaitable[T]) -> T:
        """Await an attempt; when it is over, however it ends, `lease` is what holds."""
        timer = asyncio.get_running_loop().call_later(QUICK_S, self._begin)
        try:
            return await attempt
        finally:
            timer.cancel()
            if self._stretching:
                await self._stretching
                self._stretching = None

    def _begin(self) -> None:
        self._stretching = asyncio.create_task(self._lengthen(), name=f"hold {self.lease.member}")

    async def _lengthen(self) -> None:
        with survived("queue", account=self.lease.member):
            try:
                self.lease = await self._stretch(self.lease)
            except StoreError:
                return  # as it was: the worker ends, and waits no longer for the store
