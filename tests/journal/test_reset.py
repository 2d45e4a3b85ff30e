"""A reset account: its accepted balances are forgotten, and nothing else is."""

from collections.abc import Sequence

import pytest

from tests.support.builders import a_balance, a_snapshot, a_subscription
from tests.support.replayed import audit
from tests.support.stories import MINUTE_MS, NOW_MS, OPS, STORY, WARNED, records_of, steps
from watcher.journal.account import AccountState
from watcher.journal.events import Origin
from watcher.journal.interest import Interest
from watcher.journal.step import Step, go_stale, reset
from watcher.settings import SubscriptionSettings
from watcher.snapshot import Snapshot

WHOLE = a_subscription(events=("*",))


def begun_anew(state: AccountState, *, now_ms: int = NOW_MS + 100 * MINUTE_MS) -> Step:
    return reset(state, "ann@host", version="anew", now_ms=now_ms)


def after(
    made: Sequence[Step], *snapshots: Snapshot, subscription: SubscriptionSettings = WHOLE, at_min: int = 101
) -> list[Step]:
    """What polls add to the state that these steps led to."""
    at_ms = NOW_MS + at_min * MINUTE_MS
    return steps(snapshots, state=made[-1].state, at_ms=at_ms, subscriptions=(subscription,))


def lived(*snapshots: Snapshot) -> list[Step]:
    made = steps(snapshots or STORY, subscriptions=(WARNED,))
    return [*made, begun_anew(made[-1].state)]


def test_a_reset_forgets_the_accepted_balances_and_the_log_says_by_whom() -> None:
    *before, forgets = lived()
    assert forgets.events == ()
    assert forgets.state.entry_by_asset == {}
    assert (forgets.state.polled_at_ms, forgets.state.height) == (0, None)
    assert forgets.state.sequence == before[-1].state.sequence
    (record,) = records_of([forgets])
    assert record.content["type"] == "forgotten"
    assert record.content["by"] == forgets.state.reset_by == "ann@host"
    assert record.content["assets"] == ["ETH", "LRC", "USDC"]


def test_the_next_snapshot_is_a_baseline() -> None:
    (step,) = after(lived(), a_snapshot(ETH="3", LRC=a_balance("1", pending_deposit="5")))
    assert [event.type for event in step.events] == ["account.baseline"]
    assert step.advance.is_baseline
    assert step.advance.reset_by == "ann@host"
    assert step.state.reset_by is None


def test_the_next_listing_may_be_empty() -> None:
    (step,) = after(lived(), a_snapshot())
    assert step.advance.is_baseline
    assert not step.state.emptiness


@pytest.mark.parametrize("at_min", [101, -1000])
def test_sequences_keep_rising_whatever_the_clock_does(at_min: int) -> None:
    made = lived()
    later = after(made, a_snapshot(ETH="3"), a_snapshot(ETH="4"), at_min=at_min)
    sequences = [event.sequence for step in (*made, *later) for event in step.events]
    assert sequences == sorted({*sequences})
    assert later[0].follows == made[-2].state.sequence


def test_an_audit_passes_before_and_after_the_baseline_and_still_finds_a_missing_record() -> None:
    made = lived()
    assert audit(records_of(made), made[-1].state).findings == []
    whole = [*made, *after(made, a_snapshot(ETH="3"), a_snapshot(ETH="4"))]
    twice = [*whole, begun_anew(whole[-1].state, now_ms=NOW_MS + 200 * MINUTE_MS)]
    for story in (whole, twice):
        records = records_of(story)
        assert audit(records, story[-1].state).findings == []
        for place in range(1, len(records)):
            following = [record.content["type"] for record in records[place : place + 2]]
            if following == ["forgotten", "baseline"]:
                continue  # which starts the whole account, whatever was before
            if records[place].content["type"] == "account.baseline":
                continue  # in the log only if it was queued; the record of the start says the same
            assert audit(records[:place] + records[place + 1 :], story[-1].state).findings, place


def test_staleness_and_crossings_survive_a_reset() -> None:
    """A threshold that is crossed, and a stale account, are not emitted a second time."""
    made = steps([a_snapshot(ETH="110"), a_snapshot(ETH="90")], subscriptions=(WARNED,))
    at_ms = NOW_MS + 50 * MINUTE_MS
    origin = Origin("treasury", "loopring", made[-1].state.sequence, at_ms, at_ms)
    stale = go_stale(
        made[-1].state, origin, "gone", "no answer", interest=Interest({}), version="v", now_ms=at_ms
    )
    anew = begun_anew(stale.state)
    (step,) = steps(
        [a_snapshot(ETH="80")],
        state=anew.state,
        at_ms=NOW_MS + 101 * MINUTE_MS,
        subscriptions=(WARNED, a_subscription("all", events=("account.*",))),
    )
    assert [event.type for event in step.events] == ["account.recovered", "account.baseline"]
    assert not audit(records_of([*made, stale, anew, step]), step.state).findings


def test_an_account_that_was_never_read_can_be_reset_too() -> None:
    anew = begun_anew(AccountState("", None, {}, "v1", sequence=7))
    (step,) = after([anew], a_snapshot(ETH="3"), subscription=OPS)
    assert step.events[0].sequence > 7
    assert not audit(records_of([anew, step]), step.state).findings
