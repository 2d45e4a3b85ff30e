"""Very many items are gone through, and sorted, in slices."""

import asyncio
from itertools import pairwise
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from watcher import pause
from watcher.pause import in_order, slowly


async def test_going_through_many_items_does_not_block_other_work() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    seen = [(item, turns) async for item in slowly(range(3_500))]
    ended_at = turns
    turning.cancel()
    assert [item for item, _ in seen] == [*range(3_500)]
    ends = [*(at for _, at in seen[::1000]), ended_at]
    assert all(before < after for before, after in pairwise(ends))


@settings(max_examples=30)
@given(st.lists(st.text(max_size=3), max_size=20))
def test_sorting_in_steps_gives_the_same_order(texts: list[str]) -> None:
    with patch.object(pause, "_SORTED_AT_ONCE", 3):
        assert [*in_order(texts)] == sorted(texts)
