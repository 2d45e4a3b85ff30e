"""What the store holds, read in bulk for people: states, schedules, what fails and what waits.

Refuses to write anything, and to know what is to be thought of it.
"""

import re
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from watcher.journal.ledger import AccountState
from watcher.store.batch import load_script
from watcher.store.history import START
from watcher.store.keys import SHARDS, Keys, read_count, read_score, shard_of
from watcher.store.pipe import Pipe
from watcher.store.roster import provider_names
from watcher.store.state import BadState, load_state

_READ_STATES = load_script("read_states")
_COUNT_QUEUES = load_script("count_queues")
_MEASURE_QUEUES = load_script("measure_queues")

_FAILING = re.compile(rb"([0-9]{1,9}) ([0-9]{1,14}) (\S+) ?(.*)\Z", re.DOTALL)

_AT_ONCE = 200
"""Keys of one script call: a millisecond of the server's time."""


class Seen(NamedTuple):
    """An account's state, None before it is first written; `damage` says why it cannot be read.

    `log_end` is the last record of its shard's log that was written when this was its state.
    """

    account: str
    state: AccountState | None
    damage: str | None = None
    log_end: str = START


class Failing(NamedTuple):
    """Polls of an account that were refused in a row, since when (Unix ms), and why the last one was."""

    refusals: int
    since_ms: int
    error_class: str
    reason: str


class Overdue(NamedTuple):
    """How many polls of a provider are scheduled, and when the first of them is, or was, due (Unix ms)."""

    accounts: int
    first_due_ms: int | None


@dataclass(slots=True)
class Backlog:
    """What waits for one subscription. `oldest_sequence` is about the Unix ms of its oldest delivery."""

    queues: int = 0
    deliveries: int = 0
    retrying: int = 0
    dead: int = 0
    oldest_sequence: int | None = None


class Survey:
    """Reads one namespace. Methods raise StoreError when the server does not do its part."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def now_ms(self) -> int:
        """Ask the server for its time."""
        seconds, microseconds = await self._pipe.command("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def read_states(self, accounts: Sequence[str]) -> AsyncIterator[Seen]:
        """Read the states of accounts, in the order given."""
        most = _AT_ONCE * SHARDS
        for start in range(0, len(accounts), most):
            part = accounts[start : start + most]
            seen_by_account: dict[str, Seen] = {}
            for shard, names in _by_shard(part):
                for seen in await self._states(shard, names):
                    seen_by_account[seen.account] = seen
            for name in part:
                yield seen_by_account[name]

    async def scheduled(self) -> dict[str, str]:
        """Name the accounts that are polled, each with its provider: whatever this process has configured."""
        (said,) = await self._pipe.command("HMGET", self._keys.meta(), "providers")
        found: dict[str, str] = {}
        for provider in provider_names(said):
            for shard in range(SHARDS):
                for name in await self._pipe.command("ZRANGE", self._keys.polls(shard, provider), 0, -1):
                    found[name.decode("utf-8", "replace")] = provider
        return found

    async def failing(self, provider: str) -> dict[str, Failing]:
        """Read which accounts of a provider fail."""
        found: dict[str, Failing] = {}
        for shard in range(SHARDS):
            pairs = await self._pipe.command("HGETALL", self._keys.failing(shard, provider))
            for name, said in zip(pairs[::2], pairs[1::2], strict=True):
                found[name.decode("utf-8", "replace")] = _failing(said)
        return found

    async def overdue(self, provider: str) -> Overdue:
        """Read how a provider's schedule stands. A time far in the past says that nobody polls."""
        accounts = 0
        first_due: list[int] = []
        for shard in range(SHARDS):
            key = self._keys.polls(shard, provider)
            accounts += await self._pipe.command("ZCARD", key)
            first = await self._pipe.command("ZRANGE", key, 0, 0, "WITHSCORES")
            first_due += map(read_score, first[1:])
        return Overdue(accounts, min(first_due, default=None))

    async def backlogs(self, configured: Collection[str]) -> dict[str, Backlog]:
        """Measure what waits for each subscription: the configured ones, and others that are still owed."""
        backlogs = {name: Backlog() for name in configured}
        for shard in range(SHARDS):
            for name in await self._pipe.command("ZRANGE", self._keys.due_subscriptions(shard), 0, -1):
                backlogs.setdefault(name.decode("utf-8", "replace"), Backlog())
        for shard in range(SHARDS):
            names = [*backlogs]
            for start in range(0, len(names), _AT_ONCE):
                await self._count_queues(shard, names[start : start + _AT_ONCE], backlogs)
        return backlogs

    async def _states(self, shard: int, names: list[str]) -> list[Seen]:
        found: list[Seen] = []
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            keys = [self._keys.log(shard), *map(self._keys.state, part)]
            end, *fields = await self._pipe.script(_READ_STATES, keys)
            for i, name in enumerate(part):
                found.append(_seen(name, fields[4 * i : 4 * i + 4], end.decode()))
        return found

    async def _count_queues(self, shard: int, names: list[str], backlogs: dict[str, Backlog]) -> None:
        kinds = (self._keys.queues, self._keys.tries, self._keys.dead)
        keys = [kind(shard, name) for name in names for kind in kinds]
        counts = await self._pipe.script(_COUNT_QUEUES, keys)
        for i, name in enumerate(names):
            queues, retrying, dead = counts[3 * i : 3 * i + 3]
            backlogs[name].queues += queues
            backlogs[name].retrying += retrying
            backlogs[name].dead += dead
            if queues:
                await self._measure_queues(shard, name, backlogs[name])

    async def _measure_queues(self, shard: int, subscription: str, backlog: Backlog) -> None:
        accounts = await self._pipe.command("ZRANGE", self._keys.queues(shard, subscription), 0, -1)
        for start in range(0, len(accounts), _AT_ONCE):
            keys = [
                self._keys.queue(subscription, account.decode("utf-8", "replace"))
                for account in accounts[start : start + _AT_ONCE]
            ]
            measured = await self._pipe.script(_MEASURE_QUEUES, keys)
            backlog.deliveries += sum(measured[::2])
            made = [sequence for head in measured[1::2] if (sequence := sequence_in(head))]
            backlog.oldest_sequence = min(
                [*made, *([backlog.oldest_sequence] if backlog.oldest_sequence else [])], default=None
            )


def _by_shard(names: Sequence[str]) -> list[tuple[int, list[str]]]:
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(shard_of(name), []).append(name)
    return [*groups.items()]


def _seen(account: str, values: list[bytes], log_end: str) -> Seen:
    if not any(values):
        return Seen(account, None, None, log_end)
    names = ("version", "sequence", "polled_at", "body")
    fields = {name: value for name, value in zip(names, values, strict=True) if value}
    try:
        return Seen(account, load_state(fields), None, log_end)
    except BadState as damage:
        return Seen(account, None, str(damage), log_end)


def _failing(said: bytes) -> Failing:
    """Read `count since_ms error_class reason`."""
    match = _FAILING.match(said)
    if not match:
        return Failing(0, 0, "unknown", "what is noted of it cannot be read")
    refusals, since_ms, error_class, reason = (part.decode("utf-8", "replace") for part in match.groups())
    return Failing(int(refusals), int(since_ms), error_class, reason)


def sequence_in(head: bytes) -> int | None:
    """Read the sequence in a delivery's first line, `id sequence type`; None for anything else."""
    try:
        _, sequence, _ = head.split(b" ")
        return read_count(sequence)
    except ValueError:
        return None
