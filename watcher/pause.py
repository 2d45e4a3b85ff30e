"""Waits for an event within a limit; goes through much without holding the event loop up."""

import asyncio
import gc
import heapq
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

_SWITCH_S = 0.0001
"""The interpreter lets a thread go on for 5 ms before another one gets its turn, and the event loop needs one
after each of its system calls: a hundred of them would be half a second."""

_SLICE = 1000
"""Items that are gone through before anything else goes on: a millisecond or two."""

_SORTED_AT_ONCE = 10_000
"""Texts: some 5 ms."""

T = TypeVar("T")
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
