"""The circuit breakers of subscriptions as all workers share them.

Only those that are not closed, or have failed of late, are written down: every worker reads all of them every
second. Refuses to decide what a failure is worth: `engine.breaker` does, and this makes it one step.
"""

from collections.abc import Callable
from typing import NamedTuple

from watcher.store.batch import load_script
from watcher.store.keys import Keys, read_count
from watcher.store.pipe import Pipe

_PROBE = load_script("probe")
_SET_BREAKER = load_script("set_breaker")


class Breaker(NamedTuple):
    """A subscription that has failed, or is paused. Times in Unix ms of the server, 0 for never.

    `report_from_ms` is 0 but for a pause that was not reported yet: from then on any worker is to report it.
    """

    failures: int
    since_ms: int
    open_until_ms: int
    paused_at_ms: int
    reason: str
    report_from_ms: int = 0


Decide = Callable[[Breaker | None, int], Breaker | None]
"""How a breaker stands after something happened, from how it stood and the time in ms; None: as if it had
never failed."""


class Change(NamedTuple):
    """How a breaker stood, and how it stands now."""

    before: Breaker | None
    after: Breaker | None


class Breakers:
    """The breakers of one namespace. Methods raise StoreError."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._key = keys.standings()
        self._keys = keys

    async def read(self) -> dict[str, Breaker]:
        """Read all of them, by name; a subscription that has not failed is not among them."""
        pairs = await self._pipe.command("HGETALL", self._key)
        names = (name.decode("utf-8", "replace") for name in pairs[::2])
        # One that is damaged is closed, but for its reason: the next attempt heals it.
        damaged = Breaker(0, 0, 0, 0, "unreadable")
        return {name: _parse(text) or damaged for name, text in zip(names, pairs[1::2], strict=True)}

    async def change(self, subscription: str, decide: Decide) -> Change:
        """Let one breaker stand as `decide` says, which is called again where another worker was faster."""
        text, now_ms, _ = await self._pipe.script(_SET_BREAKER, [self._key], subscription)
        while True:
            before = _parse(text)
            after = decide(before, now_ms)
            if _dump(after) == text:
                return Change(before, after)
            arguments = subscription, text, _dump(after)
            text, now_ms, is_set = await self._pipe.script(_SET_BREAKER, [self._key], *arguments)
            if is_set:
                return Change(before, after)

    async def resume(self, subscription: str) -> bool:
        """Forget that a subscription failed or was paused; says whether there was anything to forget."""
        return bool(await self._pipe.command("HDEL", self._key, subscription))

    async def take_probe(self, subscription: str, worker: str, *, lease_ms: int) -> bool:
        """Be the only worker that asks a half-open subscription; says whether `worker` is."""
        return bool(await self._pipe.script(_PROBE, [self._keys.probe(subscription)], worker, lease_ms))

    async def leave_probe(self, subscription: str, worker: str) -> None:
        """Let another worker ask, if it was `worker` that might."""
        await self._pipe.script(_PROBE, [self._keys.probe(subscription)], worker, 0)


def _parse(text: bytes) -> Breaker | None:
    """Read a breaker; None for one that is damaged."""
    try:
        failures, since, open_until, paused, reason = text.split(b" ", 4)
        paused_at, _, report_from = paused.partition(b"!")
        return Breaker(
            read_count(failures),
            read_count(since),
            read_count(open_until),
            read_count(paused_at),
            reason.decode(),
            read_count(report_from or b"0"),
        )
    except ValueError:
        return None


def _dump(breaker: Breaker | None) -> bytes:
    if breaker is None:
        return b""
    failures, since_ms, open_until_ms, paused_at_ms, reason, report_from_ms = breaker
    report = f"!{report_from_ms}" if report_from_ms else ""
    return f"{failures} {since_ms} {open_until_ms} {paused_at_ms}{report} {reason}".encode()
