"""What `server` asks of a simulator: plain functions from a request to an answer, no sockets.

Refuses to know any provider: `loopring` and `metakeep` do.
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import Protocol, TypeVar

from watcher.sandbox.answers import Call, Fault, Reply
from watcher.sandbox.knobs import Knobs, Replicas, RowOrder

_Row = TypeVar("_Row")


class Simulator(Protocol):
    """One provider. Endpoints raise Declined for what the documentation says is refused."""

    replicas: Replicas

    @property
    def knobs(self) -> Knobs: ...

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Callable[[Call], Reply]]:
        """The functions that answer, by method and path."""
        ...

    def fault(self, path: str) -> Fault | None:
        """Take the fault for the next request to this path, if there is one."""
        ...

    def rate_scope(self, call: Call) -> tuple[str, ...]:
        """Say which limit this request counts against."""
        ...


def arrange(rows: list[_Row], order: RowOrder, random: Random) -> list[_Row]:
    """Put rows, given in ascending order, into the order that the knob asks for."""
    if order == "shuffled":
        return random.sample(rows, len(rows))
    return rows[::-1] if order == "descending" else rows
