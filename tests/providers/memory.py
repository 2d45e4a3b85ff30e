"""How much memory this process holds, and at most held, as the system counts it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1024 * 1024
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts it so")


@contextmanager
def no_more_than(bound: int) -> Iterator[None]:
    """Fail if at any moment inside the block so many bytes more are held than before it."""
    Path("/proc/self/clear_refs").write_text("5")  # what is held now is the most that ever was
    before = held()
    yield
    assert held(at_most=True) - before < bound


def held(*, at_most: bool = False) -> int:
    """How many bytes are held now, or the most that were."""
    what = "VmHWM:" if at_most else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith(what)]
    return 1024 * int(kib)
