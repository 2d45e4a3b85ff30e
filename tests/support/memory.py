"""How much memory a process holds, as the kernel counts it. Where it does not, nothing is asserted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def growing_at_most(mib: float) -> Iterator[None]:
    """Assert that the memory of this process never exceeds, inside the block, what it was before by more."""
    before = held_mib()
    yield
    assert peak_mib() - before < mib


def held_mib() -> float:
    """Return how much memory is used now; the peak counts from now on."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 1e9
    return peak_mib()


def peak_mib(process: int | str = "self") -> float:
    """Return how much memory a process used at most, by its pid; 0 if that is not known."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
