"""Sends events again: dead letters, or events of the log, with their ids and bytes of the first time."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from watcher.journal.events import Delivery, Draft, Event, Origin, events_of
from watcher.journal.interest import Interest
from watcher.journal.log import Damaged, Emitted, Record, Started, read_back
from watcher.journal.notices import threshold_key
from watcher.settings import SubscriptionSettings
from watcher.snapshot import Asset, Balance
from watcher.store.history import History, place
from watcher.store.keys import SHARDS, Keys, check_count
from watcher.store.layout import Layout, check_numbers
from watcher.store.pipe import Pipe
from watcher.store.queues import Queues
from watcher.store.reader import DeadLetter, Reader
from watcher.store.schedule import Schedule

_ID = re.compile(r"evt_[a-z2-7]{24}\Z")
_A_BASELINE = Event("", "account.baseline", None, None, "0", 0, b"")
_MALFORMED = (Damaged, KeyError, TypeError, ValueError, AttributeError)


class Replay:
    """Turns records of the log, those of each account in order, into deliveries to one subscription.

    The bytes are those of the first time if the event was queued for the subscription then: its record says
    which sequence came before. Otherwise the log must still hold the account's beginning.
    """

    def __init__(self, settings: SubscriptionSettings) -> None:
        self._name = settings.name
        self._interest = Interest({settings.name: settings})
        self._chain_by_account: dict[str, _Chain] = {}
        self.damaged = 0

    def take(self, record: Record) -> Delivery | None:
        """Make the delivery of a record; None if the subscription does not want it."""
        if not self._interest.listeners(record.account):
            return None
        try:
            content = read_back(record)
            chain = self._chain_by_account.get(record.account)
            starts = isinstance(content, Started) and content.whole
            if chain is None or (record.follows == 0 and (starts or chain.follows > 0)):
                # An account without a state starts anew.
                chain = self._chain_by_account[record.account] = _Chain()
            chain.follows = record.follows
            if starts and self._interest.wants(self._name, _A_BASELINE):
                chain.started = content.sequence
            if not isinstance(content, Emitted):
                return None
            if not _ID.match(content.id):
                raise Damaged("its id is none of ours")
            sequence = check_count(content.sequence)
            data = record.content["data"]
            fields = data["asset"]
            asset = None if fields is None else Asset(*(fields[field] for field in Asset._fields))
            body = record.raw + b"}"
            event = Event(content.id, content.type, record.account, asset, data["amount"], sequence, body)
            previous = record.previous.get(self._name, chain.before(event))
            if event.type == "threshold.crossed" and not self._is_mine(event, record):
                return None
            if not self._interest.wants(self._name, event):
                return None
            chain.previous = event.sequence
            return event.to(self._name, previous)
        except _MALFORMED:
            self.damaged += 1
            return None

    def _is_mine(self, event: Event, record: Record) -> bool:
        """Say whether the crossed threshold is one of this subscription, as the id of the event shows."""
        data = record.content["data"]
        origin = Origin(record.account, data["account"]["provider"], record.follows, 0, 0)
        asset_id = event.asset.id if event.asset else ""
        published = tuple(data["after"][field] for field in Balance._fields)
        for watch in self._interest.watches(record.account):
            first = (threshold_key(watch, asset_id), event.amount)
            identities = [(*first, *published), first]  # 0.1 left out the balance
            drafts = [Draft(event.type, event.asset, event.amount, {}, identity) for identity in identities]
            if any(one.id == event.id for one in events_of(drafts, origin, first_sequence=0, now_ms=0)):
                return True
        return False


@dataclass(slots=True)
class _Chain:
    """The last sequences of one account that were sent: of an event in the log, and of a baseline."""

    follows: int = 0
    previous: int = 0
    started: int = 0

    def before(self, event: Event) -> int | None:
        """Return the sequence that was sent before an event, or None.

        The record of a start names the last sequence of its commit: that of the baseline's last part, unless
        crossings follow it. A recovery in the same commit precedes it.
        """
        if event.type == "threshold.crossed":
            self.started = min(self.started, event.sequence - 1)
        sent = (self.previous, self.started)
        return max((sequence for sequence in sent if 0 < sequence < event.sequence), default=None)


_AT_ONCE = 100
"""Deliveries queued in one step: 2 MB at most."""


@dataclass(slots=True)
class Resent:
    """What is sent again to one subscription, and what cannot be.

    `waiting` counts what still waits there, and so is not queued again; `unreadable` counts what is damaged;
    `full` names the accounts of which more would wait than `max_backlog` (over all accounts) allows.
    """

    subscription: str
    max_backlog: int
    deliveries: int = 0
    accounts: set[str] = field(default_factory=set)
    waiting: int = 0
    unreadable: int = 0
    full: set[str] = field(default_factory=set)

    @property
    def is_found(self) -> bool:
        return bool(self.deliveries or self.full or self.waiting)

    def line(self, *, is_paused: bool, is_preview: bool) -> dict[str, Any]:
        """Return it as plain data, for --json and the API."""
        return {
            "subscription": self.subscription,
            "deliveries": self.deliveries,
            "accounts": len(self.accounts),
            "waiting": self.waiting,
            "unreadable": self.unreadable,
            "full": sorted(self.full),
            "paused": is_paused,
            "dry_run": is_preview,
        }


class Selection(NamedTuple):
    """What to send again: one event, or dead letters, or events of the log since a time (Unix ms)."""

    event_id: str | None = None
    is_dead: bool = False
    since_ms: int = 0
    is_preview: bool = False


def steps_of(selection: Selection, subscriptions: Sequence[SubscriptionSettings]) -> int:
    """Count the steps of a resend, at most: the log is read as well for an event that is no dead letter."""
    return SHARDS * len(subscriptions) * (2 if selection.event_id else 1)


async def send_again(
    pipe: Pipe,
    keys: Keys,
    subscriptions: Sequence[SubscriptionSettings],
    selection: Selection,
    *,
    done: Callable[[], object] = lambda: None,
) -> list[Resent]:
    """Send a selection again, from the dead letters or from the log; of one event, return only the
    subscriptions that get it. `done` is called after each step. Raises what Resend raises."""
    now_ms = await Reader(pipe, keys).now_ms()
    resend = Resend(pipe, keys, is_preview=selection.is_preview, done=done)
    found = []
    if selection.is_dead or selection.event_id:
        found = [
            await resend.dead_letters(
                one, since_ms=selection.since_ms, until_ms=now_ms, event_id=selection.event_id
            )
            for one in subscriptions
        ]
    if not (selection.is_dead or any(resent.is_found for resent in found)):
        ends = await History(pipe, keys).ends()
        found = [
            await resend.events(one, ends, since_ms=selection.since_ms, event_id=selection.event_id)
            for one in subscriptions
        ]
    return [resent for resent in found if not selection.event_id or resent.is_found]


class Resend:
    """Queues deliveries again in one namespace, or only counts them (`is_preview`). Raises StoreError;
    LayoutAwaited if the data in Redis is moved to another layout meanwhile."""

    def __init__(
        self, pipe: Pipe, keys: Keys, *, is_preview: bool, done: Callable[[], object] = lambda: None
    ) -> None:
        self._done = done
        self._queues = Queues(Schedule(pipe), keys)
        self._reader = Reader(pipe, keys)
        self._history = History(pipe, keys)
        self._ids_by_queue: dict[tuple[str, str], set[str]] = {}
        self._layout = Layout(pipe, keys)
        self._is_preview = is_preview

    async def dead_letters(
        self,
        settings: SubscriptionSettings,
        *,
        since_ms: int,
        until_ms: int,
        event_id: str | None = None,
    ) -> Resent:
        """Put the dead letters of a time, or that of one event, back at the end of their queues."""
        resent = Resent(settings.name, settings.max_backlog)
        for shard in range(SHARDS):
            pages = self._reader.dead_letters_of_shard(
                settings.name, shard, since_ms=since_ms, until_ms=until_ms
            )
            async for page in pages:
                groups: dict[str, list[DeadLetter]] = {}  # the order within an account is kept
                for letter in page:
                    if letter.delivery and event_id in (None, letter.delivery.event_id):
                        groups.setdefault(letter.account, []).append(letter)
                for account, part in groups.items():
                    await self._put(resent, account, part)
                if event_id is None:
                    resent.unreadable += sum(letter.delivery is None for letter in page)
            self._done()
        return resent

    async def events(
        self,
        settings: SubscriptionSettings,
        ends: Sequence[str],
        *,
        since_ms: int,
        event_id: str | None = None,
    ) -> Resent:
        """Queue the events of the log that a subscription wants, since a time and up to `ends`; or one
        event."""
        resent = Resent(settings.name, settings.max_backlog)
        for shard, end in enumerate(ends):
            replay = Replay(settings)  # from the beginning: each event names the one before it
            waiting: dict[str, list[Delivery]] = {}
            async for record in self._history.of_shard(shard, end=end):
                delivery = replay.take(record)
                is_old = place(record.id)[0] < since_ms
                if delivery is None or is_old or event_id not in (None, delivery.event_id):
                    continue
                waiting.setdefault(record.account, []).append(delivery)
                if len(waiting[record.account]) == _AT_ONCE:
                    await self._put(resent, record.account, waiting.pop(record.account))
            for account, deliveries in waiting.items():
                await self._put(resent, account, deliveries)
            resent.unreadable += 0 if event_id else replay.damaged  # they do not matter for one event
            self._done()
        return resent

    async def _put(self, resent: Resent, account: str, found: Sequence[Delivery | DeadLetter]) -> None:
        """Queue deliveries of one account, or its dead letters, which are then removed. Leaves out what
        already waits in the queue, and everything if that would exceed the bound."""
        name = resent.subscription
        # The queue is read the first time; what this adds to it later is known.
        if (name, account) not in self._ids_by_queue:
            found_there = self._reader.deliveries(name, account)
            self._ids_by_queue[name, account] = {each.event_id async for each in found_there if each}
        waiting = self._ids_by_queue[name, account]
        new = [one for one in found if _delivery(one).event_id not in waiting]
        resent.waiting += len(found) - len(new)
        if not new:
            return
        if await self._queues.backlog(name) + len(new) > resent.max_backlog:
            resent.full.add(account)
            return
        waiting.update(_delivery(one).event_id for one in new)
        count = len(new)
        if not self._is_preview:
            check_numbers(await self._layout.read())  # no worker would find them in another layout
            dead_letters = [one.id for one in new if isinstance(one, DeadLetter)]
            count = await self._queues.enqueue(
                name, account, [*map(_delivery, new)], dead_letters=dead_letters
            )
        resent.deliveries += count
        if count:
            resent.accounts.add(account)


def _delivery(found: Delivery | DeadLetter) -> Delivery:
    delivery = found.delivery if isinstance(found, DeadLetter) else found
    assert delivery, "what cannot be read is not queued"
    return delivery
