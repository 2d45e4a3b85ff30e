"""Looks host names up by the configuration that is in force now: aiodns reads it once, when it begins.

A resolv.conf may be empty when a container starts, be filled in place through a bind mount, or be a link that
moves. aiodns watches the directory /etc, which sees neither; its names then never resolve again.
"""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from aiohttp import AsyncResolver
from aiohttp.abc import AbstractResolver, ResolveResult

FILES = (Path("/etc/resolv.conf"), Path("/etc/hosts"))

_MOST_BYTES = 64 * 1024


def ask_by_files() -> AbstractResolver:
    """Make a resolver that has read the files as they are now.

    Without an argument it would be one that all sessions of the process share, which read them long ago. The
    values are those of c-ares itself: 2 s for the first question, twice as long for each of the next ones.
    """
    return AsyncResolver(timeout=2.0, tries=3)


class CurrentResolver(AbstractResolver):
    """A resolver that is made anew whenever `files` have changed. Needs a running loop.

    It looks at them before each look-up; one that is under way when they change is repeated. `follow` looks
    without a look-up: call it now and then.
    """

    def __init__(
        self, files: Sequence[Path] = FILES, make: Callable[[], AbstractResolver] = ask_by_files
    ) -> None:
        self._files = files
        self._make = make
        self._failed: set[str] = set()
        self._changed: set[str] | None = None
        self._begin()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raise OSError where the look-up fails."""
        await self.follow()
        while True:
            inner = self._inner
            try:
                answers = await inner.resolve(host, port, family)
            except OSError:
                if await self.follow() or inner is not self._inner:
                    continue
                self._failed.add(host)
                raise
            self._failed.discard(host)
            return answers

    async def follow(self) -> bool:
        """Begin anew if the files have changed; says whether they have."""
        if self._read() == self._contents:
            return False
        self._changed, self._failed = (self._changed or set()) | self._failed, set()
        outdated = self._inner
        self._begin()
        await outdated.close()  # ends what it still waits for
        return True

    def take_change(self) -> set[str] | None:
        """Name, once, the hosts that could not be looked up before the files changed; None: they did not."""
        hosts, self._changed = self._changed, None
        return hosts

    async def close(self) -> None:
        await self._inner.close()

    def _begin(self) -> None:
        self._contents = self._read()
        self._inner = self._make()

    def _read(self) -> list[bytes | None]:
        """Read the files whole: an edit within one tick of the clock changes no time of theirs."""
        return [_contents(file) for file in self._files]


def _contents(file: Path) -> bytes | None:
    try:
        with file.open("rb") as opened:
            return opened.read(_MOST_BYTES)
    except OSError:
        return None
