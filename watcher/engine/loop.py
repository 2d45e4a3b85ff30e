"""Runs what falls due: looks, claims where there is capacity, works, and goes on until it is stopped.

This is the one loop for polls and deliveries. Unplanned exceptions end here: each is logged as a bug, and
costs the piece of work that it came from.
"""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from watcher.engine.dispatch import AT_ONCE, Capacity, Claim, Dispatch, Key, Kind
from watcher.observe.log import log
from watcher.pause import pause
from watcher.store.exceptions import StoreError
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS
from watcher.store.schedule import DueIndex, Lease

LOOK_S = 0.05
"""Between two looks: how late work may start that another worker made due, or did not get to."""

FIX_S = 2.0
"""How often the index is compared with the schedules of polls: an operator may have deleted it."""

DAMAGED_S = 30.0
"""How long before a damaged key in Redis is read again: an operator may have fixed it."""

_TURN_S = 0.5
"""How often a loop with nothing to do still turns, to show that it lives."""

T = TypeVar("T")
T2 = TypeVar("T2")


class Claimed(NamedTuple):
    """The result of a claim at a shard. `next_due_s`: in how many seconds more is due there (negative: it is
    due now; None: the index will say). `block_s`: claim nothing there for so long."""

    leases: Sequence[Lease]
    next_due_s: float | None = None
    block_s: float = 0.0


Piece: TypeAlias = tuple[Key, int, Lease, Coroutine[Any, Any, bool]]
"""Work that is leased: of which key, at which shard, the lease, and what does it."""


class Work(Protocol):
    """What falls due: the polls of all providers, or the deliveries of all subscriptions. Methods raise
    StoreError.

    A claimed lease is given to `begin`, whose coroutines do the work; each returns whether more is due at its
    shard.
    """

    breath_s: float

    def takes(self, name: str) -> bool:
        """Say whether this worker may claim what is due under a name."""
        ...

    async def capacity(self, name: str, in_flight: int, in_flight_of_all: int) -> Capacity:
        """Return how much more a name can bear."""
        ...

    def spare(self, name: str, in_flight: int, in_flight_of_all: int) -> int:
        """Return how much more of a name may start without asking anything first."""
        ...

    async def claim(self, name: str, claim: Claim) -> Claimed: ...

    async def begin(self, name: str, leases: Sequence[Lease]) -> Sequence[Coroutine[Any, Any, bool]]:
        """Prepare the work on what was claimed, which may be nothing."""
        ...

    async def hold(self, shard: int, for_s: Mapping[str, float]) -> None:
        """Take these out of the index for a while: there is no capacity for them."""
        ...


async def _is_known() -> bool:
    """Say that nothing is unknown: there is no directory."""
    return True


@dataclass(slots=True)
class Neighbours:
    """What other workers of the namespace have; `run.agreement` keeps it up to date.

    `is_alone`: all of them run this configuration, so a name that it lacks is at no worker. `workers`: how
    many there are, with this one. The other workers deliver for the subscriptions that are `inactive` here,
    and poll the accounts that are `left`. Accounts that are `contested` are, or recently were, elsewhere
    under the same name at another worker; `may_poll(account, source, state_source)` says whether this worker,
    which polls `source`, may go on from a state that was read at `state_source`. `locked_accounts` and
    `locked_subscriptions` are records of the directory that this worker cannot decrypt, and leaves to workers
    that can. A name that is unknown may have been added just now: `look_again` reads it, or says that this is
    under way.
    """

    is_alone: bool = True
    workers: int = 1
    inactive: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()
    contested: Container[str] = frozenset()
    may_poll: Callable[[str, str, str | None], bool] = lambda *_: True
    locked_accounts: Container[str] = frozenset()
    locked_subscriptions: Container[str] = frozenset()
    look_again: Callable[[], Awaitable[bool]] = _is_known


class InUse:
    """Counts the uses of a client: `async with` around each. Once it is retired and its last use has ended,
    it is closed, and removed from `still_open`."""

    def __init__(self, stack: AsyncExitStack, still_open: set[AsyncExitStack] | None = None) -> None:
        self._stack = stack
        self._still_open = {stack} if still_open is None else still_open
        self._users = 0
        self.is_retired = False

    async def __aenter__(self) -> None:
        self._users += 1

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._users -= 1
        if self.is_retired:
            await self._close_if_unused()

    async def retire(self) -> None:
        """Close it, now or at the end of the last use."""
        self.is_retired = True
        await self._close_if_unused()

    async def _close_if_unused(self) -> None:
        if not self._users:
            self._still_open.discard(self._stack)
            await self._stack.aclose()


class survived:  # noqa: N801 - used as a word of `with`, and around every poll: a generator costs more
    """Log a bug inside the block, such as a damaged key in Redis, and go on after it. The errors in `but`,
    which the caller expects, are raised."""

    __slots__ = ("_account", "_affected", "_but", "_subscription")

    def __init__(
        self,
        affected: str,
        *,
        but: type[Exception] | tuple[type[Exception], ...] = (),
        account: str | None = None,
        subscription: str | None = None,
    ) -> None:
        self._affected = affected
        self._but = but
        self._account = account
        self._subscription = subscription

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, Exception) or isinstance(error, self._but):
            return False
        log.error(
            "bug",
            affected=self._affected,
            account=self._account,
            subscription=self._subscription,
            exc_info=error,
        )
        return True


class Places:
    """Keeps capacity of a loop for what may be leased to this worker in the step that makes it due: `with`
    around that step, and `begin` for what was leased. The rest is given back at the end.

    `kept` are the keys that have a place: those that can bear more than what already waits, and no more than
    are claimed for at a time, so that a thousand that begin together hold nothing up.
    """

    def __init__(self, loop: "Loop", keys: Iterable[Key]) -> None:
        self._loop = loop
        self.kept = {*itertools.islice(filter(loop.keep, keys), AT_ONCE)}

    def __enter__(self) -> "Places":
        return self

    def begin(self, key: Key, shard: int, lease: Lease, doing: Coroutine[Any, Any, bool]) -> None:
        """Start the work on what was leased."""
        self.kept.remove(key)
        self._loop.begin(key, shard, lease, doing)

    def __exit__(self, *_: object) -> None:
        for key in self.kept:
            self._loop.give_back(key)


class Loop:
    """Runs two kinds of work until it is stopped."""

    def __init__(
        self,
        index: DueIndex,
        health: StoreHealth,
        works: Mapping[Kind, Work],
        providers: Callable[[], Sequence[str]],
        stopped: asyncio.Event | None = None,
    ) -> None:
        self._index = index
        self._health = health
        self._works = works
        self._providers = providers
        self.dispatch = Dispatch(lambda key: works[key.kind].takes(key.name))
        self.stopped = stopped or asyncio.Event()
        self._wake = asyncio.Event()
        self._is_finishing = False
        self._fix_at = 0.0
        self._held: defaultdict[tuple[Kind, int], dict[str, float]] = defaultdict(dict)
        self._turned_at: float | None = None
        self._turns_at = 0.0
        self._busy: dict[asyncio.Task[None], Piece] = {}
        self._idle: dict[asyncio.Task[None], asyncio.Future[Piece]] = {}
        self._places = 0

    def wake(self, key: Key, shard: int) -> None:
        """Claim at once: one piece of work was just made due."""
        self.dispatch.wake(key, shard, time.monotonic(), is_one=True)
        self._turn_sooner()

    def wake_all(self, key: Key) -> None:
        """Claim wherever something may be due: a key's wait may have ended early."""
        self.dispatch.reset(key)
        for shard in range(SHARDS):
            self.dispatch.wake(key, shard, time.monotonic())
        self._turn_sooner()

    def keep(self, key: Key) -> bool:
        """Keep a place for work of a key, if there is one. `begin` or `give_back` must follow."""
        dispatch, work = self.dispatch, self._works[key.kind]
        if self._turned_at is None or self.stopped.is_set():
            return False
        ahead = dispatch.ahead(key, time.monotonic())
        if ahead is None or work.spare(key.name, ahead, dispatch.in_flight_of(key.kind)) <= 0:
            return False
        dispatch.began(key)
        self._places += 1
        return True

    def begin(self, key: Key, shard: int, lease: Lease, doing: Coroutine[Any, Any, bool]) -> None:
        """Start work at a place that was kept for it."""
        self._places -= 1
        self._start((key, shard, lease, doing))

    def give_back(self, key: Key) -> None:
        """Give back a place that was kept."""
        self._places -= 1
        self.dispatch.ended(key, 0, time.monotonic())
        self._turn_sooner()

    def stop(self) -> None:
        """Claim nothing more. What is in hand goes on to its end."""
        self.stopped.set()
        self._wake.set()

    def finish(self) -> None:
        """Go on until nothing is due, and stop."""
        self._is_finishing = True

    def cut_off(self, key: Key, after_s: float) -> None:
        """Cancel, in a moment, what is in hand under a key."""

        def cancel(task: asyncio.Task[None], piece: Piece) -> None:
            if self._busy.get(task) is piece:  # otherwise it is over
                task.cancel()

        for task, piece in self._busy.items():
            if piece[0] == key:
                asyncio.get_running_loop().call_later(after_s, cancel, task, piece)

    def forget(self, key: Key) -> bool:
        """Forget a key that is no longer configured. Returns False, and does nothing, while it is in hand:
        call it again later."""
        return self.dispatch.forget(key)

    @property
    def in_flight(self) -> int:
        return self.dispatch.in_flight_of("poll") + self.dispatch.in_flight_of("delivery")

    @property
    def turned_at_by_name(self) -> dict[str, float]:
        """When the loop last turned, and since when claims are under way."""
        if self._turned_at is None:
            return {}
        claiming = {f"{key.kind} {key.name}": since for key, since in self.dispatch.serving_since()}
        return {"loop": self._turned_at, **claiming}

    async def run(self) -> None:
        """Turn until stopped, then wait for what is in hand."""
        try:
            async with asyncio.TaskGroup() as group:
                holding = group.create_task(self._hold_back(), name="hold")
                group.create_task(self.every(LOOK_S, "what is due", self._look), name="look")
                while not self.stopped.is_set():
                    now = self._turned_at = time.monotonic()
                    self._wake.clear()
                    for key in self.dispatch.take(now):
                        group.create_task(self._serve(key), name=f"claim {key.kind} {key.name}")
                    if self._held and holding.done():
                        holding = group.create_task(self._hold_back(), name="hold")
                    self._turns_at = min(self.dispatch.next_at, now + _TURN_S)
                    await pause(self._wake, self._turns_at - time.monotonic())
            while self._places or self._busy:  # what is still leased is begun, and given back
                self._wake.clear()
                await self._wake.wait()
        finally:
            while left := [*self._busy, *self._idle]:  # some are busy only if this was cut off
                self._busy.clear()
                self._idle.clear()
                for task in left:
                    task.cancel()
                await asyncio.wait(left)
            self._turned_at = None

    def _turn_sooner(self) -> None:
        """Turn now, if there is something to do before the loop would turn by itself."""
        if self._held or self.stopped.is_set() or self.dispatch.next_at < self._turns_at:
            self._wake.set()

    async def every(self, wait_s: float, affected: str, act: Callable[[], Awaitable[float | None]]) -> None:
        """Do something again and again until stopped, even if it fails."""
        pause_s = 0.0
        while not await pause(self.stopped, pause_s):
            try:
                again_s: float | None = await self.survive(act(), DAMAGED_S, affected)
                pause_s = again_s or wait_s
            except StoreError as error:
                pause_s = max(wait_s, await self._health.failed(error))

    async def survive(
        self,
        doing: Awaitable[T],
        otherwise: T2,
        affected: str,
        *,
        account: str | None = None,
        subscription: str | None = None,
    ) -> T | T2:
        """Do something, and log a bug in it without failing. Returns its result. StoreError passes."""
        with survived(affected, but=StoreError, account=account, subscription=subscription):
            return await doing
        return otherwise

    async def _look(self) -> None:
        """Look at all shards for what may be due. Raises StoreError.

        At intervals, first correct the index, and the clock, which otherwise only claims correct: by a wrong
        clock nothing may be due.
        """
        is_finishing = self._is_finishing  # as it was when this look began
        if time.monotonic() >= self._fix_at:
            self._fix_at = time.monotonic() + FIX_S
            providers = self._providers()
            fixes = (self._index.fix(shard, providers) for shard in range(SHARDS))
            await self._health.of_parts(self._index.read_clock(), *fixes)
        found = await self._health.of_answers(self._index.look())
        now = time.monotonic()
        for due in itertools.chain.from_iterable(part or () for part in found):
            key = Key(due.kind, due.name)
            self.dispatch.due(key, due.shard, now - due.for_s, now)
            if (wait_s := self.dispatch.wait_s(key, now)) > LOOK_S:
                self._held[due.kind, due.shard][due.name] = wait_s
        self._turn_sooner()
        has_more = self._held or self.dispatch.next_at <= now
        if is_finishing and not has_more and self.dispatch.is_idle:
            self.stop()

    async def _hold_back(self) -> None:
        """Take what has no capacity out of the index for a while: one command for all of it in a shard."""
        held, self._held = self._held, defaultdict(dict)
        parts = [self._works[kind].hold(shard, for_s) for (kind, shard), for_s in held.items()]
        try:
            await self.survive(self._health.of_parts(*parts), None, "what is due")
        except StoreError as error:
            await self._health.failed(error)

    async def _serve(self, key: Key) -> None:
        """Claim as much for one key as it can bear, and start the work."""
        try:
            wait_s = await self.survive(self._claim(key), DAMAGED_S, f"{key.kind} {key.name}")
        except StoreError as error:
            wait_s = await self._health.failed(error)
        self.dispatch.served(key, time.monotonic(), wait_s)
        self._turn_sooner()

    async def _claim(self, key: Key) -> float:
        """Claim and start. Returns how long to wait before the next claim."""
        work, dispatch = self._works[key.kind], self.dispatch
        capacity = await work.capacity(key.name, dispatch.in_flight(key), dispatch.in_flight_of(key.kind))
        now = time.monotonic()
        if capacity.most <= 0:
            for shard in dispatch.due_shards(key, now):
                self._held[key.kind, shard][key.name] = capacity.wait_s
        claims = [] if self.stopped.is_set() else dispatch.plan(key, capacity, now)
        found = await self._health.of_parts(*(self._claim_at(key, claim) for claim in claims))
        leases = [
            (claim.shard, lease) for claim, some in zip(claims, found, strict=True) for lease in some or ()
        ]
        begun = await work.begin(key.name, [lease for _, lease in leases])
        for (shard, lease), doing in zip(leases, begun, strict=True):
            dispatch.began(key)
            self._start((key, shard, lease, doing))
        return work.breath_s

    async def _claim_at(self, key: Key, claim: Claim) -> Sequence[Lease]:
        """Claim at one shard. A shard with damaged keys is not claimed at for a while; the others go on."""
        asking = self._works[key.kind].claim(key.name, claim)
        where = f"{key.kind} {key.name}, shard {claim.shard}"
        claimed = await self.survive(asking, Claimed((), block_s=DAMAGED_S), where)
        now = time.monotonic()
        if claimed.block_s:
            self.dispatch.block(key, claim.shard, claimed.block_s, now)
        self.dispatch.claimed(key, claim.shard, claimed.next_due_s, now)
        return claimed.leases

    def _start(self, piece: Piece) -> None:
        """Give a piece of work to a task that has nothing to do, or to a new one, which costs more."""
        if self._idle:
            task, waiting = self._idle.popitem()
            waiting.set_result(piece)
        else:
            task = asyncio.create_task(self._work_off(piece))  # a group costs more than the task
        key, _, lease, _ = piece
        task.set_name(f"{key.kind} {lease.member}")
        self._busy[task] = piece

    async def _work_off(self, piece: Piece) -> None:
        """Do one piece of work after the other. If one fails, it holds up no other."""
        task = asyncio.current_task()
        assert task
        while True:
            key, shard, lease, doing = piece
            is_more = False
            subscription = key.name if key.kind == "delivery" else None
            try:
                with survived(key.kind, account=lease.member, subscription=subscription):
                    try:
                        is_more = await doing
                    except StoreError as error:
                        await self._health.failed(error)
            finally:
                self._busy.pop(task, None)
                self.dispatch.ended(key, shard, time.monotonic(), is_more=is_more)
                self._turn_sooner()
            if task.cancelling():  # the work went on to its end all the same
                return
            self._idle[task] = asyncio.Future()
            piece = await self._idle[task]
