"""From a state and a snapshot to the one step that follows: new state, events, deliveries, log entries.

Pure: time and the new version come in. Refuses to write anything: `store.polls` commits the step whole.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import orjson

from watcher.journal.account import AccountState, Advance, Rules, advance
from watcher.journal.events import Event, Origin, drafts_of, events_of, iso
from watcher.journal.interest import Interest
from watcher.journal.notices import baseline, crossings, recovered, stale
from watcher.snapshot import Snapshot


class Reading(NamedTuple):
    """One successful poll: whose it is, what it says, and when (server ms). `differing`, if it is known: the
    assets of which it says something else than the reading that the state followed, and is at rest after."""

    account: str
    provider: str
    source: str
    snapshot: Snapshot
    observed_ms: int
    differing: Collection[str] | None = None


class Step(NamedTuple):
    """Everything that one commit writes, and what there is to say about it in the log.

    `follows` is the account's sequence before it. `queued` says by subscription which of the `events` it
    gets, by their places, in order. `notes` are what a replay needs beside the events: starts and ends, as
    JSON.
    """

    state: AccountState
    follows: int
    events: tuple[Event, ...]
    queued: Mapping[str, Sequence[int]]
    notes: tuple[bytes, ...]
    advance: Advance


def diff(
    state: AccountState | None,
    reading: Reading,
    *,
    rules: Rules,
    interest: Interest,
    version: str,
    now_ms: int,
    stays_stale: bool = False,
) -> Step | None:
    """Say what a reading adds to a state; None when it adds nothing.

    `stays_stale`: an account that is stale recovers only when its polls come in time, and this one did not.
    """
    moved_on = advance(
        state,
        reading.snapshot,
        source=reading.source,
        rules=rules,
        observed_ms=reading.observed_ms,
        differing=reading.differing,
    )
    was_crossed = state.crossed if state else frozenset()
    watches = interest.watches(reading.account)
    zeros = reading.snapshot.zeros
    entries = moved_on.entry_by_asset
    warnings, crossed = (
        crossings(watches, entries, was_crossed, zeros=zeros) if watches else ([], frozenset())
    )
    source, watched, height = reading.source, reading.snapshot.watched, reading.snapshot.height
    if state and moved_on.emptiness:  # of which nothing counts yet
        warnings, crossed, source, watched = [], was_crossed, state.source, state.watched
        height = state.height
    elif state and height is None and not moved_on.is_baseline:
        height = state.height
    stale_since_ms = state.stale_since_ms if state else 0
    recovers = stale_since_ms > 0 and not stays_stale
    if not (moved_on.is_news or recovers or crossed != was_crossed):
        return None
    before = state.sequence if state else 0
    first = max(before + 1, now_ms)
    since_ms = (state.polled_at_ms if state else 0) or reading.observed_ms
    origin = Origin(reading.account, reading.provider, before, since_ms, reading.observed_ms)
    drafts = [
        *([recovered(stale_since_ms)] if recovers else ()),
        *(baseline(entries) if moved_on.is_baseline else ()),
        *drafts_of(moved_on.moved),
        *warnings,
    ]
    events = events_of(drafts, origin, first_sequence=first, now_ms=now_ms)
    after = AccountState(
        source=source,
        watched=watched,
        entry_by_asset=entries,
        version=version,
        sequence=events[-1].sequence if events else before,
        polled_at_ms=reading.observed_ms,
        stale_since_ms=0 if recovers else stale_since_ms,
        crossed=crossed,
        emptiness=moved_on.emptiness,
        height=height,
    )
    notes = tuple(_starts_and_ends(moved_on, after, now_ms))
    return Step(after, before, events, _queued(events, reading.account, interest), notes, moved_on)


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
    after = state._replace(
        version=version, sequence=events[-1].sequence, stale_since_ms=origin.observed_from_ms
    )
    queued = _queued(events, origin.account or "", interest)
    return Step(after, state.sequence, events, queued, (), Advance(is_baseline=False, is_news=True))


def reset(state: AccountState, by: str, *, version: str, now_ms: int) -> Step:
    """Forget what was accepted of an account: its next successful poll is a baseline. `by` says who does."""
    after = state.reset(by, version)
    at = {"timestamp": iso(now_ms), "sequence": after.sequence}
    note = {"type": "forgotten", **at, "assets": sorted(state.entry_by_asset), "by": by}
    return Step(
        after, state.sequence, (), {}, (orjson.dumps(note),), Advance(is_baseline=False, is_news=True)
    )


def _queued(events: Sequence[Event], account: str, interest: Interest) -> dict[str, list[int]]:
    """Say which events each subscription gets."""
    queued: dict[str, list[int]] = {}
    for name in interest.listeners(account):
        places = [place for place, event in enumerate(events) if interest.wants(name, event)]
        if places:
            queued[name] = places
    return queued


def _starts_and_ends(moved_on: Advance, after: AccountState, now_ms: int) -> Iterable[bytes]:
    """Write what a replay of the log needs beside the events to arrive at the state: starts and ends."""
    if not (moved_on.forgotten or moved_on.baselined or moved_on.is_baseline):
        return
    at = {"timestamp": iso(now_ms), "sequence": after.sequence}
    if moved_on.forgotten:
        yield orjson.dumps({"type": "forgotten", **at, "assets": moved_on.forgotten})
    if moved_on.baselined or moved_on.is_baseline:
        started = {asset_id: [*after.entry_by_asset[asset_id].published] for asset_id in moved_on.baselined}
        yield orjson.dumps({"type": "baseline", **at, "assets": started, "whole": moved_on.is_baseline})
