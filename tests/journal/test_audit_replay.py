"""An audit passes what the program wrote, and finds every damage."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import a_balance, a_row, a_snapshot, a_subscription
from tests.support.fuzzing import tried
from tests.support.replayed import audit
from tests.support.stories import MINUTE_MS, NOW_MS, STORY, WARNED, records_of, steps
from watcher.journal.account import AccountState
from watcher.journal.events import Origin
from watcher.journal.interest import Interest
from watcher.journal.log import Record, Verdict
from watcher.journal.step import Step, go_stale
from watcher.settings import ThresholdSettings
from watcher.snapshot import Snapshot

STEPS = steps(STORY, subscriptions=(WARNED,))
RECORDS = records_of(STEPS)
STATE = STEPS[-1].state
EVENTS = [i for i, record in enumerate(RECORDS) if record.content["type"] != "baseline"]
CHANGES = [
    i for i in EVENTS if any(v not in ("0", None) for v in RECORDS[i].content["data"]["effect"].values())
]


def findings(records: Sequence[Record], state: AccountState | None = STATE) -> list[str]:
    return [finding.text for finding in audit(records, state).findings]


def without(*places: int) -> list[Record]:
    return [record for i, record in enumerate(RECORDS) if i not in places]


def edited(place: int, edit: Callable[[dict[str, Any]], object]) -> list[Record]:
    content = copy.deepcopy(RECORDS[place].content)
    edit(content)
    return [*RECORDS[:place], replace(RECORDS[place], content=content), *RECORDS[place + 1 :]]


def stale(state: AccountState | None, at_ms: int) -> Step:
    origin = Origin("treasury", "loopring", state.sequence if state else 0, at_ms - MINUTE_MS, at_ms)
    return go_stale(state, origin, "gone", "no connection", interest=Interest({}), version="v", now_ms=at_ms)


def test_the_story_has_every_case_that_these_tests_need() -> None:
    types = [record.content["type"] for record in RECORDS]
    assert {"baseline", "threshold.crossed", "deposit.pending", "deposit.cleared"} <= {*types}
    assert len(RECORDS) == 18


def test_a_log_that_the_program_wrote_adds_up() -> None:
    verdict = audit(RECORDS, STATE)
    assert verdict == Verdict(18, "2026-11-20T11:44:55.846Z", from_baseline=True, is_first=True)


def test_an_account_without_records_has_no_finding() -> None:
    assert audit([], STATE) == Verdict()
    assert audit([], None) == Verdict()


def test_a_log_that_was_trimmed_anywhere_is_replayed_from_what_is_left() -> None:
    for cut in range(1, len(RECORDS) + 1):
        verdict = audit(RECORDS[cut:], STATE)
        assert not verdict.findings
        assert not verdict.from_baseline


def test_any_missing_record_shows() -> None:
    for place in range(1, len(RECORDS)):
        assert findings(without(place)), RECORDS[place]


def test_any_two_missing_records_show_even_if_they_cancel_out() -> None:
    first, second = CHANGES[:2]
    assert RECORDS[first].content["data"]["before"] == RECORDS[second].content["data"]["after"]
    for pair in combinations(range(1, len(RECORDS)), 2):
        assert findings(without(*pair)), pair


def test_missing_events_that_cancel_out_show_within_larger_commits_too() -> None:
    polls = (a_snapshot(ETH="1", LRC="1"), a_snapshot(ETH="9", LRC="2"), a_snapshot(ETH="1", LRC="3"))
    made = steps(polls)
    baseline, eth_up, lrc_up, eth_down, lrc_up_again = records_of(made)
    assert eth_up.content["data"]["before"] == eth_down.content["data"]["after"]
    assert findings([baseline, lrc_up, lrc_up_again], made[-1].state)


def test_any_two_swapped_records_show() -> None:
    for one, other in combinations(range(len(RECORDS)), 2):
        swapped = [*RECORDS]
        swapped[one], swapped[other] = swapped[other], swapped[one]
        assert findings(swapped), (one, other)


def test_any_repeated_record_shows_wherever_the_copy_is() -> None:
    for place in EVENTS:
        for copied_to in range(place, len(RECORDS)):
            doubled = [*RECORDS[: copied_to + 1], RECORDS[place], *RECORDS[copied_to + 1 :]]
            assert "the same event is there twice" in findings(doubled)


@pytest.mark.parametrize("part", ["before", "after", "effect"])
@pytest.mark.parametrize("field", ["total", "locked", "pending_deposit", "pending_withdrawal"])
def test_any_changed_amount_shows(part: str, field: str) -> None:
    for place in CHANGES:
        assert findings(edited(place, lambda content: content["data"][part].update({field: "123456"})))


def test_amounts_changed_consistently_show_too() -> None:
    """The sums are right and so is the chain, but the id is a digest of the content."""

    def add_one(content: dict[str, Any]) -> None:
        data = content["data"]
        data["amount"] = data["effect"]["total"] = str(int(data["effect"]["total"]) + 1)
        data["after"]["total"] = str(int(data["after"]["total"]) + 1)
        data["after"]["available"] = str(int(data["after"]["available"]) + 1)

    place = CHANGES[0]
    assert findings(edited(place, add_one))[0] == "its id does not belong to what it says"


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.update(type="total.vanished"),
        lambda content: content.update(type="account.stale"),
        lambda content: content.update(id="evt_other"),
        lambda content: content.update(timestamp="2026-11-20T11:44:55.847Z"),
        lambda content: content.update(timestamp="yesterday"),
        lambda content: content["data"].update(sequence=17),
        lambda content: content["data"].update(sequence="17"),
        lambda content: content["data"].update(amount="17"),
        lambda content: content["data"].pop("before"),
        lambda content: content["data"]["asset"].update(id="OTHER"),
        lambda content: content["data"]["account"].update(name="alice"),
        lambda content: content["data"]["account"].update(provider="other"),
        lambda content: content["data"]["before"].update(total="1e3"),
        lambda content: content["data"]["before"].update(total=110),
        lambda content: content["data"]["before"].update(total="9" * 5000),
        lambda content: content["data"]["before"].update(total="0110"),
        lambda content: content["data"].update(effect=[]),
        lambda content: content.pop("data"),
        lambda content: content.clear(),
    ],
)
def test_any_other_changed_field_shows(edit: Callable[[dict[str, Any]], object]) -> None:
    for place in CHANGES[:3]:
        assert findings(edited(place, edit))


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["assets"].update(ETH=["111", "0", "0", "0"]),
        lambda content: content["assets"].pop("ETH"),
        lambda content: content["assets"].update(ETH=["110", "0"]),
        lambda content: content["assets"].update(OTHER=["1", "0", "0", "0"]),
        lambda content: content.update(assets=None),
        lambda content: content.update(sequence=17),
        lambda content: content.pop("sequence"),
        lambda content: content.update(whole=False),
    ],
)
def test_a_changed_baseline_shows(edit: Callable[[dict[str, Any]], object]) -> None:
    assert findings(edited(0, edit))


def test_a_record_that_follows_another_sequence_shows() -> None:
    for place in EVENTS[1:]:
        moved = [*RECORDS]
        moved[place] = replace(moved[place], follows=moved[place].follows + 1)
        assert findings(moved)


def test_a_service_event_that_moves_something_shows() -> None:
    place = next(i for i in EVENTS if RECORDS[i].content["type"] == "threshold.crossed")
    damaged = edited(place, lambda content: content["data"]["effect"].update(total="1"))
    assert "it moves something, which no threshold.crossed does" in findings(damaged)


@pytest.mark.parametrize("asset", ["ETH", "LRC", "USDC"])
def test_a_state_that_differs_from_the_end_of_the_log_shows(asset: str) -> None:
    entry = STATE.entry_by_asset[asset]
    other = entry._replace(published=entry.published._replace(total="1000"))
    wrong = STATE._replace(entry_by_asset={**STATE.entry_by_asset, asset: other})
    (finding,) = audit(RECORDS, wrong).findings
    assert (finding.asset, finding.record) == (asset, None)
    assert finding.text.startswith("the state has published total 1000 instead of ")


def test_a_state_that_lost_or_found_an_asset_shows() -> None:
    entries = {**STATE.entry_by_asset}
    usdc = entries.pop("USDC")
    assert findings(RECORDS, STATE._replace(entry_by_asset=entries)) == [
        "the log holds it, the state does not"
    ]
    more = {**STATE.entry_by_asset, "DAI": usdc._replace(asset=usdc.asset._replace(id="DAI"))}
    assert findings(RECORDS, STATE._replace(entry_by_asset=more)) == ["the state holds it, the log does not"]


def test_a_state_of_another_time_shows() -> None:
    assert any("the state is at sequence" in text for text in findings(RECORDS, STEPS[-2].state))
    assert any("the state is at sequence" in text for text in findings(records_of(STEPS[:-1])))


def test_a_missing_state_shows() -> None:
    assert findings(RECORDS, None) == ["there is no state of it, though the log holds its records"]


def test_pending_and_suspect_amounts_are_no_difference() -> None:
    dropped = a_snapshot(LRC=a_balance("100", pending_deposit="0"), ETH="0")
    made = steps((a_snapshot(LRC=a_balance("100", pending_deposit="5"), ETH="1"), dropped))
    state = made[-1].state
    assert state.entry_by_asset["LRC"].confirmation_polls
    assert state.entry_by_asset["ETH"].suspect
    assert not findings(records_of(made), state)


def test_edits_of_the_watch_list_are_no_difference() -> None:
    def watched(*assets: str) -> Snapshot:
        listed = {"ETH": "10", "LRC": "20", "USDC": "30"}
        return a_snapshot({asset: listed[asset] for asset in assets}, watched=assets)

    more = a_snapshot(LRC="21", USDC="30", watched=("LRC", "USDC"))
    made = steps((watched("ETH", "LRC"), watched("LRC"), watched("LRC", "USDC"), more, watched("ETH", "LRC")))
    kinds = [record.content["type"] for record in records_of(made)]
    assert kinds.count("forgotten") == 2
    assert not findings(records_of(made), made[-1].state)


def test_another_source_starts_anew() -> None:
    moved = steps(STORY[2:4], state=STATE, source="elsewhere", at_ms=NOW_MS + 100 * MINUTE_MS)
    records = records_of([*STEPS, *moved])
    assert "forgotten" in [record.content["type"] for record in records]
    assert not findings(records, moved[-1].state)
    assert findings(records[: len(RECORDS)], moved[-1].state)


def test_an_account_removed_and_added_again_starts_anew() -> None:
    again = steps(STORY[3:6], at_ms=NOW_MS + 100 * MINUTE_MS)
    assert not findings(records_of([*STEPS, *again]), again[-1].state)
    at_once = steps(STORY[:1], at_ms=NOW_MS + MINUTE_MS)
    assert not findings(records_of([*STEPS[:1], *at_once]), at_once[-1].state)


def test_a_queued_baseline_is_no_difference_wherever_the_log_begins() -> None:
    heard = (a_subscription("all", events=("*",)), WARNED)
    made = steps(STORY[:3], subscriptions=heard)
    late = stale(made[-1].state, NOW_MS + 50 * MINUTE_MS)
    later = NOW_MS + 60 * MINUTE_MS
    made += [late, *steps(STORY, state=late.state, source="there", at_ms=later, subscriptions=heard)]
    records = records_of(made)
    assert [record.content["type"] for record in records].count("account.baseline") == 2
    for start in range(len(records)):
        assert findings(records[start:], made[-1].state) == [], start


def test_the_same_baseline_after_a_loss_of_state_is_no_repeated_event() -> None:
    heard = (a_subscription(events=("*",)),)
    first, again = (steps(STORY[:1], at_ms=at_ms, subscriptions=heard) for at_ms in (NOW_MS, 2 * NOW_MS))
    assert first[0].events[0].id == again[0].events[0].id
    assert findings([*records_of(first), *records_of(again)], again[0].state) == []


def test_an_account_that_goes_stale_and_recovers_is_no_difference() -> None:
    gone = stale(STATE, NOW_MS + 50 * MINUTE_MS)
    back = steps(STORY[4:6], state=gone.state, at_ms=NOW_MS + 60 * MINUTE_MS)
    records = records_of([*STEPS, gone, *back])
    assert {"account.stale", "account.recovered"} <= {record.content["type"] for record in records}
    assert not findings(records, back[-1].state)


def test_an_account_that_goes_stale_before_it_was_ever_read_is_no_difference() -> None:
    never = stale(None, NOW_MS)
    born = steps(STORY, state=never.state, at_ms=NOW_MS + MINUTE_MS)
    assert not findings(records_of([never]), never.state)
    assert not findings(records_of([never, *born]), born[-1].state)
    lost = stale(None, NOW_MS + 100 * MINUTE_MS)
    assert not findings(records_of([*STEPS, lost]), lost.state)


def test_a_clock_that_went_back_is_no_difference() -> None:
    back = steps(STORY[3:5], state=STATE, at_ms=NOW_MS - 100 * MINUTE_MS)
    assert not findings(records_of([*STEPS, *back]), back[-1].state)


BALANCES = st.builds(
    lambda total, locked, deposit, withdrawal: a_balance(
        *map(str, (total, min(abs(total), locked), deposit, withdrawal))
    ),
    st.integers(-6, 6),
    *[st.integers(0, 6)] * 3,
)
SNAPSHOTS = st.dictionaries(st.sampled_from(["ETH", "LRC", "USDC"]), BALANCES, max_size=3).map(a_snapshot)


@tried(40)
@given(st.lists(SNAPSHOTS, min_size=2, max_size=8), st.data())
def test_any_history_adds_up_and_any_missing_record_of_it_shows(
    snapshots: list[Snapshot], data: st.DataObject
) -> None:
    made = steps(snapshots, subscriptions=(WARNED,))
    records, state = records_of(made), made[-1].state
    assert not findings(records, state)
    later = [place for place, record in enumerate(records) if record.follows]
    if later:
        gone = data.draw(st.sampled_from(later))
        assert findings(records[:gone] + records[gone + 1 :], state)


def test_a_finding_says_what_differs_and_where() -> None:
    first, second = CHANGES[:2]
    found = audit(without(first), STATE).findings
    assert [finding.text for finding in found] == [
        f"it follows sequence {RECORDS[second].follows}, the record before it ended at "
        f"{RECORDS[first].follows}: a record is missing or out of place",
        "it begins with total 120 instead of 110 as the record before it ended",
    ]
    assert [(finding.record, finding.asset) for finding in found] == [
        (RECORDS[second].id, None),
        (RECORDS[second].id, "ETH"),
    ]


def test_a_threshold_event_on_an_asset_that_never_had_a_balance_is_no_difference() -> None:
    nothing = a_snapshot(ETH="1")._replace(zeros=(a_row("LRC", "0"),))
    below = a_subscription(thresholds=(ThresholdSettings(asset="LRC", below="5"),))
    made = steps([a_snapshot(ETH="1"), nothing], subscriptions=[below])
    assert [event.type for event in made[-1].events] == ["threshold.crossed"]
    assert audit(records_of(made), made[-1].state).findings == []
