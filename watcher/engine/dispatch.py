"""Decides what a worker claims next: what is due, what is in hand, how much each key can bear.

Pure and synchronous: time comes in, so no await ever finds it half-changed. It knows neither polls nor
deliveries: a key is what falls due under one name, in up to 16 shards.
"""

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal["poll", "delivery"]

AT_ONCE = 32
"""Keys that are claimed for at the same time: a thousand due keys must not hold up the next one."""

LOOK_S = 0.1
"""If capacity is scarce, two waits that differ by less than this count as equal."""


class Key(NamedTuple):
    """The polls of one provider, or the deliveries of one subscription."""

    kind: Kind
    name: str


class Capacity(NamedTuple):
    """How much more a key can bear now: `most` may start. Without any, it is asked again after `wait_s`, or,
    if it `is_full`, as soon as some of its work ends.

    If capacity `is_scarce`, it goes to the work that has waited longest, whatever its shard. While work is in
    hand, or while shards are known to have more, another shard is claimed at for each `per_claim`: work of
    one shard is also settled together.
    """

    most: int
    wait_s: float = 0.0
    is_full: bool = False
    is_scarce: bool = False
    per_claim: int = 1


class Claim(NamedTuple):
    """Claim `at_most` at a shard, and nothing that has waited for less than `waited_s`."""

    shard: int
    at_most: int
    waited_s: float = 0.0


@dataclass(slots=True)
class _Line:
    """What is known of one key.

    `due`: shard -> since or from when; `few`: shard -> how many pieces that is, if known; `claiming`: as
    `due`, while a claim is under way; `blocked`: shard -> it is not claimed at until then; `rich`: shards
    where the last claim left more that is due. Times are those that come in.
    """

    due: dict[int, float] = field(default_factory=dict)
    few: dict[int, int] = field(default_factory=dict)
    claiming: dict[int, float] = field(default_factory=dict)
    blocked: dict[int, float] = field(default_factory=dict)
    rich: set[int] = field(default_factory=set)
    in_flight: int = 0
    claimed: int = 0
    not_before: float = 0.0
    is_full: bool = False
    is_queued: bool = False
    timer_at: float = math.inf
    serving_since: float | None = None

    def is_due(self, shard: int, since: float) -> None:
        """Note that something is due at a shard."""
        self.due[shard] = min(since, self.due.get(shard, math.inf))
        self.few.pop(shard, None)

    @property
    def ready_at(self) -> float:
        blocked = self.blocked
        first = min((max(at, blocked.get(shard, at)) for shard, at in self.due.items()), default=math.inf)
        return max(first, self.not_before)


class Dispatch:
    """The work of one worker. `takes(key)` says whether this worker may claim it."""

    def __init__(self, takes: Callable[[Key], bool] = lambda _: True) -> None:
        self._takes = takes
        self._lines: dict[Key, _Line] = {}
        self._woken: deque[Key] = deque()
        self._ready: deque[Key] = deque()
        self._timers: list[tuple[float, Key]] = []
        self._in_flight: Counter[Kind] = Counter()

    def due(self, key: Key, shard: int, since: float, now: float) -> None:
        """Note that work may be due at a shard, `since` then, because the index names it."""
        line = self._line(key)
        if shard not in line.claiming and since < line.due.get(shard, math.inf) and self._takes(key):
            line.is_due(shard, since)
            self._arrange(key, line, now)

    def wake(self, key: Key, shard: int, now: float, *, is_one: bool = False) -> None:
        """Note that work was just made due at a shard: it comes before what was found by looking. `is_one`:
        as far as is known, it is one piece."""
        line = self._line(key)
        known = line.few.get(shard) if shard in line.due else 0
        line.is_due(shard, now)
        if is_one and known is not None:
            line.few[shard] = known + 1
        self._arrange(key, line, now, self._woken)

    def reset(self, key: Key) -> None:
        """Forget that a key is backing off or full: it may be asked sooner."""
        if line := self._lines.get(key):
            line.not_before, line.is_full = 0.0, False

    @property
    def keys(self) -> list[Key]:
        """The keys of which anything is known."""
        return [*self._lines]

    def forget(self, key: Key) -> bool:
        """Forget a key that is no longer configured. Returns False, and does nothing, while it is in hand."""
        line = self._lines.get(key)
        if line and (line.in_flight or line.is_queued or line.serving_since is not None):
            return False
        self._lines.pop(key, None)
        return True

    def take(self, now: float) -> list[Key]:
        """Take the keys to claim for now. For each, `plan` and then `served` are called."""
        while self._timers and self._timers[0][0] <= now:
            _, key = heapq.heappop(self._timers)
            if line := self._lines.get(key):  # otherwise it was forgotten
                line.timer_at = math.inf
                self._arrange(key, line, now)
        taken: list[Key] = []
        for queue in (self._woken, self._ready):
            for _ in range(min(AT_ONCE, len(queue))):
                key = queue.popleft()
                line = self._lines[key]
                line.is_queued = False
                if not self._takes(key):
                    line.due.clear()
                    line.few.clear()
                elif line.ready_at <= now:
                    line.serving_since = now
                    taken.append(key)
                else:
                    self._arrange(key, line, now)
        return taken

    def plan(self, key: Key, capacity: Capacity, now: float) -> list[Claim]:
        """Share out the capacity of a key over its shards, first to those where work has waited longest."""
        line = self._lines[key]
        line.is_full = capacity.most <= 0 and capacity.is_full
        if capacity.most <= 0:
            line.not_before = now + capacity.wait_s
            return []
        shards = sorted(self.due_shards(key, now), key=line.due.__getitem__)
        waited_s = 0.0
        if capacity.is_scarce and shards:
            waited_s = max(0.0, now - line.due[shards[0]] - LOOK_S)
        else:
            few = shards[: max(1, capacity.most // capacity.per_claim)]
            if line.in_flight or line.rich.issuperset(few):
                shards = few
        shards = shards[: capacity.most]
        claims = []
        for shard in shards:
            line.claiming[shard] = line.due.pop(shard)
            # One more than are known, so that the answer says whether these were all.
            at_most = min(capacity.most // len(shards), line.few.pop(shard, capacity.most) + 1)
            claims.append(Claim(shard, at_most, waited_s))
        line.claimed = sum(claim.at_most for claim in claims)
        self._in_flight[key.kind] += line.claimed  # until the claims are answered
        return claims

    def due_shards(self, key: Key, now: float) -> list[int]:
        """Return the shards where work of a key is due and may be claimed."""
        line = self._lines[key]
        return [shard for shard, at in line.due.items() if max(at, line.blocked.get(shard, at)) <= now]

    def claimed(self, key: Key, shard: int, next_due_s: float | None, now: float) -> None:
        """Note that a shard was claimed at, and in how many seconds more is due there (negative: it is due
        now; None: the index will say)."""
        line = self._lines[key]
        line.claiming.pop(shard, None)
        line.rich.discard(shard)
        if next_due_s is not None:
            line.is_due(shard, now + next_due_s)
            if next_due_s <= 0:
                line.rich.add(shard)

    def block(self, key: Key, shard: int, for_s: float, now: float) -> None:
        """Claim nothing at a shard of a key for a while: its keys are damaged, or only other workers' work is
        due there."""
        line = self._lines[key]
        line.claiming.pop(shard, None)
        line.blocked[shard] = now + for_s

    def served(self, key: Key, now: float, wait_s: float = 0.0) -> None:
        """Note that the claims for a key are over. A shard that no claim answered for is due as before."""
        line = self._lines[key]
        for shard, since in line.claiming.items():
            line.is_due(shard, since)
        line.claiming.clear()
        line.serving_since = None
        self._in_flight[key.kind] -= line.claimed
        line.claimed = 0
        line.not_before = max(line.not_before, now + wait_s)
        self._arrange(key, line, now)

    def ahead(self, key: Key, now: float) -> int | None:
        """Return how many pieces of a key precede one that is made due now: those in hand, those that claims
        may bring, and those that wait.

        None: it is not known how many wait, or the key is full, backing off, or not for this worker.
        """
        if not self._takes(key):
            return None
        line = self._lines.get(key)
        if line is None:
            return 0
        if line.not_before > now:
            return None
        ahead = line.in_flight + line.claimed
        for shard in self.due_shards(key, now) if line.due else ():
            if shard not in line.few:
                return None
            ahead += line.few[shard]
        return ahead

    def began(self, key: Key) -> None:
        """Note that something is in hand."""
        self._line(key).in_flight += 1
        self._in_flight[key.kind] += 1

    def ended(self, key: Key, shard: int, now: float, *, is_more: bool = False) -> None:
        """Note that something in hand has ended. `is_more`: more is due at its shard."""
        line = self._lines[key]
        line.in_flight -= 1
        self._in_flight[key.kind] -= 1
        if line.is_full:
            line.not_before, line.is_full = 0.0, False
        if is_more:
            self.wake(key, shard, now, is_one=True)
        elif line.due:
            self._arrange(key, line, now)

    def wait_s(self, key: Key, now: float) -> float:
        """Return for how long a key is backing off or full."""
        return max(0.0, self._line(key).not_before - now)

    def in_flight(self, key: Key) -> int:
        """Count what is in hand of a key, or may be once claims are answered."""
        line = self._line(key)
        return line.in_flight + line.claimed

    def in_flight_of(self, kind: Kind) -> int:
        """Count what is in hand of a kind, or may be once claims are answered."""
        return self._in_flight[kind]

    @property
    def is_idle(self) -> bool:
        """Say whether nothing is in hand and nothing may be claimed now."""
        return not any(
            line.in_flight or line.is_queued or line.serving_since for line in self._lines.values()
        )

    @property
    def next_at(self) -> float:
        """Return when there may be something to take."""
        if self._woken or self._ready:
            return 0.0
        return self._timers[0][0] if self._timers else math.inf

    def serving_since(self) -> Iterator[tuple[Key, float]]:
        """Return the keys with a claim under way, and since when."""
        for key, line in self._lines.items():
            if line.serving_since is not None:
                yield key, line.serving_since

    def _line(self, key: Key) -> _Line:
        if (line := self._lines.get(key)) is None:
            line = self._lines[key] = _Line()
        return line

    def _arrange(self, key: Key, line: _Line, now: float, queue: deque[Key] | None = None) -> None:
        """Let a key be taken when it is ready: now, or by a timer."""
        if line.is_queued or line.serving_since is not None:
            return
        ready_at = line.ready_at
        if ready_at <= now:
            line.is_queued = True
            (self._ready if queue is None else queue).append(key)
        elif ready_at < line.timer_at:
            line.timer_at = ready_at
            heapq.heappush(self._timers, (ready_at, key))
