"""Any bytes found in Redis, as the pure parts read them: damage, or what can be written again."""

import json
from contextlib import suppress
from typing import Any

import orjson
from hypothesis import strategies as st

from tests.support.builders import a_snapshot, a_state, a_subscription
from tests.support.fuzzing import (
    can_be_shown,
    damaged,
    damaged_bytes,
    fuzz,
    json_objects,
    json_values,
    text_objects,
)
from tests.support.replayed import audit
from tests.support.stories import NOW_MS, STORY, WARNED, records_of, steps
from watcher.commands._table import Display, Table
from watcher.commands.deliveries import cells
from watcher.commands.events import _COLUMNS, _cells
from watcher.delivery.resend import Replay
from watcher.engine.breaker import pace_per_s
from watcher.journal.account import Rules
from watcher.journal.events import Origin, load_delivery
from watcher.journal.interest import Interest
from watcher.journal.log import Damaged, Record, read_back
from watcher.journal.step import Reading, diff, go_stale
from watcher.observe.page.document import _event
from watcher.observe.page.look import steps_of
from watcher.observe.views import attempt_line, dead_letter_line
from watcher.store.history import _record
from watcher.store.keys import MOST
from watcher.store.polls import read_failing, read_watch
from watcher.store.queues import Breaker, dump_breaker, load_breaker
from watcher.store.reader import _dead_letter, _tried, sequence_in
from watcher.store.state import BadState, dump_state, load_state

STATE = a_state(LRC="12.5", source="here", version="v1", sequence=9)
STORED_STATE = dump_state(STATE, {})
HEAD, _, BODY = STORED_STATE.partition(b"\n")
SAID = json.loads(BODY)
ENTRY = b"evt_exq2atkfezkrl7uwjqzorlfh 1795175095846 1795175095840"
STORED = b'2 deposit.cleared\n{"id":"evt_exq2atkfezkrl7uwjqzorlfh"'
MADE = steps(STORY, subscriptions=(WARNED,))
RECORDS = records_of(MADE)
LOGGED = f"{MADE[-1].follows} {MADE[-1].events[0].reference}".encode()
EVENT = b"2 " + MADE[-1].events[0].stored
CONTENTS = [record.content for record in RECORDS]
NAMES = ("type", "id", "timestamp", "data", "asset", "assets", "effect", "sequence", "whole", "provider")
ATTEMPT = {
    "at_ms": NOW_MS,
    "account": "treasury",
    "event_id": "evt_1",
    "event_type": "deposit.cleared",
    "attempt": 1,
    "outcome": "retry",
    "status": 500,
    "error": None,
    "duration_ms": 12,
    "answer": "no",
}


@fuzz(damaged(SAID, *SAID[1]).map(json.dumps) | json_values(*SAID[1]).map(json.dumps))
def test_any_body_is_a_usable_state_or_damage(body: str) -> None:
    lives_on(HEAD + b"\n" + body.encode())


@fuzz(damaged_bytes(HEAD) | st.binary(), damaged_bytes(BODY) | st.binary())
def test_any_bytes_are_a_usable_state_or_damage(head: bytes, body: bytes) -> None:
    for text in (head + b"\n" + BODY, HEAD + b"\n" + body, head + body, head, body):
        lives_on(text)


@fuzz(damaged_bytes(ENTRY) | st.binary(), damaged_bytes(STORED) | st.binary())
def test_any_entry_of_a_queue_is_a_delivery_or_damage(entry: bytes, stored: bytes) -> None:
    with suppress(ValueError):
        delivery = load_delivery(entry, STORED, "ops")
        assert delivery.entry == entry
        assert json.loads(delivery.body)["subscription"]["previous_sequence"] == delivery.previous
    with suppress(ValueError):
        delivery = load_delivery(ENTRY, stored, "ops")
        assert stored.endswith(b" " + delivery.stored)
    assert isinstance(sequence_in(entry), int | None)


STORED_BREAKER = dump_breaker(
    Breaker(1795175095846, 1795175095847, "status 500", 5, 6, 1, "0110", 2, "a", 7, 8, 0.5, 9)
)


@fuzz(damaged_bytes(STORED_BREAKER) | st.binary())
def test_any_stored_breaker_is_read(text: bytes) -> None:
    breaker = load_breaker(text)
    if breaker:
        counts = [value for value in breaker if isinstance(value, int)]
        assert all(0 <= count < MOST for count in counts)
        assert pace_per_s(breaker, MOST) >= 0
        assert load_breaker(dump_breaker(breaker)) in (breaker, None)


@fuzz(damaged_bytes(b"3 1795175095846 rate over the rate limit") | st.binary())
def test_any_row_of_failures_is_read(text: bytes) -> None:
    assert read_failing(text).rejections >= 0
    assert read_watch(text) >= 0


@fuzz(damaged_bytes(b"account"), damaged_bytes(b"9 " + orjson.dumps(CONTENTS[0])) | st.binary())
def test_any_stored_entry_of_the_log_is_a_record(account: bytes, entry: bytes) -> None:
    record = _record("1795175095846-0", [b"account", account, b"entry", entry], b"")
    looked_at(record)


@fuzz(
    damaged_bytes(LOGGED) | st.binary(),
    damaged_bytes(b"ops 1795175095840\nalerts -") | st.binary(),
    damaged_bytes(EVENT) | st.binary(),
)
def test_any_event_of_the_log_is_a_record(entry: bytes, queued: bytes, stored: bytes) -> None:
    for logged, heard, body in (
        (entry, b"ops -", EVENT),
        (LOGGED, queued, EVENT),
        (LOGGED, b"ops -", stored),
    ):
        fields = [b"account", b"treasury", b"entry", logged, b"queued", heard]
        record = _record("1795175095846-0", fields, body)
        looked_at(record)
        replayed(record)


@fuzz(st.integers(0, len(RECORDS) - 1), st.data())
def test_no_record_raises_in_a_reader(place: int, data: st.DataObject) -> None:
    content = data.draw(damaged(CONTENTS[place], *NAMES) | json_objects(*NAMES))
    # Where this is right, all that the id does not cover comes through.
    follows = data.draw(st.just(RECORDS[place].follows) | st.integers(-1, 2**64))
    raw = json.dumps(content).encode()[:-1]
    damaged_record = Record("treasury", follows, content, RECORDS[place].id, raw)
    looked_at(damaged_record)
    records = [*RECORDS[:place], damaged_record, *RECORDS[place + 1 :]]
    audit(records, MADE[-1].state)
    replayed(*records)


@fuzz(damaged(ATTEMPT, *ATTEMPT) | json_values(*ATTEMPT))
def test_any_attempt_can_be_shown(said: Any) -> None:
    tried = _tried("1795175095846-0", {b"attempt": json.dumps(said).encode()})
    line = attempt_line("ops", tried, NOW_MS)
    assert all(isinstance(cell, str) for cell in cells(line))
    json.dumps(line)


@fuzz(text_objects("account", "reason", "delivery"), damaged_bytes(STORED) | st.binary())
def test_any_dead_letter_can_be_shown(said: dict[str, str], stored: bytes) -> None:
    fields = {name.encode(errors="replace"): text.encode(errors="replace") for name, text in said.items()}
    letter = _dead_letter(0, "ops", "1795175095846-0", fields, stored)
    assert all(isinstance(cell, str) for cell in cells(dead_letter_line("ops", letter, NOW_MS)))


def lives_on(text: bytes) -> None:
    """Claim that this is damage, or a state that another poll, or going stale, can advance."""
    try:
        state = load_state(text, {})
    except BadState as damage:
        can_be_shown(damage)
        return
    assert load_state(dump_state(state, {}), {}) == state
    interest = Interest({"ops": a_subscription(events=("*",))})
    reading = Reading("treasury", "loopring", state.source, a_snapshot(LRC="1", ETH="2"), NOW_MS)
    diff(state, reading, rules=Rules("outside", 2), interest=interest, version="v2", now_ms=NOW_MS)
    origin = Origin("treasury", "loopring", state.sequence, state.polled_at_ms, NOW_MS)
    go_stale(state, origin, "gone", "no answer", interest=interest, version="v2", now_ms=NOW_MS)


def replayed(*records: Record) -> None:
    """Claim that what a resend makes of the log can wait in a queue, and be sent from there."""
    replay = Replay(a_subscription(events=("*",)))
    for delivery, record in ((replay.take(record), record) for record in records):
        if delivery:
            again = load_delivery(delivery.entry, b"1 " + delivery.stored, "ops")
            assert again.body == delivery.body
            assert again.body.startswith(record.raw)


def looked_at(record: Record) -> None:
    """Do what the commands and the page do with a record."""
    Table(*_COLUMNS, width=80).say([_cells(record, Display(is_local=True))])
    list(steps_of(record))
    if "id" in record.content:
        json.dumps(_event(record))
    with suppress(Damaged):
        read_back(record)
