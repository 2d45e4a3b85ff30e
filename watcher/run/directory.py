"""The directory as this worker holds it: read whole at the start, then followed change by change.

Makes settings of the records that this worker can decrypt. If the file defines the same name, the file wins.
Refuses to drop a record because Redis has lost it: the worker writes it again.
"""

import asyncio
import heapq
import random
import time
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Literal, NamedTuple

from watcher.config.sections import Providers, Source
from watcher.delivery.chat import target_of
from watcher.delivery.egress import Policy, RefusedUrl
from watcher.encryption import Keyring, Undecryptable
from watcher.engine.loop import Neighbours
from watcher.journal.interest import Filters, Interest
from watcher.observe.log import log
from watcher.pause import compute, in_order, keep, slowly
from watcher.printable import hide
from watcher.providers.contract import Rejected
from watcher.run.configured import Configured, Difference, Inactive
from watcher.run.verification import Unverified
from watcher.settings import (
    AccountSettings,
    Settings,
    SubscriptionSettings,
    ThresholdSettings,
    secrets_of_subscription,
)
from watcher.store.directory import KINDS, Change, Directory, Kind, Record, Write, version_of
from watcher.store.keeper import Keeper
from watcher.store.keys import SHARDS, shard_of

FOLLOW_S = 1.0
"""How often a worker reads what has changed."""

FOLLOWED_S = 3.0
"""After this time, all workers go by an edit."""

_FRESH_MS = 10_000
"""After this time, another worker has deleted a subscription with everything that waited for it."""

_DELETED = 10_000
"""Deletions that are remembered, in case Redis loses them."""

_LATE_S = 3.0
"""A look takes milliseconds: one that takes longer than this has failed."""

_JUDGED_AT_ONCE = 50
"""Records decrypted in one turn of the event loop: a few milliseconds."""

_IN_A_THREAD = 500
"""More records than these are decrypted in a thread."""

_ENCRYPTED_AT_ONCE = 250
"""Records that are encrypted again after one look: 4 ms of this worker's time."""

_KEPT_AT_ONCE = 2_000
"""After so many records, the garbage collector no longer looks through what was made of them."""

_NO_CHANGE = "0-0"
"""The place before the first change of a shard that has lost all: each change since is one to follow."""

_MOST_NAMES = 8

_SAY_S = 10.0
"""Between two log lines about changes that were taken over."""

State = Literal["in_force", "unverified", "shadowed", "locked", "unfit"]

NO_KEY = "this worker has no [api] secret_key"


class PlainFilters(NamedTuple):
    """A subscription's filters, as far as a worker without the key can read them."""

    name: str
    accounts: tuple[str, ...] = ("*",)
    events: tuple[str, ...] = ()
    assets: tuple[str, ...] = ("*",)
    thresholds: tuple[ThresholdSettings, ...] = ()


class Token(NamedTuple):
    """A subscription's token: its SHA-256 in hex, and when it ends (Unix ms; None: never)."""

    digest: str
    until_ms: int | None


class Known(NamedTuple):
    """A record, and its state at this worker.

    `unverified`: its events wait until its URL has answered a ping. `shadowed`: the file defines that name.
    `locked`: this worker cannot decrypt it. `unfit`: it can, but cannot use it. The `reason` says why.
    `ends_ms` is when the first of its secrets ends (Unix ms).
    """

    record: Record
    state: State
    settings: AccountSettings | SubscriptionSettings | None = None
    reason: str = ""
    source: Source | None = None
    filters: Filters | None = None
    tokens: tuple[Token, ...] = ()
    unverified_since_ms: int | None = None
    ends_ms: int | None = None


class Judge:
    """Decides whether a record is in force beside a configuration file."""

    def __init__(self, file: Settings) -> None:
        self.file = file
        keys = file.api.secret_key if file.api else ()
        self.keyring = (
            Keyring([key.get_secret_value() for key in keys], file.redis.namespace) if keys else None
        )
        self.providers = Providers.of(file.provider_by_name)
        self._policy = Policy.of(file.egress)

    @property
    def basis(self) -> tuple[object, ...]:
        """All that verdicts depend on, except the names in the file."""
        return self.file.provider_by_name, self.file.egress, self.file.api

    def defines(self, kind: Kind, name: str) -> bool:
        """Say whether the file has something of that name."""
        return name in (self.file.account_by_name if kind == "account" else self.file.subscription_by_name)

    def judge(self, record: Record, now_ms: int) -> Known:
        if self.defines(record.kind, record.name):
            return Known(record, "shadowed", reason="the configuration file defines this name, and wins")
        filters = _filters(record) if record.kind == "subscription" else None
        if self.keyring is None:
            return Known(record, "locked", reason=NO_KEY, filters=filters)
        try:
            content = self.keyring.decrypt(record.kind, record.name, record.plain, record.encrypted)
        except Undecryptable as error:
            return Known(record, "locked", reason=str(error), filters=filters)
        try:
            if record.kind == "account":
                return self._account(record, content)
            return self._subscription(record, content, now_ms)
        except Rejected as rejected:
            reason = rejected.words
        except RefusedUrl as error:
            reason = str(error)
        except (ValueError, KeyError, TypeError) as error:  # pydantic's message may hold the value
            reason = f"this worker cannot use its content ({type(error).__name__})"
        return Known(record, "unfit", reason=reason, filters=filters)

    def _account(self, record: Record, content: Mapping[str, Any]) -> Known:
        provider = record.plain["provider"]
        if provider not in self.providers.asked_by_name:
            return Known(record, "unfit", reason=f"no [providers.{provider}] in the configuration file")
        given = {**content["settings"], "name": record.name, "provider": provider}
        shape = self.providers.class_by_name[provider]
        assert shape
        settings = shape.Account.model_validate(given)
        source = provider, self.providers.asked_by_name[provider].source(settings)
        return Known(record, "in_force", settings, source=source)

    def _subscription(self, record: Record, content: Mapping[str, Any], now_ms: int) -> Known:
        secrets = [one for one in content["secrets"] if (one["until_ms"] or now_ms + 1) > now_ms]
        given = {**content["settings"], **record.plain, "name": record.name}
        if secrets:
            given["secrets"] = [one["secret"] for one in secrets]
        settings = SubscriptionSettings.model_validate(given)
        target_of(settings, self._policy)  # raises if it cannot work
        return Known(
            record,
            "in_force" if content["verified"] else "unverified",
            settings,
            filters=settings,
            tokens=tuple(Token(one["hash"], one["until_ms"]) for one in content["tokens"]),
            unverified_since_ms=content["unverified_since_ms"],
            ends_ms=min((one["until_ms"] for one in secrets if one["until_ms"]), default=None),
        )

    def is_older(self, record: Record) -> bool:
        """Say whether an older key than the first one encrypted it."""
        return self.keyring is not None and self.keyring.is_older(record.encrypted)

    def encrypted_again(self, records: Sequence[Record]) -> Iterator[Write]:
        """Encrypt with the first key what can be decrypted. Nothing else changes."""
        assert self.keyring
        for one in records:
            with suppress(Undecryptable):  # it is locked, and reported as that
                content = self.keyring.decrypt(one.kind, one.name, one.plain, one.encrypted)
                encrypted = self.keyring.encrypt(one.kind, one.name, one.plain, content)
                is_shadowed = self.defines(one.kind, one.name)
                yield Write(one.kind, one.name, one.plain, encrypted, one.version, one.edited, is_shadowed)

    def sources(self) -> dict[Source, str]:
        """Return the accounts of the file by what they poll. In a thread: there may be 100,000."""
        return {
            (account.provider, self.providers.asked_by_name[account.provider].source(account)): name
            for name, account in self.file.account_by_name.items()
        }


def _filters(record: Record) -> PlainFilters | None:
    plain = record.plain
    try:
        wants = {key: tuple(plain[key]) for key in ("accounts", "events", "assets") if key in plain}
        thresholds = tuple(ThresholdSettings.model_validate(one) for one in plain.get("thresholds", ()))
        return PlainFilters(record.name, thresholds=thresholds, **wants)
    except (ValueError, TypeError):
        return None


class Followed:
    """The directory as one worker holds it. Methods that ask Redis raise StoreError.

    What the worker leaves to others is updated in place, in `configured` and for `neighbours`.
    """

    def __init__(
        self,
        directory: Directory,
        configured: Configured,
        neighbours: Neighbours,
        *,
        now_ms: Callable[[], int],
        keeper: Keeper | None = None,
    ) -> None:
        self._keeper = keeper
        self._leaving: dict[str, float] = {}
        self._locked_accounts = set[str]()
        self._unverified = set[str]()
        self._filters_by_name: dict[str, Filters] = {}
        configured.inactive = Inactive(self._unverified, self._filters_by_name)
        neighbours.locked_accounts = self._locked_accounts
        neighbours.locked_subscriptions = self._filters_by_name
        neighbours.look_again = self.look_again
        self._configured = configured
        self._directory = directory
        self._judge = Judge(configured.settings)
        self._now_ms = now_ms
        self._lock = asyncio.Lock()
        self._looks = 0
        self._is_read = False
        self._known: dict[Kind, dict[str, Known]] = {kind: {} for kind in KINDS}
        self._names: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
        self._heads = [""] * SHARDS
        self._deleted: dict[tuple[Kind, str], Change] = {}
        self._touched: dict[tuple[Kind, str], None] = {}
        self._ends: list[tuple[int, Kind, str]] = []
        self._of_file: dict[Source, str] = {}
        self._name_by_source: dict[Source, str] = {}
        self._name_by_token: dict[str, str] = {}
        self._older: dict[tuple[Kind, str], None] = {}
        self._encrypted_again = 0
        self._unsaid = defaultdict[tuple[State, str], list[str]](list)
        self._taken_over = Counter[Kind]()
        self._counts = Counter[tuple[Kind, State]]()
        self._looked_at = time.monotonic()
        self._say_at, self._keep_at = 0.0, _KEPT_AT_ONCE

    @property
    def settings(self) -> Settings:
        """The settings in force: those of the file, and those that the directory adds."""
        return self._configured.settings

    @property
    def providers(self) -> Providers:
        """The providers of the file."""
        return self._judge.providers

    @property
    def interest(self) -> Interest:
        return self._configured.interest

    def get(self, kind: Kind, name: str) -> Known | None:
        """Return what is known of a record."""
        return self._known[kind].get(name)

    def names(self, kind: Kind, after: str = "", limit: int | None = None) -> list[str]:
        """Return the names of a kind that come after `after`, in order."""
        names = self._names[kind]
        start = bisect_right(names, after)
        return names[start : None if limit is None else start + limit]

    def defines(self, kind: Kind, name: str) -> bool:
        """Say whether the file has something of that name: the file wins."""
        return self._judge.defines(kind, name)

    @property
    def keyring(self) -> Keyring | None:
        """The keys of this worker's file; None if it has none."""
        return self._judge.keyring

    def unverified(self) -> list[Unverified]:
        """The subscriptions whose events wait until their URLs have answered a ping."""
        found = (self._known["subscription"][name] for name in self._unverified)
        return [
            Unverified(one.settings, one.record.version, one.unverified_since_ms or 0)
            for one in found
            if isinstance(one.settings, SubscriptionSettings)
        ]

    def holder(self, source: Source) -> str | None:
        """Return the account that polls a source."""
        return self._of_file.get(source) or self._name_by_source.get(source)

    def by_token(self, digest: str) -> str | None:
        """Return the subscription of a token, by its SHA-256 in hex; None if it is unknown or has ended."""
        name = self._name_by_token.get(digest)
        known, now_ms = self._known["subscription"].get(name or ""), self._now_ms()
        ends = [token.until_ms for token in known.tokens if token.digest == digest] if known else []
        return name if any(end is None or end > now_ms for end in ends) else None

    def count(self, kind: Kind, *states: State) -> int:
        """Count the records of a kind in these states, or all of them."""
        return sum(self._counts[kind, state] for state in states) if states else len(self._known[kind])

    @property
    def older_key(self) -> int:
        """How many records an older key than the first one encrypted."""
        return len(self._older)

    @property
    def behind_s(self) -> float:
        """For how many seconds the worker has not been able to read changes; 0 while it can."""
        late_s = time.monotonic() - self._looked_at
        return late_s if late_s > _LATE_S else 0.0

    async def begin(self, file: Settings) -> None:
        """Read all records, and judge them beside this file."""
        async with self._lock:
            self._judge = Judge(file)
            self._is_read = False
            for shard in range(SHARDS):
                self._heads[shard] = await self._read(shard, None)
            self._is_read = True
            self._names = {kind: await compute(list, in_order(self._known[kind])) for kind in KINDS}

    async def lay_beside(self, file: Settings) -> Settings:
        """Use another file from now on. Returns the settings in force with it. The caller holds
        `reloading`."""
        before, self._judge = self._judge, Judge(file)
        is_same = before.basis == self._judge.basis
        for kind in KINDS:
            records = [
                one.record
                async for one in slowly(self._known[kind].values())
                if not is_same
                or before.defines(kind, one.record.name) != self._judge.defines(kind, one.record.name)
            ]
            for known in await self._judged(records):
                self._take(known)
        self._of_file = await compute(self._judge.sources) if file.api else {}
        self._touched.clear()
        accounts, subscriptions = {**file.account_by_name}, {**file.subscription_by_name}
        async for account in slowly(self._known["account"].values()):
            if isinstance(account.settings, AccountSettings):
                accounts[account.settings.name] = account.settings
        async for subscription in slowly(self._known["subscription"].values()):
            if isinstance(subscription.settings, SubscriptionSettings):
                subscriptions[subscription.settings.name] = subscription.settings
        self._report()
        in_force = {"account_by_name": accounts, "subscription_by_name": subscriptions}
        return file.model_copy(update=in_force)

    def reloading(self) -> asyncio.Lock:
        """Hold this while another file is applied: no change of the directory is applied meanwhile."""
        return self._lock

    async def follow(self) -> None:
        """Read what has changed, and apply it."""
        async with self._lock:
            await self._follow()

    async def follow_now(self) -> None:
        """Apply everything that was written before this call."""
        looks = self._looks
        async with self._lock:
            if self._looks == looks:  # otherwise a look began after this call
                await self._follow()

    async def encrypt_again(self) -> None:
        """Encrypt some of the records again that an older key encrypted. Other workers may do the same: what
        another one has written since then stays, and this worker follows it."""
        start = random.randrange(max(1, len(self._older) - _ENCRYPTED_AT_ONCE))
        some = [*islice(self._older, start, start + _ENCRYPTED_AT_ONCE)]
        if not some:
            return
        known = [found for kind, name in some if (found := self._known[kind].get(name))]
        writes = [*self._judge.encrypted_again([one.record for one in known])]
        written = await self._directory.put_all(writes)
        self._encrypted_again += sum(one.outcome == "done" for one in written)
        for kind, name in some:
            self._older.pop((kind, name), None)  # one that was not written comes up again
        if not self._older:
            log.info("directory.resealed", records=self._encrypted_again)
            self._encrypted_again = 0

    def leave(self, name: str) -> None:
        """Remove what is stored for a subscription that was deleted, once no worker queues events for it."""
        self._leaving[name] = time.monotonic() + FOLLOWED_S

    async def take_away(self) -> None:
        """Remove what is stored for these subscriptions, unless there are new ones of their names."""
        for name, at in [*self._leaving.items()]:
            if time.monotonic() >= at:
                if self._keeper and name not in self._configured.interest.names:
                    await self._keeper.discard(name)
                del self._leaving[name]

    async def forget(self, name: str) -> None:
        """Remove at once what is stored for a subscription that was just deleted, by any worker, before there
        is a new one of this name."""
        await self.follow_now()
        gone = self._deleted.get(("subscription", name))
        is_fresh = gone is not None and self._now_ms() - gone.written // 1000 < _FRESH_MS
        if self._keeper and (name in self._leaving or is_fresh):
            await self._keeper.discard(name)
            self._leaving.pop(name, None)

    async def look_again(self) -> bool:
        """Apply what was added just now. Returns False if that is under way anyhow, or a reload is."""
        if is_free := not self._lock.locked():
            await self.follow_now()
        return is_free

    def accounts_by_provider(self) -> Mapping[str, Sequence[str]]:
        """Return the accounts that belong on the schedules, whether or not this worker can poll them."""
        found = defaultdict[str, list[str]](list)
        for name, known in self._known["account"].items():
            if known.state != "shadowed":
                found[str(known.record.plain.get("provider", ""))].append(name)
        return found

    async def _follow(self) -> None:
        self._looks += 1
        heads = await self._directory.heads()
        for shard in range(SHARDS):
            if heads[shard] != self._heads[shard]:
                await self._look_at(shard)
        now_ms = self._now_ms()
        ended: dict[tuple[Kind, str], Record] = {}
        while self._ends and self._ends[0][0] <= now_ms:
            _, kind, name = heapq.heappop(self._ends)
            if known := self._known[kind].get(name):
                ended[kind, name] = known.record
        for known in await self._judged([*ended.values()]):
            self._take(known)
        await self._take_over()
        self._looked_at = time.monotonic()
        self._report()

    async def _take_over(self) -> None:
        """Put what has changed into force."""
        touched = [*self._touched]
        accounts: dict[str, AccountSettings | None] = {}
        subscriptions: dict[str, SubscriptionSettings | Filters | None] = {}
        async for kind, name in slowly(touched):
            known = self._known[kind].get(name)
            if self._judge.defines(kind, name):
                continue
            settings = known.settings if known else None
            if kind == "account":
                accounts[name] = settings if isinstance(settings, AccountSettings) else None
            elif isinstance(settings, SubscriptionSettings):
                subscriptions[name] = settings
            else:
                subscriptions[name] = known.filters if known else None
        if accounts or subscriptions:
            await self._configured.change(Difference(accounts, subscriptions))
        for one in touched:
            self._touched.pop(one, None)
            self._taken_over[one[0]] += 1
        if self._taken_over.total() >= self._keep_at:
            self._keep_at = self._taken_over.total() + _KEPT_AT_ONCE
            keep()

    async def _look_at(self, shard: int) -> None:
        """Take in what changed in a shard. If Redis has lost some of it, write that again."""
        while True:
            found = await self._directory.changes(shard, self._heads[shard])
            await self._take_in(found.changed)
            head = await self._read(shard, found.lost_after) if found.is_behind else found.head
            if found.lost_after is not None and await self._write_again(shard, found.lost_after):
                head = head or _NO_CHANGE  # what this call wrote, and others since, follows it
            self._heads[shard] = head  # what other workers do about the same loss is among the next changes
            await self._take_over()
            if not found.more:
                return

    async def _write_again(self, shard: int, lost_after: int) -> bool:
        """Write again what this worker holds of a shard and Redis has lost. Returns whether it holds any of
        it."""
        records = [
            known.record
            for kind in KINDS
            async for name, known in slowly(self._known[kind].items())
            if shard_of(name) == shard and known.record.version > lost_after
        ]
        deleted = [one for one in self._deleted.values() if shard_of(one.name) == shard]
        await self._give_back(lost_after, records, deleted)
        return bool(records)

    async def _read(self, shard: int, lost_after: int | None) -> str:
        """Read a whole shard. Returns its last change. What it lacks was deleted, unless Redis has lost
        it."""
        held = await self._directory.read(shard)
        there = {(one.kind, one.name) for one in held.records} | {*held.damaged}
        await self._take_in(Change(one.kind, one.name, one.version, one, one.written) for one in held.records)
        until = version_of(held.head) if lost_after is None else lost_after
        gone = [
            known.record
            for kind in KINDS
            async for name, known in slowly(self._known[kind].items() if self._heads[shard] else ())
            if (kind, name) not in there and shard_of(name) == shard and known.record.version <= until
        ]
        for record in gone:
            self._drop(record.kind, record.name)
        return held.head

    async def _take_in(self, changed: Iterable[Change]) -> None:
        """Hold what changed as it is now. If this worker holds a later version, it writes that again: Redis
        has lost it, and another worker has written the older one."""
        records: list[Record] = []
        again: list[Record] = []
        deleted: list[Change] = []
        for change in changed:
            kind, name = change.kind, change.name
            known, gone = self._known[kind].get(name), self._deleted.get((kind, name))
            if known and known.record.written > change.written:
                again.append(known.record)
            elif change.record and gone and gone.written > change.written:
                deleted.append(gone)
            elif change.record:
                records.append(change.record)
            else:
                self._drop(kind, name, change)
        if again or deleted:
            await self._give_back(0, again, deleted)
        for found in await self._judged(records):
            self._take(found)

    async def _give_back(self, lost_after: int, records: Sequence[Record], deleted: Sequence[Change]) -> None:
        """Write again what Redis has lost."""
        names = [*(one.name for one in records), *(one.name for one in deleted)]
        shadowed = {name for name in names if self._judge.defines("account", name)}
        written = await self._directory.write_again(lost_after, records, deleted, shadowed=shadowed)
        if written:
            log.warning("directory.restored", records=written)

    async def _judged(self, records: Sequence[Record]) -> list[Known]:
        judge, now_ms = self._judge.judge, self._now_ms()
        if len(records) > _IN_A_THREAD:
            return await compute(lambda: [judge(record, now_ms) for record in records])
        return [judge(record, now_ms) async for record in slowly(records, at_once=_JUDGED_AT_ONCE)]

    def _take(self, known: Known) -> None:
        """Hold a record as it is now."""
        kind, name = known.record.kind, known.record.name
        before = self._known[kind].get(name)
        if before:
            self._leave(before)
        elif self._is_read:
            insort(self._names[kind], name)
        if known.reason and not (before and before.state == known.state):
            self._unsaid[known.state, known.reason].append(f"{kind} {name}")
        self._known[kind][name] = known
        self._touched[kind, name] = None
        self._counts[kind, known.state] += 1
        self._deleted.pop((kind, name), None)
        if self._judge.is_older(known.record):
            self._older[kind, name] = None
        if known.source:
            self._name_by_source[known.source] = name
        for token in known.tokens:
            self._name_by_token[token.digest] = name
        if known.ends_ms:
            heapq.heappush(self._ends, (known.ends_ms, kind, name))
        if kind == "account" and known.state in ("locked", "unfit"):
            self._locked_accounts.add(name)
        if known.state == "unverified":
            self._unverified.add(name)
        if known.filters and not known.settings:
            self._filters_by_name[name] = known.filters
        if isinstance(known.settings, SubscriptionSettings):
            hide(secrets_of_subscription(known.settings))

    def _drop(self, kind: Kind, name: str, deletion: Change | None = None) -> None:
        """Hold a record no longer."""
        if deletion:
            self._deleted.pop((kind, name), None)
            self._deleted[kind, name] = deletion
            while len(self._deleted) > _DELETED:
                del self._deleted[next(iter(self._deleted))]
        if known := self._known[kind].pop(name, None):
            self._leave(known)
            if self._is_read:
                del self._names[kind][bisect_left(self._names[kind], name)]
            self._touched[kind, name] = None

    def _leave(self, known: Known) -> None:
        name = known.record.name
        self._counts[known.record.kind, known.state] -= 1
        self._older.pop((known.record.kind, name), None)
        if known.source and self._name_by_source.get(known.source) == name:
            del self._name_by_source[known.source]
        for token in known.tokens:
            self._name_by_token.pop(token.digest, None)
        if known.record.kind == "account":
            self._locked_accounts.discard(name)
        else:
            self._unverified.discard(name)
            self._filters_by_name.pop(name, None)

    def _report(self) -> None:
        """Log what was taken over, at intervals; and once, which records are not in force, and why."""
        now = time.monotonic()
        if self._taken_over and now >= self._say_at:
            accounts, subscriptions = (self._taken_over[kind] for kind in KINDS)
            log.info("directory.followed", accounts=accounts, subscriptions=subscriptions)
            self._taken_over.clear()
            self._keep_at = _KEPT_AT_ONCE
            self._say_at = now + _SAY_S
        for (state, reason), names in self._unsaid.items():
            fields = {"records": len(names), "names": names[:_MOST_NAMES], "reason": reason}
            if state == "shadowed":
                log.warning("directory.shadowed", **fields)
            else:
                log.warning("directory.locked", **fields)
        self._unsaid.clear()
