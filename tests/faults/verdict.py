"""Judges what a receiver was told by what was committed and by what is true.

Pure. Refuses to know which fault there was: whatever it was, the same must hold.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tests.faults.recording_receiver import Arrival
from watcher.journal.log import Record
from watcher.settings import CHANGE_EVENTS

Asset = tuple[str, str]
"""Account and asset id."""

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
    truth: Mapping[Asset, Mapping[str, str]],
    *,
    spared: Collection[str] = (),
    losses: int = 0,
    wrong_clocks: Collection[str] = (),
) -> Verdict:
    """Compare the receiver's history with the event log and with the provider's truth.

    Accounts that are `spared` were damaged on purpose, and may be behind. Where the state was lost or may
    have gone back in time (so many `losses`), what was told before may be in no log, an event may be computed
    again (the same id, told at another time), and the thread of previous sequences breaks once per account
    and loss.
    What a worker signs whose clock is wrong (`wrong_clocks` names them) is refused.
    """
    verdict = Verdict()
    good = [arrival for arrival in arrivals if not arrival.problem]
    verdict.refused = len(arrivals) - len(good)
    bad = (arrival for arrival in arrivals if arrival.problem and arrival.worker not in wrong_clocks)
    _complain(verdict, "does not verify", (arrival.id for arrival in bad))
    kept = [record for record in records if record.account not in spared]
    _compare_with_log(verdict, good, kept, spared, losses=losses)
    firsts = _without_repeats(verdict, good, losses=losses)
    _follow_sequences(verdict, firsts, losses=losses)
    _follow_balances(verdict, firsts, truth, spared, losses=losses)
    verdict.lags_ms = sorted(1000 * (arrival.at - told_at(arrival)) for arrival in firsts)
    return verdict


def _compare_with_log(
    verdict: Verdict,
    good: Sequence[Arrival],
    records: Sequence[Record],
    spared: Collection[str],
    *,
    losses: int,
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
        _complain(verdict, "arrived, but was never committed", arrived - committed.keys())
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


def _without_repeats(verdict: Verdict, good: Iterable[Arrival], *, losses: int) -> list[Arrival]:
    """What arrived for the first time, in its order. A repeat has the same bytes, unless it was told anew."""
    first_by_id: dict[tuple[str, bytes], Arrival] = {}
    for arrival in good:
        first = first_by_id.setdefault((arrival.id, arrival.body if losses else b""), arrival)
        if first is not arrival:
            verdict.repeated.append((first, arrival))
            if first.body != arrival.body:
                _complain(verdict, "came again with other bytes", [arrival.id])
    return [*first_by_id.values()]


def _follow_sequences(verdict: Verdict, firsts: Iterable[Arrival], *, losses: int) -> None:
    """Per account, each event has a higher sequence than the one before it, and names it."""
    last_by_account: dict[str, int] = {}
    breaks: Counter[str] = Counter()
    for arrival in firsts:
        account, sequence = arrival.account, arrival.event["data"]["sequence"]
        last = last_by_account.get(account)
        last_by_account[account] = max(sequence, last or 0)
        if last is not None and sequence <= last:
            verdict.out_of_order += 1
            _complain(verdict, f"out of order, {sequence} after {last}", [f"{arrival.id} of {account}"])
        elif arrival.event["subscription"]["previous_sequence"] != last:
            breaks[account] += 1
    broken = (account for account, times in breaks.items() if times > losses)
    _complain(verdict, "names another one as the one before", broken)


def _follow_balances(
    verdict: Verdict,
    firsts: Iterable[Arrival],
    truth: Mapping[Asset, Mapping[str, str]],
    spared: Collection[str],
    *,
    losses: int,
) -> None:
    """Per asset, each event begins where the one before it ended, and the last one ended at the truth."""
    after_by_asset: dict[Asset, Mapping[str, str]] = {}
    breaks: Counter[str] = Counter()
    for arrival in firsts:
        data = arrival.event["data"]
        asset = arrival.account, data["asset"]["id"]
        breaks[_named(asset)] += after_by_asset.get(asset, data["before"]) != data["before"]
        after_by_asset[asset] = data["after"]
    broken = (name for name, times in breaks.items() if times > losses)
    _complain(verdict, "does not begin where the one before it ended", broken)
    wrong = (
        _named(asset)
        for asset, true in truth.items()
        if asset[0] not in spared and not true.items() <= after_by_asset.get(asset, {}).items()
    )
    _complain(verdict, "was not told as it is", wrong)


def _named(asset: Asset) -> str:
    return f"{asset[0]}, asset {asset[1]}"


def told_at(arrival: Arrival) -> float:
    return datetime.fromisoformat(arrival.event["timestamp"]).timestamp()


def _complain(verdict: Verdict, what: str, whom: Iterable[str]) -> None:
    examples = sorted(whom)
    if examples:
        verdict.problems.append(f"{what}: {', '.join(examples[:_MOST_EXAMPLES])} ({len(examples)} in all)")
