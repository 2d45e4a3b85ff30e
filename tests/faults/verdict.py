"""Judges what a receiver got against what was committed and what is true, as the demo's judge does.

Pure. Refuses to know which fault there was: whatever it was, the same must hold. The caller says what a fault
excuses: lost state, damaged accounts, wrong clocks.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tests.faults.recording_receiver import Arrival
from watcher.demo.judge import Place, add_up, walk
from watcher.journal.explain import in_atoms
from watcher.journal.log import Record
from watcher.settings import CHANGE_EVENTS
from watcher.snapshot import Balance

_MOST_EXAMPLES = 5


@dataclass
class Verdict:
    """What was found. `problems` is empty where everything held; `lags_ms` are from commit to arrival."""

    committed: int = 0
    lost: int = 0
    out_of_order: int = 0
    repeated: list[tuple[Arrival, Arrival]] = field(default_factory=list)
    """What came again: its first arrival, and each later one."""

    refused: int = 0
    lags_ms: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def repeats(self) -> int:
        return len(self.repeated)

    def lag_ms(self, percent: float) -> float:
        if not self.lags_ms:
            return 0
        return self.lags_ms[min(len(self.lags_ms) - 1, int(len(self.lags_ms) * percent / 100))]

    def __str__(self) -> str:
        lags = ", ".join(f"p{percent} {self.lag_ms(percent):.0f} ms" for percent in (50, 95, 99, 100))
        return (
            f"{self.committed} events, {self.lost} lost, {self.out_of_order} out of order, "
            f"{self.repeats} repeats, {self.refused} refused, {lags}"
        )


def judge(
    arrivals: Sequence[Arrival],
    records: Iterable[Record],
    truth: Mapping[Place, Mapping[str, str]],
    *,
    spared: Collection[str] = (),
    losses: int = 0,
    wrong_clocks: Collection[str] = (),
    is_trimmed: bool = False,
) -> Verdict:
    """Compare the receiver's history with the event log and with the provider's truth.

    Accounts that are `spared` were damaged on purpose, and may be behind. Where the state was lost or may
    have gone back in time (so many `losses`), what was sent before may be in no log, an event may be computed
    again (the same id, with another time), and the thread of previous sequences breaks once per account
    and loss. What a worker signs whose clock is wrong (`wrong_clocks` names them) is refused. A log that
    `is_trimmed`, as memory was short, lacks the oldest of each account.
    """
    verdict = Verdict()
    course = walk(
        arrivals,
        lambda arrival: None if arrival.problem else arrival.event,
        losses=losses,
    )
    verdict.refused = len(course.forged)
    bad = (arrival.id for arrival in course.forged if arrival.worker not in wrong_clocks)
    _complain(verdict, "does not verify", bad)
    kept = [record for record in records if record.account not in spared]
    good = [arrival for arrival in arrivals if not arrival.problem]
    _compare_with_log(verdict, good, kept, spared, losses=losses, is_trimmed=is_trimmed)
    verdict.repeated = [(first.arrival, again) for first, again in course.repeats]
    other = [again.id for first, again in verdict.repeated if first.body != again.body]
    _complain(verdict, "came again with other bytes", other)
    for one in course.received:
        if one.order == "late" and one.latest:
            verdict.out_of_order += 1
            what = f"out of order, {one.sequence} after {one.latest.sequence}"
            _complain(verdict, what, [f"{one.id} of {one.arrival.account}"])
    broken = {one.arrival.account for one in course.received if one.order == "gap"}
    _complain(verdict, "names another one as the one before", broken)
    true = {asset: in_atoms(Balance(**amounts, pending_withdrawal=None)) for asset, amounts in truth.items()}
    total = add_up(course.received, true, losses=losses, spared=spared)
    leapt = {_named(one.place) for one in total.leaps}
    _complain(verdict, "does not begin where the one before it ended", leapt)
    _complain(verdict, "was not sent as it is", map(_named, total.wrong))
    verdict.lags_ms = sorted(1000 * (one.arrival.at - emitted_at(one.arrival)) for one in course.received)
    return verdict


def _compare_with_log(
    verdict: Verdict,
    good: Sequence[Arrival],
    records: Sequence[Record],
    spared: Collection[str],
    *,
    losses: int,
    is_trimmed: bool,
) -> None:
    """Nothing committed is missing, nothing arrived that was not, and what arrived is what was committed."""
    committed = Counter(
        record.content["id"] for record in records if record.content.get("type") in CHANGE_EVENTS
    )
    arrived = {arrival.id for arrival in good if arrival.account not in spared}
    lost = committed.keys() - arrived
    verdict.committed, verdict.lost = len(committed), len(lost)
    _complain(verdict, "committed, but never arrived", lost)
    _complain(verdict, "committed twice", (event_id for event_id, times in committed.items() if times > 1))
    if not losses:
        known_from: dict[str, int] = {}
        for record in records if is_trimmed else ():
            if (sequence := record.content.get("data", {}).get("sequence")) is not None:
                known_from[record.account] = min(sequence, known_from.get(record.account, sequence))
        trimmed = {
            arrival.id
            for arrival in good
            if is_trimmed and arrival.event["data"]["sequence"] < known_from.get(arrival.account, math.inf)
        }
        _complain(verdict, "arrived, but was never committed", arrived - committed.keys() - trimmed)
    content = {record.content.get("id"): record.content for record in records}
    as_committed = Counter(
        arrival.id
        for arrival in good
        if arrival.id in committed
        and {**arrival.event, "subscription": None} == {**content[arrival.id], "subscription": None}
    )
    arrivals = Counter(arrival.id for arrival in good if arrival.id in committed)
    other = arrivals.keys() - as_committed.keys() if losses else (arrivals - as_committed).keys()
    _complain(verdict, "says something else than the event log", other)


def _named(asset: Place) -> str:
    return f"{asset[0]}, asset {asset[1]}"


def emitted_at(arrival: Arrival) -> float:
    return datetime.fromisoformat(arrival.event["timestamp"]).timestamp()


def _complain(verdict: Verdict, what: str, whom: Iterable[str]) -> None:
    examples = sorted(whom)
    if examples:
        verdict.problems.append(f"{what}: {', '.join(examples[:_MOST_EXAMPLES])} ({len(examples)} in all)")
