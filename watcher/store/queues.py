"""What subscriptions need of Redis: queues of deliveries, and circuit breakers that all workers share.

Deliveries wait in order, are claimed queue by queue, and are settled one by one. Refuses to judge an attempt,
or what a failure means for a breaker: `delivery` and `engine.breaker` do that, and this module writes it as
one step.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any, NamedTuple

import orjson

from watcher.journal.events import Delivery, load_delivery
from watcher.store.keys import SHARDS, Keys, check_count, read_count, shard_of
from watcher.store.pipe import Joints, Pipe, in_parts, load_script
from watcher.store.schedule import REPLIES, Claimed, Lease, Reply, Schedule

ATTEMPTS_PER_SUBSCRIPTION = 100
"""Attempts remembered per subscription and shard, each with up to 1 KiB of the answer: 2 MB in all, if a
receiver explains itself at length."""

CLAIM_MS = 3_000
"""A claim holds for a moment only: the worker makes it longer when it begins. If its answer is lost, no
worker begins, and the queue is free again after this time."""

LEASE_MS = 15_000
"""How long the queue of a worker that died stays leased. Each delivery renews it; a slow attempt makes it
longer."""

_HELD_AT_ONCE = 4000
"""Scores and names in one call: Lua passes on no more than 8,000."""

DEAD_PER_SUBSCRIPTION = 10_000
"""Dead letters kept per subscription and shard."""


class Bounds(NamedTuple):
    """Bytes that the log, dead letters and attempts may take in a shard."""

    log: int = 8 << 20
    dead: int = 8 << 20
    attempts: int = 2 << 20

    @classmethod
    def within(cls, limit: int) -> "Bounds":
        """Share out a server's limit (bytes, over all its shards; 0: it has none)."""
        share = limit // SHARDS
        return cls(share // 8, share // 8, share // 32) if limit else cls()


BOUNDS = Bounds()
"""For a server without a limit: 300 MB in all."""


_SETTLED = {
    1: (Reply.DONE, True),
    0: (Reply.DONE, False),
    -1: (Reply.MOVED_ON, False),
    -2: (Reply.LEASE_LOST, False),
}
"""What `settle` answers, and whether the queue is kept."""

_BEGIN_QUEUE = load_script("begin_queue")
_EXTEND = load_script("extend")
_HOLD = load_script("hold")
_ENQUEUE = load_script("enqueue")
_SETTLE = load_script("settle")
_GIVE_UP = load_script("give_up")
_PROBE = load_script("probe")
_SET_BREAKER = load_script("set_breaker")
_TAKE_LEASE = load_script("take_lease")
_TAKE_TURN = load_script("take_turn")
_COUNT_RESULTS = load_script("count_results")


class Begun(NamedTuple):
    """A queue in hand: whether the lease holds, its oldest deliveries, and how often its head, `tried`, has
    failed. Each delivery comes as it was queued; None if it cannot be read."""

    reply: Reply
    deliveries: list[tuple[bytes, Delivery | None]]
    tries: int
    tried: bytes


class Queues:
    """The queues of one namespace. Methods raise StoreUnreachable when Redis cannot be used now."""

    def __init__(self, schedule: Schedule, keys: Keys, bounds: Bounds = BOUNDS) -> None:
        self._schedule = schedule
        self._keys = keys
        self._pipe = schedule.pipe
        self._claims = schedule.claims(self._schedule_keys)
        self._begins = Joints(
            _BEGIN_QUEUE,
            lambda shard, name: (
                (
                    keys.queues(shard, name),
                    keys.tries(shard, name),
                    keys.nothing(shard),
                    keys.bodies(shard),
                ),
                (),
            ),
            most=64,
        )
        self._holds = Joints(
            _HOLD, lambda shard, _: ((keys.due_subscriptions(shard), keys.nothing(shard)), ()), most=SHARDS
        )
        self._extends = Joints(
            _EXTEND, lambda shard, name: ((keys.queues(shard, name), keys.nothing(shard)), ()), most=64
        )
        self._smooth = Joints(
            _SETTLE, lambda shard, name: (self._settled_keys(shard, name), (name, "smooth")), most=64
        )
        self._settles = Joints(
            _SETTLE,
            lambda shard, name: (
                (
                    *self._settled_keys(shard, name),
                    keys.due_subscriptions(shard),
                    keys.dead(shard, name),
                    keys.attempts(shard, name),
                    keys.sizes(shard),
                    keys.given_up(shard),
                ),
                (name, "any", DEAD_PER_SUBSCRIPTION, bounds.dead, ATTEMPTS_PER_SUBSCRIPTION, bounds.attempts),
            ),
            most=64,
        )

    async def due_subscriptions(self, shard: int) -> list[str]:
        """Return the subscriptions that may have a queue due in a shard."""
        key = self._keys.due_subscriptions(shard)
        names = await self._pipe.command("ZRANGEBYSCORE", key, "-inf", self._schedule.now_ms())
        return [name.decode("utf-8", "replace") for name in names]

    async def hold(self, shard: int, for_ms: Mapping[str, int]) -> None:
        """Take subscriptions out of the index of what is due for so long, unless they get new deliveries."""
        now_ms = self._schedule.now_ms()
        scores = [part for name, ms in for_ms.items() for part in (now_ms + ms, name)]
        for some in in_parts(scores, _HELD_AT_ONCE):
            await self._pipe.step(self._holds[shard, ""], (), *some)

    async def claim(self, subscription: str, shard: int, *, lease_ms: int, at_most: int) -> Claimed:
        return await self._schedule.claim(self._claims[shard, subscription], lease_ms, at_most)

    async def make_due(self, subscription: str, shard: int, *, lease_ms: int) -> int:
        """Let queues that wait for a retry be tried now. Returns how many."""
        keys = self._schedule_keys(shard, subscription)
        return await self._schedule.make_due([*keys], lease_ms, subscription)

    async def begin(self, subscription: str, lease: Lease, *, until: float, at_most: int) -> Begun:
        """Take a claimed queue in hand: keep it until another deadline, and read what waits in it."""
        joint = self._begins[shard_of(lease.member), subscription]
        queue = self._keys.queue(subscription, lease.member)
        reply, entries, stored, tried = await self._pipe.step(joint, (queue,), *lease, until, at_most)
        return Begun(REPLIES[reply], read_deliveries(entries, stored, subscription), *read_tries(tried))

    async def backlog(self, subscription: str) -> int:
        """Count the deliveries that wait for a subscription."""
        commands = [("HGET", self._keys.backlogs(shard), subscription) for shard in range(SHARDS)]
        noted = await asyncio.gather(*(self._pipe.command(*command) for command in commands))
        return sum(map(int, filter(None, noted)))

    async def delivered(
        self, subscription: str, lease: Lease, *heads: bytes, until: float, record: bytes = b""
    ) -> tuple[Reply, int]:
        """Remove a delivered head (`Delivery.entry`), and keep its queue until another deadline. Returns that
        deadline, or 0 if the queue is empty.

        `heads` that were sent in one message are removed together, all of them or none. `record`, if any, is
        remembered as the attempt; so it is in the methods below.
        """
        head = heads[0] if len(heads) == 1 else b"\n".join(heads)
        joints, noted = (self._settles, ("delivered", "", record, "")) if record else (self._smooth, ())
        (answer,) = await self._settle(joints, subscription, lease, head, until, *noted)
        reply, is_kept = _SETTLED[answer]
        return reply, int(until) if is_kept else 0

    async def dead(
        self,
        subscription: str,
        lease: Lease,
        head: bytes,
        *,
        until: float,
        reason: str,
        record: bytes = b"",
        result: str = "",
    ) -> tuple[Reply, int]:
        """Move a head that was given up to the dead letters. Returns what `delivered` returns. `result`: how
        the attempt counts for the breaker: failed, unavailable, or not at all; so it is in the methods
        below."""
        noted = "dead", reason, record, result
        (answer,) = await self._settle(self._settles, subscription, lease, head, until, *noted)
        reply, is_kept = _SETTLED[answer]
        return reply, int(until) if is_kept else 0

    async def retry(
        self,
        subscription: str,
        lease: Lease,
        head: bytes,
        *,
        wait_ms: int,
        record: bytes = b"",
        result: str = "",
        is_used: bool = True,
    ) -> Reply:
        """Try a head again later; its queue waits with it. Unless it `is_used`, the attempt does not count
        for the head."""
        noted = "retry" if is_used else "again", "", record, result
        (answer,) = await self._settle(self._settles, subscription, lease, head, wait_ms, *noted)
        return _SETTLED[answer][0]

    async def give_up(self, subscription: str, account: str, head: bytes, *, reason: str) -> int | None:
        """Make a queue's head (`Delivery.entry`) a dead letter, whichever worker has the queue in hand; what
        is behind it is due at once. Returns how many deliveries are left in the queue; None if another one is
        its head."""
        keys, shard = self._keys, shard_of(account)
        of_the_queue = [
            keys.queue(subscription, account),
            keys.queues(shard, subscription),
            keys.due_subscriptions(shard),
            keys.tries(shard, subscription),
            keys.dead(shard, subscription),
            keys.nothing(shard),
            keys.bodies(shard),
            keys.sizes(shard),
            keys.given_up(shard),
            keys.backlogs(shard),
        ]
        arguments = subscription, account, head, reason, DEAD_PER_SUBSCRIPTION
        left = int(await self._pipe.script(_GIVE_UP, of_the_queue, *arguments))
        return None if left < 0 else left

    async def enqueue(
        self,
        subscription: str,
        account: str,
        deliveries: Sequence[Delivery],
        *,
        dead_letters: Sequence[str] = (),
    ) -> int:
        """Put deliveries at the end of a queue, without a commit. Returns how many. `dead_letters` are the
        ids of the dead letters that they were, one each: these are removed, and a delivery whose dead letter
        is gone is not queued."""
        shard = shard_of(account)
        keys = [self._keys.queue(subscription, account), *self._schedule_keys(shard, subscription)]
        keys += [self._keys.bodies(shard), self._keys.sizes(shard), self._keys.backlogs(shard)]
        if dead_letters:
            keys.append(self._keys.dead(shard, subscription))
        arguments: list[object] = [subscription, account]
        for delivery, letter in zip_longest(deliveries, dead_letters, fillvalue=""):
            assert isinstance(delivery, Delivery), "there are no more dead letters than deliveries"
            arguments += (delivery.entry, delivery.stored, letter)
        return int(await self._pipe.script(_ENQUEUE, keys, *arguments))

    def until(self, lease: Lease, for_ms: int) -> int:
        """Return a new deadline for our lease, never the previous one: it identifies a repeated command."""
        deadline = self._schedule.now_ms() + for_ms
        return deadline if deadline != lease.deadline else deadline + 1

    async def extend(self, subscription: str, lease: Lease, *, until: float) -> Reply:
        """Keep a queue until another deadline."""
        joint = self._extends[shard_of(lease.member), subscription]
        queue = self._keys.queue(subscription, lease.member)
        (reply,) = await self._pipe.step(joint, (queue,), *lease, until)
        return REPLIES[reply]

    async def release(self, subscription: str, lease: Lease, *, due_in_ms: int = 0) -> Reply:
        keys = self._schedule_keys(shard_of(lease.member), subscription)
        return await self._schedule.release([*keys], lease, due_in_ms, subscription)

    def _schedule_keys(self, shard: int, subscription: str) -> tuple[str, ...]:
        keys = self._keys
        return keys.queues(shard, subscription), keys.due_subscriptions(shard), keys.nothing(shard)

    def _settled_keys(self, shard: int, subscription: str) -> tuple[str, ...]:
        keys = self._keys
        return (
            keys.queues(shard, subscription),
            keys.tries(shard, subscription),
            keys.nothing(shard),
            keys.bodies(shard),
            keys.backlogs(shard),
            keys.results(shard, subscription),
            keys.row(shard, subscription),
        )

    def _settle(
        self, joints: Joints, subscription: str, lease: Lease, head: bytes, ms: float, *noted: str | bytes
    ) -> Coroutine[Any, Any, list[int]]:
        """Settle an attempt."""
        joint = joints[shard_of(lease.member), subscription]
        queue = self._keys.queue(subscription, lease.member)
        return self._pipe.step(joint, (queue,), *lease, head, ms, *noted)


def read_deliveries(
    entries: Sequence[bytes], stored: Sequence[bytes | None], subscription: str
) -> list[tuple[bytes, Delivery | None]]:
    """Read what scripts return of a queue: deliveries as they were queued, and what is stored of their
    events."""
    deliveries: list[tuple[bytes, Delivery | None]] = []
    for entry, event in zip(entries, stored, strict=True):
        try:
            deliveries.append((entry, load_delivery(entry, event or b"", subscription)))
        except ValueError:
            deliveries.append((entry, None))
    return deliveries


def read_tries(noted: bytes) -> tuple[int, bytes]:
    """Read how often a queue's head has failed, and which head that was; a damaged count reads as never."""
    if not noted:
        return 0, b""
    count, _, head = noted.partition(b" ")
    try:
        return read_count(count), head
    except ValueError:
        return 0, b""


WINDOW_MS = 10_000
"""The last result of each queue counts, if it is no older."""


class Breaker(NamedTuple):
    """The breaker of a subscription that fails, backs off, is paced or paused. Times are Unix ms of the
    server, 0 is never. `engine.breaker` says what it means.

    | field | what it says |
    |---|---|
    | paused_at_ms, report_from_ms | paused since; from then on any worker is to report it (0: done) |
    | since_ms | when the breaker was last closed (0: it is) |
    | open_until_ms, rests | open until then; how many times in a row (the place in `BACKOFF_MS`) |
    | probes, allowed, prober | the last five ("1": delivered), how many at a time, whose was the last |
    | closed_at_ms | results up to then do not count |
    | held_until_ms | the receiver asked for no attempts until then |
    | pace_per_s, pace_at_ms | attempts a second at that time, over all workers (0: no limit) |
    | ping_error | what came of the last ping of a URL that is not verified |
    """

    paused_at_ms: int = 0
    report_from_ms: int = 0
    reason: str = ""
    since_ms: int = 0
    open_until_ms: int = 0
    rests: int = 0
    probes: str = ""
    allowed: int = 1
    prober: str = ""
    closed_at_ms: int = 0
    held_until_ms: int = 0
    pace_per_s: float = 0.0
    pace_at_ms: int = 0
    ping_error: str = ""


class Miss(NamedTuple):
    """A failed attempt of a queue, at a time in ms; `is_unavailable`: no answer, or a gateway's."""

    at_ms: int
    is_unavailable: bool
    account: str


class Results(NamedTuple):
    """The results of a subscription's queues since `from_ms`.

    How many were `tried`, and how many of these `failed` last; how many attempts of all queues were
    `taken_lately` and `failed_lately`, in this second and the previous one; and the failures since the last
    delivery, of which each shard keeps five.
    """

    from_ms: int
    tried: int = 0
    failed: int = 0
    taken_lately: int = 0
    failed_lately: int = 0
    row: tuple[Miss, ...] = ()


Decide = Callable[[Breaker | None, int], Breaker | None]
"""Takes the breaker as it was and the time in ms, returns the breaker as it is; None: as if it had never
failed."""


class Change(NamedTuple):
    """A breaker before and after a change."""

    before: Breaker | None
    after: Breaker | None


class Breakers:
    """The breakers of one namespace, and the results that they count. Methods raise StoreError.

    Only breakers that hold something are stored: every worker reads all of them every second.
    """

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._key = keys.breakers()
        self._keys = keys

    @property
    def is_apart(self) -> bool:
        """Say whether a count takes a call for each shard: too many to make after each failure."""
        return self._pipe.is_apart

    async def read(self) -> dict[str, Breaker]:
        """Read all of them, by name; a subscription whose breaker holds nothing is missing."""
        pairs = await self._pipe.command("HGETALL", self._key)
        names = (name.decode("utf-8", "replace") for name in pairs[::2])
        # A damaged one counts as closed, but has a reason: the next change repairs it.
        damaged = Breaker(reason="unreadable")
        return {
            name: load_breaker(text) or damaged for name, text in zip(names, pairs[1::2], strict=True) if text
        }

    async def change(self, subscription: str, decide: Decide) -> Change:
        """Change one breaker as `decide` says; `decide` is called again if another worker was faster."""
        text, now_ms, _ = await self._pipe.script(_SET_BREAKER, [self._key], subscription)
        while True:
            before = load_breaker(text)
            after = decide(before, now_ms)
            if dump_breaker(after) == text:
                return Change(before, after)
            arguments = subscription, text, dump_breaker(after)
            text, now_ms, is_set = await self._pipe.script(_SET_BREAKER, [self._key], *arguments)
            if is_set:
                return Change(before, after)

    async def resume(self, subscription: str) -> bool:
        """Forget that a subscription failed, backed off or was paused. Returns whether there was something to
        forget."""
        keys = self._keys
        counted = [name(shard, subscription) for name in (keys.results, keys.row) for shard in range(SHARDS)]
        was_known = await self._pipe.command("HDEL", self._key, subscription)
        forgotten = [*counted, keys.subscription_rate(subscription), keys.probes(subscription)]
        await asyncio.gather(*(self._pipe.command("UNLINK", key) for key in forgotten))
        return bool(was_known)

    async def count_results(self, subscription: str, *, closed_at_ms: int) -> Results:
        """Count the results of a subscription's queues since its breaker was closed, within the window. From
        now on every shard notes them; while all is well, none does."""
        keys = self._keys
        parts = [
            [keys.nothing(shard), keys.results(shard, subscription), keys.row(shard, subscription)]
            for shard in range(SHARDS)
        ]
        together = [key for part in parts for key in part]
        found = await self._pipe.script_over_shards(_COUNT_RESULTS, together, closed_at_ms, WINDOW_MS)
        if found is not None:
            return _summed([found], closed_at_ms)
        asked = (self._pipe.script(_COUNT_RESULTS, part, closed_at_ms, WINDOW_MS) for part in parts)
        return _summed(await asyncio.gather(*asked), closed_at_ms)

    async def is_idle(self, subscription: str) -> bool:
        """Say whether nothing waits for a subscription."""
        keys = (self._keys.queues(shard, subscription) for shard in range(SHARDS))
        asked = (self._pipe.command("ZCARD", key) for key in keys)
        return all(count == 0 for count in await asyncio.gather(*asked, return_exceptions=True))

    async def take_probes(
        self, subscription: str, wanted: Sequence[str], *, at_most: int, lease_ms: int
    ) -> list[str]:
        """Take probes of a half-open subscription, of which `at_most` are out at the same time over all
        workers. Returns those of `wanted` (any names) that were taken."""
        key = self._keys.probes(subscription)
        taken = await self._pipe.script(_PROBE, [key], at_most, lease_ms, *wanted)
        return [name.decode() for name in taken]

    async def leave_probes(self, subscription: str, probes: Sequence[str]) -> None:
        """Return probes, for other queues and workers."""
        await self._pipe.command("ZREM", self._keys.probes(subscription), *probes)

    async def take_turn(
        self, subscription: str, *, spacing_ms: float, within_ms: float, delivered: int = 0
    ) -> float:
        """Reserve the start of an attempt over all workers. Returns in how many ms it is. If that is more
        than `within_ms`, nothing is reserved. `delivered`: how many this worker delivered since the last
        call."""
        arguments = "turn", delivered, f"{spacing_ms:.3f}", f"{within_ms:.3f}"
        key = self._keys.subscription_rate(subscription)
        return float(await self._pipe.script(_TAKE_TURN, [key], *arguments))

    async def hold_turns(self, subscription: str, *, for_ms: int, delivered: int = 0) -> float | None:
        """Let no turn begin for so long. Returns how many deliveries all workers made in the last second in
        which turns were not held; None if nothing was counted yet."""
        key = self._keys.subscription_rate(subscription)
        found = float(await self._pipe.script(_TAKE_TURN, [key], "hold", delivered, for_ms))
        return found if found >= 0 else None


async def take_lease(pipe: Pipe, key: str, worker: str, *, lease_ms: int) -> bool:
    """Take a lease that one worker holds at a time, or keep it, also on a full server. Returns whether
    `worker` has it. 0 ms gives it back."""
    return bool(await pipe.script(_TAKE_LEASE, [key], worker, lease_ms))


def _summed(found: Sequence[Sequence[Any]], closed_at_ms: int) -> Results:
    """Add up what shards counted. A failure counts in the row if no shard has a later success."""
    from_ms, tried, failed, taken, missed, delivered_ms = 0, 0, 0, 0, 0, closed_at_ms
    row: list[Miss] = []
    for since_ms, now_ms, *counts in found:
        from_ms = max(from_ms, since_ms)
        for shard_tried, shard_failed, text in zip(counts[::3], counts[1::3], counts[2::3], strict=True):
            tried, failed = tried + shard_tried, failed + shard_failed
            figures, *misses = text.split(b"\n")
            with suppress(ValueError):  # damaged or missing: as if nothing had failed there
                last_ms, second, *lately = map(read_count, figures.split(b" "))
                row += [_read_miss(miss) for miss in misses]
                delivered_ms = max(delivered_ms, last_ms)
                age_s = now_ms // 1000 - second
                taken += sum(lately[::2][: 2 - age_s] if 0 <= age_s < 2 else ())
                missed += sum(lately[1::2][: 2 - age_s] if 0 <= age_s < 2 else ())
    in_a_row = sorted(miss for miss in row if miss.at_ms > delivered_ms)
    return Results(from_ms, tried, failed, taken, missed, tuple(in_a_row))


def _read_miss(text: bytes) -> Miss:
    at_ms, kind, account = text.split(b" ", 2)
    return Miss(read_count(at_ms), kind == b"unavailable", account.decode())


_MOST_OPENINGS = 100


def load_breaker(text: bytes) -> Breaker | None:
    """Read a breaker; None if it is damaged."""
    try:
        found = orjson.loads(text).items()
        breaker = Breaker(**{name: value for name, value in found if name in Breaker._fields})
        for value in (value for value in breaker if isinstance(value, int)):
            check_count(value)
    except (ValueError, TypeError, AttributeError):
        return None
    is_whole = [*map(type, breaker)] == [*map(type, Breaker())]
    return breaker if is_whole and breaker.allowed and breaker.rests < _MOST_OPENINGS else None


def dump_breaker(breaker: Breaker | None) -> bytes:
    """Write a breaker: the fields that are not 0 or empty; b"" if none is."""
    if breaker is None:
        return b""
    normal = Breaker()._asdict()
    said = {name: value for name, value in breaker._asdict().items() if value != normal[name]}
    return orjson.dumps(said) if said else b""
