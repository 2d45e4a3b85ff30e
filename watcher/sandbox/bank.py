"""A bank's simulator: no real API, but like many: balances by currency, in pages, and errors as text.

`kind = "http"` asks it, as `section` says. Refuses to touch a socket: `server` carries requests in and
answers out.
"""

import re
from collections.abc import Callable, Mapping
from random import Random
from typing import NoReturn

from watcher.sandbox.answers import Answer, Call, Declined, Fault, Reply
from watcher.sandbox.book import NOTHING
from watcher.sandbox.knobs import BankKnobs, Replicas
from watcher.sandbox.world import World

BALANCES = "/v1/accounts/{account}/balances"

_STATUS_BY_ERROR = {"unauthorized": 401, "no_such_account": 404, "bad_request": 400}
_AMOUNT = re.compile(rb'"(-?[0-9]+(?:\.[0-9]+)?)"')


def section(url: str) -> str:
    """Write the section of a configuration that polls it, as TOML."""
    return f"""\
[providers.bank]
kind = "http"
base_url = "{url}"
headers = {{ Authorization = "Bearer sandbox" }}
error = "error.code"
error_classes = {{ unauthorized = "auth", no_such_account = "configuration", bad_request = "configuration" }}
absent_is_zero = true

[[providers.bank.ask]]
path = "{BALANCES}"
query = {{ limit = "2" }}
next = {{ cursor = "next_cursor", query = "cursor" }}

[[providers.bank.read]]
rows = "balances"
asset = "currency"
unique = "currency"
name = "name"
total = "booked"
locked = "held"
pending_deposit = "incoming"
pending_withdrawal = "outgoing"
"""


class Bank:
    """Answers like a bank. Keys, faults, pages and spellings are knobs."""

    def __init__(self, world: World, knobs: BankKnobs, *, random: Random) -> None:
        self.knobs = knobs
        self.replicas = Replicas(world, knobs)
        self._world = world
        self._random = random
        self.endpoints: Mapping[tuple[str, str], Callable[[Call], Reply]] = {("GET", BALANCES): self.balances}

    def fault(self, path: str) -> Fault | None:
        return self.knobs.fault()

    def rate_scope(self, call: Call) -> tuple[str, ...]:
        key = call.headers.get("Authorization", "")
        by_scope = {"endpoint": (BALANCES,), "provider": (), "key": (key,), "account": (call.path,)}
        return by_scope[self.knobs.rate_scope]

    def balances(self, call: Call) -> Reply:
        """GET /v1/accounts/{account}/balances?limit=&cursor=: booked totals, the part of them on hold, and
        amounts on their way in and out, each currency once. `next_cursor` is null on the last page."""
        knobs = self.knobs
        scheme, _, key = call.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or key not in knobs.api_keys:
            self._decline("unauthorized", "no valid API key")
        account = self._world.account_of("bank", call.path.split("/")[3])
        if not account:
            self._decline("no_such_account", "there is no such account")
        limit, cursor = call.query.get("limit", "100"), call.query.get("cursor", "after-0")
        start = cursor.removeprefix("after-")
        if not all(text.isascii() and text.isdecimal() and len(text) < 10 for text in (limit, start)):
            self._decline("bad_request", "limit or cursor is not one of ours")
        holdings = self.replicas.view(account.key)
        rows = [
            {
                "currency": asset.id,
                "name": asset.name,
                "booked": asset.text(holding.total),
                "held": asset.text(holding.locked),
                "incoming": asset.text(holding.pending_deposit),
                "outgoing": asset.text(holding.pending_withdrawal),
            }
            for asset in self._world.assets("bank")
            if (holding := holdings.get(asset.id)) and (knobs.zero_rows == "kept" or holding != NOTHING)
        ]
        end = int(start) + min(int(limit) or 1, knobs.longest_page)
        page = knobs.arrange(rows, self._random)[int(start) : end]
        is_last = end >= len(rows)
        answer = Answer.json({"balances": page, "next_cursor": None if is_last else f"after-{end}"})
        if knobs.amounts == "numbers":
            answer = Answer(body=_AMOUNT.sub(rb"\1", answer.body))
        return Reply(answer, account.key if is_last else None)

    def _decline(self, code: str, message: str) -> NoReturn:
        status = 200 if self.knobs.errors_with_200 else _STATUS_BY_ERROR[code]
        raise Declined(Answer.json({"error": {"code": code, "message": message}}, status))
