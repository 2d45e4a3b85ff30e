"""How long a reload holds the event loop up, with 100,000 accounts at 50 providers.

    python -m tests.benchmarks.reload [--accounts 100000]

A worker runs as `watcher run` runs it, on an embedded store, and is sent SIGHUPs: for a file that says the
same, for one with an account and a subscription more, and for the first one again; then once more beside
three workers that each have all of its accounts elsewhere. A task of that loop which sleeps for a millisecond
at a time notes the longest gap; collections of garbage count.
"""

import argparse
import asyncio
import gc
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from structlog.testing import capture_logs

from watcher.config.loading import load
from watcher.run.worker import Worker
from watcher.service.exposure import Exposure, FileWatch
from watcher.service.serve import loop_factory, serve_worker
from watcher.store.keys import Keys
from watcher.store.members import Configurations, Fingerprint, Presence, Workers

PROVIDERS = 50
NEIGHBOURS = 3
_RELOADS = (("nothing changed", False), ("one more", True), ("one less", False))
_NOTED_EVERY_S = 5.0
_TICK_S = 0.001
_QUIET_S = 1.0
_PATIENCE_S = 120


class Held(NamedTuple):
    """The longest time for which the loop did not turn, of which the longest collection of garbage, in ms;
    and the most that the loop itself worked between two turns, which other programs make no longer."""

    longest_ms: float
    busy_ms: float
    collection_ms: float
    took_s: float


class Ticker:
    """Turns with the loop, and notes when it does not, and how much of that was its own work."""

    def __init__(self) -> None:
        self.longest_s = self.busy_s = self.collection_s = 0.0
        self._collecting_since = 0.0

    async def run(self) -> None:
        last, busy = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(_TICK_S)
            now, busy_now = time.perf_counter(), time.thread_time()
            self.longest_s = max(self.longest_s, now - last - _TICK_S)
            self.busy_s = max(self.busy_s, busy_now - busy)
            last, busy = now, busy_now

    def collected(self, phase: str, _: object) -> None:
        if phase == "start":
            self._collecting_since = time.perf_counter()
        else:
            self.collection_s = max(self.collection_s, time.perf_counter() - self._collecting_since)


def write(folder: Path, accounts: int, *, more: bool) -> Path:
    """Write a configuration; with `more`, of one account and one subscription more."""
    text = f'accounts_file = "accounts.jsonl"\n[redis]\nurl = "embedded"\ndata_dir = "{folder}/data"\n'
    text += '[egress]\nallow_http = true\nallow = ["127.0.0.0/8"]\n'
    for number in range(PROVIDERS):
        text += f'[providers.p{number}]\nkind = "loopring"\nbase_url = "http://127.0.0.1:1999"\n'
        text += 'api_key = "key"\nrequests_per_second = 1\n'
    for name in ("ops", *(["others"] if more else [])):
        text += f'[[subscriptions]]\nname = "{name}"\nurl = "http://127.0.0.1:1999/{name}"\n'
        text += 'secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYq="]\n'
    rows: Iterator[dict[str, Any]] = (
        {
            "name": f"a{number}",
            "provider": f"p{number % PROVIDERS}",
            "account_id": 1 + number,
            "interval": "1h",
        }
        for number in range(accounts + more)
    )
    (folder / "accounts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "watcher.toml").write_text(text)
    return folder / "watcher.toml"


@contextmanager
def ticking() -> Iterator[Ticker]:
    ticker = Ticker()
    gc.callbacks.append(ticker.collected)
    task = asyncio.create_task(ticker.run())
    try:
        yield ticker
    finally:
        task.cancel()
        gc.callbacks.remove(ticker.collected)


async def _be_there(worker: Worker, number: int, accounts: int) -> None:
    """Be another worker, with another configuration, as far as workers see each other."""
    assert worker.opened
    pipe, keys = worker.opened.schedule.pipe, Keys(worker.settings.redis.namespace)
    elsewhere = Fingerprint({}, {"ops": "00"}, {f"a{count}": f"{number:016}" for count in range(accounts)})
    await Configurations(pipe, keys).write(elsewhere)
    seen = Presence(f"neighbour-{number}", "host", 1, "0", 0, {}, configuration=elsewhere.digest)
    while True:
        await Workers(pipe, keys).note(seen)
        await asyncio.sleep(_NOTED_EVERY_S)


async def measure(folder: Path, accounts: int) -> list[tuple[str, Held]]:
    """Start a worker, reload it three times, and end it."""
    path = write(folder, accounts, more=False)
    loaded = load(path, os.environ)
    worker = Worker(loaded.settings, name="reloaded")
    with capture_logs() as lines:
        running = asyncio.create_task(
            serve_worker(worker, path, FileWatch(loaded.files), Exposure(), once=False, is_watching=False)
        )
        del loaded
        async with asyncio.timeout(_PATIENCE_S):
            while not worker.has_begun:  # noqa: ASYNC110 - it has no signal
                await asyncio.sleep(0.05)
        await asyncio.sleep(_QUIET_S)
        rows, others = [], list[asyncio.Task[None]]()
        for what, more in (*_RELOADS, ("beside others", True)):
            if what == "beside others":
                others += [asyncio.create_task(_be_there(worker, n, accounts)) for n in range(NEIGHBOURS)]
                async with asyncio.timeout(_PATIENCE_S):
                    while len(worker.differences) < NEIGHBOURS:  # noqa: ASYNC110 - it has no signal
                        await asyncio.sleep(0.05)
                await asyncio.sleep(_QUIET_S)
            write(folder, accounts, more=more)
            seen = _reloads(lines)
            with ticking() as ticker:
                started = time.perf_counter()
                os.kill(os.getpid(), signal.SIGHUP)
                async with asyncio.timeout(_PATIENCE_S):
                    while _reloads(lines) == seen or worker.is_reloading:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                took_s = time.perf_counter() - started
                await asyncio.sleep(_QUIET_S)  # what is put off counts, too
            rows.append(
                (
                    what,
                    Held(
                        *(1000 * ticker.longest_s, 1000 * ticker.busy_s), 1000 * ticker.collection_s, took_s
                    ),
                )
            )
        for task in others:
            task.cancel()
        worker.stop()
        await running
    return rows


def _reloads(lines: list[Any]) -> int:
    return sum(line["event"] == "configuration.loaded" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=100_000)
    accounts = parser.parse_args().accounts
    with tempfile.TemporaryDirectory() as name, asyncio.Runner(loop_factory=loop_factory()) as runner:
        rows = runner.run(measure(Path(name), accounts))
    print(f"{accounts:,} accounts, {PROVIDERS} providers")
    print(f"{'a reload':<20}{'longest block':>15}{'own work':>13}{'of which gc':>13}{'took':>9}")
    for what, held in rows:
        times = f"{held.longest_ms:>12.1f} ms{held.busy_ms:>10.1f} ms{held.collection_ms:>10.1f} ms"
        print(f"{what:<20}{times}{held.took_s:>7.1f} s")


if __name__ == "__main__":
    main()
