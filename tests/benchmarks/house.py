"""Figures of the code: how finely it is cut, and through how many modules a poll and a delivery pass.

    python -m tests.benchmarks.house

Counts what the source says of itself, then lets a worker poll an account three times on a real server (a
baseline, nothing new, a change that is delivered) and notes which modules each of these passed through.
Figures are places to look, not verdicts: `tests/benchmarks/test_house.py` holds those that were agreed.
"""

import ast
import asyncio
import gc
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from structlog.testing import capture_logs

import watcher
from tests.support.rig import TREASURY, Rig, a_rig
from tests.support.servers import real_server
from watcher.settings import Settings

PACKAGE = Path(watcher.__file__).parent
_ELSEWHERE = ("sandbox", "receiver", "captured", "demo", "commands")
"""What stands in for the world, and what people call: no part of a worker."""


@dataclass
class Source:
    """What the source contains."""

    text_by_module: Mapping[str, str]

    @classmethod
    def read(cls) -> "Source":
        paths = (path for path in PACKAGE.rglob("*.py") if path.stat().st_size)
        return cls({_module(path): path.read_text() for path in paths})

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        return {name: ast.parse(text) for name, text in self.text_by_module.items()}

    @property
    def lines(self) -> int:
        """Lines of code: without blank ones and comments."""
        kept = (line.strip() for text in self.text_by_module.values() for line in text.splitlines())
        return sum(bool(line) and not line.startswith("#") for line in kept)

    @property
    def functions(self) -> int:
        return sum(1 for tree in self.trees.values() for _ in _functions(tree))

    @property
    def used_once(self) -> list[str]:
        """Private functions that one place of their module names."""
        return [
            f"{module}:{function.name}"
            for module, tree in self.trees.items()
            for function in _functions(tree)
            if function.name.startswith("_")
            and not function.name.startswith("__")
            and len(re.findall(rf"\b{function.name}\b", self.text_by_module[module])) == 2
        ]

    @property
    def broad(self) -> list[str]:
        """Where every exception is caught, or suppressed."""
        return [
            f"{module}:{node.lineno}"
            for module, tree in self.trees.items()
            for node in ast.walk(tree)
            if (isinstance(node, ast.ExceptHandler) and (node.type is None or _is_broad(node.type)))
            or (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "suppress"
                and any(map(_is_broad, node.args))
            )
        ]

    @property
    def cycle(self) -> list[str]:
        """Modules that import each other in a circle, lazily or not; what only types need does not count."""
        try:
            TopologicalSorter({name: set(self._imports(name)) for name in self.trees}).prepare()
        except CycleError as found:
            return [str(name) for name in found.args[1]]
        return []

    def _imports(self, name: str) -> Iterator[str]:
        for node in _run(self.trees[name]):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("watcher"):
                module = str(node.module).removeprefix("watcher").lstrip(".")
                for alias in node.names:
                    inner = f"{module}.{alias.name}".lstrip(".")
                    found = inner if inner in self.trees else module
                    if found != name and found in self.trees:
                        yield found


def _is_broad(kind: ast.expr) -> bool:
    return getattr(kind, "id", "") in ("Exception", "BaseException")


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that a type checker alone sees."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"):
            yield node
            yield from _run(node)


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@dataclass
class Trip:
    """The calls that some tasks made in our modules, in order."""

    calls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def modules(self) -> list[str]:
        return list(dict.fromkeys(module for module, _ in self.calls))

    @property
    def moves(self) -> int:
        """From one module into another."""
        modules = [module for module, _ in self.calls]
        return sum(one != other for one, other in pairwise(modules))

    def times(self, module: str, *functions: str) -> int:
        return sum(call in {(module, function) for function in functions} for call in self.calls)


class Tracer:
    """Notes calls by the name of the task that makes them."""

    def __init__(self) -> None:
        self.trip_by_task: dict[str, Trip] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return
        module = _module(Path(frame.f_code.co_filename))
        if module.partition(".")[0] in _ELSEWHERE:
            return
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return
        name = task.get_name() if task else "no task"
        self.trip_by_task.setdefault(name, Trip()).calls.append((module, frame.f_code.co_name))

    def trip(self, *tasks: str) -> Trip:
        """What was called in the tasks whose names begin so."""
        found = (trip for name, trip in self.trip_by_task.items() if name.startswith(tasks))
        return Trip([call for trip in found for call in trip.calls])


@contextmanager
def traced() -> Iterator[Tracer]:
    tracer = Tracer()
    sys.setprofile(tracer)
    try:
        yield tracer
    finally:
        sys.setprofile(None)


async def travel(url: str) -> dict[str, tuple[Trip, Trip]]:
    """Poll one account, with nothing new and with a change. For each: the trip with the loop that claims and
    the pipe to Redis, and the one of the work alone.
    """
    async with a_rig(url, "house") as rig:
        treasury = rig.settings.account_by_name["treasury"]
        slower = treasury.model_copy(update={"interval": timedelta(seconds=1)})
        rig.settings = rig.settings.model_copy(update={"account_by_name": {"treasury": slower}})
        with capture_logs():
            async with rig.worker():
                await _polls(rig, 3)
                with traced() as unchanged:
                    await _polls(rig, 1)
                for number in (
                    1,
                    2,
                ):  # the first opens the connection, the second is what the next are like
                    rig.sandbox.world.lock(TREASURY, "LRC", number)
                    await rig.events(number)
                rig.sandbox.world.lock(TREASURY, "LRC", 3)
                with traced() as changed:
                    await rig.events(3)
                    await _polls(rig, 1)
    return {
        "an unchanged poll": (unchanged.trip("poll", "pipe"), unchanged.trip("poll treasury")),
        "a changed poll": (changed.trip("poll", "pipe"), changed.trip("poll treasury")),
        "a delivery": (changed.trip("delivery", "claim delivery", "pipe"), changed.trip("delivery")),
    }


async def _polls(rig: Rig, more: int) -> None:
    traffic = rig.sandbox.traffic
    enough = traffic.count("/api/v3/user/balances") + more
    while traffic.count("/api/v3/user/balances") < enough:  # noqa: ASYNC110 - the simulator only counts
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # until it is committed


_WARM_POLLS = 20
_PATIENCE_S = 40


async def per_provider(url: str) -> float:
    """How many objects of ours one more provider makes: ten more come by a reload. In a process of its own:
    elsewhere something may be left of other workers."""
    counts = []
    async with a_rig(url, "objects") as rig:
        before = len(rig.settings.provider_by_name)
        with capture_logs() as lines:
            async with rig.worker() as worker, asyncio.timeout(_PATIENCE_S):
                while [line["event"] for line in lines].count("poll.finished") < _WARM_POLLS:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                for more in (2, 12):
                    worker.reload(_with_providers(rig.settings, more))
                    counts.append(await _held(before + more))
    return (counts[1] - counts[0]) / 10


async def _held(providers: int) -> int:
    """How many objects of ours stay: without those that happen to be in hand, and once there are so many
    providers."""
    counts: list[int] = []
    while len(counts) < 5:
        await asyncio.sleep(0.2)
        ours = _ours()
        if ours.count("ProviderPolls") == providers:
            counts.append(len(ours))
    return min(counts)


def _ours() -> list[str]:
    """The classes of all objects of ours."""
    gc.unfreeze()  # what was computed beside the loop is frozen: it is neither collected nor among these
    gc.collect()
    return [type(one).__name__ for one in gc.get_objects() if _is_ours(one)]


def _with_providers(settings: Settings, count: int) -> Settings:
    """So many providers with no account of their own."""
    first = settings.provider_by_name["loopring"]
    more = {f"p{n}": first.model_copy(update={"name": f"p{n}"}) for n in range(count)}
    return settings.model_copy(update={"provider_by_name": {**settings.provider_by_name, **more}})


def _is_ours(thing: Any) -> bool:
    """Settings are not: they are there however the code is cut."""
    kind = type(thing)
    module = getattr(kind, "__module__", "")
    if not isinstance(module, str) or not module.startswith("watcher."):
        return False
    return module.split(".")[1] not in _ELSEWHERE and "Settings" not in kind.__name__


def main() -> None:
    with real_server("valkey") as server:
        objects = asyncio.run(per_provider(server.url))
        if "--objects" in sys.argv:
            print(objects)
            return
        trips = asyncio.run(travel(server.url))
    source = Source.read()
    rows = {
        "modules": len(source.text_by_module),
        "lines of code": source.lines,
        "functions": source.functions,
        "private functions with one use, % of all": round(100 * len(source.used_once) / source.functions, 1),
        "broad excepts": len(source.broad),
        "an import cycle": " -> ".join(source.cycle) or "none",
        **{f"modules passed by {what}": len(whole.modules) for what, (whole, _) in trips.items()},
        **{f"calls in the task of {what}": len(own.calls) for what, (_, own) in trips.items()},
        **{f"moves between modules in the task of {what}": own.moves for what, (_, own) in trips.items()},
        "objects for one provider more": objects,
        **{
            f"{function} in a changed poll of 3 assets": trips["a changed poll"][1].times("amounts", function)
            for function in ("from_integer", "from_decimal", "to_atoms", "to_text")
        },
    }
    for what, figure in rows.items():
        print(f"{what:<55} {figure}")
    if "-v" in sys.argv:
        for what, (whole, own) in trips.items():
            print(what, *whole.modules, sep="\n  ")
            print(*(f"  {count} {call}" for call, count in Counter(own.calls).most_common()), sep="\n")
        print(*source.used_once, *source.broad, sep="\n")


if __name__ == "__main__":
    main()
