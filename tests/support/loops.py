"""A loop that does not run: records the places that a poll reserves, and what it wakes."""

from collections.abc import Coroutine, Sequence
from typing import Any, cast

from watcher.engine.dispatch import Key
from watcher.engine.loop import Loop
from watcher.journal.events import Delivery
from watcher.store.health import StoreHealth
from watcher.store.schedule import Lease


class StillLoop(Loop):
    """Has the capacity that a test says, and records what is begun and what it is woken for."""

    def __init__(self) -> None:
        super().__init__(cast(Any, None), StoreHealth(), {}, list)
        self.capacity = 0
        self.woken: list[tuple[Key, int]] = []
        self.begun: list[tuple[Key, int, Lease]] = []
        self.delivered: list[tuple[str, Lease, Sequence[Delivery]]] = []
        self.let_go_of: list[tuple[str, Lease]] = []

    def keep(self, key: Key) -> bool:
        has_capacity = self.capacity > 0
        self.capacity -= has_capacity
        return has_capacity

    def give_back(self, key: Key) -> None:
        self.capacity += 1

    def begin(self, key: Key, shard: int, lease: Lease, doing: Coroutine[Any, Any, bool]) -> None:
        self.begun.append((key, shard, lease))
        doing.close()

    def wake(self, key: Key, shard: int) -> None:
        self.woken.append((key, shard))

    def deliver(self, name: str, lease: Lease, deliveries: Sequence[Delivery]) -> Coroutine[Any, Any, bool]:
        self.delivered.append((name, lease, deliveries))
        return self._deliver()

    def let_go(self, name: str, lease: Lease) -> Coroutine[Any, Any, bool]:
        self.let_go_of.append((name, lease))
        return self._deliver()

    async def _deliver(self) -> bool:
        return False
