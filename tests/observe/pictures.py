"""A day of a few accounts on the page, and pictures of it: `python -m tests.observe.pictures FOLDER`.

Writes page-light.webp and page-dark.webp, as the README shows them; with `--all` every width in both schemes.
"""

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

from pydantic import SecretStr

from tests.observe.browser import Browser, a_browser
from tests.support.builders import SECRET, a_balance, a_row, a_subscription, an_account, seconds
from tests.support.rig import workers
from tests.support.servers import real_server
from tests.support.stories import MINUTE_MS, Books, steps
from watcher.amounts import to_atoms, to_text
from watcher.api.access import Address
from watcher.api.server import Listener
from watcher.journal.account import AccountState
from watcher.observe.page.look import routes
from watcher.providers.loopring import LoopringSettings
from watcher.receiver import Fail, Receiver
from watcher.run.worker import Opened, Worker
from watcher.settings import EgressSettings, RedisSettings, Settings, SubscriptionSettings
from watcher.snapshot import Asset, Snapshot
from watcher.store.client import connect
from watcher.store.health import StoreHealth
from watcher.store.keys import SHARDS
from watcher.store.pipe import Pipe

WIDTHS = (390, 768, 1024, 1280, 1920)
SCHEMES = ("light", "dark")

ASSETS = {
    "ETH": Asset("0", "ETH", "Ethereum", 18),
    "LRC": Asset("1", "LRC", "Loopring", 18),
    "WBTC": Asset("4", "WBTC", "Wrapped Bitcoin", 8),
    "DAI": Asset("5", "DAI", "Dai Stablecoin", 18),
    "USDC": Asset("6", "USDC", "USD Coin", 6),
    "PEPE": Asset("9", "PEPE", "Pepe", 18),
}

Totals = Mapping[str, str]
BACKING_OFF: Mapping[str, Totals] = {
    "treasury": {"ETH": "1482.503318745120448337", "USDC": "2750000", "WBTC": "18.25"},
    "hot-wallet": {"ETH": "25.500000000000000001", "USDC": "48211.07", "LRC": "91744.25"},
    "payouts": {"USDC": "12900.5", "DAI": "4400.118822000000000001"},
    "market-maker": {"ETH": "310.75", "LRC": "1250000.0731", "PEPE": "981246113500.221"},
    "cold-storage": {"ETH": "12000", "WBTC": "240.00000001"},
    "fees": {"LRC": "84.000000000000000001", "USDC": "118.44"},
}
LIVELY = ("hot-wallet", "payouts", "market-maker", "fees")

LAST_TOTALS = {**BACKING_OFF["treasury"], "ETH": "1522.503318745120448337"}

Story = Iterator[tuple[str, int, Snapshot]]
"""The balances of an account at a time (Unix ms), in the order of time."""


def held(totals: Totals, **of_the_first: str) -> Snapshot:
    """A poll that reads these totals, and of the first asset more than its total."""
    first = next(iter(totals), "")
    rows = {
        ASSETS[name].id: a_row(ASSETS[name], a_balance(total, **(of_the_first if name == first else {})))
        for name, total in totals.items()
    }
    return Snapshot(rows, None, absent_is_zero=True)


def a_day(now_ms: int) -> Story:
    """Six accounts, four of them lively."""
    chance = random.Random(7)
    totals = {name: dict(parts) for name, parts in BACKING_OFF.items()}
    for name, parts in totals.items():
        yield name, now_ms - 23 * 60 * MINUTE_MS, held(parts)
    for quarter in range(90, 0, -1):
        parts = totals[name := LIVELY[quarter % len(LIVELY)]]
        asset = chance.choice([*parts])
        total = to_atoms(parts[asset]) * chance.randrange(9_300, 10_750) // 10_000
        parts[asset] = to_text(total - total % 10**72)  # six digits behind the point
        yield name, now_ms - quarter * 15 * MINUTE_MS, held(parts)
    yield "treasury", now_ms - 3 * MINUTE_MS, held(LAST_TOTALS, locked="120.5")


def many_accounts(count: int) -> Callable[[int], Story]:
    """Accounts of two or three assets each, read once."""

    def story(now_ms: int) -> Story:
        for number in range(count):
            some = [*ASSETS][number % 4 : number % 4 + 2 + number % 2]
            totals = dict.fromkeys(some, f"{number * 37 % 5000}.{number:018d}1")
            yield f"wallet-{number:04d}", now_ms - 20_000, held(totals)

    return story


LAST = "treasury", held(LAST_TOTALS, locked="120.5", pending_deposit="12.25")


@asynccontextmanager
async def a_days_page(
    story: Callable[[int], Story] = a_day,
    *,
    names: tuple[str, ...] = tuple(BACKING_OFF),
    last: tuple[str, Snapshot] | None = LAST,
) -> AsyncIterator[tuple[int, Worker]]:
    """The port of a page of accounts with a past, and the worker that the page is of: a running one has
    delivered their events to two receivers, of which one fails the `last`."""
    async with Receiver(secrets=[SECRET]) as ops, Receiver(secrets=[SECRET]) as accounting:
        with real_server() as server:
            accounting.fail = Fail(503, 1)
            waits = seconds(0, 0.02, 600, 600)
            subscriptions = {
                "ops": a_subscription("ops", ops.url),
                "accounting": a_subscription(
                    "accounting", accounting.url, accounts=("payouts", "treasury"), retries=waits
                ),
            }
            settings = some_settings(server.url, names, subscriptions)
            async with connect(server.url) as client:
                books = Books(Pipe(client), settings.redis.namespace)
                await books.enroll(*names)
                now_ms = books.schedule.now_ms()
                past = Past(books, [*subscriptions.values()])
                for name, at_ms, snapshot in story(now_ms):
                    await past.live(name, at_ms, snapshot)
                await put_back(books)
                for place, name in enumerate(names):
                    await past.read_again(name, now_ms - 1_000 * (place % 17))
                async with workers(settings.model_copy(update={"account_by_name": {}}), "w1") as (delivers,):
                    async with asyncio.timeout(60):
                        while delivers.counters.deliveries < past.queued:  # noqa: ASYNC110 - there is no signal
                            await asyncio.sleep(0.05)
                        if last:
                            accounting.fail, retried = Fail(503, 9), delivers.counters.retried
                            await past.live(last[0], books.schedule.now_ms() - 2_000, last[1])
                            while delivers.counters.retried < retried + 2:  # noqa: ASYNC110 - as above
                                await asyncio.sleep(0.05)
                    await books.enroll(*names)  # the running one has taken them off
                    worker = Worker(settings, name="w1")
                    worker.counters = delivers.counters
                    worker.opened = Opened(books.schedule, StoreHealth())
                    await worker.opened.health.judge(books.pipe)
                    async with Listener(Address("127.0.0.1", 0), routes(worker)) as listener:
                        yield listener.address.port, worker


class Past:
    """What the accounts lived through. `queued`: deliveries."""

    def __init__(self, books: Books, subscriptions: list[SubscriptionSettings]) -> None:
        self.queued = 0
        self._books = books
        self._subscriptions = subscriptions
        self._state_by_account: dict[str, AccountState] = {}

    async def live(self, name: str, at_ms: int, snapshot: Snapshot) -> None:
        state = self._state_by_account.get(name)
        made = steps([snapshot], account=name, state=state, at_ms=at_ms, subscriptions=self._subscriptions)
        for step in made:
            await self._books.commit(step, name, expected=state.version if state else "")
            self._state_by_account[name] = step.state
            self.queued += sum(map(len, step.queued.values()))

    async def read_again(self, name: str, at_ms: int) -> None:
        lease, version = await self._books.lease(name), self._state_by_account[name].version
        await self._books.polls.touch(
            "loopring", lease, version=version, polled_at_ms=at_ms, due_ms=lease.deadline
        )


async def put_back(books: Books) -> None:
    """Give the records of the log the times of their events: they were all written just now."""
    for shard in range(SHARDS):
        key = books.keys.log(shard)
        timed = []
        for _, fields in await books.pipe.command("XRANGE", key, "-", "+"):
            rest = fields[3].partition(b" ")[2]
            timed.append((json.loads(rest)["sequence"] if rest[:1] == b"{" else int(rest.split()[1]), fields))
        await books.pipe.command("DEL", key)
        for number, (at_ms, fields) in enumerate(sorted(timed)):
            await books.pipe.command("XADD", key, f"{at_ms}-{number}", *fields)


def some_settings(
    url: str, names: tuple[str, ...], subscriptions: dict[str, SubscriptionSettings]
) -> Settings:
    loopring = LoopringSettings(
        name="loopring",
        kind="loopring",
        base_url="http://127.0.0.1:1",
        api_key=SecretStr("sandbox"),
        requests_per_second=1000,
    )
    return Settings(
        redis=RedisSettings(url=SecretStr(url), namespace="watcher"),
        egress=EgressSettings(allow=(ip_network("127.0.0.0/8"),), allow_http=True),
        provider_by_name={"loopring": loopring},
        account_by_name={name: an_account(name, interval=timedelta(minutes=5)) for name in names},
        subscription_by_name=subscriptions,
    )


async def take(browser: Browser, port: int, path: Path, *, width: int, height: int, scheme: str) -> None:
    await browser.open(f"http://127.0.0.1:{port}/", width=width, height=height, scheme=scheme)
    await browser.until("document.querySelectorAll('.balance').length > 5")
    await browser.call("Emulation.setScrollbarsHidden", hidden=True)
    picture = await browser.picture(path.suffix[1:])
    await asyncio.to_thread(path.write_bytes, picture)


async def main(folder: Path, *, is_all: bool) -> None:
    async with a_days_page() as (port, _):
        for scheme in SCHEMES:
            async with a_browser() as browser:
                if is_all:
                    for width in WIDTHS:
                        path = folder / f"{width}-{scheme}.png"
                        await take(browser, port, path, width=width, height=1100, scheme=scheme)
                else:
                    await take(
                        browser, port, folder / f"page-{scheme}.webp", width=1280, height=800, scheme=scheme
                    )


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), is_all="--all" in sys.argv))
