"""Judges the demonstration: the changes that were made against the webhooks that arrived.

Pure. Refuses to ask the worker: what it goes by is the truth at the providers and the bytes at the receiver.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

from watcher.amounts import to_text
from watcher.journal.explain import NOTHING, Vector, in_atoms
from watcher.printable import many
from watcher.receive import Event
from watcher.receiver import Receipt
from watcher.snapshot import Balance

Balances = Mapping[tuple[str, str], Vector]
"""What accounts hold, in atoms, by name of the account and id of the asset."""


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


class Heard(NamedTuple):
    """A webhook that arrived, genuine or not."""

    receipt: Receipt
    at_s: float


class Verdict(NamedTuple):
    """How it went. `verified` counts different events; `broken` says every promise that was not kept.

    `latencies_ms` has one entry for each change that was told: from the change to its webhook.
    """

    made: int
    verified: int
    latencies_ms: tuple[float, ...]
    broken: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return not self.broken


class _Told(NamedTuple):
    """A verified event, as far as it is judged."""

    id: str
    subscription: str
    account: str
    asset: str
    symbol: str
    type: str
    amount: str
    effect: Vector
    sequence: int
    previous: int | None
    at_s: float

    def __str__(self) -> str:
        return f"{self.account} {self.type} {self.amount} {self.symbol}"


def judge(
    made: Sequence[Made], heard: Sequence[Heard], *, planned: int, baseline: Balances, now: Balances
) -> Verdict:
    """Say whether each of the `planned` changes was told exactly once, in order, exactly.

    `baseline` is what the providers said before the first change, and `now` what they say after the last.
    """
    arrived = [_told(one.receipt.event, one.at_s) for one in heard if _is_genuine(one)]
    told = list(_first_by_id(arrived).values())
    made_by_id = _matched(made, told)
    broken = chain(
        _cut_short(made, planned),
        _not_genuine(heard),
        _repeated(arrived),
        _untold(made, made_by_id),
        _unmade(told, made_by_id),
        _out_of_order(told, made_by_id),
        _not_adding_up(told, baseline, now),
    )
    latencies_ms = [1000 * (one.at_s - made[made_by_id[one.id]].at_s) for one in told if one.id in made_by_id]
    return Verdict(len(made), len(told), tuple(latencies_ms), tuple(broken))


def _is_genuine(heard: Heard) -> bool:
    return heard.receipt.is_verified and heard.receipt.event is not None


def _told(event: Event | None, at_s: float) -> _Told:
    assert event is not None
    data, subscription = event["data"], event["subscription"]
    return _Told(
        id=event["id"],
        subscription=subscription["name"],
        account=data["account"]["name"],
        asset=data["asset"]["id"],
        symbol=data["asset"]["symbol"] or data["asset"]["id"],
        type=event["type"],
        amount=data["amount"],
        effect=in_atoms(Balance(**data["effect"])),
        sequence=data["sequence"],
        previous=subscription["previous_sequence"],
        at_s=at_s,
    )


def _first_by_id(arrived: Iterable[_Told]) -> dict[str, _Told]:
    first: dict[str, _Told] = {}
    for event in arrived:
        first.setdefault(event.id, event)
    return first


def _matched(made: Sequence[Made], told: Iterable[_Told]) -> dict[str, int]:
    """Find for each event the change that it tells, by its place in `made`; of equal ones the earliest."""
    places = defaultdict(list)
    for place, one in reversed(list(enumerate(made))):
        places[one.account, one.asset, one.event, one.amount, one.effect].append(place)
    found = {}
    for event in told:
        key = event.account, event.asset, event.type, event.amount, event.effect
        if same := places[key]:
            found[event.id] = same.pop()
    return found


def _cut_short(made: Sequence[Made], planned: int) -> Iterator[str]:
    if len(made) != planned:
        yield f"only {len(made)} of {many(planned, 'change')} were made"


def _not_genuine(heard: Iterable[Heard]) -> Iterator[str]:
    for one in heard:
        if not _is_genuine(one):
            yield f"not verified: {one.receipt.problem or 'a webhook that nobody could check'}"


def _repeated(arrived: Sequence[_Told]) -> Iterator[str]:
    seen = set()
    for event in arrived:
        if event.id in seen:
            yield f"told more than once: {event} ({event.id})"
        seen.add(event.id)


def _untold(made: Sequence[Made], made_by_id: Mapping[str, int]) -> Iterator[str]:
    told = set(made_by_id.values())
    for place, change in enumerate(made):
        if place not in told:
            yield f"not told: {change}, as {change.event}"


def _unmade(told: Iterable[_Told], made_by_id: Mapping[str, int]) -> Iterator[str]:
    for event in told:
        if event.id not in made_by_id:
            yield f"told, but no such change was made: {event} ({event.id})"


def _out_of_order(told: Sequence[_Told], made_by_id: Mapping[str, int]) -> Iterator[str]:
    """Check each queue: sequences rise, each names the one before it, and changes come as they were made."""
    queues = defaultdict(list)
    for event in told:
        queues[event.subscription, event.account].append(event)
    for queue in queues.values():
        if queue[0].previous is not None:
            yield f"something is missing before {queue[0]}"
        for before, after in pairwise(queue):
            places = [made_by_id[one.id] for one in (before, after) if one.id in made_by_id]
            if after.sequence <= before.sequence or places != sorted(places):
                yield f"out of order: {after} came after {before}"
            elif after.previous != before.sequence:
                yield f"something is missing between {before} and {after}"


def _not_adding_up(told: Sequence[_Told], baseline: Balances, now: Balances) -> Iterator[str]:
    total = defaultdict(lambda: NOTHING, baseline)
    for event in told:
        total[event.account, event.asset] += event.effect
    for account, asset in sorted(total.keys() | now.keys()):
        added, said = total[account, asset], now.get((account, asset), NOTHING)
        for field, ours, theirs in zip(Vector._fields, added, said, strict=True):
            if ours != theirs:
                yield (
                    f"{account}, asset {asset}: effects add up to {field} {to_text(ours)}, "
                    f"the provider says {to_text(theirs)}"
                )
