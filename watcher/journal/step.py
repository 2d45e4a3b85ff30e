"""From a state and a snapshot to the one step that follows: new state, events, deliveries, log entries.

Pure: time and the new version come in. Refuses to write anything: `store.polls` commits the step whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import orjson

from watcher.journal.account import AccountState, Advance, Rules, advance
from watcher.journal.events import Delivery, Event, Origin, drafts_of, events_of, iso
from watcher.journal.interest import Interest
from watcher.journal.log import dump_record
from watcher.journal.notices import baseline, crossings, recovered, stale
from watcher.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Reading:
    """One successful poll: whose it is, what it says, and when (server ms)."""

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
    was_crossed = state.crossed if state else frozenset()
    watches = interest.watches(reading.account)
    zeros = reading.snapshot.zeros
    entries, conversions = moved_on.entry_by_asset, moved_on.conversions
    warnings, crossed = (
        crossings(watches, entries, was_crossed, conversions, zeros=zeros) if watches else ([], frozenset())
    )
    stale_since_ms = state.stale_since_ms if state else 0
    if not (moved_on.is_news or stale_since_ms or crossed != was_crossed):
        return None
    before = state.sequence if state else 0
    first = max(before + 1, now_ms)
    since_ms = (state.polled_at_ms if state else 0) or reading.observed_ms
    origin = Origin(reading.account, reading.provider, before, since_ms, reading.observed_ms)
    drafts = [
        *([recovered(stale_since_ms)] if stale_since_ms else ()),
        *(baseline(entries, conversions) if moved_on.is_baseline else ()),
        *drafts_of(moved_on.moved, conversions),
        *warnings,
    ]
    events = events_of(drafts, origin, first_sequence=first, now_ms=now_ms)
    deliveries, previous = _queue(events, reading.account, state.previous_sequence if state else {}, interest)
    after = AccountState(
        source=reading.source,
        watched=reading.snapshot.watched,
        entry_by_asset=entries,
        previous_sequence=previous,
        version=version,
        sequence=events[-1].sequence if events else before,
        polled_at_ms=reading.observed_ms,
        crossed=crossed,
    )
    # The record of a start says what `account.baseline` says, and once is enough.
    lasting = (event.json for event in events if event.type != "account.baseline")
    contents = (*_starts_and_ends(moved_on, after, now_ms), *lasting)
    log = tuple(dump_record(before, content) for content in contents)
    return Step(after, events, deliveries, log, moved_on)


def go_stale(
    state: AccountState | None,
    origin: Origin,
    error_class: str,
    reason: str,
    *,
    interest: Interest,
    version: str,
    now_ms: int,
) -> Step:
    """Say that an account had no successful poll for too long: nothing of it moves, not even its time."""
    state = state or AccountState("", None, {})
    first = max(state.sequence + 1, now_ms)
    drafts = [stale(origin.observed_from_ms, error_class, reason)]
    events = events_of(drafts, origin, first_sequence=first, now_ms=now_ms)
    deliveries, previous = _queue(events, origin.account or "", state.previous_sequence, interest)
    after = replace(
        state,
        previous_sequence=previous,
        version=version,
        sequence=events[-1].sequence,
        stale_since_ms=origin.observed_from_ms,
    )
    log = tuple(dump_record(state.sequence, event.json) for event in events)
    return Step(after, events, deliveries, log, Advance(is_baseline=False, is_news=True))


def _queue(
    events: Iterable[Event], account: str, previous: Mapping[str, int], interest: Interest
) -> tuple[dict[str, list[Delivery]], dict[str, int]]:
    """Queue each event for the subscriptions that want it, with the sequence that each got before it."""
    listeners = interest.listeners(account)
    last = {name: sequence for name, sequence in previous.items() if name in interest.names}
    deliveries: dict[str, list[Delivery]] = {}
    for event in events:
        for name in listeners:
            if interest.wants(name, event):
                body = event.body(name, last.get(name))
                deliveries.setdefault(name, []).append(Delivery(event.id, event.type, event.sequence, body))
                last[name] = event.sequence
    return deliveries, last


def _starts_and_ends(moved_on: Advance, after: AccountState, now_ms: int) -> Iterable[bytes]:
    """Write what a replay of the log needs beside the events to arrive at the state: starts and ends."""
    at = {"timestamp": iso(now_ms), "sequence": after.sequence}
    if moved_on.forgotten:
        yield orjson.dumps({"type": "forgotten", **at, "assets": moved_on.forgotten})
    if moved_on.baselined or moved_on.is_baseline:
        started = {asset_id: [*after.entry_by_asset[asset_id].published] for asset_id in moved_on.baselined}
        yield orjson.dumps({"type": "baseline", **at, "assets": started, "whole": moved_on.is_baseline})
