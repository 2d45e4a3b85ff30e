import json
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.provider_staging import a_balance, a_token_list, loopring_account, loopring_settings
from watcher.providers.contract import Rejected
from watcher.providers.loopring import ERROR_CLASS_BY_CODE, Loopring, LoopringAccount
from watcher.providers.strict_json import Ambiguous, Number, parse
from watcher.snapshot import Asset, Balance, Snapshot

OWNER = "0x8656920c85342D646E5286cb841F90209272ABeb"
PROVIDER = Loopring(loopring_settings())
CATALOGUE = {"0": Asset("0", "ETH", "Ethereum", 18), "1": Asset("1", "LRC", "Loopring", 18)}


def read(*rows: Any, account: LoopringAccount | None = None) -> Snapshot:
    return PROVIDER.read(account or loopring_account(), [parse(json.dumps(rows).encode())], CATALOGUE)


def test_amounts_are_read_in_whole_units_of_the_token() -> None:
    row = read(a_balance(1, "8427006149700000000", "1", "500000000000000000", "0")).row_by_asset["1"]
    assert row.balance == Balance("8.4270061497", "0.000000000000000001", "0.5", "0")
    assert row.asset == CATALOGUE["1"]
    assert not row.locked_absent


def test_an_unlisted_token_is_read_in_its_smallest_unit() -> None:
    row = read(a_balance(32768, "12")).row_by_asset["32768"]
    assert (row.asset, row.balance.total) == (Asset("32768"), "12")


def test_only_an_unfiltered_listing_means_that_absent_tokens_are_zero() -> None:
    assert (read().absent_is_zero, read().watched) == (True, None)
    filtered = read(account=loopring_account(tokens=(1, 0)))
    assert (filtered.absent_is_zero, filtered.watched) == (False, ("1", "0"))


def test_a_row_outside_the_filter_is_ignored() -> None:
    for odd in ({"total": None}, {"accountId": None}, {"pending": None}, {"locked": 7}):
        account = loopring_account(tokens=(0,))
        assert read(a_balance(7) | odd, a_balance(0), account=account).row_by_asset.keys() == {"0"}


@pytest.mark.parametrize(
    "odd", [None, {}, a_balance(7) | {"tokenId": None}, a_balance(7) | {"accountId": 10111}]
)
def test_a_row_of_an_unclear_token_or_of_another_account_rejects_the_poll(odd: Any) -> None:
    with pytest.raises(Rejected, match="row 0"):
        read(odd, a_balance(0), account=loopring_account(tokens=(0,)))


def test_a_token_id_may_be_text_and_the_account_id_missing() -> None:
    row = a_balance(0, "5") | {"tokenId": "0"}
    del row["accountId"]
    assert read(row).row_by_asset.keys() == {"0"}


def test_the_same_row_twice_is_one_row() -> None:
    assert len(read(a_balance(0, "5"), a_balance(0, "5")).row_by_asset) == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"tokenId": "00"},
        {"tokenId": "-1"},
        {"tokenId": -1},
        {"tokenId": 2**31},
        {"tokenId": "99999999999"},
        {"tokenId": None},
        {"accountId": 10111},
        {"accountId": None},
        {"accountId": True},
        {"pending": {"deposit": "0"}},
        {"pending": {"withdraw": "0", "deposit": 0}},
        {"pending": "0"},
        {"locked": "-1"},
    ],
    ids=str,
)
def test_an_odd_row_rejects_the_poll(odd: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as raised:
        read(a_balance(1, "5"), a_balance(0) | odd)
    assert raised.value.error_class == "malformed"
    assert "row 1" in raised.value.reason


def test_rows_of_two_accounts_are_rejected_even_if_only_the_address_is_known() -> None:
    account = loopring_account(address=OWNER)
    assert read(a_balance(0), a_balance(1), account=account).row_by_asset.keys() == {"0", "1"}
    with pytest.raises(Rejected, match="another account"):
        read(a_balance(0), a_balance(1) | {"accountId": 10111}, account=account)


def test_an_account_is_asked_for_by_address_or_by_id() -> None:
    (by_address,) = PROVIDER.requests(loopring_account(address=OWNER))
    (by_id,) = PROVIDER.requests(loopring_account(tokens=(0, 70)))
    assert by_address.query == {"address": OWNER}
    assert by_id.query == {"accountId": "10110", "tokens": "0,70"}
    assert PROVIDER.source(loopring_account(address=OWNER)) == PROVIDER.source(
        loopring_account(address=OWNER.lower())
    )


@pytest.mark.parametrize("code", ERROR_CLASS_BY_CODE)
@pytest.mark.parametrize("shape", ["resultInfo", "top"])
def test_a_documented_code_says_what_to_do_in_either_shape(code: int, shape: str) -> None:
    said = {"code": code, "msg": "whatever"}
    refused = PROVIDER.refusal(400, {"resultInfo": said} if shape == "resultInfo" else said)
    assert refused is not None
    assert refused.error_class == ERROR_CLASS_BY_CODE[code][0]
    assert "whatever" not in refused.reason


def test_an_undocumented_code_is_judged_by_the_status_unless_that_is_200() -> None:
    said = {"resultInfo": {"code": 987654, "message": "?"}}
    assert PROVIDER.refusal(400, said) is None
    refused = PROVIDER.refusal(200, said)
    assert refused is not None
    assert refused.error_class == "malformed"


@pytest.mark.parametrize("said", [None, [], "x", {}, {"code": "104002"}, {"code": True}, {"resultInfo": []}])
def test_an_answer_without_a_code_is_judged_by_the_status(said: Any) -> None:
    assert PROVIDER.refusal(400, said) is None


def test_the_scale_of_a_token_is_its_decimals_and_not_its_precision() -> None:
    catalogue = PROVIDER.read_catalogue(a_token_list(0, 3, decimals=6)).asset_by_id
    assert catalogue["3"] == Asset("3", "T3", "Token 3", 6)


NO_DECIMALS = [{"decimals": "18"}, {"decimals": 79}, {"decimals": -1}, {"decimals": True}, {"decimals": None}]


@pytest.mark.parametrize("odd", [*NO_DECIMALS, {"decimals": Number("18.0")}])
def test_an_odd_row_of_the_list_of_tokens_leaves_the_others_readable(odd: dict[str, Any]) -> None:
    listed = PROVIDER.read_catalogue([*a_token_list(0, decimals=18), a_token_list(1)[0] | odd])
    assert ({*listed.asset_by_id}, {*listed.odd}, listed.is_whole) == ({"0"}, {"1"}, True)


def test_a_token_listed_twice_with_other_decimals_is_odd_and_the_others_are_readable() -> None:
    for odd in (6, None):
        rows = [*a_token_list(0, 1, decimals=18), a_token_list(1)[0] | {"decimals": odd}]
        for listed in (PROVIDER.read_catalogue(rows), PROVIDER.read_catalogue(rows[::-1])):
            assert ({*listed.asset_by_id}, {*listed.odd}) == ({"0"}, {"1"})


@pytest.mark.parametrize("odd", [None, 5, "T9", [], {}, {"tokenId": None}, {"tokenId": True}, Ambiguous()])
def test_a_row_without_a_token_id_is_remembered_as_such(odd: Any) -> None:
    listed = PROVIDER.read_catalogue([odd, *a_token_list(0, decimals=18)])
    assert ({*listed.asset_by_id}, listed.is_whole) == ({"0"}, False)


@pytest.mark.parametrize("odd", [{"symbol": None}, {"symbol": 7, "name": []}, {"symbol": "\u202e"}], ids=str)
def test_a_symbol_is_kept_if_valid_and_never_a_reason_to_reject(odd: dict[str, Any]) -> None:
    asset = PROVIDER.read_catalogue([a_token_list(1, decimals=18)[0] | odd]).asset_by_id["1"]
    assert (asset.symbol, asset.decimals) == (None, 18)


@pytest.mark.parametrize("odd", [[], {}, None, [None], [a_token_list(0)[0] | {"decimals": None}]])
def test_an_invalid_list_of_tokens_is_rejected(odd: Any) -> None:
    with pytest.raises(Rejected):
        PROVIDER.read_catalogue(odd)


@pytest.mark.parametrize(
    ("fields", "mistake"),
    [
        ({}, "give either account_id or address"),
        ({"account_id": 1, "address": OWNER}, "give either account_id or address"),
        ({"account_id": -1}, "0 or more|greater than or equal"),
        ({"account_id": 2**31}, "less than or equal"),
        ({"account_id": 1.0}, "must be a whole number"),
        ({"account_id": True}, "must"),
        ({"account_id": "1_0"}, "must be a whole number"),
        ({"address": OWNER[:-1]}, "must be an address"),
        ({"address": OWNER + "\n"}, "must be an address"),
        ({"account_id": 1, "tokens": []}, "at least 1"),
        ({"account_id": 1, "tokens": [0, 0]}, "given twice"),
        ({"account_id": 1, "tokens": [0, True]}, "must be a whole number"),
    ],
    ids=str,
)
def test_a_mistake_in_an_account_is_found(fields: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ValidationError, match=mistake):
        LoopringAccount(name="treasury", provider="loopring", **fields)


def test_an_id_may_come_from_a_variable_as_text() -> None:
    account = LoopringAccount.model_validate({"name": "a", "provider": "loopring", "account_id": "10110"})
    assert account.account_id == 10110
