"""Measures the worker against other ways to send webhooks: how fast a backlog is delivered.

    python -m tests.benchmarks.peers                  # some minutes; installs the others, each time anew
    python -m tests.benchmarks.peers --in FOLDER      # installs them there, unless they are there already
    python -m tests.benchmarks.peers --quick          # shows that it runs, its figures mean nothing

In each round each of them delivers the same signed webhooks from a queue in the same Redis to the same
receiver, by one process that has 64 in flight at a time, at least once. The worker is `watcher run` as it
comes: it keeps an order for each account, writes a line of its log for each delivery, and counts. The others
do what `peer_worker.mjs` and `peer_worker.py` say, and write nothing.

A rate is taken from the first receipt to the last, so that no start-up is in it; the CPU time, on Linux
alone, is of all processes of a peer. Only ratios compare. What cannot be installed here is named and left
out. Exits 1 unless the worker delivers at least 1.2 times as fast as BullMQ with undici.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.benchmarks.fast_server import fast_server
from tests.benchmarks.raw_loop import CONCURRENCY, receipts
from tests.benchmarks.stage import a_namespace, a_stage_at, say
from tests.benchmarks.tables import facts, table
from tests.benchmarks.waiting import some_deliveries, write_backlog
from tests.support.builders import SECRET
from tests.support.program import COMMAND, environment
from tests.support.servers import DURABLE, a_free_port, real_server
from watcher.store.keys import Keys

OURS = "watcher"
BULLMQ = "BullMQ + undici"
GOAL = 1.2
HEAD = ("", "deliveries/s", f"of {BULLMQ}", "µs of CPU for each")

NODE_PACKAGES = ("bullmq@6.7.0", "ioredis@5.9.2", "undici@7.30.2")
_ASYNC = ("aiohttp==3.14.5", "hiredis==3.5.0", "uvloop==0.23.0")
PYTHON_PACKAGES = {
    "arq": ("arq==0.28.0", *_ASYNC),
    "taskiq": ("taskiq==0.13.0", "taskiq-redis==1.2.4", *_ASYNC),
    "saq": ("saq[redis]==0.26.4", *_ASYNC),
    "celery": ("celery[redis]==5.7.0", "hiredis==3.5.0", "requests==2.34.2"),
}
PEERS = (BULLMQ, *PYTHON_PACKAGES)

_HERE = Path(__file__).parent
_INSTALL_S = 240
_FILL_S = 60
_DELIVER_S = 120
_LOOK_S = 0.05
_PER_QUEUE = 20

_CONFIGURATION = """
[redis]
url = "{redis_url}"
namespace = "{namespace}"

[egress]
allow = ["127.0.0.0/8"]
allow_http = true

[providers.loopring]
base_url = "{url}/still"
api_key = "key"

[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 1
interval = "1h"

[[subscriptions]]
name = "ops"
url = "{url}/timed"
secrets = ["{secret}"]
max_in_flight = {concurrency}
"""


class Missing(Exception):
    """A peer cannot be measured here; the message says what is missing."""


@dataclass(frozen=True)
class Plan:
    deliveries: int = 20_000
    rounds: int = 3


QUICK = Plan(deliveries=400, rounds=1)


class Run(NamedTuple):
    """How one of them did in one round. `cpu_us` is of all its processes, None where there is no /proc."""

    per_second: float
    cpu_us: float | None


@dataclass(frozen=True)
class Place:
    """What all of them share."""

    directory: Path
    redis_url: str
    url: str
    plan: Plan

    @property
    def deliveries(self) -> Path:
        return self.directory / "deliveries.jsonl"

    def arguments(self, what: str) -> tuple[str, ...]:
        """What the programs of peers are called with."""
        key = SECRET.removeprefix("whsec_")
        return what, self.redis_url, f"{self.url}/timed", key, str(CONCURRENCY), str(self.deliveries)


def install(name: str, folder: Path) -> tuple[str, ...]:
    """Install a peer in `folder`, unless it is there, and return the command that runs it. Raises Missing."""
    home = folder / name
    node, npm = (shutil.which(program) or "" for program in ("node", "npm"))
    if name == BULLMQ and not (node and npm):
        raise Missing("there is no node here, or no npm")
    python = home / "bin" / "python"
    if not home.exists():
        home.mkdir(parents=True)
        try:
            if name == BULLMQ:
                run_quietly(
                    (npm, "install", "--no-audit", "--no-fund", "--prefix", str(home), *NODE_PACKAGES)
                )
            else:
                run_quietly((sys.executable, "-m", "venv", "--without-pip", str(home)))
                pip = (sys.executable, "-m", "pip", "--python", str(python))
                run_quietly((*pip, "install", *PYTHON_PACKAGES[name]))
        except BaseException:
            shutil.rmtree(home)
            raise
    if name == BULLMQ:
        shutil.copy(_HERE / "peer_worker.mjs", home)  # what it imports lies beside it
        return node, str(home / "peer_worker.mjs")
    return str(python), "-I", str(_HERE / "peer_worker.py"), name


def run_quietly(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command,
            cwd="/",  # no settings of a project
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"it was not installed within {_INSTALL_S} s: is there a network?") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it does not say why"]
        raise Missing(f"it cannot be installed: {said[-1]}")


def rate(receipts: Mapping[str, float]) -> float:
    """Say how many came a second, from the first receipt to the last."""
    took_s = max(receipts.values()) - min(receipts.values())
    return (len(receipts) - 1) / took_s


def cpu_s(group: int, stats: Iterable[str]) -> float:
    """Add up what the processes of a group used so far, by their lines in /proc/*/stat, in seconds."""
    ticks = 0
    for line in stats:
        fields = line.rpartition(")")[2].split()  # a name may hold anything
        if int(fields[2]) == group:
            ticks += sum(map(int, fields[11:15]))  # its own, and what its children that ended used
    return ticks / os.sysconf("SC_CLK_TCK")


def rows(runs: Mapping[str, Sequence[Run]]) -> Iterator[tuple[str, ...]]:
    """Yield what the table says of each that was measured: the medians of its rounds."""
    for name, rounds in runs.items():
        ratio = ratio_to_bullmq(runs, name)
        cpu = [run.cpu_us for run in rounds if run.cpu_us is not None]
        yield (
            name,
            format(median(run.per_second for run in rounds), ",.0f"),
            "" if ratio is None else format(ratio, ".2f"),
            format(median(cpu), ".0f") if cpu else "",
        )


def ratio_to_bullmq(runs: Mapping[str, Sequence[Run]], name: str) -> float | None:
    """Compare within each round, and take the median; None where either was not measured in it."""
    pairs = zip(runs.get(name, ()), runs.get(BULLMQ, ()), strict=False)
    ratios = [its.per_second / bullmqs.per_second for its, bullmqs in pairs]
    return median(ratios) if ratios else None


def faults(runs: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    """Name what is not as it must be."""
    ratio = ratio_to_bullmq(runs, OURS)
    if ratio is None:
        yield f"{OURS} and {BULLMQ} were not both measured"
    elif ratio < GOAL:
        yield f"{OURS} delivers at {ratio:.2f} of the rate of {BULLMQ}: {GOAL} is the goal"


async def measure(plan: Plan, names: Sequence[str], folder: Path) -> dict[str, list[Run]]:
    """Let each of `names` and the worker deliver, round by round; one that cannot is named on stderr."""
    commands = {}
    for name in names:
        say(f"install {name}")
        try:
            commands[name] = await asyncio.to_thread(install, name, folder)
        except Missing as missing:
            say(f"{name} is left out: {missing}")
    runs: dict[str, list[Run]] = {name: [] for name in (OURS, *commands)}
    for number in range(1, plan.rounds + 1):
        for name in [*runs]:
            say(f"round {number} of {plan.rounds}: {name}")
            try:
                async with _a_place(plan) as place:
                    run = await _run(place, commands.get(name))
                runs[name].append(run)
                say(f"{run.per_second:,.0f} deliveries/s")
            except Missing as missing:
                say(f"{name} is left out: {missing}")
                del runs[name]
    return runs


@asynccontextmanager
async def _a_place(plan: Plan) -> AsyncIterator[Place]:
    """A Redis as in production and a receiver, both new: what one of them leaves there costs no other."""
    port = a_free_port()
    with (
        TemporaryDirectory() as directory,
        fast_server() as url,
        real_server("valkey", *DURABLE, "--port", str(port)),
    ):
        place = Place(Path(directory), f"redis://127.0.0.1:{port}/0", url, plan)
        with place.deliveries.open("w") as lines:
            for each in some_deliveries(plan.deliveries):
                lines.write(json.dumps({"id": each.event_id, "body": each.body.decode()}) + "\n")
        yield place


async def _run(place: Place, command: Sequence[str] | None) -> Run:
    """Fill the queue, let one worker empty it, and see what arrives; no `command`: ours. Raises Missing."""
    if command:
        async with _a_group([*command, *place.arguments("fill")], place.directory) as filling:
            try:
                async with asyncio.timeout(_FILL_S):
                    status = await filling.wait()
            except TimeoutError:
                raise Missing(f"its queue was not full within {_FILL_S} s") from None
        if status:
            raise Missing(f"filling its queue failed: {_last_words(place)}")
        command = [*command, *place.arguments("work")]
    else:
        command = await _fill_ours(place)
    async with _a_group(command, place.directory) as worker:
        return await _watch(place, worker)


async def _fill_ours(place: Place) -> Sequence[str]:
    """Write a backlog by the worker's own commits; returns the command that delivers it."""
    namespace = a_namespace()
    configuration = place.directory / "watcher.toml"
    configuration.write_text(
        _CONFIGURATION.format(
            redis_url=place.redis_url,
            namespace=namespace,
            url=place.url,
            secret=SECRET,
            concurrency=CONCURRENCY,
        )
    )
    async with a_stage_at(place.redis_url, place.url) as stage:
        await write_backlog(stage, Keys(namespace), place.plan.deliveries // _PER_QUEUE, _PER_QUEUE)
    return [*COMMAND, "run", "--config", str(configuration)]


async def _watch(place: Place, worker: asyncio.subprocess.Process) -> Run:
    received: dict[str, float] = {}
    used_s: list[tuple[int, float]] = []
    give_up_at = time.monotonic() + _DELIVER_S
    while len(received) < place.plan.deliveries:
        if worker.returncode is not None:
            raise Missing(f"its worker ended: {_last_words(place)}")
        if time.monotonic() > give_up_at:
            raise Missing(f"{len(received):,} of {place.plan.deliveries:,} arrived within {_DELIVER_S} s")
        await asyncio.sleep(_LOOK_S)
        for event_id, at in (await receipts(place.url)).items():
            received.setdefault(event_id, at)
        if received:
            used_s.append((len(received), _cpu_s(worker.pid)))
    (first, before), (last, after) = used_s[0], used_s[-1]
    return Run(rate(received), 1e6 * (after - before) / (last - first) if before and last > first else None)


def _cpu_s(group: int) -> float:
    """0.0 where the system has no /proc."""
    lines = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            lines.append(stat.read_text(errors="replace"))
        except OSError:  # it has ended
            continue
    return cpu_s(group, lines)


@asynccontextmanager
async def _a_group(command: Sequence[str], directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process, with a group of its own for those that it starts; all of them are ended with the block."""
    with (directory / "errors").open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=directory,
            env=environment(LOG_FORMAT="json", NODE_ENV="production"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # none is left
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _last_words(place: Place) -> str:
    lines = (place.directory / "errors").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it does not say why"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Measures the worker against other queues that send webhooks."
    )
    parser.add_argument("--quick", action="store_true", help="a small form")
    parser.add_argument("--rounds", type=int, help=f"how many ({Plan.rounds})")
    parser.add_argument("--only", action="append", choices=PEERS, help="this one; may be given again")
    parser.add_argument("--in", dest="folder", type=Path, help="where to install them, and find them again")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends what it has started
    plan = QUICK if chosen.quick else Plan()
    plan = Plan(plan.deliveries, chosen.rounds or plan.rounds)
    with TemporaryDirectory() as directory:
        folder = (chosen.folder or Path(directory)).absolute()
        runs = asyncio.run(measure(plan, chosen.only or PEERS, folder))
    print(*facts(_node()), *table([*rows(runs)], HEAD), *(found := [*faults(runs)]), sep="\n")
    return 1 if found else 0


def _node() -> str:
    """Say which node it was, and what was asked for."""
    node = shutil.which("node")
    said = (
        subprocess.run((node, "--version"), capture_output=True, text=True, check=False).stdout
        if node
        else ""
    )
    packages = dict.fromkeys((*NODE_PACKAGES, *(each for more in PYTHON_PACKAGES.values() for each in more)))
    return f"node {said.strip() or 'is missing'}, {', '.join(packages)}"


if __name__ == "__main__":
    sys.exit(main())
