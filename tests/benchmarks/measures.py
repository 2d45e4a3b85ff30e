"""The measures: each one lets the worker's own parts do one job on the stage, and says how fast it went."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from fast_server import TOKENS
from raw_loop import Speed, Watch, latencies_ms, receipts
from stage import PROVIDER, Stage, a_subscription, account_names, some_settings

from watcher.delivery.egress import Policy
from watcher.delivery.loop import DeliverLoop
from watcher.delivery.post import Poster, Target
from watcher.events import Event
from watcher.generation import Generation
from watcher.ledger import AccountState, Entry
from watcher.settings import Settings
from watcher.snapshot import Asset, Balance
from watcher.store.keys import SHARDS, Keys
from watcher.store.lanes import Delivery, Lanes
from watcher.store.polls import Commit, Polls
from watcher.store.roster import Roster
from watcher.store.schedule import Lease, Reply
from watcher.tally import Tally

_LEASE_MS = 600_000


class Measured(NamedTuple):
    """A job's speed, and what each item cost the server."""

    speed: Speed
    server_us: float


async def unchanged(stage: Stage, accounts: int, seconds: float) -> Measured:
    """Poll accounts of which nothing moves."""
    settings = some_settings(f"{stage.url}/still", accounts)
    tally = Tally()
    async with _running(stage, settings, tally):
        await _until(lambda: tally.polls >= 2 * accounts)
        measured = await _watch(stage, seconds, lambda: tally.polls)
    assert not tally.refused + tally.changes, "nothing was to change"
    return measured


async def changed(stage: Stage, accounts: int, seconds: float) -> Measured:
    """Poll accounts of which one asset moved each time, and deliver each event to one subscription."""
    settings = some_settings(f"{stage.url}/restless", accounts, subscriber=stage.url)
    tally = Tally()
    async with _running(stage, settings, tally):
        await _until(lambda: tally.deliveries >= accounts)
        measured = await _watch(stage, seconds, lambda: tally.deliveries)
    assert not tally.refused + tally.retried, "everything was to be taken"
    return measured


async def latencies(stage: Stage, accounts: int, count: int, *, per_second: float) -> list[float]:
    """How many ms events take from the sending of their commit to their arrival, at an even pace."""
    polls_per_second = 1.05 * per_second  # the loop stays that far below its limit
    settings = some_settings(
        f"{stage.url}/restless",
        accounts,
        subscriber=f"{stage.url}/timed",
        polls_per_second=polls_per_second,
    )
    tally = Tally()
    polls = _TimedPolls(stage.schedule, Keys(settings.redis.namespace))
    async with _running(stage, settings, tally, polls):
        await _until(lambda: tally.deliveries >= count)
    return latencies_ms(polls.sent_at, await receipts(stage.url))


class _TimedPolls(Polls):
    """Notes when the commit of each event is sent."""

    sent_at: dict[str, float]

    async def commit(self, step: Commit) -> tuple[Reply, int]:
        if not hasattr(self, "sent_at"):
            self.sent_at = {}
        for deliveries in step.deliveries.values():
            self.sent_at.update((delivery.event_id, time.monotonic()) for delivery in deliveries)
        return await super().commit(step)


class Backlog(NamedTuple):
    """How fast a backlog was worked off, and what it cost while it waited."""

    delivered: Measured
    bytes_each: float
    body_bytes: int


async def backlog(stage: Stage, lanes: int, per_lane: int) -> Backlog:
    """Deliver what waits, `per_lane` events in each lane of one subscription."""
    settings = some_settings(stage.url, 0, subscriber=stage.url)
    keys, tally = Keys(settings.redis.namespace), Tally()
    steps = _steps(settings, lanes, 1, "account-{}", _waiting(per_lane))
    before = await stage.used_memory()
    await _commit(stage, settings, steps)
    after = await stage.used_memory()
    policy = Policy(allow=settings.egress.allow, allow_http=True)
    async with Poster(policy) as poster, asyncio.TaskGroup() as group:
        target = Target(a_subscription(stage.url), policy)
        loop = DeliverLoop(
            Lanes(stage.schedule, keys), stage.schedule, poster, {"ops": target}, stage.health, tally
        )
        await stage.forget_commands()
        watch = Watch()
        group.create_task(loop.run())
        await _until(lambda: tally.deliveries >= lanes * per_lane)
        speed = watch.speed(tally.deliveries)
        loop.stop()
    empty_lanes = await account_bytes(stage, lanes, "{}", assets=1)
    waiting = lanes * per_lane
    return Backlog(
        Measured(speed, await stage.server_us() / waiting),
        (after - before - lanes * empty_lanes) / waiting,
        len(_body(0)),
    )


async def account_bytes(stage: Stage, accounts: int, asset_id: str, *, assets: int = TOKENS) -> float:
    """What one account costs the server: its state and its place in the schedule."""
    settings = some_settings(stage.url, 0)
    before = await stage.used_memory()
    await _commit(stage, settings, _steps(settings, accounts, assets, asset_id, []))
    return (await stage.used_memory() - before) / accounts
