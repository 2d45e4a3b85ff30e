"""The demonstration: its story, everything that it needs on one machine, and how it is played.

Each change is made only after the one before was reported. Refuses to wait for ever: a change that is not
reported in time ends the story, and the verdict says so.
"""

import asyncio
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from pydantic import SecretStr

from watcher.amounts import to_atoms
from watcher.delivery.signing import new_secret
from watcher.demo.judge import Arrival, Balances, Made, Verdict, judge
from watcher.journal.explain import Vector
from watcher.providers.declared import HttpAccount, HttpSettings
from watcher.providers.loopring import LoopringAccount, LoopringSettings
from watcher.providers.metakeep import MetaKeepAccount, MetaKeepSettings
from watcher.receiver import Receipt, Receiver
from watcher.run.worker import Worker
from watcher.sandbox import bank
from watcher.sandbox.book import AccountKey, Holding, ListedAsset, Move
from watcher.sandbox.knobs import BankKnobs, LoopringKnobs, MetakeepKnobs
from watcher.sandbox.loopring import BALANCES
from watcher.sandbox.metakeep import BALANCE
from watcher.sandbox.script import Step, default_script
from watcher.sandbox.script import play as play_script
from watcher.sandbox.server import Sandbox
from watcher.sandbox.world import ACME, ALICE, METAKEEP_ASSETS, TREASURY
from watcher.settings import EgressSettings, RedisSettings, Settings, SubscriptionSettings, WorkerSettings
from watcher.snapshot import asset_id


class Scene(NamedTuple):
    """One change. `event` is the type of event that it must become; None where it must become none.

    `heading` is what the audience should know from here on.
    """

    step: Step
    event: str | None
    heading: str = ""


def _treasury(do: str, amount: str, asset: str, event: str, *, heading: str = "", split: int = 0) -> Scene:
    return Scene(Step(0, do, TREASURY, asset, amount, {"split": split} if split else {}), event, heading)


def _alice(do: str, amount: str, asset: str, event: str, *, heading: str = "") -> Scene:
    return Scene(Step(0, do, ALICE, asset, amount), event, heading)


STORY = (
    _treasury("deposit.seen", "12.5", "LRC", "deposit.pending", heading="A deposit at Loopring"),
    _treasury("deposit.cleared", "12.5", "LRC", "deposit.cleared"),
    _treasury(
        "withdrawal.requested",
        "0.4",
        "ETH",
        "locked.increased",
        heading="A withdrawal; its end is reported two polls late, as the money might still come back",
    ),
    _treasury("withdrawal.debited", "0.4", "ETH", "withdrawal.pending"),
    _treasury("withdrawal.cleared", "0.4", "ETH", "withdrawal.cleared"),
    _alice("lock", "100", "ZBVS", "locked.increased", heading="A lock at MetaKeep"),
    Scene(
        Step(0, "fault", options={"provider": "loopring", "fault": "unavailable"}),
        None,
        "Loopring fails once, which is not read as zero",
    ),
    _treasury(
        "withdrawal.debited", "1200", "USDC", "withdrawal.pending", heading="A withdrawal that comes back"
    ),
    _treasury("withdrawal.returned", "1200", "USDC", "withdrawal.returned"),
    _treasury(
        "deposit.seen",
        "7.25",
        "LRC",
        "deposit.pending",
        heading="A deposit whose halves show a poll apart: still one event",
    ),
    _treasury("deposit.cleared", "7.25", "LRC", "deposit.cleared", split=1),
    _alice("unlock", "100", "ZBVS", "locked.decreased", heading="The lock goes, and 30 digits come: exactly"),
    _alice("credit", "123456789012.345678901234567891", "POL", "total.increased"),
)
"""Withdrawals are pending outside `total`, as is the default of settings and sandbox alike."""


NAME_BY_ACCOUNT: dict[AccountKey, str] = {TREASURY: "treasury", ALICE: "alice", ACME: "acme"}
"""What the worker calls the accounts of the sandbox's world."""

_BALANCES_PATHS = (BALANCES, BALANCE, bank.BALANCES.format(account=ACME))
_LOOK_S = 0.002
_DRAIN_S = 2
_OFTEN = 1000
"""Requests per second, on both sides: nothing here is slowed by a limit."""

PATIENCE_S = 4.0
"""Far longer than any step takes, and short enough to end within ten seconds if one fails."""

_START_S = 10.0
"""As long as the worker itself waits for its server, before it says what is wrong."""

_T = TypeVar("_T")
Show = Callable[[Scene, Made | None, Arrival | None], None]
"""Is called with a scene when it is over: the change (None: a fault), and the webhook that came of it."""


@dataclass(eq=False)
class Stage:
    """Where the demonstration takes place. `arrivals` are the webhooks since the start.

    `folder` is gone when it ends.
    """

    sandbox: Sandbox
    receiver: Receiver
    worker: Worker
    folder: Path
    arrivals: list[Arrival] = field(default_factory=list)

    def balances(self) -> Balances:
        """Return the current balances at the providers."""
        world = self.sandbox.world
        return {
            (NAME_BY_ACCOUNT[account.key], asset_id(name)): _vector(world.asset(account.provider, name), held)
            for account in world.accounts()
            for name, held in world.holdings(account.key).items()
        }

    def make(self, scene: Scene) -> Made:
        """Make a scene's change, and return its final effect."""
        step, world = scene.step, self.sandbox.world
        assert step.account is not None
        assert scene.event is not None
        listed = world.asset(world.account(step.account).provider, step.asset)
        before, at_s = world.holding_at_last(step.account, step.asset), time.monotonic()
        step.make(world, self.sandbox.knobs)
        effect = _vector(listed, world.holding_at_last(step.account, step.asset).minus(before))
        name, amount = NAME_BY_ACCOUNT[step.account], str(step.amount)
        return Made(name, asset_id(listed.id), listed.symbol, step.do, amount, scene.event, effect, at_s)

    async def next_arrival(self, so_far: int) -> Arrival:
        """Wait for the next webhook after the first `so_far`, repeats of an earlier one aside."""
        await _until(lambda: bool(self._news(so_far)))
        return self._news(so_far)[0]

    def _news(self, so_far: int) -> list[Arrival]:
        return [one for one in self.arrivals[so_far:] if not one.receipt.is_repeat]

    async def fail(self, step: Step) -> None:
        """Damage an answer, and wait until the worker has rejected it."""
        before = self.worker.counters.rejected
        step.make(self.sandbox.world, self.sandbox.knobs)
        await _until(lambda: self.worker.counters.rejected > before)

    async def polled(self, times: int) -> None:
        """Wait until each account was polled so many times more, and what was found is committed."""
        traffic = self.sandbox.traffic
        # The poll after them proves it: an account is not polled again before its last poll is committed.
        enough = {path: traffic.count(path) + times + 1 for path in _BALANCES_PATHS}
        await _until(lambda: all(traffic.count(path) >= count for path, count in enough.items()))


@asynccontextmanager
async def a_stage(interval: timedelta) -> AsyncIterator[Stage]:
    """Set everything up, each account polled every `interval`, and take it down again.

    Raises what the worker raises, in a group: ConfigurationRefused where there is no server program.
    """
    knobs: dict[str, Any] = {"requests_per_second": None}
    sandbox = Sandbox(
        loopring=LoopringKnobs(**knobs), metakeep=MetakeepKnobs(**knobs), bank=BankKnobs(**knobs)
    )
    async with staged(sandbox, partial(_settings, interval)) as stage:
        yield stage


@asynccontextmanager
async def staged(
    sandbox: Sandbox, configure: Callable[[Sandbox, Receiver, Path], Settings]
) -> AsyncIterator[Stage]:
    """Set up a worker between a sandbox and a receiver, its state in a directory of its own."""
    receiver = Receiver(secrets=[new_secret()], keep=100)
    with TemporaryDirectory(prefix="watcher-demo-") as folder:
        async with sandbox, receiver:
            worker = Worker(configure(sandbox, receiver, Path(folder)), name="demo")
            stage = Stage(sandbox, receiver, worker, Path(folder))
            receiver.notice = lambda receipt: stage.arrivals.append(Arrival(receipt, time.monotonic()))
            async with asyncio.TaskGroup() as group:
                group.create_task(worker.run(), name="worker")
                try:
                    yield stage
                finally:
                    worker.stop()


async def play(
    stage: Stage, *, show: Show, story: Sequence[Scene] = STORY, patience_s: float = PATIENCE_S
) -> Verdict:
    """Play the story and judge it. No change waits for longer than `patience_s` to be reported."""
    made: list[Made] = []
    baseline = stage.balances()
    settle_polls = max(provider.settle_polls for provider in stage.worker.settings.provider_by_name.values())
    try:
        async with asyncio.timeout(_START_S):
            await stage.polled(1)
        for scene in story:
            await _play_scene(stage, scene, made, show=show, patience_s=patience_s)
        async with asyncio.timeout(patience_s):
            # Whatever is still pending confirmation would be reported now, though no change is left.
            await stage.polled(settle_polls + 1)
    except TimeoutError:
        pass  # the verdict finds what is missing
    planned = sum(scene.event is not None for scene in story)
    return judge(made, stage.arrivals, planned=planned, baseline=baseline, now=stage.balances())


async def _play_scene(stage: Stage, scene: Scene, made: list[Made], *, show: Show, patience_s: float) -> None:
    """Play one scene until it is over. Raises TimeoutError for one that does not end."""
    if scene.event is None:
        async with asyncio.timeout(patience_s):
            await stage.fail(scene.step)
        show(scene, None, None)
        return
    so_far = len(stage.arrivals)
    made.append(stage.make(scene))
    try:
        async with asyncio.timeout(patience_s):
            arrival = await stage.next_arrival(so_far)
    except TimeoutError:
        show(scene, made[-1], None)
        raise
    show(scene, made[-1], arrival)


async def go_on(
    stage: Stage,
    script: Iterable[Step] | None = None,
    *,
    moved: Callable[[Move], None],
    made: Callable[[Step], None],
    arrived: Callable[[Receipt], None],
) -> None:
    """Play a script, by default the sandbox's own, and say what happens as it does. Never returns.

    Raises, in a group, what `moved`, `made` and `arrived` raise: neither a provider nor the receiver fails.
    """
    news: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    started_at = loop.time()

    async def until(at_s: float) -> None:
        await asyncio.sleep(started_at + at_s - loop.time())

    def soon(call: Callable[[_T], None]) -> Callable[[_T], None]:
        return lambda what: news.put_nowait(partial(call, what))

    stage.sandbox.world.on_move = soon(moved)
    stage.receiver.notice = soon(arrived)
    steps = default_script() if script is None else script
    world, knobs = stage.sandbox.world, stage.sandbox.knobs
    async with asyncio.TaskGroup() as group:
        group.create_task(play_script(steps, world, knobs, until=until, made=soon(made)), name="script")
        while True:
            (await news.get())()


def _settings(interval: timedelta, sandbox: Sandbox, receiver: Receiver, data_dir: Path) -> Settings:
    """Configure the worker as a file would, but for intervals below its limit of a second."""
    often: dict[str, Any] = {"interval": interval, "pending_interval": interval}
    key: dict[str, Any] = {"api_key": SecretStr("sandbox"), "requests_per_second": _OFTEN}
    declared = tomllib.loads(bank.section(sandbox.bank_url))["providers"]["bank"]
    currencies = tuple(asset.id for asset in METAKEEP_ASSETS)
    providers = (
        LoopringSettings(name="loopring", kind="loopring", base_url=sandbox.loopring_url, **key),
        MetaKeepSettings(name="metakeep", kind="metakeep", base_url=sandbox.metakeep_url, **key),
        HttpSettings.model_validate(declared | {"name": "bank", "requests_per_second": _OFTEN}),
    )
    accounts = (
        LoopringAccount(name="treasury", provider="loopring", account_id=TREASURY, **often),
        MetaKeepAccount(
            name="alice", provider="metakeep", of={"email": ALICE}, currencies=currencies, **often
        ),
        HttpAccount(name="acme", provider="bank", of={"account": ACME}, **often),
    )
    subscription = SubscriptionSettings(
        name="demo", url=SecretStr(receiver.url), secrets=tuple(map(SecretStr, receiver.secrets))
    )
    return Settings(
        redis=RedisSettings(data_dir=data_dir),
        worker=WorkerSettings(drain=timedelta(seconds=_DRAIN_S)),
        egress=EgressSettings(allow=(ip_network("127.0.0.0/8"),), allow_http=True),
        provider_by_name={provider.name: provider for provider in providers},
        account_by_name={account.name: account for account in accounts},
        subscription_by_name={subscription.name: subscription},
    )


def _vector(listed: ListedAsset, holding: Holding) -> Vector:
    return Vector(*(to_atoms(listed.text(units)) for units in holding))


async def _until(is_so: Callable[[], bool]) -> None:
    """Check repeatedly: neither the simulators nor the counters notify. The caller sets the time limit."""
    while not is_so():  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
