"""A script of changes: read and checked completely before anything moves, then played; or random changes.

A script has one JSON object per line. Refuses to guess: what is not exactly a step is a mistake, reported
with its line and what was probably meant.
"""

import difflib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from random import Random
from typing import Any, NamedTuple, get_args

from watcher.printable import printable
from watcher.providers.strict_json import GivenTwice, once_each
from watcher.sandbox.answers import FAULTS
from watcher.sandbox.book import Account, AccountKey, Amount, Holding, Impossible, ListedAsset, ProviderName
from watcher.sandbox.knobs import Knobs
from watcher.sandbox.world import World, default_world

Until = Callable[[float], Awaitable[None]]
"""Returns when so many seconds have passed since the start."""

DEFAULT = "default_script.jsonl"
_EXAMPLE = '{"at": 1.5, "account": 10110, "asset": "LRC", "do": "deposit.seen", "amount": "12.5"}'
_LONGEST = 1000
"""Characters of a mistake: it may repeat a key."""

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


class _Form(NamedTuple):
    """The keys of one kind of step besides `at` and `do`."""

    needs: tuple[str, ...]
    may: tuple[str, ...] = ()


_MOVE = ("account", "asset", "amount")
_SPLIT = ("split", "first")
FORMS: Mapping[str, _Form] = {
    "deposit.seen": _Form(_MOVE),
    "deposit.cleared": _Form(_MOVE, _SPLIT),
    "deposit.dropped": _Form(_MOVE),
    "withdrawal.requested": _Form(_MOVE, (*_SPLIT, "lock")),
    "withdrawal.debited": _Form(_MOVE, _SPLIT),
    "withdrawal.cleared": _Form(_MOVE, _SPLIT),
    "withdrawal.returned": _Form(_MOVE, _SPLIT),
    "lock": _Form(_MOVE),
    "unlock": _Form(_MOVE),
    "credit": _Form(_MOVE),
    "debit": _Form(_MOVE),
    "set": _Form(("account", "asset"), Holding._fields),
    "fault": _Form(("provider", "fault"), ("answers",)),
    "repeat": _Form(()),
}


def _is_whole(value: Any, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


_AMOUNTS = ("amount", *Holding._fields)
_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "answers": (lambda value: _is_whole(value, least=1), "how many answers it spoils, a whole number from 1"),
    "split": (
        lambda value: _is_whole(value, least=0),
        "polls from the first half to the second, a whole number from 0",
    ),
    "first": (
        lambda value: value in ("pending", "total"),
        'the half that shows first, "pending" or "total"',
    ),
    "lock": (lambda value: isinstance(value, bool), "true or false"),
    **dict.fromkeys(
        _AMOUNTS,
        (
            lambda value: isinstance(value, str),
            'text in whole units, such as "12.5"; numbers are not exact',
        ),
    ),
}
"""By key: whether a value is right, and what it must be."""


class ScriptError(Exception):
    """A script cannot be played. The message has a line `source:line: what is wrong` per mistake."""


class _Mistake(Exception):
    """One line is no step."""


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
        """Yield every step to play: without end if the script repeats."""
        yield from self.steps
        start = self.repeat_s
        while self.repeat_s and start:
            yield from (replace(step, at=start + step.at) for step in self.steps)
            start += self.repeat_s


def default_script() -> Script:
    """Read the script of a minute of changes, which repeats for ever."""
    text = files("watcher.sandbox").joinpath(DEFAULT).read_text("utf-8")
    return read_script(text, default_world(), source=DEFAULT)


def read_script(text: str, world: World, *, source: str = "script") -> Script:
    """Read and check a script against the world that it will change, which is left as it is.

    Blank lines and lines that begin with # are skipped. Raises ScriptError with every mistake.
    """
    steps: list[Step] = []
    mistakes: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            steps.append(_step(_said(line), number, world, steps[-1] if steps else None))
        except (Impossible, _Mistake) as error:
            mistakes.append(f"{source}:{number}: {error}")
    if not steps and not mistakes:
        mistakes.append(f"{source}:1: no steps; a step is {_EXAMPLE}")
    repeats = bool(steps) and steps[-1].do == "repeat"
    tried = world.copy()
    for step in [] if mistakes else steps * (2 if repeats else 1):
        if step.account is None:
            continue
        try:
            step.make(tried, {})
            tried.settle(step.account)
        except Impossible as error:
            mistakes.append(f"{source}:{step.line}: {error}")
            break
    if mistakes:
        raise ScriptError("\n".join(printable(mistake, _LONGEST) for mistake in mistakes))
    return Script(source, tuple(steps[:-1] if repeats else steps), steps[-1].at if repeats else None)


def _said(line: str) -> dict[str, Any]:
    """Read one line: an object with a known `do`, the keys that it needs, and no others."""
    try:
        said = json.loads(line, object_pairs_hook=once_each)
    except GivenTwice as error:
        raise _Mistake(f"{error.name}: is given twice") from error
    except (ValueError, RecursionError) as error:
        raise _Mistake(f"not JSON; a step is {_EXAMPLE}") from error
    if not isinstance(said, dict):
        raise _Mistake(f"not a JSON object; a step is {_EXAMPLE}")
    do = said.get("do")
    if not isinstance(do, str) or do not in FORMS:
        raise _Mistake(f"do: not something a script can do{_meant(do, FORMS)}")
    needed = ("at", *FORMS[do].needs)
    known = ("at", "do", *FORMS[do].needs, *FORMS[do].may)
    for key in said:
        if key not in known:
            raise _Mistake(f"{key}: not a key of {do}{_meant(key, known)}")
    for key in needed:
        if key not in said:
            raise _Mistake(f"{key}: missing; {do} needs {', '.join(needed)}")
    return said


def _step(said: dict[str, Any], number: int, world: World, last: Step | None) -> Step:
    """Check every value, also against the step before it and the world. Raises Impossible, too."""
    at, do = said["at"], said["do"]
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < 1e9:
        raise _Mistake("at: seconds since the start, a number that is not negative")
    if last and last.do == "repeat":
        raise _Mistake(f"do: nothing can follow the repeat in line {last.line}")
    if last and at < last.at:
        raise _Mistake(f"at: earlier than line {last.line}; steps stand in order of time")
    if do == "repeat" and not (last and at > 0):
        raise _Mistake("do: repeat needs steps before it, and `at` above 0: how long a round takes")
    if do == "fault":
        if said["provider"] not in get_args(ProviderName):
            raise _Mistake(f"provider: one of {', '.join(get_args(ProviderName))}")
        if not isinstance(said["fault"], str) or said["fault"] not in FAULTS:
            raise _Mistake(f"fault: not a fault that is known{_meant(said['fault'], FAULTS)}")
    account, asset, listed = said.get("account"), said.get("asset", ""), None
    if "account" in said:
        if isinstance(account, bool) or not isinstance(account, int | str):
            raise _Mistake("account: an account id (a number, or text), an email or an address")
        if not isinstance(asset, str):
            raise _Mistake('asset: an id or a symbol, as text ("1" or "LRC")')
        listed = world.asset(world.account(account).provider, asset)
    for key, (is_right, must_be) in _VALUES.items():
        if key in said and not is_right(said[key]):
            raise _Mistake(f"{key}: {must_be}")
        if key in said and listed and key in _AMOUNTS:
            listed.units(said[key])
    if do == "set" and not set(said) & set(Holding._fields):
        raise _Mistake(f"set: needs one or more of {', '.join(Holding._fields)}")
    options = {key: value for key, value in said.items() if key not in ("at", "do", *_MOVE)}
    return Step(float(at), do, account, asset, said.get("amount"), options, number)


def _meant(said: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(said), list(known), 1)
    return f" -- did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


async def play(
    steps: Iterable[Step],
    world: World,
    knobs: Mapping[ProviderName, Knobs],
    *,
    until: Until,
    made: Callable[[Step], None] = lambda step: None,
    source: str = "script",
) -> None:
    """Make each change when it is due, and call `made` with it.

    Raises ScriptError for a change that the world cannot make.
    """
    for step in steps:
        await until(step.at)
        try:
            try:
                step.make(world, knobs)
            except Impossible:
                if step.account is None:
                    raise
                world.settle(step.account)  # it may need a half that waits for a poll that never comes
                step.make(world, knobs)
        except Impossible as error:
            raise ScriptError(f"{source}:{step.line}: {error}") from error
        made(step)


def wander(world: World, random: Random, *, every_s: float = 2) -> Iterator[Step]:
    """Yield a possible step every so many seconds, each chosen when it is due."""
    at = 0.0
    while True:
        at += every_s
        account = random.choice(world.accounts())
        asset = random.choice(world.assets(account.provider))
        do, limit = random.choice(_possible(world, account, asset))
        amount = asset.text(random.randint(1, max(1, limit)))
        options: dict[str, int | str] = {}
        has_halves = do in ("deposit.cleared", "withdrawal.debited", "withdrawal.returned")
        if has_halves and random.random() >= 0.7:
            options = {"split": random.randint(1, 2), "first": random.choice(("pending", "total"))}
        yield Step(at, do, account.key, asset.id, amount, options)


def _possible(world: World, account: Account, asset: ListedAsset) -> list[tuple[str, int]]:
    """List the possible movements, each with the most smallest units that it may have."""
    now, at_last = world.holding(account.key, asset.id), world.holding_at_last(account.key, asset.id)
    holding = Holding(*map(min, now, at_last))
    free = holding.total - holding.locked
    some = max(10, holding.total, 10**asset.decimals) // 10
    choices = [("credit", some), ("debit", free // 4)]
    if account.provider != "metakeep" or asset.lockable:
        choices += [("lock", free // 4), ("unlock", holding.locked)]
    if account.provider != "metakeep":
        opened = "withdrawal.requested" if world.withdrawals == "inside" else "withdrawal.debited"
        choices += [
            ("deposit.seen", some),
            ("deposit.cleared", holding.pending_deposit),
            ("deposit.dropped", holding.pending_deposit // 4),
            (opened, free // 4),
            ("withdrawal.cleared", holding.pending_withdrawal),
            ("withdrawal.returned", holding.pending_withdrawal // 4),
        ]
    return [(do, limit) for do, limit in choices if limit > 0]
