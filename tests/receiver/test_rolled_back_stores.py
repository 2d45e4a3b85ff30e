"""After a rollback of the sender's Redis, a receiver sees no false gap, and books nothing twice."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.builders import a_balance, a_snapshot, a_subscription
from watcher.demo.judge import walk
from watcher.journal.account import AccountState, Rules
from watcher.journal.events import Delivery
from watcher.journal.interest import Interest
from watcher.journal.step import Reading, diff
from watcher.receive import Event, Order, follow, queue_of

ASSETS = ("ETH", "LRC")
OPS = a_subscription("ops")
INTEREST = Interest({OPS.name: OPS})


class Store(NamedTuple):
    """All that a rollback takes back: one account's state, its queue, and what was queued last."""

    state: AccountState | None = None
    previous: int | None = None
    waiting: tuple[Delivery, ...] = ()
    delivered: tuple[Delivery, ...] = ()


@dataclass
class World:
    """A provider, a sender and its receiver, which does as RECEIVING.md says. Time goes on with each step."""

    store: Store = field(default_factory=Store)
    kept: Store = field(default_factory=Store)
    now_ms: int = 1_795_175_095_846
    held: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ASSETS, 500))
    arrivals: list[Event] = field(default_factory=list)
    rollbacks: int = 0
    orders: list[Order | None] = field(default_factory=list)
    booked: dict[str, int] = field(default_factory=dict)
    _ids: set[str] = field(default_factory=set)
    _last: int | None = None
    _newest: dict[str, int] = field(default_factory=dict)

    def move(self, asset: str, amount: int) -> None:
        self.held[asset] += amount

    def poll(self) -> None:
        self.now_ms += 50
        balances = {asset: a_balance(str(total)) for asset, total in self.held.items()}
        reading = Reading("treasury", "loopring", "here", a_snapshot(balances), self.now_ms)
        state, previous, waiting, delivered = self.store
        step = diff(state, reading, rules=Rules(), interest=INTEREST, version="v", now_ms=self.now_ms)
        if not step:
            return
        for place in step.queued.get(OPS.name, ()):
            event = step.events[place]
            waiting += (event.to(OPS.name, previous),)
            previous = event.sequence
        self.store = Store(step.state, previous, waiting, delivered)

    def deliver(self, *, is_lost: bool = False) -> None:
        """Deliver what waits first; where the answer is lost, it goes on waiting."""
        if self.store.waiting:
            head, *rest = self.store.waiting
            self.take(head.body)
            if not is_lost:
                delivered = (*self.store.delivered, head)
                self.store = self.store._replace(waiting=tuple(rest), delivered=delivered)

    def give_up(self) -> Delivery:
        head, *rest = self.store.waiting
        self.store = self.store._replace(waiting=tuple(rest))
        return head

    def resend(self, place: int) -> None:
        """Send once more what was delivered, behind what waits, as `watcher resend` does."""
        if delivered := self.store.delivered:
            again = delivered[place % len(delivered)]
            self.store = self.store._replace(waiting=(*self.store.waiting, again))

    def keep(self) -> None:
        self.kept = self.store

    def set_back(self) -> None:
        self.store = self.kept
        self.rollbacks += 1
        self.now_ms += 50

    def take(self, body: bytes) -> None:
        """Receive as RECEIVING.md says: follow the sequence, of repeats too, and book the newest `after`."""
        event = json.loads(body)
        self.arrivals.append(event)
        assert queue_of(event) == ("ops", "treasury")
        is_repeat = event["id"] in self._ids
        self._ids.add(event["id"])
        self._last, order = follow(event, self._last, is_repeat=is_repeat)
        self.orders.append(order)
        data = event["data"]
        asset = data["asset"]["id"]
        if data["sequence"] > self._newest.get(asset, 0):
            self._newest[asset] = data["sequence"]
            self.booked[asset] = int(data["after"]["total"])  # and not what it had, plus the effect

    def end(self) -> None:
        """Let each balance move once more, and deliver everything."""
        for asset in ASSETS:
            self.move(asset, 10_000)
        self.poll()
        while self.store.waiting:
            self.deliver()


MOVES = st.builds(
    lambda asset, amount: partial(World.move, asset=asset, amount=amount),
    st.sampled_from(ASSETS),
    st.sampled_from([-2, -1, 1, 2]),  # few, so that a state is often met again
)
RESENDS = st.builds(lambda place: partial(World.resend, place=place), st.integers(0, 9))
AT_ONCE = st.tuples(MOVES, st.sampled_from([(), (World.poll,), (World.poll, World.deliver)])).map(
    lambda parts: (parts[0], *parts[1])
)
ODD = (World.keep,), (World.set_back,), (World.set_back, World.poll), (partial(World.deliver, is_lost=True),)
PLAIN = st.sampled_from([(World.poll,), (World.deliver,), *ODD])
STEPS = AT_ONCE | AT_ONCE | PLAIN | RESENDS.map(lambda resend: (resend,))
HISTORIES = st.lists(STEPS, min_size=4, max_size=30).map(lambda steps: [*chain.from_iterable(steps)])


def played(history: Sequence[object]) -> World:
    """Play a history, after a first event that no rollback takes back."""
    world = World()
    world.poll()
    world.move("ETH", 1)
    world.poll()
    world.deliver()
    world.keep()
    for step in history:
        step(world)  # type: ignore[operator]  # a method, or a partial of one
    return world


@settings(max_examples=150, deadline=None)
@given(HISTORIES)
def test_despite_repeats_and_rollbacks_no_gap_is_seen_and_the_balances_are_right(
    history: list[object],
) -> None:
    world = played(history)
    world.end()
    assert {*world.orders} <= {None, "rewound"}
    assert len(world.orders) - world.orders.count(None) <= world.rollbacks
    assert world.booked == world.held
    judged = walk(world.arrivals, lambda event: event, losses=world.rollbacks)
    assert {one.order for one in judged.received} <= {None}


@settings(max_examples=100, deadline=None)
@given(HISTORIES)
def test_a_dropped_event_after_any_history_is_a_gap_and_the_balances_are_right_again(
    history: list[object],
) -> None:
    world = played(history)
    world.end()
    world.move("ETH", 1)
    world.poll()
    lost = world.give_up()
    while world.store.waiting:
        world.give_up()
    seen = len(world.orders)
    world.end()
    assert world.orders[seen] == "gap"
    assert {*world.orders[seen + 1 :]} <= {None}
    assert world.booked == world.held
    world.take(lost.body)
    assert world.orders[-1] == "late"
    assert world.booked == world.held


def test_a_repeated_id_has_another_sequence_and_the_same_balances() -> None:
    world = played([])
    world.move("ETH", 5)
    for _ in range(2):
        world.poll()
        world.deliver()
        world.set_back()
    _, one, again = world.arrivals
    assert one["id"] == again["id"]
    assert one["data"]["sequence"] < again["data"]["sequence"]
    differs = {"sequence", "observed"}
    assert {name: value for name, value in one["data"].items() if name not in differs} == {
        name: value for name, value in again["data"].items() if name not in differs
    }
