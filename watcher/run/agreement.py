"""What other workers of the namespace run, and what this one leaves to them.

One namespace is for one configuration. Workers compare fingerprints: where two give the same name and lead
elsewhere, that is said at once, and one of them rests.
- A subscription's queues are filled for one URL, its mark, and only workers whose configuration names that
  URL deliver them. A start, or a reload that changes the URL, moves the mark, unless another worker is there
  that names the old one. Then this worker waits until the last of those is gone, and a while longer: it may
  only be restarting. So it does at its start, where the mark is of another deployment.
- An account that another worker polls elsewhere is left to it, in the same way.
- An account whose events would wait in the queues of another deployment is not polled.

Refuses to know which configuration is the right one: it is the one that was there first, until it is gone.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from watcher.journal.interest import Interest
from watcher.logs.lines import log
from watcher.logs.spells import Spells
from watcher.run.fingerprint import SOURCE_DIGITS, fingerprint
from watcher.run.presence import Present
from watcher.settings import Settings
from watcher.store.configurations import Configurations, Fingerprint, Mark
from watcher.store.exceptions import ConfigurationRefused

LOOK_S = 2.0
"""How often it is looked at what other workers run."""

SAME_PLACE_S = 45.0
"""So long after the last worker with another URL was seen its queues wait, where all else is the same: a
deploy that starts the new workers before it ends the old ones."""

OTHER_PLACE_S = 600.0
"""The same, where providers or accounts differ, too: another deployment, which may only be restarting."""

AT_THE_START_S = 60.0
"""So long a worker waits at its start for a deployment that left its mark, and that it has not seen."""

_WRITE_AGAIN_S = 1200.0
_OVER_S = 30.0
_MOST_NAMES = 8
_ACCOUNT = "account "


class Difference(NamedTuple):
    """What another worker gives the same name and leads elsewhere, such as `provider loopring`."""

    worker: str
    digest: str
    names: Sequence[str]


class _Place(NamedTuple):
    """Where another configuration leads, what of it differs from ours, and whether only URLs do."""

    fingerprint: Fingerprint
    names: Sequence[str]
    is_same: bool


@dataclass(slots=True)
class _Other:
    """A worker with another configuration, as it was last seen (Unix ms of the server): what it has is left
    to it for a while after it is gone."""

    place: _Place
    seen_ms: int
    patience_s: float

    @property
    def fingerprint(self) -> Fingerprint:
        return self.place.fingerprint


@dataclass(slots=True)
class _View:
    """What follows from the last look."""

    rests: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()
    contested: frozenset[str] = frozenset()
    is_alone: bool = True
    differences: list[Difference] = field(default_factory=list)


class Agreement:
    """One worker among the others; outlives reloads. Methods raise StoreError."""

    def __init__(
        self,
        present: Present,
        configurations: Configurations,
        *,
        now_ms: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._present = present
        self._configurations = configurations
        self._now_ms = now_ms
        self._clock = clock
        self._own = self._before = Fingerprint({}, {}, {})
        self._interest = Interest({})
        self._known: dict[str, _Place] = {}
        self._seen_at: dict[str, float] = {}
        self._others: dict[str, _Other] = {}
        self._there: set[str] = set()
        self._is_alone = self._is_shared = True
        self._view = _View()
        self._write_at = 0.0
        self._spells = Spells()

    @property
    def differences(self) -> Sequence[Difference]:
        """What differs at workers that are there now."""
        return self._view.differences

    @property
    def has_neighbours(self) -> bool:
        """Say whether there is, or was of late, a worker that leads elsewhere under the same name."""
        return any(one.place.names for one in self._others.values())

    @property
    def rests(self) -> frozenset[str]:
        return self._view.rests

    def is_ours(self, subscription: str) -> bool:
        """Say whether this worker may claim a subscription's queues. One that it does not know is left to
        others that may know it."""
        if subscription not in self._own.subscriptions:
            return self._view.is_alone
        return subscription not in self._view.rests

    def is_left(self, account: str) -> bool:
        """Say whether an account is not to be polled here: others may know it, or its events would wait in
        the queues of another deployment."""
        if account not in self._own.accounts:
            return not self._view.is_alone
        return account in self._view.left

    def may_poll(self, account: str, source: str, state_source: str | None) -> bool:
        """Say whether this worker may go on from an account's state: another one may have the account of that
        name elsewhere, and the state be that one's."""
        if state_source in (None, source):
            return True
        known = (state_source or "")[:SOURCE_DIGITS]
        return not any(one.fingerprint.accounts.get(account) == known for one in self._others.values())

    def is_contested(self, account: str) -> bool:
        """Say whether another worker has an account of that name elsewhere, or had of late."""
        return account in self._view.contested

    async def begin(self, settings: Settings) -> None:
        """Go by another configuration from now on: at the start of a worker, and at a reload.

        An embedded store belongs to one deployment alone: what has changed there was changed on purpose.
        """
        before, self._own = self._before, await asyncio.to_thread(fingerprint, settings)
        self._interest = Interest(settings.subscription_by_name)
        self._write_at, self._known = 0.0, {}
        for other in self._others.values():
            other.place = self._place(other.fingerprint)
        ours, old = self._own.subscriptions, before.subscriptions
        self._is_shared = settings.redis.url.get_secret_value() != "embedded"
        await self._look(frozenset(name for name, digest in ours.items() if old.get(name) != digest), before)
        self._before = self._own

    async def look(self) -> None:
        """See what the others run by now."""
        await self._look(frozenset())

    async def _look(self, moved: frozenset[str], before: Fingerprint | None = None) -> None:
        """Look around. `moved`: subscriptions that were given their URL just now, on purpose; `before`: what
        this worker ran until now, where that is over."""
        try:
            await self._write()
            await self._see()
            marks = await self._configurations.marks([*self._own.subscriptions])
            if before and self._is_shared:
                await self._remember(marks, before)
            rests = await self._take_marks(marks, moved, is_begin=before is not None)
        except ConfigurationRefused:  # this worker may not look: it goes by its own configuration alone
            return
        self._view = self._judge(rests)
        self._tell()

    async def _write(self) -> None:
        if self._clock() < self._write_at:
            return
        await self._configurations.write(self._own)
        await self._present.runs(self._own.digest)
        self._write_at = self._clock() + _WRITE_AGAIN_S

    async def _see(self) -> None:
        """Learn which workers are there, and remember those that differ for a while after they are gone."""
        now_ms = self._now_ms()
        there = await self._present.others(now_ms)
        self._there = {one.worker for one in there}
        self._is_alone = all(one.configuration == self._own.digest for one in there)
        for one in there:
            found = None
            if one.configuration not in ("", self._own.digest):
                found = await self._look_up(one.configuration)
            if found is None:  # it agrees by now, or does not say
                self._others.pop(one.worker, None)
            else:
                patience_s = SAME_PLACE_S if found.is_same else OTHER_PLACE_S
                self._others[one.worker] = _Other(found, now_ms, patience_s)
        for worker, other in [*self._others.items()]:
            if now_ms - other.seen_ms >= 1000 * other.patience_s:
                del self._others[worker]
        used = {other.fingerprint.digest for other in self._others.values()}
        self._known = {digest: one for digest, one in self._known.items() if digest in used}

    async def _remember(self, marks: Mapping[str, Mark], before: Fingerprint) -> None:
        """Take the deployments that left these marks for there, and gone just now."""
        known = {before.digest, self._own.digest, *(one.fingerprint.digest for one in self._others.values())}
        for digest in sorted({mark.configuration for mark in marks.values()} - known):
            place = await self._look_up(digest)
            if place and not place.is_same:
                self._others[f"{digest}, which is gone"] = _Other(place, self._now_ms(), AT_THE_START_S)

    async def _look_up(self, digest: str) -> _Place | None:
        if digest not in self._known:
            found = await self._configurations.read(digest)
            if found is None:
                return None
            self._known[digest] = await asyncio.to_thread(self._place, found)
        return self._known[digest]

    def _place(self, other: Fingerprint) -> _Place:
        return _Place(other, self._own.differing(other), self._own.is_same_place(other))

    async def _take_marks(
        self, marks: Mapping[str, Mark], moved: frozenset[str], *, is_begin: bool
    ) -> dict[str, str]:
        """Take the marks that are free; returns those that are not, with the URL that stands there."""
        ours, moves = self._own.subscriptions, dict[str, tuple[Mark | None, Mark]]()
        for name, url in ours.items():
            mark, wanted = marks.get(name), Mark(url, self._own.digest)
            if mark and mark.url == url:
                is_wanted = is_begin and mark != wanted
            else:
                is_wanted = mark is None or self._is_free(name, mark.url, is_moved=name in moved)
            if is_wanted:
                moves[name] = (mark, wanted)
        if moves:
            marks = {**marks, **await self._configurations.mark(moves)}
        return {name: marks[name].url for name, url in ours.items() if marks[name].url != url}

    def _is_free(self, subscription: str, url: str, *, is_moved: bool) -> bool:
        """Say whether nobody else names the URL for which a subscription's queues were filled; where it was
        moved on purpose, nobody who is there, or of another deployment."""
        holders = self._holders(subscription, url)
        return all(
            is_moved and other.place.is_same and worker not in self._there for worker, other in holders
        )

    def _holders(self, subscription: str, url: str) -> list[tuple[str, _Other]]:
        found = self._others.items()
        return [one for one in found if one[1].fingerprint.subscriptions.get(subscription) == url]

    def _judge(self, rests: Mapping[str, str]) -> _View:
        contested = frozenset(
            name.removeprefix(_ACCOUNT)
            for other in self._others.values()
            for name in other.place.names
            if name.startswith(_ACCOUNT)
        )
        differences: dict[str, Difference] = {}
        for worker in sorted(self._others.keys() & self._there):
            place = self._others[worker].place
            if place.names:
                digest = place.fingerprint.digest
                differences.setdefault(digest, Difference(worker, digest, place.names))
        return _View(frozenset(rests), self._left(rests), contested, self._is_alone, [*differences.values()])

    def _left(self, rests: Mapping[str, str]) -> frozenset[str]:
        """Name the accounts whose events would go into queues of workers that do not have the account."""
        holders = {
            name: [other.fingerprint.accounts for _, other in self._holders(name, url)]
            for name, url in rests.items()
        }
        if not holders:
            return frozenset()
        return frozenset(
            account
            for account, source in self._own.accounts.items()
            for name in self._interest.listeners(account)
            if name in holders and not any(theirs.get(account) == source for theirs in holders[name])
        )

    def _tell(self) -> None:
        """Say what differs as it begins, and that it is over: not for each restart of the other side."""
        now = self._clock()
        for one in self._view.differences:
            self._seen_at[one.digest] = now
            if spell := self._spells.struck(one.digest, now):
                log.warning(
                    "configuration.differs",
                    worker=one.worker,
                    names=[*one.names[:_MOST_NAMES]],
                    changed=len(one.names),
                    rests=[*sorted(self._view.rests)[:_MOST_NAMES]],
                    accounts=len(self._view.left),
                    **spell._asdict(),
                )
        for digest, seen_at in [*self._seen_at.items()]:
            if now >= seen_at + _OVER_S and (spell := self._spells.over(digest, now)):
                del self._seen_at[digest]
                log.info("configuration.agrees", **spell._asdict())
