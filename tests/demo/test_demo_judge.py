"""The demo's judge lets nothing pass: a missing, repeated, late, wrong or forged event."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.demo.demo_claims import (
    BASELINE,
    a_change,
    a_receipt,
    a_story,
    a_vector,
    an_event,
    balances_after,
    delivered_webhooks,
)
from watcher.demo.judge import Arrival, Made, Verdict, judge


def judged(
    heard: list[Arrival], made: Sequence[Made] | None = None, *, planned: int | None = None
) -> Verdict:
    """Judge webhooks against the story, which was made whole."""
    made = a_story() if made is None else made
    planned = len(made) if planned is None else planned
    return judge(made, heard, planned=planned, baseline=BASELINE, now=balances_after(made, BASELINE))


def edited(heard: Arrival, edit: Callable[[dict[str, Any]], object]) -> Arrival:
    event = heard.receipt.event
    assert event is not None
    edit(event)
    return heard


def test_a_story_delivered_as_it_was_made_passes() -> None:
    verdict = judged(delivered_webhooks(a_story()))
    assert verdict == Verdict(4, 4, (250, 250, 250, 250), ())
    assert verdict.is_good


def test_accounts_may_overtake_one_another() -> None:
    first, other, *rest = delivered_webhooks(a_story())
    assert judged([other, first, *rest]).is_good


@pytest.mark.parametrize("place", range(4))
def test_a_missing_event_is_found_wherever_it_is(place: int) -> None:
    heard = delivered_webhooks(a_story())
    del heard[place]
    verdict = judged(heard)
    change = a_story()[place]
    assert not verdict.is_good
    assert f"not reported: {change}, as {change.event}" in verdict.broken
    assert any("effects add up to" in broken for broken in verdict.broken)
    assert (verdict.made, verdict.verified, len(verdict.latencies_ms)) == (4, 3, 3)


def test_a_gap_is_found_by_the_sequences_alone() -> None:
    heard = delivered_webhooks(a_story())
    edited(heard[2], lambda event: event["subscription"].update(previous_sequence=99))
    (broken,) = judged(heard).broken
    first, second = "treasury deposit.pending 12.5 LRC", "treasury deposit.cleared 12.5 LRC"
    assert broken == f"something is missing between {first} and {second}"


def test_a_gap_before_the_first_event_is_found() -> None:
    heard = delivered_webhooks(a_story())
    edited(heard[0], lambda event: event["subscription"].update(previous_sequence=0))
    assert judged(heard).broken == ("something is missing before treasury deposit.pending 12.5 LRC",)


@pytest.mark.parametrize("place", range(4))
def test_an_event_that_comes_twice_is_found(place: int) -> None:
    heard = delivered_webhooks(a_story())
    verdict = judged([*heard, heard[place]])
    (broken,) = verdict.broken
    assert broken.startswith("reported more than once: ")
    assert broken.endswith(f"(evt_{place + 1})")
    assert verdict.verified == 4


def test_one_change_sent_as_two_events_is_found() -> None:
    heard = delivered_webhooks(a_story())
    story = a_story()
    again = an_event(story[3], 5, 4, balances_after(story, BASELINE)["treasury", "1"])
    broken = judged([*heard, Arrival(a_receipt(again), 104)]).broken
    assert broken == (
        "reported, but no such change was made: treasury locked.increased 3 LRC (evt_5)",
        "treasury, asset 1: effects add up to locked 6, the provider says 3",
    )


def test_events_of_one_account_in_another_order_are_found() -> None:
    heard = delivered_webhooks(a_story())
    heard[2], heard[3] = heard[3], heard[2]
    assert (
        "out of order: treasury deposit.cleared 12.5 LRC came after treasury locked.increased 3 LRC"
        in judged(heard).broken
    )


def test_a_wrong_order_with_right_sequences_is_found() -> None:
    story = a_story()
    heard = delivered_webhooks([story[2], story[1], story[0], story[3]])
    assert judged(heard, story).broken == (
        "out of order: treasury deposit.pending 12.5 LRC came after treasury deposit.cleared 12.5 LRC",
    )


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("amount", "12.500000000000000001"),
        ("amount", "12.50"),
        ("effect", {"total": "12.5", "locked": "0", "pending_deposit": "0", "pending_withdrawal": "0"}),
        ("account", {"name": "alice"}),
        ("asset", {"id": "2", "symbol": "LRC"}),
    ],
)
def test_an_event_with_other_content_is_found(part: str, value: object) -> None:
    heard = delivered_webhooks(a_story())
    edited(heard[2], lambda event: event["data"].update({part: value}))
    broken = judged(heard).broken
    assert "not reported: treasury deposit.cleared 12.5 LRC, as deposit.cleared" in broken
    assert any(one.startswith("reported, but no such change was made: ") for one in broken)


def test_an_effect_that_is_off_by_the_last_digit_does_not_add_up() -> None:
    exact, nearly = "123456789012.345678901234567891", "123456789012.345678901234567890"
    made = [a_change("total.increased", exact, a_vector(exact))]
    assert judged(delivered_webhooks(made), made).is_good
    said = [a_change("total.increased", exact, a_vector(nearly))]
    assert judged(delivered_webhooks(said), made).broken[-1] == (
        "treasury, asset 1: effects add up to total 123456790012.34567890123456789, "
        "the provider says 123456790012.345678901234567891"
    )


@pytest.mark.parametrize("part", ["before", "after"])
def test_a_balance_that_does_not_go_on_from_the_one_before_is_found(part: str) -> None:
    heard = delivered_webhooks(a_story())
    edited(heard[2], lambda event: event["data"][part].update(total="999"))
    assert judged(heard).broken[0] == (
        "does not begin where the event before it ended: treasury deposit.cleared 12.5 LRC (evt_3)"
    )


def test_a_first_event_that_does_not_begin_at_the_baseline_is_found() -> None:
    heard = delivered_webhooks(a_story())
    edited(heard[1], lambda event: [event["data"][part].update(total="8") for part in ("before", "after")])
    assert judged(heard).broken == (
        "does not begin where the event before it ended: alice locked.increased 3 LRC (evt_2)",
    )


def test_a_balance_that_vanished_without_an_event_does_not_add_up() -> None:
    baseline = {**BASELINE, ("treasury", "6"): a_vector("1")}
    now = balances_after(a_story(), BASELINE)
    verdict = judge(a_story(), delivered_webhooks(a_story()), planned=4, baseline=baseline, now=now)
    assert verdict.broken == ("treasury, asset 6: effects add up to total 1, the provider says 0",)


def test_a_balance_that_moved_without_an_event_does_not_add_up() -> None:
    now = {**balances_after(a_story(), BASELINE), ("treasury", "6"): a_vector("1")}
    verdict = judge(a_story(), delivered_webhooks(a_story()), planned=4, baseline=BASELINE, now=now)
    assert verdict.broken == ("treasury, asset 6: effects add up to total 0, the provider says 1",)


def test_a_signature_that_does_not_verify_is_found_and_its_event_does_not_count() -> None:
    heard = delivered_webhooks(a_story())
    heard[3] = Arrival(a_receipt(None), 103.25)
    verdict = judged(heard)
    assert "not verified: no signature matches: signed as v1" in verdict.broken
    assert "not reported: treasury locked.increased 3 LRC, as locked.increased" in verdict.broken
    assert verdict.verified == 3


def test_an_unverified_webhook_does_not_count() -> None:
    heard = delivered_webhooks(a_story())
    heard[3] = Arrival(a_receipt(heard[3].receipt.event, is_verified=False), 103.25)
    verdict = judged(heard)
    assert verdict.broken[0] == "not verified: a webhook that could not be checked"
    assert verdict.verified == 3


def test_a_forged_webhook_besides_the_right_ones_is_found() -> None:
    heard = [*delivered_webhooks(a_story()), Arrival(a_receipt(None), 104)]
    assert judged(heard).broken == ("not verified: no signature matches: signed as v1",)


def test_a_story_without_webhooks_fails() -> None:
    assert judged([], [], planned=4).broken == ("only 0 of 4 changes were made",)


def test_a_story_that_was_cut_short_fails() -> None:
    made = a_story()[:2]
    assert judged(delivered_webhooks(made), made, planned=4).broken == ("only 2 of 4 changes were made",)
