"""What it costs workers if the API adds 100,000 accounts and 10,000 subscriptions while they work.

    python -m tests.benchmarks.directory [--accounts 100000] [--subscriptions 10000]

One worker runs here, on an embedded store, with 200 accounts of its file that change every second, each
change delivered. A second worker and the program that adds are processes of their own. What is added belongs
to another provider, which takes 1,000 requests a second. A task of the loop that sleeps for a millisecond
at a time notes the longest gap.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.request import urlopen

from pydantic import SecretStr

from tests.benchmarks.fast_server import fast_server
from tests.benchmarks.reload import ticking
from tests.benchmarks.stage import PROVIDER, on_a_loop, say, some_settings
from tests.support import ROOT
from tests.support.directory import KEY, Programs, with_key
from watcher.run.worker import Worker
from watcher.settings import RedisSettings, Settings
from watcher.store.directory import Directory
from watcher.store.embedded import Embedded
from watcher.store.keys import Keys
from watcher.store.opening import open_store
from watcher.store.pipe import in_parts

OF_THE_FILE = 200
ADDED = "added"
MOST_MS = 50

_AT_ONCE = 1000
"""Accounts in one body of the API."""

_PATIENCE_S = 280
_WARM_S = 2.0
_QUIET_S = 5.0
_TICK_S = 0.01
_SEED = "WATCHER_BENCH_KEY"


class Phase(NamedTuple):
    """What one part took. `written_s` is how long the program took to add it, `known_s` until both workers
    knew all of it, from its beginning; `busy_ms` and `gap_ms` are the most that the loop worked, and stood,
    between two turns."""

    written_s: float
    known_s: float
    busy_ms: float
    gap_ms: float
    collection_ms: float
    cpu_s: float
    polls: int
    deliveries: int
    closed: int

    def lines(self, what: str) -> Iterator[str]:
        late_s = self.known_s - self.written_s
        yield f"{what}: written in {self.written_s:.1f} s, known to both workers {late_s:.1f} s later"
        yield (
            f"  the loop worked {self.busy_ms:.0f} ms at most between two turns (bound {MOST_MS}), of which "
            f"{self.collection_ms:.0f} ms of garbage collection; {self.gap_ms:.0f} ms went by at most"
        )
        yield (
            f"  meanwhile {self.polls:,} polls and {self.deliveries:,} deliveries; {self.closed} connections "
            f"closed; {self.cpu_s:.1f} s of this process"
        )


def settings_at(server: str, url: str) -> Settings:
    """The file of both workers."""
    settings = some_settings(
        f"{url}/restless", OF_THE_FILE, subscriber=f"{url}/in", interval=timedelta(seconds=1)
    )
    of_file = settings.provider_by_name[PROVIDER]
    other = of_file.model_copy(update={"name": ADDED, "base_url": f"{url}/each", "requests_per_second": 1000})
    changes = {
        "redis": RedisSettings(url=SecretStr(server), namespace="bench"),
        "provider_by_name": {PROVIDER: of_file, ADDED: other},
    }
    return with_key(settings.model_copy(update=changes), os.environ.setdefault(_SEED, KEY))


def count(worker: Worker) -> tuple[int, int]:
    found = worker.followed
    return (len(found.names("account")), len(found.names("subscription"))) if found else (0, 0)


async def measure(accounts: int, subscriptions: int) -> dict[str, Phase]:
    """Let a program add so many while this worker and another one work."""
    with TemporaryDirectory() as directory, fast_server() as url:
        async with Embedded(Path(directory) / "data", max_memory="8GB") as server:
            settings = settings_at(server.url, url)
            worker = Worker(settings, name="measured")
            running = asyncio.create_task(worker.run())
            other = await _beside("--worker", server.url, url)
            await until(lambda: worker.counters.deliveries > OF_THE_FILE)
            assert other.stdout
            assert await other.stdout.readline()
            await asyncio.sleep(_WARM_S)
            try:
                return {
                    what: await _phase(worker, other, (server.url, url), *added)
                    for what, added in {
                        "nothing": (0, 0),
                        "accounts": (accounts, 0),
                        "subscriptions": (accounts, subscriptions),
                    }.items()
                }
            finally:
                other.terminate()
                await other.wait()
                worker.stop()
                await running


async def _phase(
    worker: Worker,
    other: asyncio.subprocess.Process,
    places: tuple[str, str],
    accounts: int,
    subscriptions: int,
) -> Phase:
    """Let the program add accounts, or subscriptions where there are any to be; wait until all is known."""
    _, url = places
    say(f"{subscriptions or accounts:,} {'subscriptions' if subscriptions else 'accounts'} are added")
    assert other.stdin
    assert other.stdout
    before, closed = (worker.counters.polls, worker.counters.deliveries), _closed(url)
    other.stdin.write(f"{accounts} {subscriptions}\n".encode())
    with ticking() as ticker:
        at, cpu_s = time.monotonic(), time.process_time()
        program = await _beside("--program", *places, str(accounts), str(subscriptions))
        await program.wait()
        if not accounts:
            await asyncio.sleep(_QUIET_S)
        written_s = time.monotonic() - at
        await until(lambda: count(worker) == (accounts, subscriptions))
        await other.stdout.readline()
        known_s = time.monotonic() - at
        cpu_s = time.process_time() - cpu_s
    polls, deliveries = worker.counters.polls - before[0], worker.counters.deliveries - before[1]
    busy_ms, gap_ms, collection_ms = (
        1000 * seconds for seconds in (ticker.busy_s, ticker.longest_s, ticker.collection_s)
    )
    return Phase(
        written_s,
        known_s,
        busy_ms,
        gap_ms,
        collection_ms,
        cpu_s,
        polls,
        deliveries,
        _closed(url) - closed - 1,
    )


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - workers only count
            await asyncio.sleep(_TICK_S)


def _closed(url: str) -> int:
    """Count the connections to providers and subscribers that were closed, those of this function too."""
    with urlopen(f"{url}/closed") as answer:
        return int(answer.read())


async def _beside(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = ("-m", "tests.benchmarks.directory", *arguments)
    return await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT, stdin=pipe, stdout=pipe)


async def be_the_program(server: str, url: str, accounts: int, subscriptions: int) -> None:
    """Add accounts, or subscriptions where there are any to be, each for one account."""
    settings = settings_at(server, url)
    async with open_store(settings.redis) as store:
        programs = Programs(Directory(store.pipe, Keys("bench")), "bench", os.environ[_SEED])
        if subscriptions:
            writes = [
                programs.subscription(f"hook-{number}", f"{url}/hook/{number}", accounts=[f"added-{number}"])
                for number in range(subscriptions)
            ]
        else:
            writes = [
                programs.account(f"added-{number}", ADDED, account_id=number + 10, interval="1h")
                for number in range(accounts)
            ]
        for part in in_parts(writes, _AT_ONCE):
            written = await programs.directory.put_all(part)
            assert {one.outcome for one in written} == {"done"}


async def be_a_worker(server: str, url: str) -> None:
    """Be another worker: read from stdin how much is to be known, and print a line when it is."""
    worker = Worker(settings_at(server, url), name="beside")
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.followed and worker.configured and worker.configured.is_begun)
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        wanted = tuple(map(int, line.split()))
        await until(lambda: count(worker) == wanted)  # noqa: B023 - it is awaited here
        print("known", flush=True)
    worker.stop()
    await running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--subscriptions", type=int, default=10_000)
    parser.add_argument("--worker", nargs=2, metavar=("REDIS", "URL"), help=argparse.SUPPRESS)
    parser.add_argument("--program", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        on_a_loop(be_a_worker(*given.worker))
    elif given.program:
        server, url, accounts, subscriptions = given.program
        on_a_loop(be_the_program(server, url, int(accounts), int(subscriptions)))
    else:
        found = on_a_loop(measure(given.accounts, given.subscriptions))
        for what, phase in found.items():
            print(*phase.lines(what), sep="\n")


if __name__ == "__main__":
    main()
