"""Reads a script: one JSON object per line, checked whole before anything moves.

Refuses to guess: what is not exactly a step is a mistake, told with its line and what was probably meant.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from watcher.printable import printable
from watcher.providers.strict_json import GivenTwice, once_each
from watcher.sandbox.answers import FAULTS
from watcher.sandbox.book import AccountKey, Holding, Impossible, ListedAsset
from watcher.sandbox.script import Script, ScriptError, Step
from watcher.sandbox.world import World

_EXAMPLE = '{"at": 1.5, "account": 10110, "asset": "LRC", "do": "deposit.seen", "amount": "12.5"}'

_LONGEST = 1000
"""Characters of a mistake: it may repeat a key."""


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


class _Mistake(Exception):
    """One line is no step."""


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
            steps.append(_step(line, number, world, after=steps))
        except (Impossible, _Mistake) as error:
            mistakes.append(f"{source}:{number}: {error}")
    if not steps and not mistakes:
        mistakes.append(f"{source}:1: no steps; a step is {_EXAMPLE}")
    mistakes = mistakes or [f"{source}:{mistake}" for mistake in _rehearsed(steps, world)]
    if mistakes:
        raise ScriptError("\n".join(printable(mistake, _LONGEST) for mistake in mistakes))
    repeats = steps[-1].do == "repeat"
    return Script(source, tuple(steps[:-1] if repeats else steps), steps[-1].at if repeats else None)


def _step(line: str, number: int, world: World, *, after: list[Step]) -> Step:
    said = _object(line)
    form = _form(said)
    _check_keys(said, form)
    at = _at(said, after)
    do = said["do"]
    if do == "fault":
        _check_fault(said)
    if "account" not in form.needs:
        return Step(at, do, options=_rest(said, ()), line=number)
    account, asset = _place(said, world)
    _check_options(said)
    _check_amounts(said, world, account, asset)
    return Step(at, do, account, asset, said.get("amount"), _rest(said, _MOVE), number)


def _object(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line, object_pairs_hook=once_each)
    except GivenTwice as error:
        raise _Mistake(f"{error.name}: is given twice") from error
    except (ValueError, RecursionError) as error:
        raise _Mistake(f"not JSON; a step is {_EXAMPLE}") from error
    if not isinstance(said, dict):
        raise _Mistake(f"not a JSON object; a step is {_EXAMPLE}")
    return said


def _form(said: dict[str, Any]) -> _Form:
    do = said.get("do")
    if not isinstance(do, str) or do not in FORMS:
        raise _Mistake(f"do: not something a script can do{_meant(do, FORMS)}")
    return FORMS[do]


def _check_keys(said: dict[str, Any], form: _Form) -> None:
    known = ("at", "do", *form.needs, *form.may)
    for key in said:
        if key not in known:
            raise _Mistake(f"{key}: not a key of {said['do']}{_meant(key, known)}")
    for key in ("at", *form.needs):
        if key not in said:
            raise _Mistake(f"{key}: missing; {said['do']} needs {', '.join(('at', *form.needs))}")


def _at(said: dict[str, Any], after: list[Step]) -> float:
    at, last = said["at"], after[-1] if after else None
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < 1e9:
        raise _Mistake("at: seconds since the start, a number that is not negative")
    if last and last.do == "repeat":
        raise _Mistake(f"do: nothing can follow the repeat in line {last.line}")
    if last and at < last.at:
        raise _Mistake(f"at: earlier than line {last.line}; steps stand in order of time")
    if said["do"] == "repeat" and not (last and at > 0):
        raise _Mistake("do: repeat needs steps before it, and `at` above 0: how long a round takes")
    return float(at)


def _check_fault(said: dict[str, Any]) -> None:
    if said["provider"] not in ("loopring", "metakeep"):
        raise _Mistake('provider: "loopring" or "metakeep"')
    if not isinstance(said["fault"], str) or said["fault"] not in FAULTS:
        raise _Mistake(f"fault: not a fault that is known{_meant(said['fault'], FAULTS)}")
    if not _is_whole(said.get("answers", 1), least=1):
        raise _Mistake("answers: how many answers it spoils, a whole number from 1")


def _place(said: dict[str, Any], world: World) -> tuple[AccountKey, str]:
    account, asset = said["account"], said["asset"]
    if isinstance(account, bool) or not isinstance(account, int | str):
        raise _Mistake("account: an account id (a number), an email or an address")
    if not isinstance(asset, str):
        raise _Mistake('asset: an id or a symbol, as text ("1" or "LRC")')
    world.asset(world.account(account).provider, asset)
    return account, asset


def _check_options(said: dict[str, Any]) -> None:
    if not _is_whole(said.get("split", 0), least=0):
        raise _Mistake("split: polls from the first half to the second, a whole number from 0")
    if said.get("first", "pending") not in ("pending", "total"):
        raise _Mistake('first: the half that shows first, "pending" or "total"')
    if not isinstance(said.get("lock", True), bool):
        raise _Mistake("lock: true or false")


def _check_amounts(said: dict[str, Any], world: World, account: AccountKey, asset: str) -> None:
    listed = world.asset(world.account(account).provider, asset)
    for key in ("amount", *Holding._fields):
        if key in said and not isinstance(said[key], str):
            raise _Mistake(f'{key}: text in whole units, such as "12.5"; numbers are not exact')
        if key in said:
            listed.units(said[key])
    if said["do"] == "set" and not set(said) & set(Holding._fields):
        raise _Mistake(f"set: needs one or more of {', '.join(Holding._fields)}")


def _rehearsed(steps: list[Step], world: World) -> Iterator[str]:
    """Try the steps on a copy of the world, twice over if they repeat, and name the first that cannot be."""
    rehearsal = world.copy()
    rounds = 2 if steps[-1].do == "repeat" else 1
    for step in steps * rounds:
        try:
            if step.account is not None:
                step.make(rehearsal, {})
                rehearsal.settle(step.account)
        except Impossible as error:
            yield f"{step.line}: {error}"
            return


def _rest(said: dict[str, Any], taken: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in said.items() if key not in ("at", "do", *taken)}


def _is_whole(value: Any, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _meant(said: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(said), list(known), 1)
    return f" -- did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


TREASURY = 10110
ALICE = "alice@example.com"

LOOPRING_ASSETS = (
    ListedAsset("0", "ETH", "Ethereum", 18),
    ListedAsset("1", "LRC", "Loopring", 18),
    ListedAsset("3", "USDT", "Tether USD", 6),
    ListedAsset("6", "USDC", "USD Coin", 6),
)
METAKEEP_ASSETS = (
    ListedAsset("0x1456b21890f920110190063921f6bc7f7b027fa6", "MK", "MetaKeep", 18, lockable=True),
    ListedAsset("0x0186b21890f920110190063921f6bc7f7b027fa6", "ZBVS", "VEuBtTAtPu", 6, lockable=True),
    ListedAsset("0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619", "WETH", "Wrapped Ether", 18),
    ListedAsset("0x0000000000000000000000000000000000001010", "POL", "Polygon", 18),
)
SCRIPT = "default_script.jsonl"


def empty_world() -> World:
    """Make a world that lists the usual assets and has no accounts."""
    world = World()
    for asset in LOOPRING_ASSETS:
        world.list_asset("loopring", asset)
    for asset in METAKEEP_ASSETS:
        world.list_asset("metakeep", asset)
    return world


def default_world() -> World:
    """Make a world with the account 10110 at Loopring and alice@example.com at MetaKeep."""
    world = empty_world()
    world.open_account(TREASURY, ETH="2.5", LRC="1000", USDC="5000")
    world.open_account(ALICE, MK="1.12", ZBVS="100041.234567", POL="25")
    world.lock(ALICE, "ZBVS", "10.12")
    return world


def default_script() -> Script:
    """Read the script of a minute of changes, which repeats for ever."""
    text = files("watcher.sandbox").joinpath(SCRIPT).read_text("utf-8")
    return read_script(text, default_world(), source=SCRIPT)
