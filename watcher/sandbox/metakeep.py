"""MetaKeep's simulator: coin balances, as PROVIDERS, section B, has them."""

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple, NoReturn

from watcher.sandbox.answers import Answer, Call, Declined, Fault, Reply
from watcher.sandbox.book import NOTHING, Account, Holding, ListedAsset
from watcher.sandbox.knobs import MetakeepKnobs, Replicas
from watcher.sandbox.simulator import arrange
from watcher.sandbox.world import World

"""A timestamp further than a minute from the server's time is no good."""


BALANCE = "/v2/app/coin/balance"

HTTP_STATUS = {
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "USER_NOT_FOUND": 404,
    "SOMETHING_WENT_WRONG": 500,
}
"""By status; every other one is a 400 (B4)."""

KEPT_REPLAYS = 1_000


class _Ask(NamedTuple):
    """A request that is well formed. `is_legacy`: the old singular body."""

    currencies: list[str]
    of: Mapping[str, str]
    is_legacy: bool


class Metakeep:
    """Answers as the documentation says. Keys, faults and everything uncertain are knobs."""

    def __init__(
        self, world: World, knobs: MetakeepKnobs, *, random: Random, now_ms: Callable[[], int]
    ) -> None:
        self.knobs = knobs
        self.replicas = Replicas(world)
        self._world = world
        self._random = random
        self._now_ms = now_ms
        self._reply_by_idempotency_key: dict[str, Reply] = {}
        self.endpoints: Mapping[tuple[str, str], Callable[[Call], Reply]] = {("POST", BALANCE): self.balance}

    def fault(self, path: str) -> Fault | None:
        return self.knobs.fault()

    def rate_scope(self, call: Call) -> tuple[str, ...]:
        by_scope = {
            "endpoint": (call.path,),
            "provider": (),
            "key": (call.path, call.headers.get("x-api-key", "")),
            "account": (call.path, _of_text(call.body)),
        }
        return by_scope[self.knobs.rate_scope]

    def balance(self, call: Call) -> Reply:
        """POST /v2/app/coin/balance (B2, B3)."""
        self._check_key(call)
        key = call.headers.get("Idempotency-Key", "")
        if key in self._reply_by_idempotency_key:
            return self._reply_by_idempotency_key[key]
        reply = self._balance(call)
        if key and self.knobs.idempotency_replays and len(self._reply_by_idempotency_key) < KEPT_REPLAYS:
            self._reply_by_idempotency_key[key] = reply
        return reply

    def _balance(self, call: Call) -> Reply:
        if self.knobs.unsupported:
            _decline("UNSUPPORTED_OPERATION")
        ask = self._ask(call.body)
        account = self._account(ask.of)
        rows = [row for currency in ask.currencies for row in self._rows(currency, account)]
        polled = account.key if account else None
        if ask.is_legacy:
            return Reply(Answer.json({"status": self.knobs.status} | (rows[0] if rows else {})), polled)
        rows = arrange(rows, self.knobs.row_order, self._random)
        return Reply(Answer.json({"status": self.knobs.status, "balances": rows}), polled)

    def _check_key(self, call: Call) -> None:
        key = call.headers.get("x-api-key", "")
        if key in self.knobs.forbidden_keys:
            _decline("FORBIDDEN")
        if key not in self.knobs.api_keys or not self._is_signature_good(call):
            _decline("UNAUTHORIZED")

    def _is_signature_good(self, call: Call) -> bool:
        has_one = "X-Api-Signature" in call.headers
        if self.knobs.signatures == "ignored" or (self.knobs.signatures == "checked" and not has_one):
            return True
        from watcher.sandbox.metakeep_signature import is_signed  # needs an optional extra

        return is_signed(call, now_ms=self._now_ms())

    def _ask(self, body: bytes) -> _Ask:
        """Validate the body, or refuse it."""
        asked = _parsed(body)
        of = asked.get("of")
        if not isinstance(of, dict) or not all(isinstance(name, str) and name for name in of.values()):
            _decline("INVALID_REQUEST")
        is_legacy = self.knobs.legacy_body and "coin" in asked and "coins" not in asked
        currencies = [_at(asked, "coin", "currency")] if is_legacy else _at(asked, "coins", "currencies")
        if not isinstance(currencies, list) or not currencies:
            _decline("INVALID_REQUEST")
        if not all(isinstance(currency, str) and currency for currency in currencies):
            _decline("INVALID_REQUEST")
        if self.knobs.max_currencies is not None and len(currencies) > self.knobs.max_currencies:
            _decline("INVALID_REQUEST")
        return _Ask(currencies, of, is_legacy)

    def _account(self, of: Mapping[str, str]) -> Account | None:
        """Find who is meant by email or ethAddress; no other name is known (B2). None holds nothing."""
        if not of or set(of) - {"email", "ethAddress"}:
            _decline("INVALID_REQUEST")
        world = self._world
        found = {
            world.account_of("metakeep", name) if kind == "email" else world.account_at("metakeep", name)
            for kind, name in of.items()
        }
        account = found.pop()
        if found:
            _decline("INVALID_REQUEST")
        if not account and self.knobs.unknown_account != "zero":
            _decline(self.knobs.unknown_account)
        return account

    def _rows(self, currency: str, account: Account | None) -> list[dict[str, Any]]:
        asset = self._world.asset_of("metakeep", currency)
        if not asset:
            return self._unknown_rows(currency)
        holding = self._view(account).get(asset.id, NOTHING)
        if holding.total == 0 and self.knobs.zero == "omitted":
            return []
        row = self._row(currency, asset, holding, account)
        if self.knobs.duplicates == "none":
            return [row]
        more = 1 if self.knobs.duplicates == "different" else 0
        again = self._row(currency, asset, holding.plus(Holding(total=more)), account)
        return [row, again]

    def _unknown_rows(self, currency: str) -> list[dict[str, Any]]:
        if self.knobs.unknown_currency in ("INVALID_REQUEST", "INVALID_CURRENCY"):
            _decline(self.knobs.unknown_currency)
        if self.knobs.unknown_currency == "omitted" or self.knobs.zero == "omitted":
            return []
        return [{"currency": self._cased(currency), "balance": self.knobs.zero, "name": "", "symbol": ""}]

    def _view(self, account: Account | None) -> Mapping[str, Holding]:
        if not account:
            return {}
        knobs = self.knobs
        return self.replicas.view(account.key, stale_polls=knobs.stale_polls, flapping=knobs.flapping)

    def _row(
        self, currency: str, asset: ListedAsset, holding: Holding, account: Account | None
    ) -> dict[str, Any]:
        polls = self.replicas.polls(account.key) if account else 0
        row = {
            "currency": self._cased(currency),
            "balance": self._amount(asset, holding.total, polls),
            "name": "" if self.knobs.blank_names else asset.name,
            "symbol": "" if self.knobs.blank_names else asset.symbol,
        }
        if holding.locked:
            row["locked"] = self._amount(asset, holding.locked, polls)
        elif asset.lockable and self.knobs.zero_locked == "0":
            row["locked"] = "0"
        return row | ({"chain": "sandbox"} if self.knobs.extra_keys else {})

    def _cased(self, currency: str) -> str:
        is_address = currency[:2] in ("0x", "0X")
        if self.knobs.casing == "echo" or not is_address:
            return currency
        return f"0x{currency[2:].lower() if self.knobs.casing == 'lower' else currency[2:].upper()}"

    def _amount(self, asset: ListedAsset, units: int, polls: int) -> str:
        """Write whole coins, with as many needless zeros as the knobs ask for."""
        if units == 0 and self.knobs.zero == "0.0":
            return "0.0"
        text = asset.text(units)
        zeros = ("none", "one")[polls % 2] if self.knobs.zeros == "alternating" else self.knobs.zeros
        whole, _, fraction = text.partition(".")
        if zeros == "none" or not asset.decimals:
            return text
        return f"{whole}.{fraction.ljust(asset.decimals, '0') if zeros == 'full' else fraction + '0'}"


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        _decline("INVALID_REQUEST")
    if not isinstance(asked, dict):
        _decline("INVALID_REQUEST")
    return asked


def _at(asked: dict[str, Any], outer: str, inner: str) -> Any:
    section = asked.get(outer)
    return section.get(inner) if isinstance(section, dict) else None


def _of_text(body: bytes) -> str:
    try:
        return json.dumps(_parsed(body).get("of"))
    except Declined:
        return ""


def _decline(status: str) -> NoReturn:
    raise Declined(Answer.json({"status": status}, HTTP_STATUS.get(status, 400)))
