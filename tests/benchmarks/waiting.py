"""What waits in Redis: writes states and deliveries by the worker's own commits, and weighs them."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import orjson

from tests.benchmarks.stage import PROVIDER, Stage, a_namespace, account_names
from watcher.journal.account import AccountState, Entry
from watcher.journal.events import Delivery
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
_EVENT_TYPE = "total.increased"
_DATA = {
    "account": {"name": "account-1", "provider": PROVIDER},
    "asset": {"id": "1", "symbol": "LRC", "name": "Loopring", "decimals": 18},
    "sequence": _NOW_MS,
    "amount": "12.5",
    "effect": {"total": "12.5", "locked": "0", "pending_deposit": "0", "pending_withdrawal": "0"},
    "before": _TOLD,
    "after": _TOLD,
    "observed": {"from": "2026-11-20T14:02:35.001Z", "to": "2026-11-20T14:03:05.098Z"},
}


def some_deliveries(count: int) -> Iterator[Delivery]:
    """Yield deliveries as a credit makes them."""
    for sequence in range(_NOW_MS, _NOW_MS + count):
        event_id = f"evt_{sequence:024}"
        body = {"id": event_id, "type": _EVENT_TYPE, "timestamp": "2026-11-20T14:03:05.120Z", "data": _DATA}
        yield Delivery(event_id, _EVENT_TYPE, sequence, orjson.dumps(body))


async def write_backlog(stage: Stage, keys: Keys, queues: int, per_queue: int) -> None:
    """Let `per_queue` deliveries wait in each of so many queues."""
    deliveries = {SUBSCRIPTION: list(some_deliveries(per_queue))}
    await _commit(stage, keys, account_names(queues), _state(["1"]), deliveries)


async def delivery_bytes(stage: Stage, queues: int, per_queue: int) -> float:
    """Say what one waiting delivery costs: its place in the queue, and its share of the queue's schedule."""
    keys = Keys(a_namespace())
    await write_backlog(stage, keys, queues, per_queue)
    used = await _used(stage, [keys.queue(SUBSCRIPTION, name) for name in account_names(queues)])
    used += await _used(stage, [keys.queues(shard, SUBSCRIPTION) for shard in range(SHARDS)])
    return used / (queues * per_queue)


async def account_bytes(stage: Stage, accounts: int, asset_ids: Sequence[str]) -> float:
    """Say what one account costs: its state, and its place in the schedule."""
    keys, names = Keys(a_namespace()), account_names(accounts)
    await _commit(stage, keys, names, _state(asset_ids), {})
    used = await _used(stage, [keys.state(name) for name in names])
    used += await _used(stage, [keys.polls(shard, PROVIDER) for shard in range(SHARDS)])
    return used / accounts


def _state(asset_ids: Sequence[str]) -> AccountState:
    assets = [Asset(asset_id, f"TOK{i}", f"Token {i}", 18) for i, asset_id in enumerate(asset_ids)]
    return AccountState(
        source="0" * 32,
        watched=None,
        entry_by_asset={asset.id: Entry(asset, _BALANCE, _BALANCE) for asset in assets},
        previous_sequence={SUBSCRIPTION: _NOW_MS},
        version="0" * 16,
        sequence=_NOW_MS,
        polled_at_ms=_NOW_MS,
    )


async def _commit(
    stage: Stage,
    keys: Keys,
    names: list[str],
    state: AccountState,
    deliveries: Mapping[str, list[Delivery]],
) -> None:
    """Commit the same state and deliveries for every account, each under its own lease."""

    def step(lease: Lease) -> Commit:
        return Commit(lease.member, PROVIDER, lease, "", state, 2 * _NOW_MS, (), deliveries)

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
