"""What one subscription is told again: the event log as deliveries, with the ids and bytes of the first time.

Pure. Refuses to tell on trust: a record that does not say what this program writes is left out, and counted.
`account.baseline` is not in the log, so it is not told again; the chain of sequences knows that it was told.
"""

import re
from dataclasses import dataclass

import orjson

from watcher.journal.delivery import Delivery
from watcher.journal.events import Draft, Event, Origin, tell
from watcher.journal.interest import Interest
from watcher.journal.notices import threshold_key
from watcher.journal.record import Record
from watcher.journal.retold import Damaged, Forgotten, Started, Told, read_back
from watcher.settings import SubscriptionSettings
from watcher.snapshot import Asset

_ID = re.compile(r"evt_[a-z2-7]{24}\Z")
_A_BASELINE = Event("", "account.baseline", None, None, "0", 0, b"")
_MALFORMED = (Damaged, KeyError, TypeError, AttributeError)  # what orjson cannot write is a TypeError


class Replay:
    """Reads the records of the log, those of each account in order, as deliveries to one subscription.

    The bytes are those of the first time as long as the subscription wants what it wanted then, and the
    log still holds the beginning of the account.
    """

    def __init__(self, settings: SubscriptionSettings) -> None:
        self._name = settings.name
        self._interest = Interest({settings.name: settings})
        self._chain_by_account: dict[str, _Chain] = {}
        self.damaged = 0

    def take(self, record: Record) -> Delivery | None:
        """Make the delivery of a record; None for what the subscription does not want."""
        if not self._interest.listeners(record.account):
            return None
        try:
            told = read_back(record)
            chain = self._chain(record, told)
            return self._deliver(_event(record, told), record, chain) if isinstance(told, Told) else None
        except _MALFORMED:
            self.damaged += 1
            return None

    def _chain(self, record: Record, told: Started | Forgotten | Told) -> "_Chain":
        """Find what was told of an account before; an account without a state starts anew."""
        chain = self._chain_by_account.get(record.account)
        starts = isinstance(told, Started) and told.whole
        if chain is None or (record.follows == 0 and (starts or chain.follows > 0)):
            chain = self._chain_by_account[record.account] = _Chain()
        chain.follows = record.follows
        if starts and self._interest.wants(self._name, _A_BASELINE):
            chain.started = told.sequence
        return chain

    def _deliver(self, event: Event, record: Record, chain: "_Chain") -> Delivery | None:
        previous = chain.before(event)
        is_mine = event.type != "threshold.crossed" or self._is_mine(event, record)
        if not is_mine or not self._interest.wants(self._name, event):
            return None
        chain.previous = event.sequence
        return Delivery(event.id, event.type, event.sequence, event.body(self._name, previous))

    def _is_mine(self, event: Event, record: Record) -> bool:
        """Say whether it was a threshold of this subscription that was crossed: the id knows."""
        origin = Origin(record.account, record.content["data"]["account"]["provider"], record.follows, 0, 0)
        asset_id = event.asset.id if event.asset else ""
        for watch in self._interest.watches(record.account):
            identity = (threshold_key(watch, asset_id), event.amount)
            draft = Draft(event.type, event.asset, event.amount, {}, identity)
            if tell([draft], origin, first_sequence=0, now_ms=0)[0].id == event.id:
                return True
        return False


@dataclass(slots=True)
class _Chain:
    """The last sequences that were told of one account: of an event in the log, and of a baseline."""

    follows: int = 0
    previous: int = 0
    started: int = 0

    def before(self, event: Event) -> int | None:
        """Say which sequence was told before an event; None: none.

        The record of a start names the last sequence of its commit: that of the baseline's last part,
        unless crossings came behind it. A recovery in the same commit came before.
        """
        if event.type == "threshold.crossed":
            self.started = min(self.started, event.sequence - 1)
        told = (self.previous, self.started)
        return max((sequence for sequence in told if 0 < sequence < event.sequence), default=None)


def _event(record: Record, told: Told) -> Event:
    """Read an event of the log, to be told again."""
    data = record.content["data"]
    said = data["asset"]
    asset = None if said is None else Asset(*(said[field] for field in Asset._fields))
    if not _ID.match(told.id):
        raise Damaged("its id is none of ours")
    body = orjson.dumps(record.content)
    return Event(told.id, told.type, record.account, asset, data["amount"], told.sequence, body)
