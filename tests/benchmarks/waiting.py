"""What a backlog takes in Redis: writes states and deliveries by the worker's own commits, and measures."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence

import orjson

from tests.benchmarks.stage import PROVIDER, Stage, a_namespace, account_names
from watcher.journal.account import AccountState, Advance, Entry
from watcher.journal.events import Delivery, Event
from watcher.journal.step import Step
from watcher.snapshot import Asset, Balance
from watcher.store.keys import SHARDS, Keys
from watcher.store.members import Roster
from watcher.store.polls import Commit, Polls
from watcher.store.schedule import Lease

ASSETS = 10
SUBSCRIPTION = "ops"

_AT_ONCE = 100
_NOW_MS = 1_795_175_125_000
_BALANCE = Balance("1234.567890123456789", "12.5", "0", "0")
_TOLD = {
    "total": "1234.567890123456789",
    "locked": "12.5",
    "available": "1222.067890123456789",
    "pending_deposit": "0",
    "pending_withdrawal": "0",
}
_ASSET = Asset("1", "LRC", "Loopring", 18)
_EVENT_TYPE = "total.increased"
_DATA = {
    "account": {"name": "account-1", "provider": PROVIDER},
    "asset": _ASSET._asdict(),
    "sequence": _NOW_MS,
    "amount": "12.5",
    "effect": {"total": "12.5", "locked": "0", "pending_deposit": "0", "pending_withdrawal": "0"},
    "before": _TOLD,
    "after": _TOLD,
    "observed": {"from": "2026-11-20T14:02:35.001Z", "to": "2026-11-20T14:03:05.098Z"},
}


def some_events(count: int, *, first: int = 0) -> Iterator[Event]:
    """Yield events as a credit makes them, no two of them the same as those with another `first`."""
    for sequence in range(_NOW_MS + first, _NOW_MS + first + count):
        event_id = f"evt_{sequence:024}"
        body = {"id": event_id, "type": _EVENT_TYPE, "timestamp": "2026-11-20T14:03:05.120Z", "data": _DATA}
        yield Event(event_id, _EVENT_TYPE, "account-1", _ASSET, "12.5", sequence, orjson.dumps(body))


def some_deliveries(count: int) -> Iterator[Delivery]:
    """Yield the deliveries of such events, each behind another."""
    for event in some_events(count):
        yield event.to(SUBSCRIPTION, event.sequence - 1)


async def write_backlog(stage: Stage, keys: Keys, queues: int, per_queue: int) -> None:
    """Let `per_queue` deliveries wait in each of so many queues."""
    await _commit(stage, keys, account_names(queues), _state(["1"]), per_queue)


async def delivery_bytes(stage: Stage, queues: int, per_queue: int) -> float:
    """Say what one waiting delivery costs, if no other subscription gets the event: its place in the queue,
    the event's body, and its share of the queue's schedule. The log is not in it: it has a bound."""
    keys = Keys(a_namespace())
    await write_backlog(stage, keys, queues, per_queue)
    used = await _used(stage, [keys.queue(SUBSCRIPTION, name) for name in account_names(queues)])
    used += await _used(stage, [keys.bodies(shard) for shard in range(SHARDS)])
    used += await _used(stage, [keys.queues(shard, SUBSCRIPTION) for shard in range(SHARDS)])
    return used / (queues * per_queue)


async def account_bytes(stage: Stage, accounts: int, asset_ids: Sequence[str]) -> float:
    """Say what one account costs: its state, what was queued of it last, and its place in the schedule."""
    keys, names = Keys(a_namespace()), account_names(accounts)
    await _commit(stage, keys, names, _state(asset_ids), 1)
    used = await _used(stage, [keys.state(name) for name in names])
    used += await _used(stage, [keys.queued(name) for name in names])
    used += await _used(stage, [keys.polls(shard, PROVIDER) for shard in range(SHARDS)])
    return used / accounts


def _state(asset_ids: Sequence[str]) -> AccountState:
    assets = [Asset(asset_id, f"TOK{i}", f"Token {i}", 18) for i, asset_id in enumerate(asset_ids)]
    return AccountState(
        source="0" * 32,
        watched=None,
        entry_by_asset={asset.id: Entry(asset, _BALANCE, _BALANCE) for asset in assets},
        version="0" * 16,
        sequence=_NOW_MS,
        polled_at_ms=_NOW_MS,
    )


async def _commit(
    stage: Stage,
    keys: Keys,
    names: list[str],
    state: AccountState,
    per_queue: int,
) -> None:
    """Commit the same state for every account, and events of its own, each under its own lease."""
    numbers = itertools.count(step=per_queue)

    def step(lease: Lease) -> Commit:
        events = tuple(some_events(per_queue, first=next(numbers)))
        queued = {SUBSCRIPTION: range(per_queue)}
        made = Step(state, state.sequence, events, queued, (), Advance(is_baseline=False, is_news=True))
        return Commit(lease.member, PROVIDER, lease, "", made, 2 * _NOW_MS)

    polls = Polls(stage.schedule, keys)
    await Roster(stage.schedule.pipe, keys).enroll({PROVIDER: names}, now_ms=0)
    for shard in range(SHARDS):
        leases = (await polls.claim(PROVIDER, shard, lease_ms=600_000, at_most=len(names))).leases
        for i in range(0, len(leases), _AT_ONCE):
            await asyncio.gather(*(polls.commit(step(lease)) for lease in leases[i : i + _AT_ONCE]))


async def _used(stage: Stage, keys: Sequence[str]) -> int:
    async with stage.client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.memory_usage(key, samples=0)
        return sum(used or 0 for used in await pipeline.execute())
