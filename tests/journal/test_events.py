"""What an event contains, and that computing it again gives the same."""

import json
from base64 import b32encode
from fnmatch import fnmatch
from hashlib import sha256
from typing import Any

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.builders import a_balance, a_row, a_snapshot, a_state, a_subscription
from tests.support.events_schema import assert_valid
from tests.support.stories import deliveries_of
from watcher.journal.account import AccountState, Rules
from watcher.journal.events import Delivery, Draft, Origin, events_of, load_delivery
from watcher.journal.interest import Interest
from watcher.journal.step import Reading, Step, diff
from watcher.settings import SubscriptionSettings
from watcher.snapshot import Asset, Balance, Snapshot

NOW_MS = 1_795_175_095_846


def a_step(
    state: AccountState | None, snapshot: Snapshot, *subscriptions: SubscriptionSettings, now_ms: int = NOW_MS
) -> Step:
    reading = Reading("treasury", "loopring", "here", snapshot, now_ms - 5)
    interest = Interest({one.name: one for one in subscriptions or (a_subscription(),)})
    step = diff(state, reading, rules=Rules(), interest=interest, version="v2", now_ms=now_ms)
    assert step is not None
    return step


def bodies(step: Step, *, previous: int | None = None) -> list[dict[str, Any]]:
    return [json.loads(delivery.body) for delivery in deliveries_of(step, previous=previous)]


@given(st.integers(0, 10**14), st.text(max_size=5))
def test_an_id_is_120_bits_of_the_digest_of_the_content_in_lower_case_base_32(
    sequence: int, account: str
) -> None:
    draft = Draft("total.increased", Asset("ETH"), "5", {}, ("1", None))
    (event,) = events_of([draft], Origin(account, "p", sequence, 0, 0), first_sequence=1, now_ms=1)
    said = ["p", account, sequence, "total.increased", "ETH", "1", None]
    digest = sha256(orjson.dumps(said)).digest()
    assert event.id == f"evt_{b32encode(digest[:15]).decode().lower()}"


def test_an_event_has_the_documented_fields() -> None:
    before = a_state(LRC=a_balance("100", pending_deposit="12.5"), sequence=20)
    row = a_row(Asset("LRC", "LRC", "Loopring", 0), a_balance("112.5"))
    (body,) = bodies(a_step(before, Snapshot({"LRC": row}, None, absent_is_zero=True)), previous=17)
    assert body == {
        "id": body["id"],
        "type": "deposit.cleared",
        "timestamp": "2026-11-20T11:44:55.846Z",
        "data": {
            "account": {"name": "treasury", "provider": "loopring"},
            "asset": {"id": "LRC", "symbol": "LRC", "name": "Loopring", "decimals": 0},
            "sequence": NOW_MS,
            "amount": "12.5",
            "effect": {"total": "12.5", "locked": "0", "pending_deposit": "-12.5", "pending_withdrawal": "0"},
            "before": {
                "total": "100",
                "locked": "0",
                "available": "100",
                "pending_deposit": "12.5",
                "pending_withdrawal": "0",
            },
            "after": {
                "total": "112.5",
                "locked": "0",
                "available": "112.5",
                "pending_deposit": "0",
                "pending_withdrawal": "0",
            },
            "observed": {"from": "1970-01-01T00:00:01.000Z", "to": "2026-11-20T11:44:55.841Z"},
        },
        "subscription": {"name": "ops", "previous_sequence": 17},
    }
    assert body["id"].startswith("evt_")
    assert "." not in body["id"]


def test_missing_pending_fields_are_null_in_the_event() -> None:
    nothing_pending = a_balance("1", "0", None, None)
    step = a_step(a_state(MK=nothing_pending), a_snapshot(MK=nothing_pending._replace(total="1.5")))
    (body,) = bodies(step)
    assert body["data"]["effect"] == {
        "total": "0.5",
        "locked": "0",
        "pending_deposit": None,
        "pending_withdrawal": None,
    }
    assert body["data"]["after"]["pending_deposit"] is None


def test_seventy_eight_digits_reach_the_body_exactly() -> None:
    most = str(2**256 - 1)
    (body,) = bodies(a_step(a_state(ETH="0"), a_snapshot(ETH=most)))
    assert body["data"]["after"]["total"] == most
    assert body["data"]["amount"] == most


def test_sequences_rise_even_when_the_clock_does_not() -> None:
    before = a_state(ETH="1", LRC="1", sequence=NOW_MS + 1000)
    step = a_step(before, a_snapshot(ETH="2", LRC="2"))
    assert [event.sequence for event in step.events] == [NOW_MS + 1001, NOW_MS + 1002]
    assert step.state.sequence == NOW_MS + 1002


def test_a_subscription_gets_only_what_it_asks_for_in_the_order_of_the_commit() -> None:
    everything, only_lrc = a_subscription("all"), a_subscription("lrc", assets=("LRC",))
    step = a_step(a_state(ETH="1", LRC="1"), a_snapshot(ETH="2", LRC="2"), everything, only_lrc)
    eth, lrc = step.events
    assert step.queued == {"all": [0, 1], "lrc": [1]}
    assert [one.sequence for one in deliveries_of(step, "all")] == [eth.sequence, lrc.sequence]
    assert [one.sequence for one in deliveries_of(step, "lrc")] == [lrc.sequence]


@pytest.mark.parametrize("previous", [None, 17])
def test_a_body_is_the_event_byte_for_byte_plus_subscription_and_previous_sequence(
    previous: int | None,
) -> None:
    (event,) = a_step(a_state(ETH="1"), a_snapshot(ETH="2")).events
    said = b'{"name":"ops","previous_sequence":%b}' % json.dumps(previous).encode()
    assert event.to("ops", previous).body == event.json[:-1] + b',"subscription":' + said + b"}"


@pytest.mark.parametrize("previous", [None, 0, 17])
def test_a_delivery_is_read_back_as_it_was_queued(previous: int | None) -> None:
    (event,) = a_step(a_state(ETH="1"), a_snapshot(ETH="2")).events
    delivery = event.to("ops", previous)
    assert delivery.entry == f"{event.reference} {'-' if previous is None else previous}".encode()
    assert delivery.stored == event.stored
    assert load_delivery(delivery.entry, b"3 " + event.stored, "ops") == delivery


@given(st.binary(min_size=1))
def test_any_content_is_read_back_byte_for_byte(content: bytes) -> None:
    delivery = Delivery("evt_abc", "deposit.cleared", NOW_MS, content, "ops", NOW_MS - 1)
    assert load_delivery(delivery.entry, b"12 " + delivery.stored, "ops") == delivery


def test_a_delivery_is_named_by_its_event_and_the_one_before_it() -> None:
    delivery = Delivery("evt_1", "deposit.cleared", 7, b'{"id":"evt_1"', "ops", 5)
    assert (delivery.entry, delivery.stored) == (b"evt_1 7 5", b'deposit.cleared\n{"id":"evt_1"')
    assert delivery._replace(previous=None).entry == b"evt_1 7 -"


GOOD = b'1 deposit.cleared\n{"id":"evt_1"'
ENTRIES = st.from_regex(rb"[a-z_ ]{0,6} ?[-+_ 0-9]{0,5} ?[-+_ 0-9]{0,5}\n?[a-z]{0,2}", fullmatch=True)


@given(st.binary() | ENTRIES)
def test_no_other_bytes_are_read_as_a_delivery(entry: bytes) -> None:
    try:
        delivery = load_delivery(entry, GOOD, "ops")
    except ValueError:
        return
    assert delivery.entry == entry
    assert json.loads(delivery.body)["subscription"]["previous_sequence"] == delivery.previous


@pytest.mark.parametrize(
    "entry",
    [
        *(b"", b"evt_1", b"evt_1 7", b"evt_1 7 5 3", b"evt_1 7 -5", b"evt_1 -7 5", b"evt_1 - 5", b"evt_1 7 "),
        *(b"evt_1 1_0 5", b"evt_1 7 1_0", b"evt_1 07 5", b"evt_1 7 +5", b"evt_1 7 5\n", b"evt_1\n 7 5"),
        *(b"evt_1 7 1" + b"0" * 20, b"evt_1 7 " + b"9" * 5000, b"\xff 7 5", b" 7 5"),
        *(b"evt_1 " + b"1" * 15 + b" 5", b"evt_1 7 " + b"1" * 15),
    ],
)
def test_any_other_entry_is_damage(entry: bytes) -> None:
    with pytest.raises(ValueError, match="not the name of a delivery"):
        load_delivery(entry, GOOD, "ops")


@pytest.mark.parametrize(
    "stored", [b"", b"1", b"1 ", b"1 deposit.cleared", b"1 deposit.cleared\n", b"1 \n{", b"\n{"]
)
def test_a_body_without_a_type_or_content_is_damage(stored: bytes) -> None:
    with pytest.raises(ValueError, match="a delivery without a body"):
        load_delivery(b"evt_1 7 5", stored, "ops")


def test_recomputing_an_event_gives_the_same_id() -> None:
    before = a_state(ETH="1")
    first, again = (a_step(before, a_snapshot(ETH="2"), now_ms=now) for now in (NOW_MS, NOW_MS + 60_000))
    assert [event.id for event in first.events] == [event.id for event in again.events]


@pytest.mark.parametrize(
    "other",
    [
        a_step(a_state(ETH="1", sequence=2), a_snapshot(ETH="2")),
        a_step(a_state(ETH="1"), a_snapshot(ETH="3")),
        a_step(a_state(ETH="0.5"), a_snapshot(ETH="2")),
        a_step(a_state(LRC="1"), a_snapshot(LRC="2")),
        a_step(a_state(ETH="3"), a_snapshot(ETH="2")),
    ],
)
def test_a_different_change_has_a_different_id(other: Step) -> None:
    this = a_step(a_state(ETH="1"), a_snapshot(ETH="2"))
    assert this.events[0].id != other.events[0].id


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, ["total.increased", "deposit.pending", "locked.increased"]),
        ({"events": ("deposit.*",)}, ["deposit.pending"]),
        ({"events": ("locked.*", "total.*")}, ["total.increased", "locked.increased"]),
        ({"accounts": ("shop-*",)}, []),
        ({"accounts": ("tre?sury",)}, ["total.increased", "deposit.pending", "locked.increased"]),
        ({"assets": ("LRC",)}, ["deposit.pending", "locked.increased"]),
        ({"assets": ("0XABC*",)}, ["total.increased"]),
    ],
)
def test_a_subscription_gets_what_it_asked_for(wish: dict[str, Any], expected: list[str]) -> None:
    before = a_state({"0xabcdef": "1", "1": "1"})
    rows = {
        "0xabcdef": a_row("0xabcdef", "2"),
        "1": a_row(Asset("1", "LRC", decimals=0), a_balance("1", "1", "3")),
    }
    step = a_step(before, Snapshot(rows, None, absent_is_zero=True), a_subscription(**wish))
    assert sorted(body["type"] for body in bodies(step)) == sorted(expected)


def test_every_body_stays_below_20_kb() -> None:
    widest = a_balance(str(2**256 - 1) + "." + "9" * 78)
    asset = Asset("0x" + "a" * 126, "S" * 64, "N" * 64, 18)
    before = AccountState("here", None, {}, "v1", NOW_MS)
    rows = {asset.id: a_row(asset, widest)}
    step = a_step(before, Snapshot(rows, None, absent_is_zero=True), a_subscription("s" * 64))
    (delivery,) = deliveries_of(step, "s" * 64, previous=NOW_MS)
    assert 0 < len(delivery.body) < 20_000


BALANCES = st.builds(
    lambda sign, numbers: a_balance(*map(str, (sign * numbers[0], numbers[0] // 2, *numbers[2:]))),
    st.sampled_from([1, -1]),
    st.lists(st.integers(1, 2**256 - 1), min_size=4, max_size=4),
)


@settings(max_examples=200)
@given(BALANCES, BALANCES)
def test_before_plus_effect_is_after_in_the_bytes_that_are_sent(before: Balance, after: Balance) -> None:
    assume(before != after)
    for delivery in deliveries_of(a_step(a_state(ETH=before), a_snapshot(ETH=after))):
        assert_valid(delivery.body)
        body = json.loads(delivery.body)
        data = body["data"]
        for field, effect in data["effect"].items():
            assert int(data["before"][field]) + int(effect) == int(data["after"][field])
        assert int(data["after"]["available"]) == int(data["after"]["total"]) - int(data["after"]["locked"])
        assert any(
            fnmatch(body["type"], glob) for glob in ("deposit.*", "withdrawal.*", "locked.*", "total.*")
        )
