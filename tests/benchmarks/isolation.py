"""Measures what dead subscribers cost a live one, through the whole worker: polls, commits, Redis, POSTs.

    python -m tests.benchmarks.isolation            # about a minute and a half
    python -m tests.benchmarks.isolation --quick    # the same, small

One live subscription gets 20 events a second, in one process and against one server all the time: first
alone, then beside 1,000 dead ones (a quarter each: hang, refuse, dead DNS, TLS failure) with 10 deliveries
due at once in as many queues of each and more coming, then while 10,000 retries of one that has come back
are due at once. Latency is from the sending of a commit to the arrival at the receiver. Exits 1 unless the
live p99 stays within 100 ms of the quiet one, no live attempt fails, and the one that came back is asked by
one attempt before it gets the rest.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import aiohttp
from aiohttp import AsyncResolver
from pydantic import SecretStr

from tests.benchmarks.dead_servers import LIVE_NAME, DeadServers, dead_servers
from tests.benchmarks.measures import TimedPolls, running
from tests.benchmarks.raw_loop import latencies_ms, receipts
from tests.benchmarks.stage import Stage, a_stage, perform, say, some_settings
from tests.benchmarks.waiting import some_deliveries
from tests.support.builders import SECRET
from tests.support.stores import fail
from watcher.http import dial
from watcher.observe.counters import Counters
from watcher.settings import Settings, SubscriptionSettings
from watcher.store.keys import Keys
from watcher.store.queues import Breakers, Queues

EVENTS_PER_SECOND = 20
MORE_MS = 100
"""How much above the quiet run the live p99 may be."""

DEATHS = ("hang", "refuse", "dns", "tls")
BACK = "back"
MOST_IN_FLIGHT = 32
"""The default of `max_in_flight`."""

_AT_ONCE = 100


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    seconds: float = 25
    dead: int = 1000
    queues_each: int = 10
    fed_per_second: int = 100
    retries: int = 10_000
    rest_s: float = 8
    warm_up_s: float = 2
    percentile: int = 99


QUICK = Plan(
    seconds=3,
    rest_s=3,
    warm_up_s=1.5,
    dead=100,
    queues_each=10,
    fed_per_second=50,
    retries=300,
    percentile=90,
)
"""The 99th of sixty is the last one, and says more about the machine."""


class Phase(NamedTuple):
    """What the live subscription saw, and how many attempts the others took meanwhile."""

    name: str
    latency_ms: list[float]
    failed: int
    others: int

    def percentile(self, percent: int) -> float:
        return self.latency_ms[len(self.latency_ms) * percent // 100]


class Back(NamedTuple):
    """How the one that has come back was treated."""

    taken: int
    most_in_flight: int
    alone: bool
    seconds: float


class Found(NamedTuple):
    quiet: Phase
    dead: Phase
    back: Phase
    treated: Back

    def faults(self, plan: Plan) -> Iterator[str]:
        """Name what is not as it must be."""
        for phase in self[:3]:
            if phase.failed:
                yield f"{phase.name}: {phase.failed} attempts of the live subscription failed"
            if len(phase.latency_ms) < 0.8 * EVENTS_PER_SECOND * min(plan.seconds, 3):
                yield f"{phase.name}: only {len(phase.latency_ms)} live events"
            if phase.percentile(plan.percentile) > self.quiet.percentile(plan.percentile) + MORE_MS:
                yield f"{phase.name}: the live p{plan.percentile} is over {MORE_MS} ms above the quiet one"
        if self.dead.others < plan.dead / 2:  # half of them hang, perhaps still
            yield "the dead ones were not all tried"
        if not self.treated.alone:
            yield "the one that came back was not asked by one attempt first"
        if self.treated.most_in_flight > MOST_IN_FLIGHT:
            yield f"the one that came back had more than {MOST_IN_FLIGHT} at a time"


async def measure(plan: Plan) -> Found:
    with dead_servers() as ports:
        _use_dns(ports.dns)
        async with a_stage() as stage:
            live = stage.url.replace("127.0.0.1", LIVE_NAME)
            say("alone")
            async with _living(stage, live, ()) as watch:
                await asyncio.sleep(plan.warm_up_s)  # baselines, connections
                quiet = await watch.phase("alone", plan.seconds)
            dead = [_dead(ports, number) for number in range(plan.dead)]
            back = _subscription(BACK, f"http://127.0.0.1:{ports.back}/")
            async with _living(stage, live, [*dead, back]) as watch:
                await asyncio.sleep(plan.warm_up_s)
                say("beside the dead")
                names = [each.name for each in dead]
                await watch.add_backlog({name: _accounts(plan.queues_each) for name in names})
                async with watch.feeding(names, plan.fed_per_second):
                    beside = await watch.phase("beside the dead", plan.seconds)
                    say("while one comes back")
                    await watch.let_back_off(BACK, plan.rest_s)
                    await asyncio.sleep(1.5)  # until the worker knows
                    await watch.add_backlog({BACK: _accounts(plan.retries)})
                    after, treated = await watch.coming_back(ports.back, plan.retries)
    return Found(quiet, beside, after, treated)


class _Watch:
    """Observes a running worker, and queues deliveries for its subscriptions."""

    def __init__(self, stage: Stage, settings: Settings, counters: Counters, polls: TimedPolls) -> None:
        keys = Keys(settings.redis.namespace)
        self._url = stage.url
        self._counters = counters
        self._polls = polls
        self._queues = Queues(stage.schedule, keys)
        self._breakers = Breakers(stage.schedule.pipe, keys)
        self._bodies = itertools.cycle(some_deliveries(1000))

    async def phase(self, name: str, seconds: float) -> Phase:
        return await self._phase(name, asyncio.sleep(seconds))

    async def coming_back(self, port: int, retries: int) -> tuple[Phase, Back]:
        started = time.monotonic()

        async def until_all_is_taken() -> dict[str, Any]:
            while (seen := await _ask(port))["taken"] < retries:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.2)
            await asyncio.sleep(max(0, 3 - (time.monotonic() - started)))  # enough events for a percentile
            return seen

        task = asyncio.create_task(until_all_is_taken())
        phase = await self._phase("while one comes back", asyncio.wait_for(task, 120))
        seen = task.result()
        return phase, Back(seen["taken"], seen["most_in_flight"], seen["alone"], time.monotonic() - started)

    async def _phase(self, name: str, end: Any) -> Phase:
        await receipts(self._url)
        self._polls.sent_at.clear()
        before = self._counters.by_attempt.copy()
        await end
        found = latencies_ms(self._polls.sent_at, await receipts(self._url))
        made = self._counters.by_attempt - before
        mine = {outcome: count for (name, outcome), count in made.items() if name == "ops"}
        return Phase(
            name, found, sum(mine.values()) - mine.get("delivered", 0), made.total() - sum(mine.values())
        )

    async def add_backlog(self, accounts_by_name: dict[str, list[str]]) -> None:
        """Let deliveries be due that do not come from this worker's polls."""
        wanted = [(name, account) for name, accounts in accounts_by_name.items() for account in accounts]
        for i in range(0, len(wanted), _AT_ONCE):
            some = wanted[i : i + _AT_ONCE]
            await asyncio.gather(*(self._queues.enqueue(*queue, [next(self._bodies)]) for queue in some))

    async def let_back_off(self, name: str, for_s: float) -> None:
        """Let a subscription have failed until now: its retries are due when the breaker half-opens."""
        wish_ms = int(1000 * for_s)
        await fail(self._breakers, name, "status 503", open_ms=wish_ms)

    @asynccontextmanager
    async def feeding(self, names: Sequence[str], per_second: int) -> AsyncIterator[None]:
        async def feed() -> None:
            for number in itertools.count():
                name = names[number * 7919 % len(names)]
                await self._queues.enqueue(name, f"fed-{number % 50}", [next(self._bodies)])
                await asyncio.sleep(1 / per_second)

        task = asyncio.create_task(feed())
        yield
        task.cancel()


@asynccontextmanager
async def _living(stage: Stage, live: str, others: Sequence[SubscriptionSettings]) -> AsyncIterator[_Watch]:
    """A worker that delivers 20 events a second to the live one, and has these others to deliver to."""
    settings = some_settings(
        f"{stage.url}/restless",
        EVENTS_PER_SECOND,  # accounts: their baselines take a second
        subscriber=f"{live}/timed",
        polls_per_second=EVENTS_PER_SECOND,
    )
    settings.subscription_by_name.update({each.name: each for each in others})
    counters = Counters()
    polls = TimedPolls(stage.schedule, Keys(settings.redis.namespace))
    async with running(stage, settings, counters, polls) as task:
        yield _Watch(stage, settings, counters, polls)
        task.cancel()  # those that hang are not waited for


def _dead(ports: DeadServers, number: int) -> SubscriptionSettings:
    death = DEATHS[number % len(DEATHS)]
    url = {
        "hang": f"http://127.0.0.1:{ports.hang}/{number}",
        "refuse": f"http://127.0.0.1:{ports.refuse}/{number}",
        "dns": f"http://dead-{number}.example.com/",
        "tls": f"https://127.0.0.1:{ports.tls}/{number}",
    }[death]
    return _subscription(f"dead-{number}", url)


def _subscription(name: str, url: str) -> SubscriptionSettings:
    """It matches no account that is polled here: its deliveries are queued by `add_backlog`."""
    return SubscriptionSettings(
        name=name, url=SecretStr(url), secrets=(SecretStr(SECRET),), accounts=("nobody",)
    )


def _accounts(count: int) -> list[str]:
    return [f"account-{number}" for number in range(count)]


def _use_dns(port: int) -> None:
    """Let the worker's resolver, as it is, ask our server instead of the one in resolv.conf."""
    asking_ours = partial(AsyncResolver, nameservers=["127.0.0.1"], udp_port=port, tcp_port=port)
    dial.AsyncResolver = asking_ours  # type: ignore[assignment,attr-defined]


async def _ask(port: int) -> dict[str, Any]:
    async with aiohttp.request("GET", f"http://127.0.0.1:{port}/") as answer:
        seen: dict[str, Any] = await answer.json()
        return seen


def table(found: Found) -> Iterator[str]:
    yield "| the live one | events | p50 ms | p99 ms | longest ms | failed | attempts of the others |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for phase in found[:3]:
        p50, p99, longest = phase.percentile(50), phase.percentile(99), phase.latency_ms[-1]
        count = len(phase.latency_ms)
        yield (
            f"| {phase.name} | {count} | {p50:.1f} | {p99:.1f} | {longest:.1f} | {phase.failed} "
            f"| {phase.others:,} |"
        )
    treated = found.treated
    yield ""
    yield (
        f"The one that came back took {treated.taken:,} in {treated.seconds:.1f} s, at most "
        f"{treated.most_in_flight} at a time; {'one' if treated.alone else 'more than one'} came first."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    what = "Measures what dead subscribers cost a live one."
    found, plan = perform(measure, arguments, what=what, full=Plan(), quick=QUICK)
    print("\n".join(table(found)))
    if faults := list(found.faults(plan)):
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
