"""Keeps open what a reload has replaced, until the last piece of work that uses it has ended."""

from contextlib import AsyncExitStack
from types import TracebackType


class InUse:
    """Counts the work that uses a client: `async with` around each use. Once it is retired and not used any
    more, it is closed, and no longer among the ones that are `still_open`."""

    def __init__(self, stack: AsyncExitStack, still_open: set[AsyncExitStack] | None = None) -> None:
        self._stack = stack
        self._still_open = {stack} if still_open is None else still_open
        self._users = 0
        self._is_retired = False

    async def __aenter__(self) -> None:
        self._users += 1

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._users -= 1
        await self._close_if_unused()

    async def retire(self) -> None:
        """Close it, now or at the end of the last use."""
        self._is_retired = True
        await self._close_if_unused()

    async def _close_if_unused(self) -> None:
        if self._is_retired and not self._users:
            self._still_open.discard(self._stack)
            await self._stack.aclose()
