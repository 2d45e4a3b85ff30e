"""Loopring's layer 2: `GET /api/v3/user/balances`, one request for all tokens of one account.

Amounts come in the token's smallest unit; the list of tokens says where the point is. Refuses to guess:
one odd row of balances rejects the poll, one of the list of tokens rejects the polls that need that token.
Loopring took the service offline on 2026-06-28, so this module is true to its documentation and to clients
that ran against it, not to a live service.
"""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, field_validator

from watcher.amounts import MAX_FRACTION_DIGITS, NotAnAmount, from_integer
from watcher.fields import BaseUrl
from watcher.providers.contract import AssetList, ByRow, Catalogue, ErrorClass, Line, Rejected, Request
from watcher.settings import AccountSettings, KeyedSettings, ProviderSettings
from watcher.snapshot import Asset, Balance, Row, asset_id, spoken

MAX_ID = 2**31 - 1
"""Ids of accounts and tokens are int32 in Loopring's own API description."""

_ADDRESS = re.compile(r"0[xX][0-9a-fA-F]{40}\Z", re.ASCII)
_ID = re.compile(r"(?:0|[1-9][0-9]{0,9})\Z", re.ASCII)

_ID_BY_SYMBOL = {"ETH": 0, "LRC": 1, "USDT": 3, "USDC": 6}
"""Of tokens that never changed them; the list of tokens, which only a worker reads, knows all."""

ERROR_CLASS_BY_CODE: Mapping[int, tuple[ErrorClass, str]] = {
    100000: ("transient", "an unknown error at Loopring"),
    100001: ("configuration", "an invalid argument; seen for a wrong API key too"),
    100002: ("transient", "a time-out at Loopring"),
    100202: ("transient", "an update failed at Loopring"),
    100203: ("transient", "a storage error at Loopring"),
    100204: ("transient", "a duplicate request"),
    100206: ("auth", "an invalid signature"),
    101001: ("configuration", "no account has this address"),
    101002: ("auth", "no such user; also the answer to a wrong API key"),
    102002: ("configuration", "no such token id"),
    102003: ("configuration", "no such account id"),
    104001: ("auth", "the API key is empty"),
    104002: ("auth", "the API key is not valid; it changes with the account's password"),
    104003: ("configuration", "no such account id"),
    104004: ("auth", "a signature is missing"),
    104005: ("auth", "an invalid signature"),
    104007: ("configuration", "an invalid query"),
    104208: ("transient", "an unknown error of the Ethereum node"),
    107001: ("configuration", "the account id is empty"),
}
"""What the codes in `resultInfo` mean to a poll: Loopring's "Error codes" page and the page of each
endpoint; 101002 and 100001 for a wrong key and 104007 are from clients (rotki, LoopringAPI)."""


def _config_id(value: object) -> int:
    """Read an id from the configuration: a number, or text that a variable stood for."""
    if type(value) is not int and not (isinstance(value, str) and _ID.match(value)):
        raise ValueError("must be a whole number, 0 or more")
    return int(value)


Id = Annotated[int, Field(ge=0, le=MAX_ID), BeforeValidator(_config_id)]


class LoopringSettings(KeyedSettings):
    can_be_overdrawn = False

    base_url: BaseUrl = Field("https://api3.loopring.io", description="scheme and host of the API")
    requests_per_second: float = Field(
        4.0, ge=0.001, le=10_000, description="over all workers together; Loopring allows 5"
    )


class LoopringAccount(AccountSettings):
    one_of = ("account_id", "address")

    account_id: Id | None = Field(None, description="Loopring's number of the account")
    address: str | None = Field(None, description="its owner's Ethereum address, instead of the number")
    tokens: tuple[Id, ...] | None = Field(
        None, min_length=1, description="token ids to watch; all of them otherwise"
    )

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        if address is not None and not _ADDRESS.match(address):
            raise ValueError("must be an address, 0x and 40 hexadecimal digits")
        return address

    @field_validator("tokens")
    @classmethod
    def _are_different(cls, tokens: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if tokens and len(set(tokens)) < len(tokens):
            raise ValueError("a token id is given twice")
        return tokens


class Loopring(ByRow):
    """Asks Loopring for one account's balances and reads the answer."""

    Settings: ClassVar[type[ProviderSettings]] = LoopringSettings
    Account: ClassVar[type[AccountSettings]] = LoopringAccount
    unknown_fields: Set[str] = frozenset()
    most_rounds: int = 1

    def __init__(self, settings: LoopringSettings) -> None:
        self._secret_headers = {"X-API-KEY": settings.api_key.get_secret_value()}

    def source(self, account: LoopringAccount) -> str:
        return asset_id(account.address) if account.address else f"accountId {account.account_id}"

    def may_hold(self, account: LoopringAccount, asset: str) -> bool | None:
        if _ADDRESS.match(asset):
            return False
        if account.tokens is None:
            return True
        token = int(asset) if _ID.match(asset) else _ID_BY_SYMBOL.get(asset)
        return None if token is None else token in account.tokens

    def requests(self, account: LoopringAccount, answers: Sequence[Any] = ()) -> Sequence[Request]:
        query = {"address": account.address} if account.address else {"accountId": str(account.account_id)}
        if account.tokens:
            query["tokens"] = ",".join(map(str, account.tokens))
        return (Request("GET", "/api/v3/user/balances", query, self._secret_headers),)

    def watched(self, account: LoopringAccount) -> tuple[str, ...] | None:
        return None if account.tokens is None else tuple(map(str, account.tokens))

    def rows(self, answers: Sequence[Any]) -> Sequence[Any]:
        (answer,) = answers
        # Loopring's reference page shows one bare object where every sample shows a list of them.
        rows = [answer] if isinstance(answer, dict) else answer
        if not isinstance(rows, list):
            raise Rejected("malformed", "not a list of balances")
        return rows

    def read_row(
        self, account: LoopringAccount, said: Any, catalogue: Catalogue, *, watched: Set[str] | None
    ) -> Line:
        if not isinstance(said, dict):
            raise Rejected("malformed", "not an object, or a name twice in it")
        token = _id_in(said.get("tokenId"))
        if token is None:
            raise Rejected("malformed", "tokenId is not an id")
        is_watched = watched is None or token in watched
        owner = None
        if "accountId" in said:  # optional: missing from what was captured in 2021
            owner = _id_in(said["accountId"])
            if owner is None and is_watched:
                raise Rejected("malformed", "accountId is not an id")
            if owner and account.account_id not in (None, int(owner)):
                raise Rejected("malformed", "a balance of another account")
        return _row(said, catalogue.get(token) or Asset(token)) if is_watched else None, owner

    def refusal(self, status: int, answer: Any) -> Rejected | None:
        """Find the error code: in `resultInfo`, or at the top as Loopring's general page shows it."""
        if not isinstance(answer, dict):
            return None
        inner = answer.get("resultInfo")
        code = inner.get("code") if isinstance(inner, dict) else answer.get("code")
        if type(code) is not int or code == 0:
            return None
        if code in ERROR_CLASS_BY_CODE:
            error_class, reason = ERROR_CLASS_BY_CODE[code]
            return Rejected(error_class, f"{reason} ({code})")
        return Rejected("malformed", "an error code that is not documented") if status == 200 else None

    def catalogue_request(self) -> Request:
        return Request("GET", "/api/v3/exchange/tokens")

    def read_catalogue(self, answer: Any) -> AssetList:
        asset_by_id: dict[str, Asset] = {}
        odd: dict[str, str] = {}
        rows = answer if isinstance(answer, list) else []
        tokens = [_id_in(said.get("tokenId")) if isinstance(said, dict) else None for said in rows]
        for token, said in zip(tokens, rows, strict=True):
            if token is None:
                continue
            decimals = said.get("decimals")  # `precision` is for display only
            if type(decimals) is not int or not 0 <= decimals <= MAX_FRACTION_DIGITS:
                odd[token] = "no decimals"
                continue
            asset = Asset(token, spoken(said.get("symbol")), spoken(said.get("name")), decimals)
            if asset_by_id.setdefault(token, asset).decimals != decimals:
                odd[token] = "two rows with other decimals"
        if not asset_by_id:
            raise Rejected("malformed", "not a list of tokens")
        readable = {token: asset for token, asset in asset_by_id.items() if token not in odd}
        return AssetList(readable, odd, is_whole=None not in tokens)


def _row(said: dict[str, Any], asset: Asset) -> Row:
    pending = said.get("pending")
    if not isinstance(pending, dict):
        raise Rejected("malformed", "no pending amounts")
    decimals = asset.decimals or 0
    try:
        balance = Balance(
            from_integer(said.get("total"), decimals),
            from_integer(said.get("locked"), decimals),
            from_integer(pending.get("deposit"), decimals),
            from_integer(pending.get("withdraw"), decimals),
        )
    except NotAnAmount as error:
        raise Rejected("malformed", f"an amount is {error}") from None
    return Row(asset, balance)


def _id_in(said: object) -> str | None:
    """Read an id in its one spelling: a JSON integer, or the same digits in a string. True is not 1."""
    if type(said) is int:
        return str(said) if 0 <= said <= MAX_ID else None
    return said if isinstance(said, str) and _ID.match(said) else None
