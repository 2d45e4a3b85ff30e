"""Runs `watcher` as its entry point does, with faults in it: the program itself has no place for them.

    FAULTS='{"crash_at": "commit sent", "crash_after": 3}' python tests/faults/faulty_watcher.py run

Shorter leases are no fault, but make a short test of what a dead worker leaves behind; nor is a worker that
polls nothing, nor the count of its tasks, which only a worker itself can tell.
"""

import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

Method = Callable[..., Awaitable[Any]]

_ON_ITS_WAY_S = 0.005


def main() -> NoReturn:
    faults = json.loads(os.environ.get("FAULTS", "{}"))
    if steps_s := faults.get("clock_steps_s"):
        _set_clock(steps_s, faults["clock_step_every_s"])  # first: any import of `time.time` gets this one
    if lease_s := faults.get("lease_s"):
        _shorten_leases(lease_s)
    if descriptors := faults.get("descriptors"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    if log_room := faults.get("log_room"):
        _narrow_the_log(log_room)
    if point := faults.get("crash_at"):
        _arm(point, _signal_after(faults["crash_after"], signal.SIGKILL))
    if point := faults.get("freeze_at"):
        _arm(point, _signal_after(faults["freeze_after"], signal.SIGSTOP))
    if block_s := faults.get("block_s"):
        _block(block_s, faults["block_every"])
    if faults.get("polls_nothing"):
        _poll_nothing()
    if faults.get("reports_tasks"):
        _report_tasks(Path(f"{os.environ['WORKER']}.tasks"))
    from watcher.cli import main

    main()


def _set_clock(steps_s: list[float], every_s: float) -> None:
    """Let the clock be ahead by each of these in turn, for so long."""
    true_time, true_time_ns, started = time.time, time.time_ns, time.monotonic()

    def ahead_s() -> float:
        return steps_s[int((time.monotonic() - started) / every_s) % len(steps_s)]

    time.time = lambda: true_time() + ahead_s()
    time.time_ns = lambda: true_time_ns() + int(ahead_s() * 10**9)


def _shorten_leases(lease_s: float) -> None:
    """Let leases of queues and of polls last so long; an attempt gets half of it."""
    from watcher.delivery import queue
    from watcher.delivery.webhook import WebhookSink
    from watcher.polling import poll
    from watcher.run import configured

    defaults = WebhookSink.__init__.__kwdefaults__
    assert defaults
    assert "deadline_s" in defaults
    defaults["deadline_s"] = lease_s / 2
    for module in (queue, poll):
        _replace(module, "LEASE_MS", int(1000 * lease_s))
    for module in (queue, configured):
        _replace(module, "LONGEST_LEASE_MS", int(1000 * lease_s))
    _replace(queue, "_LEAST_MS", int(500 * lease_s))
    _replace(queue, "QUICK_S", lease_s)  # all of them are quick
    _replace(poll, "_LEASE_MARGIN_S", lease_s - 1)  # the scene's time-out is 1 s


def _narrow_the_log(lines: int) -> None:
    """Let no more lines than these wait for a reader."""
    from watcher.observe.log import LineWriter

    defaults = LineWriter.__init__.__kwdefaults__
    assert defaults
    assert "capacity" in defaults
    defaults["capacity"] = lines


def _replace(module: ModuleType, name: str, value: object) -> None:
    """Set an existing attribute: one that was renamed must not go unnoticed."""
    assert hasattr(module, name), f"{module.__name__} has no {name}"
    setattr(module, name, value)


def _arm(point: str, strike: Callable[[], None]) -> None:
    """Apply a fault at a step, each time that it is reached."""
    from watcher.delivery.webhook import WebhookSink
    from watcher.providers.http import ProviderClient
    from watcher.store.polls import Polls

    if point.endswith("sent"):
        _strike_once_sent(point.removesuffix(" sent"), strike)
        return
    owner: type
    owner, name = {
        "fetched": (ProviderClient, "ask"),
        "commit answered": (Polls, "commit"),
        "2xx read": (WebhookSink, "send"),
    }[point]
    method: Method = getattr(owner, name)

    async def then_strike(*arguments: Any, **named: Any) -> Any:
        result = await method(*arguments, **named)
        strike()
        return result

    setattr(owner, name, then_strike)


def _strike_once_sent(script: str, strike: Callable[[], None]) -> None:
    """Strike when a script is on its way to the server, which will execute it: its answer is not read."""
    from redis.asyncio.connection import AbstractConnection

    from watcher.store.pipe import load_script

    digest = load_script(script).digest.encode()
    send: Method = AbstractConnection.send_packed_command

    async def send_then_strike(self: Any, command: Any, *arguments: Any, **named: Any) -> None:
        await send(self, command, *arguments, **named)
        sent = command if isinstance(command, bytes) else b"".join(command)
        if digest in sent:
            await asyncio.sleep(_ON_ITS_WAY_S)  # uvloop writes when the loop comes round
            strike()

    AbstractConnection.send_packed_command = send_then_strike  # type: ignore[method-assign]


def _signal_after(times: int, number: signal.Signals) -> Callable[[], None]:
    """Make what sends this process a signal at its n-th call, and never again."""
    left = times

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)

    return count


def _block(block_s: float, every: int) -> None:
    """Block the event loop for so long in every n-th poll."""
    from watcher.polling.poll import Poller

    poll: Method = Poller.poll
    polls = 0

    async def poll_and_block(*arguments: Any) -> Any:
        nonlocal polls
        polls += 1
        if polls % every == 0:
            end_at = time.monotonic() + block_s
            while time.monotonic() < end_at:
                pass
        return await poll(*arguments)

    Poller.poll = poll_and_block  # type: ignore[assignment,method-assign]


def _poll_nothing() -> None:
    """Leave all polls to other workers."""
    from watcher.polling.work import PollWork

    PollWork.takes = lambda *_: False  # type: ignore[method-assign]


def _report_tasks(file: Path) -> None:
    """Write down how many tasks there are, and how many blocks of memory, four times a second."""
    from watcher.observe.liveness import Liveness

    note_lag = Liveness.note_lag

    def note_lag_and_tasks(liveness: Liveness, lag_s: float) -> None:
        beside = file.with_suffix(".new")
        beside.write_text(f"{len(asyncio.all_tasks())} {sys.getallocatedblocks()}")
        beside.replace(file)  # a reader finds it complete
        note_lag(liveness, lag_s)

    Liveness.note_lag = note_lag_and_tasks  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    del sys.path[0]  # this directory: its modules are none of the program's business
    main()
