"""Events besides changes, and which subscriptions get them."""

import json
from itertools import pairwise
from typing import Any

import pytest

from tests.support.builders import a_balance, a_row, a_snapshot, a_state, a_subscription
from tests.support.stories import deliveries_of
from watcher.journal.account import AccountState, Rules
from watcher.journal.events import Origin
from watcher.journal.interest import Interest
from watcher.journal.step import Reading, Step, diff, go_stale
from watcher.settings import SubscriptionSettings, ThresholdSettings
from watcher.snapshot import Asset, Balance, Snapshot

NOW_MS = 1_795_175_095_846


def follow(
    snapshots: list[Snapshot], *subscriptions: SubscriptionSettings, state: AccountState | None = None
) -> list[list[dict[str, Any]]]:
    """What each of a series of successful polls sends the first subscription."""
    interest = Interest({one.name: one for one in subscriptions})
    heard = []
    for number, snapshot in enumerate(snapshots):
        reading = Reading("treasury", "loopring", "here", snapshot, NOW_MS + number)
        step = diff(
            state, reading, rules=Rules(), interest=interest, version=f"v{number}", now_ms=NOW_MS + number
        )
        state = step.state if step else state
        heard.append(bodies(step, subscriptions[0].name))
    return heard


def bodies(step: Step | None, subscription: str = "ops") -> list[dict[str, Any]]:
    return [json.loads(delivery.body) for delivery in deliveries_of(step, subscription)]


def eth(*totals: str) -> list[Snapshot]:
    return [a_snapshot(ETH=total) for total in totals]


def a_threshold(**fields: Any) -> SubscriptionSettings:
    return a_subscription(
        events=("threshold.crossed",), thresholds=(ThresholdSettings(asset="ETH", **fields),)
    )


def values(heard: list[list[dict[str, Any]]]) -> list[list[str]]:
    return [[body["data"]["threshold"]["value"] for body in poll] for poll in heard]


def test_a_baseline_goes_to_the_subscriptions_that_ask_for_it_only() -> None:
    heard = follow(eth("10", "10"), a_subscription(events=("account.*",)))
    assert [[body["type"] for body in poll] for poll in heard] == [["account.baseline"], []]
    assert heard[0][0]["data"]["balances"][0]["total"] == "10"
    assert follow(eth("10"), a_subscription()) == [[]]


def test_after_a_loss_of_state_the_same_baseline_is_a_repeat_and_another_a_new_event() -> None:
    wants = a_subscription(events=("account.baseline",))
    first, again, other = (follow(eth(total), wants)[0][0]["id"] for total in ("10", "10", "12"))
    assert first == again
    assert first != other


def test_a_baseline_of_many_assets_takes_several_events_below_20_kb() -> None:
    widest = a_balance(*[str(2**256 - 1) + "." + "9" * 78] * 4)
    rows = {str(i): a_row(Asset(str(i), "S" * 64, "N" * 64, 18), widest) for i in range(45)}
    (heard,) = follow(
        [Snapshot(rows, None, absent_is_zero=True)], a_subscription(events=("account.baseline",))
    )
    assert [body["data"]["part"] for body in heard] == [1, 2, 3]
    assert sum(len(body["data"]["balances"]) for body in heard) == 45
    assert all(len(json.dumps(body)) < 20_000 for body in heard)
    assert len({body["id"] for body in heard}) == 3


def test_a_balance_that_falls_below_crosses_once() -> None:
    heard = follow(eth("10", "4", "3", "4"), a_threshold(below="5"))
    assert values(heard) == [[], ["4"], [], []]
    assert heard[1][0]["data"]["effect"]["total"] == "0"


def test_a_balance_that_hovers_crosses_again_only_after_it_cleared() -> None:
    heard = follow(eth("10", "4", "6", "4", "8", "4"), a_threshold(below="5", clear="8"))
    assert values(heard) == [[], ["4"], [], [], [], ["4"]]


def test_a_balance_that_rises_above_crosses() -> None:
    heard = follow(eth("10", "20", "15", "25"), a_threshold(above="19", clear="12"))
    assert values(heard) == [[], ["20"], [], []]


def test_a_bound_below_zero_is_crossed_and_cleared_like_any_other() -> None:
    overdraft = a_threshold(below="-5", clear="-2.5")
    heard = values(follow(eth("3", "-5", "-5.5", "-4", "-6", "-2.5", "-7"), overdraft))
    assert heard == [[], [], ["-5.5"], [], [], [], ["-7"]]
    assert values(follow(eth("-8", "-5", "-4.5", "3"), a_threshold(above="-5"))) == [[], [], ["-4.5"], []]


def test_available_falls_below_zero_where_an_account_is_overdrawn() -> None:
    overdrawn = Balance("-3", "2", "0", "0")
    heard = follow(
        [a_snapshot(ETH="10"), a_snapshot(ETH=overdrawn)], a_threshold(field="available", below="-4.5")
    )
    assert values(heard) == [[], ["-5"]]


def test_a_balance_below_at_the_baseline_crosses_once() -> None:
    assert values(follow(eth("4", "4"), a_threshold(below="5"))) == [["4"], []]


def test_a_suspect_reading_crosses_nothing_until_it_is_confirmed() -> None:
    assert values(follow(eth("10", "0", "10"), a_threshold(below="5"))) == [[], [], []]
    assert values(follow(eth("10", "0", "0"), a_threshold(below="5"))) == [[], [], ["0"]]


def with_zeros(snapshot: Snapshot, *assets: Asset) -> Snapshot:
    return snapshot._replace(zeros=tuple(a_row(asset, "0") for asset in assets))


LRC = Asset("1", "LRC", decimals=18)


@pytest.mark.parametrize("asset", ["LRC", "1"])
def test_an_asset_that_a_full_listing_does_not_name_crosses_like_a_zero_row(asset: str) -> None:
    below = a_subscription(
        events=("threshold.crossed",), thresholds=(ThresholdSettings(asset=asset, below="5", clear="8"),)
    )
    unnamed, named = with_zeros(a_snapshot(ETH="1"), LRC), a_snapshot(ETH="1")
    poor, rich = (
        named._replace(row_by_asset={"1": a_row(LRC, total), **named.row_by_asset}) for total in ("6", "9")
    )
    heard = follow([unnamed, unnamed, poor, unnamed, unnamed, rich, unnamed, unnamed], below)
    assert values(heard) == [["0"], [], [], [], [], [], [], ["0"]]
    emitted = heard[0][0]["data"]
    assert emitted["asset"] == {"id": "1", "symbol": "LRC", "name": None, "decimals": 18}
    assert emitted["before"] == emitted["after"]
    assert emitted["after"]["total"] == "0"


def test_a_bound_that_is_set_twice_crosses_once_and_clears_at_the_wider_one() -> None:
    both = a_subscription(
        events=("threshold.crossed",),
        thresholds=tuple(
            ThresholdSettings(asset=asset, below="5", clear=clear)
            for asset, clear in (("LRC", "6"), ("1", "9"))
        ),
    )
    polls = [
        a_snapshot()._replace(row_by_asset={"1": a_row(LRC, total)})
        for total in ("9", "4", "7", "4", "9", "4")
    ]
    assert values(follow(polls, both)) == [[], ["4"], [], [], [], ["4"]]


def test_an_unlisted_asset_that_never_had_a_balance_crosses_nothing() -> None:
    (heard,) = follow([with_zeros(a_snapshot(ETH="1"), LRC)], a_threshold(below="5"))
    assert [body["data"]["asset"]["id"] for body in heard] == ["ETH"]


@pytest.mark.parametrize(
    ("field", "balance", "value"),
    [
        ("available", a_balance("10", "8"), "2"),
        ("locked", a_balance("10", "2"), "2"),
        ("pending_deposit", a_balance("10", pending_deposit="2"), "2"),
    ],
)
def test_any_field_can_be_watched(field: str, balance: Balance, value: str) -> None:
    full = a_balance("10", "0" if field == "available" else "9", "9", "9")
    heard = follow([a_snapshot(ETH=full), a_snapshot(ETH=balance)], a_threshold(field=field, below="5"))
    assert values(heard)[-1] == [value]


def test_a_field_that_the_provider_lacks_crosses_nothing() -> None:
    nothing_pending = a_balance("10", "0", None, None)
    assert values(
        follow([a_snapshot(ETH=nothing_pending)], a_threshold(field="pending_deposit", below="5"))
    ) == [[]]


def test_a_crossing_goes_to_the_subscription_of_its_threshold_only() -> None:
    heard = follow(eth("4"), a_subscription("others", events=("*",)), a_threshold(below="5"))
    assert [body["type"] for body in heard[0]] == ["account.baseline"]


def test_setting_a_threshold_subscribes_to_its_events_unless_the_filter_excludes_them() -> None:
    below_five = (ThresholdSettings(asset="ETH", below="5"),)
    asked = follow(eth("10", "4"), a_subscription(thresholds=below_five))
    assert [body["type"] for body in asked[1]] == ["total.decreased", "threshold.crossed"]
    declined = follow(eth("10", "4"), a_subscription(thresholds=below_five, events=("deposit.*",)))
    assert declined[1] == []


def test_an_edited_threshold_is_evaluated_without_a_change_of_balance() -> None:
    interest = Interest({"ops": a_threshold(below="20")})
    reading = Reading("treasury", "loopring", "here", a_snapshot(ETH="10"), NOW_MS)
    step = diff(a_state(ETH="10"), reading, rules=Rules(), interest=interest, version="v2", now_ms=NOW_MS)
    assert [body["type"] for body in bodies(step)] == ["threshold.crossed"]


def test_a_crossing_is_part_of_the_chain_of_its_asset() -> None:
    heard = follow(
        eth("10", "4", "3"), a_subscription(events=("*",), thresholds=a_threshold(below="5").thresholds)
    )
    emitted = [body["data"] for poll in heard for body in poll if body["data"]["asset"]]
    for one, following in pairwise(emitted):
        assert one["after"] == following["before"]
    sequences = [body["data"]["sequence"] for poll in heard for body in poll]
    assert sequences == sorted(set(sequences))


def test_an_account_goes_stale_once_and_recovers_without_a_change() -> None:
    subscription = a_subscription(events=("account.stale", "account.recovered"))
    interest = Interest({"ops": subscription})
    before = a_state(ETH="10")
    origin = Origin("treasury", "loopring", before.sequence, 1_000, NOW_MS)
    stale = go_stale(before, origin, "gone", "no connection", interest=interest, version="v2", now_ms=NOW_MS)
    (emitted,) = bodies(stale)
    assert (emitted["type"], emitted["data"]["since"]) == ("account.stale", "1970-01-01T00:00:01.000Z")
    assert stale.state.entry_by_asset == before.entry_by_asset
    assert stale.state.polled_at_ms == before.polled_at_ms
    back, after = follow(eth("10", "10"), subscription, state=stale.state)
    assert [body["type"] for body in back] == ["account.recovered"]
    assert after == []


def test_an_account_that_was_never_read_goes_stale_too() -> None:
    interest = Interest({"ops": a_subscription(events=("account.*",))})
    origin = Origin("treasury", "loopring", 0, 1_000, NOW_MS)
    stale = go_stale(None, origin, "gone", "no connection", interest=interest, version="v1", now_ms=NOW_MS)
    assert [body["type"] for body in bodies(stale)] == ["account.stale"]
    (first,) = follow(eth("10"), a_subscription(events=("account.*", "total.*")), state=stale.state)
    assert [body["type"] for body in first] == ["account.recovered", "account.baseline"]
