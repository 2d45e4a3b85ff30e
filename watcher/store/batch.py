"""One Lua script per atomic step, and what callers ask of Redis: several calls become one command."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Script:
    """One atomic operation, `scripts/<name>.lua`."""

    name: str
    text: str
    digest: str


def load_script(name: str) -> Script:
    text = files("watcher.store").joinpath("scripts", f"{name}.lua").read_text("utf-8")
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """A script that takes several steps in a call, and the keys and arguments that these have in common.

    Both come before those of the steps. The answer holds as many values for each step. Steps are joined
    where they name the same Joint, and each a first key of its own; `most` bounds how long a call holds up
    the server.
    """

    script: Script
    keys: tuple[str, ...]
    arguments: tuple[Any, ...] = ()
    most: int = 16


class Joints(dict[tuple[int, str], Joint]):
    """The joints of one script, by shard and by the name of a provider or subscription."""

    def __init__(self, make: Callable[[int, str], Joint]) -> None:
        self._make = make

    def __missing__(self, where: tuple[int, str]) -> Joint:
        joint = self[where] = self._make(*where)
        return joint


class Call:
    """What one caller asks: the keys and arguments of a step where it is of a joint, a command else."""

    __slots__ = ("answer", "arguments", "joint", "keys", "script")

    def __init__(
        self,
        arguments: tuple[Any, ...],
        *,
        script: Script | None = None,
        joint: Joint | None = None,
        keys: tuple[str, ...] = (),
    ) -> None:
        self.arguments = arguments
        self.script = script
        self.joint = joint
        self.keys = keys
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def first_key(self) -> str | None:
        """What says where it is to go: all its keys are in one place."""
        key = self.keys[:1] if self.joint else self.arguments[1:2]
        return key[0] if key else None

    @property
    def all_keys(self) -> tuple[str, ...]:
        if self.joint:
            return (*self.joint.keys, *self.keys)
        count = self.arguments[0] if self.script else 1
        return tuple(map(str, self.arguments[1 : 1 + count]))

    def settle(self, answer: Any) -> None:
        """Give its caller the answer, or the error that came instead."""
        if self.answer.done():
            return  # whoever asked was cancelled meanwhile
        if isinstance(answer, asyncio.CancelledError):
            self.answer.cancel()
        elif isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)

    def again(self) -> "Call":
        """The same, to be answered anew."""
        return Call(self.arguments, script=self.script, joint=self.joint, keys=self.keys)


class Packet:
    """One command as it is sent, and the calls that it answers: several only where they are joined."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls

    def command(self, *, in_full: bool = False) -> tuple[Any, ...]:
        first = self.calls[0]
        script = first.joint.script if first.joint else first.script
        if script is None:
            return first.arguments
        by_name = ("EVAL", script.text) if in_full else ("EVALSHA", script.digest)
        if first.joint is None:
            return (*by_name, *first.arguments)
        keys = [*first.joint.keys, *(key for call in self.calls for key in call.keys)]
        arguments = (argument for call in self.calls for argument in call.arguments)
        return (*by_name, len(keys), *keys, *first.joint.arguments, *arguments)

    def must_part(self, answer: Any) -> bool:
        """Say whether the fault of one step hides the answers of the others."""
        return len(self.calls) > 1 and isinstance(answer, Exception)

    def hand_out(self, answer: Any) -> None:
        """Give each caller what is its part. Who was answered apart meanwhile is left out."""
        if self.must_part(answer):
            return
        if self.calls[0].joint is None or isinstance(answer, Exception):
            self.calls[0].settle(answer)
            return
        size = len(answer) // len(self.calls)
        for i, call in enumerate(self.calls):
            call.settle(answer[i * size : (i + 1) * size])


def packed(calls: Iterable[Call]) -> Iterator[Packet]:
    """Put together what can be one command. A second step at the same key comes after the first."""
    packets: dict[Joint, dict[str, Call]] = {}
    for call in calls:
        if call.joint is None:
            yield Packet([call])
            continue
        call_by_key = packets.setdefault(call.joint, {})
        if call.keys[0] in call_by_key or len(call_by_key) == call.joint.most:
            yield Packet([*call_by_key.values()])
            call_by_key.clear()
        call_by_key[call.keys[0]] = call
    for call_by_key in packets.values():
        yield Packet([*call_by_key.values()])
