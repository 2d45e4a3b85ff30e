"""Judges a run: what a receiver got against what is true.

Every judge of a run follows the queues with `walk` and the balances with `add_up`; `judge` is that of the
demonstration. Pure. Refuses to ask the worker: it compares the truth at the providers and the bytes
at the receiver.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

from watcher.amounts import to_atoms, to_text
from watcher.journal.explain import NOTHING, Vector
from watcher.printable import many
from watcher.receive import Event, follow
from watcher.receiver import Receipt

T = TypeVar("T")
Place = tuple[str, str]
"""The name of an account and the id of an asset."""

Balances = Mapping[Place, Vector]
"""What accounts hold, in atoms."""


@dataclass(frozen=True, slots=True)
class Received(Generic[T]):
    """The first arrival of an event, and what is odd about its order.

    `latest` is the latest event of the same queue that arrived before. "late": it was queued before
    `latest`. "gap": it names another event than `latest` as the one before it.
    """

    arrival: T
    event: Event
    latest: "Received[T] | None"
    order: Literal["late", "gap"] | None

    @property
    def id(self) -> str:
        return str(self.event["id"])

    @property
    def place(self) -> Place:
        return self.event["data"]["account"]["name"], self.event["data"]["asset"]["id"]

    @property
    def sequence(self) -> int:
        return int(self.event["data"]["sequence"])

    def vector(self, part: Literal["before", "effect", "after"]) -> Vector:
        """Read a balance of the event, in atoms; a pending that the provider does not have counts as 0."""
        amounts = self.event["data"][part]
        return Vector(*(to_atoms(amounts[name] or "0") for name in Vector._fields))

    def __str__(self) -> str:
        data = self.event["data"]
        symbol = data["asset"]["symbol"] or data["asset"]["id"]
        return f"{data['account']['name']} {self.event['type']} {data['amount']} {symbol}"


@dataclass(slots=True)
class Walk(Generic[T]):
    """Arrivals by kind. A repeat is a pair: the first arrival of an event and a later one."""

    received: list[Received[T]] = field(default_factory=list)
    repeats: list[tuple[Received[T], T]] = field(default_factory=list)
    forged: list[T] = field(default_factory=list)


def walk(
    arrivals: Iterable[T],
    event_of: Callable[[T], Event | None],
    *,
    losses: int = 0,
) -> Walk[T]:
    """Follow each queue, in the order of arrival. `event_of` gives the event of a webhook that is genuine.

    Arrivals of one event are repeats. After a loss or a rollback of the worker's state, a queue
    begins anew, or goes back: so many `losses` are no gap, in each queue, and an event that comes under
    another sequence is received again.
    """
    found = Walk[T]()
    first_by_key: dict[tuple[str, int | None], Received[T]] = {}
    ids: set[str] = set()
    last_by_queue: dict[tuple[str, str], int | None] = {}
    latest_by_queue: dict[tuple[str, str], Received[T]] = {}
    breaks: Counter[tuple[str, str]] = Counter()
    for arrival in arrivals:
        event = event_of(arrival)
        if event is None:
            found.forged.append(arrival)
            continue
        queue, event_id = (event["subscription"]["name"], event["data"]["account"]["name"]), event["id"]
        last = last_by_queue.get(queue)
        last_by_queue[queue], odd = follow(event, last, is_repeat=event_id in ids)
        ids.add(event_id)
        key = event_id, event["data"]["sequence"] if losses else None
        if key in first_by_key:
            found.repeats.append((first_by_key[key], arrival))
            continue
        latest = latest_by_queue.get(queue)
        order: Literal["late", "gap"] | None = None
        if odd in ("late", "gap"):
            order = odd
        elif odd or (last is None and event["subscription"]["previous_sequence"] is not None):
            breaks[queue] += 1
            order = "gap" if breaks[queue] > losses else None
        first_by_key[key] = received = Received(arrival, event, latest, order)
        found.received.append(received)
        if order != "late":
            latest_by_queue[queue] = received
    return found


@dataclass(slots=True)
class Sum(Generic[T]):
    """What the effects of events add up to.

    A leap is an event whose balance does not begin where the one before it ended, or does not end where its
    effect leads. `wrong` has, by place, a sum that is not the truth, and the truth.
    """

    leaps: list[Received[T]] = field(default_factory=list)
    wrong: dict[Place, tuple[Vector, Vector]] = field(default_factory=dict)


def add_up(
    received: Iterable[Received[T]],
    truth: Balances,
    *,
    baseline: Balances | None = None,
    losses: int = 0,
    spared: Collection[str] = (),
) -> Sum[T]:
    """Follow each asset from the `baseline` to the truth; without one, from where its first event begins.

    After a loss of the worker's state an asset begins anew: so many `losses` are no leap, for each asset.
    Accounts that are `spared` may end elsewhere.
    """
    found = Sum[T]()
    balances = dict(baseline or {})
    after_by_place: dict[Place, Mapping[str, str | None]] = {}
    breaks: Counter[Place] = Counter()
    for one in received:
        data, place = one.event["data"], one.place
        begin, effect, end = one.vector("before"), one.vector("effect"), one.vector("after")
        balance = balances.get(place, begin if baseline is None else NOTHING)
        is_continued = data["before"] == after_by_place.get(place, data["before"])  # as text, to the letter
        if not is_continued or begin != balance or begin + effect != end:
            breaks[place] += 1
            if breaks[place] > losses:
                found.leaps.append(one)
            else:
                balance = begin
        balances[place], after_by_place[place] = balance + effect, data["after"]
    for place in sorted(balances.keys() | truth.keys()):
        ended, true = balances.get(place, NOTHING), truth.get(place, NOTHING)
        if ended != true and place[0] not in spared:
            found.wrong[place] = ended, true
    return found


class Made(NamedTuple):
    """A change that was made at a provider, and the type of the event that it must become."""

    account: str
    asset: str
    symbol: str
    do: str
    amount: str
    event: str
    effect: Vector
    at_s: float

    def __str__(self) -> str:
        return f"{self.account} {self.do} {self.amount} {self.symbol}"


class Arrival(NamedTuple):
    """A webhook that arrived, genuine or not."""

    receipt: Receipt
    at_s: float


class Verdict(NamedTuple):
    """The result of a run. `verified` counts different events; `broken` lists every broken promise.

    `latencies_ms` has one entry for each change that was reported: from the change to its webhook.
    """

    made: int
    verified: int
    latencies_ms: tuple[float, ...]
    broken: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return not self.broken


def judge(
    made: Sequence[Made], arrivals: Sequence[Arrival], *, planned: int, baseline: Balances, now: Balances
) -> Verdict:
    """Say whether each of the `planned` changes was reported exactly once, in order, exactly.

    `baseline` is what the providers said before the first change, and `now` what they say after the last.
    """
    found = walk(arrivals, lambda one: one.receipt.event if one.receipt.is_verified else None)
    made_by_id = _matched(made, found.received)
    latencies_ms = [
        1000 * (one.arrival.at_s - made[made_by_id[one.id]].at_s)
        for one in found.received
        if one.id in made_by_id
    ]
    reported = set(made_by_id.values())
    broken = [f"only {len(made)} of {many(planned, 'change')} were made"] if len(made) != planned else []
    broken += [
        f"not verified: {one.receipt.problem or 'a webhook that could not be checked'}"
        for one in found.forged
    ]
    broken += [f"reported more than once: {first} ({first.id})" for first, _ in found.repeats]
    broken += [
        f"not reported: {one}, as {one.event}" for place, one in enumerate(made) if place not in reported
    ]
    broken += [
        f"reported, but no such change was made: {one} ({one.id})"
        for one in found.received
        if one.id not in made_by_id
    ]
    for one in found.received:
        places = [made_by_id[each.id] for each in (one.latest, one) if each and each.id in made_by_id]
        if one.order == "late" or places != sorted(places):
            broken.append(f"out of order: {one} came after {one.latest}")
        elif one.order == "gap":
            where = f"between {one.latest} and" if one.latest else "before"
            broken.append(f"something is missing {where} {one}")
    total = add_up(found.received, now, baseline=baseline)
    broken += [f"does not begin where the event before it ended: {one} ({one.id})" for one in total.leaps]
    broken += [
        f"{account}, asset {asset}: effects add up to {field} {to_text(ours)}, "
        f"the provider says {to_text(theirs)}"
        for (account, asset), sums in total.wrong.items()
        for field, ours, theirs in zip(Vector._fields, *sums, strict=True)
        if ours != theirs
    ]
    return Verdict(len(made), len(found.received), tuple(latencies_ms), tuple(broken))


def _matched(made: Sequence[Made], received: Iterable[Received[Arrival]]) -> dict[str, int]:
    """Find for each event the change that it reports, by its place in `made`; of equal ones the earliest."""
    places = defaultdict(list)
    for place, change in reversed(list(enumerate(made))):
        key = change.account, change.asset, change.event, change.amount, change.effect
        places[key].append(place)
    found = {}
    for one in received:
        if same := places[*one.place, one.event["type"], one.event["data"]["amount"], one.vector("effect")]:
            found[one.id] = same.pop()
    return found
