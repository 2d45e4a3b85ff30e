"""What is damaged in Redis costs whoever needs it, and nobody else: said as a bug, and gone past.

Refuses to swallow that the store is away: that concerns all, and heals.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from watcher.observe.log import log
from watcher.store.connect import StoreError


@contextmanager
def survived(affected: str, **names: str) -> Iterator[None]:
    """Let what is inside fail; what comes after it is what then holds. StoreError passes."""
    try:
        yield
    except StoreError:
        raise
    except Exception:
        log.exception("bug", affected=affected, **names)
