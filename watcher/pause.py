"""Waits for an event, but not for longer than said."""

import asyncio


async def pause(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until `event` is set; returns False when the time was over first."""
    if timeout_s <= 0:
        await asyncio.sleep(0)
        return event.is_set()
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
