"""What people read: one line an event, exact, whatever a symbol or a reason contains."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from watcher.delivery.formats.sentences import SLOTS, WIDTHS, harmless, sentence, slots_in
from watcher.journal.events import Delivery
from watcher.journal.notices import sample
from watcher.settings import CHANGE_EVENTS, SERVICE_EVENTS

AT_MS = 1_795_788_185_120
LRC = {"id": "1", "symbol": "LRC", "name": "Loopring", "decimals": 18}
TOKEN = "0x7ceb23fd6bc0add59e62ac25578270cff1b9f619"


def a_change(type_: str = "deposit.cleared", asset: Mapping[str, Any] = LRC, **data: Any) -> Delivery:
    """The example of deploy/RECEIVING.md, in other words where a test says so."""
    event = {
        "id": "evt_1",
        "type": type_,
        "timestamp": "2026-11-20T14:03:05.120Z",
        "data": {
            "account": {"name": "treasury", "provider": "loopring"},
            "asset": asset,
            "sequence": 1795175095846,
            "amount": "12.5",
            "effect": {"total": "12.5", "locked": "0"},
            "after": {"total": "112.5", "locked": "0", "available": "112.5", "pending_deposit": None},
            **data,
        },
    }
    return Delivery("evt_1", type_, 1795175095846, orjson.dumps(event)[:-1], "ops")


def a_sample(type_: str) -> Delivery:
    return sample(type_, "ops", nonce="1", now_ms=AT_MS).to("ops")


SAID = {
    "deposit.pending": "sample: deposit pending, 5 ETH (total 100)",
    "deposit.cleared": "sample: deposit cleared, +5 ETH (total 105)",
    "deposit.dropped": "sample: deposit dropped, 5 ETH (total 100)",
    "withdrawal.pending": "sample: withdrawal pending, -5 ETH (total 95)",
    "withdrawal.cleared": "sample: withdrawal cleared, 5 ETH (total 100)",
    "withdrawal.returned": "sample: withdrawal returned, +5 ETH (total 105)",
    "locked.increased": "sample: locked increased, +5 ETH (locked 15, total 100)",
    "locked.decreased": "sample: locked decreased, -5 ETH (locked 5, total 100)",
    "total.increased": "sample: total increased, +5 ETH (total 105)",
    "total.decreased": "sample: total decreased, -5 ETH (total 95)",
    "account.baseline": "sample: baseline, 100 ETH",
    "account.stale": "sample: stale, no successful poll since 2026-11-27 14:02:35 UTC: no answer within 10 s",
    "account.recovered": "sample: recovered, it was stale since 2026-11-27 14:02:35 UTC",
    "threshold.crossed": "sample: total is 100 ETH, below 1000",
    "subscription.paused": "subscription sample is paused since 2026-11-27 14:02:35 UTC: it answered 410",
    "subscription.ping": "ops: ping from watcher, no balance changed",
}


@pytest.mark.parametrize("type_", [*CHANGE_EVENTS, *SERVICE_EVENTS])
def test_every_event_has_a_plain_sentence(type_: str) -> None:
    assert sentence(a_sample(type_)) == SAID[type_]


def test_the_example_of_the_readme_reads_as_it_says() -> None:
    assert sentence(a_change()) == "treasury: deposit cleared, +12.5 LRC (total 112.5)"


def test_an_amount_is_written_to_its_last_digit() -> None:
    wide = "1" * 60 + "." + "000000000000000001"
    said = sentence(a_change(amount=wide, after={"total": f"-{wide}"}), width=WIDTHS[-1])
    assert said == f"treasury: deposit cleared, +{wide} LRC (total -{wide})"


def test_an_asset_without_a_symbol_is_shown_short_and_named_whole() -> None:
    said = sentence(a_change(asset={"id": TOKEN, "symbol": None}))
    assert said == f"treasury: deposit cleared, +12.5 0x7ceb…f619 (total 112.5, asset {TOKEN})"
    assert sentence(a_change(asset={"id": "17", "symbol": None})).endswith("+12.5 17 (total 112.5)")


@pytest.mark.parametrize(
    ("symbol", "shown"),
    [
        ("USDC.e", "USDC.\u200be"),
        ("1INCH", "1INCH"),
        ("Ä-Ω_", "Ä-Ω_"),
        ("USD Coin", "“USD Coin”"),
        ("ETH (total 9000)", "“ETH (total 9000)”"),
        ("X”, and “+5 ETH", "“X, and +\u200b5 ETH”"),
    ],
)
def test_a_symbol_does_not_read_as_a_part_of_the_sentence(symbol: str, shown: str) -> None:
    said = sentence(a_change(asset={"id": "1", "symbol": symbol}))
    assert said == f"treasury: deposit cleared, +12.5 {shown} (total 112.5)"


def test_a_threshold_and_a_baseline_of_parts_are_said() -> None:
    threshold = {"field": "pending_deposit", "below": None, "above": "3", "clear": None, "value": "4"}
    crossed = a_change("threshold.crossed", amount="4", effect={"total": "0"}, threshold=threshold)
    assert sentence(crossed) == "treasury: pending deposit is 4 LRC, above 3"
    balances = [{"asset": {"id": str(i), "symbol": f"T{i}"}, "total": str(i)} for i in range(1, 9)]
    data: dict[str, Any] = {
        "effect": {"total": "0"},
        "balances": balances,
        "part": 2,
        "parts": 3,
        "asset": None,
    }
    baseline = a_change("account.baseline", **data)
    assert sentence(baseline, width=WIDTHS[1]) == (
        "treasury: baseline (part 2 of 3), 1 T1, 2 T2, 3 T3, 4 T4, 5 T5, 3 more"
    )
    nothing = a_change("account.baseline", **{**data, "balances": []})
    assert sentence(nothing) == "treasury: baseline (part 2 of 3), no balance"


def test_a_template_writes_the_sentence() -> None:
    template = "{{{account}}} {event}: {amount} {asset} of {provider} at {time}, {total}/{pending_deposit}."
    said = "{treasury} deposit cleared: +12.5 LRC of loopring at 2026-11-20 14:03:05 UTC, 112.5/."
    assert sentence(a_change(), template) == said
    everything = " ".join(f"{{{slot}}}" for slot in SLOTS)
    for type_ in SAID:
        assert SAID[type_] in sentence(a_sample(type_), everything)


@pytest.mark.parametrize("template", ["{account", "account}", "{account!r}", "{account:>9}", "{0:{account}}"])
def test_a_template_with_more_than_plain_slots_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"alone|single brace"):
        list(slots_in(template))
    assert not set(slots_in("{} {0} {account.name} {account[0]}")) & set(SLOTS)


def test_a_damaged_event_is_named_as_such() -> None:
    for content in (b"", b'{"id":', b'{"data":{}', b'{"type":1,"data":{"account":7}', b"[1", b"\xff"):
        said = sentence(Delivery("evt_9", "total.increased", 1, content, "ops"), "{account}")
        assert said == "event evt_9 (total.increased): its stored event cannot be read"


def test_a_text_from_outside_becomes_one_bounded_line_of_visible_characters() -> None:
    assert harmless("a\n\tb\r\x00\x1b[31m\u202eevil\u2066\u200b\ud800 \u2028c") == "a b [31mevil c"
    assert harmless("x" * 300) == "x" * 199 + "…"
    assert harmless("Wrapped  Ether", 5) == "Wrap…"


@pytest.mark.parametrize(
    "text",
    """
    https://evil.example/x www.evil.example evil.example a@evil.example @channel #general $CASH /start
    mailto:a tel:1 +12025550123 1.2.3.4 t.me/x steam://run/1
    """.split(),  # noqa: SIM905  # a list would take a screen
)
def test_no_service_finds_a_link_in_a_hostile_text(text: str) -> None:
    shown = harmless(text)
    assert shown.replace("\u200b", "") == text
    for joint in ("://", "@c", "@e", "#g", "$C", "/s", "/x", ":a", ":1", "+1", ".e", ".2", ".m"):
        assert joint not in shown
