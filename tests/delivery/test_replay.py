"""Events that are sent again have the bytes of the first time."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.support.builders import a_balance, a_snapshot, a_subscription
from watcher.delivery.resend import Replay
from watcher.journal.account import AccountState, Rules
from watcher.journal.events import Delivery, Origin
from watcher.journal.interest import Interest
from watcher.journal.log import Record
from watcher.journal.step import Reading, Step, diff, go_stale
from watcher.settings import SubscriptionSettings, ThresholdSettings
from watcher.snapshot import Snapshot

NOW_MS = 1_795_175_095_846
LOW = ThresholdSettings(asset="ETH", below="100")
EVERYTHING = (
    *("deposit.*", "withdrawal.*", "locked.*", "total.*", "account.*"),
    "threshold.crossed",
)

STORY = (
    a_snapshot(ETH="110", LRC="50"),
    a_snapshot(ETH="90", LRC="50"),
    a_snapshot(ETH=a_balance("130", "5"), LRC=a_balance("60", pending_deposit="7")),
    a_snapshot(ETH=a_balance("99", "5"), LRC="67", USDC="3"),
    a_snapshot(ETH=a_balance("101", "5"), LRC="66", USDC="3.5"),
)


class Life:
    """An account that is polled once a minute, and the events that all its subscriptions get meanwhile."""

    def __init__(self, *subscriptions: SubscriptionSettings, account: str = "treasury") -> None:
        self.interest = Interest({each.name: each for each in subscriptions})
        self.account = account
        self.state: AccountState | None = None
        self.now_ms = NOW_MS
        self.log: list[Record] = []
        self.last: dict[str, int] = {}
        self.sent: dict[str, list[Delivery]] = {each.name: [] for each in subscriptions}

    def polled(self, snapshots: Sequence[Snapshot], source: str = "here") -> "Life":
        for snapshot in snapshots:
            self.now_ms += 60_000
            reading = Reading(self.account, "loopring", source, snapshot, self.now_ms)
            rules, version = Rules(), str(self.now_ms)
            step = diff(
                self.state,
                reading,
                rules=rules,
                interest=self.interest,
                version=version,
                now_ms=self.now_ms,
            )
            if step:
                self._keep(step)
        return self

    def silent(self) -> "Life":
        """Go stale: no successful poll for too long."""
        self.now_ms += 600_000
        follows = self.state.sequence if self.state else 0
        origin = Origin(self.account, "loopring", follows, self.now_ms - 1, self.now_ms)
        self._keep(
            go_stale(
                self.state,
                origin,
                "transient",
                "status 502",
                interest=self.interest,
                version=str(self.now_ms),
                now_ms=self.now_ms,
            )
        )
        return self

    def forgotten(self) -> "Life":
        """Be taken off the list: the state goes, the log stays."""
        self.state = None
        self.last.clear()
        return self

    def _keep(self, step: Step) -> None:
        self.state = step.state
        queued: dict[int, list[Delivery]] = {}
        for name, places in step.queued.items():
            for at in places:
                delivery = step.events[at].to(name, self.last.get(name))
                self.last[name] = delivery.sequence
                self.sent[name].append(delivery)
                queued.setdefault(at, []).append(delivery)
        for note in step.notes:
            self._log(step, note, b"", ())
        for at, event in enumerate(step.events):
            if event.is_logged or at in queued:
                self._log(step, event.json, event.json[:-1], queued.get(at, ()))

    def _log(self, step: Step, said: bytes, raw: bytes, queued: Sequence[Delivery]) -> None:
        previous = {each.subscription: each.previous for each in queued}
        record_id = f"{self.now_ms}-{len(self.log)}"
        record = Record(self.account, step.follows, json.loads(said), record_id, raw, previous)
        self.log.append(record)

    def again(self, subscription: SubscriptionSettings) -> list[Delivery]:
        replay = Replay(subscription)
        sent = [replay.take(record) for record in self.log]
        assert replay.damaged == 0
        return [delivery for delivery in sent if delivery]


@pytest.mark.parametrize(
    "subscription",
    [
        a_subscription(),
        a_subscription(events=("deposit.*", "locked.*")),
        a_subscription(assets=("LRC",)),
        a_subscription(events=EVERYTHING, thresholds=(LOW,)),
        a_subscription(thresholds=(LOW,)),
        a_subscription(events=("account.*", "total.*")),
    ],
    ids=["changes", "types", "assets", "everything", "thresholds", "accounts"],
)
def test_replayed_events_have_the_bytes_of_the_originals(subscription: SubscriptionSettings) -> None:
    life = Life(subscription).polled(STORY).silent().polled(STORY[::-1])
    life.polled(STORY[:2], source="elsewhere").silent().polled(STORY[2:3], source="here again")
    life.forgotten().silent().polled(STORY)
    life.forgotten().polled([a_snapshot(ETH="20"), a_snapshot(ETH="10")])
    assert len(life.sent["ops"]) >= 6
    assert life.again(subscription) == life.sent["ops"]


def test_a_crossing_is_replayed_to_the_subscription_of_its_threshold() -> None:
    both = [a_subscription(name, events=EVERYTHING, thresholds=(LOW,)) for name in ("ops", "audit")]
    life = Life(*both).polled(STORY)
    for subscription in both:
        sent = life.again(subscription)
        assert "threshold.crossed" in [delivery.type for delivery in sent]
        assert sent == life.sent[subscription.name]


def test_a_widened_subscription_gets_more_events_and_the_old_ones_byte_for_byte() -> None:
    life = Life(a_subscription(events=("locked.*",))).polled(STORY)
    sent = life.again(a_subscription())
    heard = {delivery.event_id: delivery.body for delivery in life.sent["ops"]}
    news = [delivery for delivery in sent if delivery.event_id not in heard]
    assert len(sent) == len(heard) + len(news)
    assert len(news) > len(heard) > 0
    assert {delivery.event_id: delivery.body for delivery in sent if delivery not in news} == heard
    sequences = (None, *(each.sequence for each in sent[:-1]))
    before = dict(zip((each.event_id for each in sent), sequences, strict=True))
    for delivery in news:
        said = json.loads(delivery.body)["subscription"]
        assert said == {"name": "ops", "previous_sequence": before[delivery.event_id]}


def test_a_new_subscription_gets_a_chain_of_its_own() -> None:
    new = a_subscription("new", assets=("LRC",))
    sent = Life(a_subscription()).polled(STORY).polled(STORY[::-1]).again(new)
    assert len(sent) >= 2
    assert [one.previous for one in sent] == [None, *(one.sequence for one in sent[:-1])]


def test_accounts_outside_the_filter_are_not_replayed() -> None:
    life = Life(a_subscription(), account="shop-1").polled(STORY)
    assert life.again(a_subscription(accounts=("treasury", "other-*"))) == []
    assert life.again(a_subscription(accounts=("shop-*",))) == life.sent["ops"]


def test_the_chains_of_two_accounts_do_not_mix() -> None:
    subscription = a_subscription()
    one, other = (Life(subscription, account=name).polled(STORY) for name in ("treasury", "alice"))
    replay = Replay(subscription)
    mixed = sorted(one.log + other.log, key=lambda record: record.id)
    sent = [delivery for delivery in map(replay.take, mixed) if delivery]
    assert sorted(sent, key=str) == sorted(one.sent["ops"] + other.sent["ops"], key=str)


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"id": "evt_aaaaaaaaaaaaaaaaaaaaaaaa"},
        {"id": "evt 1\n"},
        {"data": None},
        {"timestamp": "yesterday"},
        {"type": "account.stale", "id": "evt_é"},
        {"type": "account.stale", "data": {"sequence": 1}},
        {"type": "account.stale", "data": {"sequence": 1, "asset": {}, "amount": "0"}},
    ],
    ids=str,
)
def test_a_damaged_record_is_skipped_and_counted(damage: dict[str, object]) -> None:
    subscription = a_subscription(events=EVERYTHING)
    life = Life(subscription).polled(STORY)
    at = next(i for i, record in enumerate(life.log) if "before" in record.content.get("data", ()))
    whole = life.log[at]
    life.log[at] = _saying(whole, {**whole.content, **damage} if damage else {})
    replay = Replay(subscription)
    sent = [delivery.event_id for delivery in map(replay.take, life.log) if delivery]
    assert replay.damaged == 1
    assert sent == [d.event_id for d in life.sent["ops"] if d.event_id != whole.content["id"]]


@pytest.mark.parametrize("event_id", ["evt 1\n", "evt_1", "evt_" + "a" * 25])
def test_an_event_with_a_foreign_id_is_skipped_and_counted(event_id: str) -> None:
    subscription = a_subscription(events=EVERYTHING)
    life = Life(subscription).polled(STORY).silent()
    life.log[-1] = _saying(life.log[-1], {**life.log[-1].content, "id": event_id})
    replay = Replay(subscription)
    sent = [delivery.event_id for delivery in map(replay.take, life.log) if delivery]
    assert (replay.damaged, event_id in sent) == (1, False)


@pytest.mark.parametrize("more", [2**70, "\ud800", 1e-7], ids=repr)
def test_unknown_fields_of_a_record_are_replayed_byte_for_byte(more: object) -> None:
    subscription = a_subscription(events=EVERYTHING)
    life = Life(subscription).polled(STORY)
    at = next(i for i, record in enumerate(life.log) if "id" in record.content)
    life.log[at] = _saying(life.log[at], {**life.log[at].content, "more": more})
    sent = life.again(subscription)
    assert len(sent) == len(life.sent["ops"])
    assert [life.log[at].raw in delivery.body for delivery in sent].count(True) == 1


def _saying(record: Record, content: dict[str, Any]) -> Record:
    """A record as it is read where something else is stored of its event."""
    return replace(record, content=content, raw=json.dumps(content).encode()[:-1])
