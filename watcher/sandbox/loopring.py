"""Loopring's simulator: balances, token list, accounts and time, as PROVIDERS, section A, has them.

Refuses to touch a socket: `server` carries requests in and answers out.
"""

from collections.abc import Callable, Mapping
from hashlib import sha256
from random import Random
from typing import Any, NoReturn

from watcher.sandbox.answers import Answer, Call, Declined, Fault, Reply
from watcher.sandbox.book import NOTHING, Account, Holding, ListedAsset
from watcher.sandbox.knobs import LoopringKnobs, Replicas
from watcher.sandbox.world import World

BALANCES = "/api/v3/user/balances"
TOKENS = "/api/v3/exchange/tokens"
ACCOUNT = "/api/v3/account"
TIMESTAMP = "/api/v3/timestamp"

INVALID_ARGUMENT = 100001
EMPTY_KEY = 104001
INVALID_KEY = 104002
INVALID_ACCOUNT = 104003

MESSAGES = {
    100001: "ERR_REST_INVALID_ARGUMENT",
    101001: "ERR_REST_ADDRESS_NOT_FOUND",
    101002: "ERR_REST_USER_NOT_FOUND",
    102002: "ERR_REST_UNSUPPORTED_TOKEN",
    102003: "ERR_REST_INVALID_ACCOUNT_ID",
    104001: "ERR_REST_EMPTY_API_KEY",
    104002: "ERR_REST_INVALID_API_KEY",
    104003: "ERR_REST_ACCOUNT_NOT_EXIST",
}
"""Debugging texts; only 104003's was ever seen in the wild, the others are made up in its style."""


class Loopring:
    """Answers as the relayer did. Keys, faults and everything undocumented are knobs."""

    def __init__(
        self, world: World, knobs: LoopringKnobs, *, random: Random, now_ms: Callable[[], int]
    ) -> None:
        self.knobs = knobs
        self.replicas = Replicas(world, knobs)
        self._world = world
        self._random = random
        self._now_ms = now_ms
        self.endpoints: Mapping[tuple[str, str], Callable[[Call], Reply]] = {
            ("GET", BALANCES): self.balances,
            ("GET", TOKENS): self.tokens,
            ("GET", ACCOUNT): self.account,
            ("GET", TIMESTAMP): self.timestamp,
        }

    def fault(self, path: str) -> Fault | None:
        if path == BALANCES:
            return self.knobs.fault()
        return self.knobs.token_fault() if path == TOKENS else None

    def rate_scope(self, call: Call) -> tuple[str, ...]:
        asked = call.query.get("accountId") or call.query.get("address", "")
        by_scope = {
            "endpoint": (call.path,),
            "provider": (),
            "key": (call.path, call.headers.get("X-API-KEY", "")),
            "account": (call.path, asked),
        }
        return by_scope[self.knobs.rate_scope]

    def balances(self, call: Call) -> Reply:
        """GET /api/v3/user/balances?accountId=&address=&tokens= (A2, A3, A9)."""
        knobs, key = self.knobs, call.headers.get("X-API-KEY", "")
        if not key:
            self._decline(EMPTY_KEY)
        if key not in knobs.api_keys and key not in knobs.account_by_key:
            self._decline(knobs.unknown_key_code)
        owner = call.query.get("address") or (call.query.get("owner", "") if knobs.defi_rows else "")
        account = self._account(call.query.get("accountId", ""), owner)
        if knobs.account_by_key.get(key, account.key) != account.key:
            self._decline(INVALID_KEY)
        wanted = self._assets()
        if tokens := call.query.get("tokens", ""):
            ids = tokens.split(",")
            if not all(one.isascii() and one.isdecimal() for one in ids):
                self._decline(INVALID_ARGUMENT)
            if knobs.unknown_token_code is not None and set(ids) - {asset.id for asset in wanted}:
                self._decline(knobs.unknown_token_code)
            wanted = [asset for asset in wanted if asset.id in ids]
        holdings = self.replicas.view(account.key)
        rows = [
            self._row(account, asset, holdings[asset.id])
            for asset in wanted
            if asset.id in holdings and (knobs.zero_rows == "kept" or holdings[asset.id] != NOTHING)
        ]
        return Reply(Answer.json(knobs.arrange(rows, self._random)), account.key)

    def tokens(self, call: Call) -> Reply:
        """GET /api/v3/exchange/tokens, no key needed (A6)."""
        rows = []
        for asset in self._assets():
            if asset.id in self.knobs.unlisted_tokens:
                continue
            one = 10**asset.decimals
            least, most = str(one // 200), str(1000 * one)
            row = {
                "type": "ETH" if asset.id == "0" else "ERC20",
                "tokenId": int(asset.id),
                "symbol": asset.symbol,
                "name": asset.name,
                "address": _token_address(asset),
                "decimals": asset.decimals,
                "precision": min(asset.decimals, 7),
                "precisionForOrder": 3,
                "orderAmounts": {"minimum": least, "maximum": most, "dust": str(one // 5000)},
                "luckyTokenAmounts": {"minimum": least, "maximum": most, "dust": least},
                "fastWithdrawLimit": str(100 * one),
                "gasAmounts": {"distribution": "85000", "deposit": "100000"},
                "enabled": True,
            }
            rows.append(row)
        return Reply(Answer.json(rows))

    def account(self, call: Call) -> Reply:
        """GET /api/v3/account?owner=&accountId=, no key needed (A7)."""
        account = self._account(call.query.get("accountId", ""), call.query.get("owner", ""))
        is_active = account.key not in self.knobs.inactive_accounts
        seed = f"Sign this message to access Loopring Exchange: {account.address} with key nonce: 0"
        answer = {
            "accountId": account.key,
            "owner": account.address,
            "frozen": False,
            "publicKey": {"x": "0x20ba", "y": "0x266d"} if is_active else {"x": "", "y": ""},
            "tags": "",
            "nonce": 1 if is_active else 0,
            "keyNonce": 1 if is_active else 0,
            "keySeed": seed if is_active else "",
        }
        return Reply(Answer.json(answer))

    def timestamp(self, call: Call) -> Reply:
        """GET /api/v3/timestamp, no key needed (A10)."""
        return Reply(Answer.json({"timestamp": self._now_ms()}))

    def _account(self, account_id: str, address: str) -> Account:
        """Find the requested account; empty values count as absent, two that disagree are an error (A2)."""
        meant = []
        if account_id:
            if not (account_id.isascii() and account_id.isdecimal() and len(account_id) <= 20):
                self._decline(INVALID_ACCOUNT)
            by_id = self._world.account_of("loopring", int(account_id))
            meant.append(by_id or self._decline(self.knobs.unknown_account_code))
        if address:
            by_address = self._world.account_at("loopring", address)
            meant.append(by_address or self._decline(self.knobs.unknown_address_code))
        if not meant:
            self._decline(INVALID_ARGUMENT)
        if meant[0].key != meant[-1].key:
            self._decline(INVALID_ACCOUNT)
        return meant[0]

    def _assets(self) -> list[ListedAsset]:
        return sorted(self._world.assets("loopring"), key=lambda asset: int(asset.id))

    def _row(self, account: Account, asset: ListedAsset, holding: Holding) -> dict[str, Any]:
        if self.knobs.defi_rows:
            return {"address": _token_address(asset), "value": str(holding.total)}
        token_id = asset.id if self.knobs.token_id_as_text else int(asset.id)
        return ({"accountId": account.key} if self.knobs.account_id_in_rows else {}) | {
            "tokenId": token_id,
            "total": str(holding.total),
            "locked": str(holding.locked),
            "pending": {"withdraw": str(holding.pending_withdrawal), "deposit": str(holding.pending_deposit)},
        }

    def _decline(self, code: int) -> NoReturn:
        """Refuse in the shape that the knobs ask for (A4)."""
        message = self.knobs.error_messages.get(code, MESSAGES.get(code, "ERR_REST_UNKNOWN"))
        shapes: dict[str, Any] = {
            "message": {"resultInfo": {"code": code, "message": message}},
            "msg": {"resultInfo": {"code": code, "msg": message}},
            "top-level": {"code": code, "msg": message},
        }
        raise Declined(Answer.json(shapes[self.knobs.error_shape], self.knobs.error_status))


def _token_address(asset: ListedAsset) -> str:
    """Give ETH the zero address (A6), and every other token one that is the same in every run."""
    return f"0x{'0' * 40 if asset.id == '0' else sha256(asset.symbol.encode()).hexdigest()[:40]}"
