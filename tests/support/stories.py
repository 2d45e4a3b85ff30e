"""Accounts with a past: what successful polls emitted, made by our own diff, as records or in Redis."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from pydantic import SecretStr

from tests.support.builders import a_balance, a_snapshot, a_subscription
from tests.support.json_fields import assert_documented
from watcher.cli import main
from watcher.journal.account import AccountState, Rules
from watcher.journal.events import Delivery
from watcher.journal.interest import Interest
from watcher.journal.log import Record
from watcher.journal.step import Reading, Step, diff
from watcher.settings import RedisSettings, SubscriptionSettings, ThresholdSettings
from watcher.snapshot import Snapshot
from watcher.store.keys import Keys, shard_of
from watcher.store.members import Roster
from watcher.store.opening import open_store
from watcher.store.pipe import Pipe
from watcher.store.polls import Commit, Polls
from watcher.store.schedule import Lease, Reply, Schedule

T = TypeVar("T")

NOW_MS = 1_795_175_095_846
MINUTE_MS = 60_000

OPS = a_subscription()
WARNED = a_subscription(thresholds=(ThresholdSettings(asset="ETH", below="100"),))

STORY: tuple[Snapshot, ...] = (
    a_snapshot(ETH="110", LRC="50"),
    a_snapshot(ETH="120", LRC="50"),
    a_snapshot(ETH="110", LRC="50"),
    a_snapshot(ETH=a_balance("110", "20"), LRC="60"),
    a_snapshot(ETH=a_balance("130", "5"), LRC=a_balance("60", pending_deposit="7")),
    a_snapshot(ETH=a_balance("99", "5"), LRC=a_balance("67")),
    a_snapshot(ETH=a_balance("99", "5"), LRC=a_balance("68"), USDC="3"),
    a_snapshot(ETH=a_balance("101", "5"), LRC=a_balance("67"), USDC="3.5"),
    a_snapshot(ETH=a_balance("101", "6"), LRC=a_balance("67"), USDC="3"),
)
"""Polls after a baseline: deposits, locks, credits that come and go, a new asset, a threshold crossed."""


def steps(
    snapshots: Sequence[Snapshot],
    *,
    account: str = "treasury",
    state: AccountState | None = None,
    source: str = "here",
    at_ms: int = NOW_MS,
    subscriptions: Sequence[SubscriptionSettings] = (OPS,),
) -> list[Step]:
    """What each of a series of successful polls, a minute apart, adds to a state."""
    interest = Interest({one.name: one for one in subscriptions})
    made = []
    for number, snapshot in enumerate(snapshots):
        now_ms = at_ms + number * MINUTE_MS
        reading = Reading(account, "loopring", source, snapshot, now_ms - 5)
        version = f"{number:x}-{now_ms}"
        step = diff(state, reading, rules=Rules(), interest=interest, version=version, now_ms=now_ms)
        if step:
            made.append(step)
            state = step.state
    return made


def deliveries_of(
    step: Step | None, subscription: str = "ops", *, previous: int | None = None
) -> list[Delivery]:
    """What a step queues for a subscription that got the sequence `previous` before."""
    made = []
    for place in step.queued.get(subscription, ()) if step else ():
        assert step
        made.append(step.events[place].to(subscription, previous))
        previous = made[-1].sequence
    return made


def records_of(made: Sequence[Step], account: str = "treasury") -> list[Record]:
    """The event log that these steps leave."""
    records: list[Record] = []
    last_by_name: dict[str, int] = {}
    for step in made:
        for note in step.notes:
            records.append(Record(account, step.follows, json.loads(note), f"{len(records) + 1}-0"))
        for place, event in enumerate(step.events):
            previous: dict[str, int | None] = {}
            for name, places in step.queued.items():
                if place in places:
                    previous[name] = last_by_name.get(name)
                    last_by_name[name] = event.sequence
            if event.is_logged or previous:
                record_id, raw = f"{len(records) + 1}-0", event.json[:-1]
                content = json.loads(event.json)
                records.append(Record(account, step.follows, content, record_id, raw, previous))
    return records


class Books:
    """A namespace of a real server that steps are committed to."""

    def __init__(self, pipe: Pipe, namespace: str) -> None:
        self.keys = Keys(namespace)
        self.pipe = pipe
        self.schedule = Schedule(self.pipe)
        self.polls = Polls(self.schedule, self.keys)

    async def enroll(self, *accounts: str, provider: str = "loopring") -> None:
        await self.schedule.read_clock()
        await Roster(self.pipe, self.keys).enroll({provider: accounts}, now_ms=self.schedule.now_ms())

    async def lease(self, account: str, provider: str = "loopring") -> Lease:
        """Take the poll of an account for a minute."""
        await self.schedule.read_clock()
        deadline = self.schedule.now_ms() + MINUTE_MS
        await self.pipe.command("ZADD", self.keys.polls(shard_of(account), provider), deadline, account)
        return Lease(account, deadline)

    async def commit(
        self, step: Step, account: str = "treasury", *, expected: str = "", provider: str = "loopring"
    ) -> None:
        lease = await self.lease(account, provider)
        reply, _ = await self.polls.commit(
            Commit(
                account=account,
                provider=provider,
                lease=lease,
                expected_version=expected,
                step=step,
                due_ms=lease.deadline,
            )
        )
        assert reply is Reply.DONE

    async def live(
        self,
        snapshots: Sequence[Snapshot],
        account: str = "treasury",
        *,
        at_ms: int = NOW_MS,
        subscriptions: Sequence[SubscriptionSettings] = (OPS,),
    ) -> list[Step]:
        """Let an account live through a series of successful polls from its baseline on."""
        made = steps(snapshots, account=account, at_ms=at_ms, subscriptions=subscriptions)
        expected = ""
        for step in made:
            await self.commit(step, account, expected=expected)
            expected = step.state.version
        return made

    async def damage_state(self, account: str) -> None:
        """Leave no JSON behind the first line of what is stored of an account."""
        key = self.keys.state(account)
        head, _, _ = (await self.pipe.command("GET", key)).partition(b"\n")
        await self.damage("SET", key, head + b"\n{")

    async def damage(self, *command: object) -> None:
        """Do something to the namespace that the program never does."""
        await self.pipe.command(*command)


async def a_ms_later(pipe: Pipe) -> None:
    """Wait until the server's clock shows another millisecond: shards have no order within one."""
    before = int(await pipe.ask_clock())
    while int(await pipe.ask_clock()) == before:
        pass


def in_the_books(url: str, namespace: str, write: Callable[[Books], Awaitable[T]]) -> T:
    """Write something into a namespace before a command is run that looks at it."""

    async def written() -> T:
        async with open_store(RedisSettings(url=SecretStr(url))) as store:
            return await write(Books(store.pipe, namespace))

    return asyncio.run(written())


def a_configuration(directory: Path, url: str, namespace: str, *accounts: str) -> Path:
    """A configuration of these accounts (treasury), all at Loopring, with one subscription."""
    path = directory / "watcher.toml"
    tables = "".join(
        f'[[accounts]]\nname = "{name}"\nprovider = "loopring"\naccount_id = {number}\n'
        for number, name in enumerate(accounts or ("treasury",))
    )
    path.write_text(
        f'[redis]\nurl = "{url}"\nnamespace = "{namespace}"\ndata_dir = "{directory / "data"}"\n'
        f'[providers.loopring]\napi_key = "canaryApiKey"\n{tables}'
        '[[subscriptions]]\nname = "ops"\nurl = "https://ops.example.com/in"\n'
        'secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]\n'
    )
    return path


class Ended(NamedTuple):
    """How a command ended."""

    code: object
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]


Run = Callable[..., Ended]
Write = Callable[[Callable[["Books"], Any]], Any]
"""What tests of commands are given: to run one in this process, and to write into its store before."""


def ended(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    """Run `watcher` in this process to its end."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert_documented(arguments, out)
    return Ended(end.value.code, out, err)
