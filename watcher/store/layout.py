"""Which layout the data in Redis have, which one is wanted, which workers are in the way, and which process
moves them.

A layout is the way everything is stored: version 0.1 works in layout 1, this version in layout 2. The data
are in one of them, or are moved from one to the other while no worker works. `wanted` is what people want,
normally the newest one. Refuses to convert anything: `move` does that.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from watcher.store.exceptions import ConfigurationRefused, LayoutAwaited
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import Pipe, load_script
from watcher.store.polls import damage_named
from watcher.store.state import BadState

if TYPE_CHECKING:
    from watcher.store.members import Presence

LAYOUT = 2
"""The layout that this version works in. It moves data from any of LAYOUTS to any other."""

LAYOUTS = (1, LAYOUT)

LEASE_MS = 10_000
"""If a mover has taken no step for so long, another one goes on."""

_SWITCH_LAYOUT = load_script("switch_layout")
_FIELDS = ("schema", "moved", "moving", "turn")
_ANNOUNCED = b"?"


class _Noted(NamedTuple):
    """Fields of meta as they are written; empty: not there."""

    schema: bytes = b""
    moved: bytes = b""
    moving: bytes = b""
    turn: bytes = b""


class Numbers(NamedTuple):
    """The layout that the data are in (`at`), or are moved from and `to`; and the layout that is `wanted`.

    `is_announced`: the move begins in a moment, unless a worker that is in the way is seen. `turn` names the
    last move; later moves have a larger one.
    """

    at: int
    to: int
    wanted: int
    is_announced: bool = False
    turn: int = 0
    noted: _Noted = _Noted()

    @property
    def rests(self) -> bool:
        return self.at == self.to

    @property
    def is_ready(self) -> bool:
        """Whether workers of this version may work."""
        return self.at == self.to == self.wanted == LAYOUT

    @property
    def can_be_read(self) -> bool:
        """Whether what this version reads is everything."""
        return self.at == self.to == LAYOUT

    @property
    def target(self) -> int:
        """The layout that the data are moved to, now or next."""
        return self.wanted if self.rests else self.to


def check_numbers(numbers: Numbers) -> None:
    """Raise LayoutAwaited if workers of this version may not work."""
    if numbers.is_ready:
        return
    see = "see `watcher store layout`"
    if not numbers.rests:
        raise LayoutAwaited(f"Redis is being moved from layout {numbers.at} to {numbers.to}: {see}")
    if numbers.at == LAYOUT:
        raise LayoutAwaited(f"Redis is to be moved back to layout {numbers.wanted}: {see}")
    is_kept = f"Redis is in layout {numbers.at}, that of version 0.1"
    if numbers.wanted == LAYOUT:
        raise LayoutAwaited(f"{is_kept}, and is moved once the last worker of 0.1 has ended: {see}")
    raise LayoutAwaited(f"{is_kept}, and stays there until `watcher store layout --to {LAYOUT}`")


def in_the_way(workers: Iterable["Presence"], to: int, now_ms: int) -> list["Presence"]:
    """Return the workers that must end before the data are moved; those of this version may stand by
    instead."""
    there = [one for one in workers if one.is_there(now_ms)]
    if to == LAYOUT:
        return [one for one in there if LAYOUT not in one.layouts]
    return [one for one in there if LAYOUT in one.layouts and not one.stands_by]


async def read_meta(pipe: Pipe, keys: Keys, *names: str) -> list[bytes | None]:
    """Read fields of meta. Raises ConfigurationRefused if it is not watcher's, and StoreError."""
    try:
        with damage_named():
            found: list[bytes | None] = await pipe.command("HMGET", keys.meta(), *names)
    except BadState:
        raise ConfigurationRefused(
            f"what lies under {keys.meta()} is not watcher's: delete it, and all accounts are enrolled again"
        ) from None
    return found


class Layout:
    """The layout of one namespace. Methods raise StoreError."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def read(self) -> Numbers:
        """Read the numbers. Raises ConfigurationRefused if another version wrote the data."""
        shards, wanted, *fields = await read_meta(self._pipe, self._keys, "shards", "wanted", *_FIELDS)
        noted = _Noted(*(field or b"" for field in fields))
        numbers = self._numbers(noted, shards, 1 if wanted == b"1" else LAYOUT)
        schema = b"%d" % (numbers.at if numbers.rests else LAYOUT)
        if noted.schema not in (b"", schema):
            # A worker of 0.1 that had looked before the switch wrote its own number once more.
            await self._switch(numbers, noted._replace(schema=schema))
        return numbers

    def _numbers(self, noted: _Noted, shards: bytes | None, wanted: int) -> Numbers:
        known = {b"%d" % number: number for number in LAYOUTS}
        if not shards and not noted.schema:
            return Numbers(LAYOUT, LAYOUT, wanted, noted=noted)
        turn = int(noted.turn) if noted.turn.isdigit() else 0
        to = known.get(noted.moving.removesuffix(_ANNOUNCED))
        at = known.get(noted.moved, known.get(noted.schema))
        if (
            shards != b"%d" % SHARDS
            or at is None
            or noted.schema not in known
            or (noted.moving and to is None)
        ):
            raise ConfigurationRefused(
                f"the state under {self._keys.meta()} was laid out by another version of watcher (schema "
                f"{_number(noted.schema)}, {_number(shards)} shards; this one has {LAYOUT}, {SHARDS}): run "
                "that version, or set another redis.namespace to start again"
            )
        if to is None:
            return Numbers(at, at, wanted, turn=turn, noted=noted)
        return Numbers(3 - to, to, wanted, noted.moving.endswith(_ANNOUNCED), turn, noted)

    async def lay_out(self, numbers: Numbers) -> None:
        """Note the layout of a Redis that is new."""
        if not numbers.noted.schema:
            layout = b"%d" % LAYOUT
            await self._switch(numbers, numbers.noted._replace(schema=layout, moved=layout))

    async def want(self, number: int) -> None:
        """Note which layout is wanted: workers of this version stand by, or go on."""
        await self._pipe.command("HSET", self._keys.meta(), "wanted", number)

    async def begin(self, numbers: Numbers, now_ms: int) -> bool:
        """Begin a move to what is wanted, or announce it. Returns whether the numbers were still those.

        A worker of 0.1 that starts from now on is refused; one that has just started is seen in a moment.
        """
        moving = b"%d" % numbers.wanted + (_ANNOUNCED if numbers.wanted == LAYOUT else b"")
        turn = max(numbers.turn + 1, now_ms)
        noted = numbers.noted._replace(schema=b"%d" % LAYOUT, moving=moving, turn=b"%d" % turn)
        return await self._switch(numbers, noted)

    async def begin_now(self, numbers: Numbers) -> bool:
        """Begin a move that was announced."""
        return await self._switch(numbers, numbers.noted._replace(moving=b"%d" % numbers.to))

    async def take_back(self, numbers: Numbers) -> None:
        """Take an announcement back."""
        await self._switch(numbers, numbers.noted._replace(schema=b"%d" % numbers.at, moving=b""))

    async def end(self, numbers: Numbers) -> bool:
        """Note that everything is moved."""
        to = b"%d" % numbers.to
        return await self._switch(numbers, numbers.noted._replace(schema=to, moved=to, moving=b""))

    async def _switch(self, numbers: Numbers, noted: _Noted) -> bool:
        arguments = (SHARDS, *numbers.noted, *noted)
        return bool(await self._pipe.script(_SWITCH_LAYOUT, [self._keys.meta()], *arguments))

    async def holder(self) -> str | None:
        """Return the process that moves the data."""
        name = await self._pipe.command("GET", self._keys.mover())
        return None if name is None else name.decode("utf-8", "replace")

    async def take_lease(self, who: str) -> bool:
        """Take the lease of the mover, or keep it. Returns whether `who` has it.

        Two movers at the same time do no harm, because each step is fenced. The lease keeps them from holding
        each other up.
        """
        key = self._keys.mover()
        if await self._pipe.command("SET", key, who, "NX", "PX", LEASE_MS):
            return True
        if await self.holder() != who:
            return False
        return bool(await self._pipe.command("SET", key, who, "XX", "PX", LEASE_MS))

    async def leave_lease(self, who: str) -> None:
        if await self.holder() == who:
            await self._pipe.command("DEL", self._keys.mover())


def _number(text: bytes | None) -> str:
    return text.decode() if text and text.isdigit() else "unknown"
