"""One Lua script per atomic step, `scripts/<name>.lua`, and those of them that take several steps in a call.

Refuses to run them: `pipe` does.
"""

from collections.abc import Callable
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
