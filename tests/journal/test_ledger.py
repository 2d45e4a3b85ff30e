"""What a snapshot changes in the state of an account."""

import json
from random import Random

from tests.support.builders import a_balance, a_row, a_snapshot, a_state
from watcher.journal.account import AccountState, Advance, Rules, advance
from watcher.journal.events import Origin, drafts_of, events_of
from watcher.snapshot import LOST, Asset, Snapshot

RULES = Rules("outside", settle_polls=2)


def step(state: AccountState | None, snapshot: Snapshot, *, source: str = "here") -> Advance:
    return advance(state, snapshot, source=source, rules=RULES, observed_ms=0)


def emitted(result: Advance) -> list[tuple[str, str]]:
    return [(moved.asset.id, moved.type) for moved in result.moved]


def followed(state: AccountState | None, *snapshots: Snapshot) -> list[list[tuple[str, str]]]:
    """The events of a series of snapshots, one after the other."""
    heard = []
    for snapshot in snapshots:
        result = step(state, snapshot)
        state = AccountState("here", snapshot.watched, result.entry_by_asset)
        heard.append(emitted(result))
    return heard


def test_the_first_snapshot_is_a_baseline_without_events() -> None:
    result = step(None, a_snapshot(ETH="10"))
    assert result.is_baseline
    assert result.is_news
    assert emitted(result) == []
    assert result.entry_by_asset["ETH"].published.total == "10"


def test_the_same_snapshot_again_changes_nothing() -> None:
    assert not step(a_state(ETH="10"), a_snapshot(ETH="10")).is_news


def test_another_source_is_another_account() -> None:
    result = step(a_state(ETH="10"), a_snapshot(LRC="7"), source="there")
    assert result.is_baseline
    assert emitted(result) == []
    assert set(result.entry_by_asset) == {"LRC"}
    assert result.forgotten == ["ETH"]


def test_a_new_asset_in_a_full_listing_counts_from_zero() -> None:
    result = step(a_state(ETH="10"), a_snapshot(ETH="10", LRC="7"))
    assert emitted(result) == [("LRC", "total.increased")]


def test_a_newly_watched_token_gets_a_baseline() -> None:
    before = a_state(ETH="10", watched=("ETH",))
    result = step(before, a_snapshot(ETH="10", LRC="7", watched=("ETH", "LRC")))
    assert emitted(result) == []
    assert list(result.baselined) == ["LRC"]


def test_watching_all_tokens_gives_the_others_a_baseline() -> None:
    before = a_state(ETH="10", watched=("ETH",))
    assert emitted(step(before, a_snapshot(ETH="10", LRC="7"))) == []


def test_a_token_no_longer_watched_is_forgotten_without_an_event() -> None:
    before = a_state(ETH="10", LRC="7")
    result = step(before, a_snapshot(ETH="10", watched=("ETH",)))
    assert emitted(result) == []
    assert result.forgotten == ["LRC"]
    assert set(result.entry_by_asset) == {"ETH"}


def test_a_row_of_an_unwatched_token_does_not_keep_it() -> None:
    result = step(a_state(ETH="10", LRC="7"), a_snapshot(ETH="10", LRC="7", watched=("ETH",)))
    assert result.forgotten == ["LRC"]
    assert set(result.entry_by_asset) == {"ETH"}


def test_a_new_asset_is_sorted_among_the_others() -> None:
    result = step(a_state(ETH="10", LRC="7"), a_snapshot(DAI="1", ETH="10", KNC="2", LRC="8"))
    assert list(result.entry_by_asset) == ["DAI", "ETH", "KNC", "LRC"]


def test_an_asset_without_movement_shares_its_amounts_and_makes_no_event() -> None:
    """So that a state that was read from the store takes no more memory than one that a poll left."""
    before, snapshot = a_state(ETH="10", LRC="7"), a_snapshot(ETH="10", LRC="7")
    result = step(before, snapshot)
    assert not result.is_news
    for asset, entry in result.entry_by_asset.items():
        assert entry == before.entry_by_asset[asset]
        assert entry.seen is entry.published is snapshot.row_by_asset[asset].balance


def test_an_asset_absent_from_a_filtered_listing_keeps_its_state() -> None:
    before = a_state(ETH="10", LRC="7", watched=("ETH", "LRC"))
    result = step(before, a_snapshot(ETH="10", watched=("ETH", "LRC")))
    assert not result.is_news
    assert result.entry_by_asset["LRC"].seen.total == "7"


def test_an_asset_absent_from_a_full_listing_is_zero_only_after_two_polls() -> None:
    heard = followed(a_state(ETH="10", LRC="7"), a_snapshot(ETH="10"), a_snapshot(ETH="10"))
    assert heard == [[], [("LRC", "total.decreased")]]


def test_a_suspect_asset_does_not_hold_up_the_others() -> None:
    result = step(a_state(ETH="10", LRC="7"), a_snapshot(ETH="11", LRC="0"))
    assert emitted(result) == [("ETH", "total.increased")]
    assert list(result.suspect) == ["LRC"]


def test_an_unconfirmed_suspicion_leaves_no_trace() -> None:
    before = a_state(LRC="7")
    suspect = step(before, a_snapshot(LRC="0"))
    again = step(AccountState("here", None, suspect.entry_by_asset), a_snapshot(LRC="7"))
    assert emitted(again) == []
    assert again.is_news, "what is stored says that it is suspect"
    assert again.entry_by_asset == before.entry_by_asset


def test_a_row_of_zeros_and_no_row_are_the_same() -> None:
    assert followed(a_state(ETH="0"), a_snapshot(), a_snapshot(ETH="0"), a_snapshot()) == [[], [], []]
    assert followed(a_state(LRC="1"), a_snapshot(LRC="1", ETH="0"), a_snapshot(LRC="1")) == [[], []]


def test_other_decimals_are_a_new_baseline_for_that_asset() -> None:
    before = a_state(ETH="10")
    row = a_row(Asset("ETH", decimals=18), "0.1")
    result = step(before, Snapshot({"ETH": row}, None, absent_is_zero=True))
    assert emitted(result) == []
    assert result.baselined == {"ETH": "its unit changed"}
    assert result.entry_by_asset["ETH"].published.total == "0.1"


def test_an_asset_whose_unit_changes_starts_anew_even_if_its_digits_stay() -> None:
    row = a_row(Asset("ETH", decimals=18), "10")
    result = step(a_state(ETH="10"), Snapshot({"ETH": row}, None, absent_is_zero=True))
    assert result.baselined == {"ETH": "its unit changed"}
    assert result.entry_by_asset["ETH"].asset.decimals == 18


def test_lost_decimals_are_taken_from_the_next_answer() -> None:
    before = a_state(ETH="10")
    entries = {"ETH": before.entry_by_asset["ETH"]._replace(asset=Asset("ETH", decimals=LOST))}
    lost = before._replace(entry_by_asset=entries)
    assert not lost.is_at_rest(needs_decimals=False)
    for total, expected in (("10", []), ("11", [("ETH", "total.increased")])):
        row = a_row(Asset("ETH", "ETH", decimals=18), total)
        result = step(lost, Snapshot({"ETH": row}, None, absent_is_zero=True))
        assert (emitted(result), result.baselined, result.is_news) == (expected, {}, True)
        assert result.entry_by_asset["ETH"].asset.decimals == 18


def test_an_asset_that_vanishes_before_its_decimals_are_known_again_is_emitted_without_them() -> None:
    entry = a_state(ETH="10").entry_by_asset["ETH"]._replace(asset=Asset("ETH", decimals=LOST))
    lost = a_state(ETH="10", LRC="1")._replace(entry_by_asset={"ETH": entry})
    first = step(lost, a_snapshot(LRC="1"))
    second = step(lost._replace(entry_by_asset=first.entry_by_asset), a_snapshot(LRC="1"))
    (event,) = events_of(drafts_of(second.moved), Origin("a", "p", 0, 0, 0), first_sequence=1, now_ms=1)
    assert json.loads(event.json)["data"]["asset"]["decimals"] is None


def test_another_name_or_symbol_makes_no_event() -> None:
    row = a_row(Asset("ETH", symbol="EVIL", name="renamed", decimals=0), "10")
    assert not step(a_state(ETH="10"), Snapshot({"ETH": row}, None, absent_is_zero=True)).is_news


def test_a_pending_change_stays_in_its_entry_until_it_is_emitted() -> None:
    before = a_state(LRC=a_balance("100", pending_deposit="5"))
    dropped = a_snapshot(LRC=a_balance("100", pending_deposit="0"))
    result = step(before, dropped)
    entry = result.entry_by_asset["LRC"]
    assert emitted(result) == []
    assert (entry.published.pending_deposit, entry.seen.pending_deposit, entry.confirmation_polls) == (
        "5",
        "0",
        1,
    )
    assert "LRC" in result.pending_confirmation


def test_the_order_of_rows_does_not_matter() -> None:
    balances = {str(i): str(i * i) for i in range(6)}
    moved = {asset: str(int(total) + 1) for asset, total in balances.items()}
    expected = emitted(step(a_state(balances), a_snapshot(moved)))
    for seed in range(1000):
        shuffled = list(moved.items())
        Random(seed).shuffle(shuffled)
        assert emitted(step(a_state(balances), a_snapshot(dict(shuffled)))) == expected


def test_a_thousand_edits_of_the_configuration_make_no_event() -> None:
    """Watch lists, decimals that become known or unknown, accounts that are read elsewhere, or anew."""
    chance = Random(7)
    truth = {str(i): str(10 + i) for i in range(8)}
    state = None
    for _ in range(1000):
        chosen = tuple(sorted(chance.sample(sorted(truth), chance.randint(1, 8))))
        watched = None if chance.random() < 0.2 else chosen
        decimals = {asset: chance.choice([None, 0, 0, 0, 18]) for asset in truth}
        rows = {
            asset: a_row(Asset(asset, decimals=decimals[asset]), truth[asset])
            for asset in (truth if watched is None else watched)
        }
        source = chance.choice(["here", "here", "here", "there"])
        if chance.random() < 0.05:
            state = None  # taken out, and put back
        result = step(state, Snapshot(rows, watched, watched is None), source=source)
        assert emitted(result) == []
        assert not result.suspect
        state = AccountState(source, watched, result.entry_by_asset)
