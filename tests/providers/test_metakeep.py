import json
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.provider_staging import metakeep_account, metakeep_settings
from watcher.providers.contract import Rejected
from watcher.providers.metakeep import ERROR_CLASS_BY_STATUS, MetaKeep, MetaKeepAccount
from watcher.providers.strict_json import parse
from watcher.snapshot import Balance, Snapshot

MATIC = "0x0000000000000000000000000000000000001010"
WETH = "0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619"
SOLANA = "So11111111111111111111111111111111111111112"
PROVIDER = MetaKeep(metakeep_settings(currencies_per_request=2))


def a_row(currency: str, balance: str = "1", **more: Any) -> dict[str, Any]:
    return {"currency": currency, "balance": balance, "name": "n", "symbol": "s"} | more


def read(*rows: Any, account: MetaKeepAccount | None = None) -> Snapshot:
    answer = json.dumps({"status": "SUCCESS", "balances": rows}).encode()
    return PROVIDER.read(account or metakeep_account(WETH, MATIC), [parse(answer)], {})


def test_pending_fields_are_unknown_and_an_absent_lock_is_zero() -> None:
    row = read(a_row(WETH, "1.50")).row_by_asset[WETH.lower()]
    assert row.balance == Balance("1.5", "0", None, None)
    assert row.locked_absent
    assert not read(a_row(WETH, locked="0")).row_by_asset[WETH.lower()].locked_absent


def test_an_absent_currency_is_unknown_and_not_zero() -> None:
    snapshot = read(a_row(WETH))
    assert snapshot.watched == (WETH.lower(), MATIC)
    assert snapshot.row_by_asset.keys() == {WETH.lower()}
    assert not snapshot.absent_is_zero


def test_a_currency_that_was_not_asked_for_is_ignored() -> None:
    assert read(a_row(WETH), a_row("0x" + "ab" * 20, "x")).row_by_asset.keys() == {WETH.lower()}


def test_a_watched_id_of_another_kind_is_compared_exactly() -> None:
    account = metakeep_account(SOLANA)
    assert read(a_row(SOLANA), account=account).row_by_asset.keys() == {SOLANA}
    with pytest.raises(Rejected, match="not a currency"):
        read(a_row(SOLANA.lower()), account=account)


@pytest.mark.parametrize(
    "odd", [None, "1", [], {"balance": "1"}, a_row(WETH, locked=None), a_row(WETH, locked=0)]
)
def test_an_odd_row_rejects_the_poll(odd: Any) -> None:
    with pytest.raises(Rejected, match="row 1") as raised:
        read(a_row(MATIC), odd)
    assert raised.value.error_class == "malformed"


def test_a_long_list_is_requested_in_parts_and_read_as_one_poll() -> None:
    account = metakeep_account(WETH, MATIC, SOLANA)
    requests = PROVIDER.requests(account)
    assert [request.json["coins"]["currencies"] for request in requests] == [[WETH, MATIC], [SOLANA]]
    answers = [{"status": "SUCCESS", "balances": [a_row(one)]} for one in (WETH, SOLANA)]
    assert PROVIDER.read(account, answers, {}).row_by_asset.keys() == {WETH.lower(), SOLANA}


def test_one_bad_part_rejects_the_whole_poll() -> None:
    answers = [{"status": "SUCCESS", "balances": [a_row(WETH)]}, {"status": "SUCCESS"}]
    with pytest.raises(Rejected):
        PROVIDER.read(metakeep_account(WETH, MATIC, SOLANA), answers, {})


def test_the_identity_of_the_account_is_sent_unchanged() -> None:
    of = {"phone": {"country": "+1", "number": "5550100"}}
    (request,) = PROVIDER.requests(metakeep_account(WETH, of=of))
    assert request.json["of"] == of


@pytest.mark.parametrize("said", ERROR_CLASS_BY_STATUS)
def test_a_documented_status_says_what_to_do(said: str) -> None:
    for status in (200, 400, 500):
        refused = PROVIDER.refusal(status, {"status": said})
        assert refused is not None
        assert refused.error_class == ERROR_CLASS_BY_STATUS[said][0]


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"status": None}, {"status": []}, {"status": "INVALID_CURRENCY"}]
)
def test_an_undocumented_status_is_judged_by_http_unless_that_is_200(answer: Any) -> None:
    assert PROVIDER.refusal(404, answer) is None
    refused = PROVIDER.refusal(200, answer)
    assert refused is not None
    assert refused.error_class == "malformed"


@pytest.mark.parametrize(
    ("fields", "mistake"),
    [
        ({"of": {}}, "at least 1"),
        ({"of": "alice@example.com"}, "dictionary"),
        ({"of": {"x": float("nan")}}, "cannot be sent|finite"),
        ({"currencies": []}, "at least 1"),
        ({"currencies": [WETH[:-1]]}, "must be addresses"),
        ({"currencies": [WETH + "\n"]}, "must be addresses"),
        ({"currencies": [""]}, "must be addresses"),
        ({"currencies": [WETH, WETH.lower()]}, "given twice"),
        ({"currencies": [WETH, "0X" + WETH[2:]]}, "given twice"),
    ],
    ids=str,
)
def test_a_mistake_in_an_account_is_found(fields: dict[str, Any], mistake: str) -> None:
    right: dict[str, Any] = {"of": {"email": "alice@example.com"}, "currencies": [WETH]}
    with pytest.raises(ValidationError, match=mistake):
        MetaKeepAccount(name="alice", provider="shop", **(right | fields))
