"""Which configurations the other workers of the namespace run, and what this worker leaves to them.

One namespace is for one configuration. Workers compare fingerprints: if two of them have something different
under the same name, both report it at once, and one of the two is inactive for that name.

- A subscription's queues are filled for one URL, its mark, and only workers whose configuration has that URL
  deliver them. A worker that starts, or reloads another URL, moves the mark, unless another running worker
  has the old one. Then it waits until the last of those is gone, and a while longer, because that worker may
  only be restarting. At its start it waits in the same way for the mark of another deployment.
- An account that another worker polls elsewhere is left to that worker, in the same way.
- An account whose events would wait in the queues of another deployment is not polled.

Refuses to know which configuration is right: the one that was there first counts, until it is gone.
"""

import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from watcher.engine.loop import Neighbours
from watcher.journal.interest import Interest
from watcher.observe.log import Throttle, log
from watcher.pause import compute
from watcher.providers.contract import provider_class
from watcher.providers.http import source_of
from watcher.run.members import Present
from watcher.settings import Settings
from watcher.store.exceptions import ConfigurationRefused
from watcher.store.members import Configurations, Fingerprint, Mark

LOOK_S = 2.0
"""How often a worker looks at what other workers run."""

_WRITE_AGAIN_S = 1200.0
_OVER_S = 30.0
_MOST_NAMES = 8

SOURCE_DIGITS = 16
"""How much of an account's source is compared."""

SAME_PLACE_S = 45.0
"""How long queues wait after the last worker with another URL was seen, if nothing else differs: a deploy may
start the new workers before it ends the old ones."""

OTHER_PLACE_S = 600.0
"""The same if providers or accounts differ as well: then it is another deployment, which may be
restarting."""

AT_THE_START_S = 60.0
"""How long a worker waits at its start for a deployment whose mark it finds and which it does not see.
Workers that end sooner wait OTHER_PLACE_S in all."""

_ACCOUNT = "account "


def fingerprint(settings: Settings) -> Fingerprint:
    """Make the fingerprint of a configuration, and its digest, in a thread: there may be 100,000 accounts. It
    is salted by namespace and name, so that equal URLs do not look equal."""
    providers = settings.provider_by_name
    asked = {name: provider_class(one.kind)(one) for name, one in providers.items()}
    found = Fingerprint(
        {name: _digest(one.kind, one.base_url.rstrip("/")) for name, one in providers.items()},
        {
            name: _digest(settings.redis.namespace, name, one.leads_to)
            for name, one in settings.subscription_by_name.items()
        },
        {
            name: source_of(providers[one.provider], asked[one.provider], one)[:SOURCE_DIGITS]
            for name, one in settings.account_by_name.items()
        },
    )
    assert found.digest
    return found


def _digest(*parts: str) -> str:
    return blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


class _Place(NamedTuple):
    """How another configuration differs from ours: names, the accounts among them, and whether only URLs
    differ. There may be 100,000 accounts."""

    fingerprint: Fingerprint
    names: list[str]
    accounts: dict[str, None]
    is_same: bool


def _place(own: Fingerprint, other: Fingerprint) -> _Place:
    """Compare two configurations, in a thread."""
    names = own.differing(other)
    accounts = {name.removeprefix(_ACCOUNT): None for name in names if name.startswith(_ACCOUNT)}
    return _Place(other, names, accounts, own.is_same_place(other))


@dataclass(slots=True)
class Other:
    """A worker with another configuration, as it was last seen (Unix ms of the server). For a while after it
    is gone, this worker does not take over its work."""

    worker: str
    place: _Place
    seen_ms: int
    patience_s: float
    is_there: bool

    @property
    def fingerprint(self) -> Fingerprint:
        return self.place.fingerprint


class Others:
    """The other workers, and how they differ from the configuration `own`. Methods raise StoreError."""

    def __init__(
        self, present: Present, configurations: Configurations, *, now_ms: Callable[[], int]
    ) -> None:
        self.own = Fingerprint({}, {}, {})
        self.is_alone = True
        self.workers = 1
        self._present = present
        self._configurations = configurations
        self._now_ms = now_ms
        self._known: dict[str, _Place] = {}
        self._by_worker: dict[str, Other] = {}

    async def compare_with(self, own: Fingerprint) -> None:
        """Compare with another configuration of this worker from now on."""
        places: dict[str, _Place] = {}
        while missing := [one for one in self._by_worker.values() if one.fingerprint.digest not in places]:
            for other in missing:
                place = await compute(_place, own, other.fingerprint)
                places[other.fingerprint.digest] = place
        self.own, self._known = own, places  # together: looks go on meanwhile
        for other in self._by_worker.values():
            other.place = places[other.fingerprint.digest]

    @property
    def differing(self) -> list[Other]:
        """Return the workers that have something different under the same name."""
        return [
            self._by_worker[worker]
            for worker in sorted(self._by_worker)
            if self._by_worker[worker].place.names
        ]

    def holders(self, subscription: str, url: str) -> list[Other]:
        """Return the workers that have this URL (its digest) for a subscription."""
        found = self._by_worker.values()
        return [one for one in found if one.fingerprint.subscriptions.get(subscription) == url]

    async def look(self) -> None:
        """Read which workers run; remember those that differ for a while after they are gone."""
        now_ms = self._now_ms()
        there = await self._present.others(now_ms)
        unreadable = set[str]()
        while missing := {one.configuration for one in there} - {
            "",
            self.own.digest,
            *self._known,
            *unreadable,
        }:
            for digest in missing:
                if await self._look_up(digest) is None:
                    unreadable.add(digest)
        # No await from here on: a reload that looks at the same time must find every worker that is there.
        self.is_alone = all(one.configuration == self.own.digest for one in there)
        self.workers = 1 + len(there)
        for other in self._by_worker.values():
            other.is_there = False
        for one in there:
            place = None if one.configuration == self.own.digest else self._known.get(one.configuration)
            if place is None:  # it agrees now, or has not noted its configuration
                self._by_worker.pop(one.worker, None)
            else:
                patience_s = SAME_PLACE_S if place.is_same else OTHER_PLACE_S
                self._by_worker[one.worker] = Other(one.worker, place, now_ms, patience_s, is_there=True)
        for worker, other in [*self._by_worker.items()]:
            if now_ms - other.seen_ms >= 1000 * other.patience_s:
                del self._by_worker[worker]
        used = {other.fingerprint.digest for other in self._by_worker.values()}
        self._known = {digest: one for digest, one in self._known.items() if digest in used}

    async def remember(self, marks: Iterable[Mark], before: Fingerprint) -> None:
        """Treat the deployments that left these marks as gone just now. `before` was our own
        configuration."""
        known = {
            before.digest,
            self.own.digest,
            *(one.fingerprint.digest for one in self._by_worker.values()),
        }
        for digest in sorted({mark.configuration for mark in marks} - known):
            place, now_ms = await self._look_up(digest), self._now_ms()
            if place is None or place.is_same:
                continue
            waited_ms = now_ms - await self._configurations.waited_for_since(digest, now_ms)
            if waited_ms < 1000 * OTHER_PLACE_S:
                name = f"a worker that is gone ({digest[:8]})"
                self._by_worker[name] = Other(name, place, now_ms, AT_THE_START_S, is_there=False)

    async def _look_up(self, digest: str) -> _Place | None:
        while digest not in self._known:
            found = await self._configurations.read(digest)
            if found is None:
                return None
            own = self.own
            place = await compute(_place, own, found)
            if own is self.own:  # otherwise a reload came in between
                self._known[digest] = place
        return self._known[digest]


class Difference(NamedTuple):
    """What another worker has different under the same name, such as `provider loopring`."""

    worker: str
    digest: str
    names: Sequence[str]


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
        self._others = Others(present, configurations, now_ms=now_ms)
        self._clock = clock
        self._own = self._before = self._others.own
        self._interest = Interest({})
        self._differences: list[Difference] = []
        self.neighbours = Neighbours(may_poll=self._may_poll)
        """What polls and deliveries go by; it is updated in place."""
        self.moved = set[str]()
        """Subscriptions whose queues this worker began to fill for another URL. The caller removes those that
        it has dealt with."""
        self._write_at = 0.0
        self._throttle = Throttle()
        self._seen_at: dict[str, float] = {}
        self._left_by: tuple[object, frozenset[str]] | None = None

    @property
    def differences(self) -> Sequence[Difference]:
        """Return what differs at other running workers, or what this worker leaves to them."""
        return self._differences

    @property
    def has_neighbours(self) -> bool:
        """Say whether a worker has, or recently had, something different under the same name."""
        return bool(self._others.differing)

    def _may_poll(self, account: str, source: str, state_source: str | None) -> bool:
        """Say whether this worker may poll on from an account's state: it may be that of another worker,
        which has an account of the same name elsewhere."""
        if state_source in (None, source):
            return True
        known = (state_source or "")[:SOURCE_DIGITS]
        return not any(one.fingerprint.accounts.get(account) == known for one in self._others.differing)

    async def begin(self, settings: Settings) -> None:
        """Run another configuration from now on, at the start of a worker and at a reload. An embedded server
        belongs to one deployment alone, so a change there is intended."""
        before, own = self._before, await compute(fingerprint, settings)
        await self._others.compare_with(own)
        self._own, self._interest = own, Interest(settings.subscription_by_name)
        self._left_by, self._write_at = None, 0.0
        is_shared = settings.redis.url.get_secret_value() != "embedded"
        await self._look(before, is_shared=is_shared)
        self._before = self._own

    async def look(self) -> None:
        """Read which configurations the other workers run now."""
        await self._look(None)

    async def _look(self, before: Fingerprint | None, *, is_shared: bool = False) -> None:
        """Read them. `before`: the configuration that this worker ran until just now, if it has changed."""
        try:
            if self._clock() >= self._write_at:
                await self._configurations.write(self._own)
                await self._present.runs(self._own.digest)
                self._write_at = self._clock() + _WRITE_AGAIN_S
            await self._others.look()
            marks = await self._configurations.marks([*self._own.subscriptions])
            if before and is_shared:
                ours = self._own.subscriptions
                elsewhere = [mark for name, mark in marks.items() if mark.url != ours[name]]
                await self._others.remember(elsewhere, before)
            inactive = await self._take_marks(marks, before)
        except ConfigurationRefused:  # no right to look: only its own configuration counts
            known = before.subscriptions if before else {}
            self.moved |= {
                name for name, url in self._own.subscriptions.items() if known.get(name, url) != url
            }
            return
        await self._judge(inactive)
        self._report()

    async def _take_marks(self, marks: Mapping[str, Mark], before: Fingerprint | None) -> dict[str, str]:
        """Take the marks that are free. Returns the others, each with its URL."""
        ours, moves = self._own.subscriptions, dict[str, tuple[Mark | None, Mark]]()
        for name, url in ours.items():
            mark, wanted = marks.get(name), Mark(url, self._own.digest)
            if mark is None:
                self._write_at = 0.0  # a lost state has also lost the note of this configuration
                is_wanted = True
            elif mark.url == url:
                is_wanted = before is not None and mark != wanted
            else:
                is_moved = before is not None and before.subscriptions.get(name) != url
                is_wanted = self._is_free(name, mark.url, is_moved=is_moved)
            if is_wanted:
                moves[name] = (mark, wanted)
        if moves:
            marks = {**marks, **await self._configurations.mark(moves)}
            self.moved |= {
                name
                for name, (old, new) in moves.items()
                if old and old.url != new.url and marks[name].url == new.url
            }
        return {name: marks[name].url for name, url in ours.items() if marks[name].url != url}

    def _is_free(self, subscription: str, url: str, *, is_moved: bool) -> bool:
        """Say whether no other worker has the URL for which a subscription's queues were filled. If the URL
        was changed on purpose, workers of this deployment that are gone do not count."""
        holders = self._others.holders(subscription, url)
        return all(is_moved and other.place.is_same and not other.is_there for other in holders)

    async def _judge(self, inactive: Mapping[str, str]) -> None:
        holders = {name: self._others.holders(name, url) for name, url in inactive.items()}
        holding = {one.worker for found in holders.values() for one in found}
        differences: dict[str, Difference] = {}
        for other in self._others.differing:
            if other.is_there or other.worker in holding:
                digest = other.fingerprint.digest
                differences.setdefault(digest, Difference(other.worker, digest, other.place.names))
        theirs = {name: [one.fingerprint.accounts for one in found] for name, found in holders.items()}
        whose = {name: {one.fingerprint.digest for one in found} for name, found in holders.items()}
        if self._left_by is None or self._left_by[0] != whose:  # not at each look: there may be 100,000
            own = self._own
            left = await compute(_left, own.accounts, self._interest, theirs) if theirs else frozenset[str]()
            if own is not self._own:  # a reload has come in between, and looks itself
                return
            self._left_by = whose, left
        self._differences = [*differences.values()]
        neighbours = self.neighbours
        neighbours.is_alone, neighbours.workers = self._others.is_alone, self._others.workers
        neighbours.inactive = frozenset(inactive)
        neighbours.left = self._left_by[1]
        elsewhere = [other.place.accounts for other in self._others.differing]
        neighbours.contested = ChainMap(*elsewhere) if elsewhere else frozenset()

    def _report(self) -> None:
        """Log a difference when it begins and when it is over, and not at each restart of the other
        worker."""
        now = self._clock()
        for one in self._differences:
            self._seen_at[one.digest] = now
            if streak := self._throttle.struck(one.digest, now):
                log.warning(
                    "configuration.differs",
                    worker=one.worker,
                    names=[*one.names[:_MOST_NAMES]],
                    changed=len(one.names),
                    inactive=[*sorted(self.neighbours.inactive)[:_MOST_NAMES]],
                    accounts=len(self.neighbours.left),
                    **streak._asdict(),
                )
        for digest, seen_at in [*self._seen_at.items()]:
            if now >= seen_at + _OVER_S and (streak := self._throttle.over(digest, now)):
                del self._seen_at[digest]
                log.info("configuration.agrees", **streak._asdict())


def _left(
    ours: Mapping[str, str], interest: Interest, theirs: Mapping[str, Sequence[Mapping[str, str]]]
) -> frozenset[str]:
    """Return the accounts whose events would go into queues of workers that do not have the account."""
    return frozenset(
        account
        for account, source in ours.items()
        for name in interest.listeners(account)
        if name in theirs and not any(accounts.get(account) == source for accounts in theirs[name])
    )
