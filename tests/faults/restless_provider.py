"""A Loopring with many accounts that move at a steady pace, and the truth about all of them.

Refuses to fail: faults of providers have their own tests. Which change comes next is decided by the seed.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from types import TracebackType
from typing import NamedTuple, Self

from aiohttp import web

from watcher.amounts import from_integer

DECIMALS = (18, 6, 0)
"""Of the tokens 0, 1 and 2: every account holds all of them."""

_LARGEST = 10**24
_TICK_S = 0.02


class Slot(NamedTuple):
    """One token of one account: what moves, and what events are about."""

    account: int
    token: int

    @property
    def name(self) -> tuple[str, str]:
        """As events name them: account and asset."""
        return account_name(self.account), str(self.token)


@dataclass
class Holding:
    """In the token's smallest unit, as Loopring has it."""

    total: int = _LARGEST
    locked: int = 1
    pending_deposit: int = 0

    def as_sent(self, token: int) -> dict[str, str]:
        """As an event would say it."""
        amounts = {"total": self.total, "locked": self.locked, "pending_deposit": self.pending_deposit}
        return {name: from_integer(str(amount), DECIMALS[token]) for name, amount in amounts.items()}


@dataclass(eq=False)
class RestlessProvider:
    """Serves while it is entered (`async with`); moves from `run(rate)` until `rest()`."""

    accounts: int
    random: Random
    delay_s: float = 0
    holdings: dict[Slot, Holding] = field(init=False)
    polled_at: dict[str, list[float]] = field(init=False, default_factory=dict)
    """When each account was asked about, in monotonic seconds."""

    changes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        slots = [
            Slot(account, token) for account in range(1, self.accounts + 1) for token in range(len(DECIMALS))
        ]
        self.holdings = {slot: Holding() for slot in slots}
        self._order = self.random.sample(slots, len(slots))
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/api/v3/user/balances", self._balances)
        app.router.add_get("/api/v3/exchange/tokens", self._tokens)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.rest()
        await self._runner.cleanup()

    def run(self, changes_per_second: float) -> None:
        """Move continuously: one slot after the other, none twice before all others were."""
        self._running = asyncio.create_task(self._run(changes_per_second), name="changes")

    async def rest(self) -> None:
        """Move no more."""
        if self._running:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._running = None

    def move_all(self) -> None:
        """Move every slot once."""
        for _ in self._order:
            self.move()

    def move(self) -> None:
        """Make the next change."""
        slot = self._order[self.changes % len(self._order)]
        holding = self.holdings[slot]
        amount = self.random.randint(1, 10**9)
        possible = [movement for movement, is_possible in _MOVEMENTS if is_possible(holding, amount)]
        self.random.choice(possible)(holding, amount)
        self.changes += 1

    def truth(self) -> Mapping[tuple[str, str], Mapping[str, str]]:
        """Say what every account holds, as events say it, by account and asset."""
        return {slot.name: holding.as_sent(slot.token) for slot, holding in self.holdings.items()}

    def longest_gap_s(self, since: float, until: float) -> float:
        """Say how long any account was not asked about, in between two times (monotonic seconds)."""
        gaps = []
        for polls in self.polled_at.values():
            times = [since, *(at for at in polls if since < at < until), until]
            gaps.append(max(after - before for before, after in pairwise(times)))
        return max(gaps)

    def most_polls(self, since: float, until: float) -> int:
        """Say how often the account was asked about that was most often, between two such times."""
        return max(sum(since < at < until for at in polls) for polls in self.polled_at.values())

    async def _run(self, changes_per_second: float) -> None:
        started, made = time.monotonic(), 0
        while True:
            await asyncio.sleep(_TICK_S)
            due = int((time.monotonic() - started) * changes_per_second)
            for _ in range(due - made):
                self.move()
            made = due

    async def _balances(self, request: web.Request) -> web.Response:
        account = int(request.query["accountId"])
        self.polled_at.setdefault(account_name(account), []).append(time.monotonic())
        await asyncio.sleep(self.delay_s)
        rows = [
            {
                "accountId": account,
                "tokenId": token,
                "total": str(holding.total),
                "locked": str(holding.locked),
                "pending": {"deposit": str(holding.pending_deposit), "withdraw": "0"},
            }
            for token in range(len(DECIMALS))
            for holding in [self.holdings[Slot(account, token)]]
        ]
        return web.json_response(rows)

    async def _tokens(self, _request: web.Request) -> web.Response:
        return web.json_response(
            [
                {"type": "ERC20", "tokenId": token, "symbol": f"T{token}", "name": "", "decimals": decimals}
                for token, decimals in enumerate(DECIMALS)
            ]
        )


def account_name(account: int) -> str:
    return f"account-{account}"


def _credit(holding: Holding, amount: int) -> None:
    holding.total += amount


def _debit(holding: Holding, amount: int) -> None:
    holding.total -= amount


def _lock(holding: Holding, amount: int) -> None:
    holding.locked += amount


def _unlock(holding: Holding, amount: int) -> None:
    holding.locked -= amount


def _see_deposit(holding: Holding, amount: int) -> None:
    holding.pending_deposit += amount


def _clear_deposit(holding: Holding, _amount: int) -> None:
    holding.total += holding.pending_deposit
    holding.pending_deposit = 0


_MOVEMENTS: tuple[tuple[Callable[[Holding, int], None], Callable[[Holding, int], bool]], ...] = (
    (_credit, lambda holding, amount: not holding.pending_deposit),
    (_debit, lambda holding, amount: holding.total - holding.locked > amount),
    (_lock, lambda holding, amount: holding.total - holding.locked > amount),
    (_unlock, lambda holding, amount: holding.locked > amount),
    (_see_deposit, lambda holding, amount: not holding.pending_deposit),
    (_clear_deposit, lambda holding, amount: holding.pending_deposit > 0),
)
"""Each changes what is seen, and none is suspect. A credit beside a pending deposit would be pending
confirmation for two polls, which is right and only makes every scenario longer."""
