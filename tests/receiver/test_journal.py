"""In whatever order events arrive, a receiver's journal takes each once, in order, and reconciles."""

import json
from collections.abc import Mapping
from decimal import Decimal
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.receive import Account, InvalidWebhook, Journal, PullRefused, Taken

ACCOUNTS, ASSETS = ("treasury", "alice"), ("ETH", "LRC")
_FIELDS = ("total", "locked", "available", "pending_deposit", "pending_withdrawal")


def a_balance(total: int) -> dict[str, str | None]:
    return {
        "total": str(total),
        "locked": "0",
        "available": str(total),
        "pending_deposit": None,
        "pending_withdrawal": "0",
    }


class Sender:
    """What the sender holds and logs: `trimmed` events of the log are gone."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []
        self.trimmed = 0
        self.totals = {(account, asset): 0 for account in ACCOUNTS for asset in ASSETS}
        self.sequences = dict.fromkeys(ACCOUNTS, 0)
        self._queued: dict[str, int | None] = dict.fromkeys(ACCOUNTS)
        self._clock = 100

    def move(self, account: str, asset: str, by: int, *, is_queued: bool = True) -> dict[str, Any]:
        self._clock += 1
        before = self.totals[account, asset]
        self.totals[account, asset] = before + by
        self.sequences[account] = self._clock
        event = {
            "id": f"evt_{self._clock}",
            "type": "total.increased",
            "data": {
                "account": {"name": account, "provider": "loopring"},
                "asset": {"id": asset},
                "sequence": self._clock,
                "before": a_balance(before),
                "after": a_balance(before + by),
            },
            "subscription": {"name": "ops", "previous_sequence": self._queued[account]},
        }
        if is_queued:
            self._queued[account] = self._clock
            self.log.append(event)
        return event

    def get(self, path: str) -> tuple[int, bytes]:
        """Answer as the API does, two items at a time."""
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/balances":
            start = int(query.get("after", 0))
            items = [
                {
                    "account": {"name": account},
                    "sequence": self.sequences[account],
                    "balances": [
                        {"asset": {"id": asset}, **a_balance(self.totals[account, asset])} for asset in ASSETS
                    ],
                }
                for account in ACCOUNTS[start : start + 1]
            ]
            more = None if start else "1"
            return 200, json.dumps({"items": items, "next": more, "events": f"c{len(self.log)}"}).encode()
        account, after = query.get("account"), query["after"]
        if after.startswith("c"):
            start = int(after[1:])
        else:
            mine = [i for i, e in enumerate(self.log) if e["data"]["account"]["name"] == account]
            late = [i for i in mine if self.log[i]["data"]["sequence"] > int(after)]
            start = late[0] if late else len(self.log)
        if start < self.trimmed:
            return 410, b"{}"
        found = list[Any]()
        place = start
        while place < len(self.log) and len(found) < 2:
            if account in (None, self.log[place]["data"]["account"]["name"]):
                found.append(self.log[place])
            place += 1
        said = {"items": found, "next": f"c{place}", "more": place < len(self.log)}
        return 200, json.dumps(said).encode()


class Receiver:
    """A receiver and its database, of which the latter outlives it."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.ids: list[str] = []
        self.credited: dict[tuple[str, str], Decimal] = {}
        self.has_lost_events = False
        self.kept = "{}"
        self.journal = Journal(seen=self.ids.__contains__)
        self.journal.catch_up()

    def restart(self) -> None:
        """Begin again with what was kept, but for events that waited."""
        self.journal = Journal(json.loads(self.kept), seen=self.ids.__contains__)
        self.journal.catch_up()

    def record(self, taken: list[Taken]) -> None:
        for one in taken:
            if one.event:
                assert one.event["id"] not in self.ids, "acted upon twice"
                self.ids.append(one.event["id"])
            else:
                self.has_lost_events = True
            if one.asset and one.moved:
                place = one.account, one.asset
                self.credited[place] = self.credited.get(place, Decimal(0)) + one.moved["total"]
        self.kept = json.dumps({**json.loads(self.kept), **self.journal.changes()})

    def pull(self, *, at_most: int = 1000) -> None:
        while at_most and (path := self.journal.ask()):
            self.record(self.journal.answer(*self.sender.get(path)))
            at_most -= 1
        assert at_most < 1000 or not self.journal.missing


def totals(held: Mapping[str, Account]) -> dict[tuple[str, str], int]:
    return {
        (name, asset): int(balance["total"] or 0)
        for name, account in held.items()
        for asset, balance in account.balances.items()
    }


@given(st.integers(0, 2**32), st.integers(20, 120))
def test_despite_losses_repeats_and_delays_each_event_is_taken_once_in_order(seed: int, steps: int) -> None:
    random, sender = Random(seed), Sender()
    receiver = Receiver(sender)
    receiver.pull()
    begun = len(sender.log)
    under_way: list[dict[str, Any]] = []
    trims = random.random() < 0.3
    for _ in range(steps):
        match random.randrange(9):
            case 0 | 1 | 2 | 3:
                event = sender.move(
                    random.choice(ACCOUNTS), random.choice(ASSETS), random.randint(-9, 9) or 1
                )
                under_way += [event] * random.choice((0, 1, 1, 1, 2))
            case 4 | 5 | 6 if under_way:
                place = random.randrange(len(under_way)) if random.random() < 0.3 else 0
                receiver.record(receiver.journal.take(under_way.pop(place)))
            case 7 if random.random() < 0.5:
                receiver.pull(at_most=random.randint(1, 4))
            case 8 if random.random() < 0.3:
                receiver.restart()
            case _ if trims and random.random() < 0.2:
                sender.trimmed = random.randint(sender.trimmed, len(sender.log))
    receiver.pull()
    receiver.journal.catch_up()
    receiver.pull()
    assert receiver.journal.missing == {}
    assert totals(receiver.journal.accounts) == sender.totals
    expected = [event["id"] for event in sender.log[begun:]]
    if not receiver.has_lost_events:
        assert sorted(receiver.ids) == sorted(expected)
    for account in ACCOUNTS:
        mine = [e["id"] for e in sender.log if e["data"]["account"]["name"] == account]
        taken = [event_id for event_id in receiver.ids if event_id in mine]
        assert taken == sorted(taken, key=mine.index)
    credited = {place: int(amount) for place, amount in receiver.credited.items() if amount}
    assert credited == {place: total for place, total in sender.totals.items() if total}, "to the last digit"


def test_an_event_that_came_during_the_last_page_waits_for_the_one_before_it() -> None:
    sender = Sender()
    receiver = Receiver(sender)
    receiver.pull()
    sender.move("treasury", "ETH", 1)
    receiver.record(receiver.journal.take(sender.move("treasury", "ETH", 2)))
    path = receiver.journal.ask()
    assert path == "/events?limit=1000&account=treasury&after=0"
    answered = sender.get(path)
    third, fourth = sender.move("treasury", "ETH", 3), sender.move("treasury", "ETH", 4)
    receiver.record(receiver.journal.take(fourth))
    assert receiver.journal.ask() == path, "it is requested already"
    receiver.record(receiver.journal.answer(*answered))
    assert receiver.journal.missing == {"treasury": 102}
    receiver.record(receiver.journal.take(third))
    assert receiver.ids == [event["id"] for event in sender.log]


def test_an_event_that_is_nowhere_does_not_block_the_others_for_ever() -> None:
    sender = Sender()
    receiver = Receiver(sender)
    receiver.pull()
    sender.move("treasury", "ETH", 1)
    event = sender.move("treasury", "ETH", 2)
    del sender.log[0]
    receiver.record(receiver.journal.take(event))
    assert receiver.ids == []
    receiver.pull()
    assert receiver.ids == [event["id"]]
    assert receiver.credited == {("treasury", "ETH"): 3}, "what was lost is in the balance"


def test_an_event_repeated_under_a_higher_sequence_is_not_taken_again() -> None:
    sender = Sender()
    receiver = Receiver(sender)
    receiver.pull()
    first = sender.move("treasury", "ETH", 1)
    receiver.record(receiver.journal.take(first))
    again = {**first, "data": {**first["data"], "sequence": 150}}
    assert receiver.journal.take(again) == []
    assert receiver.journal.accounts["treasury"].sequence == 150


def test_a_baseline_restarts_the_balances_and_moves_nothing() -> None:
    journal = Journal()
    rows = [{"asset": {"id": "ETH"}, **a_balance(5)}]
    data = {"account": {"name": "treasury"}, "sequence": 7, "balances": rows, "part": 1, "asset": None}
    event = {
        "id": "evt_1",
        "type": "account.baseline",
        "data": data,
        "subscription": {"name": "ops", "previous_sequence": None},
    }
    journal.accounts["treasury"] = Account(3, balances={"LRC": a_balance(1)})
    assert [(one.asset, one.moved) for one in journal.take(event)] == [(None, {})]
    assert journal.accounts["treasury"] == Account(7, is_whole=True, balances={"ETH": a_balance(5)})


def test_an_event_about_no_account_is_taken_at_once() -> None:
    ping = {"id": "evt_1", "type": "subscription.ping", "data": {"account": None, "sequence": 5}}
    assert [one.event for one in Journal().take(ping)] == [ping]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_refused_request_to_the_api_is_repeated(status: int) -> None:
    journal = Journal()
    journal.catch_up()
    assert journal.ask() == "/balances"
    with pytest.raises(PullRefused) as caught:
        journal.answer(status, b"")
    assert caught.value.status == status
    assert journal.ask() == "/balances"


def test_a_page_that_is_no_json_is_refused_and_requested_again() -> None:
    journal = Journal({"": "c1"})
    journal.catch_up()
    assert journal.ask() == "/events?limit=1000&after=c1"
    with pytest.raises(InvalidWebhook):
        journal.answer(200, b"<html>")
    assert journal.ask() == "/events?limit=1000&after=c1"


def test_without_a_gap_nothing_is_requested() -> None:
    journal = Journal()
    assert journal.ask() is None
    journal.take(Sender().move("treasury", "ETH", 1))
    assert journal.ask() is None
