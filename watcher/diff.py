"""From a state and a snapshot to the one step that follows: new state, events, deliveries, log entries.

Pure: time and the new version come in. Refuses to write anything: `store.polls` commits the step whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from watcher.events import Event, Origin, iso, tell
from watcher.interest import Interest
from watcher.ledger import AccountState, Advance, Rules, advance
from watcher.snapshot import Snapshot
from watcher.store.history import dump_record
from watcher.store.lanes import Delivery


@dataclass(frozen=True, slots=True)
class Reading:
    """One good poll: whose it is, what it says, and when (server ms)."""

    account: str
    provider: str
    source: str
    snapshot: Snapshot
    observed_ms: int


@dataclass(frozen=True, slots=True)
class Step:
    """Everything that one commit writes, and what there is to say about it in the log."""

    state: AccountState
    events: tuple[Event, ...]
    deliveries: Mapping[str, list[Delivery]]
    log: tuple[bytes, ...]
    advance: Advance


def diff(
    state: AccountState | None,
    reading: Reading,
    *,
    rules: Rules,
    interest: Interest,
    version: str,
    now_ms: int,
) -> Step | None:
    """Say what a reading adds to a state; None when it adds nothing."""
    moved_on = advance(state, reading.snapshot, source=reading.source, rules=rules)
    if not moved_on.is_news:
        return None
    before = state.sequence if state else 0
    first = max(before + 1, now_ms)
    since_ms = state.polled_at_ms if state else reading.observed_ms
    origin = Origin(reading.account, reading.provider, before, since_ms, reading.observed_ms)
    events = tell(moved_on.moved, origin, first_sequence=first, now_ms=now_ms)
    deliveries, previous = _queue(events, reading.account, state.previous_sequence if state else {}, interest)
    after = AccountState(
        source=reading.source,
        watched=reading.snapshot.watched,
        entry_by_asset=moved_on.entry_by_asset,
        previous_sequence=previous,
        version=version,
        sequence=first + max(len(events) - 1, 0) if events or moved_on.is_baseline else before,
        polled_at_ms=reading.observed_ms,
    )
    told = (*_starts_and_ends(moved_on, after, iso(now_ms)), *(event.json for event in events))
    log = tuple(dump_record(before, content) for content in told)
    return Step(after, events, deliveries, log, moved_on)


def _queue(
    events: Iterable[Event], account: str, previous: Mapping[str, int], interest: Interest
) -> tuple[dict[str, list[Delivery]], dict[str, int]]:
    """Queue each event for those who want it; each is told which sequence it was told before."""
    listeners = interest.listeners(account)
    told = {name: sequence for name, sequence in previous.items() if name in interest.names}
    deliveries: dict[str, list[Delivery]] = {}
    for event in events:
        for name in listeners:
            if interest.wants(name, event):
                body = event.body(name, told.get(name))
                deliveries.setdefault(name, []).append(Delivery(event.id, event.type, event.sequence, body))
                told[name] = event.sequence
    return deliveries, told


def _starts_and_ends(moved_on: Advance, after: AccountState, at: str) -> Iterable[bytes]:
    """What the event log needs besides the events, for a replay to arrive at the state: starts and ends."""
    if moved_on.forgotten:
        yield _entry("forgotten", after, at, assets=moved_on.forgotten)
    if moved_on.baselined or moved_on.is_baseline:
        started = {asset_id: [*after.entry_by_asset[asset_id].published] for asset_id in moved_on.baselined}
        yield _entry("baseline", after, at, assets=started, whole=moved_on.is_baseline)


def _entry(kind: str, after: AccountState, at: str, **what: Any) -> bytes:
    return orjson.dumps({"type": kind, "timestamp": at, "sequence": after.sequence, **what})
