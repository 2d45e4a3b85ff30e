"""Any answer of a provider is rejected, or can be stored, read back and emitted."""

import gzip
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.support.builders import a_subscription
from tests.support.evm_scenes import evm_account, evm_settings, recorded
from tests.support.fuzzing import damaged, damaged_bytes, fuzz, json_values
from tests.support.provider_staging import (
    BANK_DECLARED,
    a_balance,
    a_bank_page,
    a_token_list,
    declared_account,
    declared_settings,
    loopring_account,
    loopring_settings,
    metakeep_account,
    metakeep_settings,
)
from tests.support.stories import deliveries_of
from watcher.http.wire import Answer
from watcher.journal.account import AccountState, Rules
from watcher.journal.events import load_delivery
from watcher.journal.interest import Interest
from watcher.journal.step import Reading, Step, diff
from watcher.providers import http
from watcher.providers.contract import Provider, Rejected
from watcher.providers.declared import Http
from watcher.providers.evm import Evm
from watcher.providers.loopring import Loopring
from watcher.providers.metakeep import MetaKeep
from watcher.providers.strict_json import NotJson, parse
from watcher.settings import AccountSettings
from watcher.snapshot import Snapshot
from watcher.store.state import dump_state, load_state

NOW_MS = 1_795_175_095_846
COIN = "0x7ceb23fd6bc0add59e62ac25578270cff1b9f619"
TOKENS = a_token_list(0, 1, decimals=18)
LISTED = Loopring(loopring_settings()).read_catalogue(parse(json.dumps(TOKENS).encode())).asset_by_id

PENDING = recorded()["pending"]
BANK = declared_settings(**BANK_DECLARED)
SIGNED = declared_settings(
    ask=[{"path": "/"}], read=[{"total": "total", "locked": "locked", "pending": "pending", "default": "0"}]
)

GOOD: dict[str, tuple[Provider, AccountSettings, Any]] = {
    "evm": (Evm(evm_settings()), evm_account(*PENDING.tokens), PENDING.answers[0]),
    "http": (Http(BANK), declared_account(account="acme"), a_bank_page(None, EUR="1250.5", KWD="70.125")),
    "http, signed": (
        Http(SIGNED),
        declared_account(),
        {"EUR": {"total": "-12.5", "pending": 3}, "JPY": {"total": 300_000, "pending": -7}},
    ),
    "loopring": (
        Loopring(loopring_settings()),
        loopring_account(),
        [a_balance(0, "99476758000000000", "5", "500000000000000000"), a_balance(1, "7", withdraw="3")],
    ),
    "loopring filtered": (
        Loopring(loopring_settings()),
        loopring_account(address="0x" + "aB" * 20, tokens=(0, 7)),
        [a_balance(0, "99476758000000000", "5"), a_balance(7, "1")],
    ),
    "metakeep": (
        MetaKeep(metakeep_settings()),
        metakeep_account(COIN, "So11111111111111111111111111111111111111112"),
        {
            "status": "SUCCESS",
            "balances": [
                {
                    "currency": COIN,
                    "balance": "100041.234567",
                    "locked": "10.12",
                    "symbol": "ZB",
                    "name": "Z",
                },
                {"currency": "So11111111111111111111111111111111111111112", "balance": "0"},
            ],
        },
    ),
}
NAMES = (
    *("accountId", "tokenId", "total", "locked", "pending", "withdraw", "deposit", "decimals", "resultInfo"),
    *("id", "result", "error", "currency", "booked", "held", "incoming", "outgoing", "next_cursor", "EUR"),
    *("status", "balances", "currency", "balance", "name", "symbol", "code"),
)
every_provider = pytest.mark.parametrize("kind", GOOD)


@fuzz(st.binary() | damaged_bytes(json.dumps(GOOD["loopring"][2]).encode()))
def test_any_bytes_are_json_or_refused(answer: bytes) -> None:
    with suppress(NotJson):
        parse(answer)


@fuzz(st.binary() | damaged_bytes(gzip.compress(json.dumps(TOKENS).encode(), mtime=0)))
def test_any_compressed_body_is_whole_or_refused(packed: bytes) -> None:
    answer = Answer(200, ((b"Content-Encoding", b"gzip"),), packed)
    with suppress(Rejected):
        assert len(http.body_of(answer)) <= http.LIMIT


@every_provider
@fuzz(data=st.data())
def test_any_answer_is_rejected_or_becomes_a_state_and_events(kind: str, data: st.DataObject) -> None:
    _, account, good = GOOD[kind]
    state: AccountState | None = None
    for number in range(3):
        said = data.draw(damaged(good, *NAMES) | json_values(*NAMES))
        snapshot = read(kind, json.dumps(said).encode())
        if snapshot is None:
            continue
        reading = Reading(account.name, account.provider, "here", snapshot, NOW_MS + number)
        step = advanced(state, reading)
        state = step.state if step else state


@every_provider
@fuzz(data=st.data())
def test_damaged_bytes_are_rejected_or_read_to_the_digit(kind: str, data: st.DataObject) -> None:
    answer = data.draw(damaged_bytes(json.dumps(GOOD[kind][2]).encode()))
    snapshot = read(kind, answer)
    if snapshot is not None:
        advanced(None, Reading("treasury", "loopring", "here", snapshot, NOW_MS))


@every_provider
@fuzz(json_values(*NAMES), st.integers(100, 599))
def test_any_error_has_a_known_error_class_or_none(kind: str, said: Any, status: int) -> None:
    refused = GOOD[kind][0].refusal(status, said)
    assert refused is None or refused.reason.isprintable()


@fuzz(damaged(TOKENS, *NAMES) | json_values(*NAMES))
def test_any_list_of_assets_is_refused_or_has_units(said: Any) -> None:
    with suppress(Rejected, NotJson):
        listed = GOOD["loopring"][0].read_catalogue(parse(json.dumps(said).encode()))
        assert listed.asset_by_id or listed.odd  # which says why the units of these are unknown
        assert all(0 <= (asset.decimals or 0) <= 78 for asset in listed.asset_by_id.values())


def read(kind: str, answer: bytes) -> Snapshot | None:
    """Read an answer as `ProviderClient` does; None where it is refused."""
    provider, account, _ = GOOD[kind]
    with suppress(Rejected, NotJson):
        parsed = parse(answer)
        if provider.refusal(200, parsed) is None:
            return provider.read(account, [parsed], LISTED if provider.catalogue_request() else {})
    return None


def advanced(state: AccountState | None, reading: Reading) -> Step | None:
    """Claim that a reading makes a state that can be read back, and deliveries that can be sent."""
    step = diff(
        state,
        reading,
        rules=Rules("outside", 1),
        interest=Interest({"ops": a_subscription(events=("*",))}),
        version="v1",
        now_ms=reading.observed_ms,
    )
    if step is None:
        return None
    assert load_state(dump_state(step.state, {}), {}) == step.state
    deliveries = deliveries_of(step)
    assert len(deliveries) == len(step.events)
    for delivery in deliveries:
        assert len(delivery.body) < 20_000
        assert json.loads(delivery.body)["id"] == delivery.event_id
        assert load_delivery(delivery.entry, b"1 " + delivery.stored, "ops") == delivery
    return step
