"""The one primitive behind both schedules: members fall due, are claimed with a lease, and given back.

Refuses to know what a member is: an account to poll, or a queue to deliver.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Literal, NamedTuple

from watcher.store.errors import DamagedKey
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import Joint, Joints, Pipe, load_script

_CLAIM = load_script("claim")
_MAKE_RETRIES_DUE = load_script("make_retries_due")
_RELEASE = load_script("release")
_TAKE_TURNS = load_script("take_turns")
_INDEX_DUE = load_script("index_due")
_LOOK = load_script("look")

_CLAIMS = 64
"""Claims in one call: of four providers, say, at all shards."""

_TOO_LATE_MS = 5000
"""The client's `socket_timeout`: no worker waits any more for the answer to a claim that arrives so late."""

Kind = Literal["poll", "delivery"]


class Reply(IntEnum):
    """The answer of a fenced script."""

    DONE = 1
    DONE_BEFORE = 0
    MOVED_ON = -1
    LEASE_LOST = -2


DONE = Reply.DONE, Reply.DONE_BEFORE
"""It is written, by this call or by an earlier one whose answer was lost."""

REPLIES = {reply.value: reply for reply in Reply}
"""By what a script answers. `Reply(answer)` costs ten times what a look here does."""


class Lease(NamedTuple):
    """The right to work on one account's poll, or on one queue, until the deadline (server ms)."""

    member: str
    deadline: float


class Claimed(NamedTuple):
    """The result of a claim. `next_due_ms`: in how many ms the next member is due (None: never; negative: it
    has been due for so long)."""

    leases: tuple[Lease, ...]
    next_due_ms: int | None


class Schedule:
    """Claims and releases over one pipe. `now_ms()` is the server's clock."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.now_ms = pipe.now_ms

    async def read_clock(self) -> None:
        """Ask the server for its time."""
        self.pipe.set_clock(await self.pipe.ask_clock())

    def claims(self, keys: Callable[[int, str], tuple[str, ...]]) -> Joints:
        """Return the joints for claims of one kind, which are made at all shards in one call. Claims of polls
        and of queues are separate: a full server accepts only the latter."""
        return Joints(_CLAIM, lambda shard, name: (keys(shard, name), (name,)), most=_CLAIMS)

    async def claim(
        self, joint: Joint, lease_ms: int, at_most: int, *, waited_ms: int = 0, left: Iterable[str] = ()
    ) -> Claimed:
        too_late_ms = self.now_ms() + _TOO_LATE_MS
        now, deadline, next_due, *members = await self.pipe.step(
            joint, (), lease_ms, at_most, too_late_ms, waited_ms, *left
        )
        self.pipe.set_clock(now)
        until = float(deadline) if isinstance(deadline, bytes) else deadline
        leases = tuple(Lease(member.decode("utf-8", "replace"), until) for member in members)
        return Claimed(leases, None if next_due < 0 else next_due - now)

    async def make_due(self, keys: list[str], *arguments: object) -> int:
        """Make members due now that wait for longer than any lease. Returns how many."""
        return int(await self.pipe.script(_MAKE_RETRIES_DUE, keys, *arguments))

    async def take_turns(
        self,
        key: str,
        turns: int,
        *,
        spacing_ms: float,
        not_before_ms: float = 0,
        within_ms: float | None = None,
    ) -> float:
        """Reserve starts of requests over all workers. Returns in how many ms the first one is. If that is
        more than `within_ms`, nothing is reserved."""
        bound = () if within_ms is None else (f"{within_ms:.3f}",)
        arguments = (turns, f"{spacing_ms:.3f}", f"{not_before_ms:.3f}", *bound)
        return float(await self.pipe.script(_TAKE_TURNS, [key], *arguments))

    async def release(self, keys: list[str], lease: Lease, due_in_ms: int, *arguments: object) -> Reply:
        return REPLIES[await self.pipe.script(_RELEASE, keys, *lease, due_in_ms, *arguments)]


class Due(NamedTuple):
    """Work that may be due in a shard, of a provider (`poll`) or of a subscription, and for how long at
    most."""

    kind: Kind
    shard: int
    name: str
    for_s: float


class DueIndex:
    """The indices of one namespace. Methods raise StoreError."""

    def __init__(self, schedule: Schedule, keys: Keys) -> None:
        self._schedule = schedule
        self._pipe = schedule.pipe
        self._keys = keys
        self._places: dict[str, tuple[Kind, int]] = {
            **{keys.due_polls(shard): ("poll", shard) for shard in range(SHARDS)},
            **{keys.due_subscriptions(shard): ("delivery", shard) for shard in range(SHARDS)},
        }

    async def look(self) -> list[list[Due] | BaseException]:
        """Find what may be due, index by index. An index that cannot be read names nothing. On a Cluster, an
        index whose node does not answer is an error."""
        keys, now_ms = [*self._places], self._schedule.now_ms()
        found = await self._pipe.script_over_shards(_LOOK, keys, now_ms)
        if found is None:  # a script could look at one shard only
            commands = [("ZRANGEBYSCORE", key, "-inf", now_ms, "WITHSCORES") for key in keys]
            if self._pipe.is_cluster:
                answers = await self._pipe.batch(commands)
            else:
                asked = (self._pipe.command(*command) for command in commands)
                answers = await asyncio.gather(*asked, return_exceptions=True)
            found = [[] if isinstance(answer, DamagedKey) else answer for answer in answers]
        return [
            pairs
            if isinstance(pairs, BaseException)
            else [
                Due(kind, shard, name.decode("utf-8", "replace"), (now_ms - float(since_ms)) / 1000)
                for name, since_ms in zip(pairs[::2], pairs[1::2], strict=True)
            ]
            for (kind, shard), pairs in zip(self._places.values(), found, strict=True)
        ]

    async def read_clock(self) -> None:
        """Ask the server for its time, by which `look` says what is due."""
        await self._schedule.read_clock()

    async def fix(self, shard: int, providers: Sequence[str]) -> None:
        """Correct the index if a schedule says that a poll is due sooner, whatever wrote it."""
        keys = [self._keys.due_polls(shard), *(self._keys.polls(shard, name) for name in providers)]
        await self._pipe.script(_INDEX_DUE, keys, *providers)
