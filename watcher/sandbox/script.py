"""A script of changes: steps, when they are due, and the playing of them.

Refuses to keep time itself: `play` waits with what it is given. `script_file` reads one.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from watcher.sandbox.answers import FAULTS
from watcher.sandbox.book import AccountKey, ProviderName
from watcher.sandbox.holdings import Amount, Impossible
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
