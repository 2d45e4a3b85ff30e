"""Sends events again: dead letters, or events of the log, with their ids and bytes of the first time."""

import asyncio
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
from watcher.store.pipe import Pipe, in_parts
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
                raise Damaged("its id is not one of watcher's")
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

_HELD = 500
"""Deliveries read before they are queued, of all accounts: so many are in hand at most when time is over."""


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
    """What to send again: one event, or dead letters, or events of the log, of a time (Unix ms of the
    server)."""

    event_id: str | None = None
    is_dead: bool = False
    since_ms: int = 0
    until_ms: int = 0
    is_preview: bool = False


class Reached(NamedTuple):
    """How far a resend came, in the dead letters or in the log: what is before this shard is done, and in it
    the log up to a record."""

    is_log: bool = False
    shard: int = 0
    record: str = "0-0"


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
    resend = Resend(pipe, keys, is_preview=selection.is_preview, done=done)
    found = [Resent(one.name, one.max_backlog) for one in subscriptions]
    if selection.is_dead or selection.event_id:
        for resent, one in zip(found, subscriptions, strict=True):
            resend.reached = Reached()
            await resend.dead_letters(resent, one, selection)
    if not (selection.is_dead or any(resent.is_found for resent in found)):
        for resent, one in zip(found, subscriptions, strict=True):
            resend.reached = Reached(is_log=True)
            await resend.events(resent, one, selection)
    return [resent for resent in found if not selection.event_id or resent.is_found]


async def send_part(
    pipe: Pipe,
    keys: Keys,
    subscription: SubscriptionSettings,
    selection: Selection,
    start: Reached,
    *,
    within_s: float,
) -> tuple[Resent, Reached | None]:
    """Send as much of a selection again as can be in a time, from `start` on.

    Returns what that was, and where the rest begins; None where there is no rest. What was queued just before
    the time was over may be part of the rest, too. Raises what Resend raises.
    """
    resend = Resend(pipe, keys, is_preview=selection.is_preview)
    resend.reached = start
    resent = Resent(subscription.name, subscription.max_backlog)
    try:
        async with asyncio.timeout(within_s):
            await resend.all_of(resent, subscription, selection)
    except TimeoutError:
        return resent, resend.reached
    return resent, None


class Resend:
    """Queues deliveries again in one namespace, or only counts them (`is_preview`), from where it has
    `reached`. Raises StoreError; LayoutAwaited if the data in Redis is moved to another layout meanwhile."""

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
        self.reached = Reached()

    async def all_of(self, resent: Resent, settings: SubscriptionSettings, selection: Selection) -> None:
        """Send a selection again, from where this came to: an event from the log, unless it is a dead
        letter."""
        if not self.reached.is_log:
            if selection.is_dead or selection.event_id:
                await self.dead_letters(resent, settings, selection)
            if selection.is_dead or resent.is_found:
                return
            self.reached = Reached(is_log=True)
        await self.events(resent, settings, selection)

    async def dead_letters(
        self, resent: Resent, settings: SubscriptionSettings, selection: Selection
    ) -> None:
        """Put the dead letters of a time, or that of one event, back at the end of their queues."""
        event_id = selection.event_id
        for shard in range(self.reached.shard, SHARDS):
            pages = self._reader.dead_letters_of_shard(
                settings.name, shard, since_ms=selection.since_ms, until_ms=selection.until_ms
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
            self.reached = Reached(shard=shard + 1)
            self._done()

    async def events(self, resent: Resent, settings: SubscriptionSettings, selection: Selection) -> None:
        """Queue the events of the log that a subscription wants, of a time; or one event."""
        for shard in range(self.reached.shard, SHARDS):
            replay = Replay(settings)  # from the beginning: each event names the one before it
            done = place(self.reached.record)
            waiting: list[tuple[str, Delivery]] = []
            async for record in self._history.of_shard(shard, end=str(selection.until_ms)):
                delivery, at = replay.take(record), place(record.id)
                is_of_the_time = at > done and at[0] >= selection.since_ms
                if delivery and is_of_the_time and selection.event_id in (None, delivery.event_id):
                    waiting.append((record.account, delivery))
                if len(waiting) == _HELD:
                    await self._put_all(resent, waiting)
                    waiting = []
                    self.reached = Reached(is_log=True, shard=shard, record=record.id)
            await self._put_all(resent, waiting)
            if not selection.event_id:  # what is damaged does not matter for one event
                resent.unreadable += replay.damaged
            self.reached = Reached(is_log=True, shard=shard + 1)
            self._done()

    async def _put_all(self, resent: Resent, waiting: Sequence[tuple[str, Delivery]]) -> None:
        by_account: dict[str, list[Delivery]] = {}
        for account, delivery in waiting:
            by_account.setdefault(account, []).append(delivery)
        for account, deliveries in by_account.items():
            for part in in_parts(deliveries, _AT_ONCE):
                await self._put(resent, account, part)

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
