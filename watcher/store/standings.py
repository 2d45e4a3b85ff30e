"""How subscriptions stand with their receivers: failing since when, left alone until when, paused or not.

Only those that do not stand well are written down, so that all workers can read all of it every second.
Refuses to decide what a failure is worth: it counts, and keeps what it is told.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from watcher.store.counts import read_count
from watcher.store.keys import Keys
from watcher.store.pipe import Pipe
from watcher.store.scripting import load_script

PATIENCE = timedelta(days=5)
"""A subscription that fails everything for so long is paused."""

_NOTE_FAILURE = load_script("note_failure")
_NOTE_SUCCESS = load_script("note_success")
_PROBE = load_script("probe")
_TELL = load_script("tell")
_UNHOLD = load_script("unhold")

TELLING_MS = 5_000
"""So long whoever is to tell of a pause has time for it; then it is for any other worker to do."""


class Standing(NamedTuple):
    """A subscription that does not stand well. Times in Unix ms of the server, 0 for never.

    `tell_from_ms` is 0 but for a pause that nobody has told of: from then on any worker is to.
    """

    failures: int
    since_ms: int
    held_until_ms: int
    paused_at_ms: int
    reason: str
    tell_from_ms: int = 0


class Noted(NamedTuple):
    """A failure as it was noted: how the subscription stands now, whether this failure `paused` it, and
    whether it counted (not while the subscription was left alone anyway)."""

    standing: Standing
    paused: bool
    counted: bool


class Standings:
    """The standings of one namespace. Methods raise StoreError."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._key = keys.standings()
        self._keys = keys

    async def read(self) -> dict[str, Standing]:
        """Read all of them, by name; a subscription that stands well is not among them."""
        pairs = await self._pipe.command("HGETALL", self._key)
        names = (name.decode("utf-8", "replace") for name in pairs[::2])
        return {name: _parse(text) for name, text in zip(names, pairs[1::2], strict=True)}

    async def failed(
        self, subscription: str, reason: str, *, pause: bool, wish_ms: int, holds_ms: Sequence[int]
    ) -> Noted:
        """Note a failed attempt, or (without `holds_ms`) only pause."""
        patience_ms = int(1000 * PATIENCE.total_seconds())
        telling_ms = TELLING_MS if holds_ms else 0  # without an attempt there is no worker that would tell
        arguments = (subscription, reason, int(pause), patience_ms, wish_ms, telling_ms, *holds_ms)
        text, paused, counted = await self._pipe.script(_NOTE_FAILURE, [self._key], *arguments)
        return Noted(_parse(text), bool(paused), bool(counted))

    async def succeeded(self, subscription: str) -> int:
        """Note a delivery; returns how often in a row the subscription had failed until now."""
        return int(await self._pipe.script(_NOTE_SUCCESS, [self._key], subscription))

    async def take_telling(self, subscription: str, standing: Standing) -> bool:
        """Be the only one who tells of a pause; says whether the asker is."""
        arguments = (subscription, standing.paused_at_ms, TELLING_MS)
        return bool(await self._pipe.script(_TELL, [self._key], *arguments))

    async def told(self, subscription: str, standing: Standing) -> None:
        """Note that this pause was told."""
        await self._pipe.script(_TELL, [self._key], subscription, standing.paused_at_ms, 0)

    async def take_probe(self, subscription: str, who: str, *, lease_ms: int) -> bool:
        """Be the only one over all workers who asks a failing subscription; says whether `who` is."""
        return bool(await self._pipe.script(_PROBE, [self._keys.probe(subscription)], who, lease_ms))

    async def leave_probe(self, subscription: str, who: str) -> None:
        """Let somebody else ask, if it was `who` that might."""
        await self._pipe.script(_PROBE, [self._keys.probe(subscription)], who, 0)

    async def pause(self, subscription: str, reason: str) -> bool:
        """Send nothing more to a subscription until it is resumed; says whether it was not paused before."""
        return (await self.failed(subscription, reason, pause=True, wish_ms=0, holds_ms=())).paused

    async def resume(self, subscription: str) -> bool:
        """Forget that a subscription failed or was paused; says whether there was anything to forget."""
        return bool(await self._pipe.command("HDEL", self._key, subscription))

    async def unhold(self, subscription: str, *reasons: str) -> bool:
        """Leave a subscription alone no longer that failed for one of these `reasons` (how they begin).

        Says whether it did. Its failures count on, and one that is paused stays so.
        """
        return bool(await self._pipe.script(_UNHOLD, [self._key], subscription, *reasons))


def _parse(text: bytes) -> Standing:
    """Read a standing. Something damaged stands well, but for its reason: it heals with the next attempt."""
    try:
        failures, since, held, paused, reason = text.split(b" ", 4)
        paused_at, _, tell_from = paused.partition(b"!")
        return Standing(
            read_count(failures),
            read_count(since),
            read_count(held),
            read_count(paused_at),
            reason.decode(),
            read_count(tell_from or b"0"),
        )
    except ValueError:
        return Standing(0, 0, 0, 0, "unreadable")
