"""MetaKeep: `POST /v2/app/coin/balance`, which answers only for the currencies that it was asked for.

Amounts come as decimal text in whole coins; there are no pendings; `locked` may be missing. Refuses to
read a currency that is missing as zero, and to send an Idempotency-Key: MetaKeep would repeat its first
answer for ever.
"""

import json
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar

from pydantic import Field, JsonValue, field_validator

from watcher.amounts import NotAnAmount, from_decimal
from watcher.fields import BaseUrl
from watcher.providers.contract import AssetList, ByRow, Catalogue, ErrorClass, Line, Rejected, Request
from watcher.settings import AccountSettings, KeyedSettings, ProviderSettings
from watcher.snapshot import Asset, Balance, Row, asset_id, spoken

_ADDRESS = re.compile(r"0x[0-9a-f]{40}\Z", re.ASCII)
_LONGEST_SYMBOL = 24
"""An address of any chain is longer."""
_CURRENCY = re.compile(r"(?:0[xX][0-9a-fA-F]{40}|(?!0[xX])[!-~]{1,128})\Z", re.ASCII)

ERROR_CLASS_BY_STATUS: Mapping[str, tuple[ErrorClass, str]] = {
    "UNAUTHORIZED": ("auth", "the API key is not valid, or a signature is missing"),
    "INVALID_ACCOUNT_KEY": ("auth", "not an account key"),
    "FORBIDDEN": ("auth", "the API key has no access"),
    "INVALID_REQUEST": ("configuration", "a field is missing, malformed or not supported"),
    "UNSUPPORTED_OPERATION": ("configuration", "not supported on the chain of this app"),
    "INVALID_EMAIL": ("configuration", "not an email address"),
    "INVALID_WALLET_ADDRESS": ("configuration", "not a wallet address"),
    "MISSING_APP_ID": ("configuration", "the app id is missing"),
    "USER_NOT_FOUND": ("configuration", "no such user"),
    "SOMETHING_WENT_WRONG": ("transient", "an unknown error at MetaKeep"),
}
"""What the `status` of an answer means to a poll: MetaKeep's "API error status" page."""


class MetaKeepSettings(KeyedSettings):
    can_be_overdrawn = False

    base_url: BaseUrl = Field("https://api.metakeep.xyz", description="scheme and host of the API")
    requests_per_second: float = Field(
        50.0, ge=0.001, le=10_000, description="over all workers together; MetaKeep allows 100"
    )
    currencies_per_request: int = Field(
        20, ge=1, le=1000, description="longer lists of currencies are asked for in parts"
    )


class MetaKeepAccount(AccountSettings):
    of: dict[str, JsonValue] = Field(
        min_length=1, description='whose balances: `{ email = "…" }` or another form, sent as it is'
    )
    currencies: tuple[str, ...] = Field(
        min_length=1, max_length=1000, description="contract addresses to watch; MetaKeep cannot list all"
    )

    @field_validator("of")
    @classmethod
    def _is_json(cls, of: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            json.dumps(of, allow_nan=False)
        except ValueError:
            raise ValueError("nan and inf cannot be sent") from None
        return of

    @field_validator("currencies")
    @classmethod
    def _are_different_currencies(cls, currencies: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_CURRENCY.match, currencies)):
            raise ValueError("must be addresses, such as 0x and 40 hexadecimal digits")
        if len(set(map(asset_id, currencies))) < len(currencies):
            raise ValueError("an address is given twice")
        return currencies


class MetaKeep(ByRow):
    """Asks MetaKeep for one user's balances, in parts if need be, and reads the answers."""

    Settings: ClassVar[type[ProviderSettings]] = MetaKeepSettings
    Account: ClassVar[type[AccountSettings]] = MetaKeepAccount
    unknown_fields: Set[str] = frozenset(("pending_deposit", "pending_withdrawal"))
    most_rounds: int = 1

    def __init__(self, settings: MetaKeepSettings) -> None:
        self._secret_headers = {"x-api-key": settings.api_key.get_secret_value()}
        self._part = settings.currencies_per_request

    def source(self, account: MetaKeepAccount) -> str:
        return json.dumps(account.of, sort_keys=True)

    def may_hold(self, account: MetaKeepAccount, asset: str) -> bool:
        is_address = _ADDRESS.match(asset_id(asset)) or len(asset) > _LONGEST_SYMBOL
        return not is_address or asset_id(asset) in map(asset_id, account.currencies)

    def requests(self, account: MetaKeepAccount, answers: Sequence[Any] = ()) -> Sequence[Request]:
        starts = range(0, len(account.currencies), self._part)
        parts = [account.currencies[start : start + self._part] for start in starts]
        return [
            Request(
                "POST",
                "/v2/app/coin/balance",
                secret_headers=self._secret_headers,
                json={"coins": {"currencies": [*part]}, "of": account.of},
            )
            for part in parts
        ]

    def watched(self, account: MetaKeepAccount) -> tuple[str, ...]:
        return tuple(map(asset_id, account.currencies))

    def rows(self, answers: Sequence[Any]) -> Sequence[Any]:
        balances: list[Any] = []
        for answer in answers:
            listed = answer.get("balances") if isinstance(answer, dict) else None
            if not isinstance(listed, list):
                raise Rejected("malformed", "no list of balances")
            balances += listed
        return balances

    def read_row(
        self, account: MetaKeepAccount, said: Any, catalogue: Catalogue, *, watched: Set[str] | None
    ) -> Line:
        text = said.get("currency") if isinstance(said, dict) else None
        currency = asset_id(text) if isinstance(text, str) else ""
        if watched is not None and currency in watched:
            return _row(said, currency), None
        if not _ADDRESS.match(currency):
            raise Rejected("malformed", "not a currency")
        return None, None

    def refusal(self, status: int, answer: Any) -> Rejected | None:
        said = answer.get("status") if isinstance(answer, dict) else None
        if isinstance(said, str) and said in ERROR_CLASS_BY_STATUS:
            return Rejected(*ERROR_CLASS_BY_STATUS[said])
        if status == 200 and said != "SUCCESS":
            return Rejected("malformed", "answered 200 without the status SUCCESS")
        return None

    def catalogue_request(self) -> None:
        return None

    def read_catalogue(self, answer: Any) -> AssetList:
        raise Rejected("malformed", "MetaKeep has no list of currencies")


def _row(said: dict[str, Any], currency: str) -> Row:
    try:
        total, locked = from_decimal(said.get("balance")), from_decimal(said.get("locked", "0"))
    except NotAnAmount as error:
        raise Rejected("malformed", f"an amount is {error}") from None
    asset = Asset(currency, spoken(said.get("symbol")), spoken(said.get("name")))
    return Row(asset, Balance(total, locked, None, None), locked_absent="locked" not in said)
