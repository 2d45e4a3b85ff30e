"""The worker as a process: its event loop, its signals, its log, its exit code; and what a reload changed."""

import asyncio
import gc
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from watcher import signals
from watcher.config.findings import ConfigRefused, Finding
from watcher.config.loading import Loaded, load
from watcher.engine.loop import survived
from watcher.environment import Environment
from watcher.observe.log import configure, log
from watcher.pause import compute
from watcher.printable import hide
from watcher.run.worker import Worker
from watcher.service.exposure import (
    Exposure,
    FileWatch,
    exposed,
    notify_ready,
    notify_reloading,
    notify_stopping,
)
from watcher.settings import Section, Settings
from watcher.store.errors import DamagedKey
from watcher.store.exceptions import StoreError

MOST_NAMES = 8

NOT_RELOADED = ("redis", "log")
"""What a worker reads at its start only."""


class Change(NamedTuple):
    """The differences of one section, and the first names: `+new`, `-gone`, `treasury: interval`."""

    section: str
    added: int
    removed: int
    changed: int
    names: tuple[str, ...]


def changes(before: Settings, after: Settings) -> list[Change]:
    """Compare section by section; those that are alike are left out."""
    pairs: Mapping[str, tuple[Mapping[str, Section], Mapping[str, Section]]] = {
        "settings": (_single(before), _single(after)),
        "providers": (before.provider_by_name, after.provider_by_name),
        "accounts": (before.account_by_name, after.account_by_name),
        "subscriptions": (before.subscription_by_name, after.subscription_by_name),
    }
    found: list[Change] = []
    for section, (old, new) in pairs.items():
        added = [f"+{name}" for name in new if name not in old]
        removed = [f"-{name}" for name in old if name not in new]
        changed = [name for name, part in new.items() if name in old and old[name] != part]
        names: list[str] = []
        for name in changed[:MOST_NAMES]:
            # A key that one of them lacks, as another kind may, is not set there.
            was, now = dict(old[name]), dict(new[name])
            keys = (key for key in {**was, **now} if was.get(key) != now.get(key))
            names.append(f"{name}: {', '.join(keys)}")
        first = tuple([*names, *added, *removed][:MOST_NAMES])
        if first:
            found.append(Change(section, len(added), len(removed), len(changed), first))
    return found


def _single(settings: Settings) -> Mapping[str, Section]:
    """The sections of which there is one each, by name."""
    return {name: part for name, part in settings if isinstance(part, Section)}


EXIT_NO = 1
_HASTE_AFTER_S = {signal.SIGINT: 0.01, signal.SIGTERM: 5.0}
"""How long after the first signal another one asks to end at once. A supervisor sends SIGTERM to the group
and to the process; one Ctrl-C arrives twice where a wrapper passes it on."""
_MOST_MISTAKES = 5
"""Mistakes logged for a refused reload: `watcher check` lists the rest."""
_FILE_LOOK_S = 1.0
_NO_ACCOUNT_LEFT = (
    "no account is left: is the file still being written? To poll no account at all, end the worker"
)


def serve(
    loaded: Loaded,
    path: Path | None,
    *,
    once: bool = False,
    is_watching: bool = False,
    exposure: Exposure = Exposure(),  # noqa: B008  # frozen
    on_enrolling: Callable[[int, int], object] = lambda part, parts: None,
) -> int:
    """Run one worker to its end; returns the exit code. `is_watching`: reload whenever a file is edited;
    `on_enrolling` as for Worker."""
    hide([exposure.token or ""])
    settings = loaded.settings
    writer = configure(
        settings.log.level,
        settings.log.format,
        color=not Environment().get("NO_COLOR"),
        prefix=settings.log.prefix,
    )
    try:
        _log_loaded(loaded)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            worker = Worker(
                settings,
                name=worker_name(),
                dropped_lines=lambda: writer.dropped,
                on_started=notify_ready,
                on_enrolling=on_enrolling,
            )
            files = FileWatch(loaded.files)
            return runner.run(serve_worker(worker, path, files, exposure, once=once, is_watching=is_watching))
    finally:
        writer.close()


def worker_name() -> str:
    """Name this process uniquely. Containers that share their host's network share its name,
    and each is process 1: two workers of one name would not see each other, and take each other's accounts
    off the roster."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


async def serve_worker(
    worker: Worker,
    path: Path | None,
    files: FileWatch,
    exposure: Exposure,
    *,
    once: bool,
    is_watching: bool,
) -> int:
    received = _Signals(worker, path, files)
    # What polls everything once has read its configuration a moment ago, and ends by itself.
    beside = [] if once else [received.reload(), *([received.watch()] if is_watching else [])]
    tasks = [asyncio.create_task(each) for each in beside]  # ended with the worker, below
    try:
        async with exposed(worker, exposure):
            await worker.run(once=once)
    except asyncio.CancelledError:
        return signals.EXIT_SIGNAL + received.last
    except BaseExceptionGroup as group:
        # A StoreError ends the process as itself, without the exception groups of the tasks.
        planned, rest = group.split((StoreError, DamagedKey))
        found: BaseException = group if rest or not planned else planned
        while not rest and isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        raise found from None
    finally:
        for task in tasks:
            task.cancel()
    return EXIT_NO if once and not worker.has_read_all else 0


def is_haste(number: int, since_first_s: float) -> bool:
    """Return whether another signal, so long after the first one, asks to end at once."""
    return since_first_s >= _HASTE_AFTER_S[signal.Signals(number)]


class _Signals:
    """Applies the signals of a process to its worker. `last` is the number of the last one that counted."""

    def __init__(self, worker: Worker, path: Path | None, files: FileWatch) -> None:
        self.last = 0
        self._first_at = 0.0
        self._worker = worker
        self._path = path
        self._files = files
        self._task = asyncio.current_task()
        self._wanted = asyncio.Event()
        loop = asyncio.get_running_loop()
        signals.take_over(loop.call_soon_threadsafe, self._take, also_ignored=True)

    def _take(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._wanted.set()
        elif not self.last:
            self.last, self._first_at = number, time.monotonic()
            notify_stopping()
            self._worker.stop(signal.Signals(number).name)
        elif is_haste(number, time.monotonic() - self._first_at):
            self.last = number
            if self._task:
                self._task.cancel()

    async def watch(self) -> None:
        """Treat every edit of the configuration's files like a SIGHUP."""
        while True:
            await asyncio.sleep(_FILE_LOOK_S)
            with survived("watch"):  # it must not end all looks to come
                if await asyncio.to_thread(self._files.look):
                    self._wanted.set()

    async def reload(self) -> None:
        """At each SIGHUP, validate the configuration and switch to it, or keep the old one and log why."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            is_ready = self._worker.opened is not None
            if is_ready:
                notify_reloading()
            is_taken = False
            with survived("reload"):  # a bug must not end all reloads to come
                is_taken = await self._reload()
            self._worker.liveness.is_reload_refused = not is_taken
            if is_ready:
                notify_ready()

    async def _reload(self) -> bool:
        """Read the files, and run their configuration or log why not; returns which."""
        self._files.reading()
        try:
            # In a thread: 100,000 accounts take seconds, and leases do not wait.
            loaded, changed = await compute(self._load)
        except ConfigRefused as refused:
            reasons = [str(mistake) for mistake in refused.mistakes[:_MOST_MISTAKES]]
            log.error("configuration.refused", mistakes=len(refused.mistakes), reasons=reasons)
            self._files.follow(refused.files or self._files.files)
            return False
        _log_loaded(loaded)
        for change in changed:
            log.info("configuration.changed", **change._asdict())
            late = [name for name in change.names if name.startswith(NOT_RELOADED)]
            if change.section == "settings" and late:
                reason = f"takes effect at the next start: {'; '.join(late)}"
                log.warning("configuration.doubtful", reason=reason)
        self._files.follow(loaded.files)
        self._worker.reload(loaded.settings)
        return True

    def _load(self) -> tuple[Loaded, list[Change]]:
        loaded, before = load(self._path, os.environ, is_running=True), self._worker.file
        if before.account_by_name and not loaded.settings.account_by_name:
            raise ConfigRefused([Finding(str(loaded.path), None, "", _NO_ACCOUNT_LEFT)])
        return loaded, changes(before, loaded.settings)


def _log_loaded(loaded: Loaded) -> None:
    for warning in loaded.warnings:
        log.warning("configuration.doubtful", reason=str(warning))
    log.info(
        "configuration.loaded",
        file=str(loaded.path),
        providers=len(loaded.settings.provider_by_name),
        accounts=len(loaded.settings.account_by_name),
        subscriptions=len(loaded.settings.subscription_by_name),
    )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop if it is installed: it saves a tenth of the time of every request."""
    # Reads allocate 256 KiB each, which glibc serves by mmap until it has seen a larger block freed once.
    block = bytearray(4 << 20)
    del block
    # Look for cycles after 10,000 new objects, not 700: what a poll makes is mostly gone by itself. And among
    # what stayed after 100,000: with a million accounts all that is new since then is looked at in 30 ms.
    gc.set_threshold(10_000, 10, 100)
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop
