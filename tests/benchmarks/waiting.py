"""What lies in Redis while it waits: writes states and backlogs by the worker's own commits, and weighs them."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from builders import SECRET as SECRET
from stage import PROVIDER, Stage, account_names

from watcher.events import Origin, tell
from watcher.journal import Change, Vector
from watcher.ledger import AccountState, Entry, Moved
from watcher.snapshot import Asset, Balance
from watcher.store.keys import SHARDS, Keys, shard_of
from watcher.store.lanes import Delivery
from watcher.store.polls import Commit, Polls
from watcher.store.roster import Roster
from watcher.store.schedule import Lease

ASSETS = 10
_AT_ONCE = 100
_BALANCE = Balance("1234.567890123456789", "12.5", "0", "0")


async def write_backlog(stage: Stage, keys: Keys, lanes: int, per_lane: int) -> None:
    """Let `per_lane` events wait for the subscription `ops` in each of so many lanes."""
    names = account_names(lanes)
    state = a_state(["1"])
    await _commit(stage, keys, {name: state for name in names}, {"ops": list(_deliveries(per_lane))})


async def delivery_bytes(stage: Stage, keys: Keys, lanes: int, per_lane: int) -> tuple[float, int]:
    """What one waiting delivery costs the server, and how long its body is."""
    used = await _used(stage, [keys.lane("ops", name) for name in account_names(lanes)])
    used += await _used(stage, [keys.lanes(shard, "ops") for shard in range(SHARDS)])
    (delivery,) = _deliveries(1)
    return used / (lanes * per_lane), len(delivery.body)


async def account_bytes(stage: Stage, keys: Keys, accounts: int, asset_ids: Sequence[str]) -> float:
    """What one account costs the server: its state and its place in the schedule."""
    names = account_names(accounts)
    state = a_state(asset_ids)
    await _commit(stage, keys, {name: state for name in names}, {})
    used = await _used(stage, [keys.state(name) for name in names])
    used += await _used(stage, [keys.polls(shard, PROVIDER) for shard in range(SHARDS)])
    return used / accounts


def a_state(asset_ids: Iterable[str]) -> AccountState:
    entries = {}
    for number, asset_id in enumerate(asset_ids):
        asset = Asset(asset_id, f"TOK{number}", f"Token {number}", 18)
        entries[asset_id] = Entry(asset, _BALANCE, _BALANCE)
    return AccountState("0" * 32, None, entries, {"ops": 1_795_175_095_846}, "0" * 16, 1_795_175_095_846, 0)


def _deliveries(count: int) -> Iterable[Delivery]:
    change = Change("total.increased", 10**78, Vector(10**78), Vector(), Vector(10**78))
    moved = Moved(Asset("1", "LRC", "Loopring", 18), Balance("0", "0", "0", "0"), change)
    origin = Origin("account-1000", PROVIDER, 1_795_175_095_845, 1_795_175_095_000, 1_795_175_125_000)
    for event in tell([moved] * count, origin, first_sequence=1_795_175_095_846, now_ms=1_795_175_125_001):
        body = event.body("ops", event.sequence - 1)
        yield Delivery(event.id, event.type, event.sequence, body)


async def _commit(
    stage: Stage, keys: Keys, state_by_account: Mapping[str, AccountState], deliveries: Mapping[str, list[Delivery]]
) -> None:
    polls = Polls(stage.schedule, keys)
    await Roster(stage.schedule.pipe, keys).enroll({PROVIDER: list(state_by_account)}, now_ms=0)
    for shard in range(SHARDS):
        claimed = await polls.claim(PROVIDER, shard, lease_ms=600_000, at_most=len(state_by_account))
        for i in range(0, len(claimed.leases), _AT_ONCE):
            await asyncio.gather(*(polls.commit(_step(lease, state_by_account[lease.member], deliveries)) for lease in claimed.leases[i : i + _AT_ONCE]))


def _step(lease: Lease, state: AccountState, deliveries: Mapping[str, list[Delivery]]) -> Commit:
    return Commit(lease.member, PROVIDER, lease, "", state, 2**41, (), deliveries)


async def _used(stage: Stage, keys: Sequence[str]) -> int:
    async with stage.client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.memory_usage(key, samples=0)
        return sum(used or 0 for used in await pipeline.execute())
