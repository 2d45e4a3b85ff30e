"""What goes out again: dead letters, or events of the log, at the end of their queues.

Refuses to send: workers do, in the order of each queue, with the ids and bytes of the first time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from watcher.delivery.replay import Replay
from watcher.journal.delivery import Delivery
from watcher.settings import SubscriptionSettings
from watcher.store.history import History, place
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import Pipe
from watcher.store.polls import QUEUE_LENGTH
from watcher.store.queues import Queues
from watcher.store.reader import DeadLetter, Reader
from watcher.store.schedule import Schedule

_AT_ONCE = 100
"""Deliveries queued in one step: 2 MB at most."""


@dataclass(slots=True)
class Resent:
    """What goes out again to one subscription, and what could not.

    `waiting` counts what still waits there, and is not queued a second time; `unreadable` what is damaged;
    `full` names accounts whose queue has no room for more.
    """

    subscription: str
    deliveries: int = 0
    accounts: set[str] = field(default_factory=set)
    waiting: int = 0
    unreadable: int = 0
    full: set[str] = field(default_factory=set)


class Resend:
    """Queues deliveries again in one namespace, or only counts them (`is_preview`). Raises StoreError."""

    def __init__(self, pipe: Pipe, keys: Keys, *, is_preview: bool) -> None:
        self._queues = Queues(Schedule(pipe), keys)
        self._reader = Reader(pipe, keys)
        self._history = History(pipe, keys)
        self._ids_by_queue: dict[tuple[str, str], set[str]] = {}
        self._is_preview = is_preview

    async def letters(
        self, subscription: str, *, since_ms: int, until_ms: int, event_id: str | None = None
    ) -> Resent:
        """Put dead letters of a time back at the end of their queues; of one event, or all of them."""
        resent = Resent(subscription)
        for shard in range(SHARDS):
            pages = self._reader.dead_letters_of_shard(
                subscription, shard, since_ms=since_ms, until_ms=until_ms
            )
            async for page in pages:
                groups: dict[str, list[DeadLetter]] = {}  # order within an account stays
                for letter in page:
                    if letter.delivery and event_id in (None, letter.delivery.event_id):
                        groups.setdefault(letter.account, []).append(letter)
                for account, part in groups.items():
                    await self._put(resent, account, part)
                if event_id is None:
                    resent.unreadable += sum(letter.delivery is None for letter in page)
        return resent

    async def events(
        self,
        settings: SubscriptionSettings,
        ends: Sequence[str],
        *,
        since_ms: int,
        event_id: str | None = None,
    ) -> Resent:
        """Queue what a subscription wants of the log since a time and up to its `ends`; or one event."""
        resent = Resent(settings.name)
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
            resent.unreadable += 0 if event_id else replay.damaged  # they are none of one event's business
        return resent

    async def _put(self, resent: Resent, account: str, found: Sequence[Delivery | DeadLetter]) -> None:
        """Queue deliveries of one account, or its dead letters, which are none any more: but for what waits
        in its queue, and unless it would push that out."""
        name = resent.subscription
        if (
            name,
            account,
        ) not in self._ids_by_queue:  # as it is when first looked at, and what is added since
            found_there = self._reader.deliveries(name, account)
            self._ids_by_queue[name, account] = {each.event_id async for each in found_there if each}
        waiting = self._ids_by_queue[name, account]
        new = [one for one in found if _delivery(one).event_id not in waiting]
        resent.waiting += len(found) - len(new)
        if not new:
            return
        if account in resent.full or await self._queues.length(name, account) + len(new) > QUEUE_LENGTH:
            resent.full.add(account)
            return
        waiting.update(_delivery(one).event_id for one in new)
        count = len(new)
        if not self._is_preview:
            letters = [one.id for one in new if isinstance(one, DeadLetter)]
            count = await self._queues.enqueue(name, account, [*map(_delivery, new)], letters=letters)
        resent.deliveries += count
        if count:
            resent.accounts.add(account)


def _delivery(found: Delivery | DeadLetter) -> Delivery:
    delivery = found.delivery if isinstance(found, DeadLetter) else found
    assert delivery, "what cannot be read is not queued"
    return delivery
