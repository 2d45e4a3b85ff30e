"""MetaKeep's simulator: coin balances, as PROVIDERS, section B, has them."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NoReturn

from watcher.sandbox.answers import Answer, Call, Declined, Fault, Reply
from watcher.sandbox.book import NOTHING, Account, Holding, ListedAsset
from watcher.sandbox.knobs import MetakeepKnobs, Replicas
from watcher.sandbox.world import World

BALANCE = "/v2/app/coin/balance"

HTTP_STATUS = {
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "USER_NOT_FOUND": 404,
    "SOMETHING_WENT_WRONG": 500,
}
"""By status; every other one is a 400 (B4)."""

KEPT_REPLAYS = 1_000


SKEW_MS = 60_000
"""A signature's timestamp further than a minute from the server's time is no good (B1)."""


class Metakeep:
    """Answers as the documentation says. Keys, faults and everything undocumented are knobs."""

    def __init__(
        self, world: World, knobs: MetakeepKnobs, *, random: Random, now_ms: Callable[[], int]
    ) -> None:
        self.knobs = knobs
        self.replicas = Replicas(world, knobs)
        self._world = world
        self._random = random
        self._now_ms = now_ms
        self._reply_by_idempotency_key: dict[str, Reply] = {}
        self.endpoints: Mapping[tuple[str, str], Callable[[Call], Reply]] = {("POST", BALANCE): self.balance}

    def fault(self, path: str) -> Fault | None:
        return self.knobs.fault()

    def rate_scope(self, call: Call) -> tuple[str, ...]:
        try:
            asked = json.dumps(_parsed(call.body).get("of"))
        except Declined:
            asked = ""
        by_scope = {
            "endpoint": (call.path,),
            "provider": (),
            "key": (call.path, call.headers.get("x-api-key", "")),
            "account": (call.path, asked),
        }
        return by_scope[self.knobs.rate_scope]

    def balance(self, call: Call) -> Reply:
        """POST /v2/app/coin/balance (B2, B3)."""
        knobs, key = self.knobs, call.headers.get("x-api-key", "")
        if key in knobs.forbidden_keys:
            _decline("FORBIDDEN")
        has_signature = "X-Api-Signature" in call.headers
        is_read = knobs.signatures == "required" or (knobs.signatures == "checked" and has_signature)
        if key not in knobs.api_keys or (is_read and not is_signed(call, now_ms=self._now_ms())):
            _decline("UNAUTHORIZED")
        once = call.headers.get("Idempotency-Key", "")
        if once in self._reply_by_idempotency_key:
            return self._reply_by_idempotency_key[once]
        if knobs.unsupported:
            _decline("UNSUPPORTED_OPERATION")
        of, currencies, is_legacy = self._asked(call.body)
        account = self._account(of)
        rows = [row for currency in currencies for row in self._rows(currency, account)]
        first = rows[0] if rows else {}
        balances = first if is_legacy else {"balances": knobs.arrange(rows, self._random)}
        reply = Reply(Answer.json({"status": knobs.status} | balances), account.key if account else None)
        if once and knobs.idempotency_replays and len(self._reply_by_idempotency_key) < KEPT_REPLAYS:
            self._reply_by_idempotency_key[once] = reply
        return reply

    def _asked(self, body: bytes) -> tuple[Mapping[str, str], list[str], bool]:
        """Read the account and currencies of a request, and whether it has the old form for one of them."""
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
        return of, currencies, is_legacy

    def _account(self, of: Mapping[str, str]) -> Account | None:
        """Find the account by email or ethAddress; no other name is known (B2). None holds nothing."""
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
            if self.knobs.unknown_currency in ("INVALID_REQUEST", "INVALID_CURRENCY"):
                _decline(self.knobs.unknown_currency)
            if self.knobs.unknown_currency == "omitted" or self.knobs.zero == "omitted":
                return []
            zero = {"balance": self.knobs.zero, "name": "", "symbol": ""}
            return [{"currency": self._cased(currency), **zero}]
        view = self.replicas.view(account.key) if account else {}
        holding = view.get(asset.id, NOTHING)
        if holding.total == 0 and self.knobs.zero == "omitted":
            return []
        row = self._row(currency, asset, holding, account)
        if self.knobs.duplicates == "none":
            return [row]
        more = 1 if self.knobs.duplicates == "different" else 0
        again = self._row(currency, asset, holding.plus(Holding(total=more)), account)
        return [row, again]

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


def is_signed(call: Call, *, now_ms: int) -> bool:
    """Say whether X-Api-Signature fits the call and its x-api-key, a compressed P-256 point (B1).

    Needs `cryptography`, which the extra `balance-watcher[ed25519]` installs.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256

    timestamp = call.headers.get("X-Timestamp", "")
    if not (timestamp.isascii() and timestamp.isdecimal() and abs(int(timestamp) - now_ms) <= SKEW_MS):
        return False
    try:
        point = base64.b64decode(call.headers.get("x-api-key", ""), validate=True)
        signature = base64.b64decode(call.headers.get("X-Api-Signature", ""), validate=True)
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        key.verify(encode_dss_signature(r, s), digest(call), ec.ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return len(signature) == 64


def digest(call: Call) -> bytes:
    """Hash the signed text; signing hashes it once more, as the provider's sample does."""
    lines = [call.host, call.method, call.path]
    if "Idempotency-Key" in call.headers:
        lines.append(f"Idempotency-Key:{call.headers['Idempotency-Key']}")
    lines.append(f"X-Timestamp:{call.headers.get('X-Timestamp', '')}")
    return hashlib.sha256("\n".join(lines).encode() + b"\n" + call.body).digest()


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


def _decline(status: str) -> NoReturn:
    raise Declined(Answer.json({"status": status}, HTTP_STATUS.get(status, 400)))
