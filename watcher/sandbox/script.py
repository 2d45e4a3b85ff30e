"""A script of changes: steps, when they are due, and the playing of them; or endless changes by chance."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from watcher.sandbox.answers import FAULTS
from watcher.sandbox.book import Account, AccountKey, Amount, Holding, Impossible, ListedAsset, ProviderName
from watcher.sandbox.knobs import Knobs
from watcher.sandbox.world import World

Until = Callable[[float], Awaitable[None]]
"""Comes back when so many seconds have passed since the start."""

MOVEMENTS: Mapping[str, Callable[..., None]] = {
    "deposit.seen": World.deposit_seen,
    "deposit.cleared": World.deposit_cleared,
    "deposit.dropped": World.deposit_dropped,
    "withdrawal.requested": World.withdrawal_requested,
    "withdrawal.debited": World.withdrawal_debited,
    "withdrawal.cleared": World.withdrawal_cleared,
    "withdrawal.returned": World.withdrawal_returned,
    "lock": World.lock,
    "unlock": World.unlock,
    "credit": World.credit,
    "debit": World.debit,
    "set": World.set,
}
"""What a step can do to the world, by its `do`. Besides, `fault` spoils answers and `repeat` starts over."""


class ScriptError(Exception):
    """A script cannot be played. The message has a line `source:line: what is wrong` per mistake."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change. `at` is seconds since the start; `line` is 0 where no file says it."""

    at: float
    do: str
    account: AccountKey | None = None
    asset: str = ""
    amount: Amount | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    line: int = 0

    def make(self, world: World, knobs: Mapping[ProviderName, Knobs]) -> None:
        """Make the change. Raises Impossible, and then nothing has moved."""
        if self.do == "fault":
            fault = FAULTS[self.options["fault"]]
            knobs[self.options["provider"]].next_answers.extend([fault] * self.options.get("answers", 1))
        elif self.account is not None:
            amount = () if self.amount is None else (self.amount,)
            MOVEMENTS[self.do](world, self.account, self.asset, *amount, **self.options)


@dataclass(frozen=True, slots=True)
class Script:
    """Steps in order of time; `repeat_s`, if there is one, is how long a round takes."""

    source: str
    steps: tuple[Step, ...]
    repeat_s: float | None = None

    def __iter__(self) -> Iterator[Step]:
        """Give every step that there is to play: without end, where the script repeats."""
        yield from self.steps
        start = self.repeat_s
        while self.repeat_s and start:
            yield from (replace(step, at=start + step.at) for step in self.steps)
            start += self.repeat_s


async def play(
    steps: Iterable[Step],
    world: World,
    knobs: Mapping[ProviderName, Knobs],
    *,
    until: Until,
    made: Callable[[Step], None] = lambda step: None,
    source: str = "script",
) -> None:
    """Make each change when its time has come, and say so to `made`.

    Raises ScriptError for a change that the world cannot make.
    """
    for step in steps:
        await until(step.at)
        try:
            _make_or_settle(step, world, knobs)
        except Impossible as error:
            raise ScriptError(f"{source}:{step.line}: {error}") from error
        made(step)


def _make_or_settle(step: Step, world: World, knobs: Mapping[ProviderName, Knobs]) -> None:
    """Make the change; where it needs a half that waits for a poll nobody makes, show that half first."""
    try:
        step.make(world, knobs)
    except Impossible:
        if step.account is None:
            raise
        world.settle(step.account)
        step.make(world, knobs)


def wander(world: World, random: Random, *, every_s: float = 2) -> Iterator[Step]:
    """Give a possible step every so many seconds, each chosen when it is asked for."""
    at = 0.0
    while True:
        at += every_s
        account = random.choice(world.accounts())
        asset = random.choice(world.assets(account.provider))
        do, limit = random.choice(_possible(world, account, asset))
        amount = asset.text(random.randint(1, max(1, limit)))
        yield Step(at, do, account.key, asset.id, amount, _options(do, random))


def _possible(world: World, account: Account, asset: ListedAsset) -> list[tuple[str, int]]:
    """Say what can be done, each with the most smallest units that it can be done with."""
    now, at_last = world.holding(account.key, asset.id), world.holding_at_last(account.key, asset.id)
    holding = Holding(*map(min, now, at_last))
    free = holding.total - holding.locked
    some = max(10, holding.total, 10**asset.decimals) // 10
    choices = [("credit", some), ("debit", free // 4)]
    if account.provider == "loopring" or asset.lockable:
        choices += [("lock", free // 4), ("unlock", holding.locked)]
    if account.provider == "loopring":
        choices += _with_pendings(world, holding, some, free)
    return [(do, limit) for do, limit in choices if limit > 0]


def _with_pendings(world: World, holding: Holding, some: int, free: int) -> list[tuple[str, int]]:
    opened = "withdrawal.requested" if world.withdrawals == "inside" else "withdrawal.debited"
    return [
        ("deposit.seen", some),
        ("deposit.cleared", holding.pending_deposit),
        ("deposit.dropped", holding.pending_deposit // 4),
        (opened, free // 4),
        ("withdrawal.cleared", holding.pending_withdrawal),
        ("withdrawal.returned", holding.pending_withdrawal // 4),
    ]


def _options(do: str, random: Random) -> dict[str, int | str]:
    """Split some of the movements that have two halves, either half first."""
    if do not in ("deposit.cleared", "withdrawal.debited", "withdrawal.returned") or random.random() < 0.7:
        return {}
    return {"split": random.randint(1, 2), "first": random.choice(("pending", "total"))}
