"""Which other workers of a namespace run another configuration, and which recently did."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from watcher.pause import compute
from watcher.providers.contract import provider_class
from watcher.providers.http import source_of
from watcher.run.members import Present
from watcher.settings import Settings
from watcher.store.members import Configurations, Fingerprint, Mark

SOURCE_DIGITS = 16
"""As much of an account's source as is compared."""


def fingerprint(settings: Settings) -> Fingerprint:
    """Take the fingerprint of a configuration, and its digest, in a thread: there may be 100,000 accounts.

    Salted by namespace and name: equal URLs do not look equal.
    """
    providers = settings.provider_by_name
    asked = {name: provider_class(one.kind)(one) for name, one in providers.items()}
    found = Fingerprint(
        {name: _digest(one.kind, one.base_url.rstrip("/")) for name, one in providers.items()},
        {
            name: _digest(settings.redis.namespace, name, one.url.get_secret_value())
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


SAME_PLACE_S = 45.0
"""How long queues wait after the last worker with another URL was seen, if all else is the same: a deploy
that starts the new workers before it ends the old ones."""

OTHER_PLACE_S = 600.0
"""The same, where providers or accounts differ, too: another deployment, which may only be restarting."""

AT_THE_START_S = 60.0
"""How long a worker waits at its start for a deployment that left its mark but was not seen; workers that end
sooner wait OTHER_PLACE_S in all."""


_ACCOUNT = "account "


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
    """A worker with another configuration, as it was last seen (Unix ms of the server): what it has is left
    to it for a while after it is gone."""

    worker: str
    place: _Place
    seen_ms: int
    patience_s: float
    is_there: bool

    @property
    def fingerprint(self) -> Fingerprint:
        return self.place.fingerprint


class Others:
    """The other workers, as they differ from the configuration `own`. Methods raise StoreError."""

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
        """Workers that lead elsewhere under the same name."""
        return [
            self._by_worker[worker]
            for worker in sorted(self._by_worker)
            if self._by_worker[worker].place.names
        ]

    def holders(self, subscription: str, url: str) -> list[Other]:
        """Workers that name this URL (its digest) for a subscription."""
        found = self._by_worker.values()
        return [one for one in found if one.fingerprint.subscriptions.get(subscription) == url]

    async def look(self) -> None:
        """Read which workers run, and remember those that differ for a while after they are gone."""
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
            if place is None:  # it agrees by now, or does not say
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
            if own is self.own:  # else a reload has come in between
                self._known[digest] = place
        return self._known[digest]
