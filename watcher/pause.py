"""Waits for an event within a limit; keeps many deadlines; goes through much without holding the event loop
up."""

import asyncio
import gc
import heapq
import math
import sys
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Generic, TypeVar

_SWITCH_S = 0.0001
"""The interpreter lets a thread go on for 5 ms before another one gets its turn, and the event loop needs one
after each of its system calls: a hundred of them would be half a second."""

_SLICE = 1000
"""Items that are gone through before anything else goes on: a millisecond or two."""

_SORTED_AT_ONCE = 10_000
"""Texts: some 5 ms."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
_usual_switch_s = sys.getswitchinterval()
_computing = 0
_is_any_kept = False


async def pause(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until `event` is set; returns False when `timeout_s` was over first."""
    if timeout_s <= 0:
        await asyncio.sleep(0)
        return event.is_set()
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


class Deadlines(Generic[K]):
    """Deadlines of which hardly one is ever reached, all by one timer: one of the loop for each request costs
    more than all else about its deadline. `reached(key)` is called at its deadline, in the loop's time.
    """

    def __init__(self, reached: Callable[[K], object]) -> None:
        self._reached = reached
        self._at: dict[K, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def set(self, key: K, at: float) -> None:
        """Set a key's one deadline."""
        self._at[key] = at
        if at < self._rings_at:
            self._ring_at(at)

    def drop(self, key: K) -> None:
        """Forget a key's deadline, if it has one. The timer stays as it is, and finds nothing due."""
        self._at.pop(key, None)

    def _ring_at(self, at: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._rings_at = at
        self._timer = asyncio.get_running_loop().call_at(at, self._ring)

    def _ring(self) -> None:
        now, self._rings_at, self._timer = asyncio.get_running_loop().time(), math.inf, None
        due = [key for key, at in self._at.items() if at <= now]
        for key in due:
            del self._at[key]
        if self._at:
            self._ring_at(min(self._at.values()))
        for key in due:
            self._reached(key)


async def compute(function: Callable[..., T], *arguments: object, is_kept: bool = True) -> T:
    """Compute for long in a thread, and let the event loop have its turns meanwhile.

    What is made is not looked through for garbage, now or later: a look at 100,000 accounts takes as long as
    the loop must not stand still. Where it is not kept (`is_kept`), only not now.
    """
    with uncollected(is_kept=is_kept):
        sys.setswitchinterval(_SWITCH_S)
        return await asyncio.to_thread(function, *arguments)


@contextmanager
def uncollected(*, is_kept: bool = False) -> Iterator[None]:
    """Look for no garbage while much is made, which goes again at once or is kept."""
    global _computing, _is_any_kept
    _computing += 1
    _is_any_kept |= is_kept
    gc.disable()
    try:
        yield
    finally:
        _computing -= 1
        if not _computing:
            sys.setswitchinterval(_usual_switch_s)
            if _is_any_kept:
                gc.freeze()
            _is_any_kept = False
            gc.enable()


def keep() -> None:
    """Look no more for garbage through what there is by now: much was made, and it stays."""
    gc.freeze()


async def slowly(items: Iterable[T], at_once: int = _SLICE) -> AsyncIterator[T]:
    """Go through many items, and let other work go on in between and at the end: there may be many such
    lists, each of them short. `at_once`: fewer where each takes long."""
    for count, item in enumerate(items, 1):
        yield item
        if count % at_once == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0)


def in_order(texts: Iterable[str]) -> Iterator[str]:
    """Sort step by step: to sort 100,000 texts at once holds up all threads."""
    rest = iter(texts)
    return heapq.merge(*iter(lambda: sorted(islice(rest, _SORTED_AT_ONCE)), []))
