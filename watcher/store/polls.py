"""What polls need of Redis: accounts fall due, are read, and take one atomic step forward.

Scripts decide ownership and order; Python decides meaning. Refuses to know the content of log entries and
deliveries: they pass through as bytes.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from watcher.journal.account import AccountState
from watcher.journal.events import Delivery
from watcher.journal.step import Step
from watcher.store.errors import DamagedKey
from watcher.store.keys import Keys, shard_of, stamp_of
from watcher.store.pipe import Joints, in_parts, load_script
from watcher.store.queues import BOUNDS, Bounds
from watcher.store.schedule import DONE, REPLIES, Claimed, Lease, Reply, Schedule
from watcher.store.state import STATE_BYTES, BadState, Kept, Names, Within

LONGEST_BREAK_MS = 5_000
"""A worker checks every second which accounts are stale. If none did for longer than this, the workers or
Redis were away, and polls that could not be made meanwhile are not late."""

_READS_AFTER_A_RIVAL = 100
"""States that are read although they are kept, after another worker moved one on: if several workers share
the accounts, most kept states are out of date."""

_AT_ONCE = 200
"""Keys of one script call."""

_FAILING = re.compile(rb"([0-9]{1,9}) ([0-9]{1,14}) (\S+) ?(.*)\Z", re.DOTALL)
_WATCH = re.compile(rb"([0-9]{1,14}) ([0-9]{1,14})\Z")

_DAMAGED = "a key that it needs is of another type"

_COMMIT = load_script("commit")
_NOTE_WATCH = load_script("note_watch")
_POSTPONE = load_script("postpone")
_READ_POLLED = load_script("read_polled")
_TOUCH = load_script("touch")


class Postponed(NamedTuple):
    """What was noted of a rejected poll: the rejections in a row, since when (Unix ms), and the wait for the
    next poll."""

    rejections: int
    since_ms: int
    wait_ms: int


class Failing(NamedTuple):
    """Polls of an account that were rejected in a row, since when (Unix ms), and why the last one was."""

    rejections: int
    since_ms: int
    error_class: str
    reason: str


class Commit(NamedTuple):
    """One atomic step forward of one account: by a successful poll under its lease; or by no poll (None),
    which leaves the account's schedule, the time of its last poll and its failures as they are. Of the queues
    that it fills, those of the subscriptions `to_lease` are leased to the worker until `leased_until` (ms of
    the server) if they were empty."""

    account: str
    provider: str
    lease: Lease | None
    expected_version: str
    step: Step
    due_ms: float = 0
    to_lease: Collection[str] = ()
    leased_until: int = 0


class Committed(NamedTuple):
    """The result of a commit: the reply, and by subscription the queues that are leased to this worker, each
    with everything that waits in it. The other queues that it filled are due."""

    reply: Reply
    leased: Mapping[str, tuple[Delivery, ...]]


class Polls:
    """The polls of one namespace. Methods raise StoreUnreachable when Redis cannot be used now.
    `watched_since_ms`: since when workers check without a break which accounts are stale, as last noted."""

    def __init__(self, schedule: Schedule, keys: Keys, bounds: Bounds = BOUNDS) -> None:
        self._schedule = schedule
        self._keys = keys
        self._pipe = schedule.pipe
        self.names = Names(schedule.pipe, keys)
        self.now_ms = schedule.now_ms
        self.watched_since_ms = 0
        self._claims = schedule.claims(self._schedule_keys)
        self._kept = Within[Kept](STATE_BYTES)
        self._reads_to_come = 0
        self._commits = Joints(
            _COMMIT,
            lambda shard, provider: (
                (
                    keys.polls(shard, provider),
                    keys.failing(shard, provider),
                    keys.log(shard),
                    keys.due_subscriptions(shard),
                    keys.due_polls(shard),
                    keys.bodies(shard),
                    keys.sizes(shard),
                    keys.backlogs(shard),
                ),
                (provider, bounds.log),
            ),
            most=64,
        )
        self._touches = Joints(
            _TOUCH, lambda shard, provider: (self._of_polls(shard, provider), (provider,)), most=256
        )

    async def claim(
        self,
        provider: str,
        shard: int,
        *,
        lease_ms: int,
        at_most: int,
        waited_ms: int = 0,
        left: Iterable[str] = (),
    ) -> Claimed:
        """Claim accounts that have been due for `waited_ms` or longer; leave those `left` to other
        workers."""
        joint = self._claims[shard, provider]
        return await self._schedule.claim(joint, lease_ms, at_most, waited_ms=waited_ms, left=left)

    async def make_due(self, provider: str, shard: int, *, lease_ms: int) -> int:
        """Let accounts be polled now that wait after rejected polls. Returns how many."""
        return await self._schedule.make_due([*self._schedule_keys(shard, provider)], lease_ms, provider)

    async def is_failing(self, provider: str, account: str, *, times: int = 1) -> bool:
        """Say whether an account's last polls, so many in a row, were rejected, by any worker."""
        failing = await self.failing(provider, account)
        return failing is not None and max(1, failing.rejections) >= times  # or it cannot be read

    async def failing(self, provider: str, account: str) -> Failing | None:
        """Read why an account's last poll, by any worker, was rejected; None if it was not."""
        said = await self._pipe.command("HGET", self._keys.failing(shard_of(account), provider), account)
        return None if said is None else read_failing(said)

    async def note_watch(self) -> None:
        """Note that this worker looks which accounts are stale. Every second."""
        self.watched_since_ms = await self._pipe.script(_NOTE_WATCH, [self._keys.watch()], LONGEST_BREAK_MS)

    async def polled_at_ms(self, accounts: Iterable[str]) -> dict[str, int]:
        """Read when accounts were last polled successfully (Unix ms); 0: never, or it cannot be read."""
        names_by_shard: dict[int, list[str]] = {}
        for name in accounts:
            names_by_shard.setdefault(shard_of(name), []).append(name)
        found: dict[str, int] = {}
        for names in names_by_shard.values():
            for part in in_parts(names, _AT_ONCE):
                texts = await self._pipe.script(_READ_POLLED, [*map(self._keys.state, part)])
                for name, text in zip(part, texts, strict=True):
                    found[name] = int(text) if text.isdigit() else 0
        return found

    async def take_turns(
        self,
        provider: str,
        turns: int,
        *,
        spacing_ms: float,
        not_before_ms: float = 0,
        within_ms: float | None = None,
    ) -> float:
        """Reserve starts of requests over all workers. Returns in how many ms the first one is. If that is
        more than `within_ms`, nothing is reserved."""
        return await self._schedule.take_turns(
            self._keys.rate(provider),
            turns,
            spacing_ms=spacing_ms,
            not_before_ms=not_before_ms,
            within_ms=within_ms,
        )

    async def next_turn_ms(self, provider: str) -> float:
        """Return in how many ms the next turn would be, without reserving it."""
        return await self._schedule.take_turns(self._keys.rate(provider), 0, spacing_ms=0, within_ms=0)

    async def read_state(self, provider: str, account: str) -> AccountState | None:
        """Read an account's state; None before its baseline. Raises BadState."""
        kept = await self._read_state(provider, account)
        return kept.state if kept else None

    async def state_of(self, provider: str, account: str) -> AccountState | None:
        """Return an account's state as the last commit of this process left it, or else read it. If another
        worker moved it on since, the next commit is refused, and then it is read."""
        if self._reads_to_come:
            self._reads_to_come -= 1
        elif kept := self._kept.get(account):
            return kept.touched
        read = await self._read_state(provider, account)
        if read is None:
            return None
        self._kept.keep(account, read)
        return read.state

    def drop_state(self, account: str) -> None:
        """Keep an account's state no longer: the next time it is read."""
        self._kept.take(account)

    async def _read_state(self, provider: str, account: str) -> Kept | None:
        with damage_named():
            text = await self._pipe.command("GET", self._keys.state(account))
        if text is None:
            return None
        state = await self.names.load(provider, text)
        return Kept.of(state, text, is_ours=False)

    async def commit(self, commit: Commit) -> Committed:
        """Write a step. Raises BadState."""
        account, provider, lease, expected_version, step, due_ms, to_lease, until = commit
        state, shard = step.state, shard_of(account)
        kept = self._kept.take(account)
        is_kept = kept and lease and kept.state.version == expected_version
        text = await self.names.dump(provider, state, kept)
        keys = [self._keys.state(account), self._keys.queued(account)]
        arguments: list[Any] = [
            account,
            lease.deadline if lease else "",
            kept.fence if kept and is_kept else expected_version,
            state.version,
            due_ms,
            text,
            step.follows,
            len(step.notes),
            *step.notes,
            len(step.events),
        ]
        for event in step.events:
            arguments += (event.reference, event.stored, int(event.is_logged))
        arguments.append(len(step.queued))
        for subscription, places in step.queued.items():
            keys += (self._keys.queue(subscription, account), self._keys.queues(shard, subscription))
            arguments += (subscription, until if subscription in to_lease else "", len(places), *places)
        joint = self._commits[shard, provider]
        try:
            answer, found = await self._pipe.step(joint, tuple(keys), *arguments)
        except DamagedKey as error:
            raise BadState(_DAMAGED) from error
        reply = REPLIES[answer]
        if reply in DONE and lease:
            self._kept.keep(account, Kept.of(state, text, is_ours=True))
        elif reply is Reply.MOVED_ON and is_kept:
            self._reads_to_come = _READS_AFTER_A_RIVAL
        leased = {}
        if found:
            names = [*step.queued]
            for place, previous in zip(found[::2], found[1::2], strict=True):
                leased[names[place]] = _deliveries(step, names[place], previous)
        return Committed(reply, leased)

    async def touch(
        self,
        provider: str,
        lease: Lease,
        *,
        version: str,
        polled_at_ms: int,
        due_ms: float,
        height: int | None = None,
    ) -> Reply:
        """Note a successful poll that found nothing new, with its `height` if the state has one. A state at a
        greater height has moved on. Raises BadState."""
        joint = self._touches[shard_of(lease.member), provider]
        arguments = (*lease, version, stamp_of(polled_at_ms, height), due_ms)
        try:
            (answer,) = await self._pipe.step(joint, (self._keys.state(lease.member),), *arguments)
        except DamagedKey as error:
            raise BadState(_DAMAGED) from error
        reply, kept = REPLIES[answer], self._kept.get(lease.member)
        if kept and reply is Reply.DONE and kept.state.version == version:
            kept.polled_at_ms = polled_at_ms
            kept.height = kept.height if height is None else height
        elif kept:
            self._kept.take(lease.member)
        return reply

    async def postpone(
        self, provider: str, lease: Lease, *, why: str, at_least_ms: int, waits_ms: Sequence[int]
    ) -> Postponed | None:
        """Note a rejected poll; None when the lease was lost meanwhile."""
        shard = shard_of(lease.member)
        keys = [*self._of_polls(shard, provider)]
        reply = await self._pipe.script(
            _POSTPONE, keys, lease.member, lease.deadline, why, at_least_ms, provider, *waits_ms
        )
        return None if reply[0] < 0 else Postponed(*reply)

    async def release(self, provider: str, lease: Lease, *, due_in_ms: int = 0) -> Reply:
        keys = self._schedule_keys(shard_of(lease.member), provider)
        return await self._schedule.release([*keys], lease, due_in_ms, provider)

    def _of_polls(self, shard: int, provider: str) -> tuple[str, str, str]:
        keys = self._keys
        return keys.polls(shard, provider), keys.failing(shard, provider), keys.due_polls(shard)

    def _schedule_keys(self, shard: int, provider: str) -> tuple[str, ...]:
        return self._keys.polls(shard, provider), self._keys.due_polls(shard)


def _deliveries(step: Step, subscription: str, previous: bytes) -> tuple[Delivery, ...]:
    """Make the deliveries that a step put into an empty queue; `previous` is the sequence before them."""
    before, deliveries = None if previous == b"-" else int(previous), []
    for place in step.queued[subscription]:
        event = step.events[place]
        deliveries.append(event.to(subscription, before))
        before = event.sequence
    return tuple(deliveries)


def read_failing(said: bytes) -> Failing:
    """Read `count since_ms error_class reason`."""
    match = _FAILING.match(said)
    if not match:
        return Failing(0, 0, "unknown", "what is noted of it cannot be read")
    rejections, since_ms, error_class, reason = (part.decode("utf-8", "replace") for part in match.groups())
    return Failing(int(rejections), int(since_ms), error_class, reason)


def read_watch(said: bytes | None) -> int:
    """Read since when workers check (Unix ms): the first number of `since_ms seen_ms`; 0 if it is missing."""
    match = _WATCH.match(said or b"")
    return int(match[1]) if match else 0


class damage_named:  # noqa: N801 -- as `errors.translated`
    """Raise BadState if a key of the account, or one that it shares, has another type."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, DamagedKey):
            raise BadState(_DAMAGED) from error
