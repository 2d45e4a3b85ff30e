"""How a worker shows its health: over HTTP, by a file, and to the service manager."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from watcher.observe.liveness import HeartbeatFile
from watcher.run.worker import Worker

if TYPE_CHECKING:
    from watcher.api.access import Address


def notify_ready() -> None:
    """The worker has started, or runs another configuration."""
    _notify("READY=1")


def notify_reloading() -> None:
    """The worker reads its configuration again; `notify_ready` follows in any case."""
    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def notify_stopping() -> None:
    """The worker drains."""
    _notify("STOPPING=1")


def _notify(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # in Linux's abstract namespace
        address = f"\0{address[1:]}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)  # a manager that hangs must not hold up the loop
        manager.sendto(state.encode(), address)


_COARSE_NS = 20_000_000
"""By how much the time that a file was written may lag behind the clock."""

_Stamp = tuple[int, int, int] | None
"""None: there is no such file."""


class FileWatch:
    """Files as they were when they were last read. Call `look` once a second."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(files)
        self._read = self._looked = self._stamps()
        self._reading_ns = sys.maxsize

    def follow(self, files: Iterable[Path]) -> None:
        """Watch these files from now on. One that is new, and was written since the others were read, may
        have been missing then: it counts as changed."""
        known, self.files = self._read, tuple(files)
        read = dict(self._stamps())
        for file, stamp in read.items():
            if file in known or (stamp and stamp[0] >= self._reading_ns):
                read[file] = known.get(file)
        self._read = read

    def reading(self) -> None:
        """Note that the files are about to be read as they are now."""
        self._reading_ns = time.time_ns() - _COARSE_NS
        self._read = self._looked = self._stamps()

    def look(self) -> bool:
        """Say whether the files differ from what was read, and have stayed so since the last look.

        A file that was there, and is gone, is being replaced.
        """
        stamps, before = self._stamps(), self._looked
        self._looked = stamps
        is_whole = not any(stamp is None and self._read.get(file) for file, stamp in stamps.items())
        return is_whole and stamps == before and stamps != self._read

    def _stamps(self) -> Mapping[Path, _Stamp]:
        stamps: dict[Path, _Stamp] = dict.fromkeys(self.files)
        for file in self.files:
            with suppress(OSError):
                found = file.stat()
                stamps[file] = found.st_mtime_ns, found.st_size, found.st_ino
        return stamps


@dataclass(frozen=True, slots=True)
class Exposure:
    """How to expose a worker: an address for HTTP, with a token that clients must send; a heartbeat file.

    `has_page`: people find a page there. `has_api`: programs find /v1 there; that takes a token.
    """

    address: "Address | None" = None
    token: str | None = None
    has_page: bool = False
    has_api: bool = False
    heartbeat_file: Path | None = None


def by_token(worker: Worker, digest: str) -> str | None:
    """Name the subscription whose token has this SHA-256; None before the directory is read, too."""
    return worker.followed.by_token(digest) if worker.followed else None


@asynccontextmanager
async def exposed(worker: Worker, exposure: Exposure) -> "AsyncIterator[Address | None]":
    """Serve the worker's metrics, probes and page inside the block, over HTTP at this address.

    Raises ListenerRefused and HeartbeatRefused.
    """
    address = None
    async with AsyncExitStack() as stack:
        if exposure.heartbeat_file:
            path = exposure.heartbeat_file
            heartbeat = HeartbeatFile(path, lambda: worker.liveness.stuck(time.monotonic()))
            heartbeat.begin()
            stack.callback(heartbeat.end)
            beating = asyncio.create_task(heartbeat.run(), name="heartbeat file")  # ended with the block
            stack.callback(beating.cancel)
        if exposure.address:
            # aiohttp.web and prometheus-client are heavy, and off by default
            from aiohttp import web

            from watcher.api.access import Access
            from watcher.api.server import Listener
            from watcher.observe.metrics import PROBES, routes

            shown = routes(worker)
            if exposure.has_page:
                from watcher.observe.page.look import routes as page_routes

                shown = {**shown, **page_routes(worker)}
            api = list[web.RouteDef]()
            access = None
            if exposure.has_api:
                assert exposure.token
                from watcher.api import accounts, edits, events, openapi, subscriptions

                for module in (accounts, subscriptions, edits, events, openapi):
                    api += module.routes(worker)
                access = Access(exposure.token, lambda digest: by_token(worker, digest))
            listener = Listener(
                exposure.address,
                shown,
                token=exposure.token,
                probes=PROBES,
                api=api,
                access=access,
                counted=worker.counters.by_api_request,
            )
            address = (await stack.enter_async_context(listener)).address
        yield address
